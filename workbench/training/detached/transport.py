"""One tar of a detached run's folder: written when the run ends, and read by an import."""

import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workbench.errors import WorkbenchError
from workbench.files import write_whole
from workbench.training.detached.records import RESULTS
from workbench.training.detached.results import LOCK


def pack_folder(folder: Path) -> Path:
    """Write FOLDER.tar next to the folder, whole or not at all: results, tables, weights and checkpoints.

    The results come last, so that a tar that was cut off is none.

    Raises:
        WorkbenchError: Where the tar cannot be written.
    """

    def write(path: Path) -> None:
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != LOCK]
        with tarfile.open(path, "w") as tar:
            for file in sorted(files, key=lambda file: (file.name == RESULTS, file)):
                tar.add(file, folder.name / file.relative_to(folder))

    return write_whole(folder.with_name(f"{folder.name}.tar"), write)


@contextlib.contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """Unpack the results and tables in a tar into a temporary folder. Checkpoints and weights stay in the tar.

    Raises:
        WorkbenchError: For a file that is no whole tar of a detached run, and for a tar with a link, or with a member
            that would lie outside the folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch) / file.stem
        try:
            with tarfile.open(file, "r:") as tar:
                members = tar.getmembers()
                _refuse_unsafe(file, members)
                wanted = [member for member in members if member.name.endswith((".jsonl", ".parquet"))]
                tar.extractall(top, wanted, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise WorkbenchError(
                f"{file} cannot be read as a tar ({error}). Copy it again, or import the folder."
            ) from error
        holders = [results.parent for results in top.rglob(RESULTS)]
        if len(holders) != 1:
            raise WorkbenchError(f"{file} must contain {RESULTS} once, not {len(holders)} times. Pack it with --pack.")
        yield holders[0]


def _refuse_unsafe(file: Path, members: list[tarfile.TarInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise WorkbenchError(
                f"{file} contains {member.name}, which is a link or lies outside the folder. Import what --pack wrote."
            )
