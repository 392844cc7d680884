"""The training loop. Evidence: bitwise repetition, exact accumulation, learning, divergence as a result, imports."""

import copy
import math
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.observers import BeforeUpdate
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.optim import AGC
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, setup, train, training_key
from workbench.training.distributed import World
from workbench.training.gradients import Gradients
from workbench.training.inputs import batches
from workbench.training.observers import Curvature
from workbench.training.precision import Bfloat16Copies
from workbench.training.scoring import with_statistics_of
from workbench.training.setup import pick_device, steps_of
from workbench.weights.checkpoints import save_checkpoint

QUICK = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0},
    batch_size=64,
    base_lr=1.6,
    steps=12,
    train_size=640,
    progress=False,
    device="cpu",
)


def final_weights(config, monkeypatch):
    """Train and return (result, state dict), because `train` returns only the result."""
    kept = {}
    original = setup.build_network

    def keep(*args, **kwargs):
        kept["model"] = original(*args, **kwargs)
        return kept["model"]

    monkeypatch.setattr(setup, "build_network", keep)
    result = train(config)
    monkeypatch.undo()
    return result, kept["model"].state_dict()


def without_time(result):
    drop = ("seconds", "device_seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in drop} for row in result.history], {
        k: v for k, v in result.metrics.items() if k not in drop
    }


@pytest.mark.parametrize("name", ["nf_resnet_tiny", "resnet_tiny"])
def test_two_runs_are_equal_bit_for_bit(name, monkeypatch):
    config = QUICK.replace(model=name, model_args={"stochastic_depth": 0.2, "dropout": 0.1})
    torch.manual_seed(1)
    first, weights = final_weights(config, monkeypatch)
    torch.manual_seed(2)  # the caller's generator must not matter
    second, again = final_weights(config, monkeypatch)
    assert without_time(first) == without_time(second)
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    _, other = final_weights(config.replace(seed=1), monkeypatch)
    assert not torch.equal(weights["linear.weight"], other["linear.weight"])


def test_the_callers_random_state_is_unchanged():
    state = torch.get_rng_state()
    train(QUICK.replace(steps=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_accumulation_is_exact_for_a_normalizer_free_net_and_not_for_batchnorm(monkeypatch):
    """Micro-batches of 24 do not divide 64: the last has 16 images and gets a smaller weight."""

    def gap(name, clip):
        config = QUICK.replace(model=name, model_args={}, clip=clip, steps=4, shift=0, flip=False)
        _, whole = final_weights(config, monkeypatch)
        _, parts = final_weights(config.replace(micro_batch=24), monkeypatch)
        return max(
            (whole[k] - parts[k]).abs().max().item()
            for k in whole
            if whole[k].is_floating_point() and "running" not in k
        )

    assert gap("nf_resnet_tiny", 0.01) < 2e-5
    assert gap("resnet_tiny", None) > 1e-3


def test_agc_acts_once_after_the_last_micro_batch(monkeypatch):
    calls = []
    original = AGC._before_step
    monkeypatch.setattr(AGC, "_before_step", lambda self, *a: (calls.append(1), original(self, *a))[1])
    train(QUICK.replace(steps=3, micro_batch=16))
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["nf_resnet_tiny", "resnet_tiny", pytest.param("nfnet_micro", marks=pytest.mark.slow)])
def test_a_network_learns(name):
    args = {} if name == "resnet_tiny" else {"skip_gain": 1.0}
    clip = None if name == "resnet_tiny" else 0.04
    result = train(QUICK.replace(model=name, model_args=args, clip=clip, steps=60, train_size=None, shift=0))
    assert result.outcome == "complete"
    assert result.metrics["val_acc"] > 0.35
    assert result.metrics["train_loss"] < 0.85 * math.log(10)


def test_divergence_is_a_result_with_step_and_cause():
    result = train(QUICK.replace(clip=None, base_lr=400.0, warmup=0.0, evaluate_test=True))
    assert result.outcome == "diverged"
    step = result.metrics["failed_at_step"]
    assert 1 <= step < 12
    assert f"at step {step}" in result.cause
    assert (result.metrics["failed"], result.metrics["val_acc"]) == (1, 0.1)
    assert "test_acc" not in result.metrics
    assert all(math.isfinite(v) for row in result.history for v in row.values())


def test_log_sees_every_row_and_can_end_the_training():
    rows = []
    result = train(QUICK.replace(eval_every=3), log=lambda row: rows.append(row) or row["step"] == 6)
    assert [r["step"] for r in rows] == [3, 6]
    assert result.outcome == "pruned"
    assert result.history == rows
    assert (rows[1]["samples_seen"], rows[1]["epoch"]) == (384, pytest.approx(0.6))


def test_the_test_split_is_read_only_with_evaluate_test():
    assert "test_acc" not in train(QUICK.replace(steps=1)).metrics
    assert 0 <= train(QUICK.replace(steps=1, evaluate_test=True)).metrics["test_acc"] <= 1


def test_bfloat16_autocast_trains_with_float32_parameters(monkeypatch):
    result, weights = final_weights(QUICK.replace(precision="bfloat16", steps=3), monkeypatch)
    assert result.outcome in FINISHED
    assert all(w.dtype == torch.float32 for w in weights.values())


def test_bfloat16_copies_give_the_gradients_of_a_bfloat16_network():
    """As the authors train: everything is in bfloat16, also weight standardisation. The gradients are float32."""
    model = create_model("nf_resnet_tiny", 10, in_channels=1, skip_gain=1.0)
    x, y = torch.randn(8, 1, 28, 28), torch.arange(8)
    F.cross_entropy(Bfloat16Copies(model)(x).float(), y).backward()
    low = copy.deepcopy(model).bfloat16()
    low.zero_grad()
    F.cross_entropy(low(x.bfloat16()).float(), y).backward()
    for p, q in zip(model.parameters(), low.parameters(), strict=True):
        assert p.dtype == p.grad.dtype == torch.float32
        assert torch.equal(p.grad, q.grad.float())


@pytest.mark.parametrize("name", ["nf_resnet_tiny", "nfnet_micro", "resnet_tiny"])
def test_bfloat16_copies_train_near_float32(name, monkeypatch):
    settings = QUICK.replace(model=name, model_args={}, steps=4, clip=None)
    whole = train(settings)
    result, weights = final_weights(settings.replace(precision="bfloat16_copies"), monkeypatch)
    assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())
    assert result.metrics["val_loss"] == pytest.approx(whole.metrics["val_loss"], rel=0.02)
    assert result.metrics["val_loss"] != whole.metrics["val_loss"]


