"""The authors' RandAugment on PIL images: each layer applies one of sixteen operations.

Sources: Cubuk et al. 2020. The authors' code for the operations and the meaning of a level: 10 is the full scale.
NFNets use 4 layers at level 5 (F0), 10 (F1, F2) and 15 (F3 and larger). At 15 solarize does nothing and posterize keeps
6 bits.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageOps

from workbench.errors import WorkbenchError

GRAY = (128, 128, 128)  # fills the area outside the image
SCALE = 10
LAYERS = 4


def rand_augment(image: Image.Image, level: float, rng: np.random.Generator, layers: int = LAYERS) -> Image.Image:
    """Change an RGB image by `layers` random operations.

    Args:
        image: An image of mode RGB.
        level: Strength of the operations, from 0 to 30. 10 is the full scale, and the authors use up to 15.
        rng: The generator of all random draws.
        layers: The number of operations.

    Returns:
        A new image of the same size.

    Raises:
        WorkbenchError: If `level` or `layers` is out of range.
    """
    if not 0 <= level <= 30 or layers < 0:
        raise WorkbenchError(
            f"`level` must be from 0 to 30 and `layers` at least 0, got {level} and {layers}. "
            "The authors use levels 5 to 15 and 4 layers."
        )
    for _ in range(layers):
        operation = list(OPERATIONS.values())[rng.integers(len(OPERATIONS))]
        image = operation(image, level / SCALE, rng)
    return image


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST, fillcolor=GRAY)


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _rotate(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    return image.rotate(_sign(rng) * 30 * share, Image.Resampling.NEAREST, fillcolor=GRAY)


def _posterize(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    bits = int(4 * share)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    return ImageOps.solarize(image, int(256 * share))


def _solarize_add(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    added = int(110 * share)
    return image.point([min(255, v + added) if v < 128 else v for v in range(256)] * 3)


def _enhance(enhancer: type) -> Callable:
    return lambda image, share, rng: enhancer(image).enhance(1.8 * share + 0.1)


def _shear_x(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, 1, _sign(rng) * 0.3 * share, 0, 0, 1, 0)


def _shear_y(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, 1, 0, 0, _sign(rng) * 0.3 * share, 1, 0)


def _translate_x(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, 1, 0, _sign(rng) * 100 * share, 0, 1, 0)


def _translate_y(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, _sign(rng) * 100 * share)


def _cutout(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """Draw a gray square of side 2 * int(40 * share) around a uniform centre."""
    pad = int(40 * share)
    x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
    image = image.copy()
    if pad:
        box = (max(0, x - pad), max(0, y - pad), min(image.width, x + pad) - 1, min(image.height, y + pad) - 1)
        if box[0] <= box[2] and box[1] <= box[3]:
            ImageDraw.Draw(image).rectangle(box, fill=GRAY)
    return image


OPERATIONS: dict[str, Callable[[Image.Image, float, np.random.Generator], Image.Image]] = {
    "AutoContrast": lambda image, share, rng: ImageOps.autocontrast(image),
    "Equalize": lambda image, share, rng: ImageOps.equalize(image),
    "Invert": lambda image, share, rng: ImageChops.invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Cutout": _cutout,
    "SolarizeAdd": _solarize_add,
}
