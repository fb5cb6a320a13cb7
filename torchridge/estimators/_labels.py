"""Class labels as targets of ±1, and back; weights of classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.estimators._input import is_missing, same_length
from torchridge.estimators._protocol import sklearn_class
from torchridge.exceptions import warn


class Labels(NamedTuple):
    """Labels of n rows."""

    classes: Any  # (k,) an array, or a tensor if the labels came as one
    codes: Tensor  # (n,) position in classes; multilabel: (n, k) zeros and ones
    multilabel: bool

    @property
    def signs(self) -> Tensor:
        """Targets of ±1: (n, 1) for up to two classes, (n, k) for more."""
        if self.multilabel:
            return self.codes.double() * 2 - 1
        if len(self.classes) <= 2:
            return (self.codes == 1).double()[:, None] * 2 - 1
        return torch.nn.functional.one_hot(self.codes, len(self.classes)).double() * 2 - 1


def read_labels(y: Any, n: int, classes: Any = None) -> Labels:
    """Return labels of n rows; `classes` are those that may come, if they are known beforehand."""
    if y is None:
        raise ValueError("this estimator requires y to be passed, but the target y is None.")
    values = y.detach() if isinstance(y, Tensor) else np.asarray(y)
    if values.ndim == 2 and values.shape[1] == 1:
        warn(
            "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples,), "
            "for example using ravel().",
            sklearn_class("exceptions", "DataConversionWarning", UserWarning),
        )
        values = values.reshape(-1)
    if values.ndim not in (1, 2):
        raise ValueError(f"`y` should have shape (n,), or (n, k) for several labels, got {tuple(values.shape)}.")
    same_length(values.shape[0], n)
    _check_discrete(values)
    if values.ndim == 2:
        return _multilabel(values)
    return _from_tensor(values, classes) if isinstance(values, Tensor) else _from_array(values, classes)


def _check_discrete(values: Any) -> None:
    floating = values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    if floating:
        numbers = values if isinstance(values, Tensor) else torch.from_numpy(values.astype(np.float64))
        _check.finite(numbers, "y")
        if bool((numbers != numbers.floor()).any()):
            raise ValueError(
                "Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects discrete "
                "classes on a regression target with continuous values: `y` should hold labels."
            )
    elif not isinstance(values, Tensor) and values.dtype == object:
        missing = [i for i, v in enumerate(values.reshape(-1)) if is_missing(v)]
        if missing:
            raise ValueError(f"`y` contains NaN or None, first in row {missing[0]}; expected a label in every row.")


def _multilabel(values: Any) -> Labels:
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values).astype(np.float64))
    if len(torch.unique(tensor)) > 2:
        raise ValueError(
            "Multioutput target data is not supported with label binarization: `y` of two dimensions should hold one "
            "column of zeros and ones for each label."
        )
    positive = (tensor > 0).to(torch.int64)
    k = tensor.shape[1]
    classes = torch.arange(k, device=tensor.device) if isinstance(values, Tensor) else np.arange(k)
    return Labels(classes, positive, True)


def _from_tensor(values: Tensor, classes: Any) -> Labels:
    if classes is None:
        found, codes = torch.unique(values, return_inverse=True)
        return Labels(found, codes, False)
    known = torch.unique(torch.as_tensor(classes, device=values.device))
    codes = torch.searchsorted(known, values.to(known.dtype)).clamp_max(len(known) - 1)
    _all_known(bool((known[codes] == values).all()))
    return Labels(known, codes, False)


def _from_array(values: Any, classes: Any) -> Labels:
    if classes is None:
        found, inverse = np.unique(values, return_inverse=True)
        return Labels(found, torch.from_numpy(inverse.reshape(-1)), False)
    known = np.unique(np.asarray(classes))
    codes = np.searchsorted(known, values).clip(max=len(known) - 1)
    _all_known(bool((known[codes] == values).all()))
    return Labels(known, torch.from_numpy(codes), False)


def _all_known(known: bool) -> None:
    if not known:
        raise ValueError("`y` holds labels that `classes` does not. Pass all labels of all batches as `classes`.")


def class_weights(
    class_weight: Any, labels: Labels, *, streamed: bool = False, sample_weight: Tensor | None = None
) -> Tensor | None:
    """Return a weight for each row, from weights by class or "balanced": n / (k · rows of the class).

    With `sample_weight`, "balanced" counts rows by it.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        _check.option(class_weight, "class_weight", ("balanced", None))
        if streamed:
            raise ValueError(
                "`class_weight`='balanced' needs all labels at once, which batches do not have. Pass a dict of weights."
            )
        columns = labels.codes if labels.multilabel else labels.codes[:, None]
        return torch.stack([_balanced(c, sample_weight) for c in columns.T]).prod(0)
    if not hasattr(class_weight, "get") or labels.multilabel:
        raise ValueError(f"`class_weight` should be a dict by label, 'balanced' or None, got {class_weight!r}.")
    names = [c.item() if hasattr(c, "item") else c for c in labels.classes]
    extra, unnamed = [c for c in class_weight if c not in names], [c for c in names if c not in class_weight]
    if extra and unnamed:  # as in scikit-learn: a part of the rows may lack a class, a typing error leaves one unnamed
        raise ValueError(
            f"`class_weight` names the classes {extra}, which `y` does not hold, and not {unnamed}, which it does. "
            f"Name every class, or only classes of `y`."
        )
    table = torch.tensor([float(class_weight.get(c, 1.0)) for c in names], dtype=torch.float64)
    return table.to(labels.codes.device)[labels.codes]


def _balanced(codes: Tensor, sample_weight: Tensor | None) -> Tensor:
    found, inverse = torch.unique(codes, return_inverse=True)
    rows = torch.ones(len(codes), dtype=torch.float64, device=codes.device)
    rows = rows if sample_weight is None else sample_weight.to(codes.device)
    counts = rows.new_zeros(len(found)).index_add_(0, inverse, rows)
    weights: Tensor = rows.sum() / (len(found) * counts)
    return torch.where(counts > 0, weights, 0.0)[inverse]


def joined_weights(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the product of two weights that may be absent."""
    if first is None or second is None:
        return second if first is None else first
    return first * second.to(first.device)
