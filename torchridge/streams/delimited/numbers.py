"""Blocks of CSV to numbers, by pyarrow or else by Python's csv, if they hold nothing but finite numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchridge.streams.delimited import lines

_Values = np.ndarray[Any, np.dtype[np.float64]]

# From so many columns on, what pyarrow does for a column takes longer than reading a few rows of it.
_WIDE = 200

# What pyarrow reads at once, unless a row is longer.
_ROWS_BYTES = 2**20


class Numbers:
    """The numbers in some columns of blocks of one file."""

    def __init__(self, width: int, wanted: Sequence[int], delimiter: str) -> None:
        self._width, self._wanted, self._delimiter = width, list(wanted), delimiter
        self._tall = width >= _WIDE and 2 * len(wanted) >= width  # until a column turns out to hold text
        self._bytes = _ROWS_BYTES

    def of(self, block: bytes) -> _Values | None:
        """Return the numbers (rows, wanted), or None if a closer look is needed."""
        try:
            import pyarrow.csv  # noqa: F401
        except ImportError:
            return self._plain(block)
        if self._tall and b'"' not in block:
            found = self._as_one_column(block)
            if found is not None:
                return _finite(found[:, self._wanted])
            self._tall = False
        return self._fast(block)

    def _plain(self, block: bytes) -> _Values | None:
        if b"_" in block:  # Python's numbers may hold it
            return None
        rows = (row.split(self._delimiter.encode()) for row in block.replace(b"\r\n", b"\n").split(b"\n") if row)
        if b'"' in block:
            text = io.StringIO(block.decode("utf-8", errors="replace"), newline="")
            rows = (cells for cells in csv.reader(text, delimiter=self._delimiter) if cells)  # type: ignore[misc]
        width, wanted = self._width, self._wanted
        try:
            found = [[float(cells[i]) for i in wanted] for cells in rows if len(cells) == width or _refuse()]
        except (ValueError, csv.Error):  # a cell that is too long for csv, too
            return None
        return _finite(np.array(found, dtype=np.float64).reshape(-1, len(wanted)))

    def _fast(self, block: bytes) -> _Values | None:
        import pyarrow

        try:
            columns = self._columns(block)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError):
            return None
        values = np.empty((columns.num_rows, len(self._wanted)))
        for j in range(len(self._wanted)):
            at = 0
            for chunk in columns.column(j).chunks:  # chunk by chunk: no copy of the column in between
                values[at : at + len(chunk), j] = chunk.to_numpy(zero_copy_only=False)
                at += len(chunk)
        return _finite(values)

    def _columns(self, block: bytes) -> Any:
        import pyarrow

        try:
            return self._read(block, self._bytes)
        except pyarrow.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            self._bytes = len(block) + 1  # a row is longer
            return self._read(block, self._bytes)

    def _read(self, block: bytes, block_bytes: int) -> Any:
        import pyarrow as pa
        from pyarrow import csv as arrow

        names = [str(i) for i in range(self._width)]
        wanted = [names[i] for i in self._wanted]
        types = dict.fromkeys(wanted, pa.float64())
        return arrow.read_csv(
            pa.BufferReader(block),
            read_options=arrow.ReadOptions(column_names=names, block_size=max(block_bytes, _ROWS_BYTES)),
            parse_options=arrow.ParseOptions(delimiter=self._delimiter, newlines_in_values=b'"' in block),
            convert_options=arrow.ConvertOptions(column_types=types, include_columns=wanted, null_values=[]),
        )

    def _as_one_column(self, block: bytes) -> _Values | None:
        """Read the cells of all columns one after the other; a row must have as many as there are columns."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        block = block.replace(b"\r\n", b"\n")
        ends = lines.row_ends(block, None)
        marks = np.flatnonzero(np.frombuffer(block, np.uint8) == ord(self._delimiter))
        each = np.diff(np.searchsorted(marks, ends), prepend=0)
        filled = np.diff(ends, prepend=-1) > 1
        if not bool((each[filled] == self._width - 1).all()):
            return None
        try:
            table = arrow.read_csv(
                pa.BufferReader(block.replace(self._delimiter.encode(), b"\n")),
                read_options=arrow.ReadOptions(column_names=["cell"]),
                convert_options=arrow.ConvertOptions(column_types={"cell": pa.float64()}, null_values=[]),
                parse_options=arrow.ParseOptions(delimiter="\x01"),
            )
        except pa.ArrowInvalid:
            return None
        n = int(filled.sum()) * self._width
        return table.column(0).to_numpy().reshape(-1, self._width) if table.num_rows == n else None


def _refuse() -> bool:
    raise ValueError("a row has another number of columns")


def _finite(values: _Values) -> _Values | None:
    return values if math.isfinite(values.sum()) or bool(np.isfinite(values).all()) else None
