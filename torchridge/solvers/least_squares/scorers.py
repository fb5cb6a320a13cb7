"""Scorers: a prepared problem that gives the errors of any strengths, (K, L, t), K = 1 but for folds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from torchridge.solvers.device import sent
from torchridge.solvers.least_squares import precision, scoring, spectral, whole_rows
from torchridge.solvers.least_squares.criteria import Criterion, Fit
from torchridge.solvers.least_squares.objective import Objective, system
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.least_squares.target_scores import Score, of_left_out
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

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of held-out predictions that squares do not tell, (K, L, t), if there are variances."""

    def variances(self) -> Tensor | None:
        """Return the variance of the held-out targets, (K, t); None if none are held out."""

    @property
    def precision(self) -> Precision:
        """What the last scores came from, and what rounding may have taken of them."""


class AllRows(ABC):
    """Criteria that hold out no fold, from a fit to all rows."""

    criterion: Criterion

    @property
    @abstractmethod
    def eigvals(self) -> Tensor:
        """Those of all rows."""

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.eigvals

    @abstractmethod
    def fit(self, alpha: Tensor) -> Fit:
        """Return what is known of fits at strengths (L,), by whatever holds their digits."""

    def squares(self, alpha: Tensor) -> Tensor:
        """Return the criterion, (1, L, t)."""
        return self.criterion.of(self.fit(sent(alpha, self.like)))[None]


@dataclass(frozen=True)
class Whole(AllRows):
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

    def careful(self, alpha: Tensor) -> Triangle | None:
        """Return the factor that holds the digits of these strengths, None if the eigenvalues do."""
        weakest = float(alpha.min())
        worst = precision.condition(self.eigvals.cpu(), weakest)
        if worst <= precision.GRAM:
            worst = max(worst, precision.free_condition(system(self.block, self.objective), weakest))
        equations = system(self.block, self.objective)
        held = precision.holds(worst, self.like.dtype, lambda: precision.scaled_condition(equations, weakest))
        if held and not precision.outweighed([self.block], self.rows, self.objective):
            self.precision.note(torch.finfo(self.like.dtype).eps * worst, "")
            return None
        return precision.careful(self.block, self.objective, weakest, self.rows, None, self.precision)

    def fit(self, alpha: Tensor) -> Fit:
        """Return what is known of fits at strengths (L,)."""
        tri = self.careful(alpha)
        rows = None if self.criterion.holds_out else self.rows  # what tells the residuals of a nearly perfect fit
        if tri is not None and not tri.exact and rows is not None and self._nearly_perfect(tri.rest):
            tri = triangle(rows, self.objective)
        if tri is not None:
            return whole_rows.fit_of(tri, alpha, self.rows, self.objective, self.precision.lost)
        spec, block, objective = self.spectrum, self.block, self.objective
        squares = cache(lambda: scoring.residual_squares(spec, block, objective, alpha))
        if rows is not None and self._nearly_perfect(squares()):
            self.precision.note(self.precision.lost, "scores from the rows: the fit is nearly perfect")
            tri = triangle(rows, objective)
            return whole_rows.fit_of(tri, alpha, rows, objective, self.precision.lost)

        def energy() -> Tensor:
            shrunk = (spectral.filters(spec.eigvals, alpha) ** 2).T @ spec.coef**2
            return squares() + alpha[:, None] * shrunk

        return Fit(
            block.rows,
            block.weight,
            squares,
            explainable=lambda: scoring.explainable(spec, block, objective),
            dof=lambda: spectral.dof(spec, alpha) + objective.intercept,
            energy=energy,
            volume=lambda: scoring.volume(spec.eigvals, alpha),
            count=lambda: block.rows - objective.intercept - (spec.free.rank if spec.free else 0),
            left_out=lambda: self._left_out(alpha),
        )

    def _nearly_perfect(self, squares: Tensor) -> bool:
        """Return whether squares of residuals (..., t) are so small beside those of the targets that rows must tell."""
        if self.like.dtype is not torch.float64:
            return False
        whole = torch.where(variance_of(self.block) > 0, system(self.block, self.objective).yy, 0)
        return bool((squares < _NEARLY_PERFECT * whole).any())

    def _left_out(self, alpha: Tensor) -> Tensor:
        assert self.rows is not None
        rows, objective = self.rows, self.objective
        parts = (self.spectrum, self.block, objective, rows, alpha)
        total, few = scoring.leave_one_out(*parts, whole_rows.tiny(self.precision.lost))
        if len(few):
            again = whole_rows.refitted_errors(rows, few, rows, objective, alpha.double()) ** 2
            weight = rows.sample_weight
            again = again if weight is None else again * weight[few].detach().to(again)[:, None, None]
            total = total + again.sum(0)
        return total / self.block.weight

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of leave-one-out predictions, (1, L, t)."""
        assert self.rows is not None
        alpha, every = alpha.to(self.like), slice(0, self.rows.y.shape[1])
        each = scoring.leave_one_out_residuals(self.spectrum, self.block, self.objective, self.rows, alpha)
        runs = ((part, every, error) for part, error, _ in each)
        return of_left_out(score, self.rows.y, self.rows.sample_weight, len(alpha), runs)

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        return variance_of(self.block)[None] if self.criterion.holds_out else None
