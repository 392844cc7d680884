"""Images in memory, and augmentation on batches."""

from workbench.data.datasets import Dataset, Split, canonical_name, dataset_digest, image_folder, load_dataset

__all__ = ["Dataset", "Split", "canonical_name", "dataset_digest", "image_folder", "load_dataset"]
