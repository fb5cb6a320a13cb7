"""The scores that estimators give by themselves, on tensors: R² and accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


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
