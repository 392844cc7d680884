"""Files that Pillow refuses in many ways, and rows of parquet that no training can use."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(pixels: np.ndarray | None = None) -> bytes:
    return encoded(Image.fromarray(pixels if pixels is not None else np.zeros((8, 8, 3), np.uint8)))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png() -> bytes:
    """Claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")


def _text_bomb() -> bytes:
    """A compressed text of 100 MB between header and pixels."""
    good = png()
    text = _chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(100 * 2**20)))
    return good[:33] + text + good[33:]


def _dds(bits: int = 7) -> bytes:
    """A DirectDraw surface whose pixel format no decoder knows."""
    pixel_format = struct.pack("<II4sIIIII", 32, 0x4, b"XXXX", bits, 0, 0, 0, 0)
    return b"DDS " + struct.pack("<7I44x", 124, 0x1007, 4, 4, 16, 0, 0) + pixel_format + bytes(20) + bytes(64)


def _sgi() -> bytes:
    """An SGI image of two bytes per channel and five channels."""
    return struct.pack(">HBBHHHH", 474, 0, 2, 3, 4, 4, 5) + bytes(500 + 4 * 4 * 10)


def refused_images() -> dict[str, bytes]:
    """Bytes of images that Pillow refuses, with errors of different types."""
    return {
        "huge": _huge_png(),
        "text_bomb": _text_bomb(),
        "dds": _dds(),
        "sgi": _sgi(),
        "truncated": png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[:900],
        "empty": b"",
        "text": b"no picture",
    }


def cells(n: int = 6, size: tuple[int, int] = (8, 8)) -> list[dict]:
    rng = np.random.default_rng(0)
    return [{"bytes": png(rng.integers(0, 256, (*size, 3), dtype=np.uint8)), "path": None} for _ in range(n)]


def names(*classes, label: str = "label") -> dict:
    return {"huggingface": json.dumps({"info": {"features": {label: {"names": list(classes)}}}})}


def table(n: int = 6, metadata: dict | None = None, **columns) -> pa.Table:
    """A sound table, or one with other columns."""
    made = pa.table({"image": cells(n), "label": [i % 2 for i in range(n)], **columns})
    return made.replace_schema_metadata(metadata)


def odd_tables() -> dict[str, tuple[pa.Table, list[str]]]:
    """Tables that a schema check must refuse, and words of the message."""
    images = [cell["bytes"] for cell in cells()]
    return {
        "null images": (table(image=pa.nulls(6)), ["image", "null"]),
        "numbers as images": (table(image=[1] * 6), ["image", "int64"]),
        "lists as images": (table(image=[[1, 2]] * 6), ["image", "list"]),
        "plain binary": (table(image=images), ["image", "binary", "`bytes`"]),
        "paths as bytes": (table(image=[{"bytes": "/etc/hosts"}] * 6), ["image", "string"]),
        "text labels": (table(label=list("abcdef")), ["label", "string"]),
        "fractions": (table(label=[0.5] * 6), ["label", "double"]),
        "a huge label": (table(label=[0, 1, 10**9, 0, 1, 0]), ["row 2", "1000000000"]),
        "a negative label": (table(label=[0, 1, 0, -1, 1, 0]), ["row 3", "-1"]),
        "a huge unsigned label": (
            table(label=pa.array([0, 1, 2, 3, 4, 2**64 - 1], pa.uint64())),
            ["row 5", str(2**64 - 1)],
        ),
        "a missing label": (table(label=[0, None, 0, 1, 1, 0]), ["row 1", "None"]),
        "no rows": (table().slice(0, 0), ["row", "0"]),
        "beyond the names": (table(metadata=names("only")), ["row 1", "0 to 0"]),
    }


def corrupt_pages(path: Path) -> None:
    """Write a table, then overwrite its data but not its footer."""
    pq.write_table(table(200), path, compression="snappy")
    content = bytearray(path.read_bytes())
    footer = struct.unpack("<I", content[-8:-4])[0]
    content[4 : len(content) - footer - 8] = b"\xff" * (len(content) - footer - 12)
    path.write_bytes(bytes(content))
