"""Images in memory, and augmentation on batches."""

from workbench.data.datasets import Dataset, Split, canonical_name, dataset_digest, load_dataset

__all__ = ["Dataset", "Split", "canonical_name", "dataset_digest", "load_dataset"]
