"""Adaptive gradient clipping and the recipe around it; torch only."""

from workbench.optim.clipping import AGCStats, clip_grad_agc_
from workbench.optim.ema import EMA
from workbench.optim.groups import groups_table, param_groups
from workbench.optim.hooks import AGC
from workbench.optim.norms import unitwise_norm
from workbench.optim.sam import SAM
from workbench.optim.schedule import scaled_lr, warmup_cosine
from workbench.optim.suggest import ClipSuggestion, suggest_clip

__all__ = [
    "AGC",
    "EMA",
    "SAM",
    "AGCStats",
    "ClipSuggestion",
    "clip_grad_agc_",
    "groups_table",
    "param_groups",
    "scaled_lr",
    "suggest_clip",
    "unitwise_norm",
    "warmup_cosine",
]
