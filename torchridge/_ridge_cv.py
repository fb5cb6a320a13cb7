"""Cross-validation of strengths: make the folds, prepare a scorer, choose, fit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ridge_cv_choice import refuse_one_row, warn_of_edge
from torchridge._ridge_dense import solve_watched, stack
from torchridge._ridge_options import Options, check_options, needs_torch, refuse_beside_moments
from torchridge._ridge_solve import fit_moments, fit_rows, to_solution
from torchridge.solvers import blocks, cross_validation, dual, folds, select
from torchridge.solvers.arguments import check_strengths
from torchridge.solvers.blocks import Block
from torchridge.solvers.cross_validation import DualFolds, FoldMoments, Scorer, Whole, WholeDual
from torchridge.solvers.fit import Fit, Strengths, fit_block, fit_from_dual
from torchridge.solvers.moments import Moments
from torchridge.solvers.objective import Objective
from torchridge.solvers.rows import Rows, check_rows, result_dtype
from torchridge.solvers.scoring import train_spectrum
from torchridge.solvers.select import Choice
from torchridge.solvers.solution import Solution

_CRITERIA = ("gcv", "loo", "evidence")

# Multiply-adds up to which standard errors come unasked; for few rows of many features they cost as much as the rest.
_CHEAP = 2**30


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A scorer, and what the fit at the chosen strength starts from."""

    scorer: Scorer
    objective: Objective
    source: Rows | Moments
    block: Block | None = None
    rows: Rows | None = None

    def fit(self, strengths: Strengths, options: Options) -> Fit:
        """Fit all rows at the chosen strengths, with what scoring has factored already."""
        scorer = self.scorer
        dtype = result_dtype(self.rows.X) if self.rows is not None else options.moments_dtype
        if isinstance(scorer, (DualFolds, WholeDual)) and self.rows is not None:
            choice = Choice("dual", "the strength was chosen from the gram matrix of the rows")
            n, d = self.rows.X.shape
            errors = n * n * d <= _CHEAP
            return fit_from_dual(scorer.problem, self.rows, self.objective, strengths, choice, dtype, errors)
        if self.block is None and self.rows is not None:
            return fit_rows(self.rows, self.objective, strengths, options._replace(solver="auto"))
        assert self.block is not None
        if isinstance(scorer, Whole):
            choice = Choice("spectral", "the strength was chosen from this eigendecomposition")
            rows = self.rows if options.moments_dtype is torch.float64 else None
            return fit_block(self.block, rows, self.objective, strengths, choice, dtype, scorer.spectrum)
        if self.rows is None:
            return fit_moments(self.block, self.objective, strengths, options._replace(solver="auto"))
        return _fit_folds(self.block, self.rows, self.objective, strengths, options, dtype)


def _fit_folds(
    block: Block, rows: Rows, objective: Objective, strengths: Strengths, options: Options, dtype: torch.dtype
) -> Fit:
    free = objective.penalty is not None and bool((objective.penalty == 0).any())
    n, d = rows.X.shape
    choice = select.choose(
        "auto",
        n=max(n, d),  # the moments are there
        d=d,
        strengths=len(strengths.alpha),
        per_target=strengths.per_target,
        free=free,
        rows_at_hand=True,
        cuda=rows.X.is_cuda,
    )
    return fit_block(
        block, rows if options.moments_dtype is torch.float64 else None, objective, strengths, choice, dtype
    )


