"""Measurements of a network: signal propagation, its theory, gradient ratios, curvature, gradient noise."""

from workbench.probes.curvature import hessian_eigenvalues, stability_limit
from workbench.probes.gradients import gradient_ratios
from workbench.probes.noise import NoiseScale, gradient_noise_scale
from workbench.probes.signal import signal_propagation
from workbench.probes.theory import expected_signal

__all__ = [
    "NoiseScale",
    "expected_signal",
    "gradient_noise_scale",
    "gradient_ratios",
    "hessian_eigenvalues",
    "signal_propagation",
    "stability_limit",
]
