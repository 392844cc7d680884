"""Progress without a terminal. Evidence: lines, their times, and their numbers, on a clock that the test sets."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from support.checkout import CHECKOUT
from tqdm.auto import tqdm

from workbench import bars


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_a_line_comes_every_30_seconds(clock):
    out = io.StringIO()
    with bars.Lines(1000, done=100, desc="net", unit="step", file=out) as lines:
        for _ in range(200):  # 100 s, two steps a second
            clock.now += 0.5
            lines.set_postfix({"loss": "1.5"}, refresh=False)
            lines.update()
    assert out.getvalue().splitlines() == [
        "net: step 160 of 1,000, loss 1.5, 07:00 left",
        "net: step 220 of 1,000, loss 1.5, 06:30 left",
        "net: step 280 of 1,000, loss 1.5, 06:00 left",
    ]


def test_news_shows_early_at_first_but_never_floods(clock):
    out = io.StringIO()
    lines = bars.Lines(10**6, desc="net", unit="step", file=out)
    for step in range(36000):  # an hour with ten evaluations a second
        clock.now += 0.1
        lines.update()
        lines.set_postfix({"loss": step})
    count = len(out.getvalue().splitlines())
    assert "step 1 of" in out.getvalue().splitlines()[0]
    assert 3600 / 30 <= count < 3600 / 30 + 60


def test_bytes_and_unknown_totals_are_shown(clock):
    out = io.StringIO()
    for total in (3_000_000, None):
        lines = bars.Lines(total, desc="x.npz", unit="B", file=out)
        clock.now += 30
        lines.update(1_000_000)
    assert out.getvalue().splitlines() == ["x.npz: 1.00MB of 3.00MB, 01:00 left", "x.npz: 1.00MB"]


def test_a_terminal_and_jupyter_get_bars(monkeypatch):
    jupyter = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    for stream, kind in ((Terminal(), tqdm), (jupyter(), tqdm), (io.StringIO(), bars.Lines)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.delenv("TQDM_DISABLE", raising=False)
        made = bars.bar(2, desc="x", unit="step")
        assert isinstance(made, kind)
        made.close()


@pytest.mark.parametrize("quiet", ["argument", "variable"])
def test_nothing_is_shown_on_request(monkeypatch, clock, quiet):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    if quiet == "variable":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    for _ in bars.counted([1, 2, 3], desc="x", unit="item", shown=quiet == "variable"):
        clock.now += 40
    assert out.getvalue() == ""


def test_lines_that_nobody_reads_do_not_stop_the_work(clock):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with bars.Lines(2, desc="x", unit="step", file=Broken()) as lines:
        clock.now += 60
        lines.update()
    assert lines.n == 1


def test_a_study_without_a_terminal_prints_its_trainings_and_a_line_every_30_seconds(clock, monkeypatch):
    from workbench.cli.progress import Board

    monkeypatch.setenv("FORCE_COLOR", "1")  # as in many CI systems
    console = Console(file=io.StringIO(), width=200)
    study = SimpleNamespace(name="large_batch")
    with Board(console) as board:
        board.on_event(study, {"kind": "started"})
        for step in range(60):
            clock.now += 1
            at = {"step": step, "loss": 1.25, "done": 1, "total": 4}
            board.on_event(study, {"kind": "step", "name": "BN, B64", **at})
        board.on_event(study, {"kind": "ended", "status": "FINISHED"})
    lines = console.file.getvalue().splitlines()
    assert "\r" not in console.file.getvalue() and len(lines) == 4
    assert re.search(r"large_batch: training 1 of 4, BN, B64, step 29, loss 1\.25\d*, 01:30 left", lines[1])


def test_no_other_file_makes_bars():
    makers = {
        file.relative_to(CHECKOUT).as_posix()
        for file in (CHECKOUT / "workbench").rglob("*.py")
        if re.search(r"^\s*(from|import) (tqdm|rich\.progress)", file.read_text(), re.MULTILINE)
    }
    assert makers == {"workbench/bars.py", "workbench/cli/progress.py"}


def test_a_training_prints_step_loss_and_time_left(clock, monkeypatch, capsys):
    from workbench.training import TrainConfig, train
    from workbench.training.observers import Observer

    class Slow(Observer):
        def after_update(self, step, model, lr):
            clock.now += 10

    config = TrainConfig(steps=12, batch_size=8, train_size=96, device="cpu", eval_every=12)
    train(config, observers=[Slow()])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for line, step in zip(lines, (3, 6, 9, 12), strict=True):
        assert re.fullmatch(
            rf"{re.escape(config.name)}: step {step} of 12, loss \d\.\d+(, val .*)?, \d\d:\d\d left", line
        )
