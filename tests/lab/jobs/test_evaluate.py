"""Evaluating weights on images.

Evidence: a rule that is right by construction, counts by hand, the command line, and the contents of the store.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.checkout import CHECKOUT
from torch import nn

from workbench.data.decode import decode
from workbench.data.labelled import open_labelled
from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.training.evaluation import class_indices, evaluate_images
from workbench.weights.checkpoints import save_checkpoint


class Brightness(nn.Module):
    """Predicts class 0 for bright images and 1 for dark ones. The other outputs are lower, the last the lowest."""

    def __init__(self, classes=2, broken=False):
        super().__init__()
        self.classes, self.broken = classes, broken

    def forward(self, x):
        level = x.mean((1, 2, 3))
        rest = [torch.full_like(level, -10.0 - i) for i in range(self.classes - 2)]
        logits = torch.stack([level, -level, *rest], dim=1)
        return logits * float("nan") if self.broken else logits


def run(model, data, indices=(0, 1), **settings):
    return evaluate_images(
        model,
        data,
        Preprocess("crop", 16, 16),
        indices=indices,
        device=torch.device("cpu"),
        progress=False,
        **settings,
    )


def test_a_right_rule_scores_all_images_and_a_wrong_rule_none(image_folder):
    data = open_labelled(image_folder)  # bright, dark
    assert data.classes == ("bright", "dark") and len(data) == 40
    result = run(Brightness(), data, batch_size=7)
    assert (result.n, result.top1, result.top5) == (40, 40, 40) and result.images_per_second > 0
    assert run(Brightness(), data, indices=(1, 0)).top1 == 0


def test_top5_counts_the_first_five(image_folder):
    data = open_labelled(image_folder)
    result = run(
        Brightness(classes=8), data, indices=(4, 7)
    )  # bright images are class 4, the fifth output; dark ones class 7, the last
    assert (result.top1, result.top5) == (0, 20)


def test_outputs_that_are_not_finite_are_wrong_answers(image_folder):
    result = run(Brightness(broken=True), open_labelled(image_folder))
    assert (result.top1, result.top5) == (0, 0) and result.loss != result.loss


def test_the_result_does_not_depend_on_batch_size_or_threads(image_folder):
    model = create_model("nf_resnet_tiny", 2)
    with torch.no_grad():
        model.linear.weight.normal_()
    data = open_labelled(image_folder)
    results = [run(model, data, batch_size=b, workers=w) for b, w in ((1, 1), (64, 3))]
    assert results[0].top1 == results[1].top1 and results[0].loss == pytest.approx(results[1].loss, rel=1e-5)


def parquet(folder, path, names=True):
    """Write the image folder as parquet, as the Hugging Face hub does."""
    rows = [
        (file, label) for label, name in enumerate(("bright", "dark")) for file in sorted((folder / name).iterdir())
    ]
    images = [{"bytes": file.read_bytes(), "path": file.name} for file, _ in rows]
    table = pa.table({"image": images, "label": [label for _, label in rows]})
    if names:
        info = {"info": {"features": {"label": {"names": ["bright", "dark"]}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=9)


def test_parquet_and_folder_give_the_same_result(image_folder, tmp_path):
    (tmp_path / "parts").mkdir()
    parquet(image_folder, tmp_path / "one.parquet")
    parquet(image_folder, tmp_path / "parts" / "a.parquet", names=False)
    parquet(image_folder, tmp_path / "parts" / "b.parquet", names=False)
    expected = run(Brightness(), open_labelled(image_folder))
    one, parts = open_labelled(tmp_path / "one.parquet"), open_labelled(tmp_path / "parts")
    assert one.classes == ("bright", "dark") and parts.classes == ("0", "1") and len(parts) == 80
    assert run(Brightness(), one).loss == pytest.approx(expected.loss)
    assert run(Brightness(), parts).top1 == 80


def test_the_published_parquet_of_cifar_is_read(cifar10):
    data = open_labelled(cifar10 / "test.parquet")
    assert len(data) == 10_000 and data.classes[3] == "cat"
    source, label, where = next(iter(data))
    assert decode(source, where).size == (32, 32) and 0 <= label < 10


def test_classes_must_agree_or_be_named(image_folder):
    data = open_labelled(image_folder)
    with pytest.raises(WorkbenchError, match=r"2 classes.*5 outputs.*--classes"):
        class_indices(data, 5)
    assert class_indices(data, 3, ["dark", "x", "bright"]) == [2, 0]
    with pytest.raises(WorkbenchError, match=r"'bright'.*'brighter'"):
        class_indices(data, 2, ["dark", "brighter"])
    with pytest.raises(WorkbenchError, match=r"\b2 outputs.*\b3\b"):
        class_indices(data, 3, ["dark", "bright"])


def test_unreadable_files_and_folders_are_named(image_folder, tmp_path):
    (image_folder / "dark" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(WorkbenchError, match=r"broken\.png"):
        run(Brightness(), open_labelled(image_folder))
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(WorkbenchError, match=str(tmp_path / name)):
            open_labelled(tmp_path / name)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(WorkbenchError, match=r"image.*img.*label.*\bx\b"):
        open_labelled(tmp_path / "x.parquet")
    pq.write_table(pa.table({"image": [1], "label": [0]}), tmp_path / "y.parquet")
    with pytest.raises(WorkbenchError, match=r"struct.*`bytes`"):
        open_labelled(tmp_path / "y.parquet")


def workbench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "workbench.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=CHECKOUT,
    )


@pytest.fixture
def weights(tmp_path):
    model = create_model("nf_resnet_tiny", 2)
    with torch.no_grad():
        model.linear.weight.normal_()
    return save_checkpoint(model.eval(), tmp_path / "weights.safetensors"), model


def test_the_command_prints_and_keeps_the_accuracy(root, image_folder, weights):
    from workbench.lab import Store

    file, model = weights
    process = workbench(
        "evaluate", "nf_resnet_tiny", "--weights", file, "--data", image_folder, "--image-size", 32, "--device", "cpu"
    )
    assert process.returncode == 0, process.stderr
    right = 0
    for source, label, where in open_labelled(image_folder):
        image = Preprocess("whole", 32, 32).made(decode(source, where))
        right += int(model(image[None]).argmax()) == label
    assert (
        f"{right / 40:.2%} [" in process.stdout and "of 40" in process.stdout and "images per second" in process.stdout
    )

    (run_,) = Store().search("evaluations", "full")
    assert run_.status == "FINISHED" and f"run {run_.id}" in process.stdout
    assert run_.metrics["top1"] == pytest.approx(right / 40)
    assert run_.metrics["top1_low"] < right / 40 < run_.metrics["top1_high"] or right in (0, 40)
    assert run_.parameters["model"] == "nf_resnet_tiny" and run_.parameters["image_size"] == "32"
    assert run_.tags["outcome"] == "complete" and run_.tags["data"]
    assert f"top-1 {right / 40:.2%} [" in run_.tags["mlflow.note.content"]

    from workbench.lab.store.views import EVALUATIONS

    columns = {f"metrics.`{m}`" for m in run_.metrics} | {f"params.`{p}`" for p in run_.parameters}
    columns |= {f"tags.`{t}`" for t in run_.tags} | {"metrics.`published_top1`", "metrics.`top5`"}  # of many classes
    assert all(set(view["selectedColumns"]) <= columns for view in EVALUATIONS.values())


def test_the_published_accuracy_is_shown_only_for_released_weights(root, image_folder, weights, command, monkeypatch):
    from workbench.models import zoo

    row = dataclasses.replace(zoo.MODELS["nf_resnet_tiny"], published=(83.6, 96.8))
    monkeypatch.setitem(zoo.MODELS, "nf_resnet_tiny", row)
    code, output, _ = command(
        "evaluate", "nf_resnet_tiny", "--weights", weights[0], "--data", image_folder, "--image-size", 32
    )
    assert code == 0 and "top-1" in output and "published" not in output


def test_an_evaluation_that_breaks_is_marked_failed(root, image_folder, weights, command):
    from workbench.lab import Store

    (image_folder / "dark" / "broken.png").write_bytes(b"no picture")
    code, _, errors = command(
        "evaluate", "nf_resnet_tiny", "--weights", weights[0], "--data", image_folder, "--image-size", 32
    )
    assert code == 2 and "broken.png" in errors
    (run_,) = Store().search("evaluations", "full")
    assert run_.status == "FAILED" and "broken.png" in run_.tags["cause"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nfnet_micro"], ["'nf_resnet_tiny'"]),
        (["nf_resnet_tyni"], ["'nf_resnet_tyni'", "'nf_resnet_tiny'"]),
        (["nf_resnet_tiny", "--style", "krop"], ["'krop'", "'crop'"]),
        (["nf_resnet_tiny", "--image-size", "3"], ["`image_size`", "at least 8", "3"]),
        (["nf_resnet_tiny", "--image-size", "0"], ["`image_size`", "at least 8", "0"]),
        (["nf_resnet_tiny", "--batch-size", "0"], ["`batch_size`", "at least 1", "0"]),
        (["nf_resnet_tiny", "--workers", "many"], ["--workers", "integer"]),
        (["nf_resnet_tiny", "--classes", "/nowhere/names.txt"], ["/nowhere/names.txt"]),
        (["nf_resnet_tiny", "--device", "gpu"], ["gpu", "auto, cpu, cuda"]),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_kept(root, image_folder, weights, command, arguments, words):
    code, _, errors = command("evaluate", *arguments, "--weights", weights[0], "--data", image_folder)
    assert code == 2 and all(word in errors for word in words), errors
    from workbench.lab import Store

    assert Store().search("evaluations", "full") == []


def test_the_released_networks_have_their_published_accuracy():
    from workbench.models.zoo import MODELS

    assert {name: row.published for name, row in MODELS.items() if row.published} == {
        "nfnet_f0": (83.6, 96.8), "nfnet_f1": (84.7, 97.1), "nfnet_f2": (85.1, 97.3), "nfnet_f3": (85.7, 97.5),
        "nfnet_f4": (85.9, 97.6), "nfnet_f5": (86.0, 97.6), "nfnet_f6": (86.5, 97.9),
    }  # fmt: skip


def test_an_image_in_memory_is_read_like_a_file(tmp_path):
    image = Image.new("RGB", (5, 4), (10, 20, 30))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    assert (
        decode(buffer.getvalue(), "").tobytes() == decode(tmp_path / "x.png", "").tobytes() == bytes((10, 20, 30)) * 20
    )


def rows(image_folder, **changes):
    """Return three rows of the folder, with changed columns."""
    images = [{"bytes": f.read_bytes(), "path": f.name} for f in sorted((image_folder / "dark").iterdir())[:3]]
    return pa.table({"image": images, "label": [0, 1, 0], **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": pa.array([0, -1, 0])}, ["label", "row 1", "-1"]),
        ({"label": pa.array([0, None, 1])}, ["label", "row 1"]),
        ({"label": pa.array([0.0, 1.0, 0.5])}, ["label", "double"]),
        ({"label": pa.array(["a", "b", "c"])}, ["label", "string"]),
        ({"image": pa.array([None, None, None], pa.struct([("bytes", pa.binary())]))}, ["row 0", "no image"]),
        ({"image": pa.array([{"bytes": None}] * 3, pa.struct([("bytes", pa.binary())]))}, ["row 0", "no image"]),
        ({"image": [{"bytes": b"no picture"}] * 3}, ["row 0", "unknown format"]),
    ],
)
def test_rows_without_a_label_or_an_image_are_named(image_folder, tmp_path, changes, words):
    pq.write_table(rows(image_folder, **changes), tmp_path / "x.parquet")
    with pytest.raises(WorkbenchError) as error:
        run(Brightness(), open_labelled(tmp_path / "x.parquet"))
    assert all(word in str(error.value) for word in ["x.parquet", *words])


def test_a_label_beyond_the_named_classes_is_refused(image_folder, tmp_path):
    info = json.dumps({"info": {"features": {"label": {"names": ["only"]}}}})
    table = rows(image_folder).replace_schema_metadata({"huggingface": info})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(WorkbenchError, match=r"label.*row 1"):
        run(Brightness(), open_labelled(tmp_path / "x.parquet"))
    pq.write_table(rows(image_folder).replace_schema_metadata({"huggingface": "{"}), tmp_path / "y.parquet")
    assert open_labelled(tmp_path / "y.parquet").classes == ("0", "1")


def test_files_that_are_not_images_are_ignored(image_folder):
    (image_folder / "dark" / "._0.png").write_bytes(b"what another system leaves")
    (image_folder / "dark" / "folder.png").mkdir()
    assert len(open_labelled(image_folder)) == 40
    (image_folder / "dark" / "gone.png").symlink_to(image_folder / "nowhere.png")
    with pytest.raises(WorkbenchError, match=r"gone\.png"):
        run(Brightness(), open_labelled(image_folder))


def test_sixteen_bit_images_keep_their_gray_values(tmp_path):
    import numpy as np

    values = np.array([[0, 257 * 64], [257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.asarray(decode(tmp_path / "x.png", ""))[..., 0].tolist() == [[0, 64], [128, 255]]


def test_names_of_outputs_must_differ(image_folder):
    with pytest.raises(WorkbenchError, match="'dark'"):
        class_indices(open_labelled(image_folder), 3, ["dark", "bright", "dark"])


def test_images_with_outputs_that_are_not_finite_are_counted(image_folder):
    assert run(Brightness(broken=True), open_labelled(image_folder)).not_finite == 40
    assert run(Brightness(), open_labelled(image_folder)).not_finite == 0
