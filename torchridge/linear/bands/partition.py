"""Partition of explained variance among bands: what each adds to the others, and what it shares with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from torchridge.linear.ridge.solution.dual_solution import DualForm
from torchridge.solvers.kernels import gram_matrix
from torchridge.solvers.least_squares import target_scores
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.rows import Rows

if TYPE_CHECKING:
    from torchridge.linear.bands.banded_solution import BandedSolution

# Logarithms of proportions that agree to this are the same proportions: targets that share them share a factorization.
_SAME = 1e-9


class Partition(NamedTuple):
    """Explained variance by band, in units of R².

    Attributes:
        names: of the B bands.
        parts: (B, t) or (B,) the split of R² by the product measure; sums over bands to R².
        unique: (B, t) or (B,) R² of all bands minus that of a fit without the band.
    """

    names: list[str]
    parts: Tensor
    unique: Tensor

    @property
    def shared(self) -> Tensor:
        """What a band explains together with others, `parts` − `unique`; negative if bands help each other."""
        return self.parts - self.unique


def scores_without(solution: BandedSolution, matrices: list[Tensor], y: Tensor) -> Tensor:
    """Return R² (B, t) of `matrices`, fitted without each band at the strengths of the others.

    Cost: 10 n³ for each band and each set of proportions among the others, and n² t.
    """
    forms = list(solution.forms.values())
    if any(form.rows is None for form in forms):
        raise ValueError(
            "a partition fits without each band, and kernels that were given are not kept. Fit again without each: "
            "banded_ridge_cv(kernels of the others, y, kernel='precomputed')."
        )
    grams, gamma = torch.stack([_gram(solution, name) for name in solution.names]), 1 / solution.alpha.double()
    a = solution.dual_coef.double()
    centred = a + sum(K @ (a * g) for K, g in zip(grams, gamma, strict=True))  # y − ȳ: a solves (I + Σ γ_b K_b) a = it
    scores = []
    for b in range(len(forms)):
        others = [c for c in range(len(forms)) if c != b]
        predicted = solution.target_center.to(y).expand_as(y).clone()
        refitted = _solve(grams[others], gamma[others], centred) if others else a
        for c in others:
            for rows, part, values in _with(forms[c], refitted * gamma[c]).predictions(matrices[c], None):
                predicted[rows, part] += values[0].to(y.dtype)
        scores.append(target_scores.measured("r2", y - predicted, y, None))
    return torch.stack(scores)


def _gram(solution: BandedSolution, name: str) -> Tensor:
    """Return the kernel (n, n) of a band, about its mean."""
    form = solution.forms[name]
    assert form.rows is not None
    rows = Rows(form.rows, solution.dual_coef, None, False)
    share = torch.full((len(form.rows),), 1 / len(form.rows), dtype=torch.float64, device=form.rows.device)
    return gram_matrix.kernel_about(rows, share, Objective(solution.fit_intercept), torch.float64).gram


def _with(form: DualForm, coef: Tensor) -> DualForm:
    return replace(form, coef=coef[:, None, :])


def _solve(grams: Tensor, gamma: Tensor, centred: Tensor) -> Tensor:
    """Return (I + Σ_c γ_c K_c)⁻¹ of the centred targets (n, t), each target at its own γ (C, t)."""
    out = torch.empty_like(centred)
    for targets, share, size in _by_proportions(gamma):
        values, vectors = torch.linalg.eigh(torch.einsum("c,cij->ij", share, grams))
        shrunk = vectors.T @ centred[:, targets] / (1 + values.clamp_min(0)[:, None] * size)
        out[:, targets] = vectors @ shrunk
    return out


def _by_proportions(gamma: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield targets whose γ (C, t) are proportional, their proportions (C,) and sizes."""
    size = gamma.amax(0)
    share = gamma / size
    _, group = torch.unique((share.clamp_min(1e-300).log() / _SAME).round(), dim=1, return_inverse=True)
    for k in range(int(group.max()) + 1):
        targets = (group == k).nonzero()[:, 0]
        yield targets, share[:, targets[0]], size[targets]
