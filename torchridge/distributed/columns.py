"""Moments of features of which every rank holds some columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Ranks, brief
from torchridge.solvers.moments import one_pass
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.folds import check_fold
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.rows import Rows, result_dtype


def moments_of_columns(
    X: Tensor, d: int, y: Tensor, sample_weight: Tensor | None, fold: Any, ranks: Ranks, place: int
) -> Moments:
    """Return the moments of all d columns, of which X (n, d_own) is this rank's part, at `place` among the parts."""
    n, dtype, result = X.shape[0], result_dtype(X.dtype), Moments(device=X.device)

    def check() -> tuple[Rows, Any]:
        some = X if X.shape[1] else X.new_zeros(n, 1)  # fewer columns than ranks
        rows = Rows(*_check.rows(some, y, sample_weight))
        for value, name in ((rows.X, "X"), (rows.y, "y")):
            _check.finite(value, name)
        return rows, check_fold(fold, set(), n, False)

    def says(_: Any) -> dict[str, Any]:
        same = {"rows": n, "dtype": str(dtype), "y": brief(y), "sample_weight": brief(sample_weight)}
        return {**same, "fold": brief(fold), "place": place, "width": X.shape[1]}

    agree = ("rows", "dtype", "y", "sample_weight", "fold")
    (rows, ids), told = ranks.together("column_moments", check, says, agree=agree)
    parts = _Parts(ranks, [t["place"] for t in told], [t["width"] for t in told])
    result.result_dtype, result.vector_target = dtype, rows.vector_target
    for key, index in _indices(ids, rows).items():
        result._blocks[key] = _block(X, d, rows, index, parts)
    return result


class _Parts:
    """Puts the columns of all ranks side by side."""

    def __init__(self, ranks: Ranks, places: list[int], widths: list[int]) -> None:
        self.ranks, self.widest = ranks, max(widths)
        self.order = sorted(range(len(places)), key=places.__getitem__)
        self.widths = widths

    def gathered(self, name: str, own: Tensor) -> Tensor:
        """Return (d, m) of every rank's (d_own, m)."""
        padded = own.new_zeros(self.widest, own.shape[1])
        padded[: len(own)] = own
        each = self.ranks.all_gather(name, padded)
        return torch.cat([each[i, : self.widths[i]] for i in self.order])


def _indices(ids: Any, rows: Rows) -> dict[int | None, Tensor]:
    """Return the numbers of the rows that count, by fold."""
    n = rows.X.shape[0]
    counts = torch.ones(n, dtype=torch.bool) if rows.sample_weight is None else rows.sample_weight.cpu() > 0
    if not isinstance(ids, Tensor):
        return {ids: counts.nonzero()[:, 0]}
    ids = torch.where(counts, ids.cpu(), -1)
    return {int(k): (ids == k).nonzero()[:, 0] for k in torch.unique(ids[ids >= 0])}


def _block(X: Tensor, d: int, rows: Rows, index: Tensor, parts: _Parts) -> Block:
    """Return the moments of some rows: means first, then chunks about them."""
    index = index.to(X.device)
    y = rows.y[index].double()
    s = torch.ones_like(y[:, 0]) if rows.sample_weight is None else rows.sample_weight[index].double()
    weight, t, own = s.sum(), y.shape[1], X.shape[1]
    size = one_pass.chunk_rows(d, t, 8)
    mean_y = y[0] + s @ (y - y[0]) / weight
    y = y - mean_y
    mean_own = _mean(X, index, s, size)
    dtype = result_dtype(X.dtype)
    mean = parts.gathered("the means", mean_own[:, None])[:, 0]
    gram, cross = y.new_zeros(own, d), y.new_zeros(own, t)
    for start in range(0, len(index), size):
        run = slice(start, start + size)
        x = X[index[run]]
        x = x if x.dtype in (torch.float32, torch.float64) else x.to(dtype)  # what gloo can carry
        everything = parts.gathered("columns", x.T).T.double() - mean  # (m, d)
        weighted = ((x - mean_own) * s[run, None]).T  # (d_own, m), float64
        gram += weighted @ everything
        cross += weighted @ y[run]
    whole = parts.gathered("the Gram matrix", torch.cat([gram, cross], 1))
    gram = whole[:, :d]
    yy = s @ y**2
    return Block(len(index), weight, mean, mean_y, (gram + gram.T) / 2, whole[:, d:].contiguous(), yy)


def _mean(X: Tensor, index: Tensor, s: Tensor, size: int) -> Tensor:
    """Return the weighted means of the columns, averaged as offsets from the first row."""
    first = X[index[0]].double()
    total = torch.zeros_like(first)
    for start in range(0, len(index), size):
        run = slice(start, start + size)
        total += s[run] @ (X[index[run]].double() - first)
    return first + total / s.sum()
