"""Moments whose targets are changed afterwards: more columns, other codes, other weights, other scales of the features.

All of these follow from the moments alone, so that one pass over the rows serves every coding of their labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.device import sent
from torchridge.solvers.moments.blocks import Block


def widened(block: Block, columns: Tensor, t: int) -> Block:
    """Return the moments with t targets, of which the old ones stand at `columns` and the others were always zero."""
    if t == block.yy.shape[0]:
        return block
    columns = sent(columns, block.yy.device)
    cross = block.cross.new_zeros(block.cross.shape[0], t)
    cross[:, columns] = block.cross
    mean, yy = block.mean_y.new_zeros(t), block.yy.new_zeros(t)
    mean[columns], yy[columns] = block.mean_y, block.yy
    return block._replace(mean_y=mean, cross=cross, yy=yy)


def selected(block: Block, columns: Tensor) -> Block:
    """Return the moments of some of the targets."""
    columns = sent(columns, block.yy.device)
    return block._replace(mean_y=block.mean_y[columns], cross=block.cross[:, columns], yy=block.yy[columns])


def signed(block: Block) -> Block:
    """Return the moments of the targets 2y − 1: indicators of 0 and 1 become −1 and 1."""
    return block._replace(mean_y=2 * block.mean_y - 1, cross=2 * block.cross, yy=4 * block.yy)


def reweighted(block: Block, factor: float) -> Block:
    """Return the moments after every weight is multiplied by `factor`."""
    mean_x, mean_y = block.mean_x, block.mean_y
    return Block(
        block.rows, block.weight * factor, mean_x, mean_y, block.gram * factor, block.cross * factor, block.yy * factor
    )


def rescaled(block: Block, scale: Tensor) -> Block:
    """Return the moments of the features x ∘ scale, scale (d,)."""
    gram = block.gram * scale * scale[:, None]
    return block._replace(mean_x=block.mean_x * scale, gram=gram, cross=block.cross * scale[:, None])


def indicators(codes: Tensor, k: int) -> Tensor:
    """Return codes (n,) in 0 … k−1 as columns of zeros and ones, (n, k), float64."""
    return torch.nn.functional.one_hot(codes, k).double()
