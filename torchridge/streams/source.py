"""What a source of rows is: batches in order, from any row on, again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Some rows that follow one another."""

    X: Tensor  # (m, d)
    y: Tensor | None  # (m, t), or (m,) for a single target given as such
    sample_weight: Tensor | None = None  # (m,)
    fold: Tensor | None = None  # (m,) ids

    def cut(self, start: int, stop: int) -> Batch:
        """Return some of the rows."""
        return Batch(*(None if a is None else a[start:stop] for a in self))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(a.numel() * a.element_size() for a in self if a is not None)


class RowSource(ABC):
    """Rows on disk or elsewhere, read in order; each pass starts anew.

    Attributes:
        n_features: d, or None if only the first rows tell.
        n_targets: t; 0 without targets; None if only the first rows tell.
        row_bytes: of one row, or None if only the first rows tell.
        feature_names: names of the columns of X, or None if they have none.
        target_names: names of the columns of y, or None if they have none.
        has_folds: whether every row brings the id of its fold.
        in_place: whether `views` gives the rows without a copy.
        name: of the file, for errors, or None.
        first_row: the number of the first row among those of all parts, if this is a part of the rows.

    Cost: nothing until it is gone over; then what reading the rows takes, and the memory of one batch.

    Example:
        >>> import numpy as np
        >>> from torchridge import open_rows
        >>> rows = open_rows(np.arange(6.0).reshape(3, 2), target=1)
        >>> rows.n_features, rows.n_targets, [batch.X.tolist() for batch in rows.batches(start=1, rows=1)]
        (1, 1, [[[2.0]], [[4.0]]])
    """

    n_features: int | None = None
    n_targets: int | None = None
    row_bytes: int | None = None
    feature_names: tuple[str, ...] | None = None
    target_names: tuple[str, ...] | None = None
    has_folds: bool = False
    in_place: bool = False
    name: str | None = None
    first_row: int = 0

    @property
    @abstractmethod
    def n_rows(self) -> int | None:
        """How many rows there are; None if only reading them would tell."""

    @property
    def total_rows(self) -> int | None:
        """How many rows all parts have together, if this is a part of the rows; else `n_rows`."""
        return self.n_rows

    @abstractmethod
    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the rows from number `start` on, `rows` at a time if the source can cut them so."""

    def views(self, start: int, rows: int, held: int) -> Iterator[Batch]:
        """Yield what `batches` does, in memory of the source; `held` of them are in use at once, none is written."""
        return self.batches(start, rows)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def identity(self) -> dict[str, Any]:
        """Return what tells these rows from others: a checkpoint must agree with it.

        It is what JSON holds: the columns and their roles, and under "content" a digest of what is read. A source
        that gives no "content" is read from its first row on when a pass resumes, and what was summed is compared.
        """
        names = {"feature_names": self.feature_names, "target_names": self.target_names}
        sizes = {"n_features": self.n_features, "n_targets": self.n_targets, "has_folds": self.has_folds}
        return sizes | {k: None if v is None else list(v) for k, v in names.items()}


def fold_ids(column: Tensor, name: str | None = None) -> Tensor:
    """Return the ids of a column (m,) as integers; refuse what would have to be rounded."""
    wrong = (column != column.round()) | (column.abs() > 2**53)
    if bool(wrong.any()):
        got = column[wrong][0].item()
        of = f" of {name}" if name else ""
        raise ValueError(
            f"`fold` should be a column of whole numbers, got {got!r} in it{of}. Number the folds 0, 1, …."
        )
    return column.to(torch.int64)
