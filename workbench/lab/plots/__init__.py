"""Figures: tidy tables in, matplotlib figures out. None of them trains or saves. Failed trainings are marked."""

from workbench.lab.plots.depth import SIGNALS, check_figure, depth_axis, over_depth, signal_over_time_figure
from workbench.lab.plots.examples import examples_figure
from workbench.lab.plots.training_figures import curvature_figure, replay_figure
from workbench.lab.plots.vocabulary import (
    ARMS,
    COLOURS,
    CYCLE,
    MARKERS,
    arms_of,
    arms_or_names,
    graded,
    look_of,
    plain_log_ticks,
    shades,
    style,
)

__all__ = [
    "ARMS",
    "COLOURS",
    "CYCLE",
    "MARKERS",
    "SIGNALS",
    "arms_of",
    "arms_or_names",
    "check_figure",
    "curvature_figure",
    "depth_axis",
    "examples_figure",
    "graded",
    "look_of",
    "over_depth",
    "plain_log_ticks",
    "replay_figure",
    "shades",
    "signal_over_time_figure",
    "style",
]
