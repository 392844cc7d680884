"""Detached runs. Evidence: killed or stopped anywhere and started again, they give the bits of a training run here; what
lies in the folder is whole at any moment, and in files of the size that is allowed.
"""

import json
import multiprocessing as mp
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
from support.checkout import CHECKOUT
from support.detached import TINY, plain, start, wait_for

from workbench.errors import WorkbenchError
from workbench.files import sha256
from workbench.training import TrainResult, train, training_key
from workbench.training import __main__ as program
from workbench.training.checkpoint import Checkpoints
from workbench.training.detached import results as results_module
from workbench.training.detached import worker as worker_module
from workbench.training.detached.archive import Archive
from workbench.training.detached.plan import Plan, Planned, read_plan, write_plan
from workbench.training.detached.records import Record, numbered, read_records, tables_of
from workbench.training.detached.results import Results
from workbench.training.detached.run import ready, run_plan
from workbench.training.detached.worker import Worker, on_seat, seats


@pytest.fixture
def plan(image_folder, tmp_path):
    """Two trainings that complete and one that diverges, on a folder of images."""
    base = TINY.replace(data=str(image_folder))
    configs = [base, base.replace(seed=1), base.replace(clip=None, base_lr=4e5, warmup=0.0, telemetry_every=None)]
    trainings = [Planned.of(config, study="mine", arm="a") for config in configs]
    return write_plan(tmp_path / "plan.jsonl", trainings)


def check_against_training_here(out, plan):
    """The folder has every training of the plan once, with the bits that it has here, and its tables say the same."""
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
        again = tables_of(out, training.key)
        assert set(again) == set(tables) and all(again[name].equals(tables[name]) for name in tables)
    history = pd.read_parquet(out / "history.parquet")
    rows = [(r.result.key, row["step"], row["val_loss"]) for r in records.values() for row in r.result.history]
    assert list(zip(history["key"], history["step"], history["val_loss"], strict=True)) == rows
    assert not any(file.is_dir() for file in out.iterdir())
    assert not list(out.glob("checkpoints*"))  # nothing is under way


# ---- runs


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_training_gives_the_same_bits(plan, tmp_path, one_thread):
    """kill -9, once the first training has a checkpoint in the archive."""
    killed = []

    def kill_once():
        if not killed and (tmp_path / "out" / "checkpoints.json").exists():
            killed.extend(mp.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)
        return False

    options = {"device": "cpu", "workers": 2, "checkpoint_seconds": 0.2}
    summary = run_plan(plan, tmp_path / "out", **options, asked_to_stop=kill_once)
    assert killed
    assert (summary.done, summary.known, summary.left, summary.failed) == (3, 0, 0, [])
    check_against_training_here(tmp_path / "out", plan)
    again = run_plan(plan, tmp_path / "out", device="cpu")
    assert (again.done, again.known, again.left) == (0, 3, 0)


@pytest.mark.slow
def test_a_training_whose_worker_dies_twice_has_failed_and_the_others_go_on(plan, tmp_path, one_thread, capsys):
    killed = set()

    def kill_two():
        for child in mp.active_children():
            if len(killed) < 2 and child.pid not in killed:
                killed.add(child.pid)
                os.kill(child.pid, signal.SIGKILL)
        return False

    summary = run_plan(plan, tmp_path / "out", device="cpu", asked_to_stop=kill_two)
    assert (summary.done, summary.left, len(summary.failed)) == (2, 0, 1)
    first = next(record for _, record in read_records(tmp_path / "out"))
    assert first.result.outcome == "failed"
    assert "exit code -9, 2 times" in first.result.cause
    assert "once more: nf_resnet_tiny" in capsys.readouterr().err


@pytest.mark.slow
def test_an_error_is_a_failure_with_its_cause_and_tried_anew_by_the_next_start(plan, tmp_path, image_folder):
    """The images become unreadable after the checks, and are mended."""
    started, images = [], {file: file.read_bytes() for file in image_folder.rglob("*.png")}

    def spoil():
        if not started:
            started.append(1)
            for file in images:
                file.write_bytes(b"no image")
        return False

    summary = run_plan(plan, tmp_path / "out", device="cpu", asked_to_stop=spoil)
    assert summary.done == 0
    assert len(summary.failed) == 3 and all("cannot read" in cause for cause in summary.failed)
    for file, data in images.items():
        file.write_bytes(data)
    summary = run_plan(plan, tmp_path / "out", device="cpu", keep_weights=True)
    assert (summary.done, summary.known, summary.failed) == (3, 0, [])
    assert len(list((tmp_path / "out").glob("nf_resnet_tiny_B8_lr0.05_c0.01_s0-*.safetensors"))) == 1