def cross_validate(
    X: Any,
    y: Any,
    alphas: Any,
    cv: Any,
    groups: Any,
    scoring: str,
    per_target: bool,
    sample_weight: Any,
    options: Options,
) -> Solution:
    """Choose a strength and fit at it."""
    check_options(options)
    _check.option(options.solver, "solver", ("auto", "spectral", "dual", "cg"))
    _check.option(scoring, "scoring", ("mse", "r2"))
    _check.option(per_target, "alpha_per_target", (True, False))
    if isinstance(X, Moments):
        refuse_beside_moments(y=y, sample_weight=sample_weight, groups=groups)
        options = options._replace(moments_dtype=X.dtype)
        prepared = _prepare_moments(X, cv, options)
        return choose(prepared, alphas, cv, scoring, per_target, options)
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
    if X.ndim > 2:
        return _batch(X, y, alphas, cv, groups, scoring, per_target, sample_weight, options)
    if needs_torch(X, y, sample_weight, options.penalty_factors, options.prior):
        return _differentiable(X, y, alphas, cv, groups, scoring, per_target, sample_weight, options)
    cv = "gcv" if cv is None else cv
    prepared = prepare_rows(check_rows(X, y, sample_weight), cv, groups, options)
    return choose(prepared, alphas, cv, scoring, per_target, options)


def _differentiable(X: Tensor, y: Tensor, *arguments: Any) -> Solution:
    """Choose without gradients, then fit with them."""
    alphas, cv, groups, scoring, per_target, sample_weight, options = arguments
    with torch.no_grad():
        chosen = cross_validate(X, y, alphas, cv, groups, scoring, per_target, sample_weight, options)
    fitted = solve_watched(X, y, chosen.alpha, "alpha", sample_weight, options._replace(solver="auto"))
    scores = {name: getattr(chosen, name) for name in ("alphas", "scores", "fold_scores", "best_score", "scoring")}
    return dataclasses.replace(fitted, **scores)


def _batch(X: Tensor, y: Tensor, *arguments: Any) -> Solution:
    """Choose for each problem of a batch by itself."""
    alphas, cv, groups, scoring, per_target, sample_weight, options = arguments
    batch = tuple(X.shape[:-2])
    if tuple(y.shape[: len(batch)]) != batch:
        raise ValueError(f"`y` has shape {tuple(y.shape)}, expected the leading dimensions {batch} of `X`.")
    if isinstance(alphas, str):
        raise ValueError(
            "`alphas`: problems of a batch share one grid of strengths; pass it, e.g. torch.logspace(-3, 5, 50)."
        )
    solutions = []
    for i in range(math.prod(batch)):
        at = torch.unravel_index(torch.tensor(i), batch)
        weight = sample_weight[at] if sample_weight is not None and sample_weight.ndim > 1 else sample_weight
        own = options._replace(
            penalty_factors=_of_problem(options.penalty_factors, at, 1), prior=_of_problem(options.prior, at, 2)
        )
        solutions.append(cross_validate(X[at], y[at], alphas, cv, groups, scoring, per_target, weight, own))
    return stack(solutions, batch)


def _of_problem(value: Any, at: tuple[Tensor, ...], ndim: int) -> Any:
    return value[at] if isinstance(value, Tensor) and value.ndim > ndim else value


def _prepare_moments(moments: Moments, cv: Any, options: Options) -> Prepared:
    block = moments.block()
    d, t = block.cross.shape
    objective = options.objective(d, t, block.gram, dtype=moments.dtype)
    cv = ("folds" if moments.folds else "gcv") if cv is None else cv
    if isinstance(cv, str) and cv in ("gcv", "evidence"):
        refuse_one_row(block.rows, cv, objective)
        scorer = Whole(cv, train_spectrum(block, objective), block, objective, None)
        return Prepared(scorer, objective, moments, block)
    if isinstance(cv, str) and cv == "loo":
        raise ValueError("`cv`='loo' needs the rows, which moments do not hold. Use cv='gcv', or folds in `Moments`.")
    k = len(moments.folds)
    if k < 2 or (cv != "folds" and cv != k):
        raise ValueError(
            f"`cv`={cv!r}: these moments hold {k} folds. Give every batch its fold, `update(X, y, fold=...)`, or use "
            f"cv='gcv'."
        )
    held = [moments.block(f) for f in moments.folds]
    train = [moments.without(f) for f in moments.folds]
    return Prepared(cross_validation.fold_moments(train, held, objective, None, None), objective, moments, block)


