"""Our copies of timm's nets beside timm itself, in float64: logits, features and every gradient.

Run by hand, where timm 1.0.31 is installed:  python tests/compare_with_timm.py
Not collected by pytest: timm is no dependency. Where torchvision cannot be imported (it needs a CUDA build of torch), an
empty stand-in takes its place, for timm needs it only to load images. For the `dm_nfnet_*` nets, which are meant to be
the authors', the distance is printed and not judged: timm adds eps 1e-5 to the variance where the authors have a floor.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import torch
import torch.nn.functional as F

from workbench.models import create_model
from workbench.models.weights.strict import load_strictly
from workbench.models.weights.timm_layout import from_timm

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


class _Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def _anything(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _EmptyTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None
        )

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _anything
        return module

    def exec_module(self, module):
        pass


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def compare(ours: str, theirs: str, size: tuple[int, int]) -> dict[str, float]:
    """Relative distances between the two, with the same weights, moved off their special starting values."""
    import timm

    torch.manual_seed(0)
    them = timm.create_model(theirs).double()
    with torch.no_grad():
        for name, p in them.named_parameters():
            if name.endswith(("gain", "bias")):
                p.add_(0.3 * torch.randn_like(p))
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
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.insert(0, _EmptyTorchvision())
    import timm

    print(f"timm {timm.__version__}, torch {torch.__version__}")
    bad = 0
    for ours, theirs in PAIRS.items():
        for size in ((64, 64), (75, 83)):
            found = compare(ours, theirs, size)
            judged = not theirs.startswith("dm_")
            bad += judged and max(found.values()) > LIMIT
            print(f"{ours:18} {theirs:14} {size[0]}x{size[1]}  " + "  ".join(f"{k} {v:.1e}" for k, v in found.items()))
    print("all below" if not bad else f"{bad} above", LIMIT)
    return bad


if __name__ == "__main__":
    sys.exit(main())
