"""From a file's bytes to a picture."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from workbench.errors import WorkbenchError


def decode(source: str | Path | bytes, where: str, cure: str = "remove it or replace it") -> Image.Image:
    """The picture as RGB; 16-bit gray is scaled to 8. Rotation by EXIF is not applied, as in the authors' decoder.

    Raises: WorkbenchError naming a file that is none, and the `cure`.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise WorkbenchError(f"cannot read {where} as an image (unknown format): {cure}.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise WorkbenchError(f"cannot read {where} as an image ({error}): {cure}.") from error
