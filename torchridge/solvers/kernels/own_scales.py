"""Gram matrices of training parts that each have a scale of features of their own, from the one of all rows.

With W the scale of all rows and W_f that of the training rows of a split f, X W_f Xᵀ = X W Xᵀ + X (W_f − W) Xᵀ. The
first term is summed once, in float64. W_f − W is a few percent of W, so that float32, at half the price, sums the
second term with an error of about 1e-9 of the first. Features whose scale changes by more, as one that is constant in a
training part or one of a few outliers, are summed by themselves in float64, as `gram_matrix.kernel_about` sums them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.device import half_price
from torchridge.solvers.kernels import gram_matrix
from torchridge.solvers.kernels.gram_matrix import Kernel, column_chunks
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.blocks import constant_noise
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.one_pass import CHUNK_BYTES
from torchridge.solvers.moments.rows import Rows, result_dtype

# The change of a scale, as a share of it, up to which float32 sums it.
_SMALL_CHANGE = 0.3

# The share of features with larger changes up to which the others are worth a sum of their own.
_FEW = 0.25

# Numbers in the rows from which float32 sums save more than they cost to prepare.
_WORTH = 2**18

# Working memory: columns that are scaled at once (four times as much for all splits), and the sums of the splits that
# are made together.
_FEW_BYTES, _SUMS_BYTES, _MOST_SPLITS = 2 * 2**20, 64 * 2**20, 64

# Rows of a block of a sum; the splits share its other factor. On one thread at (600, 20000) and 5 splits, blocks of 64,
# 100, 128, 200 and 300 rows take 0.67, 0.63, 0.65, 0.69 and 0.99 s.
_BLOCK_ROWS = 128


def held_bytes(n: int, count: int, dtype: torch.dtype) -> int:
    """Return the bytes of the eigenvectors of `count` training parts of n rows, and of the sums of their changes."""
    return count * n * n * dtype.itemsize + max(4 * n * n, min(_SUMS_BYTES, 4 * count * n * n))


class _Sums(NamedTuple):
    """What the scales of some splits change in the gram matrix, and the features that it leaves out."""

    first: int  # the number of the first of these splits
    blocks: list[Tensor]  # (splits, rows of the block, n − first row) on and above the diagonal, float32
    apart: Tensor  # (h,) features that are summed by themselves


@dataclass(frozen=True)
class OwnScales:
    """The gram matrices of all rows about the mean and in the scale of every training part."""

    rows: Rows
    splits: list[Split]
    objective: Objective
    dtype: torch.dtype
    kernel: Kernel | None = None  # of all rows, about their mean and in their scale, without weights

    @cached_property
    def swift(self) -> bool:
        """Whether float32 sums of the changes are to be had, and are worth it."""
        X = self.rows.X
        single = self.dtype is torch.float64 and result_dtype(X.dtype) is torch.float32
        plain = self.kernel is not None and self.objective.free is None
        return single and plain and X.numel() >= _WORTH and half_price(X.device)

    def summed(self, k: int) -> Kernel:
        """Return the gram matrix of one split in float64 throughout. Cost n² d / 2."""
        return gram_matrix.kernel_about(self.rows, self._share(k), self.objective, self.dtype)

    def changed(self, k: int) -> Kernel:
        """Return the same from the one of all rows. Cost n² d / 2 in float32; splits are cheapest in their order."""
        sums = self._kept.get(0)
        if sums is None or not sums.first <= k < sums.first + len(sums.blocks[0]):
            self._kept.clear()
            sums = self._kept[0] = self._changes(k)
        if k == sums.first + len(sums.blocks[0]) - 1:
            self._kept.clear()
        if len(sums.apart) > _FEW * self.rows.X.shape[1]:
            return self.summed(k)
        return self._with(sums, k)

    def about(self, k: int) -> Tensor:
        """Return the gram matrix of all rows in their scale, about the mean of one training part."""
        assert self.kernel is not None
        return self._about(self.kernel.gram, self._share(k))

    @cached_property
    def _kept(self) -> dict[int, _Sums]:
        return {}

    def _share(self, k: int | None) -> Tensor:
        """Return the share of every row in the training part of a split, or in all rows, (n,)."""
        weight, n = self.rows.sample_weight, len(self.rows.X)
        every = torch.ones(n, dtype=self.dtype, device=self.rows.X.device)
        share = every if weight is None else weight.detach().to(self.dtype)
        if k is not None:
            train = self.splits[k][0]
            share = torch.zeros_like(share).index_copy_(0, train, share[train])
        return share / share.sum()

    def _changes(self, first: int) -> _Sums:
        assert self.kernel is not None and self.kernel.scale is not None
        X = self.rows.X.detach()
        n, d = X.shape
        count = min(len(self.splits) - first, _MOST_SPLITS, max(1, _SUMS_BYTES // (4 * n * n)))
        shares = torch.stack([self._share(None), *(self._share(first + j) for j in range(count))])
        starts = range(0, n, _BLOCK_ROWS)
        shapes = [(count, min(_BLOCK_ROWS, n - i), n - i) for i in starts]
        blocks = [torch.zeros(shape, dtype=torch.float32, device=X.device) for shape in shapes]
        apart = torch.zeros(d, dtype=torch.bool, device=X.device)
        for part in column_chunks(X, torch.float32, min(_FEW_BYTES, 4 * _FEW_BYTES * n // (count * shapes[0][1]))):
            scale = self.kernel.scale[part]
            x = X[:, part].to(self.dtype)
            center = shares[0] @ x
            near = x - center
            z = ((near if self.objective.intercept else x) * scale.sqrt()).float()
            change = _relative_changes(near, center, shares)
            apart[part] = far = ~(change.abs() <= _SMALL_CHANGE).all(0)
            change = torch.where(far, 0, change).float()
            for block, i in zip(blocks, starts, strict=True):
                scaled = (change[:, None] * z[i : i + _BLOCK_ROWS]).flatten(0, 1)
                block.flatten(0, 1).addmm_(scaled, z[i:].T)
        return _Sums(first, blocks, apart.nonzero()[:, 0])

    def _with(self, sums: _Sums, k: int) -> Kernel:
        """Return the gram matrix of all rows with the changes of one split, about the mean of its training rows."""
        kernel, share = self.kernel, self._share(k)
        assert kernel is not None
        gram = kernel.gram.clone()
        for block, i in zip(sums.blocks, range(0, len(gram), _BLOCK_ROWS), strict=True):
            gram[i : i + _BLOCK_ROWS, i:] += block[k - sums.first]
        gram = algebra.mirror(gram)
        if len(sums.apart):
            gram -= self._of_features(sums.apart, self._share(None))
        gram = self._about(gram, share)
        if len(sums.apart):
            gram += self._of_features(sums.apart, share)
        return kernel._replace(gram=gram, toward=None)

    def _about(self, gram: Tensor, share: Tensor) -> Tensor:
        """Return the gram matrix about the mean that shares of rows give, if there is an intercept."""
        if not self.objective.intercept:
            return gram
        toward = gram @ share
        return gram - toward - toward[:, None] + share @ toward

    def _of_features(self, which: Tensor, share: Tensor) -> Tensor:
        """Return the gram matrix of some features about the mean and in the scale that the shares give."""
        X, penalty, n = self.rows.X, self.objective.penalty, len(self.rows.X)
        total = torch.zeros(n, n, dtype=self.dtype, device=X.device)
        for some in torch.split(which, max(64, CHUNK_BYTES // (self.dtype.itemsize * n))):
            own = self.objective._replace(penalty=None if penalty is None else penalty[some])
            total += gram_matrix.kernel_about(self.rows._replace(X=X[:, some]), share, own, self.dtype).gram
        return total


def _relative_changes(near: Tensor, center: Tensor, shares: Tensor) -> Tensor:
    """Return W_f / W − 1 of every split and feature, not finite or large if the sums here do not tell it.

    Args:
        near: (n, m) features about their mean in all rows.
        center: (m,) that mean.
        shares: (1 + splits, n) of all rows, and of each training part.
    """
    mean = shares @ near
    spread = shares @ (near * near) - mean * mean
    constant = spread <= constant_noise(center + mean)
    change = spread[0] / spread[1:] - 1
    return torch.where(constant[0], torch.where(constant[1:], 0, torch.inf), change)
