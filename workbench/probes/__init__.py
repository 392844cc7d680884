"""Measurements of a network: signal propagation, its theory, gradient ratios."""

from workbench.probes.gradients import gradient_ratios
from workbench.probes.signal import signal_propagation
from workbench.probes.theory import compare_signal, expected_signal

__all__ = ["compare_signal", "expected_signal", "gradient_ratios", "signal_propagation"]
