"""Parquet that no training can use. Evidence: files with each mistake, read by both readers in bounded memory."""

import json
import resource
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.checkout import CHECKOUT
from support.odd_images import cells, corrupt_pages, names, odd_tables, table

from workbench.data import load_dataset
from workbench.data.labelled import open_labelled
from workbench.data.parquet import in_memory, open_parquet
from workbench.errors import WorkbenchError

ODD = odd_tables()


@pytest.fixture
def as_cifar(tmp_path, monkeypatch):
    """Write a table as both files of cifar10, and load it."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("workbench.data.datasets.CIFAR_VAL", 2)

    def load(train, test=None, **settings):
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        pq.write_table(train, tmp_path / "cifar10" / "train.parquet")
        pq.write_table(train if test is None else test, tmp_path / "cifar10" / "test.parquet")
        return load_dataset("cifar10", **settings)

    return load


@pytest.mark.parametrize("mistake", ODD)
def test_a_mistake_is_refused_with_one_sentence_before_an_image_is_read(tmp_path, as_cifar, monkeypatch, mistake):
    odd, words = ODD[mistake]
    pq.write_table(odd, tmp_path / "x.parquet")
    monkeypatch.setattr("workbench.data.memory.decode", None)
    for read, where in (
        (lambda: open_labelled(tmp_path / "x.parquet"), "x.parquet"),
        (lambda: as_cifar(odd), "train.parquet"),
        (lambda: in_memory(odd, "the hub's table"), "the hub's table"),
    ):
        with pytest.raises(WorkbenchError) as error:
            read()
        text = str(error.value)
        assert all(word in text for word in [where, *words]) and "\n" not in text and len(text) < 500, text


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b"null",
        b"[1, 2]",
        json.dumps({"info": 3}).encode(),
        json.dumps({"info": {"features": {"label": None}}}).encode(),
        json.dumps({"info": {"features": {"label": {"names": "ab"}}}}).encode(),
        json.dumps({"info": {"features": {"label": {"names": [1, 2]}}}}).encode(),
        json.dumps({"info": {"features": {"label": {"names": ["a", "a"]}}}}).encode(),
        json.dumps({"info": {"features": {"label": {"names": {"a": 0}}}}}).encode(),
    ],
)
def test_broken_metadata_names_no_classes(tmp_path, as_cifar, metadata):
    odd = table(metadata={b"huggingface": metadata})
    pq.write_table(odd, tmp_path / "x.parquet")
    assert open_labelled(tmp_path / "x.parquet").classes == as_cifar(odd).classes == ("0", "1")


def test_images_of_several_sizes_are_refused_in_memory_and_evaluated_one_by_one(tmp_path, as_cifar):
    odd = table(image=[*cells(4), *cells(2, size=(9, 7))])
    with pytest.raises(WorkbenchError, match=r"7x9 in row 4 of .*8x8"):
        as_cifar(odd)
    pq.write_table(odd, tmp_path / "x.parquet")
    assert len(list(open_labelled(tmp_path / "x.parquet"))) == 6


def test_train_and_test_must_have_the_same_classes(as_cifar):
    for test in (table(label=[0, 1, 2, 0, 1, 0]), table(metadata=names("a", "b"))):
        with pytest.raises(WorkbenchError, match=r"'cifar10'.*classes"):
            as_cifar(table(), test)
    assert as_cifar(table(metadata=names("a", "b", "c"))).classes == ("a", "b", "c")


def test_corrupt_pages_are_one_sentence(tmp_path, as_cifar):
    corrupt_pages(tmp_path / "x.parquet")
    with pytest.raises(WorkbenchError) as error:
        list(open_labelled(tmp_path / "x.parquet"))
    assert "x.parquet" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500
    as_cifar(table())
    corrupt_pages(tmp_path / "cifar10" / "train.parquet")
    with pytest.raises(WorkbenchError, match=r"train\.parquet as parquet"):
        load_dataset("cifar10")


@pytest.mark.parametrize("end", [0, 3, 100, -9, -1])
def test_files_that_are_cut_are_one_sentence(tmp_path, end):
    pq.write_table(table(), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:end])
    with pytest.raises(WorkbenchError, match=r"x\.parquet as parquet"):
        open_parquet(tmp_path / "x.parquet")


def test_columns_that_occur_twice_and_files_with_other_classes_are_refused(tmp_path):
    sound = table()
    twice = pa.Table.from_arrays([sound["image"], sound["label"], sound["label"]], ["image", "label", "label"])
    with pytest.raises(WorkbenchError, match=r"one column label, got 2"):
        in_memory(twice, "x")
    pq.write_table(table(metadata=names("a", "b")), tmp_path / "a.parquet")
    pq.write_table(table(metadata=names("b", "a")), tmp_path / "b.parquet")
    with pytest.raises(WorkbenchError, match=r"a\.parquet.*b\.parquet"):
        open_labelled(tmp_path)


def test_rows_of_several_files_follow_each_other(tmp_path):
    for name in "ab":
        pq.write_table(table(5, label=[0, 1, 2, 3, 4]), tmp_path / f"{name}.parquet")
    rows = open_parquet(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert [label for _, label, _ in rows] == [0, 1, 2, 3, 4] * 2
    part = rows.take(3, 7)
    assert [label for _, label, _ in part] == [3, 4, 0, 1] and len(part) == 4
    assert [label for _, label, _ in part.take(1, 3)] == [4, 0]
    assert list(part)[2][2] == f"row 0 of {tmp_path / 'b.parquet'}"


def test_millions_of_equal_rows_need_little_memory(tmp_path, as_cifar, monkeypatch):
    """A small file with a dictionary of one image. In memory the rows would need 100 GB."""
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 4, pa.int32()), pa.array([cells(1)[0]["bytes"]]))
    rows = pa.StructArray.from_arrays([one.dictionary_decode()], ["bytes"])
    monkeypatch.setattr("workbench.data.memory.MEMORY_SHARE", 1e-12)
    with pytest.raises(WorkbenchError, match=r"\b4 images of 8x8"):
        as_cifar(table(4, image=rows))


@pytest.mark.slow
def test_a_huge_label_takes_little_memory(tmp_path):
    pq.write_table(ODD["a huge label"][0], tmp_path / "x.parquet")
    code = "import sys; from workbench.data.labelled import open_labelled; open_labelled(sys.argv[1])"
    limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.parquet")],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        preexec_fn=limit,
    )
    assert "WorkbenchError" in process.stderr and "1000000000" in process.stderr
