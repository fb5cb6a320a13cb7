"""L2 logistic regression: `logistic` at one strength or a path of them, `logistic_cv` at the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Group
from torchridge.linear.logistic.cross_validation import OWN, Chosen, cross_validate, fit_data
from torchridge.linear.logistic.over_ranks import check_ranks
from torchridge.linear.logistic.problem import (
    Data,
    Settings,
    check_data,
    check_settings,
    check_strengths,
    warn_unless_converged,
)
from torchridge.linear.logistic.solution import LogisticSolution
from torchridge.linear.types import CV, Groups, Scoring
from torchridge.solvers.cross_entropy.fit import Fit


def logistic(
    X: Tensor | Any,
    y: Tensor,
    C: float | Sequence[float] | Tensor | None = None,
    *,
    strength: float | Sequence[float] | Tensor | None = None,
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    tol: float | None = None,
    max_iter: int = 1000,
    max_elements: int = 2**24,
    dtype: torch.dtype | None = None,
    process_group: Group | None = None,
) -> LogisticSolution:
    """Minimize C Σ_i s_i CE(y_i, W x_i + b) + ½‖W‖² at one strength or at each of a path.

    CE is the cross-entropy of a softmax over all classes, or of the one logit of the second of two classes, as in
    scikit-learn. The bias b is never penalized. A path costs far less than its strengths one by one: a single
    eigendecomposition preconditions them all, and each starts from its neighbour. A single strength needs none: it is
    found by Newton's method if the Hessian is small, else by L-BFGS on the features themselves.

    The answer is unique, for separable classes too, which `separated` reports. Collinear features share their weight
    (minimum norm). A class whose rows all have weight zero gets probability zero; if that leaves two of several, the
    fit is that of these two alone, with one logit.

    Args:
        X: (n, d) features. Scales may differ; the penalty is in the units given. Also a sparse tensor (CSR, CSC, COO)
            or a scipy.sparse matrix, which is only multiplied with, and centred in its products alone.
        y: (n,) labels, integers or booleans; or (n, h) for h independent heads over the same rows.
        C: strength as scikit-learn counts it: a number, or (L,) in any order. 1 by default; infinity means no penalty.
        strength: instead of C, λ times Σ W² added to the mean loss: C = 1 / (2 λ Σ_i s_i); 0 means no penalty.
        sample_weight: (n,), s ≥ 0.
        fit_intercept: whether b is fitted; if not, it is zero.
        tol: the relative gap of the objective to stop at; 1e-6 for float32 results, 1e-10 for float64. At 1e-7 and
            above products with much data are taken in float32 if the Hessian is no worse conditioned than that
            resolves, and in float64 again if it does not suffice.
        max_iter: evaluations of loss and gradient for one strength.
        max_elements: bound on the logits, rows × classes × strengths × heads, held at once.
        dtype: of the result, torch.float32 or torch.float64; by default that of X.
        process_group: "world" or a `torch.distributed.ProcessGroup`: X, y and sample_weight are this rank's rows,
            uneven and empty ranks, (0, d), included, and every rank gets the answer for all rows. The first rank
            solves; the others evaluate loss and gradient of their rows for it. Rows and logits stay where they are.

    Returns:
        `LogisticSolution` with weight (L, h, c, d), without the dimensions that C and y lack; c is 1 for two classes.

    Raises:
        ValueError: on wrong shapes, NaN or infinity (naming the first row), strengths that are not above zero, mixed
            devices, negative weights, and a y that holds a single class.
        TypeError: on inputs of the wrong type, such as labels in floating point.
        RankError: over ranks, if another one died, failed or disagrees, within the group's timeout.

    Warns:
        ConvergenceWarning: if `max_iter` was reached before `tol`; the solution says which in `converged`.
        SeparationWarning: without a penalty, if classes are separable, wholly or in part: no optimum exists, as the
            weights would grow without bound. Those of a very weak penalty are returned, with an infinite `gap`.

    Without a penalty the objective is Σ_i s_i CE. Small problems are solved by Newton's method to rounding, whatever
    `tol`; what is large or over ranks at λ = 1e-12 of the features' variances, whose answer is the same to about 1e-7.

    Cost: 3·n·d² + 9·d³ flops once for a path, then 4·n·d·c flops for each evaluation, of which a strength takes about
    1 to 20. For a sparse X two products with c columns an evaluation, and 20 vectors of (c, d) in memory.

    Source: preconditioned L-BFGS; Böhning (1992), doi:10.1007/BF00048682, bounds the Hessian in the same eigenbasis.

    Example:
        >>> import torch
        >>> from torchridge.linear.logistic.logistic import logistic
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> y = torch.tensor([0, 1, 0, 1])
        >>> path = logistic(X, y, C=[0.1, 1.0])
        >>> path.weight[:, 0, 0].round(decimals=4)
        tensor([0.0889, 0.4529], dtype=torch.float64)
        >>> path.at(1).predict(X)
        tensor([0, 0, 1, 1])
    """
    asked = {"fit_intercept": fit_intercept, "tol": tol, "max_iter": max_iter, "max_elements": max_elements}
    if process_group is None:
        data, settings = check_data(X, y, sample_weight), check_settings(X, dtype=dtype, **asked)
    else:
        given = {**asked, "dtype": dtype}
        data, settings = check_ranks(X, y, sample_weight, given, "logistic", process_group, C=C, strength=strength)
    strengths = check_strengths(C, strength, data)
    return solve(data, strengths, settings)


def logistic_cv(
    X: Tensor | Any,
    y: Tensor,
    Cs: int | Sequence[float] | Tensor = 10,
    *,
    cv: CV = 5,
    groups: Groups = None,
    scoring: Scoring = "log_loss",
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    tol: float | None = None,
    max_iter: int = 1000,
    max_elements: int = 2**24,
    dtype: torch.dtype | None = None,
    process_group: Group | None = None,
) -> LogisticSolution:
    """Choose the strength by held-out rows, and fit all rows at it.

    All folds and strengths are solved together over the same rows, in one eigenbasis: a fold is a set of row weights.
    The objective of a fold is that of `logistic`, summed over its training rows. Ties take the stronger penalty.

    Args:
        X: as in `logistic`.
        y: (n,), as in `logistic`, one head.
        Cs: (L,) strengths as scikit-learn counts them, or how many between 1e-4 and 1e4.
        cv: number of folds (stratified by class, as scikit-learn's `StratifiedKFold` makes them; whole groups with
            `groups`); fold ids (n,); a splitter; or (train, test) row numbers, of which a single pair is a holdout.
        groups: (n,), rows that are held out together.
        scoring: "log_loss" (its negative), "accuracy"; or a metric of the predictions of held-out rows: a callable of
            (y_true, y_score) that is larger for a better fit, where y_score holds the probabilities (m, k), or those
            of the second of two classes (m,); an object with `update` and `compute` such as torchmetrics', which is
            given probabilities and the places of the labels among the sorted classes, and says which way is better; a
            scorer of scikit-learn or its name; or several, a collection or a mapping, of which the first chooses and
            all are kept in `metrics`. The two names and scikit-learn's scorers are weighted by `sample_weight`.
        sample_weight: as in `logistic`.
        fit_intercept: as in `logistic`.
        tol: as in `logistic`.
        max_iter: as in `logistic`.
        max_elements: as in `logistic`.
        dtype: as in `logistic`.
        process_group: as in `logistic`. A number of folds, and fold ids, mean what they mean in `ridge_cv` over ranks
            (stratified by class, as here, from the labels of all ranks); splitters and callables are refused.

    Returns:
        `LogisticSolution` of all rows at the best strength, with `Cs`, `scores` (L, 1), `fold_scores` (K, L, 1) and
        `best_score` besides: larger is better.

    Raises:
        ValueError: as `logistic`, and if a fold is fitted on a single class or cannot be made.
        TypeError: as `logistic`.

    Warns:
        MissingClassWarning: if a fold is fitted without one of the classes, which then has probability zero.
        GridEdgeWarning: if the best strength is the first or last of several.

    Cost: that of `logistic` over K folds, but for the eigendecomposition, which they share.

    Example:
        >>> import torch
        >>> from torchridge.linear.logistic.logistic import logistic_cv
        >>> X = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> y = (X[:, 0] + torch.sin(40 * X[:, 0]) > 0).long()
        >>> found = logistic_cv(X, y, [1e-3, 1e-1, 1e3], cv=4)
        >>> float(found.C), tuple(found.scores.shape), found.to_linear()
        (0.1, (3, 1), Linear(in_features=1, out_features=1, bias=True))
    """
    asked: dict[str, Any] = {"fit_intercept": fit_intercept, "tol": tol, "max_iter": max_iter}
    asked |= {"max_elements": max_elements, "dtype": dtype, "process_group": process_group}
    return choose_strength(X, y, Cs, cv, groups, scoring, sample_weight, asked)[0]


def choose_strength(
    X: Tensor | Any,
    y: Tensor,
    Cs: int | Sequence[float] | Tensor,
    cv: Any,
    groups: Any,
    scoring: Any,
    sample_weight: Tensor | None,
    asked: dict[str, Any],
) -> tuple[LogisticSolution, Chosen]:
    """Return what `logistic_cv` does, and the fits of the folds at the best strength."""
    grid = torch.logspace(-4, 4, Cs).tolist() if isinstance(Cs, int) and Cs > 0 else Cs
    group = asked.pop("process_group")
    if group is None:
        data, settings = check_data(X, y, sample_weight), check_settings(X, **asked)
    else:
        data, settings = check_ranks(X, y, sample_weight, asked, "logistic_cv", group, C=grid, scoring=scoring)
    if data.heads:
        raise ValueError(f"`y` should have shape (n,), got {tuple(y.shape)}. Call `logistic_cv` once for each column.")
    strengths = check_strengths(grid, None, data).reshape(-1)
    found, folds, name, metrics = cross_validate(data, strengths, settings, cv=cv, groups=groups, scoring=scoring)
    i = int(found.place)
    solution = replace(
        solve(data, strengths[i], settings),
        Cs=strengths,
        scores=found.scores,
        fold_scores=found.table,
        best_score=found.score,
        scoring=name,
        metrics=None if _check.one_of(scoring, *OWN) else metrics,
    )
    return solution, Chosen(i, folds.weight[:, i], folds.bias[:, i])


def solve(data: Data, C: Tensor, settings: Settings) -> LogisticSolution:
    """Return the fits of checked rows at strengths () or (L,), with a warning if they are not optima."""
    order = C.reshape(-1).argsort()
    found = fit_data(data, data.weight[None], C.reshape(-1)[order], settings)
    warn_unless_converged(found.converged, found.gap, settings)
    return _solution(data, C, settings, found, order.argsort())


def _solution(data: Data, C: Tensor, settings: Settings, found: Fit, order: Tensor) -> LogisticSolution:
    """Put the strengths back in the caller's order and drop the dimensions that the caller did not have."""
    heads = slice(None) if data.heads else 0
    at = order if C.ndim else 0
    columns = {name: value[:, heads, 0][at] for name, value in vars(found).items()}
    columns["weight"] = columns["weight"].to(settings.dtype)
    columns["bias"] = columns["bias"].to(settings.dtype)
    return LogisticSolution(**columns, classes=data.classes, C=C, heads=data.heads)
