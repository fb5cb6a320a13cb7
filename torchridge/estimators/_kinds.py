"""What makes a linear model a regressor or a classifier: predict, score, tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge.estimators._input import as_array, as_tensor, tensor_of
from torchridge.estimators._labels import Labels
from torchridge.estimators._linear import LinearModel
from torchridge.estimators._scorers import accuracy, r2


def _tensor(values: Any, name: str) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else as_tensor(as_array(values, name))


def _weight_on(sample_weight: Any, like: Tensor) -> Tensor | None:
    return None if sample_weight is None else _tensor(sample_weight, "sample_weight").to(like.device, torch.float64)


class Regressor(LinearModel):
    """A linear model of numbers."""

    _estimator_type = "regressor"

    def predict(self, X: Any) -> Any:
        """Return X Wᵀ + b, (n,) or (n, t), in the kind of X."""
        return self._raw(X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R² of the predictions, weighted, the mean over targets."""
        predicted = _tensor(self.predict(X), "X")
        return r2(_tensor(y, "y").to(predicted.device), predicted, _weight_on(sample_weight, predicted))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class Classifier(LinearModel):
    """A linear model of classes: the largest score wins, a single score is compared with zero."""

    _estimator_type = "classifier"
    classes_: Any
    multilabel_: bool

    def _keep_labels(self, labels: Labels) -> None:
        self.classes_, self.multilabel_ = labels.classes, labels.multilabel

    def decision_function(self, X: Any) -> Any:
        """Return scores, (n,) for two classes, (n, k) for more, in the kind of X."""
        return self._raw(X)

    def predict(self, X: Any) -> Any:
        """Return the class of each row, (n,); for several labels zeros and ones, (n, k)."""
        scores = self.decision_function(X)
        positive = scores > 0
        if self.multilabel_:
            return positive.to(torch.int64) if isinstance(positive, Tensor) else positive.astype(np.int64)
        index = positive.reshape(-1) if scores.ndim == 1 or scores.shape[1] == 1 else scores.argmax(1)
        return self._class_of(index)

    def _class_of(self, index: Any) -> Any:
        wanted = torch.as_tensor(index).to(torch.int64)
        if isinstance(self.classes_, Tensor):
            named = self.classes_.to(wanted.device)[wanted]
            return named if isinstance(index, Tensor) else named.cpu().numpy()
        names = self.classes_[wanted.cpu().numpy()]
        if isinstance(index, Tensor) and names.dtype.kind in "biuf":
            return torch.from_numpy(names).to(index.device)
        return names

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of rows, weighted, whose class (all labels) is right."""
        predicted = self.predict(X)
        if isinstance(predicted, Tensor) or isinstance(y, Tensor):
            predicted = tensor_of(predicted)
            right = predicted == tensor_of(y).to(predicted.device).reshape(predicted.shape)
        else:
            right = torch.from_numpy(np.asarray(predicted == np.asarray(y).reshape(predicted.shape)))
        right = right if right.ndim == 1 else right.all(1)
        return accuracy(right, _weight_on(sample_weight, right))

    def state_dict(self) -> dict[str, Any]:
        """Return what `partial_fit` has gathered, and the classes, safe for `torch.load(weights_only=True)`."""
        names = self.classes_ if isinstance(self.classes_, Tensor) else self.classes_.tolist()
        return {**super().state_dict(), "classes": names, "multilabel": self.multilabel_}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; `partial_fit` goes on from there, bit for bit."""
        super().load_state_dict(state)
        names = state["classes"]
        self.classes_ = names if isinstance(names, Tensor) else np.asarray(names)
        self.multilabel_ = bool(state["multilabel"])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