RECIPE = {"ema": 0.9, "sam_rho": 0.05, "micro_batch": 32}


@pytest.mark.parametrize(("model", "changes"), [("nf_resnet_tiny", RECIPE), ("nfnet_micro", {}), ("resnet_tiny", {})])
def test_channels_last_trains_the_same_network(model, changes, monkeypatch):
    """The two layouts differ only by rounding."""
    args = {} if model == "resnet_tiny" else {"skip_gain": 1.0}
    config = QUICK.replace(model=model, model_args=args, base_lr=0.2, steps=4, telemetry_every=1, **changes)
    result, plain = final_weights(config.replace(layout="contiguous"), monkeypatch)
    assert result.layout == result.row()["layout"] == "contiguous"
    result, last = final_weights(config, monkeypatch)
    assert result.layout == result.row()["layout"] == "channels_last"
    convolutions = [v for v in last.values() if v.ndim == 4 and min(v.shape[1], v.shape[2]) > 1]
    assert convolutions and all(v.is_contiguous(memory_format=torch.channels_last) for v in convolutions)
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_layout_is_part_of_the_key():
    keys = {training_key(QUICK.replace(layout=layout), "data") for layout in ("auto", "contiguous", "channels_last")}
    assert len(keys) == 3


@pytest.mark.parametrize(
    "changes", [{}, {"micro_batch": 24, "precision": "bfloat16"}, {"precision": "bfloat16_copies"}]
)
def test_recomputing_activations_changes_no_bit_and_no_key(changes, monkeypatch):
    config = QUICK.replace(model="nfnet_micro", steps=3, **changes)
    first, weights = final_weights(config, monkeypatch)
    second, again = final_weights(config.replace(recompute=True), monkeypatch)
    assert first.key == second.key
    assert all(torch.equal(weights[k], again[k]) for k in weights)


def test_a_training_starts_from_weights_and_its_key_depends_on_their_bytes(tmp_path):
    file = tmp_path / "start.safetensors"
    first = train(QUICK.replace(steps=60, train_size=None, clip=0.04, shift=0), save=file)
    config = QUICK.replace(weights=str(file), steps=1, base_lr=1e-6, shift=0)
    again = train(config)
    assert again.metrics["val_acc"] == pytest.approx(first.metrics["val_acc"], abs=0.02)
    assert first.metrics["val_acc"] > 0.35
    train(QUICK.replace(steps=1), save=file)
    assert train(config).key != again.key


