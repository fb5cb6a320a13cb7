"""The rows of one logistic problem as products with centred features, dense or sparse, with a column of ones last.

Letters: n rows, d features, c logits, q = d + 1 with an intercept, else d. Coefficients θ are (c, q) over the features
X − mean and ones; a sparse X is never centred in memory, but in its products:

    (X − 1 meanᵀ) w = X w − 1 (meanᵀ w)      and      (X − 1 meanᵀ)ᵀ r = Xᵀ r − mean (1ᵀ r).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.iterative.operators import Operator

# A centred copy of this many numbers costs little; more are copied only if centring in the products would cancel.
_COPIED = 2**21

# From this ratio of a mean to the standard deviation on, implicit centring would lose digits that the answer needs.
_FAR = 1e3


class Features(Protocol):
    """Rows that multiply coefficients."""

    intercept: bool
    mean: Tensor  # (d,), zero without an intercept

    @property
    def square(self) -> Tensor:
        """Weighted mean square of every centred feature, 1 for the column of ones, (q,)."""

    def logits(self, theta: Tensor) -> Tensor:
        """Return θ fᵀ, (c, n)."""

    def gradient(self, residual: Tensor) -> Tensor:
        """Return residual f, (c, q) in float64, for residuals (c, n)."""


class DenseFeatures:
    """A strided matrix."""

    def __init__(self, X: Tensor, weight: Tensor, *, intercept: bool, dtype: torch.dtype = torch.float64) -> None:
        self.intercept, self.weight = intercept, weight
        self.mean = weight.new_zeros(X.shape[1])
        self._shift: Tensor | None = None
        self.whole: Tensor | None = None  # f, with the column of ones
        if not intercept:
            self.X = self.whole = X.to(dtype)
        elif X.numel() <= _COPIED:
            self._copy(X.double(), dtype)
        else:
            self._centre(X, dtype)

    def _copy(self, X: Tensor, dtype: torch.dtype) -> None:
        self.mean = self.weight @ X
        self.whole = X.new_empty(len(X), X.shape[1] + 1, dtype=dtype)
        self.X = self.whole[:, :-1]
        self.X.copy_(X - self.mean)
        self.whole[:, -1] = 1

    def _centre(self, X: Tensor, dtype: torch.dtype) -> None:
        self.mean = _sums(X, self.weight, None)
        if dtype is X.dtype is torch.float64:
            spread = _sums(X, self.weight, self.mean, squared=True)
            if bool((self.mean.square() <= _FAR**2 * spread).all()):
                self.X, self._shift = X, self.mean
                return
        self.X = torch.empty(X.shape, dtype=dtype, device=X.device)
        for part in _runs(X):
            self.X[part] = X[part].double() - self.mean

    def rounded(self) -> DenseFeatures | None:
        """Return the same rows in float32, unless there is no small copy of them."""
        if self.whole is None:
            return None
        out = copy(self)
        out.whole = self.whole.float()
        out.X = out.whole[:, :-1] if self.intercept else out.whole
        return out

    @cached_property
    def square(self) -> Tensor:
        """Weighted mean squares."""
        square = _sums(self.X, self.weight, self._shift, squared=True)
        return torch.cat([square, square.new_ones(1)]) if self.intercept else square

    def logits(self, theta: Tensor) -> Tensor:
        """Return θ fᵀ."""
        theta = theta.to(self.X.dtype)
        if self.whole is not None:
            return torch.mm(theta, self.whole.mT)
        weight, bias = theta[:, :-1], theta[:, -1]
        if self._shift is not None:
            bias = bias - weight @ self._shift
        return torch.addmm(bias[:, None], weight, self.X.mT)

    def centred(self) -> Tensor:
        """Return X − mean, (n, d)."""
        return self.X if self._shift is None else self.X - self._shift

    def gram(self) -> Tensor:
        """Return Σ s f fᵀ, (q, q), float64."""
        root = self.weight.sqrt().to(self.X.dtype)[:, None]
        gram = self.X.new_zeros(self.X.shape[1], self.X.shape[1])
        for part in _runs(self.X):
            algebra.add_gram(gram, self.X[part] * root[part])
        gram = algebra.mirror(gram).double()
        if self._shift is not None:
            gram -= torch.outer(self._shift, self._shift)
        if not self.intercept:
            return gram
        out = gram.new_zeros(len(gram) + 1, len(gram) + 1)
        out[:-1, :-1], out[-1, -1] = gram, 1
        return out

    def gradient(self, residual: Tensor) -> Tensor:
        """Return residual f."""
        if self.whole is not None:
            return torch.mm(residual, self.whole).double()
        weight = residual @ self.X
        total = residual.sum(1, keepdim=True)
        if self._shift is not None:
            weight.addmm_(total, self._shift[None], alpha=-1)
        return torch.cat([weight, total], 1).double()


def _runs(X: Tensor) -> Iterator[slice]:
    step = max(1, _COPIED // X.shape[1])
    for start in range(0, len(X), step):
        yield slice(start, start + step)


def _sums(X: Tensor, weight: Tensor, center: Tensor | None, *, squared: bool = False) -> Tensor:
    """Return Σ s (x − center), or of its squares, (d,), in float64, a run of rows at a time."""
    total = weight.new_zeros(X.shape[1])
    for part in _runs(X):
        rows = X[part].double()
        rows = rows if center is None else rows - center
        total += weight[part] @ (rows.square() if squared else rows)
    return total


class SparseFeatures:
    """A sparse matrix, which is only multiplied with."""

    def __init__(self, X: Operator, weight: Tensor, *, intercept: bool) -> None:
        self.X, self.intercept, self.weight = X, intercept, weight
        zero = weight.new_zeros(X.shape[1])
        self.mean = X.rmatmul(weight[:, None])[:, 0] if intercept else zero

    @cached_property
    def square(self) -> Tensor:
        """Weighted mean squares."""
        square = (self.X.squares(self.weight[:, None], None)[:, 0] - self.mean.square()).clamp_min_(0)
        return torch.cat([square, square.new_ones(1)]) if self.intercept else square

    def logits(self, theta: Tensor) -> Tensor:
        """Return θ fᵀ."""
        if not self.intercept:
            return self.X.matmul(theta.mT).mT.contiguous()
        weight, bias = theta[:, :-1], theta[:, -1]
        logits = self.X.matmul(weight.mT).mT.contiguous()
        return logits.add_((bias - weight @ self.mean)[:, None])

    def gradient(self, residual: Tensor) -> Tensor:
        """Return residual f."""
        weight = self.X.rmatmul(residual.mT).mT
        if not self.intercept:
            return weight.contiguous()
        total = residual.sum(1, keepdim=True)
        out = weight.new_empty(len(weight), weight.shape[1] + 1)
        torch.sub(weight, total * self.mean, out=out[:, :-1])
        out[:, -1:] = total
        return out
