"""Moments of rows that are spread over ranks, in two centred stages: the common mean first, then sums about it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchridge._ranks import Ranks
from torchridge.solvers.least_squares import scoring, whole_rows
from torchridge.solvers.least_squares.each_fold import FoldMoments
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.scorers import Whole
from torchridge.solvers.least_squares.target_scores import SCORES, Score
from torchridge.solvers.least_squares.triangle.factor import Triangle
from torchridge.solvers.moments import blocks
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.one_pass import fold_blocks
from torchridge.solvers.moments.parts import take, variance_of
from torchridge.solvers.moments.rows import Rows

# Numbers in the matrices of the rows that are left out together.
_LEFT_OUT = 2**24

_Key = TypeVar("_Key", bound=Hashable)


def says(moments: Moments) -> dict[str, Any]:
    """Return what a rank tells the others of its moments before they add them up; None if it holds no rows."""
    held = bool(moments._blocks)
    return {
        "features": moments.n_features if held else None,
        "targets": moments.n_targets if held else None,
        "dtype": str(moments.dtype) if held else None,
        "result_dtype": str(moments.result_dtype) if held else None,
        "vector_target": moments.vector_target if held else None,
        "fold": (None not in moments._blocks) if held else None,
        "counts": [[k, b.rows, float(b.weight)] for k, b in moments._blocks.items()],
    }


AGREE = ("features", "targets", "dtype", "result_dtype", "vector_target", "fold")


def all_reduced(moments: Moments, told: Sequence[Mapping[str, Any]], ranks: Ranks, dst: int | None = None) -> Moments:
    """Return the moments of all ranks' rows; `told` is what `says` of each of them. With `dst`, right on it alone."""
    first = next((t for t in told if t["counts"]), None)
    if first is None:
        return moments.clone()
    dtype = getattr(torch, first["dtype"].removeprefix("torch."))
    device = moments.device or torch.device("cpu")
    d, t = first["features"], first["targets"]
    counts = [{k: (rows, weight) for k, rows, weight in r["counts"]} for r in told]
    result = Moments(dtype=dtype, device=device)
    result.result_dtype = getattr(torch, first["result_dtype"].removeprefix("torch."))
    result.vector_target = first["vector_target"]
    empty = blocks.empty_block(d, t, dtype, device)
    result._blocks = reduce_blocks(moments._blocks, counts, empty, ranks, dst)
    return result


def reduce_blocks(
    parts: Mapping[_Key, Block],
    counts: Sequence[Mapping[_Key, tuple[int, float]]],
    empty: Block,
    ranks: Ranks,
    dst: int | None = None,
) -> dict[_Key, Block]:
    """Return the moments of all ranks' rows for every key that some rank has.

    `counts` holds, for each rank, rows and Σ s by key; `empty` the moments of no rows. Every rank gets the same bits.

    Cost: K·(d + t) numbers gathered, then d²/2 + d·t numbers summed for each of the K keys.
    """
    keys = sorted({k for c in counts for k in c}, key=lambda k: (k is not None, k))
    mine = torch.stack([torch.cat(parts.get(k, empty)[2:4]) for k in keys])  # (K, d + t)
    means = ranks.all_gather("the means", mine)  # (ranks, K, d + t)
    result = {}
    for i, key in enumerate(keys):
        rows = sum(c[key][0] for c in counts if key in c)
        weights = mine.new_tensor([c[key][1] if key in c else 0.0 for c in counts])
        mean = _common_mean(means[:, i], weights)
        name = "the moments" if key is None else f"the moments of fold {key}"
        block = _summed(parts.get(key, empty), mean, ranks, name, dst)
        result[key] = block._replace(rows=rows, weight=weights.sum())
    return result


def _common_mean(means: Tensor, weights: Tensor) -> Tensor:
    """Average as offsets from one of the means, so that a large common mean costs no digits."""
    first = means[int((weights > 0).nonzero()[0])]
    shift = torch.where(weights[:, None] > 0, means - first, 0)
    return first + (weights / weights.sum()) @ shift


