"""Moments of rows in one pass over chunks of them, each shifted by a point near its mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers import device as device_constants
from torchridge.solvers.device import sent
from torchridge.solvers.moments import float_slices
from torchridge.solvers.moments.blocks import Block, constant_noise, empty_block
from torchridge.solvers.moments.rows import Rows

# Working memory of one pass over rows, besides the d × d matrices.
CHUNK_BYTES = 40 * 2**20


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
        weight = self.weight.to(total) if isinstance(self.weight, Tensor) else total.new_full((), self.weight)
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
    if index is not None:  # such rows are copied on their way in, besides the buffers
        size = max(1, size // 2)
    run = _Pass(empty_block(d, t, dtype, device), work, device_constants.slices(device, X.dtype, dtype))
    X, y = X.detach(), y.detach()
    weights = None if sample_weight is None else sample_weight.detach().to(device, dtype)
    for start in range(0, n, size):
        rows = slice(start, start + size) if index is None else index[start : start + size]
        run.step(X[rows].to(device), y[rows].to(device), None if weights is None else weights[rows])
    return run.finish()


def fold_blocks(rows: Rows, index: list[Tensor], dtype: torch.dtype) -> list[Block]:
    """Return the moments of each fold, `index` on the host, in one pass; runs of rows are read without a copy."""
    (_, d), (_, t), device = rows.X.shape, rows.y.shape, rows.X.device
    work = workspace(max(len(i) for i in index), d, t, dtype, device)
    result = []
    for i in index:
        if len(i) and int(i[-1]) - int(i[0]) + 1 == len(i) and bool((i[1:] > i[:-1]).all()):
            run = slice(int(i[0]), int(i[-1]) + 1)
            weight = None if rows.sample_weight is None else rows.sample_weight[run]
            result.append(block_of(rows.X[run], rows.y[run], weight, None, dtype, device, work))
        else:
            result.append(block_of(*rows[:3], sent(i, device), dtype, device, work))
    return result