def prepare_rows(rows: Rows, cv: Any, groups: Any, options: Options) -> Prepared:
    objective = options.objective(rows.X.shape[1], rows.y.shape[1], rows.X)
    if isinstance(cv, str):
        _check.option(cv, "cv", _CRITERIA)
        if groups is not None:
            raise ValueError(f"`groups` has no use with `cv`={cv!r}. Pass a number of folds, e.g. cv=5.")
        return _prepare_whole(rows, cv, objective, options)
    n = rows.X.shape[0]
    cv = folds.as_ids(cv)
    if isinstance(cv, Tensor) or (isinstance(cv, int) and not isinstance(cv, bool)):
        ids: Tensor | None = folds.fold_ids(cv, n, groups)
        parts = None
    else:
        parts = folds.splits(cv, n, rows.y, groups)
        ids = folds.partition(parts, n)
    if ids is not None:
        return _prepare_folds(rows, ids.to(rows.X.device), objective, options)
    assert parts is not None
    return _prepare_splits(rows, parts, objective, options)


def _prepare_whole(rows: Rows, cv: str, objective: Objective, options: Options) -> Prepared:
    n, d = rows.X.shape
    counted = rows.counted
    refuse_one_row(counted.X.shape[0], cv, objective)
    if options.solver == "dual" or (options.solver == "auto" and n < d):
        blocks.check_squares(rows)
        objective = objective.to(torch.float64)
        problem = dual.dual(counted, objective, torch.float64)
        return Prepared(WholeDual(cv, problem, counted), objective, rows, None, counted)
    block = blocks.block_of(*counted[:3], None, options.moments_dtype, rows.X.device)
    blocks.check_finite(block, rows)
    scorer = Whole(cv, train_spectrum(block, objective), block, objective, counted)
    return Prepared(scorer, objective, rows, block, counted)


def _prepare_folds(rows: Rows, ids: Tensor, objective: Objective, options: Options) -> Prepared:
    counted, count = rows.counted, int(ids.max()) + 1
    if counted is not rows and rows.sample_weight is not None:
        ids = ids[rows.sample_weight > 0]
    index = [(ids == k).nonzero()[:, 0] for k in range(count)]
    if any(len(i) == 0 for i in index):
        raise ValueError("`cv`: a fold has no row of positive weight; expected some in every fold.")
    n, d = counted.X.shape
    choice = select.choose_cross_validation(
        options.solver, n=n, smallest_train=n - max(len(i) for i in index), d=d, rows_at_hand=True
    )
    if choice.solver == "dual":
        blocks.check_squares(rows)
        objective = objective.to(torch.float64)
        if objective.standardize:  # a gram matrix for each fold: its own scales
            everything = torch.arange(n, device=ids.device)
            parts = [(everything[ids != k], i) for k, i in enumerate(index)]
            return _dual_splits(counted, parts, objective, rows)
        problem = dual.dual(counted, objective, torch.float64)
        return Prepared(DualFolds(problem, counted, index, objective), objective, rows, None, counted)
    held = cross_validation.fold_blocks(counted, index, options.moments_dtype)
    for b in held:
        blocks.check_finite(b, rows)
    train = [blocks.merge([b for j, b in enumerate(held) if j != k]) for k in range(len(held))]
    scorer = cross_validation.fold_moments(train, held, objective, counted, index)
    return Prepared(scorer, objective, rows, blocks.merge(held), counted)


def _dual_splits(rows: Rows, parts: list[folds.Split], objective: Objective, source: Rows) -> Prepared:
    return Prepared(cross_validation.dual_splits(rows, parts, objective), objective, source, None, rows)


