"""BatchNorm out of anybody's network: `normfree(model)`.

convert.py is the whole of it; shadows.py carries what channels look like through a network that runs, survey.py finds
its convolutions, norms and block ends that way, surgery.py replaces leaf modules, and standardized_convs.py has what
takes their places.
"""

from workbench.normfree.convert import NormFree, example_input, normfree

__all__ = ["NormFree", "example_input", "normfree"]
