"""The first images of a data set, one column per class."""

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

if TYPE_CHECKING:  # the other figures need no torch
    from workbench.data import Dataset

CLASSES, EACH = 10, 3  # at most ten classes, three images each


def examples_figure(data: "Dataset") -> Figure:
    """Draw the first training images of the first classes, before normalisation."""
    shown = min(CLASSES, len(data.classes))
    figure, axes = plt.subplots(
        EACH, shown, figsize=(1.1 * shown + 0.3, 1.1 * EACH + 0.4), layout="constrained", squeeze=False
    )
    for column in range(shown):
        images = data.train.images[data.train.labels == column][:EACH]
        for ax in axes[:, column]:
            ax.set_axis_off()
        for ax, image in zip(axes[:, column], images, strict=False):
            ax.imshow(image.permute(1, 2, 0).squeeze(2), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(data.classes[column][:12], fontsize="small")
    return figure
