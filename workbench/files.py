"""Check where a file can be written, hash a file, and write a file completely or not at all."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from workbench.environment import expanded
from workbench.errors import WorkbenchError, disk_error_message, shown


def local_path(path: str | Path) -> Path:
    """Return the path that a user gave. A leading `~` is expanded.

    Raises:
        WorkbenchError: If no file can have this path, see `environment.expanded`.
    """
    try:
        return expanded(path)
    except ValueError as error:
        raise WorkbenchError(f"no file can be used at {shown(str(path), 500)} ({error}). Check the path.") from error


def target_path(file: str | Path, suffixes: tuple[str, ...]) -> Path:
    """Check that a file can be written, before anything is computed.

    Args:
        file: Path of the file. A leading `~` is expanded.
        suffixes: Allowed suffixes, such as (".csv",).

    Returns:
        The path.

    Raises:
        WorkbenchError: If the suffix is not allowed, a file blocks the folder, or the path exists and is not a file.
    """
    path = local_path(file)
    if path.suffix not in suffixes:
        raise WorkbenchError(f"{path} must end in {' or '.join(suffixes)}.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise WorkbenchError(f"cannot write {path} ({above} is a file): choose another place.")
    try:
        replaceable = not path.exists() or path.is_file()
    except OSError as error:  # such as a name that is too long
        raise WorkbenchError(f"cannot write {path} ({error.strerror}): choose another name.") from error
    if not replaceable:
        raise WorkbenchError(f"{path} exists and is not a file: choose another name.")
    return path


def sha256(file: Path) -> str:
    """Return the SHA-256 hash of a file's bytes, 64 hex digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_whole(file: Path, write: Callable[[Path], object]) -> Path:
    """Write a file completely or not at all.

    The content goes to a temporary file next to the target, which is then renamed.

    Args:
        file: The target. Missing folders are made.
        write: Writes the content to the path that it gets.

    Returns:
        The resolved path of the target.

    Raises:
        WorkbenchError: If the file cannot be written.
    """
    file = file.resolve()  # a link stays a link: its target is replaced
    part = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # the default of the umask; `write` may set another
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