def _prepare_splits(rows: Rows, parts: list[folds.Split], objective: Objective, options: Options) -> Prepared:
    """Prepare splits that do not partition the rows: each part is gathered by itself."""
    blocks.check_squares(rows)
    parts = [(a.to(rows.X.device), b.to(rows.X.device)) for a, b in parts]
    if rows.sample_weight is not None:
        counts = rows.sample_weight > 0
        parts = [(a[counts[a]], b[counts[b]]) for a, b in parts]
        if any(len(a) == 0 or len(b) == 0 for a, b in parts):
            raise ValueError("`cv`: a part has no row of positive weight; expected some in every part.")
    n, d = rows.X.shape
    choice = select.choose_cross_validation(
        options.solver, n=n, smallest_train=min(len(a) for a, _ in parts), d=d, rows_at_hand=True
    )
    if choice.solver == "dual":
        return _dual_splits(rows, parts, objective.to(torch.float64), rows)
    train = cross_validation.fold_blocks(rows, [a for a, _ in parts], options.moments_dtype)
    held = cross_validation.fold_blocks(rows, [b for _, b in parts], options.moments_dtype)
    scorer = cross_validation.fold_moments(train, held, objective, rows, [b for _, b in parts])
    return Prepared(scorer, objective, rows, None, rows.counted)


def choose(prepared: Prepared, alphas: Any, cv: Any, scoring: str, per_target: bool, options: Options) -> Solution:
    """Return the fit at the strength that scores best."""
    scorer = prepared.scorer
    variances = scorer.variances()
    kind = cv if isinstance(cv, str) and cv in ("gcv", "evidence") else "gcv" if variances is None else scoring
    if kind != scoring and scoring == "r2":
        raise ValueError(
            f"`scoring`='r2' needs held-out targets, which `cv`={kind!r} has none of. Use folds or cv='loo'."
        )
    if isinstance(alphas, str) and isinstance(prepared.source, Rows) and not bool(scorer.eigvals.any()):
        blocks.check_vanishing(prepared.source, scorer.eigvals.dtype)
    grid, table = _scored(scorer, alphas, variances if kind == "r2" else None, per_target)
    scores = table.mean(0)  # (L, t)
    compared = scores if per_target else scores.mean(1, keepdim=True)
    best = select.best_strength(compared, grid, kind == "r2")
    if not isinstance(alphas, str):
        warn_of_edge(grid, best)
    strengths = Strengths(grid[best], per_target and len(best) > 1)
    fit = prepared.fit(strengths, options)
    solution = to_solution(fit, strengths, False, prepared.objective, prepared.source)
    best_score = compared.gather(0, best[None])[0]
    return dataclasses.replace(
        solution,
        alphas=grid,
        scores=scores,
        fold_scores=table,
        best_score=best_score if per_target else best_score[0],
        scoring=kind,
    )


def _scored(scorer: Scorer, alphas: Any, variances: Tensor | None, per_target: bool) -> tuple[Tensor, Tensor]:
    """Return strengths (L,) and their scores (K, L, t)."""

    def score(grid: Tensor) -> Tensor:
        squares = scorer.squares(grid)
        return squares if variances is None else 1 - squares / variances[:, None, :]

    if not isinstance(alphas, str):
        like = scorer.like if isinstance(scorer, FoldMoments) else scorer.eigvals
        grid = check_strengths(alphas, "alphas", like=like).to(like.dtype)
        if grid.ndim > 1:
            raise ValueError(f"`alphas` should be a list or a tensor of shape (L,), got {tuple(grid.shape)}.")
        return grid.reshape(-1), score(grid.reshape(-1))
    if alphas != "auto":
        raise ValueError(f"`alphas` should be 'auto' or strengths, got {alphas!r}.")
    grid = select.coarse_grid(scorer.eigvals)
    table = score(grid)
    scores = table.mean(0)
    best = select.best_strength(scores if per_target else scores.mean(1, keepdim=True), grid, variances is not None)
    finer = select.finer_grid(grid, best)
    both, order = torch.cat([grid, finer]).sort()
    return both, torch.cat([table, score(finer)], 1)[:, order]
