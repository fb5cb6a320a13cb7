"""Errors for rows that hold NaN or infinity, or numbers whose squares overflow or vanish."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows


def check_finite(block: Block, rows: Rows) -> None:
    """Raise if the rows held NaN or infinity, or overflowed: their moments show it without another pass."""
    if not math.isfinite(float(block.gram.diagonal().sum() + block.yy.sum())) and not _is_finite(block):
        check_squares(rows, block.gram.dtype, overflowed=True)


def _is_finite(block: Block) -> bool:
    """Tell a sum that overflowed from moments that did."""
    return bool(torch.isfinite(block.gram.diagonal()).all()) and bool(torch.isfinite(block.yy).all())


def check_kernel(gram: Tensor, target: Tensor, rows: Rows) -> None:
    """Raise if the gram matrix of the rows (n, n) or their targets are not finite, saying why. One wait."""
    if not math.isfinite(float(gram.diagonal().sum() + (target * target).sum())):
        check_squares(rows, gram.dtype, overflowed=True)


def check_squares(rows: Rows, dtype: torch.dtype = torch.float64, *, overflowed: bool = False) -> None:
    """Raise if the rows hold NaN or infinity, or numbers whose squares overflow `dtype`. Cost one pass."""
    _check.finite(rows.X, "X")
    _check.finite(rows.y, "y")
    largest = max(float(end.abs()) for a in (rows.X, rows.y) for end in torch.aminmax(a.detach()))
    if overflowed or largest > (torch.finfo(dtype).max / max(rows.X.numel(), rows.y.numel())) ** 0.5:
        raise ValueError(
            f"`X` or `y` is too large to square in {dtype}: the largest value is {largest:.3g}. Rescale them."
        )


def check_vanishing(rows: Rows, dtype: torch.dtype) -> None:
    """Raise if the squares of all numbers of X vanish in `dtype`. Cost one pass."""
    largest = max(float(end.abs()) for end in torch.aminmax(rows.X.detach()))
    if 0 < largest < torch.finfo(dtype).tiny ** 0.5:
        raise ValueError(
            f"`X` is too small to square in {dtype}: the largest value is {largest:.3g}. Rescale it, e.g. "
            f"`X / X.abs().max()`."
        )
