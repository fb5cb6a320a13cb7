"""`ridge_cv`: the strength chosen by cross-validation in closed form, and the fit at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from torchridge._ranks import Group
from torchridge.linear.arguments import Asked, Options
from torchridge.linear.products.products_folds import cross_validate as cross_validate_by_products
from torchridge.linear.ridge import by_metric
from torchridge.linear.ridge.cross_validation import cross_validate
from torchridge.linear.ridge.over_ranks import cross_validate_over_ranks
from torchridge.linear.ridge.problem import refuse_own, route_cv
from torchridge.linear.ridge.ridge import ridge, ridge_path
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.types import CV, Groups, Scoring
from torchridge.solvers.iterative.operators import LinearOperator
from torchridge.solvers.moments.moments import Moments


def ridge_cv(
    X: Tensor | Moments | LinearOperator | Any,
    y: Tensor | None = None,
    alphas: Tensor | Sequence[float] | Literal["auto"] = "auto",
    cv: CV = None,
    *,
    groups: Groups = None,
    scoring: Scoring = "mse",
    alpha_per_target: bool = False,
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    penalty_factors: Tensor | None = None,
    prior: Tensor | None = None,
    solver: str = "auto",
    moments_dtype: torch.dtype = torch.float64,
    tol: float | None = None,
    max_iter: int | None = None,
    rank: int | None = None,
    kernel: str | None = None,
    max_bytes: int | None = None,
    process_group: Group | None = None,
) -> RidgeSolution:
    r"""Choose the strength by cross-validation in closed form, and fit at it.

    Sources: Golub, Heath & Wahba 1979, doi:10.1080/00401706.1979.10489751 (GCV); MacKay 1992,
    doi:10.1162/neco.1992.4.3.415 (evidence).

    K folds of L strengths cost one pass over the data and K eigendecompositions: the moments of each fold are kept, a
    training part is the merge of the other folds, and the held-out error of every strength follows from the moments of
    the fold that was left out. Leave-one-out is exact, from the leverages. Ties take the stronger penalty.

    Args:
        X: (n, d); (\*b, n, d) a batch of problems, each with its own strength; or `Moments`, for cv="gcv" or
            "evidence", and for folds if they were updated with ``fold=`` (then `cv` may be left out).
        y: as in `ridge`.
        alphas: (L,) strengths, or "auto": a grid from the eigenvalues of the data, refined around the minimum.
        cv: "gcv" (the default for data), "loo", "evidence", a number of folds K (contiguous runs of rows, as
            scikit-learn's `KFold` makes them; whole groups if `groups` are given), fold ids (n,), a splitter with
            ``split``, or an iterable of (train, test) row numbers.
        groups: (n,) labels; rows of one group are never on both sides of a split.
        scoring: "mse"; or, for folds and "loo", "r2" or "correlation" (Pearson's); or a metric of the predictions of
            held-out rows: a callable of (y_true, y_score) that is larger for a better fit, an object with `update` and
            `compute` such as torchmetrics' (it says which way is better), a scorer of scikit-learn or its name; or
            several of them, a collection or a mapping, of which the first chooses and all are kept in `metrics`. The
            score of a strength is the mean over folds; a metric sees all leave-one-out predictions together, and all
            targets unless `alpha_per_target`. Targets that are constant over all rows (`dead_targets`) have neither R²
            nor a correlation, and count for nothing in a strength that targets share; a fold in which a target is
            constant is left out of its mean.
        alpha_per_target: choose a strength for each target; otherwise the best mean over targets.
        sample_weight: as in `ridge`; held-out errors are weighted too.
        fit_intercept: as in `ridge`.
        standardize: as in `ridge`, anew inside every training part.
        penalty_factors: as in `ridge`.
        prior: as in `ridge`.
        solver: "auto", "spectral" (moments of the folds), "dual" (n × n), or "cg", which offers "gcv" and folds: all
            folds, strengths and targets share its products. GCV then takes the effective degrees of freedom from 16
            random probes, and `score_errors` is the standard error that they leave.
        moments_dtype: as in `ridge`.
        tol: as in `ridge`.
        max_iter: as in `ridge`.
        rank: as in `ridge`.
        kernel: as in `ridge`.
        max_bytes: for folds of few rows, what scoring may take above X, y and the answer; by default about what the
            matrices of n × n take and 64 MiB, more than which brings no speed.
        process_group: as in `ridge`. A number of folds then makes runs of the ranks' rows one after the other in the
            order of ranks, or of whole `groups` (integers or strings) wherever their rows are; fold ids come for this
            rank's rows, or for all rows in that order. The folds, and so the answer, are those of one process on
            all rows. Leave-one-out is exact; splitters are refused.

    Returns:
        `RidgeSolution` with `alphas`, `scores` (L, t), `fold_scores` (K, L, t), `best_score` besides; a metric gives
        one value for all targets, (L, 1), unless `alpha_per_target`.

    Raises:
        ValueError: as `ridge`; on folds that cannot be made, and on a single row without folds.
        TypeError: as `ridge`.

    Warns:
        GridEdgeWarning: if the best of the given strengths is the first or last of several.

    Cost: the Gram matrix, K eigendecompositions, and K·d²·r·t for the scores, r about 15. With training parts of fewer
    rows than features, the Gram matrix of the rows, one eigendecomposition (one more for each split whose training part
    is not all other rows, and a Gram matrix for each with `standardize`), n²·r·t for the scores and 2·n²·t for the fit;
    targets are taken in batches. A metric costs K paths and the predictions n·d·L·t.

    Example:
        >>> import torch
        >>> from torchridge import ridge_cv
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 5, generator=g, dtype=torch.float64)
        >>> y = X.sum(1) + torch.randn(60, generator=g, dtype=torch.float64)
        >>> solution = ridge_cv(X, y, [0.1, 1.0, 10.0, 100.0], cv=5)
        >>> solution.alpha.item(), tuple(solution.scores.shape), tuple(solution.fold_scores.shape)
        (1.0, (4, 1), (5, 4, 1))
    """
    shared = (fit_intercept, standardize, penalty_factors, prior, solver, moments_dtype, tol, max_iter, rank)
    options = Options(*shared, kernel, max_bytes)
    asked = Asked(X, y, alphas, cv, groups, scoring, alpha_per_target, sample_weight, options)
    by_predictions = by_metric.is_metric(scoring)
    if process_group is not None:
        refuse_own(options, over_ranks=True)
        if by_predictions:
            raise ValueError("`scoring` over ranks should be 'mse' or 'r2': a metric would need all predictions.")
        return cross_validate_over_ranks(asked, process_group)
    if by_predictions:
        return by_metric.cross_validate(asked, by_metric.Fits(ridge, ridge_path, ridge_cv))
    data, choice = route_cv(asked)
    asked = asked._replace(X=data)
    return cross_validate(asked) if choice is None else cross_validate_by_products(asked, choice)
