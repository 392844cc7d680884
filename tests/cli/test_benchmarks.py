"""The benchmarks.

Evidence: medians, floors and bytes computed by hand, results that disagree, and the command as a user runs it.
"""

import importlib
import json
import sys

import pytest
import torch
from support.checkout import CHECKOUT
from support.messages import missing

from workbench.cli import benchmarks
from workbench.errors import WorkbenchError

sys.path.insert(0, str(CHECKOUT / "benchmarks"))
import harness
import saved_bytes


class Ticks(harness.Clock):
    """A clock on which each call takes as many seconds as it returns."""

    def __init__(self):
        super().__init__(torch.device("cpu"), 1)

    def seconds(self, call, calls):
        return call() or 1.0


def case(ours, peer, control, **more):
    values = iter(ours), iter(peer), iter(control)
    functions = [lambda v=v: next(v) for v in values]
    return harness.Case("x", *functions, **({"agreement": 0.0, "within": 0.0, "target": 1.0} | more))


def test_each_round_gives_a_ratio_and_the_median_is_taken_over_ratios():
    """Each function is called twice to warm up, then in three rounds: 1/2, 3/4, 9/3."""
    three_rounds = case([0, 0, 1, 3, 9], [0, 0, 2, 4, 3], [0, 0, 2, 6, 3])
    ratio, control, least = harness.measure(three_rounds, Ticks(), 3)
    assert (ratio.median, ratio.low, ratio.high) == (0.75, 0.5, 3.0)
    assert (control.median, control.low, control.high) == (1.0, 1.0, 1.5)
    assert least == 1


def test_functions_that_disagree_are_not_timed():
    with pytest.raises(SystemExit, match=r"0\.1\b.*0\.01"):
        harness.measure(case([], [], [], agreement=0.1, within=0.01), Ticks(), 3)
    with pytest.raises(SystemExit, match=r"\bnan\b"):
        harness.measure(case([], [], [], agreement=float("nan")), Ticks(), 3)


def test_the_turns_are_prepared_and_shuffled():
    calls = []
    turns_case = harness.Case(
        "x", *[lambda n=n: calls.append(n) for n in "opc"], 0.0, 0.0, 1.0, prepare=lambda: calls.append(".")
    )
    harness.measure(turns_case, Ticks(), 6)
    turns = "".join(calls).split(".")[1:]
    assert turns[:6] == ["o", "o", "p", "p", "c", "c"]
    rounds = ["".join(turns[i : i + 3]) for i in range(6, 24, 3)]
    assert all(sorted(r) == ["c", "o", "p"] for r in rounds) and len(set(rounds)) > 1


def test_the_floor_is_the_slower_of_moving_and_computing():
    machine = harness.Machine.__new__(harness.Machine)
    machine.bandwidth, machine._rates = 10.0, {torch.float32: 100.0}
    assert machine.floor(case([], [], [], moved=50.0, flops=100.0)) == 5.0
    assert machine.floor(case([], [], [], moved=5.0, flops=100.0)) == 1.0
    assert machine.floor(case([], [], [])) == 0.0


def test_saved_bytes_by_hand():
    """exp keeps its output, and a product keeps its two factors. The weight of the linear layer does not count."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 5, bias=False)

        def forward(self, x):
            h = self.linear(x).exp()  # (2, 5)
            return h * (h + 1)  # kept: h, h + 1; made: the product, the output

    assert saved_bytes.saved(Net(), torch.randn(2, 3)) == 3 * 2 * 5 * 4


def test_every_program_is_listed_and_has_help(command):
    code, output, _ = command("bench", "--list")
    assert code == 0
    listed = output.split()
    assert {"agc_step", "update", "evaluation", "saved_bytes", "training_step", "signal_probe", "pipeline"} <= set(
        listed
    )
    for name in listed:
        source = (CHECKOUT / "benchmarks" / f"{name}.py").read_text()
        assert source.startswith('"""') and "args = arguments(__doc__" in source, name


@pytest.mark.parametrize("name", sorted(file.stem for file in (CHECKOUT / "benchmarks").glob("*.py")))
def test_every_file_of_benchmarks_can_be_imported(name):
    """With the names that it takes from the workbench."""
    assert importlib.import_module(name).__file__ == str(CHECKOUT / "benchmarks" / f"{name}.py")


@pytest.fixture
def results(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").symlink_to(CHECKOUT / "benchmarks")
    (tmp_path / "README.md").write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    monkeypatch.setenv("WORKBENCH_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_a_benchmark_against_torch_runs_and_becomes_the_readmes_table(results, command):
    assert command("bench", "agc_over_norm", "--rounds", "2")[0] == 0
    assert not (results / "docs").exists()  # a quick look is not kept
    code, output, _ = command("bench", "agc_over_norm")
    assert code == 0 and "[1/1] agc_over_norm" in output
    (row,) = json.loads((results / "docs/results/benchmarks/agc_over_norm-cpu.json").read_text())
    assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert command("bench", "--readme")[0] == 0
    text = (results / "README.md").read_text()
    assert text.startswith("before\n<!-- benchmarks -->") and text.endswith("<!-- /benchmarks -->\nafter\n")
    assert f"{row['ratio']['median']:.2f} ({row['ratio']['low']:.2f}..{row['ratio']['high']:.2f})" in text
    assert "old" not in text and row["device"] in text


def test_unknown_benchmarks_and_missing_results_are_refused_by_name(results, command):
    for arguments, names in (
        (["bench", "agc_stepp"], ["benchmark", "agc_stepp", "agc_step"]),
        (["bench", "--device", "cud"], ["device", "cud", "cuda"]),
        (["bench", "--readme"], [f"{results}/docs/results/benchmarks", "workbench bench"]),
    ):
        code, _, errors = command(*arguments)
        assert code == 2 and missing(errors, names) == [], errors


def test_a_damaged_row_file_is_named(results, command):
    folder = results / "docs/results/benchmarks"
    folder.mkdir(parents=True)
    (folder / "x-cpu.json").write_text("{broken")
    code, _, errors = command("bench", "--readme")
    assert code == 2 and missing(errors, [f"{folder}/x-cpu.json"]) == [] and "Traceback" not in errors


def test_a_readme_without_marks_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(WorkbenchError) as error:
        benchmarks.write_readme(tmp_path / "README.md", "table")
    marks = ["<!-- benchmarks -->", "<!-- /benchmarks -->"]
    assert missing(str(error.value), [f"{tmp_path}/README.md", *marks]) == []
    assert (tmp_path / "README.md").read_text() == "no marks"


def test_the_readmes_table_is_the_kept_rows():
    text = (CHECKOUT / "README.md").read_text()
    table = benchmarks.table(CHECKOUT / "docs" / "results" / "benchmarks")
    assert f"<!-- benchmarks -->\n{table}\n<!-- /benchmarks -->" in text
