"""What workbench.models.checkpoints is made of: layouts, safe reading, strict loading, fetching, whole writing."""
