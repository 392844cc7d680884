"""Sharpness: the largest eigenvalues of the Hessian of a loss over the parameters, and the learning rate they allow.

Source: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability": training
with the full batch drives learning rate times sharpness up to `stability_limit`, and holds it there. Eigenvalues by
Lanczos (ARPACK) from products of the Hessian with vectors, which are the gradient differentiated again.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.errors import WorkbenchError
from workbench.probes.shared import checked_loss, left_unchanged, measured_parameters

Product = Callable[[np.ndarray], np.ndarray]  # a vector (n,) to the Hessian times it, (n,)


def hessian_eigenvalues(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    k: int = 1,
    *,
    tol: float = 1e-2,
    max_products: int = 200,
    seed: int = 0,
) -> list[float]:
    """The `k` largest eigenvalues (by value, not magnitude), largest first, over the parameters that need a gradient.

        sharpness = hessian_eigenvalues(model, lambda m: F.cross_entropy(m(x), y))[0]

    Args: `loss` takes the model, in the mode it is in, and returns a scalar; it is called once, so that all products
    see one draw of dropout and the statistics of one batch. `tol` bounds the residual of each value s with its vector:
    |H v - s v| <= tol * |s|, which leaves far less error in a value that stands apart; of several that are closer than
    tol one may be passed over, and an exact 0 may be. `seed` draws the first Lanczos vector.
    Cost: about 20 products for one value, each of two or three backward passes; memory for the graph of one gradient
    and for max(20, 2 k + 1) vectors of float64, each as long as all parameters. Needs scipy.
    The model is left as found: mode, gradients, buffers and random state.
    Raises: WorkbenchError where `max_products` do not reach `tol` (there is no value then that could be trusted), for
    a loss that is not a finite scalar of the parameters, and for weights in half precision.
    """
    params = measured_parameters(model, "curvature")
    n = sum(p.numel() for p in params)
    if not 1 <= k <= n:
        raise WorkbenchError(f"`k` (={k}) must be from 1 to the number of weights that require a gradient (={n}).")
    if not tol > 0 or max_products < 1:
        raise WorkbenchError(f"`tol` (={tol}) must be above 0 and `max_products` (={max_products}) at least 1.")
    coarse = {p.dtype for p in params} - {torch.float32, torch.float64}
    if coarse:
        raise WorkbenchError(f"curvature needs weights in float32 or float64, not {coarse.pop()}: take model.float().")
    # of the attention kernels only the plain one can be differentiated twice
    with left_unchanged(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        value = checked_loss(loss(model), "give a function of the model, lambda m: F.cross_entropy(m(x), y)")
        grads = torch.autograd.grad(value, params, create_graph=True, materialize_grads=True)
        return _largest(_product(params, grads), n, k, tol, max_products, seed)


def stability_limit(momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """What learning rate times sharpness must stay below, for gradient descent on a quadratic to converge.

    As torch.optim.SGD steps. Along an eigenvector of value s, with a = lr * s, a step maps (weight, velocity) linearly.
    Both eigenvalues of that map are inside the unit circle where |trace| < 1 + det and det < 1:

        heavy ball:  trace = 1 + m - a,          det = m,            so  a < 2 (1 + m)
        Nesterov:    trace = (1 + m) (1 - a),    det = m (1 - a),    so  a < 2 (1 + m) / (1 + 2 m)

    Without momentum it is 2. SGD's weight decay, which is not in the loss, adds to s.
    Source: Cohen et al. 2021. Raises: WorkbenchError for a momentum outside [0, 1).
    """
    if not 0 <= momentum < 1:
        raise WorkbenchError(f"`momentum` (={momentum}) must be at least 0 and below 1.")
    return 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)


def _product(params: list[nn.Parameter], grads: tuple[Tensor, ...]) -> Product:
    """The Hessian times a vector, from gradients g with their graph: H v is the gradient of g . v."""
    sizes = [p.numel() for p in params]
    curved = [i for i, g in enumerate(grads) if g.requires_grad]  # in the others the loss is linear

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
                f"{max_products} products did not bring k={k} eigenvalues to `tol` (={tol}): "
                "raise `max_products` or `tol`."
            )
        products += 1
        out = product(vector)
        if not np.isfinite(out).all():
            raise WorkbenchError("the loss has no finite second derivative here: look for a root or a norm of 0.")
        return out

    basis = max(20, 2 * k + 1)
    if n <= basis:
        values = np.linalg.eigvalsh(np.stack([counted(unit) for unit in np.eye(n)]))
        return values[::-1][:k].tolist()
    start = np.random.default_rng(seed).standard_normal(n)
    if not counted(start).any():  # ARPACK refuses it; a random vector is in the null space only where all are
        return [0.0] * k
    operator = LinearOperator((n, n), matvec=counted, dtype=np.float64)
    rule = {"ncv": basis, "tol": tol, "maxiter": max_products}
    return sorted(eigsh(operator, k, which="LA", v0=start, return_eigenvectors=False, **rule).tolist(), reverse=True)
