"""First and second moments of rows (x, y), centred on arrival: all that ridge regression needs of its data.

Letters, here and in every file of this wing: n rows, d features, t targets, s_i sample weights,
    mean_x = Σ s x / Σ s                          (d,)
    gram   = Σ s (x − mean_x)(x − mean_x)ᵀ        (d, d)
    cross  = Σ s (x − mean_x)(y − mean_y)ᵀ        (d, t)
    yy     = Σ s (y − mean_y)²                    (t,)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers import algebra
from torchridge.solvers import device as device_constants
from torchridge.solvers.moments import float_slices
from torchridge.solvers.moments.rows import Rows

# Working memory of one pass over rows, beside the d × d matrices.
CHUNK_BYTES = 40 * 2**20


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
    buffers: list[Tensor]  # (rows, d + t); or (rows, d) and (rows, t)


def workspace(n: int, d: int, t: int, dtype: torch.dtype, device: torch.device) -> Workspace:
    """Return working memory for passes over at most n rows."""
    size = min(n, chunk_rows(d, t, dtype.itemsize) * device_constants.chunks(device))
    # A few targets ride in the symmetric product; many would make it compute their own t × t for nothing.
    joint = t <= max(16, d // 16)
    widths = [d + t] if joint else [d, t]
    return Workspace(joint, [torch.empty(size, w, dtype=dtype, device=device) for w in widths])


def constant_noise(mean: Tensor) -> Tensor:
    """Return the variance up to which a feature of this mean is constant: what rounding leaves is far below an ulp."""
    return (1e-5 * torch.finfo(mean.dtype).eps * mean) ** 2


class _Pass:
    """One pass over chunks of rows: init, `step` a chunk, `finish`.

    A chunk is shifted by a point near its mean: its own weighted mean if rows bring weights, as one heavy row
    elsewhere would cancel the others, or else the mean so far, kept as an offset from the first chunk's, so that a
    large mean costs no digits. What the shift leaves of the chunk's own mean is taken out by rank-one terms (Chan,
    Golub & LeVeque 1983, doi:10.1080/00031305.1983.10483115), which are kept and applied together, since a d × d outer
    product per chunk would cost as much as the chunk.
    """

    def __init__(self, like: Block, work: Workspace, slices: int = 0) -> None:
        self.slices = slices
        self.d, self.t = like.cross.shape
        self.joint, self.buffers = work
        width = self.buffers[0].shape[1]
        self.total = like.gram.new_zeros(width, width)
        self.cross, self.yy = like.cross, like.yy  # of their own if not joint
        self.base = self.offset = like.gram.new_zeros(self.d + self.t)  # mean = base + offset
        self.count: int = 0
        self.weight: Tensor | float = 0.0
        self.taken: list[Tensor] = []  # vectors v of corrections −v vᵀ and +v vᵀ
        self.added: list[Tensor] = []

    def step(self, X: Tensor, y: Tensor, s: Tensor | None) -> None:
        rows = [b[: X.shape[0]] for b in self.buffers]
        parts = (rows[0][:, : self.d], rows[0][:, self.d :]) if self.joint else rows
        weight = float(X.shape[0]) if s is None else s.sum()
        safe = weight if s is None else torch.where(s.sum() > 0, s.sum(), 1)
        pivot = self._shifted(X, y, rows, parts, None if s is None else s / safe)
        total = _joined([r.sum(0) if s is None else s @ r for r in rows])  # Σ s (row − pivot)
        if s is not None:
            for r in rows:
                r.mul_(s.sqrt()[:, None])
        self._accumulate(rows)
        self._merge(pivot, total, weight, safe)
        self.count += X.shape[0]

    def _shifted(self, X: Tensor, y: Tensor, rows: list[Tensor], parts: Any, share: Tensor | None) -> Tensor:
        """Write the rows less their pivot into `rows`, of which `parts` are X and y; return its offset from `base`."""
        if share is None and self.count >= X.shape[0]:
            point = self.base + self.offset
            torch.sub(X, point[: self.d], out=parts[0])
            torch.sub(y, point[self.d :], out=parts[1])
            return self.offset
        parts[0].copy_(X)
        parts[1].copy_(y)
        pivots = [r.mean(0) if share is None else share @ r for r in rows]
        for r, p in zip(rows, pivots, strict=True):
            r.sub_(p)
        pivot = _joined(pivots)
        if self.count == 0:
            self.base = pivot
            return self.offset  # zero
        return pivot - self.base

    def _accumulate(self, rows: list[Tensor]) -> None:
        if self.slices:
            self.total += float_slices.gram(rows[0], self.slices)
        else:
            algebra.add_gram(self.total, rows[0])
        if not self.joint:
            self.cross.addmm_(rows[0].T, rows[1])
            self.yy += (rows[1] * rows[1]).sum(0)

    def _merge(self, pivot: Tensor, total: Tensor, weight: Tensor | float, safe: Tensor | float) -> None:
        """Add a chunk whose mean is `pivot` + total / weight."""
        self.taken.append(total / safe**0.5)
        if self.count:
            all_weight = self.weight + weight
            positive = torch.where(all_weight > 0, all_weight, 1) if isinstance(all_weight, Tensor) else all_weight
            share = weight / positive
            gap = pivot - self.offset + total / safe
            self.added.append(gap * (self.weight * share) ** 0.5)
            self.offset, self.weight = self.offset + gap * share, all_weight
        else:
            self.offset, self.weight = pivot + total / safe, weight
        if len(self.taken) == 32:
            self._flush()

    def _flush(self) -> None:
        for vectors, sign in ((self.taken, -1.0), (self.added, 1.0)):
            if not vectors:
                continue
            rows = torch.stack(vectors)
            x, z = (rows, None) if self.joint else (rows[:, : self.d], rows[:, self.d :])
            self.total.addmm_(x.T, x, alpha=sign)
            if z is not None:
                self.cross.addmm_(x.T, z, alpha=sign)
                self.yy += sign * (z * z).sum(0)
            vectors.clear()

    def finish(self) -> Block:
        self._flush()
        d, total, cross, yy = self.d, algebra.mirror(self.total), self.cross, self.yy
        if self.joint:
            total, cross, yy = total[:d, :d], total[:d, d:], total.diagonal()[d:]
        mean = self.base + self.offset
        varies = (total.diagonal() >= self.weight * constant_noise(mean[:d])).to(total)[:, None]
        weight = torch.as_tensor(self.weight, dtype=total.dtype, device=total.device)
        gram, cross = total * varies * varies.T, cross * varies
        return Block(self.count, weight, mean[:d], mean[d:], gram, cross, yy.clamp_min(0))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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

    Cost n d (d / 2 + t) multiply-adds; memory 2 d² numbers, and `CHUNK_BYTES`.
    """
    d, t = X.shape[1], y.shape[1]
    n = X.shape[0] if index is None else index.shape[0]
    work = workspace(n, d, t, dtype, device) if work is None else work
    size = work.buffers[0].shape[0]
    if index is not None:  # such rows are copied on their way in, beside the buffers
        size = max(1, size // 2)
    run = _Pass(empty_block(d, t, dtype, device), work, device_constants.slices(device, X.dtype, dtype))
    X, y = X.detach(), y.detach()
    weights = None if sample_weight is None else sample_weight.detach().to(device, dtype)
    for start in range(0, n, size):
        rows = slice(start, start + size) if index is None else index[start : start + size]
        run.step(X[rows].to(device), y[rows].to(device), None if weights is None else weights[rows])
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
