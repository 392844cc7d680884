"""Tests of AGC over several processes. Evidence: two gloo processes against one process that holds everything.

Each check below runs in both processes (`python tests/optim/test_sharded.py CHECK`) and prints its result as JSON.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from support.checkout import CHECKOUT
from torch import nn

from workbench.errors import WorkbenchError
from workbench.optim import AGC, clip_grad_agc_, param_groups
from workbench.outcomes import FINISHED

PROCESSES = 2


class Odd(nn.Module):
    """A network with 5 and 3 rows, which two processes cannot share evenly, and a gain that one process holds alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.fc = nn.Linear(5, 3)
        self.gain = nn.Parameter(torch.ones(1))
        self.row = nn.Parameter(torch.randn(1, 3))  # one unit, by its global shape

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3))) * self.gain + self.row


def made():
    torch.manual_seed(0)
    return Odd().double()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 1, 6, 6, generator=generator).double(), torch.randn(8, 3, generator=generator).double()


def steps(model, x, y, n=3):
    """Train n steps with the whole recipe. Return the AGC."""
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=1e-2, clip=0.15), lr=0.1, momentum=0.9, nesterov=True)
    agc = AGC(optimizer)
    for _ in range(n):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return agc


def by_one_process():
    model = made()
    agc = steps(model, *data())
    assert 0 < agc.stats.clipped_share() < 1  # some units are clipped, some are not
    return {name: p.detach() for name, p in model.named_parameters()}


def distance(parameters):
    """The largest difference to the parameters of one process, relative to the largest value of each parameter."""
    expected = by_one_process()
    return max(((parameters[k] - v).abs().max() / v.abs().max()).item() for k, v in expected.items())


# ---- checks that run in each process


def check_fully_shard(rank):
    from torch.distributed._composable.fsdp import fully_shard

    model = made()
    fully_shard(model)
    empty = any(p.to_local().numel() == 0 for p in model.parameters())
    agc = steps(model, *data())  # the same batch in both: the mean of the gradients is the gradient
    full = {name: p.full_tensor().detach() for name, p in model.named_parameters()}
    return {"distance": distance(full), "empty on some": empty if rank else True, "units": agc.stats.units}


def check_ddp(rank):
    model = nn.parallel.DistributedDataParallel(made())
    x, y = data()
    steps(model, x[rank::PROCESSES], y[rank::PROCESSES])  # half of the joined batch each
    return {"distance": distance({n.removeprefix("module."): p.detach() for n, p in model.named_parameters()})}


def check_communication(rank):
    """All vectors together need one all-reduce per step, and matrices need none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (PROCESSES,))
    calls, original = [], torch.distributed.all_reduce

    def counted(tensor, **settings):
        calls.append(tensor.numel())
        return original(tensor, **settings)

    torch.distributed.all_reduce = counted

    def clipped(shapes, placement):
        calls.clear()
        params = []
        for shape in shapes:
            torch.manual_seed(len(params))
            p = nn.Parameter(distribute_tensor(torch.randn(shape), mesh, [placement]))
            p.grad = distribute_tensor(torch.randn(shape) * 10, mesh, [placement])
            params.append(p)
        clip_grad_agc_(params, clip=0.01)
        return list(calls), [p.grad.full_tensor() for p in params]

    matrices, _ = clipped([(5, 4), (3, 2, 3, 3)], Shard(0))
    mixed, sharded = clipped([(5, 4), (7,), (1,), (3,)], Shard(0))
    whole, replicated = clipped([(5, 4), (7,), (1,), (3,)], Replicate())
    same = max((a - b).abs().max().item() for a, b in zip(sharded, replicated, strict=True))
    try:
        clipped([(4, 4)], Shard(1))
        refused = ""
    except WorkbenchError as error:
        refused = str(error)
    return {"matrices": matrices, "mixed": mixed, "whole": whole, "same": same, "refused": refused}


def check_columns(rank):
    """Units along dimension 1 are split by the shards, so their norms need one all-reduce."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (PROCESSES,))

    def clipped(placement, units, factor=10.0, **settings):
        params = []
        for shape in [(5, 4, 3, 3), (3, 6), (2, 2, 3)]:
            torch.manual_seed(len(params))
            p = nn.Parameter(distribute_tensor(torch.randn(shape), mesh, [placement]))
            p.grad = distribute_tensor(torch.randn(shape) * factor, mesh, [placement])
            params.append(p)
        clip_grad_agc_([{"params": params, "units": units}], clip=0.01, **settings)
        return [p.grad.full_tensor() for p in params]

    same = max(
        (a - b).abs().max().item()
        for factor in (10.0, 1e30)
        for a, b in zip(clipped(Shard(0), 1, factor), clipped(Replicate(), 1, factor), strict=True)
    )
    refused = []
    for arguments in ({"units": 2}, {"units": None, "factor": 1e39, "error_if_nonfinite": True}):
        try:
            clipped(Shard(0), **arguments)
        except WorkbenchError as error:
            refused.append(str(error))
    return {"same": same, "refused": refused}


