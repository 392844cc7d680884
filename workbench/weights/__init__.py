"""Reads, writes, folds and exports weights: released files, timm's and our own."""

from workbench.weights.checkpoints import convert, load_checkpoint, save_checkpoint
from workbench.weights.export import export_onnx, export_pt2, fold
from workbench.weights.haiku import from_haiku, to_haiku
from workbench.weights.released import RELEASED
from workbench.weights.timm_layout import to_timm

__all__ = [
    "RELEASED",
    "convert",
    "export_onnx",
    "export_pt2",
    "fold",
    "from_haiku",
    "load_checkpoint",
    "save_checkpoint",
    "to_haiku",
    "to_timm",
]
