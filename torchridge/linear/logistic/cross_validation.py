"""Choice of the strength of a logistic regression by held-out rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import GridEdgeWarning, MissingClassWarning
from torchridge.linear.logistic.over_ranks import rank_folds
from torchridge.linear.logistic.problem import (
    Data,
    Settings,
    check_two_classes,
    class_counts,
    folds_that_fit,
    warn_unless_converged,
)
from torchridge.linear.logistic.solution import LogisticSolution
from torchridge.linear.search import best_index, mean_over_folds
from torchridge.solvers.cross_entropy.fit import Fit, fit, fit_sparse
from torchridge.solvers.cross_entropy.over_ranks import summed
from torchridge.solvers.iterative.operators import Operator
from torchridge.solvers.moments.folds import Split, check_groups, fold_ids, splits
from torchridge.solvers.moments.stratified import stratified_folds

Score = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class LogisticCV:
    """The strength that held-out rows prefer, and every fold that said so.

    Attributes:
        C: the best strength.
        index: its place in `Cs`.
        Cs: (L,), the strengths in the order given.
        scores: (K, L), larger is better.
        weight: (K, L, c, d), of every fold.
        bias: (K, L, c), of every fold.
        n_iter: (K, L), evaluations of loss and gradient.
        converged: (K, L).
        solution: all rows fitted at C.

    Example:
        >>> import torch
        >>> from torchridge import logistic_cv
        >>> X = torch.linspace(-1, 1, 40)[:, None]
        >>> y = ((X[:, 0] > 0) ^ (torch.arange(40) % 7 == 0)).long()
        >>> found = logistic_cv(X, y, Cs=[0.01, 1.0, 100.0], cv=4)
        >>> found.C, tuple(found.scores.shape)
        (1.0, (4, 3))
    """

    C: float
    index: int
    Cs: Tensor
    scores: Tensor
    weight: Tensor
    bias: Tensor
    n_iter: Tensor
    converged: Tensor
    solution: LogisticSolution | None = None

    def refit(self, solution: LogisticSolution) -> LogisticCV:
        """Return the same with the solution over all rows."""
        return replace(self, solution=solution)


def cross_validate(
    data: Data, C: Tensor, settings: Settings, *, cv: Any, groups: Any, scoring: str | Score
) -> LogisticCV:
    """Fit every fold at every strength and choose the best mean score."""
    score = _scorer(scoring)
    parts = make_splits(data, cv, groups) if data.ranks is None else _parts(*rank_folds(data, cv, groups))
    weight = training_weight(data, parts)
    _check_folds(data, weight)
    fits = fit_folds(data, weight, C, settings)
    warn_unless_converged(fits.converged, fits.gap, settings)
    scores = _scores(data, parts, fits.weight, fits.bias, score)
    index = _best(C, scores)
    return LogisticCV(float(C[index]), index, C, scores, fits.weight, fits.bias, fits.n_iter, fits.converged)


class Folds(NamedTuple):
    """The fits of every fold at every strength, in the order given."""

    weight: Tensor  # (K, L, c, d)
    bias: Tensor  # (K, L, c)
    n_iter: Tensor  # (K, L)
    converged: Tensor  # (K, L)
    gap: Tensor  # (K, L)


def fit_folds(data: Data, weight: Tensor, C: Tensor, settings: Settings) -> Folds:
    """Fit all rows under every row weight (K, n) at every strength."""
    order = C.argsort()
    found = fit_data(data, weight, C[order], settings)
    return Folds(*(getattr(found, name)[order.argsort()][:, 0].transpose(0, 1) for name in Folds._fields))


def fit_data(data: Data, weight: Tensor, C: Tensor, settings: Settings) -> Fit:
    """Fit all rows under every row weight (g, n) at strengths that rise."""
    of = (data.labels, len(data.classes), weight, C)
    options: dict[str, Any] = {"intercept": settings.intercept, "tol": settings.tol, "max_iter": settings.max_iter}
    if isinstance(data.X, Tensor):
        return fit(data.X, *of, max_elements=settings.max_elements, ranks=data.ranks, **options)
    return fit_sparse(data.X, *of, **options)


def make_splits(data: Data, cv: Any, groups: Any) -> list[Split]:
    """Return the (train, test) row numbers of every fold."""
    n, labels = data.X.shape[0], data.labels[0].cpu()
    if isinstance(cv, int) and not isinstance(cv, bool) and groups is None:
        ids = stratified_folds(labels, folds_that_fit(cv, labels))
    elif isinstance(cv, (int, Tensor)):
        ids = fold_ids(cv, n, groups)
    else:
        if isinstance(cv, str):
            raise ValueError(
                f"`cv` should be a number of folds, fold ids of shape ({n},), a splitter, or (train, test) row "
                f"numbers, got {cv!r}."
            )
        return splits(cv, n, labels, check_groups(groups, n).numpy() if groups is not None else None)
    return _parts(ids, int(ids.max()) + 1)


def _parts(ids: Tensor, k: int) -> list[Split]:
    return [((ids != fold).nonzero()[:, 0], (ids == fold).nonzero()[:, 0]) for fold in range(k)]


def training_weight(data: Data, parts: list[Split]) -> Tensor:
    """Return the weights (K, n) of the training rows of every fold; a row drawn twice counts twice."""
    weight = data.weight.new_zeros(len(parts), data.X.shape[0])
    for fold, (train, _) in enumerate(parts):
        index = train.to(weight.device)
        weight[fold].index_add_(0, index, data.weight[index])
    return weight


def _check_folds(data: Data, weight: Tensor) -> None:
    seen = class_counts(data, torch.cat([data.weight[None], weight]))  # (1, 1 + K, k)
    for fold in range(len(weight)):
        check_two_classes(seen[:, fold + 1], data.classes, f"y[training rows of fold {fold}]")
    classes = (seen[0] > 0).sum(1)
    missing = (classes[1:] < classes[0]).nonzero()[:, 0].tolist()
    if missing:
        warnings.warn(
            f"folds {missing} are fitted without one of the classes, which has probability zero there. Use fewer "
            "folds, or stratify them.",
            MissingClassWarning,
            stacklevel=4,
        )


def _scores(data: Data, parts: list[Split], weight: Tensor, bias: Tensor, score: Score | str) -> Tensor:
    total = bias.new_zeros(2, *bias.shape[:2])  # of scores, and of weights
    for fold, (_, test) in enumerate(parts):
        rows = test.to(weight.device)
        logits_of = _logits_of(data.X, rows, weight.dtype)
        labels, row_weight = data.labels[0, rows], data.weight[rows]
        for i in range(weight.shape[1]):
            proba = _proba(logits_of(weight[fold, i]) + bias[fold, i])
            total[:, fold, i] = _score(score, data.classes[labels], labels, proba, row_weight)
    total = summed(data.ranks, "held-out scores", total)
    return total[0] / total[1]


def _logits_of(X: Tensor | Operator, rows: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return what takes weights (c, d) to logits (m, c) of some rows."""
    if isinstance(X, Tensor):
        some = X[rows].to(dtype)
        return lambda weight: some @ weight.mT
    return lambda weight: X.matmul(weight.mT)[rows]


