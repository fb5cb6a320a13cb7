"""Cross-validation of strengths: make the folds, prepare a scorer, choose, fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import one_for_all
from torchridge.linear import search
from torchridge.linear.arguments import Asked, check_options, grid_of, refuse_beside_moments
from torchridge.linear.ridge import differentiable
from torchridge.linear.ridge.prepare import Prepared, prepare_moments, prepare_rows
from torchridge.linear.ridge.problem import check_given_kernel
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.ridge.solve import solve_rows
from torchridge.solvers.device import sent
from torchridge.solvers.least_squares.criteria import CRITERIA
from torchridge.solvers.least_squares.grid import coarse_grid
from torchridge.solvers.least_squares.target_scores import SCORES, SquaresScore, from_moments
from torchridge.solvers.moments import finite
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.rows import Rows


def cross_validate(asked: Asked) -> RidgeSolution:
    """Choose a strength and fit at it."""
    X, y, _, cv, groups, scoring, per_target, sample_weight, options = asked
    check_options(options)
    _check.option(options.solver, "solver", ("auto", "spectral", "dual", "cg"))
    _check.option(scoring, "scoring", from_moments())
    _check.option(per_target, "alpha_per_target", (True, False))
    if isinstance(X, Moments):
        refuse_beside_moments(
            y=y, sample_weight=sample_weight, groups=groups, kernel=options.kernel, max_bytes=options.max_bytes
        )
        prepared = prepare_moments(X, cv, options._replace(moments_dtype=X.dtype))
        return choose(prepared, asked)
    if y is None:
        raise TypeError("`y` is missing; pass the targets, or `Moments` in place of `X`.")
    _check.is_tensor(X, "X")
    _check.is_tensor(y, "y")
    if sample_weight is not None:
        _check.is_tensor(sample_weight, "sample_weight")
    given = {"X": X, "y": y, "sample_weight": sample_weight, **options._asdict()}
    _check.same_device({name: value for name, value in given.items() if isinstance(value, Tensor)})
    if not _check.values_visible(X, y, sample_weight):
        raise TypeError(
            "`ridge_cv` compares scores, which a transform or compiler hides. Call it outside, then `ridge`."
        )
    if options.kernel == "precomputed":
        check_given_kernel(X, y, sample_weight)
    if X.ndim > 2:
        return _batch(asked)
    if _check.watched(X, y, sample_weight, options.penalty_factors, options.prior):
        return _differentiable(asked)
    cv = "gcv" if cv is None else cv
    prepared = prepare_rows(Rows(*_check.rows(X, y, sample_weight)), cv, groups, options)
    return choose(prepared, asked)


def _differentiable(asked: Asked) -> RidgeSolution:
    """Choose without gradients, then fit with them."""
    with torch.no_grad():
        chosen = cross_validate(asked)
    own = asked.options._replace(solver="auto")
    fitted = differentiable.solve(asked.X, asked.y, chosen.alpha, "alpha", asked.sample_weight, own, solve_rows)
    names = ("alphas", "scores", "fold_scores", "best_score", "scoring", "dead_targets")
    scores = {name: getattr(chosen, name) for name in names}
    return dataclasses.replace(fitted, **scores)


def _batch(asked: Asked) -> RidgeSolution:
    """Choose for each problem of a batch by itself."""
    X, y, sample_weight, options = asked.X, asked.y, asked.sample_weight, asked.options
    batch = tuple(X.shape[:-2])
    if tuple(y.shape[: len(batch)]) != batch:
        raise ValueError(f"`y` has shape {tuple(y.shape)}, expected the leading dimensions {batch} of `X`.")
    if isinstance(asked.alphas, str):
        raise ValueError(
            "`alphas`: problems of a batch share one grid of strengths; pass it, e.g. torch.logspace(-3, 5, 50)."
        )
    solutions = []
    with one_for_all(math.prod(batch)):
        for i in range(math.prod(batch)):
            at = torch.unravel_index(torch.tensor(i), batch)
            weight = sample_weight[at] if sample_weight is not None and sample_weight.ndim > 1 else sample_weight
            own = options._replace(
                penalty_factors=_of_problem(options.penalty_factors, at, 1), prior=_of_problem(options.prior, at, 2)
            )
            solutions.append(cross_validate(asked._replace(X=X[at], y=y[at], sample_weight=weight, options=own)))
    return differentiable.stack(solutions, batch)


def _of_problem(value: Any, at: tuple[Tensor, ...], ndim: int) -> Any:
    return value[at] if isinstance(value, Tensor) and value.ndim > ndim else value


def choose(prepared: Prepared, asked: Asked) -> RidgeSolution:
    """Return the fit at the strength that scores best."""
    scoring, per_target = asked.scoring, asked.per_target
    variances = prepared.scorer.variances()
    criterion = variances is None
    kind = (asked.cv or "gcv") if criterion else scoring
    if criterion and scoring != "mse":
        raise ValueError(
            f"`scoring`={scoring!r} needs held-out targets, and `cv`={kind!r} holds none out. Use folds or cv='loo'."
        )
    dead = prepared.dead
    live = None
    if variances is not None and SCORES[scoring].varying:
        live = (variances > 1e-18 * variances.amax(0)) & ~dead  # below it is what rounding left of a constant
    found = _search(prepared, asked.alphas, kind, search.Live(live, dead), per_target)
    search.warn_of_silent(found.table, found.live)
    known, dtype = prepared.scorer.precision, prepared.scorer.like.dtype
    if known.lost > torch.finfo(dtype).eps ** 0.5:
        weakest = float(found.scores[int(found.grid.argmin())].nanmean())
        search.warn_unless_resolved(known, weakest, float(found.score.nanmean()), dtype)
    solution = prepared.solution(found.strengths(per_target))
    return solution.with_changes(
        reason=f"{solution.reason}; {known.reason}" if known.reason else solution.reason,
        alphas=sent(found.grid, found.table.device),
        scores=found.scores,
        fold_scores=found.table,
        best_score=found.score,
        scoring=kind,
        dead_targets=dead,
    )


def _search(prepared: Prepared, alphas: Any, kind: str, live: search.Live, per_target: bool) -> search.Found[Tensor]:
    """Return strengths (L,), on the host, their scores (K, L, t), and the best."""
    scorer, variances = prepared.scorer, prepared.scorer.variances()

    def score(grid: Tensor) -> Tensor:
        if variances is None:
            return CRITERIA[kind].sign * scorer.squares(grid)
        own = SCORES[kind]
        if not isinstance(own, SquaresScore):
            return own.sign * scorer.scores(own, grid)
        found = own.sign * own.of(scorer.squares(grid), variances[:, None])
        return found if live.folds is None else own.masked(found, live.folds[:, None])

    if not isinstance(alphas, str):
        return search.search(score, grid_of(alphas), search.itself, given=True, live=live, per_target=per_target)
    if alphas != "auto":
        raise ValueError(f"`alphas` should be 'auto' or strengths, got {alphas!r}.")
    eigvals = scorer.eigvals
    if isinstance(prepared.source, Rows) and not bool(eigvals.any()):
        finite.check_vanishing(prepared.source, eigvals.dtype)
    grid = coarse_grid(eigvals)
    return search.search(score, grid, search.itself, join=search.joined, given=False, live=live, per_target=per_target)
