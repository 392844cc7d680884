"""Networks of a user that fail when they run: refused before anything starts, with file and line.

Evidence: networks whose forward fails at once, in training only, or in the middle of a training.
"""

import sys

import pytest

from workbench.lab import Store

NET = """import sys
from torch import nn
calls = 0
class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, num_classes)
    def forward(self, x):
        global calls
        calls += 1
        if {when}:
            {what}  # line 13
        return self.head(self.norm(self.conv(x)).mean((2, 3)))
def build(num_classes=10, in_channels=1):
    return Net(num_classes, in_channels)
"""
FAULTS = {
    "error": "raise RuntimeError('no such thing')",
    "exit": "sys.exit('bye')",
    "interrupt": "raise KeyboardInterrupt",
    "closed": "raise GeneratorExit",
    "shape": "x = x.view(3, -1)",
    "recursion": "self(x)",
}
SMALL = ("-p", "steps=12", "-p", "batch_size=8", "-p", "train_size=32", "-p", "eval_every=3", "-p", "device=cpu")


@pytest.fixture
def write(root, monkeypatch):
    """Return a function that writes a network that fails, and returns its name."""
    monkeypatch.chdir(root)

    def write(what, when="True"):
        (root / "failing_net.py").write_text(NET.format(when=when, what=what))
        return "failing_net.py:build"

    yield write
    sys.modules.pop("failing_net", None)


def refused(command, *arguments):
    code, out, errors = command(*arguments)
    assert code == 2 and "Traceback" not in out + errors
    assert "failing_net.py" in errors and "line 13" in errors
    return errors


@pytest.mark.parametrize(
    ("what", "when"), [("error", "True"), ("shape", "True"), ("exit", "self.training"), ("closed", "not self.training")]
)
def test_a_training_is_refused_before_it_opens_a_run(write, command, root, what, when):
    refused(command, "train", *SMALL, "-p", f"model={write(FAULTS[what], when)}")
    assert Store().runs("trainings") == [] and not (root / "mlruns" / "errors").exists()


@pytest.mark.parametrize("what", ["exit", "interrupt", "recursion"])
def test_normfree_is_refused_with_the_line_of_the_network(write, command, what):
    refused(command, "train", *SMALL, "-p", f"model=normfree:{write(FAULTS[what])}")


@pytest.mark.parametrize("what", ["error", "interrupt"])
def test_a_check_is_refused_with_the_line_of_the_network(write, command, what):
    code, out, errors = command("check", write(FAULTS[what]))
    assert code == 2 and "Traceback" not in out + errors
    assert "failing_net.py" in errors and "13" in errors


@pytest.mark.parametrize(
    ("study", "options"), [("own_network", ()), ("large_batch", ("--dry-run",))], ids=["run", "dry run"]
)
def test_a_study_is_refused_before_it_opens_a_run(write, command, study, options):
    name = write(FAULTS["exit"], "self.training")
    refused(command, "study", study, "--quick", *options, "-p", f"model={name}")
    assert Store().runs("studies") == []


def test_a_network_with_another_number_of_classes_is_refused(write, command):
    name = write("return x.new_zeros(len(x), 7)")
    code, _, errors = command("study", "own_network", "--quick", "--dry-run", "-p", f"model={name}")
    assert code == 2 and "(2, 7)" in errors and "10" in errors


@pytest.mark.parametrize(
    ("executor", "what"),
    [
        ("inline", "error"),
        ("inline", "interrupt"),
        *(pytest.param("processes:1", what, marks=pytest.mark.slow) for what in ("error", "exit", "interrupt")),
    ],
)
def test_a_failure_in_the_middle_of_a_training_is_a_sentence_and_a_broken_run(
    write, command, monkeypatch, executor, what
):
    monkeypatch.setenv("WORKBENCH_EXECUTOR", executor)
    name = write(FAULTS[what], "calls > 8 and self.training")
    if executor == "inline":
        refused(command, "train", *SMALL, "-p", f"model={name}")
    else:
        from workbench.lab import open_session, run_all
        from workbench.training import TrainConfig

        session = open_session("large_batch", {})
        with pytest.raises(RuntimeError, match=r"failing_net.py, line 13"):
            run_all([TrainConfig(model=name, steps=12, batch_size=8, train_size=32, device="cpu")], session)
    (run,) = Store().runs("trainings")
    assert run.status == "FAILED" and "line 13" in run.tags["cause"]
    assert "in forward" in Store().read_text(run.id, "error.txt")
