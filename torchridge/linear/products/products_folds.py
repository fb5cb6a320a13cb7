"""Cross-validation by products with X alone: folds as weights of rows, and GCV with a stochastic trace."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear import search
from torchridge.linear.arguments import Asked, grid_of
from torchridge.linear.products.products import Problem, check, fit, warn_unless_converged, with_scores
from torchridge.linear.ridge.choose import Choice
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.search import refuse_one_row
from torchridge.solvers.device import sent
from torchridge.solvers.iterative import solve_many, trace
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


Scorer = Callable[[Tensor, Nystrom], Scores]


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
        fit(problem, form, approximation, strengths, choice),
        alphas=sent(found.grid, found.table.device),
        scores=found.scores,
        fold_scores=found.table,
        best_score=found.score,
        scoring=kind,
        dead_targets=live.dead,
        score_errors=found.scored.error,
    )
    return _with_dof(solution, found.scored, sent(found.place, found.table.device), problem)


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
) -> tuple[search.Found[Scores], Nystrom]:
    """Return strengths (L,), their scores and the best, and the approximation that served them."""
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
    approximation = _approximation(problem, form, grid)

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

        def value(of_dof: Tensor) -> Tensor:
            return criterion.of(Fit(n, form.total[0], lambda: table, lambda: None, lambda: of_dof))

        at, step = dof.value + fixed, _STEP * dof.error
        values, error = value(at), (value(at + step) - value(at - step)).abs() / (2 * _STEP)
        error = torch.where(torch.isfinite(values), error, torch.inf)
        return Scores(criterion.sign * values[None], error, at - int(problem.objective.intercept), table)

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

    def scores(alpha: Tensor, approximation: Nystrom) -> Scores:
        t, K = problem.y.shape[1], masks.held.shape[1]
        columns, found = solve_many.grid(alpha, False, t, K), []
        for some in solve_many.blocks(form, columns):
            part = columns.at(some)
            block = solve_many.solve(form, approximation, form.total / every, problem.y, part, problem.rule)
            warn_unless_converged(block.error, block.steps, problem.rule)
            found.append(_held_scores(problem, form, block, part, masks.held, score))
        return Scores(score.sign * torch.cat(found).reshape(K, -1, t))

    return scores


def _held_scores(
    problem: Problem, form: Design, block: solve_many.Block, columns: solve_many.Columns, held: Tensor, score: Score
) -> Tensor:
    """Return a score of the rows that are held out, (c,)."""
    weight, bias = design.completed(form, block.weight, block.fixed, columns.part, problem.objective.intercept)
    left = problem.y[:, columns.target] - problem.X.matmul(weight) - bias
    found = left.new_empty(left.shape[1])
    for k in set(columns.part.tolist()):
        inside = (columns.part == k).nonzero()[:, 0]
        rows = (held[:, k] > 0).nonzero()[:, 0]
        y = problem.given[rows][:, columns.target[inside]]
        found[inside] = score(left[rows][:, inside], y, held[rows, k])
    return found


def _variances(y: Tensor, held: Tensor) -> Tensor:
    """Return the weighted variance of the held-out targets, (K, t)."""
    total = held.sum(0)[:, None]
    mean = held.T @ y / total
    variance = torch.stack([(h[:, None] * (y - m) ** 2).sum(0) for h, m in zip(held.T, mean, strict=True)]) / total
    noise = (10 * torch.finfo(variance.dtype).eps * mean) ** 2
    return torch.where(variance > noise, variance, 0)
