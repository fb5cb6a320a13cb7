"""An estimator that has predicted already: what a scorer of scikit-learn asks for its predictions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Outputs:
    """Predictions of numbered rows, in scikit-learn's protocol; its rows X are their numbers, (m, 1).

    Args:
        scores: (m,) or (m, t) numbers; of classes their scores, (m,) of the second of two.
        classes: (k,) labels, a tensor or an array; None for numbers.
        proba: (m, k), for models that have probabilities.
        several: whether a row has several labels.
    """

    def __init__(self, scores: Tensor, classes: Any, proba: Tensor | None, several: bool) -> None:
        self._values = scores.detach().cpu()
        self._proba, self._several = None if proba is None else proba.detach().cpu(), several
        self._estimator_type = "regressor" if classes is None else "classifier"
        if classes is not None:
            self.classes_ = plain(classes)

    def fit(self, X: Any, y: Any) -> Outputs:
        """Return self: the predictions are there."""
        return self

    def predict(self, X: Any) -> Any:
        """Return the predictions of some rows; of classes the labels."""
        out = self._values[_places(X)]
        if self._estimator_type == "regressor":
            return out.numpy()
        if self._several:
            return (out > 0).long().numpy()
        return self.classes_[((out > 0).long() if out.ndim == 1 else out.argmax(1)).numpy()]

    def __getattr__(self, name: str) -> Any:
        # Only what a model of this kind has: scorers ask for a method by its name, and take the next best.
        values, proba = self.__dict__.get("_values"), self.__dict__.get("_proba")

        def decision_function(X: Any) -> Any:
            return values[_places(X)].numpy()  # type: ignore[index]

        def predict_proba(X: Any) -> Any:
            return proba[_places(X)].numpy()  # type: ignore[index]

        if name == "decision_function" and self.__dict__.get("_estimator_type") == "classifier":
            return decision_function
        if name == "predict_proba" and proba is not None:
            return predict_proba
        raise AttributeError(f"these predictions have no {name!r}")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classes = self._estimator_type == "classifier"
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if classes else None,
            regressor_tags=None if classes else RegressorTags(),
            input_tags=InputTags(),
        )


def _places(X: Any) -> Tensor:
    return torch.as_tensor(X).reshape(-1)


def plain(value: Any) -> Any:
    """Return a tensor as an array, anything else as it is."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value
