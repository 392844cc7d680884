"""timm, the peer: imported where it is installed, and told to compute what we compute.

Where torchvision cannot be imported (its wheel needs a CUDA build of torch) an empty stand-in takes its place, for timm
needs it only to load images.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import torch
import torch.nn.functional as F
from torch import nn


def timm():
    """The package, or None where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        sys.meta_path.insert(0, _StandIn())
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    import timm
    import timm.utils

    return timm


def exact_nfnet(model: nn.Module) -> nn.Module:
    """timm's `dm_nfnet_*` made the authors' function: GELU by tanh, and no eps to speak of."""
    for module in model.modules():
        if type(module).__name__ == "GammaAct":
            module.act_fn = _tanh_gelu
        if hasattr(module, "gain") and hasattr(module, "eps"):
            module.eps = 1e-30
    return model


def _tanh_gelu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


class _Anything(type):
    """A class with any attribute."""

    def __getattr__(cls, name):
        return _anything(name)


def _anything(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module of torchvision, with any name in it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = _anything
        return module

    def exec_module(self, module):
        pass
