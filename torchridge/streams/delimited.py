"""Rows of CSV: blocks of whole lines, parsed by pyarrow where it is installed, every bad cell named by its line."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from torchridge import _content
from torchridge.streams.columns import Selection, select
from torchridge.streams.source import Batch, RowSource, fold_ids

_BLOCK_BYTES = 2**23

# How tables say that a value is missing, in lower case: no column is called so. "nan" is a number to `float`.
_MISSING = frozenset({"", "na", "n/a", "#n/a", "#na", "<na>", "null", "none", "?", "-", "."})

# A line longer than this is no line: the file has other line ends, or none.
_LONGEST_LINE = 2**28


class CsvRows(RowSource):
    """Rows of a delimited file with numbers in the columns that are asked for, read as float64.

    Lines that are empty are skipped. The first line holds names if any of its cells is neither a number nor a missing
    value: a row of numbers with a hole in it is a row.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        target: Any = None,
        features: Any = None,
        weight: Any = None,
        fold: Any = None,
        *,
        delimiter: str = ",",
        header: bool | None = None,
    ) -> None:
        self._path = source if isinstance(source, Path) else None
        self._pipe = None if isinstance(source, Path) else _blocks(source)
        self.name = source.name if isinstance(source, Path) else "standard input"
        self._delimiter = delimiter
        self._first = next(self._pipe, b"") if self._pipe is not None else next(self._file_blocks(), b"")
        names, self._header_bytes = self._head(header)
        self._width = len(names)
        self._names = names
        self._chosen = select(names, target, features, weight, fold, self.name)
        self.feature_names = tuple(names[i] for i in self._chosen.features)
        self.target_names = tuple(names[i] for i in self._chosen.targets)
        self.n_features, self.n_targets = len(self.feature_names), len(self.target_names)
        self.row_bytes = 8 * len(self._chosen.wanted)
        self.has_folds = self._chosen.fold is not None
        self._count: int | None = None

    def _head(self, header: bool | None) -> tuple[list[str], int]:
        """Return the names of the columns, and the bytes that they take."""
        line, _, _ = self._first.partition(b"\n")
        cells = [c.strip() for c in next(csv.reader([_text(line)], delimiter=self._delimiter), [])]
        if not cells:
            raise ValueError(f"{self.name} is empty or starts with an empty line; expected rows of numbers.")
        named = any(_is_name(c) for c in cells) if header is None else header
        return (cells, len(line) + 1) if named else ([str(i) for i in range(len(cells))], 0)

    @property
    def n_rows(self) -> int | None:
        """Count the lines of a file, in one fast pass; None for a pipe."""
        if self._count is None and self._path is not None:
            self._count = sum(_count(block) for block, _ in self._numbered())
        return self._count

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the rows, in blocks of the file."""
        at = 0
        for block, line in self._numbered():
            if at < start:
                count = _count(block)
                if at + count <= start:
                    at += count
                    continue
            values = self._parse(block, line)
            if len(values):
                yield self._batch(values[max(0, start - at) :])
            at += len(values)

    def _file_blocks(self) -> Iterator[bytes]:
        assert self._path is not None
        with gzip.open(self._path) if self._path.suffix == ".gz" else self._path.open("rb") as file:
            yield from _blocks(file)

    def _numbered(self) -> Iterator[tuple[bytes, int]]:
        """Yield blocks without the header, and the number of the line they start with."""
        if self._pipe is None:
            blocks = self._file_blocks()
            first = next(blocks, b"")
        else:
            blocks, first, self._first = self._pipe, self._first, b""
        if not first and self._pipe is not None:
            raise ValueError("`source`: standard input can be gone over only once. Save it to a file first.")
        yield first[self._header_bytes :], 1 + (self._header_bytes > 0)
        line = 1 + first.count(b"\n")
        for block in blocks:
            yield block, line
            line += block.count(b"\n")

    def _parse(self, block: bytes, line: int) -> np.ndarray[Any, Any]:
        values = _fast(block, self._width, self._chosen, self._delimiter)
        return self._careful(block, line) if values is None else values

    def _careful(self, block: bytes, line: int) -> np.ndarray[Any, Any]:
        """Read a block cell by cell, or raise at the first that is wrong."""
        reader = csv.reader(io.StringIO(_text(block), newline=""), delimiter=self._delimiter)
        rows = []
        before = 0
        for cells in reader:
            at, before = line + before, reader.line_num
            if not cells:
                continue
            if len(cells) != self._width:
                raise ValueError(f"{self.name}, line {at}: expected {self._width} cells, got {len(cells)}. Mend it.")
            rows.append([self._cell(cells[i], i, at) for i in self._chosen.wanted])
        return np.array(rows, dtype=np.float64).reshape(-1, len(self._chosen.wanted))

    def _cell(self, text: str, column: int, line: int) -> float:
        value = _number(text)
        if value is None or not math.isfinite(value):
            got = "an empty cell" if not text.strip() else repr(text)
            raise ValueError(
                f"{self.name}, line {line}, column {column + 1} ({self._names[column]!r}): expected a finite number, "
                f"got {got}. Mend or drop the line, or leave the column out."
            )
        return value

    def _batch(self, values: np.ndarray[Any, Any]) -> Batch:
        all_of = torch.from_numpy(values)
        d, t = len(self._chosen.features), len(self._chosen.targets)
        y = None if t == 0 else all_of[:, d] if self._chosen.vector_target else all_of[:, d : d + t]
        weight = None if self._chosen.weight is None else all_of[:, d + t]
        return Batch(all_of[:, :d], y, weight, None if not self.has_folds else fold_ids(all_of[:, -1]))

    def identity(self) -> dict[str, Any]:
        """Add the columns, how they are told apart, and the file: a pipe is known only once it is read."""
        form = {"roles": self._chosen.roles(), "delimiter": self._delimiter, "header": self._header_bytes}
        content = {} if self._path is None else {"content": _content.of_file(self._path)}
        return super().identity() | form | content


def _text(block: bytes) -> str:
    return block.decode("utf-8", errors="replace").removeprefix("\ufeff").removesuffix("\r")


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _is_name(cell: str) -> bool:
    return _number(cell) is None and cell.lower() not in _MISSING


def _blocks(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    """Yield blocks of whole lines."""
    rest = b""
    while data := file.read(_BLOCK_BYTES):
        block = rest + data
        cut = _cut(block)
        if cut:
            yield block[:cut]
        elif len(block) > _LONGEST_LINE:
            raise ValueError(f"`source` has no end of line in its first {len(block)} bytes. Is it CSV?")
        rest = block[cut:]
    if rest.strip():
        yield rest


def _cut(block: bytes) -> int:
    """Return where the last whole line ends: at a line break that no quotes enclose."""
    end = block.rfind(b"\n") + 1
    while end and block.count(b'"', 0, end) % 2:
        end = block.rfind(b"\n", 0, end - 1) + 1
    return end


def _count(block: bytes) -> int:
    """Count the rows of a block: its lines, but for empty ones and breaks within quotes."""
    if b'"' in block:
        return sum(bool(cells) for cells in csv.reader(io.StringIO(_text(block), newline="")))
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
    if len(block) and not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    returns = sum(block[int(i)] == 13 for i in starts[lengths == 1])
    return int(np.count_nonzero(lengths > 0)) - returns


def _fast(block: bytes, width: int, chosen: Selection, delimiter: str) -> np.ndarray[Any, Any] | None:
    """Parse a block with pyarrow; None where it is not installed or the block holds anything but finite numbers."""
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow
    except ImportError:
        return None
    names = [str(i) for i in range(width)]
    wanted = [names[i] for i in chosen.wanted]
    try:
        table = arrow.read_csv(
            pa.BufferReader(block),
            read_options=arrow.ReadOptions(column_names=names),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in block),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.float64()), include_columns=wanted, null_values=[]
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None
    values = np.empty((table.num_rows, len(wanted)))
    for j in range(len(wanted)):
        at = 0
        for chunk in table.column(j).chunks:  # chunk by chunk: no copy of the column in between
            values[at : at + len(chunk), j] = chunk.to_numpy(zero_copy_only=False)
            at += len(chunk)
    return values if math.isfinite(values.sum()) or bool(np.isfinite(values).all()) else None