def check_zero(rank):
    """Each process updates a part of the parameters. A state with a threshold schedule is loaded in between."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def halving(step):
        return 0.2 * 0.5**step

    x, y = data()

    def train(model, optimizer, n):
        for _ in range(n):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()

    def groups(model):
        return param_groups(model, clip=halving)

    whole = made()
    optimizer = torch.optim.SGD(groups(whole), lr=0.1, momentum=0.9)
    AGC(optimizer)
    train(whole, optimizer, 4)

    settings = {"optimizer_class": torch.optim.SGD, "lr": 0.1, "momentum": 0.9}
    model = made()
    first = ZeroRedundancyOptimizer(groups(model), **settings)
    agc = AGC(first)
    train(model, first, 2)
    first.consolidate_state_dict(to=0)
    states = [first.state_dict()] if rank == 0 else [None]
    torch.distributed.broadcast_object_list(states, src=0)
    second = ZeroRedundancyOptimizer(groups(model), **settings)
    later = AGC(second)
    second.load_state_dict(states[0])
    train(model, second, 2)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    expected = dict(whole.named_parameters())
    return {
        "distance": max((parameters[k] - v).abs().max().item() for k, v in expected.items()),
        "steps": [agc.steps, later.steps],
        "names": later.stats.table().parameter.tolist(),
    }


def check_train(rank):
    """Train with torchrun's environment. Only the first process logs."""
    from workbench.training import TrainConfig, train

    rows = []
    result = train(TrainConfig.from_dict(json.loads(os.environ["CONFIG"])), rows.append)
    return {
        "rows": len(rows),
        "history": result.history,
        "metrics": result.metrics,
        "outcome": result.outcome,
        "cause": result.cause,
    }


def check_stop(rank):
    """Stop the first process after the second step. The result says whether this process stops, too."""
    from workbench.training import TrainConfig, train

    calls, config = [], TrainConfig(batch_size=16, steps=4, train_size=32, device="cpu", progress=False)
    stop = (lambda: calls.append(1) or len(calls) == 2) if rank == 0 else None
    try:
        train(config, stop=stop)
    except KeyboardInterrupt:
        return {"stopped": True, "calls": len(calls)}
    return {"stopped": False}


def run(check):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(PROCESSES)}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, check],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(err[-1500:] for _, err in outputs)
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
def test_shards_of_uneven_size_give_the_parameters_of_one_process():
    first, second = run("fully_shard")
    assert first["distance"] < 1e-12 and second["distance"] < 1e-12
    assert second["empty on some"]  # the second process holds no part of the gain


@pytest.mark.slow
def test_processes_that_update_a_part_each_continue_a_schedule_like_one_process():
    first, second = run("zero")
    assert first["distance"] < 1e-12 and second["distance"] < 1e-12
    assert first["steps"] == second["steps"] == [2, 4]
    clipped = {name for name, _ in made().named_parameters()} - {"fc.weight"}
    assert set(first["names"]) | set(second["names"]) == clipped and set(first["names"]).isdisjoint(second["names"])


