"""Plans. Evidence: what is written is what is read, and every way in which a file can be no plan is refused by line."""

import json

import pytest

from workbench.errors import WorkbenchError
from workbench.training import TrainConfig, code_hash, training_key
from workbench.training.detached.plan import Planned, read_plan, write_plan

CONFIG = TrainConfig(model="nf_resnet_tiny", steps=4, batch_size=64, base_lr=1.6, clip=0.04)


def planned(seed, **asked):
    config = CONFIG.replace(seed=seed)
    return Planned(training_key(config, "d"), config, "d", **asked)


def test_what_is_written_is_what_is_read(tmp_path):
    trainings = [planned(0, study="mine", role="confirm", arm="NF+AGC", owner="r" * 32), planned(1, mode="quick")]
    plan = read_plan(write_plan(tmp_path / "plan.jsonl", trainings))
    assert plan.trainings == trainings
    assert plan.code == code_hash()
    header, *lines = map(json.loads, (tmp_path / "plan.jsonl").read_text().splitlines())
    assert set(header) == {"plan", "code", "torch", "made", "trainings"}
    assert set(lines[0]) == {"key", "config", "data_digest", "study", "mode", "role", "arm", "owner"}


def test_the_key_and_the_data_are_those_of_this_machine(image_folder):
    config = CONFIG.replace(data=str(image_folder), batch_size=8)
    line = Planned.of(config, study="mine")
    assert line.key == training_key(config, line.data_digest)
    assert (line.arm, line.mode) == ("nf_resnet_tiny", "full")
    next(image_folder.rglob("*.png")).unlink()
    assert Planned.of(config).key != line.key


def test_a_training_that_is_asked_for_twice_stands_in_it_once(tmp_path):
    first, second = planned(0, arm="a"), planned(1)
    plan = read_plan(write_plan(tmp_path / "plan.jsonl", [first, second, planned(0, arm="b")]))
    assert plan.trainings == [first, second]


def spoilt(lines, at, **changes):
    values = json.loads(lines[at])
    config = {**values.get("config", {}), **changes.pop("config", {})}
    return [*lines[:at], json.dumps({**values, **({"config": config} if config else {}), **changes}), *lines[at + 1 :]]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda lines: [], "its first line says None"),
        (lambda lines: ["an image", *lines[1:]], "line 1 is no JSON object"),
        (lambda lines: lines[1:], "its first line says None"),
        (lambda lines: spoilt(lines, 0, plan=2), "version 1, but its first line says 2"),
        (lambda lines: lines[:2], "has 1 trainings, not 2: copy it again"),
        (lambda lines: [*lines[:2], lines[2][:50]], "line 3 is no JSON object"),
        (lambda lines: spoilt(lines, 2, config={"cilp": 0.1}), "line 3: unknown field of TrainConfig 'cilp'"),
        (lambda lines: spoilt(lines, 1, config={"batch_size": "many"}), "line 2: `batch_size` (='many')"),
        (lambda lines: spoilt(lines, 1, key="../../elsewhere"), "must be 64 hex digits"),
        (lambda lines: spoilt(lines, 1, mode="fast"), "unknown mode 'fast'"),
        (lambda lines: spoilt(lines, 1, study="a/b"), "must be made of letters"),
        (lambda lines: spoilt(lines, 1, arm=3), "`arm` (=3) must be text"),
        (lambda lines: spoilt(lines, 1, colour="red"), "line 2: "),
    ],
)
def test_what_is_no_plan_is_refused_with_its_line(tmp_path, spoil, message):
    file = write_plan(tmp_path / "plan.jsonl", [planned(0), planned(1)])
    file.write_text("".join(line + "\n" for line in spoil(file.read_text().splitlines())))
    with pytest.raises(WorkbenchError) as refused:
        read_plan(file)
    assert message in str(refused.value)


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="cannot read the plan"):
        read_plan(tmp_path / "none.jsonl")
    (tmp_path / "image.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkbenchError, match="cannot read the plan"):
        read_plan(tmp_path / "image.jsonl")
    with pytest.raises(WorkbenchError, match="cannot write"):
        write_plan("/proc/plan.jsonl", [])
