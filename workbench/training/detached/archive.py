"""The checkpoints of the trainings under way as one rolling archive: a tar in few files, whole or not there.

Generation 12 is `checkpoints-12.tar.1`, `.2`, ... of 16 MiB at most, which `cat` joins. `checkpoints.json` names the
parts of the generation that counts, with their hashes, and is replaced when the last of them is on disk. So a
generation that was half written when the power failed is none, and the one before it is still there.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.files import sha256, write_whole

LIMIT = 16 * 2**20  # bytes a file
MANIFEST = "checkpoints.json"
PARTS = "checkpoints-*.tar.*"
PLACE = re.compile(r"\w+/step-\d+/\w+\.\w+")
FILES = ("weights.safetensors", "state.pt", "manifest.json")  # of a checkpoint


class Archive:
    """The archive in `folder` of what lies in a scratch folder: a folder a training, as Checkpoints writes it."""

    def __init__(self, folder: Path, limit: int = LIMIT):
        self.folder, self.limit = folder, limit
        self._packed: list[str] | None = None

    def pack(self, scratch: Path) -> None:
        """Writes the newest checkpoint of each training in `scratch`, where it is not what the archive has already;
        nothing is left of the archive when there is none."""
        newest = [max(place.glob("step-*"), default=None) for place in sorted(scratch.iterdir())]
        newest = [str(step.relative_to(scratch)) for step in newest if step is not None]
        if newest == self._packed:
            return
        if not newest:
            (self.folder / MANIFEST).unlink(missing_ok=True)
            self._sweep(kept=())
        else:
            generation = 1 + self._manifest().get("generation", 0)
            parts = _Parts(self.folder, f"checkpoints-{generation}.tar", self.limit)
            try:
                with tarfile.open(fileobj=parts, mode="w|", bufsize=2**20) as tar:
                    for name in newest:
                        tar.add(scratch / name, name)
            except FileNotFoundError:
                return
            parts.close()
            if not all((scratch / name / file).is_file() for name in newest for file in FILES):
                return  # some were removed meanwhile, since three newer ones were written: those come next time
            manifest = {"generation": generation, "checkpoints": newest, "parts": parts.hashes}
            write_whole(self.folder / MANIFEST, lambda path: _write_to_disk(path, json.dumps(manifest).encode()))
            self._sweep(kept=parts.hashes)
        self._packed = newest

    def unpack(self, scratch: Path) -> list[str]:
        """Puts the checkpoints into `scratch` and returns their places there; none where a part is damaged, for then
        the trainings begin anew."""
        manifest = self._manifest()
        parts = manifest.get("parts", {})
        self._sweep(kept=parts)
        files = [self.folder / name for name in parts]
        if not all(file.is_file() and sha256(file) == parts[file.name] for file in files):
            return []
        try:
            with tarfile.open(fileobj=_Joined(files), mode="r|", bufsize=2**20) as tar:
                for member in tar:
                    if member.isfile() and PLACE.fullmatch(member.name):  # nothing outside scratch, no links
                        (scratch / member.name).parent.mkdir(parents=True, exist_ok=True)
                        with open(scratch / member.name, "wb") as file:
                            shutil.copyfileobj(tar.extractfile(member), file)
        except tarfile.TarError:
            shutil.rmtree(scratch)
            scratch.mkdir()
            return []
        return manifest.get("checkpoints", [])

    def _manifest(self) -> dict:
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text())
            return {**manifest, "parts": {Path(name).name: digest for name, digest in manifest["parts"].items()}}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _sweep(self, kept) -> None:
        for file in self.folder.glob(PARTS):
            if file.name not in kept:
                file.unlink()


class _Parts:
    """A file to write to that goes on in the next of its parts when one is full; `hashes` names those written."""

    def __init__(self, folder: Path, name: str, limit: int):
        self.folder, self.name, self.limit = folder, name, limit
        self.hashes: dict[str, str] = {}
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        while len(self._held) >= self.limit:
            self._part(self._held[: self.limit])
            del self._held[: self.limit]
        return len(data)

    def close(self) -> None:
        if self._held:
            self._part(self._held)
        self._held = bytearray()

    def _part(self, data: bytes) -> None:
        name = f"{self.name}.{len(self.hashes) + 1}"
        try:
            _write_to_disk(self.folder / name, data)
        except OSError as error:
            raise WorkbenchError(f"cannot write {self.folder / name} ({error.strerror}): make room.") from error
        self.hashes[name] = hashlib.sha256(data).hexdigest()


class _Joined:
    """A file to read from that is several, one after another."""

    def __init__(self, files: list[Path]):
        self._files = iter(files)
        self._open = None

    def read(self, n: int) -> bytes:
        while True:
            data = self._open.read(n) if self._open is not None else b""
            if data:
                return data
            if self._open is not None:
                self._open.close()
            file = next(self._files, None)
            if file is None:
                self._open = None
                return b""
            self._open = open(file, "rb")  # noqa: SIM115, closed when it is read


def _write_to_disk(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
