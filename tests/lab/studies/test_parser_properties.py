"""Any text and any value for a parameter. Evidence: a round trip, or a WorkbenchError and nothing else."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import NUMBERS, PLAIN, TEXT

from workbench.errors import WorkbenchError
from workbench.lab.studies.parameters import Parameter
from workbench.lab.studies.plain_yaml import dump_yaml, load_yaml

YAML_TEXT = st.text(st.sampled_from("[]{}&*!|>'\"%@`#:-?,.~0123456789abeEnul \n\té"), max_size=60)
TOKENS = [
    "!!int ",
    "!!float ",
    "!!map ",
    "!mine ",
    "&a ",
    "*a ",
    "<<: ",
    "[",
    "]",
    "{",
    "}",
    "a: ",
    "- ",
    ",",
    "1e3",
    "x",
]
YAML_TEXT |= st.lists(st.sampled_from(TOKENS), max_size=9).map("".join)
ANNOTATIONS = {
    "int": 3,
    "PositiveInt": 3,
    "float": 0.5,
    "PositiveFloat | None": 0.5,
    "NonNegativeFloat": 0.0,
    "bool": True,
    "str": "a",
    "list[PositiveInt]": [1],
    "list[PositiveFloat | None]": [0.1],
    "list[list[str]]": [["a"]],
    "dict": {},
    "dict[str, float]": {"a": 1.0},
    "Literal['one', 'two']": "one",
    "PositiveFloat | Range": 0.1,
}


def is_finite(value) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(is_finite, inner)) and not (isinstance(value, float) and not math.isfinite(value))


def same(a, b) -> bool:
    """Equal in value and type, also -0.0 and 0.0, 1 and True."""
    return repr(a) == repr(b)


@given(PLAIN)
@example(["1e3", "1e-3", ".5", "5.", "+.5e1", ".inf", "1_000", "0x1f", "012", "1:30", "y", "null", "2026-01-01", "="])
def test_a_plain_value_is_the_same_after_a_round_trip(value):
    assert same(load_yaml(dump_yaml(value), "x"), value)


@given(YAML_TEXT | st.text(max_size=60))
def test_any_text_loads_as_a_plain_value_or_is_refused(text):
    try:
        value = load_yaml(text, "x")
    except WorkbenchError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert same(load_yaml(dump_yaml(value), "x"), value)


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_any_text_gives_a_value_that_fits_or_is_refused(annotation):
    parameter = Parameter("x", annotation, ANNOTATIONS[annotation], "")

    @given(YAML_TEXT | TEXT | NUMBERS.map(str) | PLAIN.map(dump_yaml))
    def holds(text):
        try:
            value = parameter.parse(text)
        except WorkbenchError as error:
            assert "x" in str(error) and len(str(error)) < 700
        else:
            assert same(parameter.check(value), value)

    holds()


@pytest.mark.parametrize("annotation", ANNOTATIONS)
def test_any_plain_value_fits_or_is_refused(annotation):
    parameter = Parameter("x", annotation, ANNOTATIONS[annotation], "")

    @given(PLAIN | st.floats() | st.integers() | st.sampled_from([math.inf, math.nan, [math.inf], {"a": -math.inf}]))
    def holds(value):
        try:
            checked = parameter.check(value)
        except WorkbenchError as error:
            assert "x" in str(error) and len(str(error)) < 700
        else:
            assert is_finite(checked)
            assert checked == value or checked == float(value)  # whole numbers become floats

    holds()


@given(NUMBERS.filter(lambda number: number > 0))
def test_a_number_as_python_and_yaml_write_it_is_parsed(number):
    parsed = Parameter("x", "PositiveFloat", 1.0, "").parse(str(number))
    assert math.isclose(parsed, number) and (isinstance(parsed, float) or isinstance(number, int))