@pytest.mark.slow
def test_told_to_stop_it_checkpoints_and_goes_on_from_there(plan, tmp_path, one_thread):
    """It goes on, rather than begins anew: the rows before keep the times that they were measured at."""
    out = tmp_path / "out"
    summary = run_plan(plan, out, device="cpu", checkpoint_seconds=0.2, asked_to_stop=lambda: steps_archived(out) >= 20)
    assert summary.left >= 1
    (tmp_path / "scratch").mkdir()
    (place,) = Archive(out).unpack(tmp_path / "scratch")
    state = torch.load(tmp_path / "scratch" / place / "state.pt", weights_only=True)
    assert len(state["history"]) >= 1
    summary = run_plan(plan, out, device="cpu")
    assert (summary.done + summary.known, summary.left) == (3, 0)
    check_against_training_here(out, plan)
    result = {record.result.key: record.result for _, record in read_records(out)}[place.partition("/")[0]]
    assert result.history[: len(state["history"])] == state["history"]


def steps_archived(out):
    """The step of the checkpoint in the archive; 0 where there is none."""
    try:
        return int(json.loads((out / "checkpoints.json").read_text())["checkpoints"][0][-8:])
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_ctrl_c_and_term_reach_all_processes_and_leave_a_checkpoint(plan, tmp_path, number, code, one_thread):
    out = tmp_path / "out"
    running = start(plan, out, "--checkpoint-seconds", "0.2")
    wait_for(lambda: (out / "checkpoints.json").exists(), running)
    os.killpg(running.pid, number)
    outputs = running.communicate(timeout=60)
    assert running.returncode == code, outputs
    assert "Traceback" not in outputs[1]
    assert "left: the same command goes on from there" in outputs[0]
    assert (out / "checkpoints.json").exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="signal masks are read from /proc")
def test_not_even_the_first_worker_sees_a_ctrl_c_while_it_starts():
    code = """
import pathlib
from workbench.training.detached.worker import Seat, Worker
worker = Worker(Seat("cpu", "cpu", None, 1, 1))
print(pathlib.Path(f"/proc/{worker.process.pid}/status").read_text())
worker.end(kill=True)
"""
    status = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=True
    ).stdout
    blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
    assert blocked >> (signal.SIGINT - 1) & 1


