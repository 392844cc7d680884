"""Values in messages. Evidence: long values, and values with line breaks, stay on one short line."""

import json

import pytest

from workbench import environment
from workbench.errors import WorkbenchError, shown, unknown
from workbench.lab.executors import Choice
from workbench.lab.executors.context import VARIABLE, current
from workbench.pool.seats import seats, visible_gpus
from workbench.training import TrainConfig

LONG = "a\n\x1b\ud800" * 2000


@pytest.mark.parametrize("quote", [True, False])
def test_a_value_is_shown_on_one_line_of_text(quote):
    assert "\n" not in shown(LONG, quote=quote) and len(shown(LONG, 80, quote)) == 80
    assert shown("größe", quote=quote).strip("'") == "größe"
    shown(LONG, quote=quote).encode()


@pytest.mark.parametrize(
    "fail",
    [
        lambda: TrainConfig(steps=LONG),
        lambda: TrainConfig(steps=1, precision=LONG),
        lambda: TrainConfig(steps=1, model=LONG),
        lambda: Choice.parse(LONG),
        lambda: (_ for _ in ()).throw(unknown("name", LONG, ["a"])),
    ],
)
def test_the_message_about_a_long_value_is_short(fail):
    with pytest.raises(WorkbenchError) as error:
        next(made) if hasattr(made := fail(), "__next__") else None
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("value", ["3\n" * 1000, "9" * 5000, "\udcff"])
def test_a_variable_with_a_wrong_value_is_refused_in_one_line_or_left_out(value):
    with environment.changed({"WORKBENCH_GPUS": value}), pytest.raises(WorkbenchError, match="WORKBENCH_GPUS") as error:
        visible_gpus()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    with environment.changed({"OMP_NUM_THREADS": value}):
        assert seats(1)[0].threads >= 1


@pytest.mark.parametrize("changes", [{"executor": True}, {"study": None}, {"channel": 3}, {"run_id": []}])
def test_a_context_of_other_types_is_refused(changes):
    values = {"study": "mine", "mode": "full", "launcher": "host/1/2/3"}
    with environment.changed({VARIABLE: json.dumps(values | changes)}), pytest.raises(WorkbenchError, match=VARIABLE):
        current()
    with environment.changed({VARIABLE: json.dumps(values)}):
        assert current().study == "mine"
