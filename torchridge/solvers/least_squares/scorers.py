"""Scorers: a prepared problem that gives the errors of any strengths, (K, L, t), K = 1 but for folds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from torchridge.solvers.least_squares import precision, scoring, spectral, whole_rows
from torchridge.solvers.least_squares.criteria import Criterion
from torchridge.solvers.least_squares.objective import Objective, system
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.least_squares.target_scores import Score, Sums
from torchridge.solvers.least_squares.triangle.factor import Triangle
from torchridge.solvers.least_squares.whole_rows import TriangleFit
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.parts import variance_of
from torchridge.solvers.moments.rows import Rows


class Scorer(Protocol):
    """Gives held-out errors of strengths."""

    @property
    def eigvals(self) -> Tensor:
        """Eigenvalues that tell which strengths are worth trying."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype that is scored in, on the device of the rows."""

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (K, L, t), or what stands in for them, of strengths (L,) on any device."""

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of held-out predictions that squares do not tell, (K, L, t), where there are variances."""

    def variances(self) -> Tensor | None:
        """Return the variance of the held-out targets, (K, t); None if none are held out."""

    @property
    def precision(self) -> Precision:
        """What the last scores came from, and what rounding may have taken of them."""


@dataclass(frozen=True)
class Whole:
    """Criteria that hold out no fold, from the moments of all rows."""

    criterion: Criterion
    spectrum: Spectrum
    block: Block
    objective: Objective
    rows: Rows | None
    precision: Precision = field(default_factory=Precision)

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.spectrum.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.spectrum.eigvals

    def careful(self, alpha: Tensor) -> Triangle | None:
        """Return the factor that holds the digits of these strengths, None if the eigenvalues do."""
        weakest = float(alpha.min())
        worst = precision.condition(self.eigvals.cpu(), weakest)
        if worst <= precision.GRAM:
            worst = max(worst, precision.free_condition(system(self.block, self.objective), weakest))
        equations = system(self.block, self.objective)
        if precision.holds(worst, self.like.dtype, lambda: precision.scaled_condition(equations, weakest)):
            self.precision.note(torch.finfo(self.like.dtype).eps * worst, "")
            return None
        return precision.careful(self.block, self.objective, weakest, self.rows, None, self.precision)

    def squares(self, alpha: Tensor) -> Tensor:
        """Return the criterion, (1, L, t)."""
        alpha = alpha.to(self.like)
        tri = self.careful(alpha)
        if tri is None:
            return self.criterion.of(MomentsFit(self, alpha))[None]
        return self.criterion.of(TriangleFit(tri, alpha, self.rows, self.objective, self.precision.lost))[None]

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of leave-one-out predictions, (1, L, t)."""
        assert self.rows is not None
        alpha = alpha.to(self.like)
        sums = Sums(self.rows.y, self.rows.sample_weight, len(alpha))
        each = scoring.leave_one_out_residuals(self.spectrum, self.block, self.objective, self.rows, alpha)
        everything = slice(0, self.rows.y.shape[1])
        for part, error, _ in each:
            y = self.rows.y[part].detach().to(error)
            sums.add(part, everything, (y[:, None, :] - error).transpose(0, 1))
        return sums.scores(score)[None]

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        return variance_of(self.block)[None] if self.criterion.holds_out else None


@dataclass(frozen=True)
class MomentsFit:
    """What the moments of all rows say of fits at strengths (L,): see `criteria.Fit`."""

    whole: Whole
    alpha: Tensor

    @property
    def rows(self) -> int:
        """How many rows count."""
        return self.whole.block.rows

    @property
    def weight(self) -> Tensor:
        """Σ s."""
        return self.whole.block.weight

    @cached_property
    def squares(self) -> Tensor:
        """Σ s (y − ŷ)², (L, t)."""
        return scoring.residual_squares(self.whole.spectrum, self.whole.block, self.whole.objective, self.alpha)

    @property
    def explainable(self) -> Tensor:
        """What the squares were subtracted from, (t,)."""
        return scoring.explainable(self.whole.spectrum, self.whole.block, self.whole.objective)

    @property
    def dof(self) -> Tensor:
        """The trace of the hat matrix, (L,)."""
        return spectral.dof(self.whole.spectrum, self.alpha) + self.whole.objective.intercept

    @property
    def energy(self) -> Tensor:
        """Σ s (y − ŷ)² + α ‖w‖², (L, t)."""
        spec = self.whole.spectrum
        shrunk = (spectral.filters(spec.eigvals, self.alpha) ** 2).T @ spec.coef**2
        return self.squares + self.alpha[:, None] * shrunk

    @property
    def volume(self) -> Tensor:
        """The logarithm of det(I + X Xᵀ / α), (L,)."""
        return scoring.volume(self.whole.spectrum.eigvals, self.alpha)

    @property
    def count(self) -> int:
        """Rows less what is not penalized."""
        free = self.whole.spectrum.free
        return self.rows - self.whole.objective.intercept - (free.rank if free else 0)

    @property
    def left_out(self) -> Tensor:
        """Σ s e² / Σ s of leave-one-out, (L, t)."""
        whole, rows = self.whole, self.whole.rows
        assert rows is not None
        parts = (whole.spectrum, whole.block, whole.objective, rows, self.alpha)
        total, few = scoring.leave_one_out(*parts, whole_rows.tiny(whole.precision.lost))
        if len(few):
            again = whole_rows.refitted_errors(rows, few, rows, whole.objective, self.alpha.double()) ** 2
            weight = rows.sample_weight
            again = again if weight is None else again * weight[few].detach().to(again)[:, None, None]
            total = total + again.sum(0)
        return total / self.weight
