"""Files of parquet: data sets for evaluations, and the two files of CIFAR."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from support.bad_input import Case, cases


def write(folder, cells):
    """Write files whose columns have other types or values, and files that are no parquet."""
    deep = pa.array([0] * 4)
    for _ in range(100):
        deep = pa.StructArray.from_arrays([deep], ["a"])
    labels = [0, 1, 0, 1]
    tables = {
        "null_image": {"image": pa.array([None] * 4, pa.null()), "label": labels},
        "int_image": {"image": [1, 2, 3, 4], "label": labels},
        "list_image": {"image": [[1], [2], [3], [4]], "label": labels},
        "text_image": {"image": ["a", "b", "c", "d"], "label": labels},
        "deep_image": {"image": deep, "label": labels},
        "no_picture": {"image": [b"no picture"] * 4, "label": labels},
        "text_label": {"image": cells, "label": ["a", "b", "a", "b"]},
        "huge_label": {"image": cells, "label": [0, 1, 0, 10**9]},
        "negative_label": {"image": cells, "label": [0, 1, 0, -1]},
        "no_labels": {"image": cells, "label": [None] * 4},
        "no_image": {"label": [0, 1]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    pq.write_table(pa.table({"image": cells, "label": labels}).slice(0, 0), folder / "no_rows.parquet")
    whole = (folder / "good.parquet").read_bytes()
    (folder / "nothing.parquet").write_bytes(b"")
    (folder / "cut.parquet").write_bytes(whole[:200])
    (folder / "pages.parquet").write_bytes(whole[:20] + bytes(100) + whole[120:])
    for name, source in (("cut_cifar", "cut.parquet"), ("strange_cifar", "no_image.parquet")):
        (folder / name / "cifar10").mkdir(parents=True)
        for split in ("train", "test"):
            shutil.copy(folder / source, folder / name / "cifar10" / f"{split}.parquet")


EVALUATE = "evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/"
CIFAR = "train -p steps=2 -p data=cifar10"


def _files(*names):
    return [(f"{EVALUATE}{name}.parquet", [f"{name}.parquet"]) for name in names]


CASES = [
    *cases("missing", *_files("nowhere"), (f"{EVALUATE}no_image.parquet", ["no_image.parquet", "image"])),
    *cases("empty", *_files("nothing", "no_rows"), (f"{EVALUATE}empty", ["{bad}/empty", "parquet"])),
    *cases(
        "wrong type",
        *_files("null_image", "int_image", "list_image", "text_image", "text_label"),
        (f"{EVALUATE}file", ["data", "{bad}/file"]),
        (f"{EVALUATE}no_labels.parquet", ["no_labels.parquet", "label", "null"]),
    ),
    Case("wrong type", CIFAR, ["cifar10", "img", "image", "label"], {"WORKBENCH_DATA": "{bad}/strange_cifar"}),
    *cases("wrong value", *_files("negative_label", "no_picture")),
    *cases("too large", *_files("huge_label")),
    *cases("too deep", *_files("deep_image")),
    *cases("damaged", *_files("cut", "pages")),
    Case("damaged", CIFAR, ["{bad}/cut_cifar/cifar10"], {"WORKBENCH_DATA": "{bad}/cut_cifar"}),
    *cases("unreadable", *_files("pipe", "folder", "loop")),
]
