"""Fewer rows than features: everything from the n × n gram matrix of the rows; nothing of size d × d is formed.

With Z the rows, centred, times √s and D⁻¹, and N the columns that are not penalized (√s for an intercept, and the
features of zero penalty), K = Z Zᵀ is taken on the complement of N: with Q an orthonormal basis of it,
Qᵀ K Q = U diag(λ) Uᵀ, and the dual coefficients are

    a(α) = H(α) y,   H(α) = (Q U) diag(1 / (λ + α)) (Q U)ᵀ,   w = D⁻¹ Zᵀ a.

Held-out residuals of a fold F are H_FF⁻¹ a_F: block inversion of the one H serves every fold (the intercept and the
free features are refitted too, as H is a block of the inverse of the bordered system).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.kernels.complement import complement_eigh, unpenalized_basis
from torchridge.solvers.kernels.gram_matrix import Kernel, centered, fitted_by_prior, kernel
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.spectral import filters, tolerance
from torchridge.solvers.least_squares.target_scores import target_batches
from torchridge.solvers.moments.rows import Rows


class Dual(NamedTuple):
    """A problem of n rows of which every strength is solved in O(n t)."""

    eigvals: Tensor  # (m,) λ, ascending, not negative
    basis: Tensor  # (n, m) Q U
    target: Tensor  # (n, t) √s (y − ȳ − priorᵀ x)
    coef: Tensor  # (m, t) basisᵀ target
    unpenalized: Tensor  # (n, q) orthonormal basis of N
    root: Tensor | None  # (n,) √s
    center: Tensor  # (d,) x̄, or zero without intercept
    target_center: Tensor  # (t,)
    scale: Tensor | None  # (d,) 1 / p, zero for a feature that is not penalized
    free: Tensor | None  # (q',) the features that are not penalized
    intercept: bool
    gram: Tensor | None = None  # (n, n) Z Zᵀ
    toward: Tensor | None = None  # (n,) (x_i − x̄)ᵀ D⁻¹ x̄, if it is known already


def of_targets(problem: Dual, rows: Rows, objective: Objective, part: slice) -> Dual:
    """Return the same problem of some targets. Cost n² of them, and n d of them if there is a prior."""
    dtype = problem.basis.dtype
    y, root = rows.y[:, part].detach().to(dtype), problem.root
    share = torch.full_like(y[:, 0], 1 / len(y)) if root is None else root**2 / (root**2).sum()
    target_center, target = centered(y, share, objective.intercept)
    if objective.prior is not None:
        target = target - fitted_by_prior(rows, problem.center, objective.prior[:, part], dtype)
    target = target if root is None else target * root[:, None]
    return problem._replace(target=target, coef=problem.basis.T @ target, target_center=target_center)


def dual(rows: Rows, objective: Objective, dtype: torch.dtype) -> Dual:
    """Diagonalize the problem. Cost n² d / 2 and about 10 n³; memory 4 n² numbers and 80 MiB above the rows."""
    return diagonalized(kernel(rows, objective, dtype), rows)


def diagonalized(problem: Kernel, rows: Rows) -> Dual:
    """Diagonalize a gram matrix of rows. Cost about 10 n³."""
    unpenalized = unpenalized_basis(rows.X.detach(), problem.center, problem.root, problem.free, problem.intercept)
    eigvals, basis = complement_eigh(problem.gram, unpenalized)
    coef = basis.T @ problem.target
    return Dual(eigvals, basis, problem.target, coef, unpenalized, *problem[2:8], problem.gram, problem.toward)


def coefficients(problem: Dual, alpha: Tensor) -> Tensor:
    """Return dual coefficients for each strength and target, (n, L, t), for α of shape (L,)."""
    scaled = filters(problem.eigvals, alpha)[:, :, None] * problem.coef[:, None, :]
    return (problem.basis @ scaled.flatten(1)).reshape(-1, *scaled.shape[1:])


def coefficients_per_target(problem: Dual, alpha: Tensor) -> Tensor:
    """Return dual coefficients for one strength a target, alpha (t,), as (n, 1, t)."""
    return (problem.basis @ (filters(problem.eigvals, alpha) * problem.coef))[:, None, :]


def solved(problem: Dual, rows: Rows, objective: Objective, alpha: Tensor, per_target: bool) -> tuple[Dual, Tensor]:
    """Return dual coefficients (n, L, t) and what they belong to; targets that were left out are taken in batches."""
    pick = coefficients_per_target if per_target else coefficients
    t = rows.y.shape[1]
    if problem.target.shape[1] == t:
        return problem, pick(problem, alpha)
    L = 1 if per_target else len(alpha)
    coef = problem.basis.new_empty(len(problem.basis), L, t)
    centers = problem.basis.new_empty(t)
    for part in target_batches(t, 4 * len(problem.basis) * (1 + L), coef.element_size(), None):
        own = of_targets(problem, rows, objective, part)
        coef[:, :, part] = pick(own, alpha[part] if per_target else alpha)
        centers[part] = own.target_center
    return problem._replace(target_center=centers), coef


def all_squares(problem: Dual, rows: Rows, objective: Objective, alpha: Tensor, per_target: bool) -> Tensor:
    """Return Σ s (y − ŷ)², (L, t), of all targets, in batches if they were left out."""
    measure, t = residual_squares_per_target if per_target else residual_squares, rows.y.shape[1]
    if problem.target.shape[1] == t:
        return measure(problem, alpha)
    parts = target_batches(t, 8 * len(problem.basis), problem.basis.element_size(), None)
    return torch.cat(
        [measure(of_targets(problem, rows, objective, p), alpha[p] if per_target else alpha) for p in parts], 1
    )


def residual_squares(problem: Dual, alpha: Tensor) -> Tensor:
    """Return Σ s (y − ŷ)², (L, t), for α of shape (L,)."""
    return _left(problem, alpha).T ** 2 @ problem.coef**2


def residual_squares_per_target(problem: Dual, alpha: Tensor) -> Tensor:
    """Return the same for one strength a target, alpha (t,), as (1, t)."""
    return ((_left(problem, alpha) * problem.coef) ** 2).sum(0, keepdim=True)


def _left(problem: Dual, alpha: Tensor) -> Tensor:
    """Return α / (λ + α), what a fit leaves along each direction, (m, L): one minus the rest would lose small ones."""
    kept = filters(problem.eigvals, alpha)
    return torch.where(kept > 0, alpha * kept, 1)


def dof(problem: Dual, alpha: Tensor) -> Tensor:
    """Return the effective degrees of freedom, the intercept left out; (L,)."""
    inner = (problem.eigvals[:, None] * filters(problem.eigvals, alpha)).sum(0)
    return inner + (problem.unpenalized.shape[1] - int(problem.intercept))


def rank(problem: Dual) -> int:
    """Return the numerical rank of the (centred) rows."""
    return int((problem.eigvals > tolerance(problem.eigvals)).sum()) + problem.unpenalized.shape[1] - problem.intercept


def leave_one_out(problem: Dual, alpha: Tensor) -> Tensor:
    """Return √s times the leave-one-out residuals, (n, L, t): a_i / H_ii."""
    diagonal = (problem.basis**2) @ filters(problem.eigvals, alpha)  # (n, L)
    return coefficients(problem, alpha) / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)[:, :, None]
