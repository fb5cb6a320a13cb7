"""Logistic regression over ranks: what they must agree on, and the classes of all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Ranks, brief
from torchridge.distributed.folds import fold_plan
from torchridge.linear.logistic.problem import (
    Data,
    Settings,
    check_part,
    check_settings,
    check_strengths,
    check_two_classes,
    class_counts,
    folds_that_fit,
)
from torchridge.linear.matrices import kind_of
from torchridge.solvers.moments.stratified import stratified_folds


def check_ranks(
    X: Any,
    y: Any,
    sample_weight: Any,
    asked: dict[str, Any],
    operation: str,
    group: Any,
    *,
    C: Any = None,
    strength: Any = None,
    scoring: Any = None,
) -> tuple[Data, Settings]:
    """Return this rank's rows, their labels numbered among the classes of all ranks, and the settings, or raise."""
    ranks = Ranks(group)

    def own() -> tuple[Data, Settings]:
        if kind_of(X) == "sparse":
            raise ValueError("`X` over ranks should be dense, got a sparse matrix. Leave out `process_group`.")
        if not _check.one_of(scoring, None, "log_loss", "accuracy"):
            raise ValueError("`scoring` over ranks should be 'log_loss' or 'accuracy'; a metric needs all predictions.")
        data, settings = check_part(X, y, sample_weight), check_settings(X, **asked)
        check_strengths(C, strength, data)
        if X.shape[1] == 0:
            raise ValueError("`X` has no columns. A rank without rows gives (0, d).")
        return data, settings

    agree = {name: brief(value) for name, value in {**asked, "C": C, "strength": strength, "scoring": scoring}.items()}

    def says(done: tuple[Data, Settings]) -> dict[str, Any]:
        data, settings = done
        form = {"features": X.shape[1], "heads": data.labels.shape[0], "result": str(settings.dtype)}
        form |= {"labels": str(y.dtype), "some": bool((data.weight > 0).any())}
        return {**form, "classes": data.classes.tolist(), **agree}

    (data, settings), told = ranks.together(
        operation, own, says, agree=("features", "heads", "labels", "result", *agree)
    )
    if not any(t["some"] for t in told):
        raise ValueError(f"{operation}: no rank holds a row of positive weight; expected rows of two classes.")
    classes = torch.tensor(sorted({c for t in told for c in t["classes"]}), dtype=y.dtype, device=X.device)
    number = torch.searchsorted(classes.long(), data.classes.long())
    data = replace(data, classes=classes, labels=number[data.labels], ranks=ranks)
    check_two_classes(class_counts(data, data.weight[None])[:, 0], classes, "y")
    return data, settings


def rank_folds(data: Data, cv: Any, groups: Any) -> tuple[Tensor, int]:
    """Return the folds of this rank's rows, 0 … K−1, and K: stratified by class for a number without groups."""
    ranks, operation = data.ranks, "logistic_cv (its folds)"
    assert ranks is not None
    alone = isinstance(cv, int) and groups is None
    labels = _all_labels(data, ranks) if alone else torch.empty(0)

    def stratified(k: int, total: int) -> Tensor:
        return stratified_folds(labels, folds_that_fit(k, labels))

    plan = fold_plan(lambda: data.X.shape[0], cv, groups, ranks, operation, {}, stratified)
    ids, told = ranks.together(operation, plan, lambda ids: {"ids": torch.unique(ids).tolist()})
    names = torch.tensor(sorted({i for t in told for i in t["ids"]}), dtype=torch.int64)
    if len(names) < 2:
        raise ValueError("`cv`: fold ids name a single fold; expected at least two.")
    return torch.searchsorted(names, ids.cpu().long()), len(names)


def _all_labels(data: Data, ranks: Ranks) -> Tensor:
    """Return the labels of all ranks' rows, one after the other."""
    sizes = ranks.all_gather("the rows", torch.tensor([data.X.shape[0]]))[:, 0].tolist()
    padded = torch.zeros(max(sizes), dtype=torch.int64)
    padded[: data.X.shape[0]] = data.labels[0].cpu()
    each = ranks.all_gather("the labels", padded)
    return torch.cat([part[:size] for part, size in zip(each, sizes, strict=True)])
