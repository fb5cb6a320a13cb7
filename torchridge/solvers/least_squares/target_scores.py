"""Scores of predictions for each target: mean squared error, R², Pearson's correlation; batches of targets.

A target that is constant on the rows that are scored has neither R² nor a correlation: NaN, which callers leave out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

KINDS = ("mse", "r2", "correlation")

# What a batch of targets may take unless the caller states a bound.
BATCH_BYTES = 16 * 2**20


def target_batches(t: int, numbers: int, itemsize: int, most: int | None) -> Iterator[slice]:
    """Yield runs of targets, each of which takes `numbers` numbers, within `most` bytes, one target at least."""
    size = max(1, (BATCH_BYTES if most is None else most) // (itemsize * max(1, numbers)))
    for i in range(0, t, size):
        yield slice(i, min(i + size, t))


def mean_of(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return the weighted mean over the second-last dimension."""
    return values.mean(-2) if weight is None else (weight / weight.sum()) @ values


def varies(y: Tensor) -> Tensor:
    """Return whether each column of y (n, t) holds two different numbers, (t,)."""
    return y.amax(0) != y.amin(0)


def measured(kind: str, error: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Return the score of every strength and target, (L, t), from errors y − ŷ (L, f, t) and y (f, t).

    `error` may be overwritten. Weights (f,) are those of the rows.
    """
    if kind == "correlation":
        return correlation(y - error, y, weight)
    squares = mean_of(error.square_(), weight)
    if kind == "mse":
        return squares
    variance = mean_of((y - mean_of(y, weight)) ** 2, weight)
    return torch.where(varies(y), 1 - squares / variance, torch.nan)


def correlation(predicted: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Return Pearson's correlation over rows, (L, t); zero for constant predictions, NaN for a constant target.

    `predicted` (L, f, t) may be overwritten.
    """
    p = predicted.sub_(mean_of(predicted, weight).unsqueeze(-2))
    centred = y - mean_of(y, weight)
    both, own = mean_of(p * centred, weight), mean_of(p.square_(), weight)
    of_constant = 100 * torch.finfo(y.dtype).eps ** 2 * mean_of(y * y, weight)
    size = (own * mean_of(centred**2, weight)).sqrt()
    found = torch.where(own > of_constant, both / torch.where(size > 0, size, 1), 0)
    return torch.where(varies(y), found.clamp(-1, 1), torch.nan)


class Sums:
    """Sums over rows that come in chunks, about the means of the targets, from which their scores follow."""

    def __init__(self, y: Tensor, weight: Tensor | None, strengths: int) -> None:
        self.y, self.weight = y.detach(), None if weight is None else weight.double()
        t = y.shape[1]
        zeros = torch.zeros(strengths, t, dtype=torch.float64, device=y.device)
        self.squares, self.linear, self.own, self.both = (zeros.clone() for _ in range(4))
        self.center, self.variance = zeros[0].clone(), zeros[0].clone()
        for part in target_batches(t, 4 * len(y), 8, None):
            own = self.y[:, part].double()
            self.center[part] = mean_of(own, self.weight)
            self.variance[part] = mean_of((own - self.center[part]) ** 2, self.weight)
        self.varies = varies(self.y if weight is None else self.y[weight > 0])
        self.total = float(len(y)) if self.weight is None else self.weight.sum()

    def add(self, rows: slice, part: slice, predicted: Tensor) -> None:
        """Add predictions (L, rows, targets)."""
        y = self.y[rows, part].double() - self.center[part]
        p = predicted.detach().double() - self.center[part]
        weight = torch.ones_like(y[:, 0]) if self.weight is None else self.weight[rows]
        self.linear[:, part] += weight @ p
        self.both[:, part] += weight @ (p * y)
        self.own[:, part] += weight @ (p * p)
        self.squares[:, part] += weight @ p.sub_(y).square_()

    def scores(self, kind: str) -> Tensor:
        """Return scores (L, t)."""
        squares = self.squares / self.total
        if kind == "mse":
            return squares
        if kind == "r2":
            return torch.where(self.varies, 1 - squares / self.variance, torch.nan)
        mean = self.linear / self.total
        own = (self.own / self.total - mean**2).clamp_min(0)
        size = (own * self.variance).sqrt()
        constant = own <= 100 * torch.finfo(own.dtype).eps ** 2 * (self.variance + mean**2)
        found = torch.where(constant, 0, self.both / self.total / torch.where(size > 0, size, 1))
        return torch.where(self.varies, found.clamp(-1, 1), torch.nan)
