"""Leave-one-out residuals of every row, whichever way its criterion was prepared."""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.kernels import dual, dual_weights
from torchridge.solvers.kernels.few_rows import WholeDual
from torchridge.solvers.kernels.gram_matrix import column_chunks
from torchridge.solvers.least_squares import scoring, whole_rows
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.scorers import Whole
from torchridge.solvers.moments.rows import Rows


def leave_one_out_errors(scorer: Whole | WholeDual, rows: Rows, alpha: Tensor) -> Tensor:
    """Return the leave-one-out residuals of all rows, (n, L, t); of a row of zero weight, those of the whole fit."""
    alpha = alpha.to(scorer.like)
    tri, lost = scorer.careful(alpha), scorer.precision.lost
    if tri is not None:
        return whole_rows.leave_one_out_errors(tri, rows, scorer.rows, scorer.objective, alpha, lost)
    if isinstance(scorer, Whole):
        runs = [*scoring.leave_one_out_residuals(scorer.spectrum, scorer.block, scorer.objective, rows, alpha)]
        errors = torch.cat([error for _, error, _ in runs])
        few = (torch.cat([left.amin(1) for _, _, left in runs]) < whole_rows.tiny(lost)).nonzero()[:, 0]
        if len(few):
            assert scorer.rows is not None
            errors[few] = whole_rows.refitted_errors(rows, few, scorer.rows, scorer.objective, alpha)
        return errors
    errors = scorer.left_out(alpha)
    if scorer.problem.root is not None:
        errors = errors / scorer.problem.root[:, None, None]
    if len(errors) == rows.X.shape[0] or rows.sample_weight is None:
        return errors
    counted = rows.sample_weight > 0
    everything = errors.new_empty(len(counted), *errors.shape[1:])
    everything[counted] = errors
    everything[~counted] = _errors_of_fit(scorer, rows.X[~counted], rows.y[~counted], alpha)
    return everything


def _errors_of_fit(scorer: WholeDual, X: Tensor, y: Tensor, alpha: Tensor) -> Tensor:
    """Return the residuals of other rows, (m, L, t), from their kernel with the rows that were fitted."""
    problem, coef = scorer.problem, dual.coefficients(scorer.problem, alpha)  # (n, L, t)
    left, prior = y.to(coef.dtype) - problem.target_center, scorer.objective.prior
    left = left if prior is None else left - (X.to(coef.dtype) - problem.center) @ prior.to(coef.dtype)
    left = left[:, None, :].expand(-1, *coef.shape[1:])
    if problem.free is not None:
        weight = dual_weights.weights(problem, scorer.rows, Objective(), coef)
        return left - torch.einsum("nd,dlt->nlt", X.to(coef.dtype) - problem.center, weight)
    kernel = coef.new_zeros(len(X), len(coef))
    for part in column_chunks(scorer.rows.X, coef.dtype):
        x = X[:, part].to(coef.dtype) - problem.center[part]
        x = x if problem.scale is None else x * problem.scale[part]
        kernel += x @ dual_weights.columns_of(scorer.rows.X.detach(), part, problem, coef.dtype).T
    return left - (kernel @ coef.flatten(1)).reshape(-1, *coef.shape[1:])
