"""Cross-validation by products with X alone: folds as weights of rows, and GCV with a stochastic trace."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import UndefinedScoreWarning, warn
from torchridge.linear import search
from torchridge.linear.arguments import Options, grid_of
from torchridge.linear.products.products import Problem, check, fit, warn_unless_converged, with_scores
from torchridge.linear.ridge.choose import Choice
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.search import refuse_one_row
from torchridge.solvers.iterative import solve_many, trace
from torchridge.solvers.iterative import standard_form as design
from torchridge.solvers.iterative.nystrom import Nystrom
from torchridge.solvers.iterative.standard_form import Design
from torchridge.solvers.least_squares import scoring
from torchridge.solvers.least_squares.grid import coarse_grid_by_norm
from torchridge.solvers.moments import folds


class Scores(NamedTuple):
    """Scores of strengths, and what was found on the way."""

    table: Tensor  # (K, L, t), larger is better
    error: Tensor | None = None  # (L, t) standard error of what is random in them
    dof: Tensor | None = None  # (L,) the intercept left out
    squares: Tensor | None = None  # (L, t) Σ s (y − ŷ)²


Scorer = Callable[[Tensor, Nystrom], Scores]


def cross_validate(
    X: Any,
    y: Any,
    alphas: Any,
    cv: Any,
    groups: Any,
    kind: str,
    per_target: bool,
    sample_weight: Any,
    options: Options,
    choice: Choice,
) -> RidgeSolution:
    """Choose a strength and fit at it."""
    cv = "gcv" if cv is None else cv
    _check_criterion(cv, groups, kind)
    problem = check(X, y, sample_weight, options)
    return _choose(problem, alphas, cv, groups, kind, per_target, choice)


def _choose(
    problem: Problem, alphas: Any, cv: Any, groups: Any, kind: str, per_target: bool, choice: Choice
) -> RidgeSolution:
    if isinstance(cv, str):
        refuse_one_row(problem.rows, cv, problem.objective)
    form = problem.form()
    kind = "gcv" if isinstance(cv, str) else kind
    scorer = _gcv(problem, form) if kind == "gcv" else _folds(problem, cv, groups, kind)
    found, approximation = _search(problem, form, scorer, alphas, kind, per_target)
    strengths = found.strengths(per_target)
    solution = with_scores(
        fit(problem, form, approximation, strengths, choice),
        alphas=found.grid.to(found.table.device),
        scores=found.scores,
        fold_scores=found.table,
        best_score=found.score,
        scoring=kind,
        score_errors=found.scored.error,
    )
    return _with_dof(solution, found.scored, found.place.to(found.table.device), problem)


def _check_criterion(cv: Any, groups: Any, scoring: str) -> None:
    if not isinstance(cv, str):
        return
    _check.option(cv, "cv", ("gcv", "loo", "evidence"))
    if cv != "gcv":
        what = "leverages" if cv == "loo" else "all eigenvalues"
        raise ValueError(
            f"`cv`={cv!r} needs {what}, which solver='cg' does not offer. Use cv='gcv', a number of folds, or a direct "
            f"solver."
        )
    if groups is not None:
        raise ValueError(f"`groups` has no use with `cv`={cv!r}. Pass a number of folds, e.g. cv=5.")
    if scoring == "r2":
        raise ValueError("`scoring`='r2' needs held-out targets, and `cv`='gcv' holds none out. Use folds.")


def _search(
    problem: Problem, form: Design, scorer: Scorer, alphas: Any, kind: str, per_target: bool
) -> tuple[search.Found[Scores], Nystrom]:
    """Return strengths (L,), their scores and the best, and the approximation that served them."""
    given = not isinstance(alphas, str)
    if given:
        grid = grid_of(alphas)
        _check_positive(grid, kind)
    elif alphas != "auto":
        raise ValueError(f"`alphas` should be 'auto' or strengths, got {alphas!r}.")
    else:
        rough = solve_many.approximate(form, 1.0, 1, 8, problem.rule.tol)
        grid = coarse_grid_by_norm(float(rough.eigvals[0]) if rough.rank else 0.0)
    approximation = _approximation(problem, form, grid)

    def score(some: Tensor) -> Scores:
        return scorer(some.to(problem.y.device), approximation)

    join = None if given else _merged
    table = operator.attrgetter("table")
    return search.search(score, grid, table, given=given, per_target=per_target, join=join, cells=4), approximation


def _check_positive(grid: Tensor, kind: str) -> None:
    if kind == "gcv" and bool((grid == 0).any()):
        raise ValueError("`alphas` should be positive for cv='gcv' of solver='cg', got 0. Drop it, or use folds.")


def _approximation(problem: Problem, form: Design, grid: Tensor) -> Nystrom:
    columns = len(grid) * problem.y.shape[1]
    return solve_many.approximate(form, float(grid.min()), columns, problem.rank, problem.rule.tol)


def _merged(a: Scores, b: Scores, order: Tensor) -> Scores:
    def join(x: Tensor | None, y: Tensor | None, dim: int) -> Tensor | None:
        return None if x is None or y is None else torch.cat([x, y], dim).index_select(dim, order.to(x.device))

    return Scores(
        search.joined(a.table, b.table, order),
        join(a.error, b.error, 0),
        join(a.dof, b.dof, 0),
        join(a.squares, b.squares, 0),
    )


def _gcv(problem: Problem, form: Design) -> Scorer:
    fixed = form.fixed.shape[1]

    def score(alpha: Tensor, approximation: Nystrom) -> Scores:
        t, n = problem.y.shape[1], problem.rows
        columns, share, squares = solve_many.grid(alpha, False, t, 1), torch.ones_like(form.total), []
        for some in solve_many.blocks(form, columns):
            part = columns.at(some)
            block = solve_many.solve(form, approximation, share, problem.y, part, problem.rule)
            warn_unless_converged(block.error, block.steps, problem.rule)
            squares.append(solve_many.residual_squares(form, problem.y, block, part))
        table = torch.cat(squares).reshape(-1, t)
        dof = trace.degrees_of_freedom(form, approximation, alpha, problem.rule)
        warn_unless_converged(dof.residual, dof.steps, problem.rule._replace(tol=trace.tolerance(problem.rule)))
        values = scoring.gcv(table, dof.value + fixed, n, form.total[0])
        left = (n - dof.value - fixed).clamp_min(1e-300)
        error = 2 * values * (dof.error / left)[:, None]
        return Scores(-values[None], error, dof.value + fixed - int(problem.objective.intercept), table)

    return score


def _with_dof(solution: RidgeSolution, scores: Scores, best: Tensor, problem: Problem) -> RidgeSolution:
    """Add the degrees of freedom that GCV estimated, and the variance that follows from them."""
    if scores.dof is None or scores.squares is None:
        return solution
    dof = scores.dof[best]
    left = problem.rows - dof - int(problem.objective.intercept)
    left = torch.where(left > 0.5, left, torch.nan)
    columns = torch.arange(scores.squares.shape[1], device=best.device)
    variance = scores.squares[best.expand(len(columns)), columns] / left
    known = solution.diagnosis.map(
        dof=lambda _: dof if solution.alpha.ndim else dof[0], residual_variance=lambda _: variance
    )
    return with_scores(solution, diagnosis=known)


class Masks(NamedTuple):
    """Weights of the rows in every training part and in every part that is held out, (n, K)."""

    train: Tensor
    held: Tensor


def _masks(problem: Problem, cv: Any, groups: Any) -> Masks:
    n, device = problem.X.shape[0], problem.y.device
    cv = folds.as_ids(cv)
    if isinstance(cv, Tensor) or (isinstance(cv, int) and not isinstance(cv, bool)):
        ids = folds.fold_ids(cv, n, groups).to(device)
        held = torch.nn.functional.one_hot(ids).double()
        train = 1 - held
    else:
        parts = folds.splits(cv, n, problem.y, groups)
        train, held = (
            torch.stack([torch.bincount(p[side], minlength=n) for p in parts], 1).double().to(device) for side in (0, 1)
        )
    if problem.sample_weight is not None:
        train, held = train * problem.sample_weight[:, None], held * problem.sample_weight[:, None]
    if bool((train.sum(0) == 0).any()) or bool((held.sum(0) == 0).any()):
        raise ValueError("`cv`: a fold has no row of positive weight; expected some in every part.")
    return Masks(train, held)


def _folds(problem: Problem, cv: Any, groups: Any, kind: str) -> Scorer:
    masks = _masks(problem, cv, groups)
    form = design.design(problem.X, masks.train, problem.objective)
    every = problem.sample_weight.sum() if problem.sample_weight is not None else float(problem.X.shape[0])
    total = masks.held.sum(0)  # (K,)

    def score(alpha: Tensor, approximation: Nystrom) -> Scores:
        t, K = problem.y.shape[1], masks.held.shape[1]
        columns, squares = solve_many.grid(alpha, False, t, K), []
        for some in solve_many.blocks(form, columns):
            part = columns.at(some)
            block = solve_many.solve(form, approximation, form.total / every, problem.y, part, problem.rule)
            warn_unless_converged(block.error, block.steps, problem.rule)
            squares.append(_held_squares(problem, form, block, part, masks.held))
        table = torch.cat(squares).reshape(K, -1, t) / total[:, None, None]
        return Scores(-table if kind == "mse" else _r2(table, _variances(problem.given, masks.held)))

    return score


def _r2(squares: Tensor, variances: Tensor) -> Tensor:
    """Return R² (K, L, t), zero in a fold whose target is constant; warns of those."""
    constant = variances <= 0
    if bool(constant.any()):
        folds = constant.any(1).nonzero()[:, 0].tolist()
        warn(f"held-out targets are constant in folds {folds}: R² counts as 0 there.", UndefinedScoreWarning)
    return torch.where(constant[:, None], 0, 1 - squares / torch.where(constant, 1, variances)[:, None])


def _held_squares(
    problem: Problem, form: Design, block: solve_many.Block, columns: solve_many.Columns, held: Tensor
) -> Tensor:
    """Return Σ s (y − ŷ)² over the rows that are held out, (c,)."""
    weight, bias = design.completed(form, block.weight, block.fixed, columns.part, problem.objective.intercept)
    left = problem.y[:, columns.target] - problem.X.matmul(weight) - bias
    return (held[:, columns.part] * left**2).sum(0)


def _variances(y: Tensor, held: Tensor) -> Tensor:
    """Return the weighted variance of the held-out targets, (K, t)."""
    total = held.sum(0)[:, None]
    mean = held.T @ y / total
    variance = torch.stack([(h[:, None] * (y - m) ** 2).sum(0) for h, m in zip(held.T, mean, strict=True)]) / total
    noise = (10 * torch.finfo(variance.dtype).eps * mean) ** 2
    return torch.where(variance > noise, variance, 0)
