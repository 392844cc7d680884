"""Runs the benchmarks by name, keeps their rows as small files, and makes the README's table from them."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from workbench.bounded_json import read
from workbench.errors import WorkbenchError, unknown
from workbench.paths import root

# Files of benchmarks/ that compare nothing with a peer.
HELPERS = {"harness", "peer", "parameters", "networks", "agreement", "suggest_clip", "large_store"}


class _Spread(TypedDict):
    median: float
    low: float
    high: float


class _Row(TypedDict):
    """What the table needs of a row that a benchmark wrote. Other values stay in the file."""

    benchmark: str
    case: str
    peer: str
    ratio: _Spread
    control: _Spread | None
    target: float
    over_floor: float | None
    device: str
    torch: str
    date: str


def names() -> list[str]:
    """List the programs in benchmarks/.

    Raises:
        WorkbenchError: If the root has no benchmarks.
    """
    programs = sorted(f.stem for f in (root() / "benchmarks").glob("*.py") if f.stem not in HELPERS)
    if not programs:
        raise WorkbenchError(f"{root()} has no benchmarks/. Run from a checkout, or set WORKBENCH_ROOT to one.")
    return programs


def check_names(chosen: Sequence[str]) -> None:
    """Raise if a name is not that of a program.

    Raises:
        WorkbenchError: If a name is unknown.
    """
    known = names()
    for name in chosen:
        if name not in known:
            raise unknown("benchmark", name, known)


def results_folder() -> Path:
    """The folder in the repository with the rows of each program and device."""
    return root() / "docs" / "results" / "benchmarks"


def run(chosen: Sequence[str], device: str, rounds: int | None, say: Callable[[str], None]) -> list[str]:
    """Run the programs one after another, each in a separate process.

    Args:
        chosen: Names of programs. If empty, all run.
        device: "cpu" or "cuda".
        rounds: Turns of each candidate, for a quick look that is not kept. None keeps the rows.
        say: Gets a line before each program starts.

    Returns:
        The names of the programs that failed.

    Raises:
        WorkbenchError: If a name is unknown. No program has run then.
    """
    check_names(chosen)
    known = names()
    failed = []
    for i, name in enumerate(chosen or known, start=1):
        say(f"[{i}/{len(chosen or known)}] {name}")
        command = [sys.executable, str(root() / "benchmarks" / f"{name}.py"), "--device", device]
        kept = ["--json", str(results_folder() / f"{name}-{device}.json")]
        command += ["--rounds", str(rounds)] if rounds else kept  # a quick look must not replace measured rows
        if subprocess.run(command, cwd=root()).returncode:
            failed.append(name)
    return failed


def table(folder: Path) -> str:
    """Format the kept rows as Markdown: for each device a heading with versions and dates, and a table.

    Raises:
        WorkbenchError: If `folder` holds no rows, or a file cannot be read.
    """
    rows = []
    for file in sorted(folder.glob("*.json")):
        rows += _rows(file)
    if not rows:
        raise WorkbenchError(f"{folder} holds no results. Run `workbench bench` first.")
    lines = []
    for device in dict.fromkeys(row["device"] for row in rows):
        device_rows = [row for row in rows if row["device"] == device]
        dates = sorted({row["date"] for row in device_rows})
        versions = sorted({row["torch"] for row in device_rows})
        lines += [
            f"{device}, torch {', '.join(versions)}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}:",
            "",
            "| what | peer | ratio, median (min..max) | peer against itself | target | over the floor |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in device_rows] + [""]
    return "\n".join(lines).rstrip()


def _rows(file: Path) -> list[dict]:
    """Read the rows of a benchmark."""
    try:
        return TypeAdapter(list[_Row]).validate_python(read(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WorkbenchError(f"Cannot read {file} ({where}: {first['msg']}). Run its benchmark again.") from error


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
    """Replace the text between the README's marks `<!-- what -->` and `<!-- /what -->`.

    Raises:
        WorkbenchError: If the file or one of the marks is missing.
    """
    begin, end = f"<!-- {what} -->", f"<!-- /{what} -->"
    if not file.is_file():
        raise WorkbenchError(f"Cannot write the table: there is no {file}. Set WORKBENCH_ROOT to a checkout.")
    whole = file.read_text()
    if begin not in whole or end not in whole:
        raise WorkbenchError(f"{file} must contain the lines {begin} and {end}. The table goes between them.")
    before, _, rest = whole.partition(begin)
    file.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
