"""How a solution predicts: by its weights, by the kernel of few rows, or by products with a sparse X or an operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear import matrices
from torchridge.linear.ridge.solution.dual_solution import DualForm

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution


def predict(solution: RidgeSolution, X: Any, max_bytes: int | None) -> Tensor:
    """Return X Wᵀ + b, (n, t), or (n,) for a vector of targets; a path has a leading dimension of strengths."""
    if max_bytes is not None:
        _check.integer(max_bytes, "max_bytes", minimum=1)
    if matrices.kind_of(X) in ("sparse", "operator"):
        return _by_products(solution, X)
    if not isinstance(X, Tensor):
        raise TypeError(f"`X` should be a torch.Tensor, got {type(X).__name__}. Use `torch.as_tensor(X)`.")
    if X.ndim < 1 or X.shape[-1] != solution.shape[-1]:
        raise ValueError(f"`X` has shape {tuple(X.shape)}, expected (..., {solution.shape[-1]}) as it was fitted on.")
    _check.is_dense_real(X, "X")
    _check.same_device({"X": X, "weight": solution.bias})
    if solution.dual is not None:
        return _by_kernel(solution, X, solution.dual, max_bytes)
    rows = X.to(solution.weight.dtype)
    rows = rows.unsqueeze(0) if X.ndim == 1 else rows
    rows = rows.unsqueeze(-3) if solution.is_path and X.ndim > 2 else rows
    out = rows @ solution.weight.mT + solution.bias.unsqueeze(-2)
    out = out.squeeze(-2) if X.ndim == 1 else out
    return out.squeeze(-1) if solution.vector_target else out


def _by_kernel(solution: RidgeSolution, X: Tensor, dual: DualForm, max_bytes: int | None) -> Tensor:
    flat, (_, L, t) = X.reshape(-1, X.shape[-1]), dual.coef.shape
    out = torch.empty(L, len(flat), t, dtype=dual.dtype, device=X.device)
    for rows, part, predicted in dual.predictions(flat, max_bytes):
        out[:, rows, part] = predicted.to(dual.dtype)
    out = out.reshape(L, *X.shape[:-1], t).movedim(0, -3 if X.ndim > 1 else -2)
    out = out if solution.is_path else out.squeeze(-3 if X.ndim > 1 else -2)
    return out.squeeze(-1) if solution.vector_target else out


def _by_products(solution: RidgeSolution, X: Any) -> Tensor:
    kind = matrices.kind_of(X)
    d = solution.shape[-1]
    if (shape := tuple(X.shape)) != (*shape[:1], d) or solution.weight.ndim != 2 + solution.is_path:
        raise ValueError(f"`X` has shape {shape}, expected (n, {d}), and one problem.")
    operator = matrices.operator_of(X, str(kind))
    _check.same_device({"X": solution.weight.new_empty(0, device=operator.device), "weight": solution.weight})
    flat = solution.weight.reshape(-1, d).double().T
    out = operator.matmul(flat).T.reshape(*solution.weight.shape[:-1], -1).mT + solution.bias.double().unsqueeze(-2)
    out = out.to(solution.weight.dtype)
    return out.squeeze(-1) if solution.vector_target else out


def runs(solution: RidgeSolution, X: Tensor, max_bytes: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield runs of rows of X, runs of targets, and their predictions (L, rows, targets)."""
    if solution.dual is not None:
        yield from solution.dual.predictions(X, max_bytes)
        return
    weight = solution.weight if solution.is_path else solution.weight[None]
    bias = solution.bias if solution.is_path else solution.bias[None]
    most = 2**28 if max_bytes is None else max_bytes
    step = max(1, most // (8 * (weight[..., 0].numel() + X.shape[1])))
    for i in range(0, len(X), step):
        rows = slice(i, min(i + step, len(X)))
        yield rows, slice(0, weight.shape[1]), X[rows].to(weight.dtype) @ weight.mT + bias[:, None, :]
