"""The folder of bad files, which all cases share."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from support.bad_input import checkpoints, images, notebooks, parquet, results, user_files, yaml_texts
from workbench.models import create_model
from workbench.weights.checkpoints import save_checkpoint


def make(folder: Path) -> Path:
    """Write good files, and a damaged or unusable one of every kind."""
    rng = np.random.default_rng(0)

    def image(place):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / place)

    (folder / "empty").mkdir()
    (folder / "file").write_text("a file where a folder is wanted")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "names.txt").write_text("a\n")
    for i in range(12):
        image(f"one_class/only/{i}.png")
        image(f"no_class/{i}.png")
        for name in ("a", "b"):
            image(f"good/{name}/{i}.png")
            image(f"no_val/train/{name}/{i}.png")
    cells = [{"bytes": (folder / "good" / "a" / "0.png").read_bytes(), "path": "0.png"}] * 4
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}), folder / "good.parquet")
    torch.manual_seed(0)
    save_checkpoint(create_model("nf_resnet_tiny", 2), folder / "tiny.safetensors")
    for boundary in (yaml_texts, notebooks, user_files):
        for name, content in boundary.files().items():
            text = content if isinstance(content, bytes) else content.replace("{bad}", str(folder)).encode()
            (folder / name).write_bytes(text)
    images.write(folder)
    parquet.write(folder, cells)
    checkpoints.write(folder)
    results.write(folder)
    for suffix in ("yaml", "ipynb", "py", "parquet", "safetensors", "jsonl"):  # nobody can read these
        os.mkfifo(folder / f"pipe.{suffix}")
        (folder / f"folder.{suffix}").mkdir()
        (folder / f"loop.{suffix}").symlink_to(f"loop.{suffix}")
    for name, target in (("loop", "0.png"), ("dangling", "nowhere.png")):
        shutil.copytree(folder / "good", folder / f"{name}_image")
        (folder / f"{name}_image" / "a" / "0.png").unlink()
        (folder / f"{name}_image" / "a" / "0.png").symlink_to(target)
    return folder
