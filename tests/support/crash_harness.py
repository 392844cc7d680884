"""A crash harness. It starts a study again and again and kills one of its processes each time, until it is complete.

    python tests/support/crash_harness.py --kills 60 --seed 0      prints a table of the kills; stops at the first error

A kill hits a victim (launcher, papermill, kernel, worker) at a random time, or at a moment that the files show.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[2]
NUMBERS = ("train_loss", "val_loss", "val_acc")
VICTIMS = ("launcher", "papermill", "kernel", "worker")
MOMENTS = ("random", "database", "training", "checkpointing", "result", "logging", "search")
CELLS = (
    """from workbench.lab import open_session, run_all, search
from workbench.lab.statistics.intervals import t_interval
from workbench.lab.statistics.verdict import Effect, Verdict
from workbench.training import TrainConfig
session = open_session('crash', globals())
base = TrainConfig(steps=steps, batch_size=16, train_size=64, eval_every=3, device='cpu')""",
    "screened = run_all([base.replace(seed=s) for s in range(3)], session)",
    """space = {'clip': {'low': 0.002, 'high': 0.64, 'log': True}, 'base_lr': {'low': 0.1, 'high': 20.0, 'log': True}}
searched = search(lambda p: base.replace(**p), space, trials=4, session=session)""",
    """best = searched.trials.loc[searched.trials.val_acc.idxmax()]  # after so few steps all may have collapsed
