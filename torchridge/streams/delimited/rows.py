"""Rows of CSV: blocks of whole rows, parsed by pyarrow if it is installed, every bad cell named by its line."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from torchridge._files import content as _content
from torchridge.streams.columns import select
from torchridge.streams.delimited import lines
from torchridge.streams.delimited.numbers import Numbers
from torchridge.streams.source import Batch, RowSource, fold_ids

# How tables say that a value is missing, in lower case: no column is called so. "nan" is a number to `float`.
_MISSING = frozenset({"", "na", "n/a", "#n/a", "#na", "<na>", "null", "none", "?", "-", "."})

# What other files start with that are called CSV by mistake.
_OTHERS = {
    b"\x1f\x8b": "gzip: let its name end in .gz",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"PAR1": "Parquet: let its name end in .parquet",
    b"PK\x03\x04": "a zip archive or a workbook: unpack it, or save it as CSV",
    b"\x93NUMPY": "an array: let its name end in .npy",
}


class CsvRows(RowSource):
    """Rows of a delimited file with numbers in the columns that are asked for, read as float64.

    Lines that are empty are skipped. The first line holds names if any of its cells is neither a number nor a missing
    value: a row of numbers with a hole in it is a row. A quote encloses a cell if it stands at its start, as in
    Python's csv; elsewhere it is a letter like any other.
    """

    name: str

    def __init__(
        self,
        source: Path | BinaryIO,
        target: Any = None,
        features: Any = None,
        sample_weight: Any = None,
        fold: Any = None,
        *,
        delimiter: str = ",",
        header: bool | None = None,
    ) -> None:
        self._path = source if isinstance(source, Path) else None
        self.name = source.name if isinstance(source, Path) else "standard input"
        self._delimiter = delimiter
        self._pipe = None if isinstance(source, Path) else self._blocks(source)
        self._first = next(self._pipe if self._pipe is not None else self._file_blocks(), b"")
        self._names, self._header_bytes = self._head(header)
        self._chosen = select(self._names, target, features, sample_weight, fold, self.name)
        self._wanted = self._chosen.wanted
        self._numbers = Numbers(len(self._names), self._wanted, delimiter)
        self.feature_names = tuple(self._names[i] for i in self._chosen.features)
        self.target_names = tuple(self._names[i] for i in self._chosen.targets)
        self.n_features, self.n_targets = len(self.feature_names), len(self.target_names)
        self.row_bytes = 8 * len(self._wanted)
        self.has_folds = self._chosen.fold is not None
        self._count: int | None = None

    def _head(self, header: bool | None) -> tuple[list[str], int]:
        """Return the names of the columns, and the bytes that they take."""
        for start, what in _OTHERS.items():
            if self._first.startswith(start):
                raise ValueError(f"`source`: {self.name} is not CSV, but {what}.")
        end = int(lines.row_ends(self._first, lines.quoted(self._first, self._delimiter))[0])
        line = self._first[:end]
        self._refuse_returns(line, 1)
        _, row = next(lines.rows(line.removeprefix(b"\xef\xbb\xbf"), self._delimiter), (0, []))
        cells = [_text(c).strip() for c in row]
        if not cells:
            raise ValueError(f"`source`: {self.name} is empty or starts with an empty line; expected rows of numbers.")
        named = any(_is_name(c) for c in cells) if header is None else header
        return (cells, end + 1) if named else ([str(i) for i in range(len(cells))], 0)

    @property
    def n_rows(self) -> int | None:
        """Count the lines of a file, in one fast pass; None for a pipe."""
        if self._count is None and self._path is not None:
            self._count = sum(lines.count(block, self._delimiter) for block, _ in self._numbered())
        return self._count

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the rows, in blocks of the file."""
        at = 0
        for block, line in self._numbered():
            if at < start:
                count = lines.count(block, self._delimiter)
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
            yield from self._blocks(cast(BinaryIO, file))

    def _blocks(self, file: BinaryIO) -> Iterator[bytes]:
        try:
            yield from lines.blocks(file, self._delimiter, self.name)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"`source`: {self.name} is truncated or damaged gzip data ({error}).") from None

    def _numbered(self) -> Iterator[tuple[bytes, int]]:
        """Yield blocks without the header, and the number of the line they start with."""
        if self._pipe is None:
            blocks = self._file_blocks()
            first = next(blocks, b"")
        else:
            blocks, first, self._first = self._pipe, self._first, b""
        if not first and self._pipe is not None:
            raise ValueError("`source`: standard input can be read only once. Save it to a file first.")
        yield first[self._header_bytes :], 1 + first.count(b"\n", 0, self._header_bytes)
        line = 1 + first.count(b"\n")
        for block in blocks:
            yield block, line
            line += block.count(b"\n")

    def _parse(self, block: bytes, line: int) -> np.ndarray[Any, Any]:
        self._refuse_returns(block, line)
        values = self._numbers.of(block)
        return self._careful(block, line) if values is None else values

    def _refuse_returns(self, block: bytes, line: int) -> None:
        if b"\r" in block and (at := lines.stray_return(block, lines.quoted(block, self._delimiter))) >= 0:
            line += block.count(b"\n", 0, at)
            raise ValueError(
                f"{self.name}, line {line}: a carriage return without a line feed. Let lines end in a line feed."
            )

    def _careful(self, block: bytes, line: int) -> np.ndarray[Any, Any]:
        """Read a block cell by cell, or raise at the first that is wrong."""
        found = []
        for before, cells in lines.rows(block, self._delimiter):
            if len(cells) != len(self._names):
                raise ValueError(
                    f"{self.name}, line {line + before}: expected {len(self._names)} cells, got {len(cells)}. Mend it."
                )
            found.append([self._cell(cells[i], i, line + before) for i in self._wanted])
        return np.array(found, dtype=np.float64).reshape(-1, len(self._wanted))

    def _cell(self, cell: bytes, column: int, line: int) -> float:
        value = _number(cell)
        if value is None or not math.isfinite(value):
            got = _short(_text(cell)) if cell.strip() else "an empty cell"
            raise ValueError(
                f"{self.name}, line {line}, column {column + 1} ({_short(self._names[column])}): expected a finite "
                f"number, got {got}. Correct or drop the line, or leave the column out."
            )
        return value

    def _batch(self, values: np.ndarray[Any, Any]) -> Batch:
        all_of = torch.from_numpy(values)
        d, t = len(self._chosen.features), len(self._chosen.targets)
        y = None if t == 0 else all_of[:, d] if self._chosen.vector_target else all_of[:, d : d + t]
        weight = None if self._chosen.sample_weight is None else all_of[:, d + t]
        return Batch(all_of[:, :d], y, weight, None if not self.has_folds else fold_ids(all_of[:, -1], self.name))

    def identity(self) -> dict[str, Any]:
        """Add the columns, how they are told apart, and the file: a pipe is known only once it is read."""
        form = {"roles": self._chosen.roles(), "delimiter": self._delimiter, "header": self._header_bytes}
        content = {} if self._path is None else {"content": _content.of_file(self._path)}
        return super().identity() | form | content


def _text(cell: bytes) -> str:
    return cell.decode("utf-8", errors="replace")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _number(cell: bytes | str) -> float | None:
    try:
        return None if (b"_" if isinstance(cell, bytes) else "_") in cell else float(cell)  # type: ignore[operator]
    except ValueError:
        return None


def _is_name(cell: str) -> bool:
    return _number(cell) is None and cell.lower() not in _MISSING
