"""Plans. Evidence: a plan is read as it was written, and each kind of wrong file is refused with its line."""

import json

import pytest

from workbench.errors import WorkbenchError
from workbench.training import TrainConfig, code_hash, training_key
from workbench.training.detached.plan import Planned, read_plan, write_plan

CONFIG = TrainConfig(model="nf_resnet_tiny", steps=4, batch_size=64, base_lr=1.6, clip=0.04)


def planned(seed, **labels):
    config = CONFIG.replace(seed=seed)
    return Planned(training_key(config, "d"), config, "d", **labels)


def test_a_plan_is_read_as_it_was_written(tmp_path):
    trainings = [planned(0, study="mine", role="confirm", arm="NF+AGC", owner="r" * 32), planned(1, mode="quick")]
    plan = read_plan(write_plan(tmp_path / "plan.jsonl", trainings))
    assert plan.trainings == trainings
    assert plan.code == code_hash()
    header, *lines = map(json.loads, (tmp_path / "plan.jsonl").read_text().splitlines())
    assert set(header) == {"plan", "code", "torch", "made", "trainings"}
    assert set(lines[0]) == {"key", "config", "data_digest", "study", "mode", "role", "arm", "owner"}


def test_a_line_has_the_key_and_the_data_digest_of_this_machine(image_folder):
    config = CONFIG.replace(data=str(image_folder), batch_size=8)
    line = Planned.of(config, study="mine")
    assert line.key == training_key(config, line.data_digest)
    assert (line.arm, line.mode) == ("nf_resnet_tiny", "full")
    next(image_folder.rglob("*.png")).unlink()
    assert Planned.of(config).key != line.key


def test_a_repeated_training_is_written_once(tmp_path):
    first, second = planned(0, arm="a"), planned(1)
    plan = read_plan(write_plan(tmp_path / "plan.jsonl", [first, second, planned(0, arm="b")]))
    assert plan.trainings == [first, second]


def with_changes(lines, at, **changes):
    values = json.loads(lines[at])
    config = {**values.get("config", {}), **changes.pop("config", {})}
    return [*lines[:at], json.dumps({**values, **({"config": config} if config else {}), **changes}), *lines[at + 1 :]]


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda lines: [], ["version 1", "version None"]),
        (lambda lines: ["an image", *lines[1:]], ["line 1", "JSON"]),
        (lambda lines: lines[1:], ["version 1", "version None"]),
        (lambda lines: with_changes(lines, 0, plan=2), ["version 1", "version 2"]),
        (lambda lines: lines[:2], ["2 trainings", "got 1"]),
        (lambda lines: [*lines[:2], lines[2][:50]], ["line 3", "JSON"]),
        (lambda lines: with_changes(lines, 2, config={"cilp": 0.1}), ["line 3", "'cilp'", "'clip'"]),
        (lambda lines: with_changes(lines, 1, config={"batch_size": "many"}), ["line 2", "`batch_size`", "'many'"]),
        (lambda lines: with_changes(lines, 1, key="../../elsewhere"), ["line 2", "`key`", "'../../elsewhere'"]),
        (lambda lines: with_changes(lines, 1, mode="fast"), ["line 2", "'fast'"]),
        (lambda lines: with_changes(lines, 1, study="a/b"), ["line 2", "`study`", "'a/b'"]),
        (lambda lines: with_changes(lines, 1, arm=3), ["line 2", "`arm`", "got 3"]),
        (lambda lines: with_changes(lines, 1, colour="red"), ["line 2", "'colour'"]),
    ],
)
def test_a_wrong_plan_is_refused_with_its_line_and_value(tmp_path, change, named):
    file = write_plan(tmp_path / "plan.jsonl", [planned(0), planned(1)])
    file.write_text("".join(line + "\n" for line in change(file.read_text().splitlines())))
    with pytest.raises(WorkbenchError) as error:
        read_plan(file)
    assert all(part in str(error.value) for part in ["plan.jsonl", *named]), error.value


def test_a_file_that_cannot_be_read_or_written_is_refused_with_its_name(tmp_path):
    with pytest.raises(WorkbenchError, match=r"none\.jsonl"):
        read_plan(tmp_path / "none.jsonl")
    (tmp_path / "image.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkbenchError, match=r"image\.jsonl"):
        read_plan(tmp_path / "image.jsonl")
    with pytest.raises(WorkbenchError, match=r"/proc/plan\.jsonl"):
        write_plan("/proc/plan.jsonl", [])


@pytest.mark.parametrize("header", [{"plan": "a\n" * 5000}, {"plan": 1, "trainings": ["a\n" * 5000]}])
def test_the_message_about_a_damaged_header_is_one_short_line(tmp_path, header):
    (tmp_path / "plan.jsonl").write_text(json.dumps(header) + "\n")
    with pytest.raises(WorkbenchError, match=r"plan\.jsonl") as error:
        read_plan(tmp_path / "plan.jsonl")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
