"""Scorers of few rows of many features: all from the n × n gram matrix of the rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchridge.solvers.least_squares import dual, precision, scoring, spectral, triangle, whole_rows
from torchridge.solvers.least_squares.dual import Dual
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.triangle import Triangle
from torchridge.solvers.moments.blocks import constant_noise
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.parts import PATH_NUMBERS, portions, take, target_variance, weight_of
from torchridge.solvers.moments.rows import Rows

# The least share of an unpenalized direction that a training part may keep, or block inversion has lost it.
_KEPT = 1e-3


def splits_by_rows(rows: Rows, splits: list[Split], objective: Objective, alpha: Tensor, known: Precision) -> Tensor:
    """Return mean squared errors (K, L, t) from an orthogonal factor of the rows of every training part."""
    scores, worst = [], 1.0
    for train, held in splits:
        tri = triangle.triangle(take(rows, train), objective)
        squares, spread = triangle.heldout_squares(tri, rows, held, alpha)
        scores.append(squares / weight_of(rows, held))
        worst = max(worst, float(spread.amax()))
    known.note(torch.finfo(alpha.dtype).eps * worst, f"scores from the rows: condition {worst**2:.1e}")
    return torch.stack(scores)


def holds(problems: list[Dual], alpha: Tensor, rows: list[Rows], known: Precision) -> bool:
    """Return whether the gram matrices of these rows hold the digits of these strengths."""
    weakest, worst = float(alpha.min()), 1.0
    for problem, own in zip(problems, rows, strict=True):
        worst = max(worst, precision.condition(problem.eigvals.cpu(), weakest))
        worst = max(worst, free_condition(problem, own, weakest)) if worst <= precision.GRAM else worst
    held = precision.holds(worst, alpha.dtype, lambda: worst)
    if held:
        known.note(torch.finfo(alpha.dtype).eps * worst, "")
    return held


def free_condition(problem: Dual, rows: Rows, weakest: float) -> float:
    """Return what eliminating free features costs: their own condition, and that of what is left of the others."""
    if problem.free is None or problem.scale is None:
        return 1.0
    x = rows.X.detach().to(problem.center) - problem.center
    x = x if problem.root is None else x * problem.root[:, None]
    squares = (x * x).sum(0)
    noise = constant_noise(problem.center) * (x.shape[0] if problem.root is None else (problem.root**2).sum())
    squares = torch.where(squares > 1e12 * noise, squares, 0)  # a constant one, of which centring once leaves an ulp
    x = torch.where(squares > 0, x, 0)
    own = x[:, problem.free] / torch.where(squares > 0, squares, 1).sqrt()[problem.free]
    sigma = torch.linalg.svdvals(own)
    least = sigma[-1] if x.shape[0] >= own.shape[1] else sigma[-1] * 0
    whole, low = (squares * problem.scale).sum(), problem.eigvals.amin()
    top, last, norm, left = map(float, torch.stack([sigma[0], least, whole, low]).tolist())
    return max((top / last) ** 2 if last > 0 else torch.inf, (norm + weakest) / max(left + weakest, 1e-300))


@dataclass(frozen=True)
class DualFolds:
    """K folds that partition the rows, all from one eigendecomposition of their n × n gram matrix."""

    problem: Dual
    rows: Rows
    held_rows: list[Tensor]
    objective: Objective
    precision: Precision = field(default_factory=Precision)

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
        if not holds([self.problem], alpha, [self.rows], self.precision) or not self._kept():
            return splits_by_rows(self.rows, self._splits(), self.objective, alpha, self.precision)
        errors = [(dual.heldout_residuals(self.problem, alpha, i) ** 2).sum(0) for i in self.held_rows]
        return torch.stack([e / weight_of(self.rows, i) for e, i in zip(errors, self.held_rows, strict=True)])

    def _kept(self) -> bool:
        """Return whether every training part keeps what is not penalized: the intercept, and the free features."""
        unpenalized = self.problem.unpenalized
        if not unpenalized.shape[1] or (self.problem.free is None and self.problem.root is None):
            return True
        held = [torch.linalg.matrix_norm(unpenalized[i], 2) ** 2 for i in self.held_rows]
        return bool((1 - torch.stack(held) > _KEPT).all())

    def _splits(self) -> list[Split]:
        n = self.rows.X.shape[0]
        parts = []
        for held in self.held_rows:
            inside = torch.ones(n, dtype=torch.bool, device=held.device)
            inside[held] = False
            parts.append((inside.nonzero()[:, 0], held))
        return parts

    def variances(self) -> Tensor:
        """Return the variance of the held-out targets, (K, t)."""
        return torch.stack([target_variance(self.rows, i) for i in self.held_rows])


@dataclass(frozen=True)
class DualSplits:
    """Any splits of few rows, each solved by the gram matrix of its training rows and scored by predictions."""

    problems: list[Dual]
    splits: list[Split]
    rows: Rows
    objective: Objective
    precision: Precision = field(default_factory=Precision)

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
        if not holds(self.problems, alpha, [take(self.rows, train) for train, _ in self.splits], self.precision):
            return splits_by_rows(self.rows, self.splits, self.objective, alpha, self.precision)
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


@dataclass(frozen=True)
class WholeDual:
    """The criteria of `Whole` for fewer rows than features."""

    criterion: str
    problem: Dual
    rows: Rows
    objective: Objective
    precision: Precision = field(default_factory=Precision)

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.problem.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.problem.eigvals

    def careful(self, alpha: Tensor) -> Triangle | None:
        """Return the factor that holds the digits of these strengths, None if the gram matrix does."""
        if holds([self.problem], alpha, [self.rows], self.precision):
            return None
        tri = triangle.triangle(self.rows, self.objective)
        spread = float(triangle.roots(tri, alpha.min().reshape(1)).spread)
        lost = torch.finfo(alpha.dtype).eps * spread
        self.precision.note(lost, f"scores from the rows: condition {spread**2:.1e}")
        return tri

    def left_out(self, alpha: Tensor) -> Tensor:
        """Return √s times the leave-one-out residuals, (n, L, t)."""
        errors, problem = dual.leave_one_out(self.problem, alpha), self.problem
        if problem.free is not None or problem.root is not None:  # a row may hold an unpenalized direction alone
            few = (1 - (problem.unpenalized**2).sum(1) < _KEPT).nonzero()[:, 0]
            if len(few):
                again = whole_rows.refitted_errors(self.rows, few, self.rows, self.objective, alpha)
                errors[few] = again if problem.root is None else again * problem.root[few][:, None, None]
        return errors

    def squares(self, alpha: Tensor) -> Tensor:
        """Return the criterion, (1, L, t)."""
        alpha = alpha.to(self.like)
        n, weight, fixed = self.rows.X.shape[0], weight_of(self.rows, slice(None)), self.problem.intercept
        tri = self.careful(alpha)
        if tri is not None and self.criterion == "loo":
            rows, lost = self.rows, self.precision.lost
            return whole_rows.leave_one_out(tri, rows, rows, self.objective, alpha, lost)[None]
        if tri is not None:
            return (whole_rows.gcv if self.criterion == "gcv" else whole_rows.evidence)(tri, alpha, fixed)[None]
        if self.criterion == "loo":
            return ((self.left_out(alpha) ** 2).sum(0) / weight)[None]
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
