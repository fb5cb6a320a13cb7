"""Scores by name or callable, as scikit-learn's users give them; its own are used if it is installed.

And those that estimators give by themselves, on tensors: R² and accuracy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge.estimators._input import tensor_of
from torchridge.estimators._protocol import Estimator, routing_enabled
from torchridge.exceptions import install
from torchridge.linear import metrics
from torchridge.linear.metrics import Held, Metric

Scorer = Callable[..., float]


def resolve(scoring: Any, kind: str | None = "classifier") -> Scorer | None:
    """Return a scorer ``(estimator, X, y)``, larger for a better fit; None for None.

    Raises:
        ValueError: on an unknown name; on one that only scikit-learn knows, if it is not installed.
        TypeError: on what is not a metric.
    """
    if scoring is None or (callable(scoring) and not metrics.is_object(scoring) and metrics.is_scorer(scoring)):
        return scoring  # type: ignore[no-any-return]
    if not isinstance(scoring, str):
        return ByMetric(metrics.first(scoring, "scoring", {})[0])
    if scoring == "correlation" and kind == "regressor":  # which scikit-learn has no name for
        return _own(scoring)
    try:
        from sklearn.metrics import get_scorer
    except ImportError:
        return _own(scoring)
    return get_scorer(scoring)  # type: ignore[no-any-return]


class ByMetric:
    """A scorer by a metric of predictions: larger is better, whatever the metric says."""

    def __init__(self, metric: Metric) -> None:
        self.metric, self.sign = metric, metric.chosen_by()

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        """Return the metric of an estimator's predictions, times its sign."""
        return self.sign * self.metric(_held(estimator, X, y))


def _held(estimator: Any, X: Any, y: Any) -> Held:
    if estimator._estimator_type == "regressor":
        return Held(tensor_of(y), tensor_of(estimator.predict(X)))
    scores, classes = tensor_of(estimator.decision_function(X)), estimator.classes_
    if estimator.multilabel_:
        return Held(tensor_of(y), scores, classes, several=True)
    names = classes.cpu().numpy() if isinstance(classes, Tensor) else classes
    truth = torch.from_numpy(np.searchsorted(names, y.cpu().numpy() if isinstance(y, Tensor) else y))
    proba = estimator.predict_proba(X) if hasattr(estimator, "predict_proba") else None
    return Held(truth, scores, names, None if proba is None else tensor_of(proba), proba is not None)


def accepts_weight(scorer: Scorer | None) -> bool:
    """Whether a scorer takes `sample_weight`; without one, R² and accuracy do."""
    return scorer is None or metrics.accepts_weight(scorer)


def told(scorer: Scorer, classes: Any, *, labels: bool = True) -> Scorer:
    """Return a scorer of scikit-learn that is told what a held-out part may lack: all classes, and which is positive.

    As scikit-learn's `LogisticRegressionCV` does: a measure that takes `labels` is given the classes, and, for two of
    them, `pos_label` the second. So it is without `labels` if the 1 that measures assume is not a class. What the user
    has set stays, and another callable is returned as it is.
    """
    measure, given = getattr(scorer, "_score_func", None), dict(getattr(scorer, "_kwargs", None) or {})
    if measure is None:
        return scorer
    takes = inspect.signature(measure).parameters
    known = {"labels": classes} if labels and "labels" in takes else {}
    if len(classes) <= 2 and "pos_label" in takes and (known or 1 not in list(classes)):
        known["pos_label"] = classes[-1]
    if not known.keys() - given.keys():
        return scorer
    from sklearn.metrics import make_scorer

    method = getattr(scorer, "_response_method", "predict")
    larger = getattr(scorer, "_sign", 1) == 1
    wrapped: Scorer = make_scorer(measure, response_method=method, greater_is_better=larger, **{**known, **given})
    return wrapped