def test_weights_with_other_classes_get_a_new_head(tmp_path, image_folder):
    file = tmp_path / "gray.safetensors"
    save_checkpoint(create_model("nf_resnet_tiny", 10, in_channels=1), file)
    config = QUICK.replace(weights=str(file), data=str(image_folder), train_size=None, batch_size=14, steps=2)
    assert train(config, save=tmp_path / "new.safetensors").outcome in FINISHED
    new, old = load_file(tmp_path / "new.safetensors"), load_file(file)
    assert new["linear.weight"].shape[0] == 2
    name = next(k for k in old if k.endswith("conv1.weight"))
    assert (new[name] - old[name]).abs().max() < 0.1 * old[name].abs().max()


def test_weights_of_another_network_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_checkpoint(create_model("nfnet_micro", 10, in_channels=1), file)
    with pytest.raises(WorkbenchError, match=r"`weights`.*x\.safetensors.*nfnet_micro.*`model`.*nf_resnet_tiny"):
        train(QUICK.replace(weights=str(file)))


def test_a_network_learns_from_a_folder_of_images(image_folder):
    result = train(
        QUICK.replace(data=str(image_folder), train_size=None, batch_size=14, steps=15, model_args={"skip_gain": 1.0})
    )
    assert result.metrics["val_acc"] == 1.0


def test_an_epoch_is_one_permutation():
    seen = torch.cat(list(batches(10, 5, seed=3, total_steps=4)))
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert not torch.equal(seen[:10], seen[10:])


def test_no_image_is_left_out_if_the_batch_does_not_divide_the_epoch():
    whole = torch.cat(list(batches(10, 4, seed=3, total_steps=5)))
    assert sorted(whole[:10].tolist()) == list(range(10)) == sorted(whole[10:].tolist())
    assert torch.equal(whole[:10], torch.cat(list(batches(10, 5, seed=3, total_steps=2))))  # the same permutations
    late = torch.cat(list(batches(10, 4, seed=3, total_steps=5, done=3)))
    assert torch.equal(late, whole[12:])


def test_epochs_become_steps_and_a_batch_that_is_too_large_is_refused():
    assert steps_of(TrainConfig(epochs=2.0, batch_size=64), 640) == 20
    assert steps_of(TrainConfig(epochs=0.25, batch_size=64), 700) == 2
    assert steps_of(TrainConfig(epochs=360.0, batch_size=4096), 1_281_167) == 112_602  # the fact sheet's
    assert steps_of(TrainConfig(epochs=3.0, batch_size=64, train_size=100), 700) == 4
    with pytest.raises(WorkbenchError, match=r"`batch_size`.*=100.*128"):
        steps_of(TrainConfig(epochs=1.0, batch_size=128), 100)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "tpu:0"])
def test_a_missing_device_is_refused(name):
    with pytest.raises(WorkbenchError, match=f"`device`.*{name}"):
        pick_device(name)


@pytest.mark.gpu
def test_the_gpu_trains_like_the_cpu():
    cpu, gpu = train(QUICK.replace(steps=4)), train(QUICK.replace(steps=4, device="cuda"))
    assert gpu.metrics["train_loss"] == pytest.approx(cpu.metrics["train_loss"], rel=1e-3)
    assert gpu.metrics["peak_memory"] > 0


