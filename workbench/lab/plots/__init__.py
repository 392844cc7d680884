"""Figures: tidy tables in, matplotlib figures out.

They do not train or save. They mark failed trainings.
"""

from workbench.lab.plots.depth import SIGNALS, check_figure, depth_axis, over_depth, signal_over_time_figure
from workbench.lab.plots.examples import examples_figure
from workbench.lab.plots.layout import accuracy_axis, legend_outside, log_axis, name_axis, panels, rate_axis, stacked
from workbench.lab.plots.looks import ARM_LOOKS, FAILED, LOOKS, Look, in_order, looks, ordered_looks, shades, style
from workbench.lab.plots.marks import accuracy_map, intervals, mark_collapsed, mark_failed, over_rate, seeds, trials
from workbench.lab.plots.training_figures import curvature_figure, replay_figure

__all__ = [
    "ARM_LOOKS",
    "FAILED",
    "LOOKS",
    "SIGNALS",
    "Look",
    "accuracy_axis",
    "accuracy_map",
    "check_figure",
    "curvature_figure",
    "depth_axis",
    "examples_figure",
    "in_order",
    "intervals",
    "legend_outside",
    "log_axis",
    "looks",
    "mark_collapsed",
    "mark_failed",
    "name_axis",
    "ordered_looks",
    "over_depth",
    "over_rate",
    "panels",
    "rate_axis",
    "replay_figure",
    "seeds",
    "shades",
    "signal_over_time_figure",
    "stacked",
    "style",
    "trials",
]
