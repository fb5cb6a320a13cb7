"""Which fold a row of a stream lies in: by its number, whatever batch it comes in."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of one run if the number of rows is not known beforehand: row i goes to fold i mod K.
DEALT_ROWS = 1


class Run(NamedTuple):
    """Rows of one fold that follow one another within a batch."""

    start: int
    stop: int
    fold: int


class StreamFolds(NamedTuple):
    """K folds: contiguous as those of `ridge_cv(cv=K)`, or runs of `run` rows dealt in turn."""

    k: int
    run: int | None  # None: contiguous
    bounds: tuple[int, ...]  # where each contiguous fold ends

    def runs(self, start: int, stop: int, most: int) -> list[Run] | None:
        """Cut the rows from number `start` to `stop`, positions relative to `start`; None if that makes many runs."""
        if self.run is not None and stop - start > most * self.run:
            return None
        result, at = [], start
        while at < stop:
            if self.run is None:
                fold = min(bisect_right(self.bounds, at), self.k - 1)
                end = self.bounds[fold] if fold < self.k - 1 else stop
            else:
                fold, end = at // self.run % self.k, (at // self.run + 1) * self.run
            result.append(Run(at - start, min(end, stop) - start, fold))
            at = end
        return result

    def ids(self, start: int, stop: int) -> Tensor:
        """Return the fold of each row from number `start` to `stop`, of folds that are dealt in turn."""
        assert self.run is not None
        return torch.arange(start, stop) // self.run % min(self.k, 2**62)


def folds_of(k: int, run: int | None, n: int | None) -> StreamFolds:
    """Return contiguous folds if the number of rows is known and `run` is not asked for."""
    if run is not None or n is None:
        return StreamFolds(k, run or DEALT_ROWS, ())
    sizes = [n // k + (i < n % k) for i in range(k)]  # as `solvers.folds.contiguous_folds`
    return StreamFolds(k, None, tuple(accumulate(sizes)))
