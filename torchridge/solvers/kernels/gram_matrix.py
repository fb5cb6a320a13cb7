"""The n × n gram matrix of few rows, about their mean and in the scale of the features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.blocks import constant_noise
from torchridge.solvers.moments.one_pass import CHUNK_BYTES
from torchridge.solvers.moments.rows import Rows

# Columns of few rows that are summed at once: what stays near the processor while it is centred, scaled and multiplied.
_FEW_BYTES = 4 * 2**20


class Kernel(NamedTuple):
    """The gram matrix of the rows, and what was taken off them."""

    gram: Tensor  # (n, n) Z Zᵀ
    target: Tensor  # (n, t) √s (y − ȳ − priorᵀ x)
    root: Tensor | None  # (n,) √s
    center: Tensor  # (d,) x̄, or zero without intercept
    target_center: Tensor  # (t,)
    scale: Tensor | None  # (d,) 1 / p, zero for a feature that is not penalized
    free: Tensor | None  # (q',) the features that are not penalized
    intercept: bool
    toward: Tensor | None = None  # (n,) (x_i − x̄)ᵀ D⁻¹ x̄, if it is known already


def kernel(rows: Rows, objective: Objective, dtype: torch.dtype) -> Kernel:
    """Return the gram matrix of the rows. Cost n² d / 2; memory n² numbers and 80 MiB above the rows."""
    X, y = rows.X.detach(), rows.y.detach().to(dtype)
    n = X.shape[0]
    weight = None if rows.sample_weight is None else rows.sample_weight.detach().to(dtype)
    root = None if weight is None else weight.sqrt()
    share = torch.full((n,), 1 / n, dtype=dtype, device=X.device) if weight is None else weight / weight.sum()
    if objective.precomputed:
        return _given(X.to(dtype), y, root, share, objective)
    gram, fitted = y.new_zeros(n, n), torch.zeros_like(y)
    centers, scales = [], []
    for part in column_chunks(X, dtype):
        center, x = centered(X[:, part].to(dtype), share, objective.intercept)
        scale = _scale(objective, part, x, center, share)
        x = x if root is None else x * root[:, None]
        if objective.prior is not None:
            fitted += x @ objective.prior[part]
        algebra.add_gram(gram, (x if scale is None else x * scale.sqrt()).T)
        centers.append(center)
        scales.append(scale)
    target_center, target = centered(y, share, objective.intercept)
    target = target if root is None else target * root[:, None]
    target = target if objective.prior is None else target - fitted
    scale = None if scales[0] is None else torch.cat([s for s in scales if s is not None])
    center = centers[0] if len(centers) == 1 else torch.cat(centers)
    return Kernel(algebra.mirror(gram), target, root, center, target_center, scale, objective.free, objective.intercept)


def _given(gram: Tensor, y: Tensor, root: Tensor | None, share: Tensor, objective: Objective) -> Kernel:
    """Return a kernel that was given, (n, n), about the mean of its features, whose coordinates are its columns."""
    gram = (gram + gram.T) / 2
    center = share @ gram if objective.intercept else torch.zeros_like(gram[0])
    target_center, target = centered(y, share, objective.intercept)
    if objective.intercept:
        gram = gram - center - center[:, None] + center @ share
    if root is not None:
        gram, target = gram * root * root[:, None], target * root[:, None]
    return Kernel(gram, target, root, center, target_center, None, None, objective.intercept)


def kernel_about(rows: Rows, share: Tensor, objective: Objective, dtype: torch.dtype) -> Kernel:
    """Return the gram matrix of all rows about the mean and in the scale that the shares (n,) of rows give.

    Without targets, and without the weights of the rows. Cost n² d / 2; memory n² numbers and 80 MiB above the rows.
    """
    X = rows.X.detach()
    nothing = X.new_empty(X.shape[0], 0, dtype=dtype)
    if objective.precomputed:
        return _given(X.to(dtype), nothing, None, share, objective)
    gram, centers, scales = X.new_zeros(X.shape[0], X.shape[0], dtype=dtype), [], []
    toward = gram.new_zeros(len(gram))
    for part in column_chunks(X, dtype, _FEW_BYTES):
        center, x = centered(X[:, part].to(dtype), share, objective.intercept)
        scale = _scale(objective, part, x, center, share)
        toward += x @ (center if scale is None else center * scale)
        algebra.add_gram(gram, (x if scale is None else x * scale.sqrt()).T)
        centers.append(center)
        scales.append(scale)
    scale = None if scales[0] is None else torch.cat([s for s in scales if s is not None])
    place = (None, torch.cat(centers), nothing[0], scale, objective.free, objective.intercept, toward)
    return Kernel(algebra.mirror(gram), nothing, *place)


def weighted(problem: Kernel, root: Tensor | None) -> Kernel:
    """Return a gram matrix of rows with their √s."""
    return problem if root is None else problem._replace(gram=problem.gram * root * root[:, None], root=root)


def fitted_by_prior(rows: Rows, center: Tensor, prior: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (X − center) prior, (n, t), for a prior (d, t)."""
    X, fitted = rows.X.detach(), rows.y.new_zeros(len(rows.X), prior.shape[1], dtype=dtype)
    for part in column_chunks(X, dtype):
        fitted += (X[:, part].to(dtype) - center[part]) @ prior[part]
    return fitted


def centered(x: Tensor, share: Tensor, intercept: bool) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of the columns and what it leaves of them; zero and the columns without intercept."""
    if not intercept:
        return torch.zeros_like(x[0]), x
    center = share @ x
    x = x - center
    rest = share @ x  # what rounding left of a large mean
    return center + rest, x.sub_(rest)


def _scale(objective: Objective, part: slice, x: Tensor, center: Tensor, share: Tensor) -> Tensor | None:
    """Return 1 / p of some features, zero for those that are not penalized; None if all are one."""
    penalty = None if objective.penalty is None else objective.penalty[part]
    if objective.standardize:
        x = x if objective.intercept else x - share @ x
        spread = share @ (x * x)
        spread = torch.where(spread > constant_noise(center), spread, 1)
        penalty = spread if penalty is None else penalty * spread
    return None if penalty is None else torch.where(penalty > 0, 1 / penalty, 0)


def column_chunks(X: Tensor, dtype: torch.dtype, most: int = CHUNK_BYTES) -> list[slice]:
    """Return slices of columns of X that fit the working memory."""
    n, d = X.shape
    size = max(64, most // (dtype.itemsize * n))
    return [slice(i, min(i + size, d)) for i in range(0, d, size)]
