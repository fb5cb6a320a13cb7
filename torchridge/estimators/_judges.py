"""Judges of held-out rows: a scorer, applied to leave-one-out predictions or to the model of a fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge.estimators._few_rows import Weights
from torchridge.estimators._input import Container, Table, take
from torchridge.estimators._labels import Labels
from torchridge.estimators._scorers import Predicted, Scorer, told
from torchridge.estimators._search import ScoreRows
from torchridge.estimators.ridge import Ridge, RidgeClassifier
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.moments.folds import Split

# (fold, its fit at a strength, the strength) → an estimator of that fold.
Member = Callable[[int, RidgeSolution | Weights, float], Any]


def judge_rows(scorer: Scorer, params: Mapping[str, Any], vector: bool, per_target: bool) -> ScoreRows:
    """Return a judge of leave-one-out predictions (n, t) of numbers."""

    def judge(predicted: Tensor, y: Tensor) -> Any:
        p, true = predicted.cpu().numpy(), y.cpu().numpy()
        if per_target and p.shape[1] > 1:
            return [scorer(Predicted(), p[:, j], true[:, j], **params) for j in range(p.shape[1])]
        return scorer(Predicted(), p[:, 0] if vector else p, true[:, 0] if vector else true, **params)

    return judge


def judge_classes(scorer: Scorer, params: Mapping[str, Any], labels: Labels) -> ScoreRows:
    """Return a judge of leave-one-out scores (n, t) of classes, which are called by their labels."""
    if labels.multilabel:
        true, classes = labels.codes.cpu().numpy(), np.arange(labels.codes.shape[1])
    else:
        true, classes = _names(labels), _plain_classes(labels)
        scorer = told(scorer, classes, labels=False)
    estimator = Predicted("classifier", classes, labels.multilabel)
    return lambda predicted, _: scorer(estimator, predicted.cpu().numpy(), true, **params)


@dataclass(frozen=True, eq=False)
class FoldJudge:
    """A judge of the held-out rows of a fold; without a scorer, the model's own `score`."""

    X: Any  # a tensor, or a scipy.sparse matrix in rows
    y: Any
    parts: list[Split]
    member: Member
    scorer: Scorer | None
    params: Mapping[str, Any]

    def __call__(self, k: int, fit: RidgeSolution | Weights, alpha: float) -> float:
        """Return the score of one strength on the rows of fold k."""
        test = self.parts[k][1]
        model = self.member(k, fit, alpha)
        rows = take(self.X, test)
        chosen = test.numpy()
        cut = of_rows(self.params, chosen, self.X.shape[0])
        if self.scorer is None:
            return float(model.score(rows, self.y[test.to(self.y.device)], **cut))
        return float(
            self.scorer(
                model, rows.cpu().numpy() if isinstance(rows, Tensor) else rows, np.asarray(self.y)[chosen], **cut
            )
        )


def judge_folds(
    table: Table, target: Tensor, parts: list[Split], intercept: bool, scorer: Scorer | None, params: Mapping[str, Any]
) -> FoldJudge:
    """Return a judge of folds of numbers."""

    def member(k: int, fit: RidgeSolution | Weights, alpha: float) -> Ridge:
        model = Ridge(alpha, fit_intercept=intercept)
        model.n_features_in_ = table.X.shape[1]
        model._keep_solution(fit, _container(table, scorer), target.ndim == 1)
        return model

    y = target if scorer is None else target.cpu().numpy()
    return FoldJudge(table.X, y, parts, member, scorer, params)


def judge_class_folds(
    table: Table,
    labels: Labels,
    sample_weight: Tensor | None,
    parts: list[Split],
    intercept: bool,
    scorer: Scorer | None,
    params: Mapping[str, Any],
) -> FoldJudge:
    """Return a judge of folds of classes; a fold that was trained without one of them is fitted by itself."""
    y = labels.codes if scorer is None or labels.multilabel else _names(labels)
    if scorer is not None and not labels.multilabel:
        scorer = told(scorer, _plain_classes(labels), labels=False)
    k_classes = 0 if labels.multilabel else len(labels.classes)
    complete = [labels.multilabel or len(torch.unique(labels.codes[train])) == k_classes for train, _ in parts]

    def member(k: int, fit: RidgeSolution | Weights, alpha: float) -> RidgeClassifier:
        model = RidgeClassifier(alpha, fit_intercept=intercept)
        if not complete[k]:
            train = parts[k][0]
            own = None if sample_weight is None else sample_weight[train.to(sample_weight.device)]
            return model.fit(take(table.X, train), y[train], own)
        model.n_features_in_ = table.X.shape[1]
        model.classes_ = (
            torch.arange(k_classes, device=getattr(table.X, "device", "cpu")) if scorer is None else labels.classes
        )
        model.multilabel_ = labels.multilabel
        model._keep_solution(fit, _container(table, scorer), False)
        return model

    return FoldJudge(
        table.X, y if scorer is None or not isinstance(y, Tensor) else y.cpu().numpy(), parts, member, scorer, params
    )


def _plain_classes(labels: Labels) -> Any:
    return labels.classes.cpu().numpy() if isinstance(labels.classes, Tensor) else labels.classes


def _names(labels: Labels) -> Any:
    return _plain_classes(labels)[labels.codes.cpu().numpy()]


def _container(table: Table, scorer: Scorer | None) -> Container:
    if table.sparse:
        return Container(False, torch.device("cpu"), torch.float64)
    device = table.X.device if scorer is None else torch.device("cpu")
    return Container(scorer is None, device, torch.float64)


def of_rows(params: Mapping[str, Any], index: Any, n: int) -> dict[str, Any]:
    """Return metadata of some rows: whatever has one entry a row is cut down to them."""
    cut = {}
    for name, value in params.items():
        entries = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        cut[name] = entries[index] if entries.shape[:1] == (n,) else value
    return cut
