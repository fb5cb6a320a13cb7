"""Sparse rows, filled a run at a time: moments hold the d × d sums of their columns, so that d has a limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge._files import content as _content
from torchridge.streams.array import Array
from torchridge.streams.source import Batch, RowSource

# Columns of which moments are gathered, 512 MiB, and bytes of rows that are filled at once.
COLUMNS = 8192
_RUN_BYTES = 2**26


def is_sparse(X: Any) -> bool:
    """Whether X is a sparse tensor, or a scipy.sparse matrix or array."""
    if isinstance(X, Tensor):
        return X.layout is not torch.strided
    return hasattr(X, "tocsr") and hasattr(X, "nnz")


def check_width(d: int, name: str = "X") -> None:
    """Raise if moments of so many columns are too large.

    Raises:
        ValueError: if they are.
    """
    if d > COLUMNS:
        raise ValueError(
            f"`{name}` has {d} sparse columns, and moments hold d × d sums of them ({8 * d * d / 2**30:.1f} GiB); "
            f"expected at most {COLUMNS}. Hash into fewer, e.g. HashingVectorizer(n_features=4096), or fit all rows at "
            f"once, which only multiplies with them."
        )


def filled_runs(X: Any, rows: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Yield runs of sparse rows as strided tensors, with their places.

    Raises:
        ValueError: on more columns than moments are gathered of, or what is not a matrix of real numbers.
    """
    if len(X.shape) != 2:
        raise ValueError(f"`X` should have shape (rows, features), got {tuple(X.shape)}.")
    n, d = (int(size) for size in X.shape)
    check_width(d)
    matrix, step = _in_rows(X), rows or max(1, _RUN_BYTES // (8 * max(d, 1)))
    for start in range(0, n, step):
        part = slice(start, min(n, start + step))
        yield part, _filled(matrix, part)


def _filled(matrix: Any, part: slice) -> Tensor:
    if isinstance(matrix, Tensor):
        index = torch.arange(part.start, part.stop, device=matrix.device)
        return matrix.index_select(0, index).to_dense()
    rows = matrix[part].toarray()
    return torch.from_numpy(rows if rows.dtype in (np.float32, np.float64) else rows.astype("f8"))


def _in_rows(X: Any) -> Any:
    """Return a matrix of which rows can be taken."""
    if isinstance(X, Tensor):
        if X.is_complex():
            raise TypeError(f"`X` should hold real numbers, got {X.dtype}.")
        return X.detach() if X.layout is torch.sparse_coo else X.detach().to_sparse(layout=torch.sparse_coo)
    if X.dtype.kind not in "fiub":
        raise TypeError(f"`X` should hold real numbers, got {X.dtype}.")
    return X.tocsr()


class SparseRows(RowSource):
    """Rows of a sparse matrix in memory, with targets, perhaps weights and fold ids, filled a run at a time."""

    def __init__(self, X: Any, target: Any, weight: Any = None, fold: Any = None) -> None:
        check_width(int(X.shape[1]), "source")
        self._X = _in_rows(X)
        given = {"target": target, "sample_weight": weight, "fold": fold}
        self._parts = {name: None if value is None else Array(value, name) for name, value in given.items()}
        lengths = {name: part.values.shape[0] for name, part in self._parts.items() if part is not None}
        if any(length != X.shape[0] for length in lengths.values()):
            raise ValueError(f"`source` has {X.shape[0]} rows, the others {lengths}; expected the same number in each.")
        y = self._parts["target"]
        self._bytes = 8 * int(X.shape[1])  # of a filled row
        self.n_features = int(X.shape[1])
        self.n_targets = 0 if y is None else 1 if y.values.ndim == 1 else int(y.values.shape[1])
        self.row_bytes = self._bytes + sum(p.row_bytes for p in self._parts.values() if p is not None)
        self.has_folds = fold is not None

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return int(self._X.shape[0])

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the rows from number `start` on, filled, `rows` at a time."""
        step = rows or max(1, _RUN_BYTES // self._bytes)
        for at in range(start, self.n_rows, step):
            part = slice(at, min(self.n_rows, at + step))
            y, weight, fold = (None if p is None else p.read(part.start, part.stop) for p in self._parts.values())
            yield Batch(_filled(self._X, part), y, weight, fold)

    def identity(self) -> dict[str, Any]:
        """Add what the matrix and the columns hold."""
        content = [_content.of_rows(lambda a, b: next(self.batches(a, b - a)).X, self.n_rows, self._bytes)]
        content += [{} if part is None else part.content() for part in self._parts.values()]
        return super().identity() | {"content": content}
