"""Hypothesis strategies: plain values, and configurations of trainings."""

import dataclasses
import math
import typing

from hypothesis import strategies as st

from workbench.training import TrainConfig

TEXT = st.text(max_size=20)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)
NETWORKS = ("nf_resnet_tiny", "resnet_tiny", "nfnet_f0", "normfree:resnet26_cifar")
WORDS = st.text("abcxyz019._-/ é", min_size=1, max_size=12) | st.sampled_from(["null", "1e3", "yes", "2026-01-01", "~"])
ALONE = ("epochs", "steps", "model", "model_args", "clip_exempt", "data", "weights", "final_lr")


@st.composite
def configs(draw, weights=st.none()) -> TrainConfig:
    """Draw any valid configuration of a library network."""
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    varied = draw(st.sets(st.sampled_from(sorted(fields.keys() - set(ALONE)))))
    values = {name: draw(_values(fields[name])) for name in sorted(varied)}
    values |= {draw(st.sampled_from(["epochs", "steps"])): draw(st.integers(1, 2**40))}
    values |= {"model": draw(st.sampled_from(NETWORKS)), "data": draw(WORDS), "weights": draw(weights)}
    values |= {"model_args": draw(st.dictionaries(WORDS, PLAIN, max_size=3))}
    values |= {"clip_exempt": draw(st.lists(WORDS, max_size=3))}
    if values.get("clip_norm") is not None:
        values["clip"] = None
    unmet = {name for name, f in fields.items() if (need := f.metadata["needs"]) and not _is_set(values, need)}
    for name in unmet | ({"precise_bn", "shift"} if values.get("stream") else set()):
        values.pop(name, None)
    if (micro := values.get("micro_batch")) is not None:
        values["micro_batch"] = min(micro, values.get("batch_size", 256))
    config = TrainConfig(**values)
    return config.replace(final_lr=draw(st.floats(0, min(config.lr, 1e6))))


def _is_set(values: dict, name: str) -> bool:
    value = values.get(name, getattr(TrainConfig(steps=1), name))
    return value is not None and value is not False


def _values(field: dataclasses.Field) -> st.SearchStrategy:
    """Values within the bounds of a field."""
    kinds = typing.get_args(field.type) or (field.type,)
    bounds, choices = field.metadata["bounds"], field.metadata["choices"]
    low = bounds.get("above", bounds.get("at_least", -math.inf))
    high = bounds.get("below", bounds.get("at_most", math.inf))
    by_kind = {
        str: st.sampled_from(choices) if choices else WORDS,
        bool: st.booleans(),
        int: st.integers(int(max(low, 0)) + ("above" in bounds), 2**40),
        float: st.floats(
            max(low, 0), min(high, 1e6), exclude_min="above" in bounds, exclude_max="below" in bounds and high < 1e6
        ),
        type(None): st.none(),
    }
    return st.one_of(*(by_kind[kind] for kind in kinds))
