"""How trainings end. Evidence: the rule by hand, and short trainings of a small network."""

import math

import numpy as np
import pytest
import torch

from workbench.data import load_dataset
from workbench.data.augment import flip_shift, generator_for, normalize, seed_for
from workbench.data.mixing import mix_halves
from workbench.models import create_model
from workbench.outcomes import COLLAPSED_SHARE, at_end
from workbench.training import TrainConfig, train
from workbench.training.distributed import World
from workbench.training.inputs import Inputs
from workbench.training.scoring import with_statistics_of
from workbench.weights.checkpoints import load_checkpoint

QUICK = TrainConfig(
    model="nf_resnet_tiny", model_args={"skip_gain": 1.0}, batch_size=64, base_lr=1.6, clip=0.04, steps=50, shift=0,
    progress=False, device="cpu",
)  # fmt: skip
STILL = QUICK.replace(base_lr=1e-12, steps=4, train_size=640)  # never moves, so it cannot learn


def test_a_loss_of_95_percent_of_guessing_is_a_collapse():
    assert at_end(0.949 * math.log(10), 10) == ("complete", None)
    outcome, cause = at_end(0.95 * math.log(10), 10)
    assert outcome == "collapsed" and "2.187" in cause
    assert at_end(0.95 * math.log(10), 100)[0] == "complete"  # the loss of guessing among 100 is 4.6
    assert at_end(0.0, 1)[0] == "complete"  # one class cannot be guessed wrongly


def test_a_network_that_learns_is_complete_and_one_that_does_not_collapses(tmp_path):
    learnt = train(QUICK)
    assert (learnt.outcome, learnt.cause, learnt.metrics["failed"], learnt.metrics["classes"]) == (
        "complete",
        None,
        0,
        10,
    )
    still = train(STILL.replace(evaluate_test=True), save=tmp_path / "still.safetensors")
    assert (still.outcome, still.metrics["failed"], still.metrics["classes"]) == ("collapsed", 1, 10)
    assert (
        still.metrics["val_loss"] >= COLLAPSED_SHARE * math.log(10)
        and f"{still.metrics['val_loss']:.4g}" in still.cause
    )
    assert "failed_at_step" not in still.metrics and "test_acc" in still.metrics
    assert load_checkpoint(tmp_path / "still.safetensors") is not None  # its weights are kept


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"mix": True, "label_smoothing": 0.3, "steps": 100}, "complete"),
        ({"batch_size": 16, "steps": 200, "base_lr": 3.2}, "complete"),
        ({"eval_every": 1, "steps": 50}, "complete"),
        ({"eval_every": 50, "steps": 50}, "complete"),
    ],
)
def test_mixing_smoothing_batch_and_evaluations_do_not_make_a_collapse(settings, outcome):
    """The training loss of the first is of mixed and smoothed labels, so it is much higher."""
    result = train(QUICK.replace(**settings))
    assert result.outcome == outcome
    if "mix" in settings:
        assert result.metrics["train_loss"] > 1.3 * result.metrics["val_loss"]


@pytest.mark.parametrize("change", [{}, {"mix": True, "label_smoothing": 0.3}, {"batch_size": 16}, {"eval_every": 1}])
def test_they_do_not_hide_a_collapse(change):
    assert train(STILL.replace(**change)).outcome == "collapsed"


@pytest.mark.parametrize("mix", [False, True])
def test_precise_statistics_are_those_of_augmented_images(mix):
    """The mean of the batch statistics over the images that a training makes, by hand."""
    config = QUICK.replace(shift=3, flip=True, mix=mix, seed=7)
    data = load_dataset("mnist5k")
    inputs = Inputs(config, data, World(), torch.device("cpu"))
    n = 700  # two batches of the evaluation: 512 and 188
    model = create_model("resnet_tiny", 10, in_channels=1)
    precise = with_statistics_of(model, inputs.augmented(n))

    partners = torch.randperm(n, generator=generator_for(7, "partners of statistics", 0))
    means = []
    for micro, at in enumerate(torch.arange(n).split(512)):
        with_ = partners[at]
        half = (len(at) + 1) // 2
        index = torch.cat([at[:half], with_[:half], at[half:], with_[half:]]) if mix else at
        x = flip_shift(data.train.images[index], generator_for(7, "augment", 0, micro), flip=True, shift=3)
        x = normalize(x, data.mean, data.std)
        if mix:
            x, _ = mix_halves(x, data.train.labels[index], 10, np.random.default_rng(seed_for(7, "mix", 0, micro)), 0.2)
        means.append(model.stem(x).mean((0, 2, 3)))
    torch.testing.assert_close(precise.blocks[0].norm0.running_mean, torch.stack(means).mean(0), rtol=0, atol=1e-4)
    again = [x for x, _ in inputs.augmented(n)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(again, inputs.augmented(n), strict=True))
    other = Inputs(config.replace(seed=8), data, World(), torch.device("cpu"))
    assert not torch.equal(again[0], next(iter(other.augmented(n)))[0])


def test_augmented_statistics_keep_the_accuracy_of_the_moving_averages():
    """With long averages at a large batch, both are statistics of the same images."""
    config = QUICK.replace(
        model="resnet_tiny", model_args={}, clip=None, shift=3, steps=60, batch_size=128, precise_bn=2048
    )
    metrics = train(config).metrics
    assert metrics["precise_val_acc"] == pytest.approx(metrics["val_acc"], abs=0.1)
