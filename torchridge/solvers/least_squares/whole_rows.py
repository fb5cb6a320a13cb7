"""The criteria of all rows at once, from an orthogonal factor of them: GCV, the evidence, leave-one-out.

A leverage h near one leaves no digits of e / (1 − h): such rows are left out in earnest, and the others refitted.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from torchridge.solvers.least_squares.criteria import Fit
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.target_scores import Score
from torchridge.solvers.least_squares.triangle import estimates, factor, roots
from torchridge.solvers.least_squares.triangle.factor import Triangle
from torchridge.solvers.moments.parts import take
from torchridge.solvers.moments.rows import Rows

# Leave-one-out residuals held at once.
_ERRORS = 2**22

# Digits of 1 − h that are asked for, and the least 1 − h that is refitted whatever its digits.
_RELATIVE, _TINY = 1e-12, 1e-3


def tiny(lost: float) -> float:
    """Return under which 1 − h is too small to divide by, if rounding took `lost` of h."""
    return min(_TINY, max(lost, torch.finfo(torch.float64).eps) / _RELATIVE)


def fit_of(tri: Triangle, alpha: Tensor, rows: Rows | None, objective: Objective, lost: float) -> Fit:
    """Return what the factor of all rows says of fits at strengths (L,)."""
    found = cache(lambda: _at_strengths(tri, alpha))
    penalized = bool((tri.penalty > 0).any())

    def left_out() -> Tensor:
        assert rows is not None
        return leave_one_out(tri, rows, rows, objective, alpha, lost)

    return Fit(
        tri.rows,
        tri.weight,
        squares=lambda: found()[0],
        explainable=lambda: None if tri.exact else (tri.target**2).sum(0) + tri.rest,
        dof=lambda: found()[1] + objective.intercept,
        energy=lambda: found()[2],
        volume=lambda: torch.where(alpha > 0, found()[3], torch.inf) if penalized else found()[3],
        count=lambda: tri.rows - objective.intercept - factor.rank_of_free(tri),
        left_out=left_out,
    )


def _at_strengths(tri: Triangle, alpha: Tensor) -> tuple[Tensor, ...]:
    """Return Σ s e², (L, t), the degrees of freedom less the intercept, (L,), Σ s e² + α ‖w‖² and the volume."""
    parts = []
    for some in roots.at_once(tri, alpha):
        found = roots.roots(tri, some)
        v = estimates.scaled_weights(tri, found, some)
        squares = estimates.residual_squares(tri, v)
        shrunk = ((factor.shrinkage(tri, some)[:, :, None] * v) ** 2).sum(1)
        parts.append((squares, estimates.dof(tri, found), squares + shrunk, found.volume))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def leave_one_out(
    tri: Triangle, rows: Rows, counted: Rows | None, objective: Objective, alpha: Tensor, lost: float
) -> Tensor:
    """Return Σ s e² / Σ s over leave-one-out residuals of `rows`, (L, t); `counted` as in `leave_one_out_errors`."""
    parts = []
    for some in torch.tensor_split(alpha, math.ceil(len(alpha) * rows.y.numel() / _ERRORS)):
        error = leave_one_out_errors(tri, rows, counted, objective, some, lost) ** 2
        weight = rows.sample_weight
        error = error if weight is None else error * weight.detach().to(error)[:, None, None]
        parts.append(error.sum(0))
    return torch.cat(parts) / tri.weight


def score_left_out(score: Score, tri: Triangle, rows: Rows, objective: Objective, alpha: Tensor, lost: float) -> Tensor:
    """Return a score of leave-one-out predictions, (1, L, t)."""
    y, parts = rows.y.detach().to(tri.rest), []
    weight = None if rows.sample_weight is None else rows.sample_weight.detach().to(y)
    for some in torch.tensor_split(alpha, math.ceil(len(alpha) * rows.y.numel() / _ERRORS)):
        errors = leave_one_out_errors(tri, rows, rows, objective, some, lost)
        parts.append(score(errors.transpose(0, 1), y, weight))
    return torch.cat(parts)[None]


def leave_one_out_errors(
    tri: Triangle, rows: Rows, counted: Rows | None, objective: Objective, alpha: Tensor, lost: float
) -> Tensor:
    """Return leave-one-out residuals of `rows`, (n, L, t); those of zero weight have the whole fit's.

    `counted` are the rows that were fitted, None if they are not at hand to be refitted.
    """
    n, index = rows.X.shape[0], torch.arange(rows.X.shape[0], device=rows.X.device)
    weight = None if rows.sample_weight is None else rows.sample_weight.detach().to(tri.rest)
    errors, left = [], []
    for some in roots.at_once(tri, alpha):
        found = roots.roots(tri, some)
        runs = [e for _, e in estimates.residuals(tri, rows, index, estimates.weights(tri, found, some))]
        hat = estimates.leverages(tri, found, rows.X.detach(), objective.intercept)
        hat = hat if weight is None else hat * weight[:, None]
        errors.append(torch.cat(runs))
        left.append(1 - hat)
    share = torch.cat(left, 1)  # (n, L)
    few = (share.amin(1) < tiny(lost)).nonzero()[:, 0] if counted is not None else index[:0]
    share[few] = 1
    result = torch.cat(errors, 1) / share.clamp_min(torch.finfo(share.dtype).eps)[:, :, None]
    if len(few):
        assert counted is not None
        result[few] = refitted_errors(rows, few, counted, objective, alpha)
    return result.reshape(n, len(alpha), -1)


def shares(tri: Triangle, rows: Rows, objective: Objective, alpha: Tensor) -> Tensor:
    """Return 1 − h of rows at every strength, (n, L)."""
    weight, parts = rows.sample_weight, []
    for some in roots.at_once(tri, alpha):
        hat = estimates.leverages(tri, roots.roots(tri, some), rows.X.detach(), objective.intercept)
        parts.append(1 - (hat if weight is None else hat * weight.detach().to(hat)[:, None]))
    return torch.cat(parts, 1)


def refitted_errors(rows: Rows, few: Tensor, counted: Rows, objective: Objective, alpha: Tensor) -> Tensor:
    """Return the errors of the rows `few` under fits of all others, (k, L, t). Cost: an orthogonal factor for each."""
    place = torch.arange(rows.X.shape[0], device=few.device)
    if len(counted.X) < len(rows.X) and rows.sample_weight is not None:
        place = (rows.sample_weight > 0).cumsum(0) - 1
    everyone, result = torch.arange(counted.X.shape[0], device=few.device), []
    for i, j in zip(few.tolist(), place[few].tolist(), strict=True):
        others = torch.cat([everyone[:j], everyone[j + 1 :]])
        tri = factor.triangle(take(counted, others), objective)
        runs = []
        for some in roots.at_once(tri, alpha):
            w = estimates.weights(tri, roots.roots(tri, some), some)
            runs.append(tri.unexplained(rows.X[i : i + 1].detach(), rows.y[i : i + 1].detach(), w))
        result.append(torch.cat(runs, 1))
    return torch.cat(result)
