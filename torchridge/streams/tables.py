"""Rows of Arrow tables, whatever they come from: a column holds numbers, or lists of one length (embeddings)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from torchridge.streams.columns import select
from torchridge.streams.source import Batch, RowSource, fold_ids

_BATCH_BYTES = 2**24

_Values = np.ndarray[Any, Any]


class Piece(NamedTuple):
    """Some rows of the wanted columns, and where they stand, for errors."""

    table: Any
    name: str
    row: int


class TableRows(RowSource):
    """Rows of tables with one schema.

    Features are float32 if all of their columns have 32 bits or fewer of floating point, float64 otherwise.
    """

    name: str

    def _choose(self, names: Sequence[str], target: Any, features: Any, sample_weight: Any, fold: Any) -> None:
        """Find the columns by their names."""
        self._chosen = chosen = select(names, target, features, sample_weight, fold, self.name)
        self._wanted = [names[i] for i in chosen.wanted]
        self.feature_names = tuple(names[i] for i in chosen.features)
        self.target_names = tuple(names[i] for i in chosen.targets)
        self.has_folds = fold is not None

    def _measure(self, schemas: Sequence[Any], first: Piece | None) -> None:
        """Learn the dtype from the schemas of all parts, and the widths of lists from the first row."""
        self._dtype = self._features_dtype(schemas)
        if first is None:
            raise ValueError(f"`source`: {self.name} holds no rows.")
        X, y, _, _ = self._batch(first)
        self.n_features = X.shape[1]
        self.n_targets = 0 if y is None else 1 if y.ndim == 1 else y.shape[1]
        if self.n_features != len(self._chosen.features):
            self.feature_names = None
        if self.n_targets != len(self._chosen.targets):
            self.target_names = None
        self.row_bytes = X.element_size() * self.n_features + 8 * (self.n_targets + 2)

    def _features_dtype(self, schemas: Sequence[Any]) -> type[np.float32] | type[np.float64]:
        import pyarrow as pa

        names = self._wanted[: len(self._chosen.features)]
        kinds = [_value_type(s.field(n).type) for s in schemas for n in names if s.get_field_index(n) >= 0]
        return np.float32 if all(pa.types.is_floating(k) and k.bit_width <= 32 for k in kinds) else np.float64

    @abstractmethod
    def _pieces(self, start: int, rows: int) -> Iterator[Piece]:
        """Yield the wanted columns from row `start` on, at most `rows` rows at a time."""

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the rows, in pieces no longer than `rows`."""
        for piece in self._pieces(start, rows or max(1, _BATCH_BYTES // (self.row_bytes or 1))):
            batch = self._batch(piece)
            if batch.X.shape[1] != self.n_features:
                raise ValueError(f"{piece.name} holds lists that differ in length; expected one length in a column.")
            yield batch

    def _batch(self, piece: Piece) -> Batch:
        chosen = self._chosen
        with reading(piece.name):
            columns = [numbers(piece.table.column(j), n, piece) for j, n in enumerate(self._wanted)]
        d, t = len(chosen.features), len(chosen.targets)
        y = None if t == 0 else _table(columns[d : d + t], np.float64)
        vector = y is not None and chosen.vector_target and columns[d].ndim == 1
        sample_weight = None if chosen.sample_weight is None else torch.from_numpy(columns[d + t].astype(np.float64))
        ids = None if chosen.fold is None else torch.from_numpy(columns[-1].astype(np.float64))
        fold = None if ids is None else fold_ids(ids, piece.name)
        return Batch(_table(columns[:d], self._dtype), y[:, 0] if y is not None and vector else y, sample_weight, fold)

    def identity(self) -> dict[str, Any]:
        """Add the columns."""
        return super().identity() | {"roles": self._chosen.roles(), "dtype": self._dtype.__name__}


def numbers(column: Any, name: str, piece: Piece) -> _Values:
    """Return a column as (m,), or (m, length) of lists; raise on anything but numbers."""
    import pyarrow as pa

    where, column = f"{piece.name}, column {name!r}", _one_chunk(column)
    kind = _value_type(column.type)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(
            f"{piece.name}: column {name!r} holds {column.type}; expected numbers. "
            f"Name the `features` that are numbers."
        )
    lists = column.type != kind
    flat = column.flatten() if lists else column
    if column.null_count or flat.null_count:
        missing = column.is_null() if column.null_count else None
        row = piece.row + (0 if missing is None else int(np.argmax(missing.to_numpy(zero_copy_only=False))))
        what = f"a list from row {row} on" if missing is None else f"row {row}"
        raise ValueError(f"{where}: {what} has no value; expected a number in every row.")
    values: _Values = flat.to_numpy(zero_copy_only=False)
    if lists and (len(values) % len(column) or not _even(column)):
        raise ValueError(f"{where} holds lists that differ in length; expected one.")
    values = values.reshape(len(column), -1) if lists else values
    _check_finite(values, where, piece.row)
    return values


def _one_chunk(column: Any) -> Any:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _check_finite(values: _Values, where: str, row: int) -> None:
    if values.dtype.kind != "f" or math.isfinite(float(values.sum(dtype=np.float64))) or np.isfinite(values).all():
        return
    at = np.argwhere(~np.isfinite(values))[0]
    got = values[tuple(at)]
    raise ValueError(
        f"{where}: row {row + int(at[0])} holds {got}; expected a finite number. Drop or impute such rows."
    )


def _even(column: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_fixed_size_list(column.type) or len(np.unique(np.diff(column.offsets.to_numpy()))) == 1


def _table(columns: list[_Values], dtype: Any) -> torch.Tensor:
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


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Say of pyarrow's errors in which file, or other source, they were met."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"`source`: {name} is truncated, damaged or of another kind ({_line(error)}).") from None
    except OSError as error:
        if error.errno is not None:
            raise OSError(error.errno, f"`source`: {name} cannot be read: {error.strerror}") from error
        raise ValueError(f"`source`: {name} is truncated, damaged or of another kind ({_line(error)}).") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).removesuffix(".")
