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

from torchridge.solvers import algebra
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.spectral import filters, scale_of, tolerance
from torchridge.solvers.least_squares.target_scores import target_batches
from torchridge.solvers.moments.blocks import CHUNK_BYTES, constant_noise
from torchridge.solvers.moments.rows import Rows

# Columns of few rows that are summed at once: what stays near the processor while it is centred, scaled and multiplied.
_FEW_BYTES = 4 * 2**20

# Rows of a fold from which a product for each strength in one triangle takes less time than a batch of whole ones.
_BATCHED = 32


class Kernel(NamedTuple):
    """The gram matrix of the rows, and what was taken off them."""

    gram: Tensor  # (n, n) Z Zᵀ
    target: Tensor  # (n, t) √s (y − ȳ − priorᵀ x)
    root: Tensor | None  # (n,) √s
    center: Tensor  # (d,) x̄, or zero without intercept
    target_center: Tensor  # (t,)
    scale: Tensor | None  # (d,) 1 / p, zero for a feature that is not penalized
    free: Tensor | None  # (q',) the features that are not penalized
    intercept: bool
    toward: Tensor | None = None  # (n,) (x_i − x̄)ᵀ D⁻¹ x̄, if it is known already


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


def kernel(rows: Rows, objective: Objective, dtype: torch.dtype) -> Kernel:
    """Return the gram matrix of the rows. Cost n² d / 2; memory n² numbers and 80 MiB above the rows."""
    X, y = rows.X.detach(), rows.y.detach().to(dtype)
    n = X.shape[0]
    weight = None if rows.sample_weight is None else rows.sample_weight.detach().to(dtype)
    root = None if weight is None else weight.sqrt()
    share = torch.full((n,), 1 / n, dtype=dtype, device=X.device) if weight is None else weight / weight.sum()
    if objective.precomputed:
        return _given(X.to(dtype), y, root, share, objective)
    gram, fitted = y.new_zeros(n, n), torch.zeros_like(y)
    centers, scales = [], []
    for part in column_chunks(X, dtype):
        center, x = _centered(X[:, part].to(dtype), share, objective.intercept)
        scale = _scale(objective, part, x, center, share)
        x = x if root is None else x * root[:, None]
        if objective.prior is not None:
            fitted += x @ objective.prior[part]
        algebra.add_gram(gram, (x if scale is None else x * scale.sqrt()).T)
        centers.append(center)
        scales.append(scale)
    target_center, target = _centered(y, share, objective.intercept)
    target = target if root is None else target * root[:, None]
    target = target if objective.prior is None else target - fitted
    scale = None if scales[0] is None else torch.cat([s for s in scales if s is not None])
    center = centers[0] if len(centers) == 1 else torch.cat(centers)
    return Kernel(algebra.mirror(gram), target, root, center, target_center, scale, objective.free, objective.intercept)


def _given(gram: Tensor, y: Tensor, root: Tensor | None, share: Tensor, objective: Objective) -> Kernel:
    """Return a kernel that was given, (n, n), about the mean of its features, whose coordinates are its columns."""
    gram = (gram + gram.T) / 2
    center = share @ gram if objective.intercept else torch.zeros_like(gram[0])
    target_center, target = _centered(y, share, objective.intercept)
    if objective.intercept:
        gram = gram - center - center[:, None] + center @ share
    if root is not None:
        gram, target = gram * root * root[:, None], target * root[:, None]
    return Kernel(gram, target, root, center, target_center, None, None, objective.intercept)


def kernel_about(rows: Rows, share: Tensor, objective: Objective, dtype: torch.dtype) -> Kernel:
    """Return the gram matrix of all rows about the mean and in the scale that the shares (n,) of rows give.

    Without targets, and without the weights of the rows. Cost n² d / 2; memory n² numbers and 80 MiB above the rows.
    """
    X = rows.X.detach()
    nothing = X.new_empty(X.shape[0], 0, dtype=dtype)
    if objective.precomputed:
        return _given(X.to(dtype), nothing, None, share, objective)
    gram, centers, scales = X.new_zeros(X.shape[0], X.shape[0], dtype=dtype), [], []
    toward = gram.new_zeros(len(gram))
    for part in column_chunks(X, dtype, _FEW_BYTES):
        center, x = _centered(X[:, part].to(dtype), share, objective.intercept)
        scale = _scale(objective, part, x, center, share)
        toward += x @ (center if scale is None else center * scale)
        algebra.add_gram(gram, (x if scale is None else x * scale.sqrt()).T)
        centers.append(center)
        scales.append(scale)
    scale = None if scales[0] is None else torch.cat([s for s in scales if s is not None])
    place = (None, torch.cat(centers), nothing[0], scale, objective.free, objective.intercept, toward)
    return Kernel(algebra.mirror(gram), nothing, *place)