def _summed(block: Block, mean: Tensor, ranks: Ranks, name: str, dst: int | None) -> Block:
    """Add up what the ranks hold about the common mean; of the Gram matrix, which is symmetric, one triangle."""
    d, t = block.cross.shape
    shifted = blocks.about(block, mean[:d], mean[d:])
    rows = [shifted.gram[i, i:] for i in range(d)]
    total = ranks.all_sum(name, torch.cat([*rows, shifted.cross.reshape(-1), shifted.yy]), dst)
    triangle, cross, yy = torch.split(total, [d * (d + 1) // 2, d * t, t])
    gram = torch.zeros_like(shifted.gram)
    for i, row in enumerate(torch.split(triangle, [d - i for i in range(d)])):
        gram[i, i:] = row
    gram += gram.triu(1).T
    return shifted._replace(gram=gram, cross=cross.view(d, t).clone(), yy=yy.clone())


# Digits of 1 − h that are left to a leave-one-out residual, or its row is taken out of the moments instead.
_RESOLVED = 1e-8


@dataclass(frozen=True)
class LeaveOneOut:
    """Exact leave-one-out over the rows of all ranks: a scorer, as those of `cross_validation`."""

    whole: Whole  # the moments of all rows
    rows: Rows | None  # this rank's; None if it has none
    ranks: Ranks

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.whole.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.whole.eigvals

    @property
    def precision(self) -> Precision:
        """What the scores came from, and what rounding may have taken of them."""
        return self.whole.precision

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (1, L, t)."""
        alpha, block = alpha.to(self.like), self.whole.block
        total = block.yy.new_zeros(len(alpha) + 1, len(block.yy))
        tri = self.whole.careful(alpha)
        if self.rows is not None:
            alone = self._alone(self.rows, tri, alpha)
            total[:-1], total[-1] = self._own(self.rows, alone, tri, alpha), alone.sum()
        total = self.ranks.all_sum("the leave-one-out errors", total)
        if bool((total[-1] > 0).any()):
            few = int(total[-1, 0])
            self.precision.note(1.0, f"rows that nearly alone decide a weight, which moments do not leave out: {few}")
        return (total[:-1] / block.weight)[None]

    def _alone(self, rows: Rows, tri: Triangle | None, alpha: Tensor) -> Tensor:
        """Return which of this rank's rows have too high a leverage for moments to tell what is left, (n,)."""
        spectrum, block, objective = self.whole.spectrum, self.whole.block, self.whole.objective
        least = min(1e-3, max(self.precision.lost, torch.finfo(alpha.dtype).eps) / _RESOLVED)
        found = torch.zeros(len(rows.X), dtype=torch.bool, device=rows.X.device)
        if tri is None:
            found[scoring.leave_one_out(spectrum, block, objective, rows, alpha, least)[1]] = True
            return found
        return whole_rows.shares(tri, rows, objective, alpha).amin(1) < least

    def _own(self, rows: Rows, alone: Tensor, tri: Triangle | None, alpha: Tensor) -> Tensor:
        """Return Σ s e² over this rank's rows, (L, t)."""
        spectrum, block, objective = self.whole.spectrum, self.whole.block, self.whole.objective
        if objective.standardize:  # by the scales of the other rows
            return self._each(rows, alpha)
        total = alpha.new_zeros(len(alpha), rows.y.shape[1])
        if bool(alone.any()):
            total = total + self._each(take(rows, alone.nonzero()[:, 0]), alpha)
            rows = take(rows, (~alone).nonzero()[:, 0])
        if not len(rows.X):
            return total
        if tri is None:
            return total + scoring.leave_one_out(spectrum, block, objective, rows, alpha, 0.0)[0]
        return total + whole_rows.leave_one_out(tri, rows, None, objective, alpha, 0.0) * tri.weight

    def _each(self, rows: Rows, alpha: Tensor) -> Tensor:
        """Return Σ s e² of this rank's rows, each left out of the moments of all, (L, t)."""
        total, everyone = alpha.new_zeros(len(alpha), rows.y.shape[1]), torch.arange(rows.X.shape[0])
        for run in torch.split(everyone, max(1, _LEFT_OUT // rows.X.shape[1] ** 2)):
            own = fold_blocks(rows, [i[None] for i in run], alpha.dtype)
            train = [blocks.remove(self.whole.block, b) for b in own]
            scorer = FoldMoments(train, own, self.whole.objective, None, None, None, self.precision)
            total += (scorer.squares(alpha) * torch.stack([b.weight for b in own])[:, None, None]).sum(0)
        return total

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Raise: ranks add up squared errors alone."""
        asked = next(name for name, known in SCORES.items() if known is score)
        raise ValueError(
            f"`scoring`={asked!r} with cv='loo' needs the rows of one process. Over ranks use folds, or scoring='r2'."
        )

    def variances(self) -> Tensor:
        """Return the variance of the targets, (1, t)."""
        return variance_of(self.whole.block)[None]
