"""Fetching a file once: into a cache, with a progress bar, continued where it stopped, checked by size and hash."""

import contextlib
import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from workbench.errors import WorkbenchError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """WORKBENCH_CACHE, else `workbench` in the user's cache folder."""
    named = os.environ.get("WORKBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def fetch(url: str, digest: str, *, size: int | None = None, progress: bool = True) -> Path:
    """The file at `url`, from the cache or the net.

    Args: `digest` is "md5:<hex>" or "sha256:<hex>", the latter may be a prefix; `size` in bytes where it is known.
    An interrupted download stays beside its place as .part, and the next call continues it.
    Raises: WorkbenchError where there is no net, or the file is not what was released (it is then removed).
    """
    file = cache_folder() / Path(urllib.parse.urlparse(url).path).name
    if file.is_file():
        check_digest(file, digest)
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    with _alone(file):
        if not file.is_file():  # another process may have fetched it meanwhile
            _download(url, part, file, size, progress)
            try:
                check_digest(part, digest)
            except WorkbenchError:
                part.unlink()
                raise
            part.replace(file)
    return file


def check_digest(file: Path, digest: str) -> None:
    """Raises: WorkbenchError where the file does not have `digest` ("md5:..." or "sha256:...", perhaps a prefix)."""
    kind, _, wanted = digest.partition(":")
    with open(file, "rb") as stream:
        actual = hashlib.file_digest(stream, kind).hexdigest()
    if not actual.startswith(wanted):
        raise WorkbenchError(
            f"{file} is not the released file: its {kind} is {actual}, not {wanted}. Remove it and fetch it again."
        )


def _download(url: str, part: Path, file: Path, size: int | None, progress: bool) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if answer.status != 206:  # the server does not continue: from the start
                have = 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            if size is not None and total not in (have, size):
                raise WorkbenchError(f"{url} has {total:,} bytes where {size:,} were released: it is another file.")
            bar = tqdm(
                total=total or None, initial=have, desc=file.name, unit="B", unit_scale=True, disable=not progress
            )
            with bar, open(part, "ab" if have else "wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
            if total and part.stat().st_size < total:
                raise ConnectionError("the connection closed early")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # all of it is here already: the digest will tell
            return
        raise WorkbenchError(f"{url} answers {error.code} ({error.reason}): it cannot be fetched.") from error
    except (OSError, ConnectionError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        kept = f" What came so far ({part.stat().st_size:,} bytes) is kept and continued." if part.is_file() else ""
        raise WorkbenchError(
            f"cannot fetch {file.name} from {urllib.parse.urlparse(url).netloc} ({reason}): without a net, download "
            f"{url} elsewhere and put it at {file}.{kept}"
        ) from error


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time, where the system has file locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(file.with_name(file.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
