"""Configurations, keys and results. Evidence: round trips, and what does and does not change a key."""

import dataclasses
import json

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.source import syntax_without_docstrings
from workbench.training import TrainConfig, TrainResult, config_id, training_key

BASE = TrainConfig(steps=10)


def test_the_peak_rate_is_scaled_with_the_batch_and_in_the_name():
    config = TrainConfig(model="nf_resnet26_cifar", batch_size=1024, base_lr=0.4, clip=0.04, steps=1, seed=2)
    assert config.lr == 1.6
    assert config.name == "nf_resnet26_cifar B1024 lr1.6 c0.04 s2"


def test_execution_fields_do_not_change_the_key_and_others_do():
    key = training_key(BASE, "d")
    assert training_key(BASE.replace(device="cpu", progress=False), "d") == key
    changed = [
        BASE.replace(seed=1),
        BASE.replace(clip=None),
        BASE.replace(model_args={"skip_gain": 1.0}),
        BASE.replace(evaluate_test=True),
    ]
    assert len({key, training_key(BASE, "e"), *(training_key(c, "d") for c in changed)}) == 6


def test_one_and_one_point_zero_are_one_configuration():
    assert training_key(BASE.replace(base_lr=1), "d") == training_key(BASE.replace(base_lr=1.0), "d")


def test_config_id_groups_seeds():
    assert config_id(BASE) == config_id(BASE.replace(seed=5))
    assert config_id(BASE) != config_id(BASE.replace(clip=0.02))


def test_comments_and_docstrings_are_not_code():
    a = 'def f(x):\n    """One."""\n    return x + 1  # why\n'
    b = 'def f(x):\n    """Two, longer."""\n\n    return (x + 1)\n'
    assert syntax_without_docstrings(a) == syntax_without_docstrings(b)
    assert syntax_without_docstrings(a) != syntax_without_docstrings(a.replace("+ 1", "+ 2"))


def test_config_and_result_round_trip_through_json():
    config = BASE.replace(model_args={"skip_gain": 1.0}, clip=None)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    result = TrainResult(
        "k", config, "diverged", [{"step": 1, "val_acc": 0.1}], {"failed": 1}, cause="c", versions={"torch": "2"}
    )
    assert TrainResult.from_json(result.to_json()) == result


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.seed = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nf_resnet_tinny"}, "did you mean 'nf_resnet_tiny'"),
        ({"steps": None}, "exactly one of `epochs`"),
        ({"epochs": 1.0}, "exactly one of `epochs`"),
        ({"batch_size": 0}, r"`batch_size` \(=0\)"),
        ({"clip": 0.0}, "None switches clipping off"),
        ({"base_lr": float("nan")}, "base_lr"),
        ({"momentum": 1.0}, "below 1"),
        ({"warmup": 1.5}, "share of the steps"),
        ({"micro_batch": 999}, "at most `batch_size`"),
        ({"precision": "bfloat"}, "did you mean 'bfloat16'"),
        ({"batch_size": "64"}, "must be of type int"),
        ({"seed": True}, "must be of type int"),
        ({"base_lr": "0.1"}, "must be of type float"),
        ({"learning_rate": 0.1}, "unknown field of TrainConfig 'learning_rate'"),
        ({"weight_decay": -1e-4}, "at least 0"),
    ],
)
def test_mistakes_are_sentences(changes, message):
    with pytest.raises(WorkbenchError, match=message):
        BASE.replace(**changes)


def test_numbers_from_a_table_become_plain_ones():
    """A row of a DataFrame gives numpy's numbers: the key is that of plain ones, and a checkpoint can be read again."""
    config = TrainConfig(
        clip=np.float64(0.02), batch_size=np.int64(64), base_lr=np.float32(0.5), scale_lr=np.bool_(True), steps=3
    )
    assert [type(getattr(config, name)) for name in ("clip", "batch_size", "base_lr", "scale_lr")] == [
        float,
        int,
        float,
        bool,
    ]
    assert config == TrainConfig(clip=0.02, batch_size=64, base_lr=0.5, steps=3)
