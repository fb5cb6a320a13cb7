"""Criteria of all rows, which choose a strength without folds: a new one is a class, and a line of `CRITERIA`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Shares of the rows' degrees of freedom: below the first, 1 − tr H / n is rounding; below the second the residuals may
# be so small that a difference of moments does not hold them.
_LEAST_LEFT, _FEW_LEFT = 1e-12, 1e-2


def _unknown() -> Any:
    raise AssertionError("products do not know this: give the criterion a `lacks`")


@dataclass(frozen=True)
class Fit:
    """What all rows say of the fits at strengths (L,): moments, a Gram matrix, an orthogonal factor, or products.

    Everything but `rows` and `weight` is computed when it is called. Products know nothing below `dof`.

    Attributes:
        rows: how many rows count.
        weight: Σ s.
        squares: (L, t) Σ s (y − ŷ)² over all rows.
        explainable: (t,) what the squares were subtracted from, whose rounding they carry; None if they were summed.
        dof: (L,) the trace of the hat matrix, the intercept counted.
        energy: (L, t) Σ s (y − ŷ)² + α ‖w‖².
        volume: (L,) the logarithm of det(I + X Xᵀ / α).
        count: rows less what is not penalized.
        left_out: (L, t) Σ s e² / Σ s over exact leave-one-out residuals.
    """

    rows: int
    weight: Tensor
    squares: Callable[[], Tensor]
    explainable: Callable[[], Tensor | None]
    dof: Callable[[], Tensor]
    energy: Callable[[], Tensor] = _unknown
    volume: Callable[[], Tensor] = _unknown
    count: Callable[[], int] = _unknown
    left_out: Callable[[], Tensor] = _unknown


class Criterion:
    """How good each strength is, told from fits to all rows.

    Attributes:
        sign: −1 if smaller is better, 1 if larger is.
        holds_out: whether every row is left out: moments alone do not tell it, and targets are held out to be scored.
        lacks: what it needs that products with X do not know, for the error of solver='cg'; empty if nothing.
    """

    sign: int = -1
    holds_out: bool = False
    lacks: str = ""

    def of(self, fit: Fit) -> Tensor:
        """Return the criterion, (L, t)."""
        raise NotImplementedError


class GCV(Criterion):
    """Generalized cross-validation, (Σ s e² / Σ s) / (1 − tr H / n)².

    Infinite where rounding alone is left above or below the line: a fit that spends every row.
    Source: Golub, Heath & Wahba 1979, doi:10.1080/00401706.1979.10489751.
    """

    def of(self, fit: Fit) -> Tensor:
        """Return the criterion, (L, t)."""
        dof, squares, whole = fit.dof(), fit.squares(), fit.explainable()
        eps, left = torch.finfo(dof.dtype).eps, (1 - dof / fit.rows)[:, None]
        lost = (left < _LEAST_LEFT).expand_as(squares)
        if whole is not None:
            lost = lost | ((left < _FEW_LEFT) & (squares < 1e4 * eps * whole))
        return torch.where(lost, torch.inf, squares / fit.weight / left.clamp_min(eps) ** 2)


class Evidence(Criterion):
    """−2/n · log marginal likelihood of y, up to a constant, noise variance at its optimum.

    For y ~ N(b, σ² (I + X Xᵀ / α)) with a flat prior on b and on the free features. Infinite where there are no more
    rows than what is free. Source: MacKay 1992, doi:10.1162/neco.1992.4.3.415.
    """

    lacks = "all eigenvalues"

    def of(self, fit: Fit) -> Tensor:
        """Return the criterion, (L, t)."""
        energy, count = fit.energy(), fit.count()
        if count <= 0:
            return torch.full_like(energy, torch.inf)
        noise = (energy / count).clamp_min(torch.finfo(energy.dtype).tiny)
        return torch.log(noise) + fit.volume()[:, None] / count


class LeaveOneOut(Criterion):
    """The mean squared leave-one-out residual, exact."""

    holds_out = True
    lacks = "leverages"

    def of(self, fit: Fit) -> Tensor:
        """Return the criterion, (L, t)."""
        return fit.left_out()


CRITERIA: dict[str, Criterion] = {"gcv": GCV(), "loo": LeaveOneOut(), "evidence": Evidence()}


def criterion_of(cv: object) -> Criterion | None:
    """Return the criterion of all rows that `cv` names, None if it makes folds."""
    return CRITERIA.get(cv) if isinstance(cv, str) else None


def from_moments() -> list[str]:
    """Return the names of the criteria that need no rows."""
    return [name for name, criterion in CRITERIA.items() if not criterion.holds_out]
