"""Decoding of image files, the one place where a broken image is found out."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from workbench.errors import WorkbenchError

MODES = {1: "L", 3: "RGB"}  # by number of channels
CURE = "Remove it or replace it"


def decode(source: str | Path | bytes | Image.Image, where: str, cure: str = CURE, channels: int = 3) -> Image.Image:
    """Decode an image. Rotation by EXIF is not applied, as in the authors' decoder.

    Args:
        source: A path, the bytes of a file, or a decoded image. 16-bit gray is scaled to 8 bits.
        where: The name of the source in error messages.
        cure: What the user can do about an unreadable image, a sentence without a full stop.
        channels: 3 for colour, 1 for gray.

    Returns:
        An image of mode RGB or L.

    Raises:
        WorkbenchError: If the source is not a readable image.
    """
    with _one_sentence(where, cure), _opened(source) as image:
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
        image = image.convert(MODES[channels])  # a copy, also if the mode is already right
        if min(image.size) < 1:
            raise ValueError(f"its size is {image.width}x{image.height}")
        return image


def image_size(path: str, cure: str = CURE) -> tuple[int, int]:
    """Read (width, height) off an image file without decoding its pixels.

    Raises:
        WorkbenchError: If the file is not a readable image.
    """
    with _one_sentence(path, cure), Image.open(path) as image:
        return image.size


def _opened(source: str | Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    if source == b"":
        raise ValueError("no image")
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


@contextmanager
def _one_sentence(where: str, cure: str) -> Iterator[None]:
    """Turn every error of Pillow's decoders, which raise whatever a broken file leads them to, into a sentence."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise WorkbenchError(f"Cannot read {where} as an image (unknown format). {cure}.") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(". ") or type(error).__name__
        raise WorkbenchError(f"Cannot read {where} as an image ({reason}). {cure}.") from error
