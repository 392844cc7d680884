"""Adaptive gradient clipping and the recipe around it; torch only."""

from workbench.optim.agc import AGC, AGCStats, clip_grad_agc_, unitwise_norm
from workbench.optim.groups import param_groups
from workbench.optim.schedule import scaled_lr, warmup_cosine

__all__ = ["AGC", "AGCStats", "clip_grad_agc_", "param_groups", "scaled_lr", "unitwise_norm", "warmup_cosine"]
