"""Rows of Parquet and Arrow files, through pyarrow: a few row groups' worth of pages at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchridge import _content
from torchridge.streams.columns import Selection, select
from torchridge.streams.source import Batch, RowSource, fold_ids

_BATCH_BYTES = 2**24


class ArrowRows(RowSource):
    """Rows of a Parquet or Arrow IPC (Feather) file; a column may hold numbers, or lists of one length (embeddings).

    Features are float32 where all of their columns have 32 bits or fewer of floating point, float64 otherwise.
    """

    def __init__(self, path: Path, target: Any, features: Any, weight: Any, fold: Any) -> None:
        self._path, self._parquet = path, path.suffix in (".parquet", ".pq")
        self._count, schema = _parquet_head(path) if self._parquet else _ipc_head(path)
        self._schema = schema
        self._chosen = select(schema.names, target, features, weight, fold, path.name)
        first = next(self._pieces(0, 1), None)
        if first is None:
            raise ValueError(f"`source`: {path.name} holds no rows.")
        self._dtype = self._features_dtype()
        X, y, _, _ = self._batch(first, 0)
        lists = X.shape[1] != len(self._chosen.features)
        self.feature_names = None if lists else tuple(schema.names[i] for i in self._chosen.features)
        self.n_features = X.shape[1]
        self.n_targets = 0 if y is None else 1 if y.ndim == 1 else y.shape[1]
        vector = self.n_targets == len(self._chosen.targets)
        self.target_names = tuple(schema.names[i] for i in self._chosen.targets) if vector else None
        self.row_bytes = X.element_size() * self.n_features + 8 * (self.n_targets + 2)
        self.has_folds = fold is not None

    @property
    def n_rows(self) -> int:
        """How many rows the file says it holds."""
        return self._count

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the rows, in pieces no longer than `rows`."""
        for piece in self._pieces(start, rows or max(1, _BATCH_BYTES // (self.row_bytes or 1))):
            batch = self._batch(piece, start)
            if batch.X.shape[1] != self.n_features:
                raise ValueError(f"{self._path.name} holds lists that differ in length; expected one length a column.")
            yield batch
            start += piece.num_rows

    def _pieces(self, start: int, rows: int) -> Iterator[Any]:
        names = [self._schema.names[i] for i in self._chosen.wanted]
        groups = _parquet_pieces if self._parquet else _ipc_pieces
        for piece in groups(self._path, names, start, rows):
            yield piece.select(names)

    def _features_dtype(self) -> type[np.float32] | type[np.float64]:
        import pyarrow as pa

        kinds = [_value_type(self._schema.field(i).type) for i in self._chosen.features]
        return np.float32 if all(pa.types.is_floating(k) and k.bit_width <= 32 for k in kinds) else np.float64

    def _batch(self, piece: Any, start: int) -> Batch:
        chosen: Selection = self._chosen
        columns = [self._numbers(piece.column(j), i, start) for j, i in enumerate(chosen.wanted)]
        d, t = len(chosen.features), len(chosen.targets)
        y = None if t == 0 else _table(columns[d : d + t], np.float64)
        vector = y is not None and chosen.vector_target and columns[d].ndim == 1
        weight = None if chosen.weight is None else torch.from_numpy(columns[d + t].astype(np.float64))
        fold = None if chosen.fold is None else fold_ids(torch.from_numpy(columns[-1].astype(np.float64)))
        return Batch(_table(columns[:d], self._dtype), y[:, 0] if y is not None and vector else y, weight, fold)

    def _numbers(self, column: Any, index: int, start: int) -> np.ndarray[Any, Any]:
        """Return a column as (m,), or (m, length) of lists; raise on what is no number."""
        import pyarrow as pa

        name = self._schema.names[index]
        kind = _value_type(column.type)
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise ValueError(
                f"{self._path.name}: column {name!r} holds {column.type}; expected numbers. "
                f"Name the `features` that are numbers."
            )
        flat = column.flatten() if column.type != kind else column
        if column.null_count or flat.null_count:
            missing = column.is_null() if column.null_count else None
            row = start + int(np.argmax(missing.to_numpy(zero_copy_only=False))) if missing is not None else start
            where = f"row {row}" if missing is not None else f"a list from row {row} on"
            raise ValueError(
                f"{self._path.name}, column {name!r}: {where} has no value; expected a number in every row."
            )
        values: np.ndarray[Any, Any] = flat.to_numpy(zero_copy_only=False)
        if column.type == kind:
            return values
        if len(values) % len(column) or not self._even(column):
            raise ValueError(f"{self._path.name}, column {name!r} holds lists that differ in length; expected one.")
        return values.reshape(len(column), -1)

    @staticmethod
    def _even(column: Any) -> bool:
        import pyarrow as pa

        return pa.types.is_fixed_size_list(column.type) or len(np.unique(np.diff(column.offsets.to_numpy()))) == 1

    def identity(self) -> dict[str, Any]:
        """Add the columns and the file."""
        form = {"roles": self._chosen.roles(), "dtype": self._dtype.__name__}
        return super().identity() | form | {"content": _content.of_file(self._path)}


def _table(columns: list[np.ndarray[Any, Any]], dtype: Any) -> torch.Tensor:
    out = np.empty((len(columns[0]), sum(1 if c.ndim == 1 else c.shape[1] for c in columns)), dtype)
    at = 0
    for column in columns:
        width = 1 if column.ndim == 1 else column.shape[1]
        out[:, at : at + width] = column.reshape(len(column), width)
        at += width
    return torch.from_numpy(out)


def _value_type(kind: Any) -> Any:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(test(kind) for test in lists) else kind


def _parquet_head(path: Path) -> tuple[int, Any]:
    parquet = _pyarrow("parquet")
    with parquet.ParquetFile(path) as file:
        return int(file.metadata.num_rows), file.schema_arrow


def _parquet_pieces(path: Path, names: list[str], start: int, rows: int) -> Iterator[Any]:
    # Buffered reads: without them the compressed columns of a whole row group are held at once.
    with _pyarrow("parquet").ParquetFile(path, buffer_size=2**18, pre_buffer=False) as file:
        at, first = 0, 0
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        while first < len(sizes) and at + sizes[first] <= start:
            at, first = at + sizes[first], first + 1
        for piece in file.iter_batches(rows, row_groups=list(range(first, len(sizes))), columns=names):
            skip = max(0, start - at)
            at += piece.num_rows
            if skip < piece.num_rows:
                yield piece.slice(skip)


def _ipc_head(path: Path) -> tuple[int, Any]:
    pyarrow = _pyarrow("ipc")
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_file(source) as file:
        return sum(file.get_batch(i).num_rows for i in range(file.num_record_batches)), file.schema


def _ipc_pieces(path: Path, names: list[str], start: int, rows: int) -> Iterator[Any]:
    pyarrow = _pyarrow("ipc")
    with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_file(source) as file:
        at = 0
        for i in range(file.num_record_batches):
            whole = file.get_batch(i)
            for offset in range(max(0, start - at), whole.num_rows, rows):
                yield whole.slice(offset, rows)
            at += whole.num_rows


def _pyarrow(part: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Parquet and Arrow need pyarrow. Install it with `pip install torchridge[stream]`.") from None
    return pyarrow.parquet if part == "parquet" else pyarrow
