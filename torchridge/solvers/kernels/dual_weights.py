"""Weights (d, …) of dual coefficients, in chunks of columns: those of free features too, and their variance."""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.kernels.complement import free_columns, sizes
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.kernels.gram_matrix import Kernel, column_chunks
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.spectral import filters, scale_of
from torchridge.solvers.moments.rows import Rows


def columns_of(X: Tensor, part: slice, problem: Dual | Kernel, dtype: torch.dtype) -> Tensor:
    """Return some columns of X, centred, times √s; (n, columns)."""
    x = X[:, part].to(dtype)
    x = x - problem.center[part] if problem.intercept else x
    return x if problem.root is None else x * problem.root[:, None]


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


def unit_variance(problem: Dual, rows: Rows, alpha: Tensor) -> Tensor:
    """Return the sampling variance of each penalized weight for unit noise, (d, L); NaN for one not penalized.

    Cost n² d, as much as the gram matrix.
    """
    return spread(rows.X.detach(), problem.center, problem.scale, problem.free, *spectrum(problem), alpha)


def spectrum(problem: Dual) -> tuple[Tensor, Tensor]:
    """Return √s times the basis (n, m), and its eigenvalues (m,): all that `spread` needs besides rows and places."""
    basis = problem.basis if problem.root is None else problem.basis * problem.root[:, None]
    return basis, problem.eigvals


def spread(
    X: Tensor, center: Tensor, scale: Tensor | None, free: Tensor | None, basis: Tensor, eigvals: Tensor, alpha: Tensor
) -> Tensor:
    """Return what `unit_variance` does, (d, L), from its parts."""
    size, parts = scale_of(eigvals).sqrt(), []
    inner = (size * filters(eigvals, alpha.to(eigvals.dtype))) ** 2  # (m, L)
    for part in column_chunks(X, inner.dtype):
        projected = basis.T @ (X[:, part].to(inner.dtype) - center[part])
        variance = ((projected / size) ** 2).T @ inner
        parts.append(variance if scale is None else variance * scale[part, None] ** 2)
    variance = torch.cat(parts)
    if free is not None:
        variance[free] = torch.nan
    return variance
