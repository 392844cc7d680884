"""The benchmarks: run by name, their rows kept as small files, and made into the README's table."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.errors import WorkbenchError, unknown
from workbench.paths import root

# In benchmarks/, but no comparisons with a peer.
HELPERS = {"harness", "peer", "parameters", "networks", "agreement", "suggest_clip", "large_store"}


def names() -> list[str]:
    """The programs in benchmarks/."""
    programs = sorted(f.stem for f in (root() / "benchmarks").glob("*.py") if f.stem not in HELPERS)
    if not programs:
        raise WorkbenchError(f"{root()} has no benchmarks/: run from a checkout, or set WORKBENCH_ROOT to one.")
    return programs


def results_folder() -> Path:
    """Where the rows of each program and device lie, in the repository."""
    return root() / "docs" / "results" / "benchmarks"


def run(chosen: Sequence[str], device: str, rounds: int | None, say: Callable[[str], None]) -> list[str]:
    """Runs each program in a process of its own, one after another; returns the names of those that failed.

    Raises: WorkbenchError for an unknown name, before any of them runs.
    """
    known = names()
    for name in chosen:
        if name not in known:
            raise unknown("benchmark", name, known)
    failed = []
    for i, name in enumerate(chosen or known, start=1):
        say(f"[{i}/{len(chosen or known)}] {name}")
        command = [sys.executable, str(root() / "benchmarks" / f"{name}.py"), "--device", device]
        kept = ["--json", str(results_folder() / f"{name}-{device}.json")]
        command += ["--rounds", str(rounds)] if rounds else kept  # a quick look takes no measured row's place
        if subprocess.run(command, cwd=root()).returncode:
            failed.append(name)
    return failed


def table(folder: Path) -> str:
    """The kept rows as Markdown, a table for each device, with the date and the machine.

    Raises: WorkbenchError where nothing was kept.
    """
    rows = []
    for file in sorted(folder.glob("*.json")):
        try:
            rows += json.loads(file.read_text())
        except ValueError as error:
            raise WorkbenchError(f"cannot read {file} ({error}): run its benchmark again.") from error
    if not rows:
        raise WorkbenchError(f"{folder} holds no results: run `workbench bench` first.")
    lines = []
    for device in dict.fromkeys(row["device"] for row in rows):
        mine = [row for row in rows if row["device"] == device]
        dates = sorted({row["date"] for row in mine})
        versions = sorted({row["torch"] for row in mine})
        lines += [
            f"{device}, torch {', '.join(versions)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:",
            "",
            "| what | beside | ratio, median (min..max) | the peer beside itself | target | over the floor |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in mine] + [""]
    return "\n".join(lines).rstrip()


def _line(row: dict) -> str:
    ratio = _spread(row["ratio"]) if row["control"] else f"{row['ratio']['median']:.3f}"
    ratio = f"**{ratio}**" if row["ratio"]["median"] <= row["target"] else ratio
    control = _spread(row["control"]) if row["control"] else "counted"
    floor = f"{row['over_floor']:.1f}" if row["over_floor"] else ""
    what = f"{row['benchmark'].replace('_', ' ')}: {row['case']}"
    return f"| {what} | {row['peer']} | {ratio} | {control} | {row['target']:.2f} | {floor} |"


def _spread(spread: dict) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f}..{spread['high']:.2f})"


def write_readme(file: Path, text: str, what: str = "benchmarks") -> None:
    """Puts the table between its marks in the README, `<!-- what -->` and `<!-- /what -->`.

    Raises: WorkbenchError where the file or the marks are not there.
    """
    begin, end = f"<!-- {what} -->", f"<!-- /{what} -->"
    if not file.is_file():
        raise WorkbenchError(f"there is no {file}, into which the table goes.")
    whole = file.read_text()
    if begin not in whole or end not in whole:
        raise WorkbenchError(f"{file} has no lines {begin} and {end}, between which the table goes.")
    before, _, rest = whole.partition(begin)
    file.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
