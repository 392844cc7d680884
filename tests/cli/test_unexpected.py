"""Errors that nobody expected. Evidence: exit code, the printed sentence, and the file with the traceback."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.checkout import CHECKOUT

from workbench import unexpected
from workbench.cli import app
from workbench.cli.model_commands import models
from workbench.errors import WorkbenchError
from workbench.program import run_program, without_debug


def leaves(group, names=()):
    """Yield the words and the registration of every command and sub-command."""
    for info in group.registered_commands:
        yield [*names, info.name or info.callback.__name__.replace("_", "-").rstrip("-")], info
    for sub in group.registered_groups:
        yield from leaves(sub.typer_instance, [*names, sub.name])


LEAVES = list(leaves(app))


def break_command(monkeypatch, info):
    """Replace the work of a command by an error. The command keeps its name."""

    def boom():
        raise ZeroDivisionError("nobody [expected] this")

    boom.__name__ = info.callback.__name__
    monkeypatch.setattr(info, "callback", boom)


def traceback_file(errors):
    """Return the file that the last line names."""
    return Path(re.search(r"traceback is in (\S+\.txt)", errors.splitlines()[-1]).group(1))


def test_all_commands_are_found():
    assert len(LEAVES) >= 18 and len(list(leaves(models))) == 5


@pytest.mark.parametrize(("words", "info"), LEAVES, ids=[" ".join(words) for words, _ in LEAVES])
def test_every_command_saves_the_traceback_and_exits_with_1(root, command, monkeypatch, words, info):
    break_command(monkeypatch, info)
    code, out, errors = command(*words)
    assert code == 1 and "Traceback" not in out + errors
    (line,) = errors.splitlines()
    assert "ZeroDivisionError" in line and "nobody [expected] this" in line and "--debug" in line
    file = traceback_file(errors)
    assert file.parent == root / "mlruns" / "errors"
    text = file.read_text()
    assert "in boom" in text and "ZeroDivisionError: nobody [expected] this" in text


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("words", [["train"], ["models", "list"], ["models"]])
def test_debug_prints_the_traceback_from_any_place(root, command, monkeypatch, words, place):
    info = next(info for names, info in LEAVES if names[0] == words[0])
    break_command(monkeypatch, info)
    code, _, errors = command(*(["--debug", *words] if place == "first" else [*words, "--debug"]))
    assert code == 1 and "in boom" in errors and traceback_file(errors).is_file()


@pytest.mark.parametrize("words", [[], *(words for words, _ in LEAVES), ["models"]])
def test_every_help_shows_debug(command, words):
    code, out, _ = command(*words, "--help")
    assert code == 0 and "--debug" in out


def test_a_value_after_two_dashes_is_no_option():
    assert without_debug(["a", "--debug", "--", "--debug"]) == (["a", "--", "--debug"], True)
    assert without_debug(["--", "--debug"]) == (["--", "--debug"], False)


@pytest.mark.parametrize("what", ["mlruns is a file", "no workbench"])
def test_the_traceback_goes_to_the_temporary_folder_if_the_store_cannot_be_written(
    root, command, monkeypatch, tmp_path, what
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if what == "mlruns is a file":
        (root / "mlruns").rename(root / "before")
        (root / "mlruns").write_text("")
    else:
        monkeypatch.setattr("workbench.paths.__file__", "/nowhere/paths.py")
        monkeypatch.delenv("WORKBENCH_ROOT")
        monkeypatch.chdir(scratch)
    break_command(monkeypatch, LEAVES[0][1])
    code, _, errors = command(*LEAVES[0][0])
    assert code == 1 and "Traceback" not in errors
    assert traceback_file(errors).parent == scratch


def test_an_error_is_explained_even_if_no_folder_can_be_written(root, command, monkeypatch, tmp_path):
    (root / "mlruns").rename(root / "before")
    (root / "mlruns").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere" / "at"))
    (tmp_path / "nowhere").write_text("")
    break_command(monkeypatch, LEAVES[0][1])
    code, _, errors = command(*LEAVES[0][0])
    assert code == 1 and "ZeroDivisionError" in errors and "Traceback" not in errors


def test_the_newest_files_are_kept(root, monkeypatch):
    monkeypatch.setattr(unexpected, "KEPT", 3)
    folder = root / "mlruns" / "errors"
    folder.mkdir()
    (folder / "notes.txt").write_text("the user's")
    sentences = [unexpected.explain(ValueError(str(i))) for i in range(5)]
    left = sorted(file.name for file in folder.iterdir())
    named = [traceback_file(sentence).name for sentence in sentences]
    assert left == ["notes.txt", *named[2:]]


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [
        Unprintable(),
        ValueError("x" * 10**6),
        ValueError("\ud800 \x00"),
        ValueError("a\nb"),
        GeneratorExit(),
        Exception(),
    ],
    ids=["no text", "long", "surrogate", "lines", "not an Exception", "empty"],
)
def test_any_error_becomes_one_short_line(root, capsys, error):
    def body():
        raise error

    assert run_program(body) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert type(error).__name__ in line and len(line) < 1000
    assert type(error).__name__ in traceback_file(line).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkbenchError("x"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
        (SystemExit("text"), 1),
        (OSError(28, "No space left on device", "/x"), 2),
        (BrokenPipeError(32, "of a socket"), 1),
    ],
    ids=lambda value: repr(value),
)
def test_expected_errors_keep_their_codes(root, capsys, error, code):
    def body():
        raise error

    assert run_program(body) == code
    assert (root / "mlruns" / "errors").exists() == isinstance(error, BrokenPipeError)


def test_a_detached_run_saves_the_traceback_too(root, tmp_path):
    code = "import sys, workbench.training.__main__ as m\nm.run_plan = lambda *a, **k: 1 / 0\nsys.exit(m.main())"
    for option, shown in ([], False), (["--debug"], True):
        done = subprocess.run(
            [sys.executable, "-c", code, "plan.jsonl", "--out", str(tmp_path / "out"), *option],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            cwd=tmp_path,
        )
        assert done.returncode == 1 and ("Traceback" in done.stderr) == shown
        assert "ZeroDivisionError" in traceback_file(done.stderr).read_text()
