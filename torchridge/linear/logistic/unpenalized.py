"""Logistic fits at C = ∞, that is without a penalty, and whether an optimum exists there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from torchridge.linear.logistic.problem import Data, Settings, class_counts
from torchridge.solvers.cross_entropy import unpenalized
from torchridge.solvers.cross_entropy.features import SparseFeatures
from torchridge.solvers.cross_entropy.fit import Fit
from torchridge.solvers.cross_entropy.over_ranks import summed
from torchridge.solvers.cross_entropy.sparse import doubled
from torchridge.solvers.iterative.operators import Operator

# λ, next to the mean loss, of the weakest penalty that is solved, on features of unit deviation; and how many times
# stronger another is, at which the weights of classes that overlap are the same, and others are smaller.
_WEAKEST, _STRONGER = 1e-12, 1e2
_GROWTH = 1e-2

# Deviation of a column, relative to its mean, that rounding may give a constant one.
_CONSTANT = 1e-13

# Numbers of a sparse matrix that is made dense.
_FILLED = 2**22

# (rows, strengths that rise) → the fits at them
Penalized = Callable[[Data, Tensor], Fit]


def fit_unpenalized(data: Data, weight: Tensor, settings: Settings, penalized: Penalized) -> Fit:
    """Fit all rows under every row weight (g, n) without a penalty; (1, h, g) of everything.

    Newton's method takes problems of up to some size; of what is larger, or on ranks, the fit has a very weak penalty.
    It has also stopped if no optimum exists, which an infinite gap says.
    """
    seen = class_counts(data, weight)  # (h, g, k)
    small = data.ranks is None and unpenalized.affordable(data.X.shape[0], data.X.shape[1], seen.shape[-1])
    if small and _fits(data):
        return _by_newton(_dense(data), weight, seen, settings)
    return _limit(data, weight, penalized)


def joined(*fits: Fit) -> Fit:
    """Return fits at several strengths, one after the other."""
    return Fit(**{f.name: torch.cat([getattr(fit, f.name) for fit in fits]) for f in fields(Fit)})


def _fits(data: Data) -> bool:
    return isinstance(data.X, Tensor) or data.X.shape[0] * data.X.shape[1] <= _FILLED


def _dense(data: Data) -> Data:
    """Return the rows of a small sparse matrix as a strided one."""
    if isinstance(data.X, Tensor):
        return data
    return replace(data, X=data.X.columns(torch.arange(data.X.shape[1], device=data.X.device)))


def _by_newton(data: Data, weight: Tensor, seen: Tensor, settings: Settings) -> Fit:
    heads, groups, k = seen.shape
    c, like = 1 if k == 2 else k, weight
    closed = -torch.inf if settings.intercept and k > 2 else 0.0
    out = Fit(
        like.new_zeros(1, heads, groups, c, data.X.shape[1]),
        like.new_full((1, heads, groups, c), closed),
        *like.new_zeros(3, 1, heads, groups),
        *torch.zeros(2, 1, heads, groups, dtype=torch.bool, device=like.device),
    )
    out = replace(out, n_iter=out.n_iter.long())
    for h in range(heads):
        for g in range(groups):
            _keep(out, h, g, data, weight[g], seen[h, g], settings)
    return out


def _keep(out: Fit, h: int, g: int, data: Data, weight: Tensor, seen: Tensor, settings: Settings) -> None:
    """Fit the rows that have weight, of the classes that have some."""
    rows, open_ = (weight > 0).nonzero()[:, 0], (seen > 0).nonzero()[:, 0]
    number = torch.zeros_like(seen, dtype=torch.int64)
    number[open_] = torch.arange(len(open_), device=seen.device)
    X, labels, share = data.X[rows], number[data.labels[h, rows]], weight[rows] / weight.sum()  # type: ignore[index]
    intercept, most = settings.intercept, settings.max_iter
    found = unpenalized.fit(X, labels, share, len(open_), intercept=intercept, max_iter=most)
    at = (0, h, g)
    if len(seen) == 2 or len(open_) > 2:
        place = slice(None) if len(seen) == 2 else open_
        out.weight[at][place], out.bias[at][place] = found.weight, found.bias
    else:  # two of many: the softmax of two has half of the single logit each
        out.weight[at][open_] = torch.cat([-found.weight, found.weight]) / 2
        out.bias[at][open_] = torch.cat([-found.bias, found.bias]) / 2
    out.objective[at], out.gap[at], out.n_iter[at] = found.loss * weight.sum(), found.gap, found.n_iter
    out.converged[at] = found.exists is True
    logits = X.double() @ found.weight.mT + found.bias
    chosen = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
    out.separated[at] = (chosen == labels).all()


def _limit(data: Data, weight: Tensor, penalized: Penalized) -> Fit:
    """Return the fits at the weakest penalty; of infinite gap if they still grow, and so an optimum does not exist.

    Features are scaled to a deviation of 1, or a small one would be held back by the penalty.
    """
    scale = _scale(data, weight)
    C = 1 / (_WEAKEST * summed(data.ranks, "weights", weight.sum(1)).amin())
    both = penalized(replace(data, X=_scaled(data.X, scale)), torch.stack([C / _STRONGER, C]))
    size = both.weight[1].flatten(2).norm(dim=-1)  # (h, g)
    moved = (both.weight[1] - both.weight[0]).flatten(2).norm(dim=-1)
    endless = (moved > _GROWTH * size)[None] | both.separated[1:]
    last = Fit(**{f.name: getattr(both, f.name)[1:] for f in fields(Fit)})
    return replace(
        last,
        weight=last.weight * scale,
        objective=(last.objective - 0.5 * last.weight.double().square().sum((-2, -1))) / C,
        gap=torch.where(endless, torch.inf, last.gap),
        converged=last.converged & ~endless,
    )


def _scale(data: Data, weight: Tensor) -> Tensor:
    """Return one over the weighted deviation of every feature, over all rows; zero for a constant one."""
    share = weight.sum(0)
    share = share / summed(data.ranks, "weights", share.sum())
    if isinstance(data.X, Tensor):
        X = data.X.double()
        mean = summed(data.ranks, "the means", share @ X)
        square = summed(data.ranks, "the squares", share @ (X - mean).square())
    else:
        features = SparseFeatures(doubled(data.X), share, intercept=True)
        mean, square = features.mean, features.square[:-1]
    noise = _CONSTANT * mean.abs()
    return torch.where(square > noise**2, square.rsqrt(), 0)


def _scaled(X: Tensor | Operator, scale: Tensor) -> Any:
    return X.double() * scale if isinstance(X, Tensor) else Columns(doubled(X), scale)


class Columns:
    """A sparse matrix with scaled columns, as far as products for logistic fits need it."""

    dtype = torch.float64

    def __init__(self, X: Operator, scale: Tensor) -> None:
        self.X, self.scale, self.shape, self.device = X, scale[:, None], X.shape, X.device

    def matmul(self, v: Tensor) -> Tensor:
        """Return X v, (n, c)."""
        return self.X.matmul(self.scale * v)

    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r, (d, c)."""
        return self.scale * self.X.rmatmul(r)

    def squares(self, weight: Tensor, center: Tensor | None) -> Tensor:
        """Return Σ_i s_i x_i², (d, F), for weights s (n, F) about a zero centre."""
        return self.scale.square() * self.X.squares(weight, center)
