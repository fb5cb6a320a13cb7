"""Choice of the strength of a logistic regression by held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge.exceptions import MissingClassWarning, warn
from torchridge.linear.logistic.over_ranks import rank_folds
from torchridge.linear.logistic.problem import (
    Data,
    Settings,
    check_two_classes,
    class_counts,
    folds_that_fit,
    warn_unless_converged,
)
from torchridge.linear.logistic.unpenalized import fit_unpenalized, joined
from torchridge.linear.metrics import Held, Metric, first
from torchridge.linear.search import CS, Found, itself, search, warn_of_nan
from torchridge.solvers.cross_entropy.fit import Fit, fit, fit_sparse
from torchridge.solvers.cross_entropy.over_ranks import summed
from torchridge.solvers.device import sent
from torchridge.solvers.iterative.operators import Operator
from torchridge.solvers.moments.folds import Split, check_groups, fold_ids, splits
from torchridge.solvers.moments.stratified import stratified_folds

OWN = {"log_loss": -1, "accuracy": 1}  # in which rows count by their weights


def cross_validate(
    data: Data, C: Tensor, settings: Settings, *, cv: Any, groups: Any, scoring: Any
) -> tuple[Found[Tensor], Folds, str, dict[str, Tensor]]:
    """Fit every fold at every strength, and choose the best mean of the first metric; return all of them by name."""
    chooser, metrics = first(scoring, "scoring", OWN)
    sign = chooser.chosen_by()
    parts = make_splits(data, cv, groups) if data.ranks is None else _parts(*rank_folds(data, cv, groups))
    weight = training_weight(data, parts)
    check_folds(data, weight)
    fits = fit_folds(data, weight, C, settings)
    warn_unless_converged(fits.converged, fits.gap, settings)
    tables = dict(zip(metrics, _scores(data, parts, fits.weight, fits.bias, list(metrics.values())), strict=True))
    scores = sign * tables[chooser.name]  # (K, L, 1)
    warn_of_nan(scores)
    return search(lambda _: scores, C.cpu(), itself, kind=CS, given=True), fits, chooser.name, tables


class Folds(NamedTuple):
    """The fits of every fold at every strength, in the order given."""

    weight: Tensor  # (K, L, c, d)
    bias: Tensor  # (K, L, c)
    n_iter: Tensor  # (K, L)
    converged: Tensor  # (K, L)
    gap: Tensor  # (K, L)


class Chosen(NamedTuple):
    """The fits of the folds at one strength."""

    place: int  # of the strength in the grid
    weight: Tensor  # (K, c, d)
    bias: Tensor  # (K, c)


def fit_folds(data: Data, weight: Tensor, C: Tensor, settings: Settings) -> Folds:
    """Fit all rows under every row weight (K, n) at every strength."""
    order = C.argsort()
    found = fit_data(data, weight, C[order], settings)
    return Folds(*(getattr(found, name)[order.argsort()][:, 0].transpose(0, 1) for name in Folds._fields))


def fit_data(data: Data, weight: Tensor, C: Tensor, settings: Settings) -> Fit:
    """Fit all rows under every row weight (g, n) at strengths that rise; the last ones may be infinite."""
    finite = int(torch.isfinite(C).sum())
    if finite == len(C):
        return _penalized(data, weight, C, settings)
    last = fit_unpenalized(data, weight, settings, lambda data, C: _penalized(data, weight, C, settings))
    last = joined(*(last,) * (len(C) - finite))
    return joined(_penalized(data, weight, C[:finite], settings), last) if finite else last


def _penalized(data: Data, weight: Tensor, C: Tensor, settings: Settings) -> Fit:
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
        index = sent(train, weight.device)
        weight[fold].index_add_(0, index, data.weight[index])
    return weight


def check_folds(data: Data, weight: Tensor) -> None:
    """Raise if a fold, by its row weights (K, n), is fitted on one class; warn if it lacks one of several."""
    seen = class_counts(data, torch.cat([data.weight[None], weight]))  # (1, 1 + K, k)
    for fold in range(len(weight)):
        check_two_classes(seen[:, fold + 1], data.classes, f"y[training rows of fold {fold}]")
    warn_of_missing(seen[0, 1:], int((seen[0, 0] > 0).sum()))


def warn_of_missing(seen: Tensor, classes: int) -> None:
    """Warn if folds lack classes, from the weight (K, k) of each in their training rows."""
    missing = ((seen > 0).sum(1) < classes).nonzero()[:, 0].tolist()
    if missing:
        warn(
            f"folds {missing} are fitted without one of the classes, which has probability zero there. Use fewer "
            "folds, or stratify them.",
            MissingClassWarning,
        )


def _scores(data: Data, parts: list[Split], weight: Tensor, bias: Tensor, metrics: list[Metric]) -> Tensor:
    """Return the scores (M, K, L, 1) of every metric."""
    total = bias.new_zeros(2, len(metrics), *bias.shape[:2], dtype=torch.float64)  # of scores, and of weights
    weighted = bool((data.weight != 1).any())
    for fold, (_, test) in enumerate(parts):
        rows = sent(test, weight.device)
        logits_of = _logits_of(data.X, rows, weight.dtype)
        labels, row_weight = data.labels[0, rows], data.weight[rows]
        for i in range(weight.shape[1]):
            logits = logits_of(weight[fold, i]) + bias[fold, i]
            scores = logits[:, 0] if logits.shape[1] == 1 else logits
            held = Held(labels, scores, data.classes, _proba(logits), True, row_weight if weighted else None)
            for m, metric in enumerate(metrics):
                total[:, m, fold, i] = _score(metric, held, row_weight)
    total = summed(data.ranks, "held-out scores", total)
    return (total[0] / total[1])[..., None]


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


def _score(metric: Metric, held: Held, weight: Tensor) -> Tensor:
    """Return the sum of the scores of some rows, and of their weights."""
    if metric.own is None:
        return torch.tensor([metric(held), 1.0])
    proba = held.proba
    assert proba is not None
    if metric.own == "accuracy":
        each = (proba.argmax(-1) == held.truth).to(weight.dtype)
    else:
        # The clip of scikit-learn's log_loss: a class that a fold never saw costs about 36, not infinity.
        each = proba.gather(1, held.truth[:, None])[:, 0].clamp_min(torch.finfo(proba.dtype).eps).log().neg()
    return torch.stack([(each * weight).sum(), weight.sum()])
