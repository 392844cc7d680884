"""Variance-preserving activations: gamma * g(x) has variance 1 for x ~ N(0, 1).

Source: NFNet paper, section 2 ("scaled activation"), and the table of the authors' code. The table's constants are
Monte-Carlo estimates, which differ from the exact values in the fourth digit. They are kept because the released
weights were trained with them. `gamma(fn)` computes the exact constant of any other activation.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from workbench.errors import WorkbenchError, unknown

if TYPE_CHECKING:
    import pandas as pd

Activation = Callable[[Tensor], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _glu(x: Tensor) -> Tensor:
    return F.glu(x, dim=1)


def _log_softmax(x: Tensor) -> Tensor:
    return F.log_softmax(x, dim=1)


# name: (g, gamma). Channels are dimension 1. GELU is the tanh form, as in the authors' framework.
ACTIVATIONS: dict[str, tuple[Activation, float]] = {
    "identity": (_identity, 1.0),
    "celu": (F.celu, 1.270926833152771),
    "elu": (F.elu, 1.2716004848480225),
    "gelu": (_gelu, 1.7015043497085571),
    "glu": (_glu, 1.8484294414520264),
    "leaky_relu": (F.leaky_relu, 1.70590341091156),
    "log_sigmoid": (F.logsigmoid, 1.9193484783172607),
    "log_softmax": (_log_softmax, 1.0002083778381348),
    "relu": (F.relu, 1.7139588594436646),
    "relu6": (F.relu6, 1.7131484746932983),
    "selu": (F.selu, 1.0008515119552612),
    "sigmoid": (torch.sigmoid, 4.803835391998291),
    "silu": (F.silu, 1.7881293296813965),
    "soft_sign": (F.softsign, 2.338853120803833),
    "softplus": (F.softplus, 1.9203323125839233),
    "tanh": (torch.tanh, 1.5939117670059204),
}


def activation_and_gamma(activation: str | Activation) -> tuple[Activation, float]:
    """Return an activation g and its gamma.

    Args:
        activation: A name of `ACTIVATIONS`, which has the authors' gamma, or an elementwise function, whose gamma is
            computed.

    Raises:
        WorkbenchError: If the name is unknown, or the function has no gamma.
    """
    if callable(activation):
        return activation, gamma(activation)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]


def elementwise_and_gamma(activation: str | Activation) -> tuple[Activation, float]:
    """Return an activation and its gamma for a network that keeps all channels.

    Raises:
        WorkbenchError: For "glu", which halves the channels, and as for `activation_and_gamma`.
    """
    if activation == "glu":
        raise WorkbenchError(
            "`activation` of this network must keep the channels, but 'glu' halves them. Choose another activation, "
            "or an NFNet or NF-ResNet, which takes 'glu'."
        )
    return activation_and_gamma(activation)


def activated_channels(activation: str | Activation, channels: int) -> int:
    """Count the channels after an activation: half for "glu", otherwise all.

    glu gates one half of the channels by the other.

    Raises:
        WorkbenchError: If the activation is "glu" and `channels` is odd.
    """
    if activation != "glu":
        return channels
    if channels % 2:
        raise WorkbenchError(f"Activation 'glu' needs an even number of channels, got {channels}. Change `width`.")
    return channels // 2


def gamma(fn: Activation, tolerance: float = 1e-8) -> float:
    """Compute gamma = 1 / sqrt(Var[fn(z)]) for z ~ N(0, 1).

    Adaptive Gauss-Legendre quadrature in float64 on [-12, 12]. A panel is halved until its value no longer changes.

    Args:
        fn: An elementwise function of a float64 tensor. It may have kinks and jumps.
        tolerance: Accuracy of the moments. A panel is settled when halving changes it by at most a thousandth of this.

    Raises:
        WorkbenchError: If `fn` raises, or its variance is not finite and positive.
    """
    try:
        with torch.no_grad():
            mean, second = gaussian_moments(fn, tolerance)
    except Exception as error:
        raise WorkbenchError(
            f"`gamma` needs an elementwise function of a float64 tensor. {getattr(fn, '__name__', fn)} raised "
            f"{type(error).__name__}: {error}"
        ) from error
    variance = second - mean**2
    if not math.isfinite(variance) or variance <= 1e-12:
        raise WorkbenchError(
            f"`gamma` needs an activation whose variance under N(0, 1) is finite and positive, got {variance}."
        )
    return variance**-0.5


def gamma_table() -> "pd.DataFrame":
    """Compare the authors' constants with the exact ones.

    Returns:
        One row per activation, with the columns activation, authors (their constant, by Monte Carlo), exact (by
        quadrature) and difference (authors / exact - 1). log_softmax has no exact constant, because its constant
        depends on the number of channels.
    """
    rows = []
    for name, (fn, authors) in ACTIVATIONS.items():
        if name == "log_softmax":
            exact = math.nan
        elif name == "glu":  # a sigmoid gate times an independent value of mean 0 and variance 1
            exact = gaussian_moments(torch.sigmoid)[1] ** -0.5
        else:
            exact = gamma(fn)
        rows.append({"activation": name, "authors": authors, "exact": exact, "difference": authors / exact - 1})
    import pandas as pd  # late, because it takes a fifth of torch's time

    return pd.DataFrame(rows)


def gaussian_moments(fn: Activation, tolerance: float = 1e-8) -> tuple[float, float]:
    """Compute (E[fn(z)], E[fn(z)^2]) for z ~ N(0, 1), with the quadrature of `gamma`."""
    nodes, weights = map(torch.tensor, leggauss(8))
    panels = torch.linspace(-12, 12, 49, dtype=torch.float64)
    left, right = panels[:-1], panels[1:]

    def integrate(left: Tensor, right: Tensor) -> Tensor:  # (panels,) -> (panels, 2)
        z = torch.lerp(left[:, None], right[:, None], (nodes + 1) / 2)
        y = fn(z) * torch.ones_like(z)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * weights * (right - left)[:, None] / 2
        return torch.stack([(y * density).sum(1), (y.square() * density).sum(1)], dim=1)

    total = torch.zeros(2, dtype=torch.float64)
    whole = integrate(left, right)
    for _ in range(60):  # a jump needs about 30 halvings until its panel no longer counts
        middle = (left + right) / 2
        halves = integrate(left, middle), integrate(middle, right)
        settled = ((halves[0] + halves[1] - whole).abs() <= tolerance * 1e-3).all(1) | (right - left < 1e-13)
        total += (halves[0] + halves[1])[settled].sum(0)
        again = ~settled
        if not again.any():
            break
        whole = torch.cat([halves[0][again], halves[1][again]])
        left, right = torch.cat([left[again], middle[again]]), torch.cat([middle[again], right[again]])
    else:
        total += whole.sum(0)
    return total[0].item(), total[1].item()
