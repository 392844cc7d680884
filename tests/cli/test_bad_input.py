"""Bad input at every boundary: YAML and options, notebooks, users' files, images, parquet, weights, plans, results of
other machines, environment variables, and MLflow's database.

Evidence: the exit code, no traceback, nothing half-written. The message names the wrong value and what is allowed.
"""

import shlex
import signal
import sys
import time

import mlflow
import pytest
from support.bad_input import (
    KINDS,
    checkpoints,
    databases,
    images,
    notebooks,
    parquet,
    results,
    user_files,
    variables,
    yaml_texts,
)
from support.messages import missing

BOUNDARIES = {
    "YAML and options": yaml_texts.CASES,
    "studies and notebooks": notebooks.CASES,
    "users' files": user_files.CASES,
    "images": images.CASES,
    "parquet": parquet.CASES,
    "weights": checkpoints.CASES,
    "plans": results.PLANS,
    "results of other machines": results.IMPORTS,
    "environment variables": variables.CASES,
    "MLflow's database": list(databases.DAMAGES.values()),
}
IMPOSSIBLE = {"images": images.IMPOSSIBLE, "MLflow's database": databases.IMPOSSIBLE}
CASES = [
    pytest.param(case, id=f"{boundary}: {case.kind}, {case.line} {case.variables or ''}"[:120].replace("{bad}/", ""))
    for boundary, rows in BOUNDARIES.items()
    for case in rows
    if boundary != "MLflow's database"
]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_boundary_has_every_kind_of_failure(boundary):
    kinds, impossible = {case.kind for case in BOUNDARIES[boundary]}, set(IMPOSSIBLE.get(boundary, ()))
    assert kinds | impossible == set(KINDS) and not kinds & impossible


def test_each_case_fails_without_any_one_of_its_names():
    for case in (case for rows in BOUNDARIES.values() for case in rows):
        for i, name in enumerate(case.names):
            others = "workbench: Refused " + ", ".join(case.names[:i] + case.names[i + 1 :])
            assert missing(others, case.names) == [name], case


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_the_value_and_what_is_allowed(refused, run_plan, bad, monkeypatch, case):
    for name, value in case.variables.items():
        monkeypatch.setenv(name, value.replace("{bad}", str(bad)))
    started, words = time.monotonic(), shlex.split(case.line)
    errors = run_plan(words[1].replace("{bad}", str(bad))) if words[0] == "plan" else refused(*words, code=case.code)
    assert missing(errors, [name.replace("{bad}", str(bad)) for name in case.names]) == [], errors
    assert "secret" not in errors and len(errors) < 1500
    assert time.monotonic() - started < 20


@pytest.fixture
def run_plan(root, monkeypatch, capsys, tmp_path):
    """Runs a plan that must be refused, without tracking, and returns what it printed to stderr."""
    from workbench.training.__main__ import main

    def run(file):
        monkeypatch.setattr(sys, "argv", ["workbench.training", file, "--out", str(tmp_path / "out")])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            assert main() == 2
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        errors = capsys.readouterr().err
        assert "Traceback" not in errors and not (tmp_path / "out").exists()
        assert not (root / "mlruns" / "errors").exists()
        return errors

    return run


@pytest.mark.parametrize("command_line", [variables.SMALL, "doctor", "compare"])
@pytest.mark.parametrize("name", databases.DAMAGES)
def test_a_damaged_store_is_refused_with_its_place(refused, root, capsys, command_line, name):
    damage = databases.DAMAGES[name]
    damage.damage(root)
    text = refused(*shlex.split(command_line), code=damage.code if command_line == "doctor" else 2)
    if command_line != "doctor":  # which prints what it finds
        names = [each.format(root=root, mlflow=mlflow.__version__) for each in damage.names]
        assert missing(text, names) == [], text
