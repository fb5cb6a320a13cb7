"""Scorers: a prepared problem that gives the errors of any strengths, (K, L, t), K = 1 but for folds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from torchridge.solvers.least_squares import precision, scoring, spectral, whole_rows
from torchridge.solvers.least_squares.objective import Objective, system
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.least_squares.target_scores import Sums
from torchridge.solvers.least_squares.triangle.factor import Triangle, triangle
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.parts import variance_of
from torchridge.solvers.moments.rows import Rows

# Share of the squares of the targets under which a difference of moments has lost the tenth digit of what is left.
_NEARLY_PERFECT = 1e-4


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

    def correlations(self, alpha: Tensor) -> Tensor:
        """Return Pearson's correlation of held-out predictions and targets, (K, L, t), if r2 can be told."""

    def variances(self) -> Tensor | None:
        """Return the variance of the held-out targets, (K, t), if r2 can be told."""

    @property
    def precision(self) -> Precision:
        """What the last scores came from, and what rounding may have taken of them."""


@dataclass(frozen=True)
class Whole:
    """Criteria that hold out no fold: "gcv", "evidence", and "loo" if the rows are at hand."""

    criterion: str
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
        alpha, fixed = alpha.to(self.like), self.objective.intercept
        tri = self.careful(alpha)
        if self.criterion == "loo":
            return self._left_out(tri, alpha)[None]
        if tri is not None:
            return (whole_rows.gcv if self.criterion == "gcv" else whole_rows.evidence)(tri, alpha, fixed)[None]
        spec, block = self.spectrum, self.block
        squares = scoring.residual_squares(spec, block, self.objective, alpha)
        if self.rows is not None and self._nearly_perfect(squares):
            tri = triangle(self.rows, self.objective)
            self.precision.note(self.precision.lost, "scores from the rows: the fit is nearly perfect")
            return (whole_rows.gcv if self.criterion == "gcv" else whole_rows.evidence)(tri, alpha, fixed)[None]
        if self.criterion == "gcv":
            whole = scoring.explainable(spec, block, self.objective)
            return scoring.gcv(squares, spectral.dof(spec, alpha) + fixed, block.rows, block.weight, whole)[None]
        shrunk = (spectral.filters(spec.eigvals, alpha) ** 2).T @ spec.coef**2
        count = block.rows - fixed - (spec.free.rank if spec.free else 0)
        return scoring.evidence(spec.eigvals, squares + alpha[:, None] * shrunk, alpha, count)[None]

    def _nearly_perfect(self, squares: Tensor) -> bool:
        """Return whether squares of residuals (L, t) are so small beside those of the targets that rows must tell."""
        if self.like.dtype is not torch.float64:
            return False
        whole = torch.where(variance_of(self.block) > 0, system(self.block, self.objective).yy, 0)
        return bool((squares < _NEARLY_PERFECT * whole).any())

    def _left_out(self, tri: Triangle | None, alpha: Tensor) -> Tensor:
        assert self.rows is not None
        rows, objective, lost = self.rows, self.objective, self.precision.lost
        if tri is not None:
            return whole_rows.leave_one_out(tri, rows, rows, objective, alpha, lost)
        parts = (self.spectrum, self.block, objective, rows, alpha)
        total, few = scoring.leave_one_out(*parts, whole_rows.tiny(lost))
        if len(few):
            again = whole_rows.refitted_errors(rows, few, rows, objective, alpha.double()) ** 2
            weight = rows.sample_weight
            again = again if weight is None else again * weight[few].detach().to(again)[:, None, None]
            total = total + again.sum(0)
        return total / self.block.weight

    def correlations(self, alpha: Tensor) -> Tensor:
        """Return correlations of leave-one-out predictions and targets, (1, L, t)."""
        assert self.rows is not None
        alpha = alpha.to(self.like)
        sums = Sums(self.rows.y, self.rows.sample_weight, len(alpha))
        each = scoring.leave_one_out_residuals(self.spectrum, self.block, self.objective, self.rows, alpha)
        everything = slice(0, self.rows.y.shape[1])
        for part, error, _ in each:
            y = self.rows.y[part].detach().to(error)
            sums.add(part, everything, (y[:, None, :] - error).transpose(0, 1))
        return sums.scores("correlation")[None]

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        return variance_of(self.block)[None] if self.criterion == "loo" else None
