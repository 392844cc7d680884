"""Fetches a file once, into a cache, and checks its size and hash.

An interrupted download continues where it stopped.
"""

import contextlib
import hashlib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from workbench import environment
from workbench.bars import bar
from workbench.errors import WorkbenchError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Return WORKBENCH_CACHE, or `workbench` in the user's cache folder."""
    named = environment.folder("WORKBENCH_CACHE")
    return named or (environment.folder("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def fetch(url: str, digest: str, *, size: int | None = None, progress: bool = True) -> Path:
    """Return the file at `url`, from the cache or the network.

    An interrupted download stays in the cache as .part, and the next call continues it.

    Args:
        url: Where the file is.
        digest: "md5:<hex>" or "sha256:<hex>". A prefix of the hash is enough.
        size: Size in bytes, if it is known.
        progress: Show a progress bar.

    Returns:
        Its path in the cache.

    Raises:
        WorkbenchError: If there is no network, or the file is not the released one. A wrong download is removed.
    """
    file = cache_folder() / Path(urllib.parse.urlparse(url).path).name
    if file.is_file():
        check_digest(file, digest)
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = f"cannot make the folder {file.parent} ({error.strerror})"
        raise WorkbenchError(f"{cause}. Choose another place with WORKBENCH_CACHE.") from error
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
    """Check the hash of a file.

    Args:
        file: The file.
        digest: "md5:<hex>" or "sha256:<hex>". A prefix of the hash is enough.

    Raises:
        WorkbenchError: If the hash differs.
    """
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
            if answer.status != 206:  # the server cannot continue, so it sends the whole file
                have = 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            if size is not None and total not in (have, size):
                raise WorkbenchError(
                    f"{url} has {total:,} bytes, but the released file has {size:,}. It is another file."
                )
            counter = bar(total or None, done=have, desc=file.name, unit="B", shown=progress, leave=True)
            with counter, open(part, "ab" if have else "wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    counter.update(len(chunk))
            if total and part.stat().st_size < total:
                raise ConnectionError("the connection closed early")
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the whole file is here already, and the caller checks its digest
            return
        raise WorkbenchError(f"Cannot fetch {url}: the server answered {error.code} ({error.reason}).") from error
    except (OSError, ConnectionError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        kept = f", but {part.stat().st_size:,} bytes are kept for the next try" if part.is_file() else ""
        raise WorkbenchError(
            f"Cannot fetch {file.name} from {urllib.parse.urlparse(url).netloc} ({reason}){kept}. Without a network, "
            f"download {url} elsewhere and put it at {file}."
        ) from error


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let one process at a time in, if the system has file locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(file.with_name(file.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
