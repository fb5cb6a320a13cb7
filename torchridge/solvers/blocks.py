"""First and second moments of rows (x, y), centred on arrival: all that ridge regression needs of its data.

Letters, here and in every file of this wing: n rows, d features, t targets, s_i sample weights,
    mean_x = Σ s x / Σ s                          (d,)
    gram   = Σ s (x − mean_x)(x − mean_x)ᵀ        (d, d)
    cross  = Σ s (x − mean_x)(y − mean_y)ᵀ        (d, t)
    yy     = Σ s (y − mean_y)²                    (t,)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers import blas, rules, sliced
from torchridge.solvers.rows import Rows

# Working memory of one pass over rows, beside the d × d matrices.
CHUNK_BYTES = 40 * 2**20

# Rows whose mean the first chunk is shifted by.
_PIVOT_ROWS = 64


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


def chunk_rows(d: int, t: int, itemsize: int) -> int:
    """Return how many rows of (x, y) to work on at once: what fits the working memory, and is worth a d × d product."""
    return max(64, min(CHUNK_BYTES // (itemsize * (d + t)), max(8 * d, 4096)))


class Workspace(NamedTuple):
    """Memory that passes over rows work in, one after the other; getting it anew costs a tenth of a small pass."""

    joint: bool
    buffers: list[Any]  # (rows, d + t); or (rows, d) and (rows, t)
    product: Any  # the gram matrix of the first of them


def workspace(n: int, d: int, t: int, dtype: torch.dtype, device: torch.device) -> Workspace:
    """Return working memory for passes over at most n rows."""
    like = torch.empty(0, dtype=dtype, device=device)
    size = min(n, chunk_rows(d, t, dtype.itemsize) * rules.chunks(device))
    # A few targets ride in the symmetric product; many would make it compute their own t × t for nothing.
    joint = t <= max(16, d // 16)
    widths = [d + t] if joint else [d, t]
    buffers = [blas.empty(size, w, like=like) for w in widths]
    return Workspace(joint, buffers, blas.empty(widths[0], widths[0], like=like))


class _Pass:
    """One pass over chunks of rows: init, `step` a chunk, `finish`.

    A chunk is shifted by the mean so far, and that mean is kept as an offset from the first chunk's, so that a large
    mean costs no digits. What the shift leaves of the chunk's own mean is taken out by rank-one terms (Chan, Golub &
    LeVeque 1983, doi:10.1080/00031305.1983.10483115), which are kept and applied together, since a d × d outer
    product per chunk would cost as much as the chunk.
    """

    def __init__(self, like: Block, work: Workspace, slices: int = 0) -> None:
        self.slices = slices
        self.d, self.t = like.cross.shape
        self.like = like.gram
        self.count, self.weight = 0, 0.0
        self.joint, self.buffers, self.product = work
        self.total = blas.array(torch.zeros(work.product.shape, dtype=self.like.dtype, device=self.like.device))
        self.cross, self.yy = blas.array(like.cross), blas.array(like.yy)  # of their own where not joint
        self.base = self.offset = blas.array(torch.cat([like.mean_x, like.mean_y]))  # mean = base + offset
        self.corrections: list[tuple[float, Any]] = []

    def step(self, X: Any, y: Any, s: Any) -> None:
        m, d = X.shape[0], self.d
        rows = [b[:m] for b in self.buffers]
        x, z = (rows[0][:, :d], rows[0][:, d:]) if self.joint else rows
        weight = float(m if s is None else s.sum())
        pivot = self.base + self.offset if self.weight >= weight and self.weight > 0 else self._mean_of(X, y)
        self.base = pivot if self.count == 0 else self.base
        _subtract(X, pivot[:d], x)
        _subtract(y, pivot[d:], z)
        ones = self._ones(m) if s is None else s
        total = _concatenate([ones @ r for r in rows])  # Σ s (row − pivot)
        if s is not None:
            for r in rows:
                r *= (s**0.5)[:, None]
        self._accumulate(rows)
        self.count += m
        if weight > 0:
            self._merge(pivot - self.base, total, weight)

    def _accumulate(self, rows: list[Any]) -> None:
        if self.slices:
            self.total += blas.array(sliced.gram(blas.tensor(rows[0]), self.slices))
        else:
            blas.gram_into(rows[0], self.product)
            self.total += self.product
        if not self.joint:
            self.cross += rows[0].T @ rows[1]
            self.yy += (rows[1] * rows[1]).sum(0)

    def _merge(self, pivot: Any, total: Any, weight: float) -> None:
        all_weight = self.weight + weight
        gap = pivot - self.offset + total / weight
        self._correct(-1 / weight, total)
        self._correct(self.weight * weight / all_weight, gap)
        self.offset = self.offset + gap * (weight / all_weight)
        self.weight = all_weight

    def _correct(self, factor: float, vector: Any) -> None:
        self.corrections.append((factor, vector))
        if len(self.corrections) == 32:
            self._flush()

    def _flush(self) -> None:
        if not self.corrections:
            return
        factors = [f for f, _ in self.corrections]
        rows = _stack([abs(f) ** 0.5 * v for f, v in self.corrections])
        signs = _like([1.0 if f > 0 else -1.0 for f in factors], rows)[:, None]
        x = rows if self.joint else rows[:, : self.d]
        self.total += (x * signs).T @ x
        if not self.joint:
            z = rows[:, self.d :]
            self.cross += (x * signs).T @ z
            self.yy += (z * z * signs).sum(0)
        self.corrections.clear()

    def _mean_of(self, X: Any, y: Any) -> Any:
        """The mean of the first rows of a chunk: a pivot need only be near."""
        X, y = X[:_PIVOT_ROWS], y[:_PIVOT_ROWS]
        if isinstance(X, Tensor):
            return torch.cat([X.to(self.like.dtype).mean(0), y.to(self.like.dtype).mean(0)])
        kind = self.total.dtype
        return np.concatenate([X.mean(0, dtype=kind), y.mean(0, dtype=kind)])

    def _ones(self, m: int) -> Any:
        like = self.buffers[0]
        return torch.ones_like(like[:m, 0]) if isinstance(like, Tensor) else np.ones(m, like.dtype)

    def finish(self) -> Block:
        self._flush()
        d = self.d
        total, mean = blas.tensor(self.total), blas.tensor(self.base + self.offset)
        cross, yy = blas.tensor(self.cross), blas.tensor(self.yy)
        if self.joint:
            total, cross, yy = total[:d, :d].contiguous(), total[:d, d:].clone(), total.diagonal()[d:].clone()
        weight = torch.as_tensor(self.weight, dtype=self.like.dtype, device=self.like.device)
        return Block(self.count, weight, mean[:d].clone(), mean[d:].clone(), total, cross, yy.clamp_min(0))


def _subtract(rows: Any, pivot: Any, out: Any) -> None:
    if isinstance(out, Tensor):
        out.copy_(rows).sub_(pivot)
    else:
        np.subtract(rows, pivot, out=out, dtype=out.dtype, casting="same_kind" if rows.dtype.kind == "f" else "unsafe")


def _concatenate(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def _stack(rows: list[Any]) -> Any:
    return torch.stack(rows) if isinstance(rows[0], Tensor) else np.stack(rows)


def _like(values: list[float], rows: Any) -> Any:
    return rows.new_tensor(values) if isinstance(rows, Tensor) else np.array(values, rows.dtype)


def block_of(
    X: Tensor,
    y: Tensor,
    sample_weight: Tensor | None,
    index: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    work: Workspace | None = None,
) -> Block:
    """Return the moments of the rows `index` (default: all) of X (n, d) and y (n, t), in one pass.

    Cost n d (d / 2 + t) multiply-adds; memory 3 d² numbers, and `CHUNK_BYTES`.
    """
    d, t = X.shape[1], y.shape[1]
    n = X.shape[0] if index is None else index.shape[0]
    work = workspace(n, d, t, dtype, device) if work is None else work
    size = work.buffers[0].shape[0]
    if index is not None or X.dtype is torch.bfloat16:  # such rows are copied on their way in, beside the buffers
        size = max(1, size // 2)
    run = _Pass(empty_block(d, t, dtype, device), work, rules.slices(device, X.dtype, dtype))
    weights = None if sample_weight is None else sample_weight.to(device, dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # `check_finite` tells the caller, with the row
        for start in range(0, n, size):
            rows = slice(start, start + size) if index is None else index[start : start + size]
            run.step(*(None if a is None else blas.array(a[rows].to(device)) for a in (X, y, weights)))
        return run.finish()


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
    gram = blas.gram(dx)
    cross, yy = blas.matmul(dx.T, dy), (dy * dy).sum(0)
    for b in blocks:
        gram += b.gram
        cross += b.cross
        yy += b.yy
    rows = sum(b.rows for b in blocks)
    return Block(rows, weight, first.mean_x + mean_x, first.mean_y + mean_y, gram, cross, yy)


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


def check_finite(block: Block, rows: Rows) -> None:
    """Raise if the rows held NaN or infinity, or overflowed: their moments show it without another pass."""
    if not (bool(torch.isfinite(block.gram.diagonal()).all()) and bool(torch.isfinite(block.yy).all())):
        check_squares(rows, block.gram.dtype, overflowed=True)


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