def test_two_processes_with_ddp_equal_one_on_the_joined_batch():
    assert all(result["distance"] < 1e-12 for result in run("ddp"))


def test_only_split_vectors_are_communicated_and_unknown_placements_are_refused():
    for result in run("communication"):
        assert result["matrices"] == [] and result["whole"] == []
        assert result["mixed"] == [6]  # |g|^2 and |w|^2 of three vectors in one call
        assert result["same"] < 1e-6
        assert all(word in result["refused"] for word in ("dimension 0", "fully_shard", "Shard(dim=1)"))


def test_split_columns_equal_whole_ones_and_split_groups_of_channels_are_refused():
    for result in run("columns"):
        assert result["same"] < 1e-6
        groups, not_finite = result["refused"]
        assert "2 groups" in groups and "error_if_nonfinite" in not_finite


@pytest.mark.parametrize("extra", [{}, {"mix": True, "ema": 0.9, "cutout": 5, "sam_rho": 0.5}], ids=["plain", "recipe"])
def test_two_processes_train_like_one_process_with_two_micro_batches(extra, monkeypatch):
    from workbench.training import TrainConfig, train

    args = {"skip_gain": 1.0, "dropout": 0.1, "stochastic_depth": 0.1}
    sizes = {"batch_size": 32, "steps": 6, "eval_every": 3, "train_size": 96}
    config = TrainConfig(model_args=args, base_lr=0.8, device="cpu", progress=False, **sizes, **extra)
    expected = train(config.replace(micro_batch=16))
    monkeypatch.setenv("CONFIG", json.dumps(config.to_dict()))
    first, second = run("train")
    assert (first["rows"], second["rows"]) == (2, 0)
    assert first["outcome"] == second["outcome"] == expected.outcome in FINISHED
    for result in (first, second):
        for row, expected_row in zip(result["history"], expected.history, strict=True):
            for name in ("train_loss", "val_loss", "clipped_share"):
                assert row[name] == pytest.approx(expected_row[name], rel=1e-4), name


@pytest.mark.slow
def test_a_divergence_ends_all_processes_at_the_same_step_with_the_same_cause(monkeypatch):
    from workbench.training import TrainConfig, train

    sizes = {"batch_size": 16, "steps": 14, "train_size": 96}
    config = TrainConfig(base_lr=600.0, clip=None, warmup=0.2, device="cpu", progress=False, **sizes)
    expected = train(config.replace(micro_batch=8))
    monkeypatch.setenv("CONFIG", json.dumps(config.to_dict()))
    first, second = run("train")
    assert first["outcome"] == second["outcome"] == expected.outcome == "diverged"
    assert first["cause"] == second["cause"]
    steps = {result["metrics"]["failed_at_step"] for result in (first, second)}
    assert steps == {expected.metrics["failed_at_step"]}


def test_stopping_the_first_process_stops_all():
    assert run("stop") == [{"stopped": True, "calls": 2}, {"stopped": True, "calls": 0}]


@pytest.mark.parametrize("bad", ["sparse", "complex"])
def test_the_error_for_a_gradient_without_a_rule_names_its_parameter(bad):
    model = nn.ModuleDict({"table": nn.Embedding(4, 3, sparse=True)})
    if bad == "complex":
        model = nn.ParameterDict({"table": nn.Parameter(torch.ones(3, dtype=torch.complex64))})
        model["table"].grad = torch.ones(3, dtype=torch.complex64)
    else:
        model["table"](torch.tensor([1])).sum().backward()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    AGC(optimizer)
    with pytest.raises(WorkbenchError, match=rf"\btable\b.*\b{bad}"):
        optimizer.step()


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    print(json.dumps(globals()[f"check_{sys.argv[1]}"](rank)))
    torch.distributed.barrier()  # a process that leaves early would cut off the last message of the other
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # at the interpreter's end, threads of gloo sometimes call terminate()
