"""Compare this library's copies of timm's networks with timm, in float64.

Logits, features and every gradient are compared. The `dm_nfnet_*` networks are copies of the authors' networks, but
timm computes them slightly differently. It adds an eps to the variance where the authors use a floor, and computes GELU
by erf. So they are compared twice:

- as in timm, where the distances are printed but not judged;
- changed to the authors' function, where they are judged.
"""

import sys

import peer
import torch
import torch.nn.functional as F

from workbench.models import create_model
from workbench.weights.strict import load_strictly
from workbench.weights.timm_layout import from_timm

PAIRS = {
    "timm_nf_resnet50": "nf_resnet50",
    "timm_nf_regnet_b1": "nf_regnet_b1",
    "timm_nfnet_l0": "nfnet_l0",
    "timm_eca_nfnet_l0": "eca_nfnet_l0",
    "timm_eca_nfnet_l1": "eca_nfnet_l1",
    "timm_eca_nfnet_l2": "eca_nfnet_l2",
    "nfnet_f0": "dm_nfnet_f0",
}
LIMIT = 1e-9


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return |a - b| / |b|."""
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def compare(ours: str, theirs: str, size: tuple[int, int], made_exact: bool = False) -> dict[str, float]:
    """Compute relative distances between two networks with the same weights.

    Gains and biases get random values, because their starting values are special.

    Args:
        ours: Name of this library's network.
        theirs: Name of timm's network.
        size: Height and width of the images, pixels.
        made_exact: Whether to change timm's network to the authors' function.

    Returns:
        The distances of the logits, of the features, and of the gradient that differs most.
    """
    torch.manual_seed(0)
    timm_model = peer.timm().create_model(theirs).double()
    with torch.no_grad():
        for name, p in timm_model.named_parameters():
            if name.endswith(("gain", "bias")):
                p.add_(0.3 * torch.randn_like(p))
    if made_exact:
        peer.exact_nfnet(timm_model)
    model = create_model(ours, stochastic_depth=0.0, dropout=0.0).double()
    load_strictly(model, from_timm(timm_model.state_dict()))

    x, y = torch.randn(2, 3, *size, dtype=torch.float64), torch.tensor([3, 14])
    a, b = model(x), timm_model(x)
    F.cross_entropy(a, y).backward()
    F.cross_entropy(b, y).backward()
    gradients = from_timm({name: p.grad for name, p in timm_model.named_parameters()})
    timm_features = timm_model.forward_head(timm_model.forward_features(x), pre_logits=True)
    return {
        "logits": relative(a, b),
        "features": relative(model.forward_features(x), timm_features),
        "worst gradient": max(relative(p.grad, gradients[name]) for name, p in model.named_parameters()),
    }


def main() -> int:
    """Compare all pairs and return the number of comparisons that fail."""
    timm = peer.timm()
    if timm is None:
        print("agreement needs timm, which is not installed. Run `pip install timm==1.0.31`.")
        return 2
    print(f"timm {timm.__version__}, torch {torch.__version__}")
    bad = 0
    for ours, theirs in PAIRS.items():
        for size in ((64, 64), (75, 83)):
            for made_exact in (False, True) if theirs.startswith("dm_") else (False,):
                gaps = compare(ours, theirs, size, made_exact)
                judged = made_exact or not theirs.startswith("dm_")
                bad += judged and max(gaps.values()) > LIMIT
                distances = "  ".join(f"{k} {v:.1e}" for k, v in gaps.items())
                note = "" if judged else "  (as in timm, not judged)"
                print(f"{ours:18} {theirs:14} {size[0]}x{size[1]}  {distances}{note}")
    print("all below" if not bad else f"{bad} above", LIMIT)
    return bad


if __name__ == "__main__":
    sys.exit(main())