def _own(scoring: Any) -> Scorer:
    if scoring not in _OWN:
        raise ValueError(
            f"`scoring` should be None, a callable, or one of {', '.join(map(repr, _OWN))}, got {scoring!r}. "
            f"scikit-learn knows more names. {install('scikit-learn', 'sklearn')}"
        )
    measure = _OWN[scoring]

    def scorer(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
        return measure(np.asarray(y), np.asarray(estimator.predict(X)), sample_weight)

    return scorer


def _errors(power: int, root: bool = False) -> Callable[[Any, Any, Any], float]:
    def measure(y: Any, predicted: Any, weight: Any) -> float:
        mean = np.average(np.abs(y - predicted) ** power, axis=0, weights=weight)
        return -float(np.mean(np.sqrt(mean) if root else mean))

    return measure


def _r2(y: Any, predicted: Any, weight: Any) -> float:
    squares = np.average((y - predicted) ** 2, axis=0, weights=weight)
    variances = np.average((y - np.average(y, axis=0, weights=weight)) ** 2, axis=0, weights=weight)
    ratio = np.divide(squares, variances, out=np.asarray(squares != 0, dtype=float), where=variances != 0)
    return float(np.mean(1 - ratio))


def _correlation(y: Any, predicted: Any, weight: Any) -> float:
    y, predicted = (np.asarray(v, dtype=float) - np.average(v, axis=0, weights=weight) for v in (y, predicted))

    def product(a: Any, b: Any) -> Any:
        return np.average(a * b, axis=0, weights=weight)

    size = np.sqrt(product(y, y) * product(predicted, predicted))
    each = np.divide(product(y, predicted), size, out=np.full(np.shape(size), np.nan), where=size > 0)
    return float(np.mean(each))


def _accuracy(y: Any, predicted: Any, weight: Any) -> float:
    right = (y == predicted).reshape(len(y), -1).all(1)
    return float(np.average(right, weights=weight))


_OWN: Mapping[str, Callable[[Any, Any, Any], float]] = {
    "r2": _r2,
    "neg_mean_squared_error": _errors(2),
    "neg_root_mean_squared_error": _errors(2, root=True),
    "neg_mean_absolute_error": _errors(1),
    "correlation": _correlation,
    "accuracy": _accuracy,
}


class Predicted(Estimator):
    """An estimator whose rows are its own predictions: leave-one-out has one model per row, and a scorer takes one."""

    def __init__(self, kind: str = "regressor", classes: Any = None, multilabel: bool = False) -> None:
        self._estimator_type = kind
        self.classes_, self.multilabel_ = classes, multilabel

    def decision_function(self, X: Any) -> Any:
        """Return the scores that were given."""
        return X[:, 0] if self._estimator_type == "classifier" and X.shape[1] == 1 else X

    def predict(self, X: Any) -> Any:
        """Return the predictions that were given; of a classifier, the class that wins."""
        if self._estimator_type != "classifier":
            return X
        scores = self.decision_function(X)
        if self.multilabel_:
            return (scores > 0).astype(int)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]


class Routed(NamedTuple):
    """Metadata by receiver."""

    score: Mapping[str, Any]
    split: Mapping[str, Any]


def route(model: Any, sample_weight: Any, params: dict[str, Any], scorer: Scorer | None, method: str = "fit") -> Routed:
    """Return what scorer and splitter are given: by routing if it is enabled, else at most the weights."""
    if routing_enabled():
        from sklearn.utils.metadata_routing import process_routing

        given = params if sample_weight is None else {**params, "sample_weight": sample_weight}
        routed = process_routing(model, method, **given)
        return Routed(dict(routed.scorer.score), dict(routed.splitter.split) if method == "fit" else {})
    if params:
        raise ValueError(
            f"[{', '.join(params)}] passed to `{method}` is only supported if enable_metadata_routing=True, which "
            f"you can set using `sklearn.set_config(enable_metadata_routing=True)`."
        )
    weighted = sample_weight is not None and accepts_weight(scorer)
    return Routed({"sample_weight": sample_weight} if weighted else {}, {})


def r2_by_target(squares: Tensor, variances: Tensor) -> Tensor:
    """Return 1 − squares / variances; if the target is constant, 1 for a perfect prediction, else 0."""
    constant = torch.where(squares == 0, torch.ones_like(squares), torch.zeros_like(squares))
    return torch.where(variances == 0, constant, 1 - squares / torch.where(variances == 0, 1, variances))


def r2(y: Tensor, predicted: Tensor, sample_weight: Tensor | None = None) -> float:
    """Return R², the mean over targets; NaN for fewer than two rows."""
    if y.shape[0] < 2:
        return float("nan")
    y, predicted = (a.double().reshape(a.shape[0], -1) for a in (y, predicted))
    share = torch.full_like(y[:, 0], 1 / y.shape[0]) if sample_weight is None else sample_weight / sample_weight.sum()
    squares, variances = share @ (y - predicted) ** 2, share @ (y - share @ y) ** 2
    return float(r2_by_target(squares, variances).mean())


def accuracy(right: Tensor, sample_weight: Tensor | None = None) -> float:
    """Return the share of rows (n,) that are right."""
    if sample_weight is None:
        return float(right.double().mean())
    return float((right.double() * sample_weight).sum() / sample_weight.sum())