@pytest.mark.slow
def test_the_second_ctrl_c_ends_it_at_once(plan, tmp_path, one_thread):
    """The worker does not answer, for it is halted."""
    out = tmp_path / "out"
    running = start(plan, out, "--checkpoint-seconds", "0.2")
    wait_for(lambda: (out / "checkpoints.json").exists(), running)
    (worker,) = [child for child in psutil.Process(running.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    worker.suspend()
    running.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=3)
    running.send_signal(signal.SIGINT)
    outputs = running.communicate(timeout=20)
    assert running.returncode == 130, outputs
    assert not worker.is_running()


def test_the_time_given_is_kept(plan, tmp_path):
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
    """The plan's first training alone, changed."""
    header, first, *_ = map(json.loads, plan.read_text().splitlines())
    header |= {k: changes.pop(k) for k in ("code",) if k in changes} | {"trainings": 1}
    config = first["config"] | changes.pop("config", {})
    plan.write_text("".join(json.dumps(v) + "\n" for v in (header, first | {"config": config} | changes)))


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"code": "0" * 16}, [], "the plan was made by code 0000000000000000, and here is"),
        ({"data_digest": "0" * 16}, [], "here and 0000000000000000 in the plan: bring the same files"),
        ({"key": "0" * 64}, [], "and 0000000000000000 in the plan"),
        ({"config": {"data": "nowhere/at/all"}}, [], "must be an existing folder of images"),
        ({"config": {"batch_size": 4000}}, [], "must be at most the number of training images"),
        ({"config": {"model_args": {"wdith": 2}}}, [], "wdith"),
        ({"config": {"weights": "none.safetensors"}}, [], "there is no file of weights"),
        ({}, ["--device", "cuda:99"], "is not on this machine"),
        ({}, ["--device", "gpu"], "unknown device 'gpu'"),
        ({}, ["--workers", "0"], "must be at least 1"),
        ({}, ["--limit-minutes", "0"], "must be above 0"),
        ({}, ["--checkpoint-seconds", "-1"], "must be above 0"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_written(
    plan, tmp_path, monkeypatch, capsys, changes, options, message
):
    changed(plan, **changes)
    code, shown = run_program(monkeypatch, capsys, plan, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in shown.err and shown.err.startswith("workbench: ")
    assert not (tmp_path / "out").exists()


def test_curvature_needs_scipy_here(plan, monkeypatch):
    from workbench.training.detached import run as detached

    line = read_plan(plan).trainings[0]
    line = Planned.of(line.config.replace(curvature_every=5))
    assert ready(Plan(read_plan(plan).code, [line])) == [line]
    monkeypatch.setattr(detached.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match="needs scipy"):
        ready(Plan(read_plan(plan).code, [line]))


def test_with_other_code_the_keys_are_those_of_the_code_here(plan):
    here = read_plan(plan).trainings[0]
    (training,) = ready(Plan("0" * 16, [Planned("1" * 64, here.config, here.data_digest)]), other_code=True)
    assert training.key == here.key


def test_torchrun_is_refused(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkbenchError, match="without torchrun"):
        run_plan(plan, tmp_path / "out")


# ---- seats


def test_one_training_a_gpu_with_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    all_seats = seats("auto", None, gpus=4, cores=32)
    assert [(s.name, s.device, s.visible, s.threads, s.loaders) for s in all_seats] == [
        (f"cuda:{i}", "cuda", str(i), 8, 8) for i in range(4)
    ]
    assert [s.visible for s in seats("cuda", 6, gpus=4, cores=32)] == ["0", "1", "2", "3", "0", "1"]
    assert [s.visible for s in seats("cuda:2", 2, gpus=4, cores=32)] == ["2", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    assert [s.visible for s in seats("cuda", None, gpus=2, cores=4)] == ["5", "GPU-abc"]
    assert [(s.device, s.visible, s.threads) for s in seats("cpu", 3, gpus=2, cores=8)] == [("cpu", None, 2)] * 3
    assert [s.threads for s in seats("cpu", None, gpus=0, cores=8)] == [8]


def test_a_worker_sees_its_own_gpu_alone_and_the_environment_is_as_before(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    inherited = {}

    class Process:
        def __init__(self, **kwargs):
            pass

        def start(self):
            inherited.update(os.environ)

    monkeypatch.setattr(worker_module.mp, "get_context", lambda kind: SimpleNamespace(Process=Process))
    before = dict(os.environ)
    Worker(seats("cuda", None, gpus=2, cores=8)[1])
    assert (inherited["CUDA_VISIBLE_DEVICES"], inherited["OMP_NUM_THREADS"]) == ("1", "4")
    assert dict(os.environ) == before


def test_a_seat_changes_where_a_training_runs_and_not_its_name(image_folder):
    config = TINY.replace(data=str(image_folder), stream=True, image_size=32, workers=3)
    seated = on_seat(config, seats("cuda", None, gpus=4, cores=32)[2])
    assert (seated.device, seated.workers, seated.progress) == ("cuda", 8, False)
    assert training_key(seated, "d") == training_key(config, "d")
    assert on_seat(TINY, seats("cpu", None, gpus=0, cores=8)[0]).workers is None  # only streamed images have loaders


# ---- the folder


def record(seed=0, outcome="complete", rows=2, cause=None):
    config = TINY.replace(seed=seed)
    history = [{"step": step, "val_acc": 0.5 + step / 100} for step in range(rows)]
    result = TrainResult(training_key(config, "d"), config, outcome, history, {"val_acc": 0.5}, cause, data_digest="d")
    return Record(result, "mine", "full", "screen", "a", None, 10.0, 20.0)


def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path):
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


def test_no_file_passes_the_limit_and_nothing_is_lost(tmp_path):
    limit = 12_000
    results = Results(tmp_path, limit)
    table = pd.DataFrame(torch.rand(150, 6).numpy(), columns=list("abcdef"))
    for seed in range(12):
        results.add(record(seed, rows=40), {"agc": table + seed})
        results.write_history()
    results.close()
    assert len(numbered(tmp_path, "results", ".jsonl")) > 1
    assert len(numbered(tmp_path, "agc", ".parquet")) > 1
    assert max(file.stat().st_size for file in tmp_path.iterdir()) <= limit
    again = Results(tmp_path, limit)
    assert list(again.records.values()) == [record(seed, rows=40) for seed in range(12)]
    again.close()
    for seed in range(12):
        assert tables_of(tmp_path, record(seed).result.key)["agc"].equals(table + seed)
    parts = [pd.read_parquet(file) for file in numbered(tmp_path, "history", ".parquet")]
    assert len(pd.concat(parts)) == 12 * 40


def test_histories_follow_from_the_lines_alone(tmp_path):
    """Parts of a longer table that is no more are removed."""
    results = Results(tmp_path, limit=4000)
    results.add(record(0, rows=400), {})
    results.write_history()
    assert len(numbered(tmp_path, "history", ".parquet")) > 1
    results.close()
    results = Results(tmp_path)
    results.write_history()
    assert [file.name for file in numbered(tmp_path, "history", ".parquet")] == ["history.parquet"]
    assert len(pd.read_parquet(tmp_path / "history.parquet")) == 400
    results.close()


def test_a_finished_line_counts_above_failed_ones(tmp_path):
    results = Results(tmp_path)
    for each in (record(0, "failed", 0, "memory"), record(0), record(0, "failed", 0, "memory")):
        results.add(each, {})
    results.close()
    again = Results(tmp_path)
    assert again.finished(record(0).result.key)
    assert again.records[record(0).result.key] == record(0)
    again.close()


def test_tables_of_a_training_without_a_line_are_dropped(tmp_path):
    results = Results(tmp_path)
    table = pd.DataFrame({"step": [1, 2], "ratio": [0.1, 0.2]})
    results.add(record(0), {"agc": table})
    results._add_to_table("agc", table.assign(key=record(1).result.key))  # killed here, before its line
    results.close()
    again = Results(tmp_path)
    again.add(record(1), {"agc": table})
    again.close()
    assert len(pd.read_parquet(tmp_path / "agc.parquet")) == 4
    assert tables_of(tmp_path, record(1).result.key)["agc"].equals(table)


def test_two_runs_do_not_share_a_folder(tmp_path):
    results = Results(tmp_path)
    with pytest.raises(WorkbenchError, match=f"is in use by process {os.getpid()} on"):
        Results(tmp_path)
    results.close()
    Results(tmp_path).close()


def test_a_full_disk_is_a_sentence():
    with pytest.raises(WorkbenchError, match="No space left on device"):
        results_module._append_to_disk(Path("/dev/full"), b"a line")


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(WorkbenchError, match="choose another --out"):
        Results("/proc/out")


# ---- the archive


def checkpointed(scratch, name, step, seed=0):
    torch.manual_seed(seed)
    Checkpoints(scratch / name).save("k" * 64, step, torch.nn.Linear(40, 40), {"step": step})


def contents(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture
def archived(tmp_path):
    """(archive's folder, scratch): two trainings, the newest checkpoint of each in files of 4,000 bytes."""
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir(), out.mkdir()
    for name, step in (("a", 1), ("a", 2), ("b", 7)):
        checkpointed(scratch, name, step)
    Archive(out, limit=4000).pack(scratch)
    shutil.rmtree(scratch / "a" / "step-00000001")
    return out, scratch


def unpacked(out, tmp_path):
    again = tmp_path / f"again-{time.monotonic_ns()}"
    again.mkdir()
    Archive(out, limit=4000).unpack(again)
    return contents(again)


def test_the_archive_has_the_newest_of_each_in_files_below_the_limit(archived, tmp_path):
    out, scratch = archived
    parts = sorted(out.glob("checkpoints-1.tar.*"))
    assert len(parts) > 2 and max(part.stat().st_size for part in parts) <= 4000
    assert unpacked(out, tmp_path) == contents(scratch)


def test_a_half_written_generation_is_none(archived, tmp_path, monkeypatch):
    """The power fails before the manifest of the second generation."""
    out, scratch = archived
    before = contents(scratch)
    checkpointed(scratch, "b", 8, seed=1)
    monkeypatch.setattr(
        "workbench.training.detached.archive.write_whole", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        Archive(out, limit=4000).pack(scratch)
    monkeypatch.undo()
    assert list(out.glob("checkpoints-2.tar.*"))
    assert unpacked(out, tmp_path) == before
    assert not list(out.glob("checkpoints-2.tar.*"))


def test_a_new_generation_replaces_the_one_before_and_the_last_leaves_nothing(archived, tmp_path):
    out, scratch = archived
    archive = Archive(out, limit=4000)
    checkpointed(scratch, "b", 8, seed=1)
    archive.pack(scratch)
    assert not list(out.glob("checkpoints-1.tar.*"))
    shutil.rmtree(scratch / "b" / "step-00000007")
    assert unpacked(out, tmp_path) == contents(scratch)
    for name in "ab":
        shutil.rmtree(scratch / name)
    archive.pack(scratch)
    assert not list(out.iterdir())


def test_nothing_is_unpacked_outside_the_scratch_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    good, link = tarfile.TarInfo("a/step-1/state.pt"), tarfile.TarInfo("a/step-1/link.pt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    outside = [tarfile.TarInfo(name) for name in ("../evil.pt", "/tmp/evil.pt", "a/step-1/../../../evil.pt")]
    with tarfile.open(out / "checkpoints-1.tar.1", "w") as tar:
        for member in (good, link, *outside):
            tar.addfile(member)
    parts = {"checkpoints-1.tar.1": sha256(out / "checkpoints-1.tar.1")}
    (out / "checkpoints.json").write_text(json.dumps({"generation": 1, "checkpoints": [], "parts": parts}))
    assert set(unpacked(out, tmp_path)) == {"a/step-1/state.pt"}
    assert not list(tmp_path.rglob("evil.pt"))


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1] + b"?")])
def test_a_damaged_part_is_not_believed(archived, tmp_path, damage):
    out, _ = archived
    damage(out / "checkpoints-1.tar.1")  # its last byte is of weights
    assert unpacked(out, tmp_path) == {}
