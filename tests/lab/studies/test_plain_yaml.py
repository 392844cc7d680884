"""YAML from outside. Evidence: plain values, and refusals in a second for everything larger, deeper or stranger."""

import os
import time

import pytest

from workbench.errors import WorkbenchError
from workbench.lab.studies.parameters import Parameter
from workbench.lab.studies.plain_yaml import load_yaml, read_yaml
from workbench.lab.studies.recipes import parse_config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("[1e-1, 1e0, 1E5, -2e+3, .5, 5., +.5e1, 1.5e-3]", [0.1, 1.0, 1e5, -2e3, 0.5, 5.0, 5.0, 0.0015]),
        ("{low: 1e-3, high: 2, log: true}", {"low": 0.001, "high": 2, "log": True}),
        ("[1e, e3, 1e-, 1.2.3, .e1, 1e3x]", ["1e", "e3", "1e-", "1.2.3", ".e1", "1e3x"]),
        ("2026-13-45", "2026-13-45"),
        ("[&x [1, 2], *x]", [[1, 2], [1, 2]]),
        ("'1e-3'", "1e-3"),
        ("9007199254740992", 2**53),
        ("", None),
    ],
)
def test_a_text_has_its_plain_value(text, value):
    loaded = load_yaml(text, "x")
    assert loaded == value and type(loaded) is type(value)


ROWS = [f"&{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
BOMB = f"[&a [1, 1], {', '.join(ROWS)}]"
BAD = {
    "recursive list": ("&a [*a]", ["*a"]),
    "recursive mapping": ("&a {b: *a}", ["*a"]),
    "unknown alias": ("*nobody", ["*nobody"]),
    "alias bomb": (BOMB, ["10,000"]),
    "brackets": ("[" * 10_000, ["32"]),
    "closed brackets": ("[" * 10_000 + "]" * 10_000, ["32"]),
    "mappings": ("{a: " * 10_000, ["32"]),
    "sequence dashes": ("- " * 10_000 + "1", ["32"]),
    "impossible date": ("!!timestamp 2026-13-45", ["timestamp"]),
    "unknown tag": ("!mine 3", ["!mine"]),
    "python object": ("!!python/object/apply:os.system ['true']", ["python/object"]),
    "python name": ("!!python/name:os.system", ["python/name"]),
    "binary": ("!!binary aGk=", ["binary"]),
    "set": ("!!set {a, b}", ["set"]),
    "bool": ("!!bool perhaps", ["perhaps"]),
    "int": ("!!int many", ["many"]),
    "empty int": ("!!int", []),
    "empty float": ("a: !!float ''", []),
    "5,000 digits": ("9" * 5_000, ["999", "too large"]),
    "26 digits": ("9" * 26, ["9" * 26]),
    "negative": ("-" + "9" * 26, ["9" * 26]),
    "hexadecimal": ("0x" + "f" * 5_000, ["0xff"]),
    "binary digits": ("0b" + "1" * 100, ["0b11"]),
    "two documents": ("a: 1\n---\nb: 2", ["document"]),
    "open": ("[1, 2", []),
    "control character": ("a\x00b", []),
    "surrogate": ("a\udcff", []),
    "a list as key": ("{[1, 2]: 3}", []),
    "long": ("a" * 200_000, ["100,000"]),
    "wide": (str([1] * 20_000), ["10,000"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_text_is_refused_at_once_with_one_short_sentence(kind):
    text, named = BAD[kind]
    started = time.monotonic()
    with pytest.raises(WorkbenchError) as error:
        load_yaml(text, "my.yaml")
    message = str(error.value)
    assert time.monotonic() - started < 5
    assert message.startswith("my.yaml") and len(message) < 300 and "\n" not in message
    assert [part for part in named if part not in message] == []


@pytest.mark.parametrize("text", [text for text, _ in BAD.values()])
def test_the_command_line_refuses_it_for_every_kind_of_parameter(text):
    for annotation, default in (("list[PositiveFloat]", [0.1]), ("PositiveInt", 3), ("dict", {}), ("list[str]", ["a"])):
        with pytest.raises(WorkbenchError) as error:
            Parameter("x", annotation, default, "").parse(text)
        assert len(str(error.value)) < 600
    with pytest.raises(WorkbenchError):
        parse_config({"steps": text})


def test_a_file_is_read_only_if_it_is_a_file_of_text(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: größe".encode("latin-1"))
    for file in (tmp_path, tmp_path / "pipe.yaml", tmp_path / "latin.yaml", tmp_path / "missing.yaml"):
        with pytest.raises(WorkbenchError, match=file.name):
            read_yaml(file)
    with pytest.raises(WorkbenchError, match="a" * 20):
        read_yaml(tmp_path / ("a" * 300 + ".yaml"))


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("list[PositiveFloat]", "[1e-1, 1e0]", [0.1, 1.0]),
        ("PositiveFloat | Range", "{low: 1e-3, high: 1e0, log: true}", {"low": 0.001, "high": 1.0, "log": True}),
        ("dict", "{alpha: 1e-2, more: [1e1]}", {"alpha": 0.01, "more": [10.0]}),
        ("PositiveFloat | None", "1e-3", 0.001),
    ],
)
def test_an_exponent_without_a_point_is_a_number_in_lists_and_ranges(annotation, text, value):
    assert Parameter("x", annotation, [0.5], "").parse(text) == value


@pytest.mark.parametrize(("text", "number"), [("[1e2]", "100"), ("['1e2']", "100"), ("[64.0]", "64")])
def test_a_whole_number_with_an_exponent_gets_the_hint_how_to_write_it(text, number):
    with pytest.raises(WorkbenchError, match=rf"\b{number}\b") as error:
        Parameter("sizes", "list[PositiveInt]", [8], "").parse(text)
    assert "sizes" in str(error.value) and "list[PositiveInt]" in str(error.value)
