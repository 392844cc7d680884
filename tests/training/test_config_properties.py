"""Any valid configuration and result, as text and back. Evidence: equal values, and keys that differ as they do."""

import dataclasses
import json
import math

from hypothesis import given
from hypothesis import strategies as st
from support.strategies import SCALARS, TEXT, WORDS, configs

from workbench.lab.store.stored_results import parse_result
from workbench.lab.studies.recipes import parse_config, recipe_text
from workbench.training import TrainConfig, TrainResult, config_id, training_key
from workbench.training.config import EXECUTION_FIELDS
from workbench.training.detached.plan import Planned, read_plan, write_plan
from workbench.training.detached.records import Record

KEYS = st.text("0123456789abcdef", min_size=64, max_size=64)
METRICS = st.dictionaries(
    st.text("abc_.-9", min_size=1, max_size=9).filter(lambda name: name[0] not in ".-"),
    st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.just(math.inf) | st.booleans() | st.none(),
    max_size=4,
)
ROWS = st.builds(lambda step, row: {**row, "step": step}, st.integers(0, 2**63 - 1), METRICS)
LABELS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
STUDIES = st.none() | st.text("ab9_ .-", max_size=12)
MODES = st.sampled_from(["full", "quick"])
RESULTS = st.builds(
    TrainResult,
    key=KEYS,
    config=configs(weights=st.none() | WORDS),
    outcome=st.sampled_from(["complete", "diverged", "pruned", "failed"]),
    history=st.lists(ROWS, max_size=3),
    metrics=METRICS,
    cause=st.none() | LABELS,
    seconds=st.floats(0, 1e9),
    device=LABELS,
    versions=st.dictionaries(LABELS, LABELS, max_size=2),
    data_digest=LABELS,
    code=LABELS,
)


def identity(config: TrainConfig) -> str:
    """What a key must depend on. The data count by their digest."""
    return json.dumps(
        {k: v for k, v in config.to_dict().items() if k not in (*EXECUTION_FIELDS, "data")}, sort_keys=True
    )


@given(configs(weights=st.none() | WORDS))
def test_a_configuration_is_the_same_after_a_dictionary_json_and_a_recipe(tmp_path, config):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(config), encoding="utf-8")
    as_json = json.loads(json.dumps(config.to_dict()))
    for other in (
        TrainConfig.from_dict(config.to_dict()),
        TrainConfig.from_dict(as_json),
        parse_config({}, str(recipe)),
    ):
        assert other == config and identity(other) == identity(config) and config_id(other) == config_id(config)


@given(configs(), st.text(max_size=8))
def test_the_key_is_the_same_after_json_and_a_recipe(tmp_path, config, digest):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(config), encoding="utf-8")
    key = training_key(config, digest)
    assert key == training_key(TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))), digest)
    assert key == training_key(parse_config({}, str(recipe)), digest) != training_key(config, digest + "x")


@given(configs(), configs(), st.data())
def test_two_configurations_have_one_key_exactly_if_they_compute_the_same(a, b, data):
    name = data.draw(st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]))
    for other in (b, _with(a, name, getattr(b, name))):
        assert (training_key(a, "d") == training_key(other, "d")) == (identity(a) == identity(other))


def _with(config: TrainConfig, name: str, value) -> TrainConfig:
    """Change one field, if the others allow it."""
    try:
        return config.replace(**{name: value})
    except ValueError:
        return config


@given(
    st.lists(
        st.builds(Planned, KEYS, configs(), LABELS, STUDIES, MODES, LABELS, LABELS, st.none() | LABELS), max_size=3
    )
)
def test_a_plan_is_the_same_after_it_was_written(tmp_path, trainings):
    trainings += [dataclasses.replace(t, mode="quick") for t in trainings[:1]]
    unique = {(training.key, training.mode): training for training in reversed(trainings)}
    read = read_plan(write_plan(tmp_path / "plan.jsonl", trainings)).trainings
    assert {(training.key, training.mode): training for training in read} == unique


@given(RESULTS)
def test_a_result_is_the_same_after_json_also_through_the_schema_of_the_store(result):
    assert TrainResult.from_json(result.to_json()) == result
    assert parse_result(result.to_json(), "run").as_train_result() == result


@given(
    RESULTS,
    STUDIES,
    MODES,
    LABELS,
    st.none() | LABELS,
    st.floats(0, 1e11),
    st.dictionaries(st.text("ab_", min_size=1), LABELS),
)
def test_a_line_of_results_is_the_same_after_json(result, study, mode, label, owner, when, tables):
    record = Record(result, study, mode, label, label, owner, when, when, tables)
    assert Record.from_json(record.to_json()) == record


@given(
    st.sampled_from(sorted(f.name for f in dataclasses.fields(TrainConfig))),
    SCALARS | st.floats() | st.lists(TEXT, max_size=2),
)
def test_any_value_of_a_field_is_allowed_and_kept_or_refused_by_the_name_of_the_field(name, value):
    base = TrainConfig(steps=1).to_dict() | ({"steps": None} if name == "epochs" else {})
    try:
        config = TrainConfig.from_dict(base | {name: value})
    except ValueError as error:
        assert name in str(error) or "unknown network" in str(error) or ":" in str(value), error
    else:
        assert getattr(config, name) == value
