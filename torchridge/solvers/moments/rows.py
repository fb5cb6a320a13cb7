"""Rows of data as the solvers take them: checked, two-dimensional, on one device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge import _check


class Rows(NamedTuple):
    """Checked data: n rows of d features and t targets, and perhaps a weight for each row."""

    X: Tensor  # (n, d)
    y: Tensor  # (n, t)
    sample_weight: Tensor | None  # (n,)
    vector_target: bool  # y came as (n,): predictions go back as (n,)
    idle: bool = False  # whether some rows have zero weight

    @property
    def counted(self) -> Rows:
        """The rows that count: those of zero weight are left out."""
        if self.sample_weight is None or not self.idle:
            return self
        keep = (self.sample_weight > 0).nonzero()[:, 0]
        return Rows(self.X[keep], self.y[keep], self.sample_weight[keep], self.vector_target)


def check_rows(
    X: Tensor, y: Tensor, sample_weight: Tensor | None = None, *, flatten: bool = False, values: bool = True
) -> Rows:
    """Return the rows, or raise with what is wrong. `flatten` folds leading dimensions of all three into rows.

    Without `values` the weights' values are not looked at: the caller sees them together with the moments.

    Finiteness of X and y is not looked at here: `finite.check_finite` sees it in their moments for free.
    """
    for name, value in (("X", X), ("y", y)):
        _check.is_tensor(value, name)
        if type(value).__name__ == "DTensor":
            raise TypeError(
                f"`{name}` is a DTensor. Of rows, give `{name}.to_local()` and add up over ranks (`all_reduce`, or "
                f"process_group='world'); of columns, call `column_moments`."
            )
        _check.is_dense_real(value, name)
    leading = X.shape[:-1]
    if flatten and X.ndim > 1:
        vector = y.ndim == X.ndim - 1
        if y.shape[: len(leading)] != leading:
            raise ValueError(
                f"`y` has shape {tuple(y.shape)}, expected the leading dimensions of `X`, {tuple(leading)}, "
                f"and one more for several targets."
            )
        X, y = X.reshape(-1, X.shape[-1]), y.reshape(-1) if vector else y.reshape(-1, y.shape[-1])
    if X.ndim != 2:
        raise ValueError(f"`X` should have shape (rows, features), got {tuple(X.shape)}. {_remedy(X)}")
    if y.ndim not in (1, 2):
        raise ValueError(f"`y` should have shape (rows,) or (rows, targets), got {tuple(y.shape)}.")
    _check.not_empty(X, "X")
    _check.not_empty(y, "y")
    _check.same_length(y.shape[0], X.shape[0], "y", "X")
    if sample_weight is not None:
        _check.is_tensor(sample_weight, "sample_weight")
        _check.is_dense_real(sample_weight, "sample_weight")
    _check.same_device({"X": X, "y": y, "sample_weight": sample_weight})
    for name, value in (("X", X), ("y", y)):
        _check.exact_integers(value, name)
    weight, least = None, 1.0
    if sample_weight is not None:
        weight = weight_shape(sample_weight, X.shape[0], flatten)
        least = check_weight(weight) if values else least
    if least == 0:
        _check.finite(X, "X")  # no moment shows what such a row holds
        _check.finite(y, "y")
    return Rows(X, y[:, None] if y.ndim == 1 else y, weight, y.ndim == 1, least == 0)


def _remedy(X: Tensor) -> str:
    if X.ndim < 2:
        return "Pass `X[:, None]` for rows of one feature, `X[None]` for one row."
    return "If every vector is a row, pass `X.reshape(-1, X.shape[-1])`, or `flatten=True` if it is offered."


def weight_shape(sample_weight: Tensor, n: int, flatten: bool = False) -> Tensor:
    """Return sample weights of shape (n,), or raise."""
    weight = sample_weight.reshape(-1) if flatten else sample_weight
    if weight.ndim != 1 or weight.shape[0] != n:
        raise ValueError(
            f"`sample_weight` should have shape ({n},), one weight a row, got {tuple(sample_weight.shape)}."
        )
    return weight


def check_weight(weight: Tensor) -> float:
    """Return the least weight, or raise if one is negative or not finite, or all are zero."""
    least = _check.non_negative(weight, "sample_weight")
    if least == 0 and not bool((weight.detach() > 0).any()):
        raise ValueError("`sample_weight` is zero in every row; expected at least one positive weight.")
    return least


def result_dtype(X: Tensor) -> torch.dtype:
    """Return the dtype an answer is rounded to: that of X for float32 and float64, float32 for halves, else float64."""
    if X.dtype in (torch.float32, torch.float64):
        return X.dtype
    return torch.float32 if X.is_floating_point() else torch.float64


def check_fold(fold: int | Tensor | None, had: set[int | None], n: int, flatten: bool) -> int | Tensor | None:
    """Return the fold of a batch, or the ids of its n rows, or raise; `had` are the folds of earlier batches."""
    if had and (fold is None) != (None in had):
        earlier, got = ("no fold", "one") if fold is not None else ("folds", "none")
        raise ValueError(
            f"`fold`: earlier rows came with {earlier}, these with {got}. Give every batch its fold, or none."
        )
    if fold is None:
        return None
    if not isinstance(fold, Tensor):
        return _check.integer(fold, "fold", minimum=0)
    ids = fold.reshape(-1) if flatten else fold
    if ids.shape != (n,) or ids.is_floating_point() or ids.is_complex():
        raise ValueError(
            f"`fold` should be an int or integer ids of shape ({n},), got {fold.dtype} of {tuple(fold.shape)}."
        )
    if bool((ids < 0).any()):
        raise ValueError(f"`fold` ids should not be negative, got {int(ids.min())}.")
    return ids
