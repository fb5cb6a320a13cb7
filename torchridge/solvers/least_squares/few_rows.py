"""Scorers of few rows of many features: all from the n × n gram matrix of the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.least_squares import dual, scoring, spectral
from torchridge.solvers.least_squares.dual import Dual
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.parts import PATH_NUMBERS, portions, take, target_variance, weight_of
from torchridge.solvers.moments.rows import Rows


class DualFolds(NamedTuple):
    """K folds that partition the rows, all from one eigendecomposition of their n × n gram matrix."""

    problem: Dual
    rows: Rows
    held_rows: list[Tensor]
    objective: Objective

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.problem.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.problem.eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (K, L, t)."""
        alpha = alpha.to(self.like)
        if bool((self.eigvals + alpha.min() <= spectral.tolerance(self.eigvals)).any()):
            return self._refitted().squares(alpha)  # no inverse that blocks could be taken from
        errors = [(dual.heldout_residuals(self.problem, alpha, i) ** 2).sum(0) for i in self.held_rows]
        return torch.stack([e / weight_of(self.rows, i) for e, i in zip(errors, self.held_rows, strict=True)])

    def _refitted(self) -> DualSplits:
        n = self.rows.X.shape[0]
        parts = []
        for held in self.held_rows:
            inside = torch.ones(n, dtype=torch.bool, device=held.device)
            inside[held] = False
            parts.append((inside.nonzero()[:, 0], held))
        return dual_splits(self.rows, parts, self.objective)

    def variances(self) -> Tensor:
        """Return the variance of the held-out targets, (K, t)."""
        return torch.stack([target_variance(self.rows, i) for i in self.held_rows])


class DualSplits(NamedTuple):
    """Any splits of few rows, each solved by the gram matrix of its training rows and scored by predictions."""

    problems: list[Dual]
    splits: list[Split]
    rows: Rows
    objective: Objective

    @property
    def eigvals(self) -> Tensor:
        """Those of the first training part."""
        return self.problems[0].eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.problems[0].eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (K, L, t)."""
        alpha = alpha.to(self.like)
        return torch.stack([self._split(k, alpha) for k in range(len(self.splits))])

    def _split(self, k: int, alpha: Tensor) -> Tensor:
        problem, (train, held) = self.problems[k], self.splits[k]
        rows = take(self.rows, train)
        d, t = rows.X.shape[1], rows.y.shape[1]
        parts = []
        for some in portions(alpha, PATH_NUMBERS // (d * t)):
            weight = dual.weights(problem, rows, self.objective, dual.coefficients(problem, some))
            parts.append(
                scoring.heldout_squares_by_prediction(weight, problem.center, problem.target_center, self.rows, held)
            )
        return torch.cat(parts) / weight_of(self.rows, held)

    def variances(self) -> Tensor:
        """Return the variance of the held-out targets, (K, t)."""
        return torch.stack([target_variance(self.rows, held) for _, held in self.splits])


def dual_splits(rows: Rows, parts: list[Split], objective: Objective) -> DualSplits:
    """Diagonalize the gram matrix of the rows of every training part."""
    problems = [dual.dual(take(rows, train), objective, torch.float64) for train, _ in parts]
    return DualSplits(problems, parts, rows, objective)


class WholeDual(NamedTuple):
    """The criteria of `Whole` for fewer rows than features."""

    criterion: str
    problem: Dual
    rows: Rows

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.problem.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.problem.eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return the criterion, (1, L, t)."""
        alpha = alpha.to(self.like)
        n, weight = self.rows.X.shape[0], weight_of(self.rows, slice(None))
        if self.criterion == "loo":
            return ((dual.leave_one_out(self.problem, alpha) ** 2).sum(0) / weight)[None]
        squares = dual.residual_squares(self.problem, alpha)
        if self.criterion == "gcv":
            hat = dual.dof(self.problem, alpha) + int(self.problem.intercept)
            return scoring.gcv(squares, hat, n, weight)[None]
        kept = spectral.filters(self.problem.eigvals, alpha)
        shrunk = (self.problem.eigvals[:, None] * kept**2).T @ self.problem.coef**2
        count = n - self.problem.unpenalized.shape[1]
        return scoring.evidence(self.problem.eigvals, squares + alpha[:, None] * shrunk, alpha, count)[None]

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        return target_variance(self.rows, slice(None))[None] if self.criterion == "loo" else None
