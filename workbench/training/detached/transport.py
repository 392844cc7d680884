"""Pack the folder of a detached run into a tar, and unpack it for an import."""

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
    """Write FOLDER.tar next to the folder, whole or not at all.

    It contains results, tables, weights and checkpoints. The results come last, so a truncated tar has no results.

    Raises:
        WorkbenchError: If the tar cannot be written.
    """

    def write(path: Path) -> None:
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != LOCK]
        with tarfile.open(path, "w") as tar:
            for file in sorted(files, key=lambda file: (file.name == RESULTS, file)):
                tar.add(file, folder.name / file.relative_to(folder))

    return write_whole(folder.with_name(f"{folder.name}.tar"), write)


@contextlib.contextmanager
def unpacked(file: Path) -> Iterator[Path]:
    """Unpack results and tables of a tar into a temporary folder.

    Checkpoints and weights stay in the tar.

    Raises:
        WorkbenchError: If the file is not a complete tar of a detached run, or if it contains a link or a member
            outside its folder.
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
            raise WorkbenchError(
                f"{file} must contain {RESULTS} once, got {len(holders)}. Pack the folder with --pack."
            )
        yield holders[0]


def _refuse_unsafe(file: Path, members: list[tarfile.TarInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise WorkbenchError(
                f"{file} contains {member.name}, which is a link or outside the folder. Import a tar that --pack wrote."
            )
