"""The networks. Needs torch only."""

from workbench.models.once import standardized_once
from workbench.models.recompute import recomputed_activations
from workbench.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models", "recomputed_activations", "standardized_once"]
