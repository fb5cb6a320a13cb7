"""Rows of any iterable of batches: a DataLoader, a list, a generator function's results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge import _content
from torchridge.streams.source import Batch, RowSource


class IterableRows(RowSource):
    """Rows of batches (X, y) or (X, y, sample_weight), tensors or arrays."""

    def __init__(self, source: Iterable[Any]) -> None:
        if not isinstance(source, Iterable) or isinstance(source, (str, bytes, dict, Tensor, np.ndarray)):
            raise TypeError(
                f"`rows` should be what `open_rows` returns, or batches (X, y), got {type(source).__name__}."
            )
        self._source = source
        self._used = False

    @property
    def n_rows(self) -> int | None:
        """Only batches that are all at hand tell."""
        if isinstance(self._source, (list, tuple)) and isinstance(self._source, Sized):
            return sum(len(batch[0]) for batch in self._source)
        return None

    def identity(self) -> dict[str, Any]:
        """Add the batches that are all at hand; others are known only once they are read."""
        if not isinstance(self._source, (list, tuple)):
            return super().identity()
        content = [[None if a is None else _content.of_tensor(a) for a in batch] for batch in self.batches()]
        return super().identity() | {"content": content}

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield the batches as they come, those before `start` left out."""
        if self._used and isinstance(self._source, Iterator):
            raise ValueError("`rows` is an iterator that was gone over already. Pass a list, or a DataLoader.")
        self._used = True
        at = 0
        for given in self._source:
            batch = _batch(given)
            skip, at = max(0, start - at), at + len(batch.X)
            if skip < len(batch.X):
                yield batch.cut(skip, len(batch.X)) if skip else batch


def _batch(given: Any) -> Batch:
    if isinstance(given, Batch):
        return given
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        raise TypeError(f"a batch should be (X, y) or (X, y, sample_weight), got {type(given).__name__}.")
    parts = [torch.as_tensor(np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a) for a in given]
    return Batch(*parts)
