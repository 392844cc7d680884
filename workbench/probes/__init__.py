"""Measurements of a network: signal propagation, its theory, pre-flight, gradient ratios."""

from workbench.probes.gradients import gradient_ratios
from workbench.probes.preflight import preflight
from workbench.probes.signal import signal_propagation
from workbench.probes.theory import compare_signal, expected_signal

__all__ = ["compare_signal", "expected_signal", "gradient_ratios", "preflight", "signal_propagation"]
