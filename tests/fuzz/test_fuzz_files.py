"""Damaged files of data and weights. Evidence: every input is read or refused with a WorkbenchError, within bounds."""

import io
import json
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.mutations import PLAIN_ODD, meet, mutated, odd_tree
from support.odd_images import cells, encoded, names, table

from workbench.data import load_dataset
from workbench.data.decode import decode, image_size
from workbench.data.parquet import in_memory, open_parquet
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.weights import load_checkpoint, save_checkpoint, to_haiku

pytestmark = pytest.mark.slow
IMAGES = 1000  # per format
FOLDERS = 60
PARQUET = 600
WEIGHTS = 200  # per format and kind of damage
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM", "TIFF")


@pytest.mark.parametrize("kind", FORMATS)
def test_images(tmp_path, rng, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    modes = ("P", "L") if kind == "GIF" else ("RGB", "L")
    wholes = [encoded(Image.fromarray(pixels).convert(mode), kind) for mode in modes]
    if kind in ("GIF", "WEBP", "TIFF"):
        many = io.BytesIO()
        frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
        frames[0].save(many, kind, save_all=True, append_images=frames[1:])
        wholes.append(many.getvalue())
    file = tmp_path / f"x.{kind.lower()}"

    def read(content):
        decode(content, "row 3", channels=3)
        file.write_bytes(content)
        image_size(str(file))

    meet([mutated(rng.choice(wholes), rng) for _ in range(IMAGES)], read)


def test_folders_with_a_damaged_image(image_folder, rng):
    wholes = [encoded(Image.new("RGB", (10, 12), (200, 9, 9)), kind) for kind in FORMATS]
    file = image_folder / "dark" / "0.png"

    def read(content):
        file.write_bytes(content)
        for unreadable in ("refuse", "skip"):
            data = load_dataset(str(image_folder), 8, unreadable=unreadable)
            assert 39 <= len(data.train) + len(data.val) + len(data.test) <= 40

    meet([mutated(rng.choice(wholes), rng) for _ in range(FOLDERS)], read)


def read_all(opened):
    for content, label, where in opened:
        assert 0 <= label <= opened.top
        try:
            decode(content, where)
        except WorkbenchError:
            continue


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_bytes_of_parquet(tmp_path, rng, compression):
    file = tmp_path / "train.parquet"
    pq.write_table(table(30, names("a", "b")), file, compression=compression, row_group_size=12)
    whole = file.read_bytes()
    footer = len(whole) - struct.unpack("<I", whole[-8:-4])[0] - 8

    def damaged():
        if rng.random() < 0.5:  # the footer has the schema
            return whole[:footer] + mutated(whole[footer:-8], rng) + whole[-8:]
        return mutated(whole, rng)

    def read(content):
        file.write_bytes(content)
        read_all(open_parquet(file))

    meet([damaged() for _ in range(PARQUET)], read)


def odd_columns():
    """One column of every type that a table can have: six rows each."""
    numbers, images = [0, 1, 0, 1, 0, 1], cells(6)
    content = [cell["bytes"] for cell in images]
    plain = (pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(5), pa.timestamp("s"))
    cast = (pa.date32(), pa.time32("s"), pa.bool_(), pa.string())
    binary = (pa.binary(), pa.large_binary(), pa.binary_view())
    yield from (pa.array(numbers, kind) for kind in plain)
    yield from (pa.array(numbers, pa.int32()).cast(kind) for kind in cast)
    yield from (pa.array(content, kind) for kind in binary)
    yield from (pa.array([{"bytes": c} for c in content], pa.struct([("bytes", kind)])) for kind in binary)
    yield from (pa.array(numbers).dictionary_encode(), pa.array(content).dictionary_encode(), pa.nulls(6))
    yield pa.array([[n] for n in numbers])
    yield pa.array([0, 1, 2**40, -1, 0, 1])
    yield from (pa.array([{"bytes": None}] * 6), pa.array([None, *images[1:]]), pa.array([{}] * 6))
    yield from (pa.array([{"bytes": c, "path": 3} for c in content]), pa.array([{"bytes": [1]}] * 6))
    yield pa.array([[("bytes", c)] for c in content], pa.map_(pa.string(), pa.binary()))
    yield pa.chunked_array([numbers[:2], numbers[2:]])
    yield pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16] * 6, pa.binary(16)))


