"""Parts of rows: some of them, their weight, the variance of their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.moments.blocks import Block, constant_noise
from torchridge.solvers.moments.rows import Rows

# Numbers in the weights of a path that are held at once to predict with.
PATH_NUMBERS = 2**24


def portions(alpha: Tensor, size: int) -> list[Tensor]:
    """Return runs of strengths, so many at most."""
    step = max(1, size)
    return [alpha[i : i + step] for i in range(0, len(alpha), step)]


def take(rows: Rows, index: Tensor) -> Rows:
    """Return some of the rows."""
    weight = None if rows.sample_weight is None else rows.sample_weight[index]
    return Rows(rows.X[index], rows.y[index], weight, rows.vector_target)


def weight_of(rows: Rows, index: Tensor | slice) -> Tensor:
    """Return Σ s over some of the rows."""
    if rows.sample_weight is None:
        count = index.shape[0] if isinstance(index, Tensor) else rows.X.shape[0]
        return torch.full((), count, dtype=torch.float64, device=rows.X.device)
    return rows.sample_weight[index].double().sum()


def target_variance(rows: Rows, index: Tensor | slice) -> Tensor:
    """Return the weighted variance of the targets of some rows, (t,), zero if they are constant."""
    y = rows.y[index].double()
    s = torch.ones_like(y[:, 0]) if rows.sample_weight is None else rows.sample_weight[index].double()
    s = s / s.sum()
    mean = s @ y
    left = y - mean
    left = left - s @ left  # what rounding left of a large mean
    variance: Tensor = s @ left**2
    return torch.where(variance > constant_noise(mean), variance, 0)


def variance_of(block: Block) -> Tensor:
    """Return the variance of the targets, (t,), zero if they are constant."""
    variance = block.yy / block.weight
    return torch.where(variance > constant_noise(block.mean_y), variance, 0)
