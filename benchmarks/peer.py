"""Import timm, the peer, and change its networks to the function of ours.

timm needs torchvision only to load images. If torchvision cannot be imported, because its wheel needs a CUDA build of
torch, an empty module replaces it.
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
    """Import timm. Return None if it is not installed."""
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
    """Change timm's `dm_nfnet_*` in place to the authors' function.

    It computes GELU by tanh, and its eps is negligible.
    """
    for module in model.modules():
        if type(module).__name__ == "GammaAct":
            module.act_fn = _tanh_gelu
        if hasattr(module, "gain") and hasattr(module, "eps"):
            module.eps = 1e-30
    return model


def _tanh_gelu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


class _Anything(type):
    """Metaclass whose classes have every attribute."""

    def __getattr__(cls, name):
        return _anything(name)


def _anything(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Importer that provides every module of torchvision, with every name in it."""

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
