"""Measurements of networks.

They are signal propagation and its theory, pre-flight, gradient ratios, curvature and gradient noise.
"""

from workbench.probes.curvature import hessian_eigenvalues, stability_limit
from workbench.probes.gradient_ratio import gradient_ratios
from workbench.probes.noise import NoiseScale, gradient_noise_scale
from workbench.probes.preflight import preflight
from workbench.probes.signal import signal_propagation
from workbench.probes.theory import compare_signal, expected_signal

__all__ = [
    "NoiseScale",
    "compare_signal",
    "expected_signal",
    "gradient_noise_scale",
    "gradient_ratios",
    "hessian_eigenvalues",
    "preflight",
    "signal_propagation",
    "stability_limit",
]
