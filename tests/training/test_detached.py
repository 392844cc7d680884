"""Detached runs. Evidence: after a kill or stop at any moment, the results equal a training in this process.

The folder is readable at any moment.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from support.detached import TINY, checkpointed_steps, family, plain, processes_of, start, wait_for

from workbench.errors import WorkbenchError
from workbench.training import TrainResult, train, training_key
from workbench.training import __main__ as program
from workbench.training.detached import results as results_module
from workbench.training.detached import run as run_module
from workbench.training.detached.plan import Plan, Planned, read_plan, write_plan
from workbench.training.detached.readiness import ready
from workbench.training.detached.records import Record, read_records
from workbench.training.detached.results import Results
from workbench.training.detached.run import placed, run_plan
from workbench.training.detached.tables import tables_of
from workbench.training.detached.transport import pack_folder, unpacked


@pytest.fixture
def plan(image_folder, tmp_path):
    """Two trainings that complete and one that diverges, on a folder of images."""
    base = TINY.replace(data=str(image_folder))
    configs = [base, base.replace(seed=1), base.replace(clip=None, base_lr=4e5, warmup=0.0, telemetry_every=None)]
    trainings = [Planned.of(config, study="mine", arm="a") for config in configs]
    return write_plan(tmp_path / "plan.jsonl", trainings)


def check_against_training_here(out, plan):
    """Check that the folder has every training of the plan once, with the same bits and tables as here."""
    records = {record.result.key: record for _, record in read_records(out)}
    assert len(list(read_records(out))) == len(records)
    for training in read_plan(plan).trainings:
        tables = {}
        wanted = train(
            training.config.replace(progress=False), tables=lambda n, t, tables=tables: tables.update({n: t})
        )
        kept = records[training.key]
        assert plain(kept.result) == plain(wanted)
        assert (kept.study, kept.arm, kept.result.config) == ("mine", "a", training.config)
        kept_tables = tables_of(out, kept)
        assert set(kept_tables) == set(tables) and all(kept_tables[name].equals(tables[name]) for name in tables)
    history = pd.read_parquet(out / "history.parquet")
    rows = [(r.result.key, row["step"], row["val_loss"]) for r in records.values() for row in r.result.history]
    assert list(zip(history["key"], history["step"], history["val_loss"], strict=True)) == rows
    assert not list((out / "checkpoints").iterdir())  # nothing is unfinished


# ---- runs


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_training_gives_the_same_bits(plan, tmp_path, one_thread):
    """The kill -9 comes after the first checkpoint."""
    killed = []

    def kill_once():
        if not killed and checkpointed_steps(tmp_path / "out"):
            killed.append(family(os.getpid())[0])
            os.kill(killed[0], signal.SIGKILL)
        return False

    options = {"device": "cpu", "workers": 2, "checkpoint_seconds": 0.2}
    summary = run_plan(plan, tmp_path / "out", **options, asked_to_stop=kill_once)
    assert killed
    assert (summary.done, summary.known, summary.left, summary.failed) == (3, 0, 0, [])
    check_against_training_here(tmp_path / "out", plan)
    again = run_plan(plan, tmp_path / "out", device="cpu")
    assert (again.done, again.known, again.left) == (0, 3, 0)


@pytest.mark.slow
def test_a_training_whose_workers_all_die_fails_and_the_others_continue(plan, tmp_path, one_thread, capsys):
    killed = set()

    def kill_three():
        for pid in family(os.getpid()):
            if len(killed) < 3 and pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
        return False

    summary = run_plan(plan, tmp_path / "out", device="cpu", asked_to_stop=kill_three)
    assert (summary.done, summary.left, len(summary.failed)) == (2, 0, 1)
    first = next(record for _, record in read_records(tmp_path / "out"))
    assert first.result.outcome == "failed"
    assert "signal 9, 3 times" in first.result.cause
    assert capsys.readouterr().err.count("trying again: nf_resnet_tiny") == 2


@pytest.mark.slow
def test_an_error_is_a_failure_with_its_cause_and_the_next_start_tries_again(plan, tmp_path, image_folder):
    """The images become unreadable after the checks, and are repaired before the second start."""
    started, images = [], {file: file.read_bytes() for file in image_folder.rglob("*.png")}

    def damage_images():
        if not started:
            started.append(1)
            for file in images:
                file.write_bytes(b"no image")
        return False

    summary = run_plan(plan, tmp_path / "out", device="cpu", asked_to_stop=damage_images)
    assert summary.done == 0
    assert len(summary.failed) == 3 and all(str(image_folder) in cause for cause in summary.failed)
    for file, data in images.items():
        file.write_bytes(data)
    summary = run_plan(plan, tmp_path / "out", device="cpu", keep_weights=True)
    assert (summary.done, summary.known, summary.failed) == (3, 0, [])
    assert len(list((tmp_path / "out").glob("nf_resnet_tiny_B8_lr0.05_c0.01_s0-*.safetensors"))) == 1


@pytest.mark.slow
def test_a_stopped_run_writes_checkpoints_and_the_next_start_continues(plan, tmp_path, one_thread):
    """The rows before the stop keep their times, so the training was not repeated from its first step."""
    out = tmp_path / "out"
    summary = run_plan(
        plan, out, device="cpu", checkpoint_seconds=0.2, asked_to_stop=lambda: max([0, *checkpointed_steps(out)]) >= 20
    )
    assert summary.left >= 1
    place = max((out / "checkpoints").glob("*/step-*"))
    state = torch.load(place / "state.pt", weights_only=True)
    assert len(state["history"]) >= 1
    summary = run_plan(plan, out, device="cpu")
    assert (summary.done + summary.known, summary.left) == (3, 0)
    check_against_training_here(out, plan)
    result = {record.result.key: record.result for _, record in read_records(out)}[place.parent.name]
    assert result.history[: len(state["history"])] == state["history"]


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_ctrl_c_and_term_stop_all_processes_and_leave_a_checkpoint(plan, tmp_path, number, code, one_thread):
    out = tmp_path / "out"
    running = start(plan, out, "--checkpoint-seconds", "0.2")
    wait_for(lambda: checkpointed_steps(out), running)
    os.killpg(running.pid, number)
    outputs = running.communicate(timeout=60)
    assert running.returncode == code, outputs
    assert "Traceback" not in outputs[1]
    assert "3 left. Run the same command again" in outputs[0]
    assert checkpointed_steps(out) and not processes_of(out)


@pytest.mark.slow
def test_the_second_ctrl_c_ends_the_run_at_once(plan, tmp_path, one_thread):
    """The worker is suspended, so it does not answer."""
    out = tmp_path / "out"
    running = start(plan, out, "--checkpoint-seconds", "0.2")
    wait_for(lambda: checkpointed_steps(out), running)
    (worker,) = map(psutil.Process, family(running.pid))
    worker.suspend()
    running.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=3)
    running.send_signal(signal.SIGINT)
    outputs = running.communicate(timeout=20)
    assert running.returncode == 130, outputs
    assert not worker.is_running()


def test_a_killed_run_holds_its_folder_until_its_worker_has_saved(plan, tmp_path, one_thread):
    """After kill -9 of the parent, an immediate start waits for the worker."""
    out = tmp_path / "out"
    running = start(plan, out, "--checkpoint-seconds", "0.2")
    wait_for(lambda: checkpointed_steps(out), running)
    running.kill()
    running.wait()
    assert processes_of(out)
    results = Results(out)
    assert not processes_of(out) and checkpointed_steps(out)
    results.close()


def test_a_run_stops_at_its_time_limit(plan, tmp_path):
    summary = run_plan(plan, tmp_path / "out", device="cpu", limit_minutes=1e-6)
    assert (summary.done, summary.left) == (0, 3)


# ---- what is refused


def run_program(monkeypatch, capsys, *arguments):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["workbench.training", *map(str, arguments)])
    try:
        return program.main(), capsys.readouterr()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def changed(plan, **changes):
    """Reduce the plan to its first training, with changes."""
    header, first, *_ = map(json.loads, plan.read_text().splitlines())
    header |= {k: changes.pop(k) for k in ("code",) if k in changes} | {"trainings": 1}
    config = first["config"] | changes.pop("config", {})
    plan.write_text("".join(json.dumps(v) + "\n" for v in (header, first | {"config": config} | changes)))


@pytest.mark.parametrize(
    "changes, options, named",
    [
        ({"code": "0" * 16}, [], ["code 0000000000000000", "--other-code"]),
        ({"data_digest": "0" * 16}, [], ["`data`", "0000000000000000"]),
        ({"key": "0" * 64}, [], ["key", "0000000000000000"]),
        ({"config": {"data": "nowhere/at/all"}}, [], ["nowhere/at/all"]),
        ({"config": {"batch_size": 4000}}, [], ["`batch_size`", "4000"]),
        ({"config": {"model_args": {"wdith": 2}}}, [], ["wdith"]),
        ({"config": {"weights": "none.safetensors"}}, [], ["none.safetensors"]),
        ({}, ["--device", "cuda:99"], ["`device`", "cuda:99"]),
        ({}, ["--device", "gpu"], ["`device`", "gpu"]),
        ({}, ["--workers", "0"], ["`workers`", "got 0"]),
        ({}, ["--limit-minutes", "0"], ["`limit_minutes`", "0.0"]),
        ({}, ["--checkpoint-seconds", "-1"], ["`checkpoint_seconds`", "-1.0"]),
    ],
)
def test_a_plan_that_cannot_run_here_is_refused_before_anything_is_written(
    plan, tmp_path, monkeypatch, capsys, changes, options, named
):
    changed(plan, **changes)
    code, shown = run_program(monkeypatch, capsys, plan, "--out", tmp_path / "out", *options)
    assert code == 2
    assert all(part in shown.err for part in named) and "Traceback" not in shown.err, shown.err
    assert not (tmp_path / "out").exists()


def test_curvature_needs_scipy_here(plan, monkeypatch):
    from workbench.training.detached import readiness

    line = read_plan(plan).trainings[0]
    line = Planned.of(line.config.replace(curvature_every=5))
    assert ready(Plan(read_plan(plan).code, [line])) == [line]
    monkeypatch.setattr(readiness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match=r"`curvature_every`.*scipy"):
        ready(Plan(read_plan(plan).code, [line]))


def test_with_other_code_the_keys_are_those_of_the_code_here(plan):
    here = read_plan(plan).trainings[0]
    (training,) = ready(Plan("0" * 16, [Planned("1" * 64, here.config, here.data_digest)]), other_code=True)
    assert training.key == here.key


def test_torchrun_is_refused(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkbenchError, match=r"torchrun.*WORLD_SIZE=2"):
        run_plan(plan, tmp_path / "out")


# ---- devices


def test_a_device_changes_where_a_training_runs_but_not_its_key(image_folder, monkeypatch):
    monkeypatch.setattr(run_module, "cores", lambda: 32)
    config = TINY.replace(data=str(image_folder), stream=True, image_size=32, workers=3)
    here = placed(config, "cuda", 4)
    assert (here.device, here.workers, here.progress) == ("cuda", 8, False)
    assert training_key(here, "d") == training_key(config, "d")
    assert placed(config, "cuda", 1).workers == 16  # the limit
    assert placed(TINY, "cpu", 4).workers is None  # only streamed images have loaders


def test_each_gpu_has_one_seat_unless_the_user_chooses(monkeypatch):
    monkeypatch.setattr(run_module, "pick_device", lambda name: torch.device("cuda", 1 if name == "cuda:1" else None))
    monkeypatch.setattr(run_module, "visible_gpus", lambda: ["5", "GPU-abc"])
    for device, workers, gpus in [
        ("auto", None, ["5", "GPU-abc"]),
        ("cuda", 3, ["5", "GPU-abc", "5"]),
        ("cuda:1", 2, ["GPU-abc"] * 2),
    ]:
        kind, places = run_module.seats_on(device, workers)
        assert (kind, [seat.gpu for seat in places]) == ("cuda", gpus)


# ---- the folder


def record(seed=0, outcome="complete", rows=2, cause=None):
    config = TINY.replace(seed=seed)
    history = [{"step": step, "val_acc": 0.5 + step / 100} for step in range(rows)]
    result = TrainResult(training_key(config, "d"), config, outcome, history, {"val_acc": 0.5}, cause, data_digest="d")
    return Record(result, "mine", "full", "screen", "a", None, 10.0, 20.0)


def test_an_incomplete_last_line_is_removed_and_the_rest_is_kept(tmp_path):
    results = Results(tmp_path)
    results.add(record(0), {})
    results.add(record(1), {})
    results.close()
    whole = (tmp_path / "results.jsonl").read_bytes()
    for cut in (1, 40, len(whole) // 2 - 1):
        (tmp_path / "results.jsonl").write_bytes(whole[:-cut])
        again = Results(tmp_path)
        assert list(again.records.values()) == [record(0)]
        again.add(record(1), {})
        again.close()
        assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_the_history_table_is_made_from_the_lines_alone(tmp_path):
    results = Results(tmp_path)
    results.add(record(0, rows=40), {})
    results.add(record(1, "failed", 0, "memory"), {})
    results.add(record(2, rows=2), {})
    results.close()
    again = Results(tmp_path)
    again.write_history()
    again.close()
    history = pd.read_parquet(tmp_path / "history.parquet")
    assert history.key.tolist() == [record(0).result.key] * 40 + [record(2).result.key] * 2
    assert history.val_acc.tolist()[-2:] == [0.5, 0.51]


def test_a_finished_line_wins_over_failed_lines(tmp_path):
    results = Results(tmp_path)
    for each in (record(0, "failed", 0, "memory"), record(0), record(0, "failed", 0, "memory")):
        results.add(each, {})
    results.close()
    again = Results(tmp_path)
    assert again.finished(record(0).result.key)
    assert again.records[record(0).result.key] == record(0)
    again.close()


def test_a_table_is_read_only_with_the_hash_of_its_line(tmp_path):
    results = Results(tmp_path)
    table = pd.DataFrame({"step": [1, 2], "ratio": [0.1, 0.2]})
    results.add(record(0), {"agc": table})
    results.close()
    ((_, line),) = read_records(tmp_path)
    file = tmp_path / "tables" / line.result.key / "agc.parquet"
    assert tables_of(tmp_path, line)["agc"].equals(table)
    (table + 1).to_parquet(file)  # intact, but another table
    with pytest.raises(WorkbenchError):
        tables_of(tmp_path, line)
    file.unlink()
    with pytest.raises(WorkbenchError):
        tables_of(tmp_path, line)


def test_checkpoints_stay_until_the_training_is_finished(tmp_path):
    results = Results(tmp_path)
    place = results.checkpoints(record(0).result.key) / "step-00000004"
    place.mkdir(parents=True)
    results.add(record(0, "failed", 0, "memory"), {})
    assert place.exists()
    results.add(record(0), {})
    assert not place.parent.exists()
    place.mkdir(parents=True)  # as after a kill between writing the line and removing the checkpoints
    results.close()
    Results(tmp_path).close()
    assert not place.parent.exists()


def test_two_runs_do_not_share_a_folder(tmp_path):
    results = Results(tmp_path)
    with pytest.raises(WorkbenchError, match=rf"{tmp_path}.*process {os.getpid()} on"):
        Results(tmp_path)
    results.close()
    Results(tmp_path).close()


def test_a_full_disk_is_a_plain_error():
    with pytest.raises(WorkbenchError, match=r"/dev/full.*No space left on device"):
        results_module._append_to_disk(Path("/dev/full"), b"a line")


def test_a_folder_that_cannot_be_created_is_refused():
    with pytest.raises(WorkbenchError, match=r"/proc/out.*--out"):
        Results("/proc/out")


# ---- the tar of the folder


def test_the_tar_contains_everything_except_the_lock_and_ends_with_the_results(tmp_path):
    results = Results(tmp_path / "node-7")
    results.add(record(0), {"agc": pd.DataFrame({"step": [1]})})
    step = results.checkpoints("k") / "step-00000004"
    step.mkdir(parents=True)
    (step / "state.pt").write_bytes(b"state")
    file = pack_folder(results.folder)
    results.close()
    assert file == tmp_path / "node-7.tar"
    with tarfile.open(file) as tar:
        names = tar.getnames()
        assert tar.extractfile("node-7/checkpoints/k/step-00000004/state.pt").read() == b"state"
    assert names[-1] == "node-7/results.jsonl" and "node-7/lock" not in names
    with unpacked(file) as folder:
        assert folder.name == "node-7" and not (folder / "checkpoints").exists()
        ((_, line),) = read_records(folder)
        assert line.result == record(0).result and list(tables_of(folder, line)) == ["agc"]
    assert not folder.exists()


def test_a_truncated_tar_is_refused(tmp_path):
    results = Results(tmp_path / "out")
    for seed in range(3):
        results.add(record(seed), {"signal": pd.DataFrame({"step": [1]})})
    file = pack_folder(results.folder)
    results.close()
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in tar.getmembers()]
    for size in (*ends[:-1], ends[-1] - 600, 700, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(WorkbenchError), unpacked(file):
            pass


def member(name, kind=tarfile.REGTYPE, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "unsafe",
    [
        member("../evil.jsonl"),
        member("/tmp/evil.jsonl"),
        member("out/../../evil.jsonl"),
        member("out/link.jsonl", tarfile.SYMTYPE, "/etc/passwd"),
        member("out/inside.jsonl", tarfile.SYMTYPE, "results.jsonl"),
        member("out/hard.parquet", tarfile.LNKTYPE, "out/results.jsonl"),
        member("out/pipe.jsonl", tarfile.FIFOTYPE),
    ],
    ids=lambda unsafe: unsafe.name,
)
def test_a_tar_with_a_link_or_a_member_outside_is_refused(tmp_path, unsafe):
    file = tmp_path / "out.tar"
    with tarfile.open(file, "w") as tar:
        tar.addfile(member("out/results.jsonl"))
        tar.addfile(unsafe)
    with pytest.raises(WorkbenchError, match=unsafe.name), unpacked(file):
        pass
    assert not list(tmp_path.rglob("evil.jsonl"))
