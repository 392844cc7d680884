"""Sharpness of a loss, and the learning rate that it allows.

Sharpness is the largest eigenvalue of the Hessian of the loss over the parameters. Training with the full batch drives
learning rate times sharpness up to `stability_limit`, and holds it there. Source: Cohen et al. 2021, "Gradient Descent
on Neural Networks Typically Occurs at the Edge of Stability".

The eigenvalues come from Lanczos iteration (ARPACK). It needs only products of the Hessian with vectors, which are
derivatives of the gradient.
"""

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.errors import WorkbenchError
from workbench.probes.shared import checked_loss, left_unchanged, measured_parameters

Product = Callable[[np.ndarray], np.ndarray]  # from a vector (n,) to the Hessian times the vector, (n,)


def hessian_eigenvalues(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    k: int = 1,
    *,
    tol: float = 1e-2,
    max_products: int = 200,
    seed: int = 0,
) -> list[float]:
    """Compute the largest eigenvalues of the Hessian of a loss, by value and not by magnitude.

    Only parameters that require a gradient count. Mode, gradients, buffers and random state stay unchanged. One
    eigenvalue takes about 20 products of the Hessian with a vector, each of two or three backward passes. Memory holds
    the graph of one gradient and max(20, 2 k + 1) float64 vectors, each as long as all parameters. Needs scipy.

    Example::

        sharpness = hessian_eigenvalues(model, lambda m: F.cross_entropy(m(x), y))[0]

    Args:
        model: The model, in the mode to measure.
        loss: Takes the model and returns a scalar. It is called once, so all products see the same dropout and the
            statistics of one batch.
        k: Number of eigenvalues.
        tol: Bound on the residual of each eigenvalue s with its vector v: |H v - s v| <= tol * |s|. A well separated
            eigenvalue has a much smaller error. The result can miss an exact 0, and one of several eigenvalues that
            are closer than `tol`.
        max_products: Largest number of products of the Hessian with a vector.
        seed: Seed of the first Lanczos vector.

    Returns:
        `k` eigenvalues, largest first.

    Raises:
        WorkbenchError: If an argument is out of range, `max_products` do not reach `tol`, the loss is not a finite
            scalar of the parameters, or the weights are in half precision.
    """
    params = measured_parameters(model, "curvature")
    n = sum(p.numel() for p in params)
    if not 1 <= k <= n:
        raise WorkbenchError(f"`k` must be from 1 to {n}, the number of weights that require a gradient, got {k}.")
    if not tol > 0 or max_products < 1:
        raise WorkbenchError(
            f"`tol` must be above 0, got {tol}, and `max_products` must be at least 1, got {max_products}."
        )
    coarse = {p.dtype for p in params} - {torch.float32, torch.float64}
    if coarse:
        raise WorkbenchError(f"curvature needs weights in float32 or float64, got {coarse.pop()}. Use model.float().")
    # of the attention kernels, only the plain one can be differentiated twice
    with left_unchanged(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        value = checked_loss(loss(model), "Give a function of the model, such as lambda m: F.cross_entropy(m(x), y)")
        grads = torch.autograd.grad(value, params, create_graph=True, materialize_grads=True)
        return _largest(_product(params, grads), n, k, tol, max_products, seed)


def stability_limit(momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the upper bound of learning rate times sharpness for SGD.

    Below the bound, SGD on a quadratic converges. Source: Cohen et al. 2021.

    Consider a step of torch.optim.SGD along an eigenvector of value s, with a = lr * s and momentum m. It maps
    (weight, velocity) linearly. Both eigenvalues of that map are inside the unit circle if |trace| < 1 + det and
    det < 1::

        heavy ball:  trace = 1 + m - a,          det = m,            so  a < 2 (1 + m)
        Nesterov:    trace = (1 + m) (1 - a),    det = m (1 - a),    so  a < 2 (1 + m) / (1 + 2 m)

    Without momentum the bound is 2. SGD's weight decay is not part of the loss, so it adds to s.

    Args:
        momentum: SGD's momentum, from 0 to below 1.
        nesterov: Whether SGD uses Nesterov momentum.

    Returns:
        The bound.

    Raises:
        WorkbenchError: If `momentum` is out of range.
    """
    if not 0 <= momentum < 1:
        raise WorkbenchError(f"`momentum` must be at least 0 and below 1, got {momentum}.")
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


def _product(params: list[nn.Parameter], grads: tuple[Tensor, ...]) -> Product:
    """Make the product H v, which is the gradient of g . v for gradients g."""
    sizes = [p.numel() for p in params]
    curved = [i for i, g in enumerate(grads) if g.requires_grad]  # the loss is linear in the others

    def product(vector: np.ndarray) -> np.ndarray:
        if not curved:
            return np.zeros_like(vector)
        parts = [v.view_as(p).to(p) for v, p in zip(torch.from_numpy(vector).split(sizes), params, strict=True)]
        products = torch.autograd.grad(
            [grads[i] for i in curved], params, [parts[i] for i in curved], retain_graph=True, materialize_grads=True
        )
        return torch.cat([h.flatten().double().cpu() for h in products]).numpy()

    return product


def _largest(product: Product, n: int, k: int, tol: float, max_products: int, seed: int) -> list[float]:
    from scipy.sparse.linalg import LinearOperator, eigsh

    products = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        if products == max_products:
            raise WorkbenchError(
                f"{max_products} products of the Hessian do not bring k={k} eigenvalues to a `tol` of {tol}. "
                "Increase `max_products` or `tol`."
            )
        products += 1
        out = product(vector)
        if not np.isfinite(out).all():
            raise WorkbenchError("the second derivative of the loss is not finite. Look for a root or a norm of 0.")
        return out

    basis = max(20, 2 * k + 1)
    if n <= basis:
        values = np.linalg.eigvalsh(np.stack([counted(unit) for unit in np.eye(n)]))
        return values[::-1][:k].tolist()
    start = np.random.default_rng(seed).standard_normal(n)
    if not counted(start).any():  # H is 0: it maps a random vector to 0. ARPACK refuses such a matrix
        return [0.0] * k
    # the stub describes LinearOperator's subclasses, not the class itself
    operator = LinearOperator((n, n), matvec=counted, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    rule = {"ncv": basis, "tol": tol, "maxiter": max_products}
    values = eigsh(operator, k, which="LA", v0=start, return_eigenvectors=False, **rule)
    return sorted(cast(np.ndarray, values).tolist(), reverse=True)
