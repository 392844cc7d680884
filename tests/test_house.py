"""Rules of the checkout: layers, names, clean notebooks and one list of dependencies.

Evidence: linters and small checks that run on this checkout.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from support.checkout import CHECKOUT

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))


def test_imports_point_down_only():
    done = subprocess.run(
        ["lint-imports"],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env={"PATH": f"{sys.prefix}/bin", "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 0, done.stdout


# ---- names

VAGUE = {"found", "told", "said", "of_it", "there", "own"}
SAME_ROLE = {"__init__", "__main__"}


def names_in(file):
    """Yield all names that a file defines."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


@pytest.mark.parametrize("folder", ["workbench", "tests", "benchmarks"])
def test_names_are_not_vague(folder):
    files = sorted((CHECKOUT / folder).rglob("*.py"))
    vague = {(str(f.relative_to(CHECKOUT)), n) for f in files for n in names_in(f) if n.strip("_").lower() in VAGUE}
    assert files and not vague


def test_no_two_files_or_packages_share_a_name():
    places = [p for p in (CHECKOUT / "workbench").rglob("*") if p.suffix == ".py" or (p / "__init__.py").exists()]
    stems = [place.stem for place in places if place.stem not in SAME_ROLE]
    assert len(stems) > 150 and sorted(stems) == sorted(set(stems))


def test_every_study_has_its_notebook_its_claim_and_its_test():
    from workbench.claims.registry import all_claims

    studies = {file.stem for file in (CHECKOUT / "studies").glob("*.yaml")}
    assert {claim.study for claim in all_claims()} == studies - {"start_here"}  # a tour of the library
    for name in studies:
        assert (CHECKOUT / "notebooks" / f"{name}.ipynb").is_file()
        assert name == "start_here" or (CHECKOUT / "tests" / "claims" / f"test_{name}.py").is_file()


def test_no_claim_imports_another():
    from workbench.claims.registry import MACHINERY

    for file in (CHECKOUT / "workbench" / "claims").glob("*.py"):
        if file.stem not in ("__init__", *MACHINERY):
            imported = re.findall(r"^from workbench\.claims(?:\.(\w+))? import", file.read_text(), flags=re.M)
            assert set(imported) <= {"claim"}, file  # a change of the other would not make its study stale


def test_the_code_is_formatted_and_linted():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--no-cache", "."], capture_output=True, text=True, cwd=CHECKOUT
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("tool", [["codespell"], ["basedpyright", "--pythonpath", sys.executable]], ids=lambda t: t[0])
def test_words_are_plain_and_types_are_right(tool):
    """Spelling and words to avoid in all text; types in the rooms that other projects import."""
    done = subprocess.run([Path(sys.prefix) / "bin" / tool[0], *tool[1:]], capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_notebooks_are_clean_and_have_the_same_structure(file):
    cells = json.loads(file.read_text())["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert cells[0]["cell_type"] == cells[-1]["cell_type"] == "markdown"
    text = "".join(cells[0]["source"])
    assert all(word in text for word in ("**Question.**", "**Why it matters.**", "**What would change our mind.**"))
    assert "**Caveats.**" in "".join(cells[-1]["source"])
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    of_a_study = any(f"notebook: {file.name}" in study.read_text() for study in (CHECKOUT / "studies").glob("*.yaml"))
    assert ("session.verdict(" in "".join(code[-1]["source"])) == of_a_study  # other notebooks are tools
    for line in "".join(cells[1]["source"]).splitlines():
        assert "  # " in line, f"parameter without a comment: {line}"


def test_every_study_loads_and_its_file_says_how_to_run_it(root):
    from workbench.lab import Study

    files = sorted((CHECKOUT / "studies").glob("*.yaml"))
    assert {f.stem for f in files} >= {"signal_propagation", "clipping_search", "large_batch"}
    for file in files:
        study = Study.load(file)
        assert f"./run study {file.stem}" in file.read_text()
        assert study.tour == (file.stem in ("signal_propagation", "clipping_search", "large_batch"))
        assert set(study.minutes) == {"quick", "full"}


def test_conda_users_get_the_same_dependencies():
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    conda, (pip,) = (
        [d for d in environment["dependencies"] if isinstance(d, str)],
        [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)],
    )
    assert f"python{PROJECT['requires-python']}" in conda
    assert pip == ["-c constraints.txt", "-e .[lab,export,dev]"]
    assert {"lab", "dev"} <= set(PROJECT["optional-dependencies"])


def test_every_dependency_is_pinned():
    pins = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {k.lower().replace("_", "-"): v for k, v in pins.items()}
    assert pins["torch"] == "2.13.0"
    wanted = [*PROJECT["dependencies"], *(d for extra in PROJECT["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[<>=\[]", d)[0].lower().replace("_", "-") for d in wanted}
    assert names <= set(pins), names - set(pins)
    assert {"torch", "jupyterlab", "mlflow", "optuna", "seaborn", "papermill"} <= names


def test_the_minimal_install_has_only_the_dependencies_of_training():
    names = {re.split(r"[<>=]", d)[0] for d in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "pandas", "pyarrow", "pillow", "safetensors", "tqdm"}


@pytest.mark.parametrize("package", ["models", "optim", "data", "weights", "normfree", "probes", "training", "pool"])
def test_public_functions_have_docstrings(package):
    for file in (CHECKOUT / "workbench" / package).rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert ast.get_docstring(tree), file
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file.name}: {node.name}"


def test_files_and_imports_in_the_readme_exist():
    readme = (CHECKOUT / "README.md").read_text()
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (CHECKOUT / path).exists(), path
    for name in re.findall(r"from (workbench[\w.]*) import ([\w, ]+)", readme):
        module = __import__(name[0], fromlist=["x"])
        for item in name[1].split(","):
            assert hasattr(module, item.strip()), item
