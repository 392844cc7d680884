"""Pruning, stopping and observers. Evidence: small worlds made by hand, and a log of every call."""

import pytest
import torch
from torch import nn

from workbench.training import TrainConfig, train
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World
from workbench.training.observers import Observer
from workbench.training.steering import Pruning, Stopping


class Follower:
    """A later process, which receives the answers of the first process."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    def agree(self, value):
        return next(self.answers)


def rows(*steps):
    return [{"step": step} for step in steps]


def test_every_row_is_logged_once_and_one_answer_of_true_prunes():
    logged = []
    prunes = Pruning(lambda row: logged.append(row["step"]) or row["step"] == 2, World(), total_steps=9)
    assert [prunes(row) for row in rows(1, 2, 3)] == [False, True, False] and logged == [1, 2, 3]
    assert prunes(*rows(1, 2, 3)) and logged == [1, 2, 3, 1, 2, 3]  # the rows from before an interruption


def test_a_log_that_returns_none_and_a_missing_log_prune_nothing():
    assert not Pruning(lambda row: None, World(), 9)(*rows(1)) and not Pruning(None, World(), 9)(*rows(1))


def test_nothing_is_pruned_after_the_last_step():
    assert not Pruning(lambda row: True, World(), total_steps=3)(*rows(3))


def test_stop_is_called_after_every_step_except_the_last():
    calls = []
    stops = Stopping(lambda: calls.append(1) or len(calls) == 2, World(), total_steps=3)
    assert [stops(step) for step in (1, 2, 3)] == [False, True, False] and len(calls) == 2
    assert not Stopping(None, World(), total_steps=3)(1)


def test_all_processes_follow_the_first():
    assert Pruning(None, Follower(True), total_steps=9)(*rows(1))
    stops = Stopping(None, Follower(True, False, True), total_steps=9)  # the first answer: a stop function exists
    assert [stops(step) for step in (1, 2)] == [False, True]


def test_without_a_stop_function_no_step_waits_for_an_answer():
    stops = Stopping(None, Follower(False), total_steps=9)
    assert not stops(1) and not stops(2)  # a second exchange would raise StopIteration


# ---- observers


class Diary(Observer):
    def __init__(self):
        self.calls = []

    def begin(self, model):
        self.calls.append("begin")

    def before_update(self, step, loss, model, optimizer):
        self.calls.append(("before", step))
        self.gradient = [p.grad.clone() for p in model.parameters()]
        self.weights = [p.detach().clone() for p in model.parameters()]
        for group in optimizer.param_groups:
            group["lr"] = 0.25

    def after_update(self, step, model, lr):
        self.calls.append(("after", step, lr))
        self.moved = [p.detach() - w for p, w in zip(model.parameters(), self.weights, strict=True)]

    def at_row(self, row):
        self.calls.append(("row", row["step"]))


CONFIG = TrainConfig(batch_size=16, train_size=64, steps=2, eval_every=2, progress=False, device="cpu")


def test_an_observer_is_called_in_the_order_of_the_loop_and_can_set_the_rate_of_a_step():
    diary = Diary()
    config = CONFIG.replace(clip=None, momentum=0.0, weight_decay=0.0)
    result = train(config, observers=[diary])
    assert diary.calls == ["begin", ("before", 1), ("after", 1, 0.25), ("before", 2), ("after", 2, 0.25), ("row", 2)]
    assert result.history[0]["lr"] == 0.25
    for moved, gradient in zip(diary.moved, diary.gradient, strict=True):
        torch.testing.assert_close(moved, -0.25 * gradient, rtol=1e-4, atol=1e-7)


def test_an_observer_without_methods_changes_nothing():
    observer = Observer()
    observer.begin(nn.Linear(1, 1))
    assert train(CONFIG, observers=[observer]).metrics["val_loss"] == train(CONFIG).metrics["val_loss"]


def test_an_observer_sees_the_gradient_of_a_diverging_step_but_no_update():
    diary = Diary()
    diary.before_update = lambda step, loss, model, optimizer: model.linear.weight.grad.fill_(float("nan"))
    assert train(CONFIG, observers=[diary]).outcome == "diverged" and diary.calls == ["begin"]


@pytest.mark.parametrize("stop_after", [1, 2])
def test_begin_is_not_called_after_a_start_from_a_checkpoint(tmp_path, stop_after):
    config, diary, calls = CONFIG.replace(steps=4), Diary(), []
    with pytest.raises(KeyboardInterrupt):
        train(config, checkpoints=Checkpoints(tmp_path), stop=lambda: calls.append(1) or len(calls) == stop_after)
    train(config, checkpoints=Checkpoints(tmp_path), observers=[diary])
    assert diary.calls[0] == ("before", stop_after + 1)
