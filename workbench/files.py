"""Files: where one may be written, its hash, and writing it whole or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from workbench.errors import WorkbenchError, disk_error_message


def target_path(file: str | Path, suffixes: tuple[str, ...]) -> Path:
    """Where to write, checked before anything is computed: its suffix, and that only a file would be replaced."""
    path = Path(file).expanduser()
    if path.suffix not in suffixes:
        raise WorkbenchError(f"{path} must end in {' or '.join(suffixes)}.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise WorkbenchError(f"cannot write {path} ({above} is a file): choose another place.")
    try:
        replaceable = not path.exists() or path.is_file()
    except OSError as error:  # a name that is too long
        raise WorkbenchError(f"cannot write {path} ({error.strerror}): choose another name.") from error
    if not replaceable:
        raise WorkbenchError(f"{path} is no file that could be replaced: choose another name.")
    return path


def sha256(file: Path) -> str:
    """The hash of a file's bytes, 64 hex digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(file: Path, write: Callable[[Path], object]) -> Path:
    """`write(path)` beside the target, then a rename: there is never half a file under its name."""
    file = file.resolve()  # through a link to the file it means
    part = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # as the umask has it
        write(part)
        part.chmod(mode)
        part.replace(file)
    except Exception as error:
        if not isinstance(error, OSError) and disk_error_message(error) is None:
            raise
        cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise WorkbenchError(f"cannot write {file} ({cause}): choose another place.") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)
    return file
