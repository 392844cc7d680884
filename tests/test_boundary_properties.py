"""JSON, environment variables and names of user code. Evidence: the same value back, or a WorkbenchError."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import NUMBERS, PLAIN, TEXT

from workbench import environment, user_code
from workbench.bounded_json import parse, parse_object
from workbench.errors import WorkbenchError

JSON_TEXT = st.text(st.sampled_from('[]{}":,.0123456789eE+-truefalsnINity \\ud8\n'), max_size=60) | st.text(max_size=60)
NAMES = st.text(st.sampled_from(":./~\\ \0ab_9é-\ud800"), max_size=30) | TEXT


@given(PLAIN)
def test_json_is_the_same_after_a_round_trip(value):
    assert repr(parse(json.dumps(value))) == repr(value)


@given(JSON_TEXT)
def test_any_text_is_json_within_the_bounds_or_is_refused(text):
    for read in (parse, parse_object):
        try:
            value = read(text)
        except WorkbenchError as error:
            assert len(str(error)) < 400
        else:
            assert json.dumps(value, allow_nan=False) and (read is parse or isinstance(value, dict))


@given(st.integers(1, 80), st.integers(0, 40))
def test_json_is_refused_exactly_if_it_is_deeper_than_allowed(levels, depth):
    text = "[" * levels + "1" + "]" * levels
    if levels <= depth:
        assert parse(text, depth=depth) == json.loads(text)
    else:
        with pytest.raises(WorkbenchError, match=str(depth)):
            parse(text, depth=depth)


VARIABLE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20) | NUMBERS.map(str)
VARIABLE |= st.text("0123456789²٣.e-", max_size=11)


@given(VARIABLE, st.integers(0, 100))
def test_a_variable_is_a_number_within_its_bounds_or_is_refused(value, least):
    with environment.changed({"WORKBENCH_X": value}):
        for read in (
            lambda: environment.number("WORKBENCH_X", 7.5, least),
            lambda: environment.whole("WORKBENCH_X", least),
        ):
            try:
                number = read()
            except WorkbenchError as error:
                assert "WORKBENCH_X" in str(error)
            else:
                assert number in (7.5, None) if not value else math.isfinite(number) and number >= least


@given(st.integers(0, 10**9 - 1))
def test_a_whole_number_is_read_as_it_was_written(number):
    with environment.changed({"WORKBENCH_X": str(number)}):
        assert environment.whole("WORKBENCH_X") == number and environment.number("WORKBENCH_X", 0.5) == number


@given(VARIABLE)
def test_a_variable_is_a_folder_or_is_refused(value):
    with environment.changed({"WORKBENCH_X": f"~{value}"}):
        try:
            assert environment.folder("WORKBENCH_X") is not None
        except WorkbenchError as error:
            assert "WORKBENCH_X" in str(error)


@given(NAMES)
def test_a_name_of_user_code_has_the_right_form_or_is_refused(name):
    try:
        user_code.check_form(name)
    except WorkbenchError as error:
        assert len(str(error)) < 500
    else:
        where, _, function = name.rpartition(":")
        assert where and function.isidentifier()


@given(st.sampled_from(["", "~nobody", "~/"]), NAMES, st.sampled_from(["", ".py:f", ".py", ":f"]))
def test_a_name_is_located_or_is_refused(root, start, name, end):
    try:
        located = user_code.located(start + name + end)
    except WorkbenchError as error:
        assert len(str(error)) < 500
    else:
        assert located == start + name + end  # no such file exists


@given(st.text("abc_9é ", min_size=1, max_size=20).filter(lambda name: name.strip() == name))
def test_a_file_is_located_again_under_the_name_that_it_got(root, name):
    (root / "nets").mkdir(exist_ok=True)
    (root / "nets" / f"{name}.py").write_text("def build(): ...")
    located = user_code.located(f"{root}/nets/{name}.py:build")
    assert located == f"nets/{name}.py:build" == user_code.located(located)
