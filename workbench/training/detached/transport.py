"""Pack the folder of a detached run into a tar, and unpack it for an import."""

import contextlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from workbench.errors import WorkbenchError
from workbench.files import write_whole
from workbench.training.detached.records import RESULTS
from workbench.training.detached.results import LOCK

MEMBERS = 1_000_000  # of a tar


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
                members = list(_checked(file, tar))
                wanted = [member for member in members if member.name.endswith((".jsonl", ".parquet"))]
                _check_room(file, wanted, Path(scratch))
                tar.extractall(top, wanted, filter="data")
        except WorkbenchError:
            raise
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            raise WorkbenchError(
                f"{file} cannot be read as a tar ({error}). Copy it again, or import the folder."
            ) from error
        holders = [results.parent for results in top.rglob(RESULTS)]
        if len(holders) != 1:
            raise WorkbenchError(
                f"{file} must contain {RESULTS} once, got {len(holders)}. Pack the folder with --pack."
            )
        yield holders[0]


def _checked(file: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar. Refuse what --pack never writes, before anything is unpacked."""
    for number, member in enumerate(tar, start=1):
        path = PurePosixPath(member.name)
        if number > MEMBERS:
            raise WorkbenchError(f"{file} must have at most {MEMBERS:,} members. Import the folder.")
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()) or member.issparse():
            raise WorkbenchError(
                f"{file} contains {member.name[:200]}, which is a link, sparse or outside the folder. "
                "Import a tar that --pack wrote."
            )
        yield member


def _check_room(file: Path, wanted: list[tarfile.TarInfo], folder: Path) -> None:
    size = sum(member.size for member in wanted)
    limits = {"the size of the tar": file.stat().st_size, "the free disk space": shutil.disk_usage(folder).free}
    name, limit = min(limits.items(), key=lambda item: item[1])
    if size > limit:
        raise WorkbenchError(
            f"the results and tables of {file} must have at most {limit:,} bytes ({name}), got {size:,}. "
            "Pack the folder again, or import it without a tar."
        )
