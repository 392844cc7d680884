"""Files of weights."""

import json
import pickle

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.bad_input import cases

EVIL = "code of the file was executed"


class Evil:
    def __reduce__(self):
        return print, (EVIL,)


def write(folder):
    """Write damaged and hostile files, and weights whose recorded arguments no network can have."""
    whole = (folder / "tiny.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.safetensors").write_bytes(b"")
    (folder / "header.safetensors").write_bytes(b"\xff" * 7 + b"\x7f" + whole[8:])
    (folder / "text.pth").write_text("weights")
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"model": Evil()}, folder / "evil_zip.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({}, folder / "nothing.pth")
    np.savez(folder / "plain.npz", a=np.zeros(3))
    tensors = load_file(folder / "tiny.safetensors")
    with safe_open(folder / "tiny.safetensors", "pt") as file:
        metadata = file.metadata()
    (name,) = [name for name, value in metadata.items() if "nf_resnet_tiny" in value]
    recipe = json.loads(metadata[name])
    recipes = {
        "wide": json.dumps(recipe | {"width": 1e9}),
        "listed": "[1, 2]",
        "named": '"nf_resnet_tiny"',
        "nested": "[" * 100_000,
        "unknown": json.dumps(recipe | {"name": "nfnet_f99"}),
    }
    for each, text in recipes.items():
        save_file(tensors, folder / f"{each}.safetensors", metadata | {name: text})


DATA = "--data {bad}/good"
EVALUATE = f"evaluate nf_resnet_tiny --weights {{bad}}/tiny.safetensors {DATA}"


def _weights(*names):
    return [
        (f"evaluate nf_resnet_tiny --weights {{bad}}/{name}.safetensors {DATA}", [f"{name}.safetensors"])
        for name in names
    ]


def _converted(*names):
    return [(f"models convert {{bad}}/{name} x.safetensors", [name]) for name in names]


CASES = [
    *cases(
        "missing",
        *_weights("nowhere"),
        ("train -p weights={bad}/nowhere.safetensors -p steps=1", ["nowhere.safetensors"]),
        ("models download nothing_like_it", ["nothing_like_it", "nfnet_f0"]),
        ("models nf*x", ["nf*x", "nf_regnet_b0"]),
    ),
    *cases("empty", *_converted("nothing.safetensors", "nothing.pth")),
    *cases(
        "wrong type",
        *_weights("listed", "named"),
        *_converted("plain.npz", "list.pth"),
        (f"evaluate nf_resnet_tiny --weights {{bad}}/binary {DATA}", ["{bad}/binary", ".npz", ".safetensors"]),
        (f"{EVALUATE} --workers many", ["--workers", "many"]),
        ("models export {bad}/tiny.safetensors x.tflite", ["x.tflite", ".onnx", ".pt2"]),
    ),
    *cases(
        "wrong value",
        *_weights("unknown"),
        ("train -p model=nfnet_micro -p weights={bad}/tiny.safetensors -p steps=1", ["nf_resnet_tiny", "nfnet_micro"]),
        (f"evaluate nfnet_micro --weights {{bad}}/tiny.safetensors {DATA}", ["nf_resnet_tiny", "nfnet_micro"]),
        (f"{EVALUATE} --style cropp", ["cropp", "crop"]),
        (f"{EVALUATE} --workers 0", ["workers", "0"]),
        (f"{EVALUATE} --device cuda:x", ["device", "cuda:x", "cpu"]),
        (f"{EVALUATE} --classes {{bad}}/names.txt", ["1", "2"]),
    ),
    *cases("too large", *_weights("wide", "header"), (f"{EVALUATE} --image-size 9999", ["9999", "4096"])),
    *cases("too deep", *_weights("nested")),
    *cases(
        "damaged",
        *_weights("cut"),
        *_converted("cut.safetensors", "text.pth", "evil.pth", "evil_zip.pth"),
        ("models export {bad}/text.pth x.pt2", ["text.pth"]),
        (f"{EVALUATE} --classes {{bad}}/binary", ["{bad}/binary", "utf-8"]),
    ),
    *cases(
        "unreadable",
        *_weights("pipe", "folder", "loop"),
        ("models convert {bad}/tiny.safetensors {bad}/file/x.pth", ["file/x.pth"]),
        ("models export {bad}/tiny.safetensors {bad}/file/x.pt2", ["file/x.pt2"]),
    ),
]  # fmt: skip
