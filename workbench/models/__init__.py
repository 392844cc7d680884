"""The networks; torch only."""

from workbench.models.zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
