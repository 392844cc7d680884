"""Labelled images in parquet, as the Hugging Face hub stores them.

`open_parquet` checks the schema and all labels before the first image is read. Images are read a few at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.bounded_json import parse
from workbench.errors import WorkbenchError, shown

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "fine_label")
LARGEST_LABEL = 99_999  # where the classes have no names; ImageNet-21k has 21,841 classes
ROWS = 64  # read at a time


@dataclass(frozen=True)
class Part:
    """One file or table.

    Attributes:
        where: Its name in error messages.
        schema: A `pyarrow.Schema`.
        rows: The number of rows.
        batches: Yields `pyarrow.RecordBatch`es with the given columns, and at most so many rows.
    """

    where: str
    schema: Any
    rows: int
    batches: Callable[[list[str], int], Iterator[Any]]


@dataclass(frozen=True)
class ImageTable:
    """Rows of images and labels. Iterate over it to read them as (bytes, label, name for error messages).

    Attributes:
        parts: Files or tables, one after the other.
        image: The name of the column of images.
        label: The name of the column of labels.
        names: Names of the classes, if the files name them.
        top: The largest label.
        start: The first row to read.
        rows: The number of rows to read.
    """

    parts: tuple[Part, ...]
    image: str
    label: str
    names: tuple[str, ...] | None
    top: int
    start: int
    rows: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, or the labels themselves."""
        return self.names or tuple(map(str, range(self.top + 1)))

    def take(self, start: int, stop: int) -> "ImageTable":
        """Return these of its rows."""
        return replace(self, start=self.start + start, rows=max(0, min(stop, self.rows) - start))

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[tuple[bytes, int, str]]:
        import pyarrow.compute as pc

        skipped = 0
        for part in self.parts:
            row = 0
            for batch in _batches(part, [self.image, self.label]):
                images, labels = pc.struct_field(batch[self.image], "bytes"), batch[self.label]
                for image, label in zip(images.to_pylist(), labels.to_pylist(), strict=True):
                    if self.start <= skipped + row < self.start + self.rows:
                        yield image or b"", label, f"row {row} of {part.where}"
                    row += 1
            skipped += row


def open_parquet(*files: Path) -> ImageTable:
    """Open parquet files that belong together.

    Raises:
        WorkbenchError: If a file is damaged, has other columns or types, or a label is missing or out of range.
    """
    return checked([_file(file) for file in files])


def in_memory(table: Any, where: str) -> ImageTable:
    """Check a `pyarrow.Table`, see `open_parquet`."""
    return checked([Part(where, table.schema, len(table), lambda names, n: iter(table.select(names).to_batches(n)))])


def checked(parts: list[Part]) -> ImageTable:
    """Check columns, types, class names and labels. No image is read.

    Raises:
        WorkbenchError: As `open_parquet`.
    """
    image, label = _column(parts[0], IMAGE_COLUMNS), _column(parts[0], LABEL_COLUMNS)
    named = {names: part.where for part in parts if (names := _class_names(part, label))}
    if len(named) > 1:
        first, other = list(named.values())[:2]
        raise WorkbenchError(f"{first} and {other} must name the same classes. Evaluate them one by one.")
    names = next(iter(named), None)
    for part in parts:
        _check_types(part, image, label)
    rows = sum(part.rows for part in parts)
    if rows == 0:
        raise WorkbenchError(f"{parts[0].where} must hold at least one row, got 0. Fetch the data again.")
    largest = len(names) - 1 if names else LARGEST_LABEL
    return ImageTable(tuple(parts), image, label, names, max(_top(part, label, largest) for part in parts), 0, rows)


def _file(file: Path) -> Part:
    import pyarrow.parquet as pq

    with _one_sentence(file):
        opened = pq.ParquetFile(file, buffer_size=2**20, page_checksum_verification=True)
        rows, schema = opened.metadata.num_rows, opened.schema_arrow
    return Part(str(file), schema, rows, lambda names, n: opened.iter_batches(n, columns=names))


def _column(part: Part, words: tuple[str, ...]) -> str:
    name = next((word for word in words if word in part.schema.names), None)
    if name is None:
        raise WorkbenchError(
            f"{part.where} must have a column {' or '.join(IMAGE_COLUMNS)} and a column {' or '.join(LABEL_COLUMNS)}, "
            f"got {', '.join(part.schema.names)[:200] or 'none'}. Rename the columns."
        )
    return name


def _check_types(part: Part, image: str, label: str) -> None:
    import pyarrow.types as types

    for name in (image, label):
        if (n := len(part.schema.get_all_field_indices(name))) != 1:
            raise WorkbenchError(f"{part.where} must have one column {name}, got {n}. Fetch the data again.")
    cell, number = part.schema.field(image).type, part.schema.field(label).type
    index = cell.get_field_index("bytes") if types.is_struct(cell) else -1
    if index < 0 or not (types.is_binary(cell[index].type) or types.is_large_binary(cell[index].type)):
        raise WorkbenchError(
            f"The column {image} of {part.where} must be a struct with the field `bytes` (binary), got "
            f"{shown(cell, 100, quote=False)}. Write the encoded images to that field."
        )
    if not types.is_integer(number):
        raise WorkbenchError(
            f"The column {label} of {part.where} must hold whole numbers, got {shown(number, 100, quote=False)}. "
            "Number the classes from 0."
        )


def _class_names(part: Part, label: str) -> tuple[str, ...] | None:
    """Read the names that the hub's metadata have for the labels. They are optional, so broken ones are none."""
    try:
        names = parse((part.schema.metadata or {})[b"huggingface"].decode())["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    proper = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return tuple(names) or None if proper else None


def _top(part: Part, label: str, largest: int) -> int:
    """Return the largest label of a part. Check all of them."""
    top, row = 0, 0
    for batch in _batches(part, [label], rows=2**16):
        values = batch[label].to_numpy(zero_copy_only=False)  # floats with nan if labels are missing
        wrong = (~((values >= 0) & (values <= largest))).nonzero()[0]
        if len(wrong):
            raise WorkbenchError(
                f"The label of row {row + wrong[0]} of {part.where} must be from 0 to {largest}, got "
                f"{batch[label][wrong[0]].as_py()}. Correct the row."
            )
        top, row = max(top, int(values.max(initial=0))), row + len(values)
    if row != part.rows:
        raise WorkbenchError(f"{part.where} must hold {part.rows} rows, got {row}. Fetch the file again.")
    return top


def _batches(part: Part, columns: list[str], rows: int = ROWS) -> Iterator[Any]:
    with _one_sentence(part.where):
        yield from part.batches(columns, rows)


@contextmanager
def _one_sentence(where: str | Path) -> Iterator[None]:
    """Turn every error of pyarrow, which raises whatever a damaged file leads it to, into a sentence."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(". ") or type(error).__name__
        raise WorkbenchError(f"Cannot read {where} as parquet ({reason}). Fetch the file again.") from error
