"""First and second moments of rows (x, y), centred on arrival: all that ridge regression needs of its data.

Letters, here and in every file of this wing: n rows, d features, t targets, s_i sample weights,
    mean_x = Σ s x / Σ s                          (d,)
    gram   = Σ s (x − mean_x)(x − mean_x)ᵀ        (d, d)
    cross  = Σ s (x − mean_x)(y − mean_y)ᵀ        (d, t)
    yy     = Σ s (y − mean_y)²                    (t,)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import algebra


class Block(NamedTuple):
    """Moments of one set of rows."""

    rows: int
    weight: Tensor  # () Σ s
    mean_x: Tensor  # (d,)
    mean_y: Tensor  # (t,)
    gram: Tensor  # (d, d)
    cross: Tensor  # (d, t)
    yy: Tensor  # (t,)


def empty_block(d: int, t: int, dtype: torch.dtype, device: torch.device) -> Block:
    """Return the moments of no rows."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return Block(0, zeros(), zeros(d), zeros(t), zeros(d, d), zeros(d, t), zeros(t))


def constant_noise(mean: Tensor) -> Tensor:
    """Return the variance up to which a feature of this mean is constant: what rounding leaves is far below an ulp."""
    return (1e-5 * torch.finfo(mean.dtype).eps * mean) ** 2


def merge(blocks: Iterable[Block]) -> Block:
    """Return the moments of all the rows of several blocks together. Cost d² a block."""
    blocks = [b for b in blocks if b.rows]
    weight = sum((b.weight for b in blocks), torch.zeros_like(blocks[0].weight))
    share = torch.stack([b.weight for b in blocks]) / torch.where(weight > 0, weight, 1)
    # Means are averaged as offsets from the first, so that a large common mean costs no digits.
    first = blocks[0]
    shift_x = torch.stack([b.mean_x - first.mean_x for b in blocks])  # (blocks, d)
    shift_y = torch.stack([b.mean_y - first.mean_y for b in blocks])  # (blocks, t)
    mean_x, mean_y = share @ shift_x, share @ shift_y
    root = torch.stack([b.weight for b in blocks]).sqrt()[:, None]
    dx, dy = root * (shift_x - mean_x), root * (shift_y - mean_y)
    gram = algebra.gram(dx)
    cross, yy = dx.T @ dy, (dy * dy).sum(0)
    for b in blocks:
        gram += b.gram
        cross += b.cross
        yy += b.yy
    rows = sum(b.rows for b in blocks)
    return Block(rows, weight, first.mean_x + mean_x, first.mean_y + mean_y, gram, cross, yy)


def merge_others(blocks: list[Block]) -> list[Block]:
    """Return for each block the moments of all the others, without subtraction. Cost 3 d² a block."""
    if len(blocks) <= 4:
        return [merge(b for j, b in enumerate(blocks) if j != k) for k in range(len(blocks))]
    before, after = [blocks[0]], [blocks[-1]]
    for b in blocks[1:-1]:
        before.append(merge([before[-1], b]))
    for b in reversed(blocks[1:-1]):
        after.append(merge([b, after[-1]]))
    inner = [merge([before[k - 1], after[-k - 1]]) for k in range(1, len(blocks) - 1)]
    return [after[-1], *inner, before[-1]]


def remove(a: Block, b: Block) -> Block:
    """Return the moments of the rows of `a` that are not in `b`, for b a part of a. Cost d²."""
    rows, weight = a.rows - b.rows, a.weight - b.weight
    if rows == 0:
        d, t = a.cross.shape
        return empty_block(d, t, a.gram.dtype, a.gram.device)
    ratio = b.weight / torch.where(weight > 0, weight, 1)
    dx, dy = a.mean_x - b.mean_x, a.mean_y - b.mean_y
    scale = b.weight * (1 + ratio)  # a b / (a − b), for the weights a and b
    gram = a.gram - b.gram - scale * torch.outer(dx, dx)
    cross = a.cross - b.cross - scale * torch.outer(dx, dy)
    yy = (a.yy - b.yy - scale * dy * dy).clamp_min(0)
    return Block(rows, weight, a.mean_x + ratio * dx, a.mean_y + ratio * dy, gram, cross, yy)


def about(block: Block, point_x: Tensor, point_y: Tensor) -> Block:
    """Return the same moments taken about a given point in place of the mean."""
    dx, dy = block.mean_x - point_x, block.mean_y - point_y
    return block._replace(
        mean_x=point_x,
        mean_y=point_y,
        gram=block.gram + block.weight * torch.outer(dx, dx),
        cross=block.cross + block.weight * torch.outer(dx, dy),
        yy=block.yy + block.weight * dy * dy,
    )


def about_origin(block: Block) -> Block:
    """Return the same moments taken about zero, for a model without intercept."""
    return about(block, torch.zeros_like(block.mean_x), torch.zeros_like(block.mean_y))
