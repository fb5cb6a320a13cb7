"""Scores of a solution on given rows, for each target, in chunks of rows and targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear import matrices
from torchridge.solvers.least_squares import target_scores
from torchridge.solvers.least_squares.target_scores import SCORES

if TYPE_CHECKING:
    from torchridge.linear.ridge.solution.solution import RidgeSolution


def score(solution: RidgeSolution, X: Any, y: Any, scoring: Any, sample_weight: Any, max_bytes: int | None) -> Tensor:
    """Return scores (t,) or (), of a path (L, t) or (L,), with what leading dimensions a batch of problems has."""
    _check.option(scoring, "scoring", SCORES)
    if max_bytes is not None:
        _check.integer(max_bytes, "max_bytes", minimum=1)
    weight = _checked(X, y, sample_weight)
    one_problem = solution.bias.ndim == 1 + solution.is_path
    whole = not one_problem or scoring not in target_scores.from_moments()
    if not isinstance(X, Tensor) or X.layout is not torch.strided or X.ndim != 2 or whole:
        return _whole(solution, solution.predict(X), y, scoring, weight)
    d, t = solution.shape[-1], solution.bias.shape[-1]
    expected = (len(X),) if solution.vector_target else (len(X), t)
    if X.shape[1] != d:
        raise ValueError(f"`X` has shape {tuple(X.shape)}, expected (..., {d}) as it was fitted on.")
    _check.shape(y, [expected], "y")
    _check.is_dense_real(X, "X")
    _check.same_device({"X": X, "y": y, "sample_weight": sample_weight, "weight": solution.bias})
    targets = y[:, None] if solution.vector_target else y
    sums = target_scores.Sums(targets, weight, solution.bias.shape[0] if solution.is_path else 1)
    for rows, part, predicted in solution.predictions(X, max_bytes):
        sums.add(rows, part, predicted)
    found = sums.scores(SCORES[scoring]).to(solution.bias.dtype)
    found = found if solution.is_path else found[0]
    return found[..., 0] if solution.vector_target else found


def _checked(X: Any, y: Any, sample_weight: Any) -> Tensor | None:
    _check.is_tensor(y, "y")
    _check.is_dense_real(y, "y")
    _check.not_empty(y, "y")
    if matrices.kind_of(X) is None:
        _check.is_tensor(X, "X")
    _check.finite(y, "y")
    if isinstance(X, Tensor) and X.layout is torch.strided and not _check.sum_is_finite(X):
        _check.finite(X, "X")
    if sample_weight is None:
        return None
    _check.is_tensor(sample_weight, "sample_weight")
    weight = _check.weight_shape(sample_weight, int(X.shape[-2] if len(X.shape) > 1 else 1))
    _check.least_weight(weight)
    return weight.detach()


def _whole(solution: RidgeSolution, predicted: Tensor, y: Tensor, scoring: str, weight: Tensor | None) -> Tensor:
    """Score predictions that are made at once: of batches of problems, sparse matrices, operators."""
    flat = solution.vector_target
    targets, predicted = (y[..., None], predicted[..., None]) if flat else (y, predicted)
    if solution.is_path:
        targets = targets.unsqueeze(-3)
    whole = (*predicted.shape[:-3], 1, *predicted.shape[-2:]) if solution.is_path else predicted.shape
    if tuple(targets.shape) != tuple(whole):
        raise ValueError(f"`y` has shape {tuple(y.shape)}, expected that of the predictions of `X`.")
    targets, weight = targets.double(), None if weight is None else weight.double()
    found = SCORES[scoring](targets - predicted.double(), targets, weight)
    return (found[..., 0] if flat else found).to(solution.bias.dtype)