confirmed = run_all([base.replace(clip=best['clip'], base_lr=best.base_lr, seed=9)], session, role='confirm')
session.table(confirmed)""",
    "effect = Effect('accuracy', t_interval(screened.val_acc))\n"
    "session.verdict(Verdict(None, effect, 'done', screened[['seed', 'val_acc']]))",
)


def make_root(folder: Path) -> Path:
    """Make a workbench with the single study `crash` and no store."""
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook

    for name in ("notebooks", "studies"):
        (folder / name).mkdir(parents=True)
    (folder / ".workbench").touch()
    parameters = new_code_cell("steps: int = 12  # of each training", metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[parameters, *map(new_code_cell, CELLS)])
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, folder / "notebooks" / "crash.ipynb")
    (folder / "studies" / "crash.yaml").write_text("question: Does it survive?\nnotebook: crash.ipynb\n")
    return folder


def environment(root: Path) -> dict[str, str]:
    """One thread, and a checkpoint every 0.05 seconds."""
    settings = {
        "WORKBENCH_ROOT": str(root),
        "PYTHONPATH": str(CHECKOUT),
        "OMP_NUM_THREADS": "1",
        "WORKBENCH_CHECKPOINT_SECONDS": "0.05",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith(("WORKBENCH_", "MLFLOW_"))} | settings


def start(root: Path, executor: str) -> subprocess.Popen:
    """Start the study as a user does."""
    options = [] if executor == "inline" else ["--executor", executor, "--workers", "1", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "study", "crash", *options],
        env=environment(root),
        cwd=root,
        stdout=open(root / "output.txt", "a"),
        stderr=subprocess.STDOUT,
    )


def family(root: Path) -> list[psutil.Process]:
    """All processes that work for this root, including the launcher."""
    processes = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("WORKBENCH_ROOT") == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [p for p in processes if p.pid != os.getpid()]


def find(victim: str, launcher: subprocess.Popen) -> psutil.Process | None:
    """Find a process of this kind. None if none runs now."""
    marks = {
        "papermill": "workbench.lab.studies.notebook",
        "kernel": "ipykernel_launcher",
        "worker": "pool.worker",
    }
    try:
        launcher_process = psutil.Process(launcher.pid)
        if victim == "launcher":
            return launcher_process
        children = launcher_process.children(recursive=True)
        processes = [p for p in children if any(marks[victim] in a for a in p.cmdline())]
        if victim == "worker":  # a worker that trains, not the worker that waits for the notebook
            processes = [p for p in processes if any("ipykernel_launcher" in a for a in p.parent().cmdline())]
        return processes[-1] if processes else None
    except (psutil.NoSuchProcess, AttributeError):
        return None


def progress(moment: str, root: Path) -> int:
    """How far the root is towards the moment: a count of files or bytes. The moment has come when it grows."""
    runs = root / "mlruns"
    if moment == "database":
        return len(list(runs.glob(".part-mlflow.db"))) + 2 * (runs / "mlflow.db").exists()
    if moment == "training":
        return len(list(runs.glob("checkpoints/*/step-*/manifest.json")))
    if moment == "checkpointing":
        return len(list(runs.glob("checkpoints/*/.part-*")))
    if moment == "result":
        return len(list(runs.glob("checkpoints/*/*result.json")))
    if moment == "logging":
        return len(list(runs.glob("artifacts/trainings/*")))
    if moment == "search":
        return sum(f.stat().st_size for f in runs.glob("optuna.db*") if f.exists())
    return 0


def attempt(root: Path, victim: str, moment: str, sig: signal.Signals, rng: random.Random, executor: str) -> bool:
    """Start the study and kill the victim. Returns whether the victim was found before the study ended."""
    launcher = start(root, executor)
    before, wait = progress(moment, root), rng.random() * {"random": 20, "database": 3}.get(moment, 0.05)
    skip = 0 if moment in ("database", "random") else rng.randrange(4)
    began, killed = time.monotonic(), False
    while launcher.poll() is None:
        assert time.monotonic() - began < 300, "the study hangs"
        if not killed and (moment != "random" or time.monotonic() - began > wait):
            now = progress(moment, root)
            if moment == "random" or now > before:
                if skip == 0:
                    time.sleep(0 if moment == "random" else wait)
                    process = find(victim, launcher)
                    if process is not None:
                        process.send_signal(sig)
                        killed = True
                else:
                    skip -= 1
            before = now
        time.sleep(0.002)
    deadline = time.monotonic() + 45
    while family(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not family(root), f"processes still run: {[p.cmdline() for p in family(root)]}"
    return killed


def runs(root: Path) -> list[tuple[str, str, str, dict]]:
    """List (experiment, run id, status, tags) of all runs, read from the database without MLflow."""
    file = root / "mlruns" / "mlflow.db"
    if not file.exists():
        return []
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30) as db:
        try:
            tags = collections.defaultdict(dict)
            for run_id, key, value in db.execute("select run_uuid, key, value from tags"):
                tags[run_id][key] = value
            rows = db.execute(
                "select e.name, r.run_uuid, r.status from runs r join experiments e using (experiment_id)"
            )
            return [(name, run_id, status, tags[run_id]) for name, run_id, status in rows]
        except sqlite3.OperationalError:  # the database was not complete yet
            return []


def check(root: Path, victim: str) -> int:
    """Check the store after a kill. Returns the number of runs left RUNNING, which only a killed launcher may leave."""
    all_runs = runs(root)
    finished = collections.Counter(tags["key"] for e, _, s, tags in all_runs if e == "trainings" and s == "FINISHED")
    assert not [key for key, n in finished.items() if n > 1], "a finished training was repeated"
    assert sum(e == "studies" and s == "FINISHED" for e, _, s, _ in all_runs) <= 1
    left = sum(status == "RUNNING" for _, _, status, _ in all_runs)
    assert left == 0 or victim == "launcher", f"{left} runs have status RUNNING, but no process runs them"
    return left


def complete(root: Path) -> bool:
    return any(e == "studies" and s == "FINISHED" for e, _, s, _ in runs(root))


def results(root: Path) -> dict:
    """All results that kills must not change: trainings by key, and the search's suggestions by slot."""
    trainings = {}
    for experiment, run_id, status, tags in runs(root):
        if experiment == "trainings" and status == "FINISHED":
            text = (root / "mlruns" / "artifacts" / "trainings" / run_id / "artifacts" / "result.json").read_text()
            history = json.loads(text)["history"]
            trainings[tags["key"]] = [tags["outcome"], [[row[name] for name in NUMBERS] for row in history]]
    with sqlite3.connect(f"file:{root}/mlruns/optuna.db?mode=ro", uri=True) as db:
        rows = db.execute(
            "select a.value_json, p.param_name, p.param_value, v.value from trials t join trial_user_attributes a on "
            "a.trial_id = t.trial_id and a.key = 'slot' join trial_params p on p.trial_id = t.trial_id left join "
            "trial_values v on v.trial_id = t.trial_id where t.state in ('COMPLETE', 'PRUNED')"
        )
        search = sorted(rows)
    return {"trainings": trainings, "search": search}