def test_columns_of_parquet(tmp_path, rng):
    file, columns, images = tmp_path / "train.parquet", list(odd_columns()), pa.array(cells(6))
    metadata = json.loads(names("a", "b")["huggingface"])

    def read(number):
        rng.seed(number)
        image, label = rng.choice([rng.choice(columns), images]), rng.choice([rng.choice(columns), columns[0]])
        labels = [rng.choice(["label", "fine_label", "image", "x"])] if rng.random() < 0.3 else ["label"]
        odd = {"huggingface": json.dumps(odd_tree(metadata, rng, PLAIN_ODD))} if rng.random() < 0.5 else None
        made = pa.Table.from_arrays([image, label], names=["image", *labels]).replace_schema_metadata(odd)
        read_all(in_memory(made, "table"))
        try:
            pq.write_table(made, file)
        except (pa.ArrowException, ValueError):
            return
        read_all(open_parquet(file))

    meet(range(PARQUET), read)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return create_model("nf_resnet_tiny", 3)


GOOD = {"mean": [0.5] * 3, "std": [0.2] * 3, "image_size": 32, "style": "whole"}


def test_bytes_and_headers_of_safetensors(tmp_path, rng, net):
    file = save_checkpoint(net, tmp_path / "w.safetensors", GOOD)
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    cases = [mutated(whole, rng) for _ in range(WEIGHTS)]
    for _ in range(WEIGHTS):
        odd = json.dumps(odd_tree(header, rng, PLAIN_ODD)).encode()
        cases.append(struct.pack("<Q", len(odd)) + odd + whole[8 + size :])
        part = mutated(whole[8 : 8 + size], rng)
        cases.append(struct.pack("<Q", len(part)) + part + whole[8 + size :])

    def load(content):
        file.write_bytes(content)
        load_checkpoint(file)

    meet(cases, load)


def test_metadata_of_safetensors(tmp_path, rng, net):
    file = tmp_path / "w.safetensors"
    recipe = {"name": "nf_resnet_tiny", "num_classes": 3, "skip_gain": 1.0, "alpha": 0.2, "activation": "relu"}
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}

    def load(number):
        rng.seed(number)
        texts = [json.dumps(odd_tree(tree, rng)) if rng.random() < 0.8 else json.dumps(tree) for tree in (recipe, GOOD)]
        if rng.random() < 0.3:
            texts = [mutated(text.encode(), rng).decode(errors="replace") for text in texts]
        save_file(state, file, {"format": "normfree-workbench/1", "recipe": texts[0], "preprocess": texts[1]})
        load_checkpoint(file)

    meet(range(2 * WEIGHTS), load)


KINDS = (torch.int64, torch.bool, torch.float16, torch.complex64)
ODD_TENSORS = [torch.zeros(3, dtype=kind) for kind in KINDS] + [torch.zeros(n) for n in ((), 0, (1, 2, 3, 4, 5))]
ODD_TENSORS += [torch.zeros(2, 2).to_sparse(), torch.empty(3, device="meta"), torch.full((3,), float("nan"))]
ODD_TENSORS += [torch.zeros(3).expand(10**6, 3), torch.nn.Parameter(torch.zeros(3))]
ODD_NAMES = ("x", "blocks.x.weight", "linear.bias", "stem.weight")


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_of_torch(tmp_path, rng, net, legacy):
    file = tmp_path / "w.pth"
    state = dict(net.state_dict())

    def saved(tree):
        out = io.BytesIO()
        torch.save(tree, out, _use_new_zipfile_serialization=not legacy)
        return out.getvalue()

    whole = saved({"state_dict": state, "epoch": 3})
    cases = [mutated(whole, rng) for _ in range(WEIGHTS)]
    for _ in range(WEIGHTS):
        odd = dict(state)
        name = rng.choice(list(odd))
        odd[rng.choice([name, name, *ODD_NAMES])] = rng.choice([*ODD_TENSORS, *PLAIN_ODD])
        cases.append(saved(rng.choice([odd, {"model": odd}, {"state_dict": odd, "model": 3}])))

    def load(content):
        file.write_bytes(content)
        load_checkpoint(file)
        load_checkpoint(file, create_model("nf_resnet_tiny", 3))

    meet(cases, load)


def test_released_pickles(tmp_path, rng):
    file = tmp_path / "w.npz"
    tree = to_haiku(create_model("nf_resnet_tiny", 3))
    small = {module: {name: array.flatten()[:2] for name, array in arrays.items()} for module, arrays in tree.items()}
    part = pickle.dumps(small, protocol=4)  # a flip in the large file would mostly hit numbers
    cases = [mutated(part, rng) for _ in range(2 * WEIGHTS)]
    odd_arrays = [np.zeros(3, kind) for kind in (float, complex, "M8[s]", "U1")]
    odd_arrays += [np.float32(3), np.zeros((0, 3)), np.zeros((2,) * 7)]
    for _ in range(WEIGHTS):
        odd = odd_tree(tree, rng, [*PLAIN_ODD, *odd_arrays])
        cases.append(pickle.dumps(odd, protocol=rng.choice([2, 4])))

    def load(content):
        file.write_bytes(content)
        load_checkpoint(file, verify=False)

    file.write_bytes(pickle.dumps(tree))
    load_checkpoint(file, verify=False)
    meet(cases, load)
