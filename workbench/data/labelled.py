"""Labelled images one at a time, from a folder with class folders or from parquet files.

The class order is that of the parquet's labels, or the sorted order of the folders' names. ImageNet's synsets sort into
the order of the released weights.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.data.folders import image_files
from workbench.errors import WorkbenchError

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")


@dataclass(frozen=True)
class Labelled:
    """A source of labelled images. Iterate over it to read them.

    Attributes:
        path: The folder or the parquet file.
        classes: Names of the classes, in the order of the labels.
        files: Image files, or parquet files.
        labels: The label of each image file. None for parquet files.
        n: The number of images.
    """

    path: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    n: int

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[Path | bytes, int, str]]:
        """Yield (file or its bytes, label, name for error messages) of every image."""
        if self.labels is not None:
            for file, label in zip(self.files, self.labels, strict=True):
                yield file, label, str(file)
            return
        import pyarrow.parquet as pq

        for file in self.files:
            opened = pq.ParquetFile(file)
            image, label = _columns(opened.schema_arrow.names, file)
            row = 0
            for batch in opened.iter_batches(256, columns=[image, label]):
                for cell, value in zip(batch[image], batch[label], strict=True):
                    yield _checked(cell.as_py(), value.as_py(), len(self.classes), f"row {row} of {file}")
                    row += 1

    def digest(self) -> str:
        """Return the SHA-256 (16 hex digits) of the files' names and sizes. No file is read."""
        hashed = hashlib.sha256()
        folder = self.path if self.path.is_dir() else self.path.parent
        for file in self.files:
            hashed.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        return hashed.hexdigest()[:16]


def open_labelled(path: str | Path) -> Labelled:
    """Find labelled images.

    Args:
        path: A folder of class folders, a parquet file, or a folder of parquet files.

    Returns:
        The images, not read yet.

    Raises:
        WorkbenchError: If there are no images, or a parquet file lacks a column.
    """
    path = Path(path).expanduser().resolve()
    if path.is_file() and path.suffix == ".parquet":
        return _open_parquet(path, (path,))
    if not path.is_dir():
        raise WorkbenchError(
            f"`data` must be a folder of class folders, a parquet file or a folder of parquet files, got {path}, which "
            f"{'is another kind of file' if path.exists() else 'does not exist'}."
        )
    tables = tuple(sorted(path.glob("*.parquet")))
    if tables:
        return _open_parquet(path, tables)
    classes = tuple(sorted(d.name for d in path.iterdir() if d.is_dir() and not d.name.startswith(".")))
    pairs = [(file, label) for label, name in enumerate(classes) for file in image_files(path / name)]
    if not pairs:
        raise WorkbenchError(
            f"{path} holds no images in class folders and no parquet files. Example of an image: {path}/cat/1.jpg."
        )
    files, labels = zip(*pairs, strict=True)
    return Labelled(path, classes, files, labels, len(files))


def _open_parquet(path: Path, files: tuple[Path, ...]) -> Labelled:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows, top, names = 0, -1, None
    for file in files:
        try:
            opened = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise WorkbenchError(f"Cannot read {file} as parquet ({error}). Fetch the file again.") from error
        image, label = _columns(opened.schema_arrow.names, file)
        cell = opened.schema_arrow.field(image).type
        if not pa.types.is_struct(cell) or cell.get_field_index("bytes") < 0:
            raise WorkbenchError(
                f"The column {image} of {file} must be a struct with the field `bytes`, got {cell}. Write the encoded "
                "images to that field."
            )
        if not pa.types.is_integer(opened.schema_arrow.field(label).type):
            kind = opened.schema_arrow.field(label).type
            raise WorkbenchError(
                f"The column {label} of {file} must hold whole numbers, got {kind}. Number the classes from 0."
            )
        rows += opened.metadata.num_rows
        names = names or _class_names(opened.schema_arrow.metadata, label)
        top = max(top, pc.max(opened.read(columns=[label])[label]).as_py() or 0)
    if rows == 0:
        raise WorkbenchError(f"{path} must hold at least one row, got 0. Fetch the data again.")
    classes = names or tuple(map(str, range(top + 1)))
    return Labelled(path, classes, files, None, rows)


def _columns(names: list[str], file: Path) -> tuple[str, str]:
    image = next((c for c in IMAGE_COLUMNS if c in names), None)
    label = next((c for c in LABEL_COLUMNS if c in names), None)
    if image is None or label is None:
        raise WorkbenchError(
            f"{file} must have a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(LABEL_COLUMNS)}, got "
            f"{', '.join(names)}. Rename the columns."
        )
    return image, label


def _class_names(metadata: dict | None, label: str) -> tuple[str, ...] | None:
    try:
        info = json.loads((metadata or {})[b"huggingface"])
        return tuple(info["info"]["features"][label]["names"]) or None
    except (KeyError, TypeError, ValueError):  # names are optional
        return None


def _checked(cell: dict | None, label: int | None, classes: int, where: str) -> tuple[bytes, int, str]:
    if cell is None or cell["bytes"] is None:
        raise WorkbenchError(f"{where} has no image. Remove the row.")
    if label is None or not 0 <= label < classes:
        raise WorkbenchError(f"The label of {where} must be from 0 to {classes - 1}, got {label}. Correct the row.")
    return cell["bytes"], label, where
