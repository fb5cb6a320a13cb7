"""Rows of data as the solvers take them: checked, two-dimensional, on one device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype an answer is rounded to: float32 and float64 themselves, float32 for halves, else float64."""
    if dtype in (torch.float32, torch.float64):
        return dtype
    return torch.float32 if dtype.is_floating_point else torch.float64
