"""Tests of the views of MLflow's page. Evidence: the format that the page reads, and columns that the store fills."""

import json
import re

import pytest
from support.mlflow_view import client
from support.store_runs import log_training

from workbench.lab import Store
from workbench.lab.store.views import TRAININGS, experiment_tags, page

# Columns that only some trainings have: confirmations, divergences, those that log speed or clipping.
SOMETIMES = {
    "metrics.`test_acc`",
    "metrics.`failed_at_step`",
    "metrics.`clipped_share`",
    "metrics.`images_per_second`",
    "tags.`cause`",
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_view_has_the_format_that_the_page_lists(name):
    tag = experiment_tags("trainings")[f"mlflow.sharedViewState.{name}"]
    envelope = json.loads(tag)
    assert envelope["name"] == name and isinstance(envelope["createdAt"], int)
    state = json.loads(envelope["state"])
    assert {"searchFilter", "orderByKey", "orderByAsc", "selectedColumns", "groupBy"} <= set(state)
    assert state["orderByKey"] in state["selectedColumns"]
    assert len(tag) < 5000  # MLflow's limit of an experiment tag


def test_a_training_has_the_columns_of_the_views_and_their_filters_work(root):
    store = Store()
    run = store.get(log_training(store))
    known = (
        {f"metrics.`{m}`" for m in run.metrics}
        | {f"params.`{p}`" for p in run.parameters}
        | {f"tags.`{t}`" for t in run.tags}
    )
    for name, view in TRAININGS.items():
        assert set(view["selectedColumns"]) <= known | SOMETIMES, name
        runs = store.search("trainings", "full", view["searchFilter"])
        assert len(runs) == (0 if name in ("search", "failures") else 1)
        if view["groupBy"]:
            assert view["groupBy"]["groupByKeys"][0]["groupByData"] in run.tags


def test_studies_have_one_view_and_the_tag_that_sets_the_kind_of_page():
    assert [k for k in experiment_tags("studies-quick") if "sharedViewState" in k] == [
        "mlflow.sharedViewState.verdicts"
    ]
    assert experiment_tags("studies")["mlflow.experimentKind"] == "custom_model_development"


def test_the_first_line_of_an_experiments_description_links_its_views(root):
    store = Store()
    for name, number in store._experiments.items():
        first, *rest = client(store).get_experiment(number).tags["mlflow.note.content"].splitlines()
        views = [k.removeprefix("mlflow.sharedViewState.") for k in experiment_tags(name) if "sharedViewState" in k]
        assert [f"[{view}]({page('', number, view)})" in first for view in views] == [True] * len(views)
        assert ("never evidence" in first) == name.endswith("-quick") and len(rest) == 1 + len(views)


def test_a_training_has_a_description_and_a_configuration_tag(root):
    store = Store()
    tags = store.get(log_training(store)).tags
    assert tags["mlflow.note.content"] == (
        "nf_resnet_tiny on mnist5k, batch 64, peak learning rate 0.4, clipping threshold 0.04, 4 steps, seed 2: "
        "complete, validation accuracy 90.00%."
    )
    assert tags["configuration"] == f"NF+AGC B64 lr0.4 c0.04 {tags['config_id']}"


def test_the_address_of_a_page_names_the_view():
    assert re.fullmatch(
        r"http://h/#/experiments/4/runs\?workflowType=machine_learning&viewStateShareKey=seeds",
        page("http://h", "4", "seeds"),
    )