def weighted(problem: Kernel, root: Tensor | None) -> Kernel:
    """Return a gram matrix of rows with their √s."""
    return problem if root is None else problem._replace(gram=problem.gram * root * root[:, None], root=root)


def of_targets(problem: Dual, rows: Rows, objective: Objective, part: slice) -> Dual:
    """Return the same problem of some targets. Cost n² of them, and n d of them if there is a prior."""
    dtype = problem.basis.dtype
    y, root = rows.y[:, part].detach().to(dtype), problem.root
    share = torch.full_like(y[:, 0], 1 / len(y)) if root is None else root**2 / (root**2).sum()
    target_center, target = _centered(y, share, objective.intercept)
    if objective.prior is not None:
        target = target - fitted_by_prior(rows, problem.center, objective.prior[:, part], dtype)
    target = target if root is None else target * root[:, None]
    return problem._replace(target=target, coef=problem.basis.T @ target, target_center=target_center)


def fitted_by_prior(rows: Rows, center: Tensor, prior: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (X − center) prior, (n, t), for a prior (d, t)."""
    X, fitted = rows.X.detach(), rows.y.new_zeros(len(rows.X), prior.shape[1], dtype=dtype)
    for part in column_chunks(X, dtype):
        fitted += (X[:, part].to(dtype) - center[part]) @ prior[part]
    return fitted


def _centered(x: Tensor, share: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of the columns and what it leaves of them; zero and the columns without intercept."""
    if not intercept:
        return torch.zeros_like(x[0]), x
    center = share @ x
    x = x - center
    rest = share @ x  # what rounding left of a large mean
    return center + rest, x.sub_(rest)


def _scale(objective: Objective, part: slice, x: Tensor, center: Tensor, share: Tensor) -> Tensor | None:
    """Return 1 / p of some features, zero for those that are not penalized; None if all are one."""
    penalty = None if objective.penalty is None else objective.penalty[part]
    if objective.standardize:
        x = x if objective.intercept else x - share @ x
        spread = share @ (x * x)
        spread = torch.where(spread > constant_noise(center), spread, 1)
        penalty = spread if penalty is None else penalty * spread
    return None if penalty is None else torch.where(penalty > 0, 1 / penalty, 0)


def dual(rows: Rows, objective: Objective, dtype: torch.dtype) -> Dual:
    """Diagonalize the problem. Cost n² d / 2 and about 10 n³; memory 4 n² numbers and 80 MiB above the rows."""
    return diagonalized(kernel(rows, objective, dtype), rows)


def diagonalized(problem: Kernel, rows: Rows) -> Dual:
    """Diagonalize a gram matrix of rows. Cost about 10 n³."""
    unpenalized = _unpenalized(rows.X.detach(), problem.center, problem.root, problem.free, problem.intercept)
    eigvals, basis = complement_eigh(problem.gram, unpenalized)
    coef = basis.T @ problem.target
    return Dual(eigvals, basis, problem.target, coef, unpenalized, *problem[2:8], problem.gram, problem.toward)


def column_chunks(X: Tensor, dtype: torch.dtype, most: int = CHUNK_BYTES) -> list[slice]:
    """Return slices of columns of X that fit the working memory."""
    n, d = X.shape
    size = max(64, most // (dtype.itemsize * n))
    return [slice(i, min(i + size, d)) for i in range(0, d, size)]


def columns_of(X: Tensor, part: slice, problem: Dual | Kernel, dtype: torch.dtype) -> Tensor:
    """Return some columns of X, centred, times √s; (n, columns)."""
    x = X[:, part].to(dtype)
    x = x - problem.center[part] if problem.intercept else x
    return x if problem.root is None else x * problem.root[:, None]


def _unpenalized(X: Tensor, center: Tensor, root: Tensor | None, free: Tensor | None, intercept: bool) -> Tensor:
    n = X.shape[0]
    if free is None and intercept:
        return torch.full_like(X[:, :1], n**-0.5, dtype=center.dtype) if root is None else root[:, None] / root.norm()
    columns = free_columns(X, center, free, intercept)
    return orthonormal(columns if root is None else columns * root[:, None])


def free_columns(X: Tensor, center: Tensor, free: Tensor | None, intercept: bool) -> Tensor:
    """Return what is fitted without a penalty, (n, q): a column of ones for an intercept, and the free features."""
    columns = [torch.ones(X.shape[0], int(intercept), dtype=center.dtype, device=X.device)]
    if free is not None:
        columns.append(X[:, free].to(center.dtype) - center[free])
    return torch.cat(columns, 1)


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of what the columns (n, q) span: nothing if they are zero."""
    if columns.shape[1] == 0:
        return columns
    size = torch.linalg.vector_norm(columns, dim=0)
    if columns.shape[1] == 1:
        return columns / size if bool(size > 0) else columns[:, :0]
    left, sigma, _ = torch.linalg.svd(columns / torch.where(size > 0, size, 1), full_matrices=False)
    keep = sigma > len(columns) * torch.finfo(sigma.dtype).eps * sigma[0]
    independent: Tensor = left[:, keep]
    return independent


def complement_eigh(gram: Tensor, unpenalized: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of gram on the complement of the orthonormal columns `unpenalized`."""
    n, q = unpenalized.shape
    if q == n:  # nothing is left to be shrunk, as for a single row and an intercept
        return torch.zeros_like(gram[:1, 0]), torch.zeros_like(gram[:, :1])
    if q == 0:
        eigvals, basis = torch.linalg.eigh(gram)
        return eigvals.clamp_min(0), basis
    # Householder vectors of the unpenalized columns span the complement without an n × n factor of their own.
    reflected = gram
    vectors = _reflectors(unpenalized)
    for v in vectors:
        reflected = reflected - 2 * torch.outer(v, v @ reflected)
        reflected = reflected - 2 * torch.outer(reflected @ v, v)
    eigvals, inner = torch.linalg.eigh(reflected[q:, q:].contiguous())
    basis = torch.cat([torch.zeros(q, inner.shape[1], dtype=gram.dtype, device=gram.device), inner])
    for v in reversed(vectors):
        basis -= 2 * torch.outer(v, v @ basis)
    return eigvals.clamp_min(0), basis


def _reflectors(columns: Tensor) -> list[Tensor]:
    """Return unit vectors whose reflections, in order, take orthonormal columns to the first coordinates."""
    columns, vectors = columns.clone(), []
    for j in range(columns.shape[1]):
        v = columns[:, j].clone()
        v[:j] = 0
        v[j] += torch.where(v[j] < 0, -1.0, 1.0) * torch.linalg.vector_norm(v)
        v /= torch.linalg.vector_norm(v)
        columns -= 2 * torch.outer(v, v @ columns)
        vectors.append(v)
    return vectors


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


def seen_from(X: Tensor, center: Tensor, scale: Tensor | None) -> Tensor:
    """Return (x_i − center)ᵀ D⁻¹ center for every row, (n,)."""
    found = center.new_zeros(len(X))
    for part in column_chunks(X, center.dtype):
        point = center[part] if scale is None else center[part] * scale[part]
        found += (X[:, part].to(center.dtype) - center[part]) @ point
    return found


def free_weights(problem: Dual | Kernel, X: Tensor, coef: Tensor) -> Tensor:
    """Return the weights (q, L, t) of the features that are not penalized, for dual coefficients (n, L, t)."""
    assert problem.gram is not None
    left = problem.target[:, None, :] - (problem.gram @ coef.flatten(1)).reshape(coef.shape)
    columns = free_columns(X, problem.center, problem.free, problem.intercept)
    columns = columns if problem.root is None else columns * problem.root[:, None]
    fitted = _least_squares(columns, left.flatten(1))
    return fitted[int(problem.intercept) :].reshape(-1, *coef.shape[1:])


def weights(problem: Dual | Kernel, rows: Rows, objective: Objective, coef: Tensor) -> Tensor:
    """Return weights (d, L, t) of dual coefficients (n, L, t). Cost n d L t."""
    X, flat = rows.X.detach(), coef.flatten(1)
    parts = []
    for part in column_chunks(X, flat.dtype):
        x = columns_of(X, part, problem, flat.dtype)
        w = x.T @ flat
        parts.append(w if problem.scale is None else w * problem.scale[part, None])
    weight = torch.cat(parts)
    repeated = None if objective.prior is None else objective.prior[:, None, :].expand(-1, coef.shape[1], -1).flatten(1)
    if problem.free is not None:
        _fit_free(weight, problem, X, flat.shape[1] // problem.target.shape[1])
    weight = weight if repeated is None else weight + repeated
    return weight.reshape(-1, *coef.shape[1:])


def _fit_free(weight: Tensor, problem: Dual | Kernel, X: Tensor, L: int) -> None:
    """Set the weights of the features that are not penalized to the least-squares fit of what the others leave."""
    assert problem.free is not None
    left = problem.target.repeat(1, L)
    for part in column_chunks(X, weight.dtype):
        left = left - (columns_of(X, part, problem, weight.dtype) @ weight[part])
    x = X[:, problem.free].to(weight.dtype) - problem.center[problem.free]
    x = x if problem.root is None else x * problem.root[:, None]
    if problem.intercept:
        ones = torch.ones_like(x[:, :1]) if problem.root is None else problem.root[:, None]
        weight[problem.free] = _least_squares(torch.cat([x, ones], 1), left)[:-1]
    else:
        weight[problem.free] = _least_squares(x, left)


def _least_squares(columns: Tensor, left: Tensor) -> Tensor:
    """Return the least-squares coefficients (q, c) of targets (n, c), columns (n, q) brought to one size."""
    size = sizes(columns)
    solved: Tensor = (torch.linalg.pinv(columns / size) @ left) / size[:, None]
    return solved


def sizes(columns: Tensor) -> Tensor:
    """Return the norm of every column, one for a column of zeros."""
    size = torch.linalg.vector_norm(columns, dim=0)
    return torch.where(size > 0, size, 1)


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


def unit_variance(problem: Dual, rows: Rows, alpha: Tensor) -> Tensor:
    """Return the sampling variance of each penalized weight for unit noise, (d, L); NaN for one not penalized.

    Cost n² d, as much as the gram matrix.
    """
    X, parts = rows.X.detach(), []
    size = scale_of(problem.eigvals).sqrt()
    inner = (size * filters(problem.eigvals, alpha)) ** 2  # (m, L)
    for part in column_chunks(X, inner.dtype):
        projected = problem.basis.T @ columns_of(X, part, problem, inner.dtype)
        variance = ((projected / size) ** 2).T @ inner
        parts.append(variance if problem.scale is None else variance * problem.scale[part, None] ** 2)
    variance = torch.cat(parts)
    if problem.free is not None:
        variance[problem.free] = torch.nan
    return variance


def heldout_residuals(problem: Dual, alpha: Tensor, index: Tensor) -> Tensor:
    """Return √s times the residuals of rows `index` under fits without them, (rows, L, t). Cost m |index|² L."""
    basis = problem.basis[index]  # (f, m)
    filtered = filters(problem.eigvals, alpha).T.contiguous()  # (L, m)
    coef = torch.einsum("fm,lmt->lft", basis, filtered[:, :, None] * problem.coef)
    return algebra.cholesky(_held_blocks(basis, filtered)).solve(coef).transpose(0, 1)  # H_FF⁻¹ a_F


def _held_blocks(basis: Tensor, filtered: Tensor) -> Tensor:
    """Return basis diag(filtered_l) basisᵀ, (L, f, f): large products in one triangle each, small ones in one batch."""
    root = filtered.sqrt()
    if len(basis) < _BATCHED:
        scaled = basis * root[:, None]
        return scaled @ scaled.mT
    return torch.stack([algebra.gram((basis * r).T) for r in root])


def leave_one_out(problem: Dual, alpha: Tensor) -> Tensor:
    """Return √s times the leave-one-out residuals, (n, L, t): a_i / H_ii."""
    diagonal = (problem.basis**2) @ filters(problem.eigvals, alpha)  # (n, L)
    return coefficients(problem, alpha) / diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny)[:, :, None]
