"""Claims from their tables. Evidence: the store, the exported tables and a computation by hand give the same verdict.

Holm's adjustment can make a verdict undecided.
"""

import json
import math
import re

import matplotlib.image as mpimg
import pandas as pd
import pytest
from rich.console import Console
from support.accumulated import GRADIENTS, trainings
from support.boundaries import by_product, by_rate, outcomes
from support.checkout import CHECKOUT
from support.tables import signal_table
from typer.testing import CliRunner

from workbench.claims import judging, stability_boundary
from workbench.claims.judging import departures, export, judged, results_folder
from workbench.claims.registry import chosen, claims, questions
from workbench.cli import app
from workbench.cli.claims_table import as_markdown, as_table, show_claims
from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.store.client import as_param
from workbench.lab.studies.spec import Study


def measured(store, study, table, mode="full", tags=(), **other):
    """Store a run with the parameters of the study's file, except those in `other`."""
    (parameters,) = Study.load(study).executions(quick=False)
    run = store.open_notebook(study, f"{study}.ipynb", parameters | other, mode, study, dict(tags))
    store.log_table(run, table, "table")
    store.close(run, "FINISHED")
    return run


def test_the_store_the_exported_tables_and_the_rule_by_hand_agree(root, tmp_path, monkeypatch):
    table = outcomes(by_product, seeds=8).assign(data="cifar10", train_size=500.0, device="cpu")
    run = measured(Store(), "stability_boundary", table)
    (judgement,) = judged(chosen(["7"]))
    by_hand = stability_boundary.judge(table)
    assert (judgement.verdict.headline, judgement.verdict.effect) == (by_hand.headline, by_hand.effect)
    pd.testing.assert_frame_equal(judgement.verdict.table, by_hand.table)
    assert (judgement.evidence.run, judgement.evidence.data, judgement.evidence.device) == (
        run,
        "cifar10 (500 images)",
        "cpu",
    )

    export([judgement], results_folder())
    assert mpimg.imread(root / "docs" / "figures" / "stability_boundary.png").std() > 0.01  # not a blank page
    (again,) = judged(chosen(["stability_boundary"]), where="docs")
    assert again.verdict.headline == judgement.verdict.headline and again.evidence.source == "docs/results"
    assert again.evidence.run == run

    drawings = [root / "docs" / "figures" / f"stability_boundary.{suffix}" for suffix in ("svg", "png")]
    drawn = [drawing.read_bytes() for drawing in drawings]
    for drawing in drawings:
        drawing.unlink()
    export([again], results_folder())  # committed tables give the same drawings
    assert [drawing.read_bytes() for drawing in drawings] == drawn
    row = as_table([again]).iloc[0]
    assert (row.claim, row.run, row.n) == (7, run, 8) and row.low <= row.effect <= row.high


def test_the_newest_full_run_counts_and_a_quick_run_never_does(root):
    store = Store()
    measured(store, "stability_boundary", outcomes(by_rate, seeds=8))
    newest = measured(store, "stability_boundary", outcomes(by_product, seeds=8))
    measured(store, "stability_boundary", outcomes(by_rate, seeds=8), mode="quick")
    (judgement,) = judged(chosen(["7"]), store=store)
    assert judgement.evidence.run == newest and judgement.verdict.holds is True


def test_a_run_with_other_parameters_does_not_replace_one_with_those_of_the_studys_file(root):
    store = Store()
    as_written = measured(store, "stability_boundary", outcomes(by_product, seeds=8))
    measured(store, "stability_boundary", outcomes(by_rate, seeds=8), steps=20)
    (judgement,) = judged(chosen(["7"]), store=store)
    assert (judgement.evidence.run, judgement.evidence.departs) == (as_written, "")


def test_a_run_with_other_parameters_counts_if_no_other_exists_and_its_parameters_are_listed(root):
    store = Store()
    measured(store, "stability_boundary", outcomes(by_rate, seeds=8), steps=30)
    newest = measured(store, "stability_boundary", outcomes(by_rate, seeds=8), steps=20, train_size=None)
    (judgement,) = judged(chosen(["7"]), store=store)
    assert (judgement.evidence.run, judgement.evidence.departs) == (newest, "train_size=none, steps=20")
    assert "not as in the study's file: train_size=none, steps=20" in as_markdown([judgement])
    shown = CliRunner().invoke(app, ["claims", "7", "--from", "store"], env={"COLUMNS": "300"})
    assert "stability_boundary.yaml: train_size=none, steps=20" in shown.output

    export([judgement], results_folder())
    (again,) = judged(chosen(["7"]), where="docs")
    assert again.evidence.departs == "train_size=none, steps=20"


def test_only_the_name_of_a_long_value_is_listed():
    study = Study.load("ablation")
    (wanted,) = study.executions(quick=False)
    stored = {name: as_param(value) for name, value in wanted.items() if value is not None}
    assert departures(study, stored) == ""
    assert departures(study, stored | {"lrs": "[0.8]", "model_args": '{"widths": [16, 32, 64, 128, 256, 512]}'}) == (
        'model_args={"widths": [16, 32, 64, 128, 256, 512]}, lrs=[0.8]'
    )
    assert departures(
        study, stored | {"steps": "200", "model_args": as_param(wanted["model_args"] | {"se_ratio": 0})}
    ) == ("model_args, steps=200")


def test_a_parameter_that_the_notebook_no_longer_has_is_a_departure():
    study = Study.load("small_batch")
    (wanted,) = study.executions(quick=False)
    defaults = {name: knob.default for name, knob in study.knobs().items()}
    stored = {name: as_param(value) for name, value in wanted.items() if value not in (None, defaults[name])}
    assert len(stored) < len(wanted)  # a parameter that the run lacks counts as its default
    assert departures(study, stored | {"clip": "0.04"}) == "clip=0.04"


