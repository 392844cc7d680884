"""What comes from outside: JSON files, paths and names. Evidence: damages, written by hand, and real readers."""

import json
import os

import pytest

from workbench import bounded_json
from workbench.errors import WorkbenchError, unknown
from workbench.files import local_path, target_path
from workbench.models import create_model
from workbench.weights import save_checkpoint

DAMAGES = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "bytes": bytes(range(128, 256)),
    "deep": b"[" * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "surrogate": b'{"a": "\\ud800"}',
    "long text": b'"' + b"x" * (2 << 20) + b'"',
}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing", "folder", "pipe", "too large"])
def test_a_file_of_json_that_cannot_be_read_is_named(tmp_path, damage):
    file = tmp_path / "values.json"
    if damage == "folder":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)
    elif damage != "missing":
        file.write_bytes(DAMAGES.get(damage, b"[" + b" " * 5000 + b"]"))
    with pytest.raises(WorkbenchError, match=r"values\.json"):
        bounded_json.read(file, size=1000 if damage == "too large" else bounded_json.SIZE)


def test_a_whole_file_of_json_is_read(tmp_path):
    (tmp_path / "values.json").write_text('{"a": ["é", 1.5, null]}')
    assert bounded_json.read(tmp_path / "values.json") == {"a": ["é", 1.5, None]}


# ---- paths


@pytest.mark.parametrize("path", ["~nobody-here/x.csv", "a\0b.csv", "n" * 300 + ".csv", "x/" + "n" * 300 + "/y.csv"])
def test_a_path_that_no_file_can_have_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    for check in (local_path, lambda path: target_path(path, (".csv",))):
        with pytest.raises(WorkbenchError) as caught:
            check(path)
        assert repr(path)[1:12] in str(caught.value) and len(str(caught.value)) < 700


def test_a_path_that_exists_or_not_is_returned(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x") == tmp_path / "x" and local_path(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    assert local_path("~/file/below") == tmp_path / "file" / "below"


AT = "~nobody-here/x"
LINES = [
    ("train", f"{AT}.yaml"),
    ("train", "-p", f"data={AT}"),
    ("train", "-p", f"weights={AT}.safetensors"),
    ("train", "-p", f"model={AT}.py:build"),
    ("train", "--save", f"{AT}.safetensors"),
    ("evaluate", "nf_resnet_tiny", "--weights", "w.safetensors", "--data", AT),
    ("evaluate", "nf_resnet_tiny", "--data", "mnist5k", "--weights", f"{AT}.safetensors"),
    ("evaluate", "nf_resnet_tiny", "--data", "mnist5k", "--classes", f"{AT}.txt"),
    ("check", f"{AT}.py:build"),
    ("check", "nf_resnet_tiny", "--data", AT),
    ("study", f"{AT}.yaml"),
    ("study", "large_batch", "-p", f"data={AT}"),
    ("study", "own_network", "-p", f"folder={AT}"),
    ("study", "own_network", "-p", f"weights={AT}.safetensors"),
    ("study", "large_batch", "--plan", f"{AT}.jsonl"),
    ("compare", "x", "--csv", f"{AT}.csv"),
    ("compare", "x", "--curves", f"{AT}.png"),
    ("claims", "--csv", f"{AT}.csv"),
    ("import", AT),
    ("models", "convert", f"{AT}.pth", "y.pth"),
    ("models", "convert", "w.safetensors", f"{AT}.pth"),
    ("models", "export", f"{AT}.safetensors", "y.pt2"),
    ("models", "export", "w.safetensors", f"{AT}.pt2"),
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_home_of_nobody_is_refused_wherever_a_path_is_given(root, command, monkeypatch, tmp_path, line):
    monkeypatch.chdir(tmp_path)
    if "w.safetensors" in line:
        save_checkpoint(create_model("nf_resnet_tiny", 10), "w.safetensors")
    code, out, errors = command(*line)
    assert code == 2 and AT in errors and "Traceback" not in out + errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.glob("~*"))


# ---- names


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("nf_resnet5", ["nf_resnet50", "nfnet_f0"], "nf_resnet50"),
        ("LARGE_BATCH", ["large_batch", "race"], "large_batch"),
        ("lr", ["base_lr", "scale_lr_by", "clip"], "base_lr"),
        ("bild", ["build", "train"], "build"),
    ],
)
def test_a_similar_name_is_suggested(name, known, near):
    message = str(unknown("thing", name, known))
    assert f"'{name}'" in message and f"'{near}'" in message
    assert not any(other in message for other in known if other != near)


@pytest.mark.parametrize("name", ["bare_classes", "normfree", "x", "", "-", "nobody"])
def test_names_that_are_not_similar_are_listed_instead(name):
    known = ["transfer", "compare", "race", "latency"]
    message = str(unknown("study", name, known))
    assert all(each in message for each in known) and "did you mean" not in message


def test_a_path_is_shown_as_it_was_given(root, command, tmp_path):
    (tmp_path / "mine.yaml").write_text("question: q\nnotebook: ../../etc/passwd\n")
    _, _, errors = command("study", tmp_path / "mine.yaml")
    assert "../../etc/passwd" in errors
    assert "some/where/bare_classes" in command("study", "some/where/bare_classes")[2]


# ---- files that the repository keeps


def test_damaged_committed_files_are_named(root, command):
    folder = root / "docs" / "results"
    (folder / "benchmarks").mkdir(parents=True)
    (root / "README.md").write_text("<!-- benchmarks -->\n<!-- /benchmarks -->\n")
    (root / "benchmarks").mkdir()
    for text in ("{", "[1]", "[{}]", json.dumps([{"device": 3}]), "[" * 10_000):
        (folder / "benchmarks" / "agc_step-cpu.json").write_text(text)
        code, out, errors = command("bench", "--readme")
        assert code == 2 and "agc_step-cpu.json" in errors and "Traceback" not in out + errors, text
