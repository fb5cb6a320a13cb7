"""Folds of few rows and many targets: every split is a few operators from training targets to held-out predictions.

With K the gram matrix of the rows, T the training rows of a split, F its held-out ones, s the sample weights and
H(α) the dual operator of `dual`, the predictions of F are P(α) √s_T y_T with P(α) of shape (f, n_T), whatever the
targets are. P is made at the few strengths that give all others (`shared_strengths`), and applied to targets in
batches; nothing of size d is formed but the gram matrices. There are two ways to P:

- All rows but F are trained on, and one scale of features serves all splits: P = −(s_F^½ H_FF)⁻¹ H_FT for the H of all
  rows, so that one eigendecomposition serves every split.
- Otherwise P = N + (K_FT − N K_TT) Q diag(1 / (λ + α)) Qᵀ, with the eigenvectors Q of K_TT on the complement of what is
  not penalized, and N the prediction by that alone (the weighted mean; the least-squares fit of free features).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.device import sent
from torchridge.solvers.kernels import gram_matrix
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.kernels.few_rows import KEPT, bearable, free_condition, scores_by_rows, splits_by_rows
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.kernels.own_scales import OwnScales
from torchridge.solvers.kernels.shared_strengths import Shared, shared
from torchridge.solvers.kernels.sides import Sides, Way, ends
from torchridge.solvers.least_squares import spectral, target_scores
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.precision import GRAM, Precision
from torchridge.solvers.least_squares.target_scores import SCORES, Score
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.rows import Rows

# What a combination of strengths may miss of a prediction, and the share of a target's variance under which a squared
# error would feel it in its ninth digit: then every strength is predicted for itself.
_TOLERANCE, _NEARLY_PERFECT = 1e-11, 1e-3

# Targets for each training row up to which their residuals cost less than the operators.
_FEW_TARGETS = 0.5

# Numbers in the weights of a training part up to which scores go back to the rows.
_CAREFUL = 2**27

# Up to the first condition, float32 may sum what scales change in the kernel of float32 rows, see `own_scales`; up to
# the second it may predict, too, and a series takes fewer products than eigenvectors do. Scores are off by 1e-8 then
# (root mean square; the worst of thousands by 6e-7).
_CHANGES, _SERIES, _CHANGES_LOSS, _CHANGES_TOLERANCE = 300.0, 5.0, 1e-8, 1e-9

# Memory of the operators of a fold at several strengths while they are made.
OPERATOR_BYTES = 8 * 2**20


@dataclass(frozen=True)
class KernelFolds:
    """Scores of any splits of few rows, in batches of targets."""

    rows: Rows
    splits: list[Split]  # row numbers, on the device of the rows
    objective: Objective
    kernel: Kernel | None  # of all rows, without weights; None for training parts alone, each with its own scale
    problem: Dual | None  # of all rows, without targets; None with the kernel
    complementary: bool  # whether every training part is all the other rows
    dtype: torch.dtype
    max_bytes: int | None = None
    precision: Precision = field(default_factory=Precision)

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows, or of the first training part."""
        return self._sides.at(0, Way.EXACT).eigvals if self.problem is None else self.problem.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (K, L, t)."""
        if not self._held(alpha):
            return splits_by_rows(self.rows, self.splits, self.objective, sent(alpha, self.like), self.precision)
        score = SCORES["mse"]
        found = self.by_kernels(score, alpha)
        if bool((found < _NEARLY_PERFECT * self.variances()[:, None]).any()):
            return self.by_kernels(score, alpha, combined=False)
        return found

    def _held(self, alpha: Tensor) -> bool:
        """Return whether the gram matrices hold the digits of these strengths, or nothing else is at hand."""
        weakest, eps = float(alpha.min()), torch.finfo(self.dtype).eps
        way = self._way(weakest)
        low, top = self._range(way) if self.objective.standardize else self._ends
        worst = (top + weakest) / max(low + weakest, 1e-300) if top > 0 else 1.0
        if worst <= GRAM and self.objective.standardize and self.objective.free is not None:
            worst = max(worst, self._sides.left(weakest, way))
        elif worst <= GRAM and self.problem is not None:
            worst = max(worst, free_condition(self.problem, self.rows, weakest))
        held = worst <= bearable(self.rows) and self._kept()
        (_, d), t = self.rows.X.shape, self.rows.y.shape[1]
        careful = self.dtype is torch.float64 and not self.objective.precomputed and d * t * len(alpha) <= _CAREFUL
        if held or not careful:
            self.precision.note(eps * worst if way is Way.EXACT else max(eps * worst, _CHANGES_LOSS), "")
        return held or not careful

    def _kept(self) -> bool:
        """Return whether every training part keeps what is not penalized: the intercept, and the free features."""
        problem = self.problem
        if problem is None or self.objective.standardize or not problem.unpenalized.shape[1]:
            return True
        if problem.free is None and problem.root is None:
            return True
        held = [torch.linalg.matrix_norm(problem.unpenalized[i], 2) ** 2 for _, i in self.splits]
        return bool((1 - torch.stack(held) > KEPT).all())

    def variances(self) -> Tensor:
        """Return the variance of the held-out targets, (K, t)."""
        parts = []
        for _, held in self.splits:
            weight, pieces = self._weight(held), []
            for part in self._batches(4 * len(held)):
                y = self.rows.y[:, part][held].to(self.dtype)
                pieces.append(target_scores.mean_of((y - target_scores.mean_of(y, weight)) ** 2, weight))
            parts.append(torch.cat(pieces))
        return torch.stack(parts)

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of held-out predictions, (K, L, t), of strengths (L,)."""
        if self._held(alpha):
            return self.by_kernels(score, alpha)
        return scores_by_rows(self.rows, self.splits, self.objective, score, sent(alpha, self.like), self.precision)

    def by_kernels(self, score: Score, alpha: Tensor, combined: bool = True) -> Tensor:
        """Return the same from the gram matrices, whatever digits these hold."""
        found = torch.empty(len(self.splits), len(alpha), self.rows.y.shape[1], dtype=self.dtype, device=self._device)
        for k, part, error, y in self.errors(alpha, combined):
            found[k, :, part] = score(error, y, self._weight(self.splits[k][1]))
        return found

    def errors(self, alpha: Tensor, combined: bool = True) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
        """Yield fold, run of targets, held-out errors (L, f, run), and held-out targets less their means, (f, run).

        If `combined`, most strengths are combinations of few, and float32 may sum what scales change.
        """
        host = alpha.detach().cpu().double()
        way = self._way(float(host.min())) if combined else Way.EXACT
        chosen = self._shared(host, way) if combined else Shared(host, None)
        at, mix = sent(chosen.alpha, self._device, self.dtype), chosen.mix
        mix = None if mix is None else sent(mix.T, self._device, self.dtype).contiguous()
        direct, r, t = self._direct(host), len(at), self.rows.y.shape[1]
        dtype = torch.float32 if way is Way.SERIES else self.dtype
        for k, (train, held) in enumerate(self.splits):
            f, rest = len(held), len(train)
            few = direct and t <= _FEW_TARGETS * rest
            operator = None if few else self._operators(k, at, direct, way).to(dtype)  # (r, f, n_T)
            for part in self._batches(len(self.rows.y) + rest + f * (r + 2 * len(host))):
                y = self._targets(part)
                left = y if self._fitted is None else y - self._fitted[:, part]
                scaled = left if self._root is None else left * self._root[:, None]
                if operator is None:
                    predicted = left[held] - self._left(held, at, scaled)
                else:
                    predicted = (operator.flatten(0, 1) @ scaled[train].to(dtype)).to(scaled.dtype)
                predicted, target = predicted.view(r, -1), left[held].reshape(1, -1)
                error = target - predicted if mix is None else torch.addmm(target, mix, predicted, alpha=-1)
                yield k, part, error.view(len(host), f, -1), y[held]

    def _shared(self, host: Tensor, way: Way) -> Shared:
        low, top = self._range(way)
        least = _TOLERANCE if way is Way.EXACT else _CHANGES_TOLERANCE
        return shared(host, low, top, max(least, 10 * torch.finfo(self.dtype).eps))

    def _way(self, weakest: float) -> Way:
        """Return what the operators may come from: rounding, times the condition, is far below a score."""
        if self.problem is None or not self.objective.standardize or not self._sides.own.swift:
            return Way.EXACT
        if _condition(*self._ends, weakest) > _CHANGES:
            return Way.EXACT
        if _condition(*self._ends, weakest) > _SERIES or _condition(*self._range(Way.SERIES), weakest) > _SERIES:
            return Way.CHANGES
        return Way.SERIES

    def _range(self, way: Way) -> tuple[float, float]:
        """Return the least and the largest eigenvalue of any training part, on the host, or bounds on them."""
        if self.objective.standardize and way is not Way.SERIES:
            return self._sides.ends(way)
        low, top = self._ends
        if way is Way.SERIES:
            return low - self._sides.moved, top + self._sides.moved
        return 0.0 if self.objective.free is not None else low, top  # free features may add to those of the whole

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The least and the largest eigenvalue of all rows, on the host."""
        return ends([self.eigvals])

    def _direct(self, host: Tensor) -> bool:
        """Whether the operators come from all rows: the strengths are clear of rounding, so that H has an inverse."""
        if self.problem is None or self.objective.standardize or not self.complementary:
            return False
        return bool((self.problem.eigvals + host.min() > spectral.tolerance(self.problem.eigvals)).all())

    def _operators(self, k: int, alpha: Tensor, direct: bool, way: Way) -> Tensor:
        """Return the operators of one split at strengths (r,), (r, f, n_T)."""
        train, held = self.splits[k]
        if direct:
            size = 4 * len(held) * (len(train) + len(held)) * self.dtype.itemsize
            parts = torch.split(alpha, max(1, OPERATOR_BYTES // size))
            return torch.cat([self._from_all(train, held, some) for some in parts])
        return self._sides.operators(k, alpha, way, *self._range(way))

    def _left(self, held: Tensor, alpha: Tensor, y: Tensor) -> Tensor:
        """Return what the other rows leave of targets (n, run), (r, f, run), without operators: H_FF⁻¹ (H y)_F."""
        assert self.problem is not None
        basis, parts = self.problem.basis, []
        inner, size = basis.T @ y, len(held) * (len(basis) + 2 * len(held)) * self.dtype.itemsize
        for some in torch.split(alpha, max(1, OPERATOR_BYTES // size)):
            kept = spectral.filters(self.problem.eigvals, some).T  # (r, m)
            scaled = (basis[held] * kept[:, None, :]).flatten(0, 1)  # (r f, m)
            own = (scaled @ basis[held].T).view(len(some), len(held), -1)
            parts.append(algebra.cholesky(own).solve((scaled @ inner).view(len(some), len(held), -1)))
        error = torch.cat(parts)
        return error if self._root is None else error / self._root[held][:, None]

    def _from_all(self, train: Tensor, held: Tensor, alpha: Tensor) -> Tensor:
        assert self.problem is not None
        basis = self.problem.basis
        kept = spectral.filters(self.problem.eigvals, alpha).T  # (r, m)
        scaled = (basis[held] * kept[:, None, :]).flatten(0, 1)  # (r f, m)
        across = (scaled @ basis[train].T).view(len(alpha), len(held), -1)
        own = (scaled @ basis[held].T).view(len(alpha), len(held), -1)
        operator = algebra.cholesky(own).solve(across).neg_()
        return operator if self._root is None else operator / self._root[held][:, None]

    @cached_property
    def _sides(self) -> Sides:
        own = OwnScales(self.rows, self.splits, self.objective, self.dtype, self.kernel)
        return Sides(own, self._root, self.objective.standardize)

    @property
    def _device(self) -> torch.device:
        return self.rows.X.device

    @cached_property
    def _root(self) -> Tensor | None:
        weight = self.rows.sample_weight
        return None if weight is None else weight.detach().to(self.dtype).sqrt()

    def _weight(self, held: Tensor) -> Tensor | None:
        weight = self.rows.sample_weight
        return None if weight is None else weight[held].detach().to(self.dtype)

    def _batches(self, numbers: int) -> Iterator[slice]:
        t, size = self.rows.y.shape[1], self.dtype.itemsize
        return target_scores.target_batches(t, numbers, size, self.max_bytes)

    def _targets(self, part: slice) -> Tensor:
        """Return some targets, (n, run), about their means if there is an intercept."""
        y = self.rows.y[:, part].detach().to(self.dtype)
        return y - y.mean(0) if self.objective.intercept else y

    @cached_property
    def _fitted(self) -> Tensor | None:
        """What the prior predicts, (n, t)."""
        if self.objective.prior is None:
            return None
        nowhere = torch.zeros_like(self.rows.X[0], dtype=self.dtype)
        return gram_matrix.fitted_by_prior(self.rows, nowhere, self.objective.prior, self.dtype)


def _condition(low: float, top: float, weakest: float) -> float:
    """Return the condition at a strength of a kernel with these ends of its spectrum."""
    return (top + weakest) / max(low + weakest, 1e-300)
