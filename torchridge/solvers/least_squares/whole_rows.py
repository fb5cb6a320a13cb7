"""The criteria of all rows at once, from an orthogonal factor of them: GCV, the evidence, leave-one-out.

A leverage h near one leaves no digits of e / (1 − h): such rows are left out in earnest, and the others refitted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchridge.solvers.least_squares import scoring
from torchridge.solvers.least_squares.objective import Objective
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


def gcv(tri: Triangle, alpha: Tensor, intercept: bool) -> Tensor:
    """Return generalized cross-validation at every strength, (L, t)."""
    parts = []
    for some in roots.at_once(tri, alpha):
        found = roots.roots(tri, some)
        squares = estimates.residual_squares(tri, estimates.scaled_weights(tri, found, some))
        whole = None if tri.exact else (tri.target**2).sum(0) + tri.rest
        parts.append(scoring.gcv(squares, estimates.dof(tri, found) + intercept, tri.rows, tri.weight, whole))
    return torch.cat(parts)


def evidence(tri: Triangle, alpha: Tensor, intercept: bool) -> Tensor:
    """Return what `scoring.evidence` does at every strength, (L, t); infinite at α = 0, and where no row is left."""
    count, parts = tri.rows - intercept - factor.rank_of_free(tri), []
    for some in roots.at_once(tri, alpha):
        found = roots.roots(tri, some)
        v = estimates.scaled_weights(tri, found, some)
        shrunk = (factor.shrinkage(tri, some)[:, :, None] * v) ** 2
        energy = estimates.residual_squares(tri, v) + shrunk.sum(1)
        parts.append(scoring.evidence_of(found.volume, energy, count))
    table = torch.cat(parts)
    return torch.where((alpha > 0)[:, None], table, torch.inf) if bool((tri.penalty > 0).any()) else table


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
