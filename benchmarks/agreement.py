"""Our copies of timm's nets beside timm itself, in float64: logits, features and every gradient.

The `dm_nfnet_*` nets, which are meant to be the authors', are compared twice: as timm has them, where the distance is
printed and not judged (timm adds an eps to the variance where the authors have a floor, and takes GELU by erf), and
made the authors' function.
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


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def compare(ours: str, theirs: str, size: tuple[int, int], made_exact: bool = False) -> dict[str, float]:
    """Relative distances between the two, with the same weights, moved off their special starting values."""
    torch.manual_seed(0)
    them = peer.timm().create_model(theirs).double()
    with torch.no_grad():
        for name, p in them.named_parameters():
            if name.endswith(("gain", "bias")):
                p.add_(0.3 * torch.randn_like(p))
    if made_exact:
        peer.exact_nfnet(them)
    us = create_model(ours, stochastic_depth=0.0, dropout=0.0).double()
    load_strictly(us, from_timm(them.state_dict()))

    x, y = torch.randn(2, 3, *size, dtype=torch.float64), torch.tensor([3, 14])
    a, b = us(x), them(x)
    F.cross_entropy(a, y).backward()
    F.cross_entropy(b, y).backward()
    gradients = from_timm({name: p.grad for name, p in them.named_parameters()})
    return {
        "logits": relative(a, b),
        "features": relative(us.forward_features(x), them.forward_head(them.forward_features(x), pre_logits=True)),
        "worst gradient": max(relative(p.grad, gradients[name]) for name, p in us.named_parameters()),
    }


def main() -> int:
    timm = peer.timm()
    if timm is None:
        print("timm is not installed: pip install timm==1.0.31")
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
                print(f"{ours:18} {theirs:14} {size[0]}x{size[1]}  {distances}{'' if judged else '  (as timm has it)'}")
    print("all below" if not bad else f"{bad} above", LIMIT)
    return bad


if __name__ == "__main__":
    sys.exit(main())