def _proba(logits: Tensor) -> Tensor:
    return (
        torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], -1) if logits.shape[-1] == 1 else logits.softmax(-1)
    )


def _scorer(scoring: str | Score) -> str | Score:
    if not callable(scoring):
        _check.option(scoring, "scoring", ("log_loss", "accuracy"))
    return scoring


def _score(score: str | Score, y: Tensor, labels: Tensor, proba: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of the scores of some rows, and of their weights."""
    if callable(score):
        return torch.tensor([float(score(y, proba[:, 1] if proba.shape[1] == 2 else proba)), 1.0])
    if score == "accuracy":
        each = (proba.argmax(-1) == labels).to(weight.dtype)
    else:
        # The clip of scikit-learn's log_loss: a class that a fold never saw costs about 36, not infinity.
        each = proba.gather(1, labels[:, None])[:, 0].clamp_min(torch.finfo(proba.dtype).eps).log()
    return torch.stack([(each * weight).sum(), weight.sum()])


def _best(C: Tensor, scores: Tensor) -> int:
    """Return the best mean score; of equal ones, the strongest penalty."""
    mean = scores.mean(0)
    mean = mean_over_folds(scores) if bool(torch.isnan(mean).any()) else mean
    index = int(best_index(mean[:, None], 1 / C, True)[0])
    if len(C) > 1 and float(C[index]) in (float(C.min()), float(C.max())):
        warnings.warn(
            f"the best strength C={float(C[index]):g} lies at the edge of `Cs`, from {float(C.min()):g} to "
            f"{float(C.max()):g}; a better one may lie beyond. Extend the grid.",
            GridEdgeWarning,
            stacklevel=4,
        )
    return index
