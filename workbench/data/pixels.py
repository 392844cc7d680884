"""Pixels of test images: one function for training and for evaluation.

`Preprocess` travels with the weights. An evaluation thus gives a network the pixels that its training tested it on.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from workbench.data.augment import normalize
from workbench.data.decode import MODES
from workbench.data.preprocess import MEAN_RGB, STD_RGB, STYLES
from workbench.errors import WorkbenchError, shown, unknown

FIT = "fit"
ALL_STYLES = (FIT, *STYLES)
LARGEST = 2**14  # pixels per side
IMAGENET = tuple((MEAN_RGB / 255).tolist()), tuple((STD_RGB / 255).tolist())  # mean and standard deviation


def fit(image: Image.Image, height: int, width: int) -> Tensor:
    """Scale an image until it covers the size, then cut out the centre.

    An image of this size keeps its pixels.

    Returns:
        (C, height, width), uint8.
    """
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image).reshape(height, width, -1)).permute(2, 0, 1)


@dataclass(frozen=True)
class Preprocess:
    """How the test images of a network are made, and which classes its outputs stand for.

    Attributes:
        style: "fit" as for images in memory, or one of `preprocess.STYLES`.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        mean: One number per channel, in units of 0 to 1.
        std: One number per channel, in units of 0 to 1.
        classes: Names of the outputs, in their order. Empty: not known.
        trained_on: Identifies the images of the training, see `ImageFolder.listing`. Empty: not known.
    """

    style: str
    height: int
    width: int
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    classes: tuple[str, ...] = ()
    trained_on: str = ""

    def __post_init__(self):
        if self.style not in ALL_STYLES:
            raise unknown("style of test images", self.style, ALL_STYLES)
        if not all(1 <= side <= LARGEST for side in (self.height, self.width)):
            raise WorkbenchError(
                f"`image_size` must be at least 1 and at most {LARGEST} pixels, got {self.height}x{self.width}."
            )
        if self.style != FIT and self.height != self.width:
            raise WorkbenchError(
                f"Test images of the style '{self.style}' must be squares, got {self.height}x{self.width}. "
                f"Use the style '{FIT}'."
            )

    @property
    def channels(self) -> int:
        """The number of channels, 1 for gray and 3 for colour."""
        return len(self.mean)

    def made(self, image: Image.Image) -> Tensor:
        """Make the test image of a decoded image.

        Returns:
            (C, H, W): uint8 in the style "fit", else float32, normalised. `batch` normalises what is uint8.
        """
        if image.mode != MODES[self.channels]:
            image = image.convert(MODES[self.channels])
        if self.style == FIT:
            return fit(image, self.height, self.width).contiguous()
        pixels = STYLES[self.style](image, self.height)[..., : self.channels]
        mean, std = (np.array(moment, np.float32) * 255 for moment in (self.mean, self.std))
        return torch.from_numpy(np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)))

    def batch(self, images: Tensor) -> Tensor:
        """Return (N, C, H, W) float32, normalised. Normalises uint8 images on their device, as a training does."""
        if images.dtype != torch.uint8:
            return images
        mean, std = (
            torch.tensor(moment, dtype=torch.float32, device=images.device) for moment in (self.mean, self.std)
        )
        return normalize(images, mean, std)

    def resized(self, image_size: int | None, style: str | None) -> "Preprocess":
        """Return it with another size or style, where one is given."""
        side = {} if image_size is None else {"height": image_size, "width": image_size}
        return dataclasses.replace(self, **side, **({} if style is None else {"style": style}))

    def to_dict(self) -> dict:
        """Return it as plain values, for a file of weights."""
        values = dataclasses.asdict(self)
        height, width = values.pop("height"), values.pop("width")
        return {**values, "image_size": height if height == width else [height, width]}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "Preprocess":
        """Read what `to_dict` wrote.

        Args:
            values: The values. Files of earlier versions have no classes.
            where: Where they come from, for error messages.

        Raises:
            WorkbenchError: If a value is missing, or of another type or size.
        """
        values = values if isinstance(values, dict) else {}
        size = values.get("image_size")
        sides = size if isinstance(size, list) else [size, size]
        mean, std = values.get("mean") or list(IMAGENET[0]), values.get("std") or list(IMAGENET[1])
        classes, trained_on = values.get("classes", []), values.get("trained_on", "")
        style = values.get("style")
        rules = {
            "style": isinstance(style, str) and style in ALL_STYLES,
            "image_size": _all(sides, lambda n: type(n) is int and 1 <= n <= LARGEST) and len(sides) == 2,
            "std": _all(std, lambda x: _is_number(x) and x > 0),
            "mean": _all(mean, _is_number) and len(mean) in MODES and _all(std, _is_number) and len(mean) == len(std),
            "classes": _all(classes, lambda name: isinstance(name, str)) and len(set(classes)) == len(classes),
            "trained_on": isinstance(trained_on, str),
        }
        if wrong := [name for name, right in rules.items() if not right]:
            raise WorkbenchError(
                f"{where} does not say how its images are made: `{wrong[0]}` is {shown(values.get(wrong[0]), 60)}. "
                "Save the weights again."
            )
        return cls(style, *sides, tuple(mean), tuple(std), tuple(classes), trained_on)


def _all(values: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and all(map(right, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e6
