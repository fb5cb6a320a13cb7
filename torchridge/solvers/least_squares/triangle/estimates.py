"""What a factor gives at every strength: weights, residuals, leverages, degrees of freedom, variances."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchridge.solvers.least_squares.target_scores import Score
from torchridge.solvers.least_squares.triangle.factor import Roots, Triangle, shrinkage
from torchridge.solvers.least_squares.triangle.roots import NUMBERS, at_once, roots
from torchridge.solvers.moments.rows import Rows

# C² of a column of norm one from which its coordinate is told by itself.
_STRONG = 1e4


def scaled_weights(tri: Triangle, found: Roots, alpha: Tensor) -> Tensor:
    """Return v at every strength, (L, d, t), corrected by its gradient until that gains nothing."""
    v = found.root.mT @ found.start
    squares = (shrinkage(tri, alpha) ** 2)[:, :, None]
    size = 1e-3 * torch.linalg.vector_norm(v, dim=1, keepdim=True)
    for _ in range(3):
        step = found.root.mT @ (found.root @ gradient_of(tri, squares, v))
        length = torch.linalg.vector_norm(step, dim=1, keepdim=True)
        shrinking = length < size
        v, size = torch.where(shrinking, v + step, v), torch.where(shrinking, length / 2, 0)
    # What is shrunk to nearly nothing is rounding compared with the others: each such coordinate has its own optimum.
    total = squares + (tri.factor**2).sum(0)[:, None]
    for _ in range(2):
        v = torch.where(squares > _STRONG, v + gradient_of(tri, squares, v) / total, v)
    return v


def gradient_of(tri: Triangle, squares: Tensor, v: Tensor) -> Tensor:
    """Return Rᵀ(Qᵀb − R v) − C² v, (L, d, t)."""
    fitted = tri.factor @ v
    gradient = tri.factor.mT @ (tri.target - fitted) if tri.right is None else tri.right - tri.factor.mT @ fitted
    return gradient - squares * v


def weights(tri: Triangle, found: Roots, alpha: Tensor) -> Tensor:
    """Return weights (d, L, t)."""
    w = (scaled_weights(tri, found, alpha) / tri.size[:, None]).transpose(0, 1)
    return w if tri.prior is None else w + tri.prior[:, None]


def residual_squares(tri: Triangle, v: Tensor) -> Tensor:
    """Return Σ s (y − ŷ)², (L, t), for v of `scaled_weights`."""
    fitted = tri.factor @ v
    if tri.right is None:
        return ((tri.target - fitted) ** 2).sum(1) + tri.rest
    # Qᵀb of moments has lost eps times the condition of the gram matrix without α, which v has not.
    yy = (tri.target**2).sum(0) + tri.rest
    return (yy - 2 * (v * tri.right).sum(1) + (fitted**2).sum(1)).clamp_min(0)


def dof(tri: Triangle, found: Roots) -> Tensor:
    """Return the trace of the hat matrix, the intercept left out, (L,)."""
    return ((found.root @ tri.factor.mT) ** 2).sum((1, 2))


def unit_variance(tri: Triangle, found: Roots) -> Tensor:
    """Return the sampling variance of each weight for unit noise, (d, L)."""
    inner = tri.factor @ found.root.mT  # (L, r, m)
    return ((inner @ found.root) ** 2).sum(1).mT / tri.size[:, None] ** 2


def leverages(tri: Triangle, found: Roots, X: Tensor, intercept: bool) -> Tensor:
    """Return the leverage of rows X (k, d) of weight one, (k, L)."""
    scaled = found.root @ (tri.centred(X) / tri.size).mT  # (L, m, k)
    return (scaled**2).sum(1).mT + int(intercept) / tri.weight


def residuals(tri: Triangle, rows: Rows, index: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield runs of the rows `index`, and y − ŷ of them, (run, L, t), for weights (d, L, t)."""
    size = max(1, NUMBERS // (weight[0].numel() + len(weight)))
    for part in torch.split(index, size):
        yield part, tri.unexplained(rows.X[part].detach(), rows.y[part].detach(), weight)


def heldout_squares(tri: Triangle, rows: Rows, held: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ s (y − ŷ)² over the rows `held`, (L, t), and the condition of the stacked columns, (L,)."""
    squares, spread = [], []
    for some in at_once(tri, alpha):
        found = roots(tri, some)
        total = tri.rest.new_zeros(len(some), len(tri.rest))
        for part, error in residuals(tri, rows, held, weights(tri, found, some)):
            error = error**2
            if rows.sample_weight is not None:
                error = error * rows.sample_weight[part].detach().to(error)[:, None, None]
            total += error.sum(0)
        squares.append(total)
        spread.append(found.spread)
    return torch.cat(squares), torch.cat(spread)


def heldout_score(tri: Triangle, rows: Rows, held: Tensor, score: Score, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return a score of the predictions of the rows `held`, (L, t), and the condition of the stacked columns, (L,)."""
    y, scores, spread = rows.y[held].detach().to(tri.rest), [], []
    weight = None if rows.sample_weight is None else rows.sample_weight[held].detach().to(tri.rest)
    each = max(1, NUMBERS // y.numel())
    for some in (part for run in at_once(tri, alpha) for part in torch.split(run, each)):
        found = roots(tri, some)
        errors = torch.cat([error for _, error in residuals(tri, rows, held, weights(tri, found, some))])
        scores.append(score(errors.transpose(0, 1), y, weight))
        spread.append(found.spread)
    return torch.cat(scores), torch.cat(spread)
