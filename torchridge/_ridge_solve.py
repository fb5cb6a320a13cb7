"""From arguments to a solution: check, choose, solve, round, and say aloud what was wrong."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ridge_dense import solve_batch, solve_watched
from torchridge._ridge_options import Options, check_options, needs_torch, refuse_beside_moments, strengths_of
from torchridge._warnings import IllConditionedWarning, RankDeficientWarning
from torchridge.solvers import blocks, select
from torchridge.solvers.blocks import Block
from torchridge.solvers.fit import Fit, Strengths, fit_block, fit_dual
from torchridge.solvers.moments import Moments
from torchridge.solvers.objective import Objective
from torchridge.solvers.rows import Rows, check_rows, result_dtype
from torchridge.solvers.select import Choice
from torchridge.solvers.solution import Solution


def solve(X: Any, y: Any, alpha: Any, name: str, sample_weight: Any, options: Options) -> Solution:
    """Solve at the strengths `alpha`; `name` is "alphas" for a path."""
    check_options(options)
    if isinstance(X, Moments):
        if alpha is None and y is not None:
            y, alpha = None, y  # ridge(moments, 1.0)
        refuse_beside_moments(y=y, sample_weight=sample_weight)
        return _solve_moments(X, alpha, name, options)
    if y is None:
        raise TypeError("`y` is missing; pass the targets, or `Moments` in place of `X`.")
    _check.is_tensor(X, "X")
    _check.is_tensor(y, "y")
    if needs_torch(X, y, alpha, sample_weight, options.penalty_factors, options.prior):
        return solve_watched(X, y, alpha, name, sample_weight, options)
    if X.ndim > 2:
        return solve_batch(solve, X, y, alpha, name, sample_weight, options)
    return _solve_rows(check_rows(X, y, sample_weight), alpha, name, options)


def _solve_rows(rows: Rows, alpha: Any, name: str, options: Options) -> Solution:
    objective = options.objective(rows.X.shape[1], rows.y.shape[1], rows.X)
    strengths = strengths_of(alpha, name, rows.y.shape[1], rows.X, options.moments_dtype)
    fit = fit_rows(rows, objective, strengths, options)
    return to_solution(fit, strengths, name == "alphas", objective, rows)


def fit_rows(rows: Rows, objective: Objective, strengths: Strengths, options: Options) -> Fit:
    """Solve from rows, by their moments or by their n × n gram matrix."""
    n, d = rows.X.shape
    choice = select.choose(
        options.solver,
        n=n,
        d=d,
        strengths=len(strengths.alpha),
        per_target=strengths.per_target,
        free=_has_free(objective),
        rows_at_hand=True,
        cuda=rows.X.is_cuda,
    )
    if choice.solver == "dual":
        blocks.check_squares(rows)
        double = Strengths(strengths.alpha.double(), strengths.per_target)
        fit = fit_dual(rows.counted, objective.to(torch.float64), double, choice, result_dtype(rows.X))
        lost = fit.lost > torch.finfo(torch.float64).eps * select.CAREFUL[result_dtype(rows.X)]
        if n < d or fit.choice.solver != "dual" or not lost:
            return fit
        choice = Choice("spectral", "the gram matrix of the rows loses digits")
    block = blocks.block_of(*rows[:3], None, options.moments_dtype, rows.X.device)
    blocks.check_finite(block, rows)
    again = rows.counted if options.moments_dtype is torch.float64 else None
    return fit_block(block, again, objective, strengths, choice, result_dtype(rows.X))


def _has_free(objective: Objective) -> bool:
    return objective.penalty is not None and bool((objective.penalty == 0).any())


def _solve_moments(moments: Moments, alpha: Any, name: str, options: Options) -> Solution:
    block = moments.block()
    d, t = block.cross.shape
    objective = options.objective(d, t, block.gram, dtype=moments.dtype)
    strengths = strengths_of(alpha, name, t, block.gram, moments.dtype)
    fit = fit_moments(block, objective, strengths, options)
    return to_solution(fit, strengths, name == "alphas", objective, moments)


def fit_moments(block: Block, objective: Objective, strengths: Strengths, options: Options) -> Fit:
    """Solve from moments alone."""
    choice = select.choose(
        options.solver,
        n=block.rows,
        d=block.gram.shape[0],
        strengths=len(strengths.alpha),
        per_target=strengths.per_target,
        free=_has_free(objective),
        rows_at_hand=False,
        cuda=block.gram.is_cuda,
    )
    return fit_block(block, None, objective, strengths, choice, block.gram.dtype)


def to_solution(fit: Fit, strengths: Strengths, path: bool, objective: Objective, source: Rows | Moments) -> Solution:
    """Round a fit into a solution, in the dtype its rows came in, and warn of what is wrong with it."""
    rows = source if isinstance(source, Moments) else source.counted
    n = rows.n_samples if isinstance(rows, Moments) else rows.X.shape[0]
    dtype = rows.result_dtype if isinstance(rows, Moments) else result_dtype(rows.X)
    weight = fit.weight.permute(1, 2, 0)  # (L, t, d)
    bias = fit.target_center - weight @ fit.center
    pick = slice(None) if path else 0
    solved = weight[pick].to(dtype).contiguous()
    _check_range(solved, fit, source)
    warn(fit)
    left = n - fit.dof - int(objective.intercept)
    left = torch.where(left > 0.5, left, torch.nan)
    variance = fit.squares / (left[None] if strengths.per_target else left[:, None])
    single, unit = not path and not strengths.per_target, fit.unit_variance
    return Solution(
        weight=solved,
        bias=bias[pick].to(dtype),
        alpha=strengths.alpha[0] if single else strengths.alpha,
        solver=fit.choice.solver,
        reason=fit.choice.reason,
        n_samples=n,
        dof=fit.dof[0] if single else fit.dof,
        condition=fit.condition,
        rank=fit.rank,
        residual_variance=variance[pick],
        unit_variance=None if unit is None else unit[:, 0] if single else unit.T,
        fit_intercept=objective.intercept,
        vector_target=source.vector_target,
        is_path=path,
    )


def _check_range(weight: Tensor, fit: Fit, source: Rows | Moments) -> None:
    """Raise where squares of the features vanished, or the weights overflow."""
    finite = math.isfinite(float(weight.sum(dtype=torch.float64))) or bool(torch.isfinite(weight).all())
    if isinstance(source, Rows) and (not finite or (fit.minimum_norm and fit.rank == 0)):
        blocks.check_vanishing(source, fit.weight.dtype)
    if not finite:
        raise ValueError(
            f"the weights are too large for {weight.dtype}. Rescale `X` or `y`, raise `alpha`, or pass `X.double()`."
        )


def warn(fit: Fit) -> None:
    """Warn of a minimum-norm answer and of lost digits."""
    d = fit.weight.shape[0]
    from_rows = "or call `ridge(X, y, ...)` on the rows in float64, which can go back to them"
    if fit.minimum_norm:
        warnings.warn(
            f"X (centred) has rank {fit.rank} of {d} features and the penalty is too weak to choose between solutions: "
            f"the one of minimum norm is returned. Raise `alpha`, or drop dependent features.",
            RankDeficientWarning,
            stacklevel=5,
        )
    elif fit.lost > torch.finfo(fit.weight.dtype).eps ** 0.5:
        warnings.warn(
            f"the condition number is {fit.condition:.1e}; the weights may be off by {min(fit.lost, 1.0):.0e}. "
            f"Raise `alpha`, {'or bring the features to one scale' if fit.choice.solver == 'svd' else from_rows}.",
            IllConditionedWarning,
            stacklevel=5,
        )
