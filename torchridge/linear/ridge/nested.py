"""Nested cross-validation: strengths chosen by inner folds of each outer training part, scored on what it held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.arguments import Options, check_options
from torchridge.linear.bands.banded import splits_of
from torchridge.linear.ridge.ridge_cv import ridge_cv
from torchridge.linear.types import CV, Groups
from torchridge.solvers.device import sent
from torchridge.solvers.kernels import gram_matrix
from torchridge.solvers.least_squares import target_scores
from torchridge.solvers.least_squares.criteria import from_moments
from torchridge.solvers.moments import finite
from torchridge.solvers.moments.folds import Split, check_groups
from torchridge.solvers.moments.rows import Rows, result_dtype


@dataclass(frozen=True, eq=False)
class NestedRidgeCV:
    """Scores of held-out rows at strengths that they had no part in.

    Attributes:
        scores: (K, t) score of every outer fold and target; NaN if a target is constant in a fold (not for "mse").
        alpha: (K,) the strength of every outer fold; (K, t) if each target has its own.
        scoring: "mse", "r2" or "correlation".
        predictions: (n, t) of every row by the fit that held it out, (n,) if y came as (n,); of a row that is held
            out several times the mean, NaN if it never is. None unless asked for.
        dead_targets: (t,) whether a target is constant over all rows.

    Example:
        >>> import torch
        >>> from torchridge import nested_ridge_cv
        >>> X = torch.arange(12.0)[:, None]
        >>> found = nested_ridge_cv(X, 2 * X[:, 0] + 1, [0.0], cv=3, outer=4, predictions=True)
        >>> found.alpha, found.predictions[:3].round(decimals=2)
        (tensor([0., 0., 0., 0.], dtype=torch.float64), tensor([1., 3., 5.]))
    """

    scores: Tensor
    alpha: Tensor
    scoring: str
    predictions: Tensor | None
    dead_targets: Tensor

    @property
    def score(self) -> Tensor:
        """The mean over the outer folds that have a score, (t,)."""
        return self.scores.nanmean(0)


def nested_ridge_cv(
    X: Tensor,
    y: Tensor,
    alphas: Tensor | list[float] | str = "auto",
    cv: CV = 5,
    *,
    outer: CV = 5,
    groups: Groups = None,
    scoring: str = "r2",
    alpha_per_target: bool = False,
    predictions: bool = False,
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    penalty_factors: Tensor | None = None,
    prior: Tensor | None = None,
    moments_dtype: torch.dtype = torch.float64,
    kernel: str | None = None,
) -> NestedRidgeCV:
    r"""Score ridge on outer folds, its strength chosen by inner folds of the rows that remain, and keep no weights.

    Source: Varma & Simon 2006, doi:10.1186/1471-2105-7-91. With a single strength, ``alphas=[alpha]``, these are plain
    out-of-fold scores and predictions.

    Args:
        X: (n, d), or a kernel (n, n) with kernel="precomputed".
        y: (n,) or (n, t).
        alphas: as in `ridge_cv`.
        cv: the inner folds, as in `ridge_cv`: a number (contiguous runs of rows), "gcv", "loo", "evidence" or a
            splitter.
        outer: the outer folds: a number (contiguous runs of rows), fold ids (n,), a splitter, or (train, test) row
            numbers.
        groups: (n,) labels; rows of one group are never on both sides of a split, outer or inner.
        scoring: of the outer folds, and of the inner ones where they hold targets out: "r2", "mse", "correlation".
        alpha_per_target: choose a strength for each target.
        predictions: whether to keep the predictions of held-out rows.
        sample_weight: as in `ridge_cv`.
        fit_intercept: as in `ridge_cv`.
        standardize: as in `ridge_cv`.
        penalty_factors: as in `ridge_cv`.
        prior: as in `ridge_cv`.
        moments_dtype: as in `ridge_cv`.
        kernel: as in `ridge_cv`.

    Returns:
        `NestedRidgeCV`.

    Raises:
        ValueError: as `ridge_cv`.
        TypeError: as `ridge_cv`.

    Warns:
        GridEdgeWarning: as `ridge_cv`, for each outer fold.

    Cost: that of `ridge_cv` on each outer training part; with fewer rows than features one Gram matrix serves all
    folds, unless features are standardized or penalized apart.

    Example:
        >>> import torch
        >>> from torchridge import nested_ridge_cv
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 5, generator=g, dtype=torch.float64)
        >>> y = X.sum(1) + torch.randn(60, generator=g, dtype=torch.float64)
        >>> found = nested_ridge_cv(X, y, cv=5, outer=3)
        >>> tuple(found.scores.shape), bool(found.score > 0.5)
        ((3, 1), True)
    """
    _check.option(scoring, "scoring", target_scores.SCORES)
    _check.option(predictions, "predictions", (True, False))
    own = (fit_intercept, standardize, penalty_factors, prior, "auto", moments_dtype, None, None, None, kernel)
    options = Options(*own)
    check_options(options)
    _check.is_tensor(X, "X")
    _check.is_tensor(y, "y")
    rows = Rows(*_check.rows(X, y, sample_weight))
    labels = None if groups is None else check_groups(groups, len(X))
    splits = splits_of(outer, len(X), rows.y, labels)
    inner: dict[str, Any] = {"alpha_per_target": alpha_per_target, "fit_intercept": fit_intercept}
    inner |= {"moments_dtype": moments_dtype}
    inner["scoring"] = "mse" if _check.one_of(cv, *from_moments()) else scoring
    if _one_kernel(rows, options):
        data, inner["kernel"] = _kernel(rows, options), "precomputed"
    else:
        data = X
        inner |= {"standardize": standardize, "penalty_factors": penalty_factors, "prior": prior, "kernel": kernel}
    return _nested(_Outer(data, rows, labels, splits, scoring, predictions), alphas, cv, inner)


@dataclass(frozen=True)
class _Outer:
    data: Tensor  # (n, d), or a kernel (n, n)
    rows: Rows
    labels: Tensor | None
    splits: list[Split]
    scoring: str
    keep: bool


def _one_kernel(rows: Rows, options: Options) -> bool:
    """Whether one kernel serves all folds, and is the smaller one."""
    if options.kernel == "precomputed":
        return False
    plain = not options.standardize and options.penalty_factors is None and options.prior is None
    return plain and rows.X.shape[0] < rows.X.shape[1]


def _kernel(rows: Rows, options: Options) -> Tensor:
    n, dtype = len(rows.X), options.moments_dtype
    share = torch.full((n,), 1 / n, dtype=dtype, device=rows.X.device)
    objective = options.objective(rows.X.shape[1], rows.y.shape[1], rows.X)
    found = gram_matrix.kernel_about(rows, share, objective, dtype)
    finite.check_kernel(found.gram, found.target, rows)
    return found.gram


def _nested(outer: _Outer, alphas: Any, cv: Any, inner: dict[str, Any]) -> NestedRidgeCV:
    X, rows = outer.data, outer.rows
    square = inner["kernel"] == "precomputed"
    dtype, y = result_dtype(rows.X.dtype), rows.y
    total, times = torch.zeros_like(y, dtype=dtype), torch.zeros(len(y), 1, dtype=dtype, device=y.device)
    scores, strengths = [], []
    for train, test in ((sent(a, y.device), sent(b, y.device)) for a, b in outer.splits):
        own = dict(inner)
        if rows.sample_weight is not None:
            own["sample_weight"] = rows.sample_weight[train]
        if outer.labels is not None and not isinstance(cv, str):
            own["groups"] = outer.labels.to(train.device)[train]
        fitted = X[train][:, train] if square else X[train]
        solution = ridge_cv(fitted, y[train], alphas, cv, **own)
        new = X[test][:, train] if square else X[test]
        weight = None if rows.sample_weight is None else rows.sample_weight[test]
        scores.append(solution.score(new, y[test], scoring=outer.scoring, sample_weight=weight).to(dtype))
        strengths.append(solution.alpha)
        if outer.keep:
            total.index_add_(0, test, solution.predict(new).to(dtype))
            times.index_add_(0, test, torch.ones_like(times[: len(test)]))
    predictions = None
    if outer.keep:
        predictions = total / torch.where(times > 0, times, torch.nan)
        predictions = predictions[:, 0] if rows.vector_target else predictions
    dead = ~target_scores.varies(rows.counted.y)
    return NestedRidgeCV(torch.stack(scores), torch.stack(strengths), outer.scoring, predictions, dead)
