"""Workbench for networks without normalization.

It holds NFNets, adaptive gradient clipping, and the tools to study them.
"""

__version__ = "0.1.0"
