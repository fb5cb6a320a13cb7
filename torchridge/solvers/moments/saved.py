"""Parts of saved moments, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from torchridge import _check
from torchridge.solvers.moments import finite
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows

DTYPES = {str(dtype): dtype for dtype in (torch.float64, torch.float32)}


def least_weight(parts: list[Block], rows: Rows) -> float:
    """Return the least weight, 1 without weights, or raise if rows or weights are refused; a device waits once."""
    weight = rows.sample_weight
    probes = [b.gram.diagonal().sum() + b.yy.sum() + b.weight for b in parts]
    if weight is not None:
        probes += [end.to(probes[0]) for end in torch.aminmax(weight.detach())]
    values = torch.stack(probes).tolist()
    low, high = (1.0, 1.0) if weight is None else values[-2:]
    if weight is not None and not (low > 0 and high < math.inf):
        low = _check.least_weight(weight)
    if low == 0:
        _check.finite(rows.X, "X")  # no moment shows what a row of zero weight holds
        _check.finite(rows.y, "y")
    if not all(math.isfinite(v) for v in values):
        for b in parts:
            finite.check_finite(b, rows)
    return low


def cloned(block: Block) -> Block:
    """Return a copy."""
    return Block(block.rows, *(a.clone() for a in block[1:]))


def check_parts(parts: Mapping[int | None, Block]) -> None:
    """Raise unless the blocks of a state are whole, and fit together."""
    if len({b.cross.shape for b in parts.values()}) > 1 or (None in parts and len(parts) > 1):
        raise ValueError(
            "`state` holds blocks that do not fit together; expected one for all rows, or one for each fold."
        )
    for fold, b in parts.items():
        if fold is not None:
            _check.integer(fold, "state", minimum=0)
        _check.integer(b.rows, "state", minimum=1)
        d, t = b.cross.shape
        expected = {"weight": (), "mean_x": (d,), "mean_y": (t,), "gram": (d, d), "cross": (d, t), "yy": (t,)}
        for name, size in expected.items():
            _check.is_tensor(getattr(b, name), name)
            _check.shape(getattr(b, name), [size], name)
