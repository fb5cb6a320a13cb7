"""Rows of any iterable of batches: a DataLoader, a list, a generator; of tuples, or of columns with names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge._files import content as _content
from torchridge.streams.frames import FrameRows, is_frame, rows_of
from torchridge.streams.named import Roles, batch_of
from torchridge.streams.source import Batch, RowSource
from torchridge.streams.sparse import filled_runs, is_sparse

# What the parts of a batch are called, so that a mapping of them needs no names.
_FIELDS = frozenset(Batch._fields)


class IterableRows(RowSource):
    """Rows of (X, y) or (X, y, sample_weight), tensors, arrays or sparse X; or of mappings and frames, with roles."""

    def __init__(self, source: Iterable[Any], roles: Roles | None = None) -> None:
        if not isinstance(source, Iterable) or isinstance(source, (str, bytes, Tensor, np.ndarray)):
            raise TypeError(
                f"`rows` should be what `open_rows` returns, or batches (X, y), got {type(source).__name__}."
            )
        whole = isinstance(source, Mapping) or is_frame(source)
        self._source: Iterable[Any] = [source] if whole else source
        self._roles, self._used = roles or Roles(), False
        self.has_folds = self._roles.fold is not None
        if isinstance(self._source, (list, tuple)) and self._source:
            self._check_named(self._source[0])

    def _check_named(self, batch: Any) -> None:
        """Raise if names came for batches that have none."""
        if self._roles.given and not isinstance(batch, Mapping) and not is_frame(batch):
            raise ValueError(
                f"`{self._roles.given[0]}` has no use for an iterable of batches, which bring their own. Leave it out, "
                f"or give mappings or data frames, whose columns have names."
            )

    @property
    def n_rows(self) -> int | None:
        """Only batches that are all at hand tell."""
        if not isinstance(self._source, (list, tuple)):
            return None
        return sum(_length(batch) for batch in self._source)

    def identity(self) -> dict[str, Any]:
        """Add the batches that are all at hand; others are known only once they are read."""
        known = super().identity() | {"roles": self._roles.told()}
        if not isinstance(self._source, (list, tuple)):
            return known
        content = [[None if a is None else _content.of_tensor(a) for a in batch] for batch in self.batches()]
        return known | {"content": content}

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the batches as they come, those before `start` left out."""
        if self._used and isinstance(self._source, Iterator):
            raise ValueError("`rows` is an iterator that is exhausted. Pass a list, or a DataLoader.")
        self._used = True
        at = 0
        for number, given in enumerate(self._source):
            for batch in self._filled(given, number):
                skip, at = max(0, start - at), at + len(batch.X)
                if skip < len(batch.X):
                    yield batch.cut(skip, len(batch.X)) if skip else batch

    def _filled(self, given: Any, number: int) -> Iterator[Batch]:
        """Yield a batch, of sparse rows in runs that are filled."""
        first: Any = given.get("X") if isinstance(given, Mapping) else None
        first = given[0] if isinstance(given, (tuple, list)) else first
        if not is_sparse(first):
            yield self._batch(given, number)
            return
        names = list(given) if isinstance(given, Mapping) else list(Batch._fields)[: len(given)]
        values = dict(zip(names, given.values() if isinstance(given, Mapping) else given, strict=True))
        if first.shape[0] != len(values.get("y", ())):
            raise ValueError(f"`X` of batch {number} has {first.shape[0]} rows, `y` {len(values.get('y', ()))}.")
        for part, X in filled_runs(first):
            rest = {name: None if v is None else v[part] for name, v in values.items() if name != "X"}
            yield self._batch({"X": X, **rest} if isinstance(given, Mapping) else (X, *rest.values()), number)

    def _batch(self, given: Any, number: int) -> Batch:
        self._check_named(given)
        if isinstance(given, Batch):
            return given
        if isinstance(given, Mapping) and set(given) <= _FIELDS and {"X", "y"} <= set(given) and not self._roles.given:
            return Batch(**{name: _tensor(value, name, number) for name, value in given.items()})
        if isinstance(given, Mapping):
            return batch_of(given, self._roles, f"batch {number}")
        if is_frame(given):
            roles = self._roles
            if roles.target is None and not roles.given:
                raise roles.unnamed(f"batch {number}")
            frame = FrameRows(given, *roles)
            return next(frame.batches(0, max(1, rows_of(given))))
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or len(given) not in (2, 3):
            raise TypeError(
                f"a batch should be (X, y), (X, y, sample_weight), a mapping or a data frame, got "
                f"{type(given).__name__}."
            )
        return Batch(*(_tensor(a, name, number) for a, name in zip(given, Batch._fields, strict=False)))


def _length(batch: Any) -> int:
    if is_frame(batch):
        return rows_of(batch)
    first: Any = next(iter(batch.values()), ()) if isinstance(batch, Mapping) else batch[0]
    return int(first.shape[0]) if is_sparse(first) else len(first)


def _tensor(value: Any, name: str, number: int) -> Any:
    if value is None or isinstance(value, Tensor):
        return value
    try:
        plain = np.ascontiguousarray(value)  # negative strides, and frames of one column
        return torch.as_tensor(plain.astype(plain.dtype.newbyteorder("="), copy=False))
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"
        raise TypeError(f"`{name}` of batch {number} should be a tensor or an array of numbers, got {got}.") from error
