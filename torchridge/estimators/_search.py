"""The choice of a strength as scikit-learn makes it: leave-one-out in closed form, or folds, the first best wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.estimators._few_rows import Weights
from torchridge.estimators._input import take
from torchridge.estimators._scorers import r2_by_target
from torchridge.linear.arguments import Options, Strengths
from torchridge.linear.matrices import operator_of
from torchridge.linear.ridge.prepare import Prepared, prepare_rows
from torchridge.linear.ridge.ridge import ridge, ridge_path
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.search import first_best, mean_over_folds, warn_of_edge, warn_unless_resolved
from torchridge.solvers.iterative.sparse_gram import LeaveOneOut, gram
from torchridge.solvers.kernels.few_rows import WholeDual
from torchridge.solvers.kernels.left_out import leave_one_out_errors
from torchridge.solvers.least_squares.each_fold import FoldMoments, fold_weights
from torchridge.solvers.least_squares.scorers import Whole
from torchridge.solvers.least_squares.target_scores import SCORES
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.rows import Rows

# Scores of a fold that follow from its squared errors and its variance, (K, L, t) and (K, t), without a prediction.
_FROM_SQUARES: Mapping[Any, Callable[[Tensor, Tensor], Tensor]] = {
    None: lambda squares, variances: r2_by_target(squares, variances[:, None]),
    "r2": lambda squares, variances: r2_by_target(squares, variances[:, None]),
    "neg_mean_squared_error": lambda squares, _: -squares,
    "neg_root_mean_squared_error": lambda squares, _: -squares.sqrt(),
}

# Relative residual of the fits of folds on sparse rows, which are scored and then forgotten; scikit-learn has 1e-4.
_FOLD_TOL = 1e-7

# Leave-one-out residuals held at once.
_ERRORS = 2**24

# (predictions (n, t), targets (n, t)) of all rows at one strength → its score, or one for each target.
ScoreRows = Callable[[Tensor, Tensor], Any]

# (fold, its fit at a strength, the strength) → score on the rows that are held out.
ScoreFold = Callable[[int, RidgeSolution | Weights, float], float]


class Found(NamedTuple):
    """A strength, its score, and the fit at it."""

    alpha: Any  # a number, or an array (t,)
    score: Any
    solution: RidgeSolution
    results: Tensor | None = None  # (n, t, L)


def by_sparse_folds(
    X: Any, y: Tensor, weight: Tensor | None, alphas: Tensor, parts: list[Split], *, intercept: bool, score: ScoreFold
) -> Found:
    """Choose by the mean over folds of `score`, of a sparse matrix that is only multiplied with."""
    options: dict[str, Any] = {"fit_intercept": intercept, "solver": "cg"}
    scores = np.empty((len(parts), len(alphas)))
    for k, (train, _) in enumerate(parts):
        own = None if weight is None else weight[train]
        path = ridge_path(take(X, train), y[train], alphas, sample_weight=own, tol=_FOLD_TOL, **options)
        scores[k] = [score(k, fit, float(alpha)) for fit, alpha in zip(_fits(path), alphas, strict=True)]
    mean = over_folds(scores)
    best = int(best_places(mean))
    warn_of_edge(alphas, torch.tensor([best]))
    alpha = float(alphas[best])
    return Found(alpha, float(mean[best]), ridge(X, y, alpha, sample_weight=weight, **options))


def sparse_leave_one_out(
    X: Any, y: Tensor, weight: Tensor | None, alphas: Tensor, *, intercept: bool, **asked: Any
) -> Found:
    """Choose by exact leave-one-out of sparse rows, from their Gram matrix (n, n). Cost: n³ for each of few strengths.

    More than a few share an eigendecomposition.
    """
    rows, target = operator_of(X, "sparse"), y.double()
    share = torch.ones_like(target[:, :1]) if weight is None else weight[:, None]
    center = rows.rmatmul((share / share.sum()) * float(intercept))[:, 0]
    known = LeaveOneOut(gram(rows, center), target, weight, intercept=intercept)
    scores, results = _judged(known.errors, target, weight, alphas, **asked)
    best = best_places(scores)
    warn_of_edge(alphas, torch.as_tensor(best).reshape(-1))
    values, score = alphas.cpu().numpy()[best], np.take_along_axis(scores, best[None], 0)[0]
    if best.ndim == 0:
        values, score = float(values), float(score)
    options: dict[str, Any] = {"sample_weight": weight, "fit_intercept": intercept, "solver": "cg"}
    return Found(values, score, ridge(X, y, torch.as_tensor(values, dtype=torch.float64), **options), results)


def _options(intercept: bool) -> Options:
    return Options(intercept, False, None, None, "auto", torch.float64)


def over_folds(scores: Any) -> Any:
    """Return the mean (L,) of scores (K, L) over folds; a fold without any is left out, with a warning."""
    mean = scores.mean(0)
    return mean_over_folds(torch.from_numpy(scores)).numpy() if np.isnan(mean).any() else mean


def best_places(scores: Any) -> Any:
    """Return the index of the best of scores (L,), or of each column of (L, t), an array; of equal ones the first."""
    table = torch.as_tensor(scores, dtype=torch.float64)
    best = first_best(table.reshape(len(table), -1)).numpy()
    return best.reshape(scores.shape[1:])


def _fit(prepared: Prepared, alphas: Tensor, best: Any, intercept: bool) -> RidgeSolution:
    index = torch.as_tensor(best, device=alphas.device).reshape(-1)
    chosen = alphas[index]
    return prepared.solution(Strengths(chosen, len(index) > 1, float(chosen.min())))


def _found(prepared: Prepared, alphas: Tensor, scores: Any, intercept: bool, results: Tensor | None) -> Found:
    if np.isnan(scores).any():
        flat = torch.from_numpy(scores).reshape(len(scores), -1)
        scores = mean_over_folds(flat.mean(1)[None]).numpy() if scores.ndim == 1 else scores
    best = best_places(scores)
    warn_of_edge(alphas, torch.as_tensor(best).reshape(-1))
    values = alphas.cpu().numpy()[best]
    score = np.take_along_axis(scores, best[None], 0)[0]
    single = best.ndim == 0
    solution = _fit(prepared, alphas, best, intercept)
    weakest = float(np.mean(scores[int(alphas.argmin())]))
    warn_unless_resolved(prepared.scorer.precision, weakest, float(np.mean(score)), torch.float64)
    return Found(float(values) if single else values, float(score) if single else score, solution, results)


def leave_one_out(
    X: Tensor,
    y: Tensor,
    weight: Tensor | None,
    alphas: Tensor,
    *,
    intercept: bool,
    score: ScoreRows | None = None,
    store: bool = False,
    per_target: bool = False,
) -> Found:
    """Choose by exact leave-one-out: by −mean(s e²), or by `score` of all the held-out predictions together.

    Kept with `store`: s e², or the predictions if there is a `score`. Cost n d min(n, d) and n d L t.
    """
    rows = Rows(*_check.rows(X, y, weight))
    prepared = prepare_rows(rows, "loo", None, _options(intercept))
    assert isinstance(prepared.scorer, (Whole, WholeDual))
    n, per_target = y.shape[0], per_target and y.shape[1] > 1
    if score is None and not store:
        total = float(n) if weight is None else float(weight.sum())
        table = -prepared.scorer.squares(alphas)[0] * (total / n)
        scores = (table if per_target else table.mean(1)).cpu().numpy()
        return _found(prepared, alphas, scores, intercept, None)
    scores, results = _judged(
        lambda some: leave_one_out_errors(prepared.scorer, rows, some),  # type: ignore[arg-type]
        y, weight, alphas, score=score, store=store, per_target=per_target,
    )  # fmt: skip
    return _found(prepared, alphas, scores, intercept, results)


def _judged(
    errors_at: Callable[[Tensor], Tensor], y: Tensor, weight: Tensor | None, alphas: Tensor, *,
    score: ScoreRows | None = None, store: bool = False, per_target: bool = False,
) -> tuple[Any, Tensor | None]:  # fmt: skip
    """Return the score of every strength, by target if asked for, and (n, t, L) of what is kept with `store`."""
    columns, each, per_target = [], [], per_target and y.shape[1] > 1
    for some in torch.tensor_split(alphas, math.ceil(len(alphas) * y.numel() / _ERRORS)):
        for errors in errors_at(some).unbind(1):  # (n, t)
            if score is None:
                column = errors**2 if weight is None else errors**2 * weight[:, None]
                each.append((-column.mean(0) if per_target else -column.mean()).cpu().numpy())
            else:
                column = y.double() - errors
                each.append(np.asarray(score(column, y)))
            if store:
                columns.append(column)
    return np.stack(each), torch.stack(columns, -1) if store else None


def by_folds(
    X: Tensor,
    y: Tensor,
    weight: Tensor | None,
    alphas: Tensor,
    parts: list[Split],
    *,
    intercept: bool,
    scoring: Any,
    score: ScoreFold | None,
    per_target: bool = False,
) -> Found:
    """Choose by the mean over folds of a score of held-out rows, for each target by itself with `per_target`.

    Without `score`, by a name whose score follows from moments; otherwise by `score` of every fold's weights.
    """
    rows = Rows(*_check.rows(X, y, weight))
    prepared = prepare_rows(rows, parts, None, _options(intercept))
    if score is None:
        scores = _from_prepared(prepared, alphas, scoring, parts, per_target and y.shape[1] > 1)
    elif per_target:
        raise ValueError(
            f"`alpha_per_target`=True with folds needs a score that moments tell, got `scoring`="
            f"{scoring!r}. Use one of {[*filter(None, _FROM_SQUARES), 'correlation']}."
        )
    else:
        scores = np.asarray(
            [_score_fold(k, prepared, rows, alphas, parts, score, intercept) for k in range(len(parts))]
        )
    return _found(prepared, alphas, over_folds(scores), intercept, None)


def follows_from_moments(scoring: Any, weight: Tensor | None, given: Mapping[str, Any]) -> bool:
    """Whether a prepared problem tells the scores of folds: held-out rows weigh what they weigh in training."""
    known = scoring is None or (isinstance(scoring, str) and scoring in (*_FROM_SQUARES, "correlation"))
    return known and set(given) == (set() if weight is None else {"sample_weight"})


def _from_prepared(prepared: Prepared, alphas: Tensor, scoring: Any, parts: list[Split], per_target: bool) -> Any:
    if scoring == "correlation":
        found = prepared.scorer.scores(SCORES[scoring], alphas)  # (K, L, t)
        return (found if per_target else found[:, :, ~prepared.dead].mean(-1)).cpu().numpy()
    squares, variances = prepared.scorer.squares(alphas), prepared.scorer.variances()
    assert variances is not None
    scores = _FROM_SQUARES[scoring](squares, variances)
    scores = scores if per_target else scores.mean(-1)  # (K, L, t) or (K, L)
    if scoring in (None, "r2"):
        scores[torch.tensor([len(test) < 2 for _, test in parts])] = torch.nan
    return scores.cpu().numpy()


def _fits(path: RidgeSolution) -> list[RidgeSolution | Weights]:
    """Return the fit of every strength, in the dual form if the weights of one (t, d) outweigh the rows."""
    L, t = path.bias.shape
    if path.dual is not None and t > path.n_samples:
        return [path.at(i) for i in range(L)]
    return [Weights(*pair) for pair in zip(path.weight, path.bias, strict=True)]


def _score_fold(
    k: int, prepared: Prepared, rows: Rows, alphas: Tensor, parts: list[Split], score: ScoreFold, intercept: bool
) -> list[float]:
    if isinstance(prepared.scorer, FoldMoments):
        weight, bias = fold_weights(prepared.scorer, k, alphas)
        fits: list[RidgeSolution | Weights] = [
            Weights(w, b) for w, b in zip(weight.permute(1, 2, 0), bias, strict=True)
        ]
    else:
        train = parts[k][0].to(rows.X.device)
        own = None if rows.sample_weight is None else rows.sample_weight[train]
        path = ridge_path(rows.X[train], rows.y[train], alphas, sample_weight=own, fit_intercept=intercept)
        fits = _fits(path)
    return [score(k, fit, float(alpha)) for fit, alpha in zip(fits, alphas, strict=True)]