def points_twice(root: Path) -> int:
    with sqlite3.connect(f"file:{root}/mlruns/mlflow.db?mode=ro", uri=True) as db:
        rows = "select count(*) from metrics group by run_uuid, key, step having count(*) > 1"
        return len(db.execute(rows).fetchall())


def campaign(kills: int, seed: int, executors: tuple[str, ...], say=print) -> collections.Counter:
    """Kill processes of as many studies as needed, and count how often each victim died at each moment.

    Raises:
        AssertionError: For the first error. The root is then kept, and the message names it.
    """
    rng, table, done, rounds = random.Random(seed), collections.Counter(), 0, 0
    scratch = Path(tempfile.mkdtemp(prefix="crashes-"))
    wanted: dict[str, dict] = {}
    for executor in executors:
        root = make_root(scratch / f"undisturbed-{executor}")
        assert start(root, executor).wait() == 0, (root / "output.txt").read_text()
        wanted[executor] = results(root)
    assert len({json.dumps(result, sort_keys=True) for result in wanted.values()}) == 1, "executors differ"
    plans = [
        (v, m) for v in VICTIMS for m in MOMENTS if m != "database"
    ]  # every second round starts with a database kill
    queue: list[tuple[str, str]] = []
    while done < kills:
        executor = executors[rounds % len(executors)]
        root, rounds = make_root(scratch / f"round-{rounds}"), rounds + 1
        kills_here, idle = 0, 0
        while not complete(root):
            queue = queue or rng.sample(plans, len(plans))
            victim, moment = queue.pop() if kills_here or idle or rounds % 2 else ("launcher", "database")
            if victim == "worker" and executor == "inline":
                victim = "kernel"
            if kills_here >= 8 or idle >= 3:
                victim = "nobody"
            sig = signal.SIGTERM if victim == "papermill" and rng.random() < 0.3 else signal.SIGKILL
            if victim == "nobody":
                assert start(root, executor).wait() == 0, (root / "output.txt").read_text()[-3000:]
            elif attempt(root, victim, moment, sig, rng, executor):
                kills_here, done = kills_here + 1, done + 1
                left = check(root, victim)
                table[victim, moment, sig.name, left] += 1
                say(f"{done}: {victim} by {sig.name}, {moment}, {executor}; {left} left for the next start")
            else:
                idle += 1
        check(root, "nobody")
        assert points_twice(root) == 0, f"points were logged twice: {root}"
        assert results(root) == wanted[executor], f"results differ from those without kills: {root}"
        doctor = subprocess.run(
            [sys.executable, "-m", "workbench.cli", "doctor"],
            env=environment(root),
            cwd=root,
            capture_output=True,
            text=True,
        )
        say(f"complete after {kills_here} kills; doctor: {doctor.stdout.strip().splitlines()[-1]}")
    shutil.rmtree(scratch)
    return table


def as_text(table: collections.Counter) -> str:
    """Format the counts: one row per victim, one column per moment."""
    lines = [f"{'':10}" + "".join(f"{moment:>15}" for moment in MOMENTS) + f"{'all':>8}"]
    for victim in VICTIMS:
        counts = [sum(n for (v, m, _, _), n in table.items() if (v, m) == (victim, moment)) for moment in MOMENTS]
        lines.append(f"{victim:10}" + "".join(f"{count:15}" for count in counts) + f"{sum(counts):8}")
    left = sum(n for (*_, running), n in table.items() if running)
    lines.append(f"{sum(table.values())} kills; after {left} of them the next start closed runs with status RUNNING")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(as_text(campaign(options.kills, options.seed, ("inline", "processes"), lambda line: print(line, flush=True))))
