"""Decoding of image files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from workbench.errors import WorkbenchError


def decode(source: str | Path | bytes, where: str, cure: str = "Remove it or replace it") -> Image.Image:
    """Decode an image as RGB. Rotation by EXIF is not applied, as in the authors' decoder.

    Args:
        source: A path, or the bytes of a file. 16-bit gray is scaled to 8 bits.
        where: The name of the source in error messages.
        cure: What the user can do about an unreadable image, a sentence without a full stop.

    Returns:
        An image of mode RGB.

    Raises:
        WorkbenchError: If the source is not a readable image.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise WorkbenchError(f"Cannot read {where} as an image (unknown format). {cure}.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise WorkbenchError(f"Cannot read {where} as an image ({error}). {cure}.") from error
