"""Scorers of few rows of many features: all from the n × n gram matrix of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchridge.solvers.kernels import dual
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.least_squares import precision, scoring, spectral, whole_rows
from torchridge.solvers.least_squares.criteria import Criterion, Fit
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.scorers import AllRows
from torchridge.solvers.least_squares.target_scores import Score, of_left_out, target_batches
from torchridge.solvers.least_squares.triangle import estimates, factor, roots
from torchridge.solvers.least_squares.triangle.factor import Triangle
from torchridge.solvers.moments.blocks import constant_noise
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.parts import take, target_variance, weight_of
from torchridge.solvers.moments.rows import Rows

# The least share of an unpenalized direction that a training part may keep, or block inversion has lost it.
KEPT = 1e-3

# Numbers in rows that an orthogonal factor of them takes no longer than the gram matrix and its eigenvalues.
_FEW_NUMBERS = 2**12


def splits_by_rows(rows: Rows, splits: list[Split], objective: Objective, alpha: Tensor, known: Precision) -> Tensor:
    """Return mean squared errors (K, L, t) from an orthogonal factor of the rows of every training part."""
    scores, worst = [], 1.0
    for train, held in splits:
        tri = factor.triangle(take(rows, train), objective)
        squares, spread = estimates.heldout_squares(tri, rows, held, alpha)
        scores.append(squares / weight_of(rows, held))
        worst = max(worst, float(spread.amax()))
    _note(known, alpha, worst)
    return torch.stack(scores)


def scores_by_rows(
    rows: Rows, splits: list[Split], objective: Objective, score: Score, alpha: Tensor, known: Precision
) -> Tensor:
    """Return a score of held-out predictions, (K, L, t), from an orthogonal factor of the rows of every part."""
    scores, worst = [], 1.0
    for train, held in splits:
        tri = factor.triangle(take(rows, train), objective)
        found, spread = estimates.heldout_score(tri, rows, held, score, alpha)
        scores.append(found)
        worst = max(worst, float(spread.amax()))
    _note(known, alpha, worst)
    return torch.stack(scores)


def _note(known: Precision, alpha: Tensor, worst: float) -> None:
    known.note(torch.finfo(alpha.dtype).eps * worst, f"scores from the rows: condition {worst**2:.1e}")


def bearable(rows: Rows) -> float:
    """Return the condition up to which scores come from the gram matrix: the least, if factoring rows costs nothing."""
    return precision.UNITS if rows.X.numel() <= _FEW_NUMBERS else precision.GRAM


def holds(problems: list[Dual], alpha: Tensor, rows: list[Rows], known: Precision) -> bool:
    """Return whether the gram matrices of these rows hold the digits of these strengths."""
    weakest, worst = float(alpha.min()), 1.0
    for problem, own in zip(problems, rows, strict=True):
        worst = max(worst, precision.condition(problem.eigvals.cpu(), weakest))
        worst = max(worst, free_condition(problem, own, weakest)) if worst <= precision.GRAM else worst
    held = alpha.dtype is not torch.float64 or worst <= min(map(bearable, rows))
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
class WholeDual(AllRows):
    """The criteria of `Whole` for fewer rows than features."""

    criterion: Criterion
    problem: Dual
    rows: Rows
    objective: Objective
    precision: Precision = field(default_factory=Precision)

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.problem.eigvals

    def careful(self, alpha: Tensor) -> Triangle | None:
        """Return the factor that holds the digits of these strengths, None if the gram matrix does."""
        if self.objective.precomputed or holds([self.problem], alpha, [self.rows], self.precision):
            return None
        tri = factor.triangle(self.rows, self.objective)
        spread = float(roots.roots(tri, alpha.min().reshape(1)).spread)
        lost = torch.finfo(alpha.dtype).eps * spread
        self.precision.note(lost, f"scores from the rows: condition {spread**2:.1e}")
        return tri

    def fit(self, alpha: Tensor) -> Fit:
        """Return what is known of fits at strengths (L,)."""
        tri = self.careful(alpha)
        if tri is not None:
            return whole_rows.fit_of(tri, alpha, self.rows, self.objective, self.precision.lost)
        problem, n, weight = self.problem, self.rows.X.shape[0], weight_of(self.rows, slice(None))

        def squares() -> Tensor:
            return dual.residual_squares(problem, alpha)

        def energy() -> Tensor:
            kept = spectral.filters(problem.eigvals, alpha)
            shrunk = (problem.eigvals[:, None] * kept**2).T @ problem.coef**2
            return squares() + alpha[:, None] * shrunk

        return Fit(
            n,
            weight,
            squares,
            explainable=lambda: None,
            dof=lambda: dual.dof(problem, alpha) + int(problem.intercept),
            energy=energy,
            volume=lambda: scoring.volume(problem.eigvals, alpha),
            count=lambda: n - problem.unpenalized.shape[1],
            left_out=lambda: torch.cat([e.square_().sum(0) for _, e in self._errors(alpha)], 1) / weight,
        )

    def _errors(self, alpha: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield runs of targets and √s times their leave-one-out residuals, (n, L, run)."""
        n, t = self.problem.target.shape
        few = self._alone()
        for part in target_batches(t, 4 * n * len(alpha), self.like.element_size(), None):
            own = self.problem._replace(target=self.problem.target[:, part], coef=self.problem.coef[:, part])
            errors = dual.leave_one_out(own, alpha)
            if len(few):
                rows = self.rows._replace(y=self.rows.y[:, part])
                again = whole_rows.refitted_errors(rows, few, rows, _targets(self.objective, part), alpha)
                root = self.problem.root
                errors[few] = again if root is None else again * root[few][:, None, None]
            yield part, errors

    def _alone(self) -> Tensor:
        """Return the rows that hold an unpenalized direction nearly alone, to be left out in earnest."""
        if self.objective.precomputed or (self.problem.free is None and self.problem.root is None):
            return torch.zeros(0, dtype=torch.int64)
        return (1 - (self.problem.unpenalized**2).sum(1) < KEPT).nonzero()[:, 0]

    def left_out(self, alpha: Tensor) -> Tensor:
        """Return √s times the leave-one-out residuals, (n, L, t)."""
        return torch.cat([error for _, error in self._errors(alpha)], 2)

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of leave-one-out predictions, (1, L, t)."""
        tri = self.careful(alpha.to(self.like))
        if tri is not None:
            lost = self.precision.lost
            return whole_rows.score_left_out(score, tri, self.rows, self.objective, alpha.to(self.like), lost)
        root, every = self.problem.root, slice(0, len(self.rows.y))
        each = self._errors(alpha.to(self.like))
        runs = ((every, part, e if root is None else e / root[:, None, None]) for part, e in each)
        return of_left_out(score, self.rows.y, self.rows.sample_weight, len(alpha), runs)

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        return target_variance(self.rows, slice(None))[None] if self.criterion.holds_out else None


def _targets(objective: Objective, part: slice) -> Objective:
    """Return the objective of some of the targets."""
    return objective if objective.prior is None else objective._replace(prior=objective.prior[:, part])