def test_a_manual_run_counts_only_with_the_parameters_of_the_studys_file(root):
    store = Store()
    measured(store, "stability_boundary", outcomes(by_product, seeds=8), tags={"by": "hand"}, steps=20)
    assert judged(chosen(["7"]), where="store", store=store)[0].evidence is None
    run = measured(store, "stability_boundary", outcomes(by_product, seeds=8), tags={"by": "hand"})
    assert judged(chosen(["7"]), store=store)[0].evidence.run == run


def test_claims_without_a_run_have_no_verdict(root):
    judgements = judged(claims(), where="store")
    assert [each.verdict for each in judgements] == [None] * len(claims())
    assert as_table(judgements).empty


def test_holms_adjustment_can_make_a_verdict_undecided(root, monkeypatch):
    monkeypatch.setattr(judging, "holm", lambda p_values: [2 * p for p in p_values])
    table = outcomes(by_product, seeds=8)
    store = Store()
    measured(store, "stability_boundary", table)
    judgement = judged(chosen(["7"]), store=store)[0]
    assert judgement.verdict.holds is True and judgement.p_holm == 2 * judgement.verdict.effect.p
    monkeypatch.setattr(judging, "holm", lambda p_values: [0.06 for _ in p_values])
    undecided = judged(chosen(["7"]), store=store)[0].verdict
    assert undecided.holds is None and undecided.effect == judgement.verdict.effect
    assert undecided.headline != judgement.verdict.headline
    assert len(undecided.table) == len(judgement.verdict.table) + 1
    assert undecided.table.p_holm.iloc[-1] == 0.06


@pytest.mark.parametrize(
    ("name", "values"),
    [("large_bach", ["large_bach", "large_batch"]), ("99", ["99", "1, 3, 4, 5, 7, 8, 9, 10, 11"])],
)
def test_an_unknown_claim_is_refused_with_the_known_ones(name, values):
    with pytest.raises(WorkbenchError) as error:
        chosen([name])
    assert all(value in str(error.value) for value in values)


def test_every_claim_has_its_study_and_the_committed_tables_are_judged():
    numbers = [claim.number for claim in claims()]
    assert len(set(numbers)) == len(numbers)
    for claim in claims():
        assert Study.load(claim.study).question
    judgements = [each for each in judged(claims(), where="docs") if each.verdict is not None]
    assert {"signal_propagation", "stability_boundary"} <= {each.claim.study for each in judgements}
    index = json.loads((results_folder() / "runs.json").read_text())
    assert all(index[each.claim.study]["run"] for each in judgements)
    assert judgements[0].verdict.holds is True  # signal propagation, as in LOG.md


def test_holms_adjustment_does_not_cover_a_question():
    claim, question = judged(chosen(["slow_start", "7"]), where="docs")
    assert (claim.claim.number, question.claim.number) == (7, None)
    assert claim.p_holm == claim.verdict.effect.p  # a family of one
    assert question.verdict.holds is True and math.isnan(question.p_holm)
    assert all(Study.load(each.study).question for each in questions()) and not {*questions()} & {*claims()}
    brief, full = Console(record=True, width=300), Console(record=True, width=300)
    show_claims([question], brief)
    show_claims([question], full, details=True)
    assert f"slow_start: {question.verdict.headline}" in (text := brief.export_text())
    lines = full.export_text().splitlines()
    assert len(lines) == len(text.splitlines()) + 1 + len(question.verdict.table)  # a heading and a line per row
    assert any(line.startswith("eps 0.1") and "8.72 [6.58, 10.9]" in line for line in lines)


def test_the_readme_has_the_table_of_the_committed_results():
    table = as_markdown(judged(claims(), where="docs"))
    readme = (CHECKOUT / "README.md").read_text()
    assert f"<!-- claims -->\n{table}\n<!-- /claims -->" in readme, "update it with ./run claims --export"
    for file in re.findall(r"\]\((docs/figures/\w+\.png)\)", table):
        assert (CHECKOUT / file).is_file()


def test_data_and_device_come_from_any_table_that_has_them(root):
    store = Store()
    run = store.open_notebook("accumulation", "accumulation.ipynb", {}, "full", "accumulation", {})
    store.log_table(run, GRADIENTS, "gradients")
    store.log_table(run, trainings(0.0).assign(data="cifar10", device="cpu", train_size=10000.0), "table")
    store.close(run, "FINISHED")
    (judgement,) = judged(chosen(["accumulation"]), store=store)
    assert (judgement.evidence.data, judgement.evidence.device) == ("cifar10 (10000 images)", "cpu")


def test_holms_adjustment_covers_measured_claims_that_are_not_shown(root, tmp_path):
    """Two claims are measured, so Holm doubles the smaller p-value, whichever claim is shown."""
    store = Store()
    measured(store, "stability_boundary", outcomes(by_product, seeds=8))
    measured(store, "signal_propagation", signal_table(1.1))
    file = tmp_path / "claims.csv"
    shown = CliRunner().invoke(app, ["claims", "1", "--from", "store", "--csv", str(file)])
    assert shown.exit_code == 0, shown.output
    (row,) = pd.read_csv(file).itertuples()
    assert row.claim == 1 and row.p_holm == pytest.approx(2 * row.p)


def test_a_stored_table_of_another_version_names_its_run_and_the_study_to_repeat(root):
    run = measured(Store(), "stability_boundary", outcomes(by_rate, seeds=8).drop(columns="clip"))
    with pytest.raises(WorkbenchError) as error:
        judged(chosen(["7"]))
    assert run in str(error.value) and "stability_boundary" in str(error.value) and "clip" in str(error.value)
