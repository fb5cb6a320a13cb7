"""Cross-validation by products with X alone: folds as weights of rows, and GCV with a stochastic trace."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear import search
from torchridge.linear.arguments import Asked, Strengths, grid_of
from torchridge.linear.products.products import (
    Problem,
    by_shared_products,
    check,
    fit,
    warn_unless_converged,
    with_scores,
)
from torchridge.linear.ridge.choose import Choice
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.search import refuse_one_row
from torchridge.solvers.device import sent
from torchridge.solvers.iterative import nystrom, solve_many, trace
from torchridge.solvers.iterative import standard_form as design
from torchridge.solvers.iterative.nystrom import Nystrom
from torchridge.solvers.iterative.standard_form import Design
from torchridge.solvers.least_squares import target_scores
from torchridge.solvers.least_squares.criteria import CRITERIA, Criterion, Fit, criterion_of
from torchridge.solvers.least_squares.grid import coarse_grid_by_norm
from torchridge.solvers.least_squares.target_scores import SCORES, Score
from torchridge.solvers.moments import folds

# Share of the standard error of the degrees of freedom over which a criterion is differentiated.
_STEP = 1e-3


class Scores(NamedTuple):
    """Scores of strengths, and what was found on the way."""

    table: Tensor  # (K, L, t), larger is better
    error: Tensor | None = None  # (L, t) standard error of what is random in them
    dof: Tensor | None = None  # (L,) the intercept left out
    squares: Tensor | None = None  # (L, t) Σ s (y − ŷ)²


Sketch = Callable[[], Nystrom]  # made once, when it is asked for
Scorer = Callable[[Tensor, Sketch], Scores]


def cross_validate(asked: Asked, choice: Choice) -> RidgeSolution:
    """Choose a strength and fit at it."""
    cv, groups, kind = "gcv" if asked.cv is None else asked.cv, asked.groups, asked.scoring
    _check_criterion(cv, groups, kind)
    problem = check(asked.X, asked.y, asked.sample_weight, asked.options)
    if isinstance(cv, str):
        refuse_one_row(problem.rows, cv, problem.objective)
    form = problem.form()
    criterion = criterion_of(cv)
    if criterion is not None:
        kind, scorer, live = cv, _of_all_rows(problem, form, criterion), search.EVERYTHING
    else:
        masks = _masks(problem, cv, groups)
        live = _live(problem, masks, SCORES[kind])
        scorer = _folds(problem, masks, SCORES[kind])
    found, approximation = _search(problem, form, scorer, asked.alphas, live, asked.per_target, criterion)
    search.warn_of_silent(found.table, found.live)
    strengths = found.strengths(asked.per_target)
    solution = with_scores(
        _fit(problem, form, approximation, strengths, choice),
        alphas=sent(found.grid, found.table.device),
        scores=found.scores,
        fold_scores=found.table,
        best_score=found.score,
        scoring=kind,
        dead_targets=live.dead,
        score_errors=found.scored.error,
    )
    return _with_dof(solution, found.scored, sent(found.place, found.table.device), problem)


def _fit(problem: Problem, form: Design, approximation: Sketch, strengths: Strengths, choice: Choice) -> RidgeSolution:
    solved = by_shared_products(problem, form, strengths)
    sketch = approximation() if solved is None else nystrom.empty(0, problem.y.device)
    return fit(problem, form, sketch, strengths, choice, solved)


def _check_criterion(cv: Any, groups: Any, scoring: str) -> None:
    if not isinstance(cv, str):
        return
    _check.option(cv, "cv", CRITERIA)
    if CRITERIA[cv].lacks:
        raise ValueError(
            f"`cv`={cv!r} needs {CRITERIA[cv].lacks}, which solver='cg' does not offer. Use cv='gcv', a number of "
            f"folds, or a direct solver."
        )
    if groups is not None:
        raise ValueError(f"`groups` has no use with `cv`={cv!r}. Pass a number of folds, e.g. cv=5.")
    if scoring != "mse":
        raise ValueError(f"`scoring`={scoring!r} needs held-out targets, and `cv`={cv!r} holds none out. Use folds.")


def _search(
    problem: Problem,
    form: Design,
    scorer: Scorer,
    alphas: Any,
    live: search.Live,
    per_target: bool,
    criterion: Criterion | None,
) -> tuple[search.Found[Scores], Sketch]:
    """Return strengths (L,), their scores and the best, and the approximation that serves them."""
    given = not isinstance(alphas, str)
    if given:
        grid = grid_of(alphas)
        if criterion is not None and bool((grid == 0).any()):
            raise ValueError("`alphas` should be positive for cv='gcv' of solver='cg', got 0. Drop it, or use folds.")
    elif alphas != "auto":
        raise ValueError(f"`alphas` should be 'auto' or strengths, got {alphas!r}.")
    else:
        rough = solve_many.approximate(form, 1.0, 1, 8, problem.rule.tol)
        grid = coarse_grid_by_norm(float(rough.eigvals[0]) if rough.rank else 0.0)
    approximation = cache(lambda: _approximation(problem, form, grid))

    def score(some: Tensor) -> Scores:
        return scorer(sent(some, problem.y.device), approximation)

    join = None if given else _merged
    table = operator.attrgetter("table")
    asked: dict[str, Any] = {"given": given, "per_target": per_target, "live": live}
    return search.search(score, grid, table, join=join, cells=4, **asked), approximation


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


def _of_all_rows(problem: Problem, form: Design, criterion: Criterion) -> Scorer:
    fixed = form.fixed.shape[1]

    def score(alpha: Tensor, approximation: Sketch) -> Scores:
        n = problem.rows
        table = _squares_of_all(problem, form, alpha, approximation)
        dof = trace.degrees_of_freedom(form, approximation(), alpha, problem.rule)
        warn_unless_converged(dof.residual, dof.steps, problem.rule._replace(tol=trace.tolerance(problem.rule)))

        def value(of_dof: Tensor) -> Tensor:
            return criterion.of(Fit(n, form.total[0], lambda: table, lambda: None, lambda: of_dof))

        at, step = dof.value + fixed, _STEP * dof.error
        values, error = value(at), (value(at + step) - value(at - step)).abs() / (2 * _STEP)
        error = torch.where(torch.isfinite(values), error, torch.inf)
        return Scores(criterion.sign * values[None], error, at - int(problem.objective.intercept), table)

    return score


def _squares_of_all(problem: Problem, form: Design, alpha: Tensor, approximation: Sketch) -> Tensor:
    """Return Σ s (y − ŷ)² of the fits to all rows, (L, t)."""
    shared = _shared(problem, form, alpha, lambda left, at: design.weigh(form, left**2, torch.zeros_like(at)).sum(0))
    if shared is not None:
        return shared
    columns, share, squares = solve_many.grid(alpha, False, problem.y.shape[1], 1), torch.ones_like(form.total), []
    for some in solve_many.blocks(form, columns):
        part = columns.at(some)
        block = solve_many.solve(form, approximation(), share, problem.y, part, problem.rule)
        warn_unless_converged(block.error, block.steps, problem.rule)
        squares.append(solve_many.residual_squares(form, problem.y, block, part))
    return torch.cat(squares).reshape(len(alpha), -1)


def _shared(problem: Problem, form: Design, alpha: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
    """Return a value of the residuals (n, c) of targets (c,) at every strength, (L, t), from products they share.

    None if sharing does not pay.
    """
    t, found, strengths = problem.y.shape[1], [], Strengths(alpha, False, float(alpha.min()), path=True)
    for run in solve_many.target_runs(form, t, len(alpha)):
        solved = by_shared_products(problem, form, strengths, run)
        if solved is None:
            return None
        target = torch.arange(t, device=alpha.device)[run].repeat(len(alpha))
        left = problem.y[:, target] - problem.X.matmul(solved.weight) - solved.bias
        found.append(value(left, target).reshape(len(alpha), -1))
    return torch.cat(found, 1)


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
        ids = sent(folds.fold_ids(cv, n, groups), device)
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


def _live(problem: Problem, masks: Masks, score: Score) -> search.Live:
    """Return which targets vary in which folds, if the score needs that."""
    varies = _variances(problem.given, masks.held) > 0
    y = problem.given if problem.sample_weight is None else problem.given[problem.sample_weight > 0]
    return search.Live(varies if score.varying else None, ~target_scores.varies(y))


def _folds(problem: Problem, masks: Masks, score: Score) -> Scorer:
    form = design.design(problem.X, masks.train, problem.objective)
    every = problem.sample_weight.sum() if problem.sample_weight is not None else float(problem.X.shape[0])

    def of_fold(k: int, left: Tensor, target: Tensor) -> Tensor:
        rows = (masks.held[:, k] > 0).nonzero()[:, 0]
        return score(left[rows], problem.given[rows][:, target], masks.held[rows, k])

    def by_shared(alpha: Tensor) -> Tensor | None:
        found = []
        for k in range(form.sets):
            table = _shared(problem, form.one(k), alpha, partial(of_fold, k))
            if table is None:
                return None
            found.append(table)
        return torch.stack(found)

    def scores(alpha: Tensor, approximation: Sketch) -> Scores:
        shared = by_shared(alpha)
        if shared is not None:
            return Scores(score.sign * shared)
        t, K = problem.y.shape[1], form.sets
        columns, found = solve_many.grid(alpha, False, t, K), []
        for some in solve_many.blocks(form, columns):
            part = columns.at(some)
            block = solve_many.solve(form, approximation(), form.total / every, problem.y, part, problem.rule)
            warn_unless_converged(block.error, block.steps, problem.rule)
            weight, bias = design.completed(form, block.weight, block.fixed, part.part, problem.objective.intercept)
            left = problem.y[:, part.target] - problem.X.matmul(weight) - bias
            for k in range(form.sets):
                inside = (part.part == k).nonzero()[:, 0]
                if len(inside):
                    found.append(of_fold(k, left[:, inside], part.target[inside]))
        return Scores(score.sign * torch.cat(found).reshape(K, -1, t))

    return scores


def _variances(y: Tensor, held: Tensor) -> Tensor:
    """Return the weighted variance of the held-out targets, (K, t)."""
    total = held.sum(0)[:, None]
    mean = held.T @ y / total
    variance = torch.stack([(h[:, None] * (y - m) ** 2).sum(0) for h, m in zip(held.T, mean, strict=True)]) / total
    noise = (10 * torch.finfo(variance.dtype).eps * mean) ** 2
    return torch.where(variance > noise, variance, 0)
