"""Scores of predictions for each target, and batches of targets.

A target that is constant on the rows that are scored has neither R² nor a correlation: NaN, which callers leave out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

# What a batch of targets may take unless the caller states a bound.
BATCH_BYTES = 12 * 2**20


def target_batches(t: int, numbers: int, itemsize: int, most: int | None) -> Iterator[slice]:
    """Yield runs of targets, each of which takes `numbers` numbers, within `most` bytes, one target at least."""
    size = max(1, (BATCH_BYTES if most is None else most) // (itemsize * max(1, numbers)))
    for i in range(0, t, size):
        yield slice(i, min(i + size, t))


def mean_of(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return the weighted mean over the second-last dimension."""
    return values.mean(-2) if weight is None else (weight / weight.sum()) @ values


def _centred(values: Tensor, weight: Tensor | None) -> Tensor:
    return values - mean_of(values, weight).unsqueeze(-2)


def varies(y: Tensor) -> Tensor:
    """Return whether each column of y (*b, n, t) holds two different numbers, (*b, t)."""
    return y.amax(-2) != y.amin(-2)


class Score:
    """A score of predictions, for each target. A new one is a class, and a line of `SCORES`.

    Attributes:
        sign: 1 if larger is better, −1 if smaller is.
        varying: whether a target that is constant on the rows that are scored has none.
    """

    sign: int = 1
    varying: bool = True

    def __call__(self, error: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return the score of every strength and target, (L, t), from errors y − ŷ (L, f, t) and y (f, t).

        `error` may be overwritten. Weights (f,) are those of the rows. Errors and y may have more leading dimensions.
        """
        return self.masked(self.of_errors(error, y, weight), varies(y))

    def of_errors(self, error: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return the same, whatever it is of a constant target."""
        raise NotImplementedError

    def masked(self, found: Tensor, live: Tensor) -> Tensor:
        """Return scores (L, t), NaN if a target has none; `live` (t,) tells which vary."""
        return torch.where(live, found, torch.nan) if self.varying else found


class SquaresScore(Score):
    """A score that follows from mean squared errors, so that folds tell it from their moments."""

    def of(self, squares: Tensor, variance: Tensor) -> Tensor:
        """Return the score of mean squared errors (L, t) and the variance of the targets, (t,)."""
        raise NotImplementedError

    def of_errors(self, error: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return the score."""
        return self.of(mean_of(error.square_(), weight), mean_of(_centred(y, weight) ** 2, weight))


class ProductsScore(Score):
    """A score that follows from variances and covariances, so that folds tell it from their moments."""

    def of(self, covariance: Tensor, spread: Tensor, variance: Tensor) -> Tensor:
        """Return the score.

        Args:
            covariance: (L, t) of predictions and targets.
            spread: (L, t) the variance of the predictions, zero if they are constant to rounding.
            variance: (t,) of the targets.
        """
        raise NotImplementedError

    def of_errors(self, error: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Return the score."""
        p, centred = y - error, _centred(y, weight)
        p.sub_(mean_of(p, weight).unsqueeze(-2))
        covariance, spread = mean_of(p * centred, weight), mean_of(p.square_(), weight)
        spread = above_noise(spread, mean_of(y * y, weight))
        return self.of(covariance, spread, mean_of(centred**2, weight))


def above_noise(spread: Tensor, squares: Tensor) -> Tensor:
    """Return variances of predictions, zero where they are rounding beside the squares of the targets."""
    return torch.where(spread > 100 * torch.finfo(spread.dtype).eps ** 2 * squares, spread, 0)


class MeanSquaredError(SquaresScore):
    """Σ s (y − ŷ)² / Σ s."""

    sign, varying = -1, False

    def of(self, squares: Tensor, variance: Tensor) -> Tensor:
        """Return the squares."""
        return squares


class R2(SquaresScore):
    """1 − Σ s (y − ŷ)² / Σ s (y − ȳ)²."""

    def of(self, squares: Tensor, variance: Tensor) -> Tensor:
        """Return the share of the variance."""
        return 1 - squares / variance


class Correlation(ProductsScore):
    """Pearson's; zero for constant predictions."""

    def of(self, covariance: Tensor, spread: Tensor, variance: Tensor) -> Tensor:
        """Return the correlation."""
        size = (spread * variance).sqrt()
        return torch.where(spread > 0, covariance / torch.where(size > 0, size, 1), 0).clamp(-1, 1)


SCORES: dict[str, Score] = {"mse": MeanSquaredError(), "r2": R2(), "correlation": Correlation()}


def from_moments() -> list[str]:
    """Return the names of the scores that moments of folds tell; the others need predictions."""
    return [name for name, score in SCORES.items() if isinstance(score, (SquaresScore, ProductsScore))]


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

    def scores(self, score: Score) -> Tensor:
        """Return a score that moments tell, (L, t)."""
        if isinstance(score, SquaresScore):
            return score.masked(score.of(self.squares / self.total, self.variance), self.varies)
        assert isinstance(score, ProductsScore)
        mean = self.linear / self.total
        spread = above_noise(self.own / self.total - mean**2, self.variance + mean**2)
        return score.masked(score.of(self.both / self.total, spread, self.variance), self.varies)


def of_left_out(
    score: Score, y: Tensor, weight: Tensor | None, strengths: int, runs: Iterable[tuple[slice, slice, Tensor]]
) -> Tensor:
    """Return a score that moments tell, (1, L, t), from leave-one-out errors (rows, L, targets) of runs of both."""
    sums = Sums(y, weight, strengths)
    for rows, part, error in runs:
        own = y[rows, part].detach().to(error)
        sums.add(rows, part, (own[:, None, :] - error).transpose(0, 1))
    return sums.scores(score)[None]
