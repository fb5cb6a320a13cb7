"""How a solution predicts: by its weights, by the kernel of few rows, or by products with a sparse X or an operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchridge import _check
from torchridge.linear import matrices
from torchridge.linear.ridge.solution.dual_solution import DualForm
from torchridge.solvers.iterative.operators import Operator

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution

# Runs of rows, runs of targets, and their predictions (L, rows, targets).
Runs = Iterator[tuple[slice, slice, Tensor]]


def predict(solution: RidgeSolution, X: Any, max_bytes: int | None) -> Tensor:
    """Return X Wᵀ + b, (n, t), or (n,) for a vector of targets; a path has a leading dimension of strengths."""
    if max_bytes is not None:
        _check.integer(max_bytes, "max_bytes", minimum=1)
    if matrices.kind_of(X) in ("sparse", "operator"):
        return _by_products(solution, X, max_bytes)
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
    return _joined(solution, X.shape[:-1], dual.predictions(X.reshape(-1, X.shape[-1]), max_bytes))


def _joined(solution: RidgeSolution, leading: tuple[int, ...], found: Runs) -> Tensor:
    """Return runs of predictions of the dual form, rounded, as rows of the shape that X has."""
    strengths = solution.bias.reshape(-1, solution.bias.shape[-1])
    (L, t), place = strengths.shape, -3 if leading else -2
    out = strengths.new_empty(L, math.prod(leading), t)
    for rows, part, predicted in found:
        out[:, rows, part] = predicted.to(out.dtype)
    out = out.reshape(L, *leading, t).movedim(0, place)
    out = out if solution.is_path else out.squeeze(place)
    return out.squeeze(-1) if solution.vector_target else out


def _operator(solution: RidgeSolution, X: Any) -> Operator:
    d = solution.shape[-1]
    if (shape := tuple(X.shape)) != (*shape[:1], d) or len(solution.shape) != 2 + solution.is_path:
        raise ValueError(f"`X` has shape {shape}, expected (n, {d}), and one problem.")
    operator = matrices.operator_of(X, str(matrices.kind_of(X)))
    _check.same_device({"X": solution.bias.new_empty(0, device=operator.device), "weight": solution.bias})
    return operator


def _by_products(solution: RidgeSolution, X: Any, max_bytes: int | None) -> Tensor:
    operator = _operator(solution, X)
    if solution.dual is not None:
        return _joined(solution, (operator.shape[0],), solution.dual.products(operator, max_bytes))
    d = solution.shape[-1]
    flat = solution.weight.reshape(-1, d).double().T
    out = operator.matmul(flat).T.reshape(*solution.weight.shape[:-1], -1).mT + solution.bias.double().unsqueeze(-2)
    out = out.to(solution.weight.dtype)
    return out.squeeze(-1) if solution.vector_target else out


def runs(solution: RidgeSolution, X: Any, max_bytes: int | None) -> Runs:
    """Yield runs of rows of X, runs of targets, and their predictions (L, rows, targets).

    In the dual form X may be sparse, or an operator.
    """
    if solution.dual is not None:
        sparse = matrices.kind_of(X) != "dense"
        dual = solution.dual
        yield from dual.products(_operator(solution, X), max_bytes) if sparse else dual.predictions(X, max_bytes)
        return
    weight = solution.weight if solution.is_path else solution.weight[None]
    bias = solution.bias if solution.is_path else solution.bias[None]
    most = 2**28 if max_bytes is None else max_bytes
    step = max(1, most // (8 * (weight[..., 0].numel() + X.shape[1])))
    for i in range(0, len(X), step):
        rows = slice(i, min(i + step, len(X)))
        yield rows, slice(0, weight.shape[1]), X[rows].to(weight.dtype) @ weight.mT + bias[:, None, :]
