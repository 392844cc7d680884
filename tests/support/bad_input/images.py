"""Folders of images."""

import shutil
import struct
import zlib

import numpy as np
from PIL import Image

from support.bad_input import cases


def write(folder):
    """Write folders of two classes in which a picture cannot be used, or that have no pictures."""
    good = (folder / "good" / "a" / "0.png").read_bytes()
    png = b"\x89PNG\r\n\x1a\n"

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    text_bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**26))
    end = chunk(b"IDAT", zlib.compress(bytes(12 * 37))) + chunk(b"IEND", b"")
    small = struct.pack(">IIBBBBB", 12, 12, 8, 2, 0, 0, 0)
    dds = b"DDS " + struct.pack("<7I", 124, 0x1007, 12, 12, 0, 0, 0) + bytes(44)
    dds += struct.pack("<8I", 32, 4, 0x31313131, 0, 0, 0, 0, 0) + bytes(20)
    pictures = {
        "bomb": png + chunk(b"IHDR", header) + end,
        "text_bomb": png + chunk(b"IHDR", small) + text_bomb + end,
        "dds": dds,
        "cut": good[: len(good) // 2],
        "nothing": b"",
        "words": b"no picture",
        "header": b"\x89PNG\r\n\x1a\n and then nothing",
    }
    for name, data in pictures.items():
        shutil.copytree(folder / "good", folder / f"{name}_image")
        (folder / f"{name}_image" / "a" / "0.png").write_bytes(data)
    (folder / "no_val" / "val").mkdir()
    for name in ("a", "b"):
        (folder / "bare_classes" / name).mkdir(parents=True)
        (folder / "tiny" / name).mkdir(parents=True)
        shutil.copy(folder / "good" / name / "0.png", folder / "tiny" / name)
    shutil.copytree(folder / "good", folder / "sizes")
    Image.fromarray(np.zeros((20, 16, 3), np.uint8)).save(folder / "sizes" / "a" / "0.png")


IMPOSSIBLE = {"too deep": "images nest nothing"}
TRAIN = "train -p steps=1 -p data={bad}/"


def _picture(*names):
    return [(f"{TRAIN}{name}_image -p image_size=12", [f"{name}_image/a/0.png"]) for name in names]


CASES = [
    *cases("missing", (f"{TRAIN}nowhere", ["{bad}/nowhere"]), (f"{TRAIN}no_val", ["no_val/val", "a, b"])),
    *cases(
        "empty",
        (f"{TRAIN}empty", ["{bad}/empty", "0"]),
        (f"{TRAIN}bare_classes", ["{bad}/bare_classes", "0"]),
        (f"{TRAIN}no_class", ["{bad}/no_class", "0"]),
        *_picture("nothing"),
    ),
    *cases(
        "wrong type",
        (f"{TRAIN}good.parquet", ["data", "good.parquet"]),
        (f"{TRAIN}file", ["data", "{bad}/file"]),
        *_picture("words", "dds"),
    ),
    *cases(
        "wrong value",
        (f"{TRAIN}one_class", ["{bad}/one_class", "1"]),
        (f"{TRAIN}tiny", ["{bad}/tiny", "val"]),
        (f"{TRAIN}sizes", ["image_size", "(16, 20)"]),
        (f"{TRAIN}good -p image_size=-3", ["image_size", "-3"]),
    ),
    *cases("too large", *_picture("bomb", "text_bomb"), (f"{TRAIN}{'n' * 300}", ["{bad}/" + "n" * 300])),
    *cases(
        "damaged",
        *_picture("cut"),
        (f"{TRAIN}header_image", ["header_image/a/0.png", "unreadable", "skip"]),
        ("check nf_resnet_tiny --data {bad}/header_image", ["header_image/a/0.png"]),
    ),
    *cases("unreadable", *_picture("loop", "dangling")),
]