@pytest.mark.gpu
def test_the_gpu_learns_in_bfloat16_with_channels_last():
    result = train(QUICK.replace(device="cuda", precision="bfloat16", steps=60))
    assert result.outcome == "complete" and result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_a_training_imports_no_tracking_and_no_other_optional_package(image_folder):
    """Two steps in a process that refuses all other imports."""
    program = """
        import builtins, sys

        refused = {"mlflow", "optuna", "papermill", "pydantic", "typer", "rich", "seaborn", "matplotlib", "ray",
                   "IPython", "jupyterlab", "mlxtend", "sklearn", "scipy", "psutil", "yaml", "filelock"}
        original = builtins.__import__

        def refusing(name, *args, **kwargs):
            if name.partition(".")[0] in refused:
                raise ImportError(f"a training must not import {name}")
            return original(name, *args, **kwargs)

        builtins.__import__ = refusing
        from workbench.training import TrainConfig, train
        settings = {"model": "nf_resnet_tiny", "steps": 2, "batch_size": 8, "progress": False, "device": "cpu"}
        result = train(TrainConfig(data=sys.argv[1], **settings))
        print(result.outcome, len(result.history))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(image_folder)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["collapsed", "2"], done.stderr[-6000:]


# ---- the rest of the recipe


RECIPE = QUICK.replace(
    mix=True,
    cutout=6,
    ema=0.99,
    sam_rho=0.05,
    label_smoothing=0.1,
    micro_batch=24,
    telemetry_every=4,
    signal_every=5,
    clip_exempt=["stage3", "first_conv"],
    final_lr=0.01,
)


def test_the_whole_recipe_repeats_bit_for_bit_and_reports_both_weights(monkeypatch):
    first, weights = final_weights(RECIPE, monkeypatch)
    again, others = final_weights(RECIPE, monkeypatch)
    assert without_time(first) == without_time(again)
    assert all(torch.equal(weights[k], others[k]) for k in weights)
    assert first.outcome in FINISHED
    assert {"ema_val_loss", "ema_val_acc"} <= set(first.history[-1]) and "ema_val_acc" in first.metrics
    assert TrainConfig.from_dict(first.config.to_dict()) == RECIPE
    assert first.row()["clip_exempt"] == "stage3, first_conv"


@pytest.mark.parametrize(
    "change",
    [
        {"mix": True}, {"cutout": 8}, {"sam_rho": 0.05}, {"clip_exempt": ["stage1"]}, {"final_lr": 1.0},
        {"clip_exempt": ["vectors"]}, {"clip_head": True, "clip": 1e-3}, {"clip": None, "clip_norm": 0.5},
        {"model": "resnet_tiny", "model_args": {"norm": "group"}},
    ],
)  # fmt: skip
def test_every_part_of_the_recipe_changes_the_weights(change, monkeypatch):
    plain_config = QUICK.replace(steps=6, base_lr=8.0)
    changed_config = plain_config.replace(**change)
    _, plain = final_weights(plain_config, monkeypatch)
    _, changed = final_weights(changed_config, monkeypatch)
    assert not all(torch.equal(plain[k], changed[k]) for k in plain)


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"telemetry_every": 2}, {"signal_every": 2}, {"curvature_every": 10}])
def test_measurements_do_not_change_the_weights(change, monkeypatch):
    _, plain = final_weights(QUICK, monkeypatch)
    _, watched = final_weights(QUICK.replace(**change), monkeypatch)
    assert all(torch.equal(plain[k], watched[k]) for k in plain)


def test_telemetry_has_a_row_per_parameter_and_step():
    kept = {}
    config = QUICK.replace(telemetry_every=5, clip=0.05, steps=10)
    result = train(config, tables=lambda name, table: kept.update({name: table}))
    table = kept["agc"]
    assert table.step.unique().tolist() == [5, 10]
    names = set(table.parameter)
    assert "linear.bias" in names and "linear.weight" not in names  # the classifier's weight is exempt
    assert len(table) == 2 * len(names)
    assert ((table["at_0.01"] >= table["at_0.04"]) & (table["at_0.04"] >= table["at_0.16"])).all()
    at_ten = table[table.step == 10]
    share = (at_ten.clipped_share * at_ten.units).sum() / at_ten.units.sum()
    assert share == pytest.approx(result.history[-1]["clipped_share"])


def test_signals_have_a_row_per_block_and_step():
    kept = {}
    config = QUICK.replace(signal_every=5, steps=10, model_args={"skip_gain": 0.0, "stochastic_depth": 0.5})
    train(config, tables=lambda name, table: kept.update({name: table}))
    table = kept["signal"]
    assert table.step.unique().tolist() == [0, 5, 10] and table.block.unique().tolist() == [0, 1, 2, 3]
    assert table[["var", "grad_var", "dead", "peak"]].notna().all().all()
    before = table[table.step == 0].set_index("block")["var"]
    assert before[1] != table[table.step == 10].set_index("block")["var"][1]
    again = {}
    train(config, tables=lambda name, table: again.update({name: table}))
    pd.testing.assert_frame_equal(table, again["signal"])


def test_curvature_has_a_row_per_step_with_the_limit_of_its_momentum():
    kept = {}
    train(QUICK.replace(curvature_every=5, steps=5), tables=lambda name, table: kept.update({name: table}))
    table = kept["curvature"]
    assert table.step.tolist() == [0, 5] and table.lr[0] == 0.0
    assert table.limit.tolist() == pytest.approx([2 * 1.9 / 2.8] * 2)  # Nesterov, momentum 0.9
    assert (table.lr_x_sharpness == table.lr * table.sharpness).all() and table.sharpness.gt(0).all()
    assert (table.noise_low <= table.noise_scale).all() and (table.noise_scale <= table.noise_high).all()


def test_curvature_of_weights_that_are_not_finite_is_nan():
    model = create_model("nf_resnet_tiny", 10, in_channels=1)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    curvature = Curvature(1, (torch.randn(16, 1, 28, 28), torch.arange(16) % 10), momentum=0.9)
    curvature.after_update(1, model, lr=0.1)
    row = curvature.table().iloc[0]
    assert row.lr == 0.1 and row[["sharpness", "lr_x_sharpness", "noise_scale"]].isna().all()


def test_a_training_that_diverges_keeps_its_telemetry():
    kept = {}
    config = QUICK.replace(base_lr=1e6, clip=10.0, telemetry_every=1, steps=30)
    result = train(config, tables=lambda name, table: kept.update({name: table}))
    assert result.outcome == "diverged" and len(kept["agc"])


def test_sam_climbs_in_every_part_by_the_gradient_of_its_first_fifth():
    """Two parts have 5 and 10 samples, and w is restored between them.

    The result is (5 g(w1) + 10 g(w2)) / 15 with wi = w + rho gi / |gi|. Here g1 is the gradient of the first sample of
    5, and g2 that of the first two of 10.
    """
    model = nn.Linear(3, 4, bias=False, dtype=torch.float64)
    before = model.weight.detach().clone()
    x, y = torch.randn(15, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(15) % 4

    def gradient(weight, x, y):
        w = weight.clone().requires_grad_()
        F.cross_entropy(F.linear(x, w), y).backward()
        return w.grad

    class Made(SimpleNamespace):
        def made(self):
            return self.x, self.y

    parts = [
        Made(x=x[:5], y=y[:5], share=1 / 3, last=False, seed=0),
        Made(x=x[5:], y=y[5:], share=2 / 3, last=True, seed=0),
    ]
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for part, n in zip(parts, (1, 2), strict=True):
        climb = gradient(before, part.x[:n], part.y[:n])
        expected += part.share * gradient(before + 0.5 * climb / climb.norm(), part.x, part.y)
    Gradients(model, model, QUICK.replace(sam_rho=0.5), World(), torch.device("cpu"))(parts)
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-5, atol=1e-7)  # Gradients uses float32 logits
    assert torch.equal(model.weight, before)


def test_a_diverged_average_is_a_result_too():
    result = train(QUICK.replace(base_lr=1e6, clip=None, ema=0.9, mix=True, steps=20))
    assert result.outcome == "diverged"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"clip_exempt": ["stage9"]}, "'stage9'"),
        ({"ema": 1.0}, "`ema`"),
        ({"sam_rho": 0.0}, "`sam_rho`"),
    ],
)
def test_wrong_recipes_are_refused(change, named):
    with pytest.raises(WorkbenchError, match=named):
        train(QUICK.replace(**change))


def test_clipping_by_the_whole_norm_bounds_the_first_update(monkeypatch):
    """Without momentum and decay the first update is the rate times the clipped gradient, so its norm is known."""
    config = QUICK.replace(
        clip=None, clip_norm=1e-3, steps=1, momentum=0.0, weight_decay=0.0, scale_lr=False, base_lr=0.5, warmup=0.0
    )
    rate, before = [], {}

    def seen(step, loss, model, optimizer):
        rate.append(optimizer.param_groups[0]["lr"])
        before.update({name: p.detach().clone() for name, p in model.named_parameters()})

    kept = {}
    original = setup.build_network
    monkeypatch.setattr(setup, "build_network", lambda *a, **k: kept.setdefault("model", original(*a, **k)))
    result = train(config, observers=[BeforeUpdate(seen)])
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in kept["model"].named_parameters()])
    assert result.history[-1]["grad_norm"] > 0.1  # before clipping
    torch.testing.assert_close(moved.norm().item(), rate[0] * 1e-3, rtol=2e-3, atol=0)


def test_precise_statistics_are_those_of_the_training_images():
    model = create_model("resnet_tiny", 10, in_channels=1)
    x = torch.randn(64, 1, 28, 28)
    precise = with_statistics_of(model, [(x, None)])
    h = model.stem(x)
    torch.testing.assert_close(precise.blocks[0].norm0.running_mean, h.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(precise.blocks[0].norm0.running_var, h.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert model.blocks[0].norm0.running_mean.abs().max() == 0  # the network itself is unchanged


def test_precise_batchnorm_is_reported_next_to_the_moving_averages():
    config = QUICK.replace(
        model="resnet_tiny", model_args={}, clip=None, precise_bn=256, batch_size=4, evaluate_test=True
    )
    metrics = train(config).metrics
    assert 0 < metrics["precise_val_acc"] != metrics["val_acc"] and "precise_test_acc" in metrics
    nf = train(QUICK.replace(precise_bn=256)).metrics  # a network without BatchNorm has nothing to recompute
    assert nf["precise_val_acc"] == nf["val_acc"]
