"""Configurations, keys and results. Evidence: round trips, and which changes change a key."""

import dataclasses
import json

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.source import syntax_without_docstrings
from workbench.training import TrainConfig, TrainResult, config_id, training_key
from workbench.training.fields import checked

BASE = TrainConfig(steps=10)


def test_the_peak_rate_scales_with_the_batch_and_is_part_of_the_name():
    config = TrainConfig(model="nf_resnet26_cifar", batch_size=1024, base_lr=0.4, clip=0.04, steps=1, seed=2)
    assert config.lr == 1.6
    assert config.name == "nf_resnet26_cifar B1024 lr1.6 c0.04 s2"


def test_execution_fields_do_not_change_the_key_but_other_fields_do():
    key = training_key(BASE, "d")
    assert training_key(BASE.replace(device="cpu", progress=False), "d") == key
    changed = [
        BASE.replace(seed=1),
        BASE.replace(clip=None),
        BASE.replace(model_args={"skip_gain": 1.0}),
        BASE.replace(evaluate_test=True),
    ]
    assert len({key, training_key(BASE, "e"), *(training_key(c, "d") for c in changed)}) == 6


def test_an_integer_and_the_equal_float_give_the_same_key():
    assert training_key(BASE.replace(base_lr=1), "d") == training_key(BASE.replace(base_lr=1.0), "d")


def test_config_id_is_equal_for_all_seeds_of_a_configuration():
    assert config_id(BASE) == config_id(BASE.replace(seed=5))
    assert config_id(BASE) != config_id(BASE.replace(clip=0.02))


def test_comments_and_docstrings_do_not_count_as_code():
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
    ("changes", "named"),
    [
        ({"model": "nf_resnet_tinny"}, ["'nf_resnet_tiny'"]),
        ({"steps": None}, ["`epochs`", "`steps`"]),
        ({"epochs": 1.0}, ["`epochs`", "`steps`"]),
        ({"batch_size": 0}, ["`batch_size`", "got 0.", "above 0"]),
        ({"clip": 0.0}, ["`clip`", "got 0.0", "None"]),
        ({"clip_norm": -1.0, "clip": None}, ["`clip_norm`", "-1.0", "None"]),
        ({"base_lr": float("nan")}, ["`base_lr`", "nan"]),
        ({"base_lr": float("inf")}, ["`base_lr`", "inf"]),
        ({"momentum": 1.0}, ["`momentum`", "1.0", "below 1"]),
        ({"warmup": 1.5}, ["`warmup`", "1.5", "at most 1"]),
        ({"weight_decay": -1e-4}, ["`weight_decay`", "-0.0001", "at least 0"]),
        ({"micro_batch": 999}, ["`micro_batch`", "999", "`batch_size`"]),
        ({"final_lr": 10.0}, ["`final_lr`", "10.0", "=0.1"]),
        ({"precision": "bfloat"}, ["precision", "'bfloat16'"]),
        ({"batch_size": "64"}, ["`batch_size`", "'64'", "int"]),
        ({"seed": True}, ["`seed`", "True", "int"]),
        ({"base_lr": "0.1"}, ["`base_lr`", "'0.1'", "float"]),
        ({"clip": "none"}, ["`clip`", "null"]),
        ({"learning_rate": 0.1}, ["'learning_rate'"]),
        ({"telemetry_every": 1, "clip": None}, ["`telemetry_every`", "`clip`"]),
        ({"clip_head": True, "clip": None}, ["`clip_head`", "`clip`"]),
        ({"clip_norm": 1.0}, ["`clip_norm`", "clip=null"]),
        ({"workers": 0}, ["`workers`", "=0", "`stream`"]),
        ({"rand_augment": 31.0, "stream": True}, ["`rand_augment`", "31.0", "at most 30"]),
        ({"precise_bn": 64, "stream": True}, ["`precise_bn`", "stream=false"]),
        ({"shift": 2, "stream": True}, ["`shift`", "=2"]),
        ({"clip_exempt": [3]}, ["`clip_exempt`", "[3]"]),
        ({"model_args": {"in_channels": 3}}, ["`model_args`", "in_channels"]),
    ],
)
def test_wrong_values_are_refused_with_the_field_its_value_and_its_rule(changes, named):
    with pytest.raises(WorkbenchError) as error:
        BASE.replace(**{"batch_size": 256, **changes})
    assert all(part in str(error.value) for part in named), error.value


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": 0, "stream": True},
        {"workers": 0, "stream": True},
        {"momentum": 0.0},
        {"warmup": 1.0},
        {"cutout": None},
    ],
)
def test_values_at_the_limit_are_accepted(changes):
    config = BASE.replace(**changes)
    assert {name: getattr(config, name) for name in changes} == changes


def test_every_field_has_a_meaning_and_accepts_its_default():
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["meaning"] and getattr(BASE, field.name) == checked(field, getattr(BASE, field.name))
    assert TrainConfig(steps=1).model_args is not TrainConfig(steps=1).model_args


def test_numbers_from_a_table_become_plain_numbers():
    """A row of a DataFrame has numpy's numbers. Keys and checkpoints need plain numbers."""
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
