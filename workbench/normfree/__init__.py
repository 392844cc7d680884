"""Removal of BatchNorm from any network: `normfree(model)`.

The files of this package:

    convert.py              the conversion
    shadows.py              statistics of channels, carried through a network as it runs
    survey.py               finds convolutions, norms and block ends in that way
    surgery.py              replaces leaf modules
    standardized_convs.py   the modules that replace them
    fused_norms.py          what norms do besides normalising
    operations.py           compares which operations run before and after
"""

from workbench.normfree.convert import NormFree, example_input, normfree

__all__ = ["NormFree", "example_input", "normfree"]
