"""Held-out errors of many strengths from Cholesky factors at a few, if an eigendecomposition is slow.

For every s ≥ 0, 1/(s + α) is to within a tolerance a combination Σ_j mix_j(α) / (s + a_j) of its values at nodes a_j
that span the grid, and so are the weights (gram + αD)⁻¹ cross of the weights at the nodes, whatever the gram matrix.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.device import NODE_BYTES, NODE_TOLERANCE
from torchridge.solvers.least_squares.objective import Objective, System, located, residual_moments, system
from torchridge.solvers.moments.blocks import Block, about

# Points of s per decade that the combinations are fitted at, and decades that they reach beyond the grid.
_POINTS, _BEYOND = 64, 4

# Pivots of a factor that span more than this tell of a condition of 1e8 at least: eigenvectors lose fewer digits then.
_PIVOTS = 1e-4


class Nodes(NamedTuple):
    """Strengths to factor at, and what makes the others of them."""

    alpha: Tensor  # (r,)
    mix: Tensor  # (r, L)
    error: float  # the largest that a shrinkage factor is off by


def nodes(alpha: Tensor, most: int) -> Nodes | None:
    """Return as few nodes as the tolerance takes; None if `most` of them, or as many as strengths, do not do."""
    for count in range(4, min(most, len(alpha) - 1) + 1, 4):
        found = chebyshev(alpha, count)
        if found.error <= NODE_TOLERANCE:
            return found
    return None


def chebyshev(alpha: Tensor, count: int) -> Nodes:
    """Return Chebyshev nodes in log α and the combinations that give each of `alpha` (L,), positive."""
    grid = alpha.detach().cpu().double()
    low, high = float(grid.min()), float(grid.max())
    u = torch.cos((2 * torch.arange(count, dtype=torch.float64) + 1) * (torch.pi / (2 * count)))
    center, half = math.log(low * high) / 2, math.log(high / low) / 2
    at = (center + half * u / u.max()).exp() if count > 1 and half > 0 else torch.tensor([low], dtype=torch.float64)
    ends = math.log10(low) - _BEYOND, math.log10(high) + _BEYOND
    points = torch.logspace(*ends, int(_POINTS * (ends[1] - ends[0])), dtype=torch.float64)
    s = torch.cat([points.new_zeros(1), points])[:, None]
    basis, wanted = (s + low) / (s + at), (s + low) / (s + grid)
    mix = torch.linalg.lstsq(basis, wanted, rcond=1e-15, driver="gelsd").solution  # on the CPU, whatever the device
    error = float((basis @ mix - wanted).abs().max())
    return Nodes(at.to(alpha), mix.to(alpha), error)


def heldout_squares(chosen: Nodes, train: Block, held: Block, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return Σ s (y − ŷ)² over held-out rows, (L, t), as `scoring.heldout_squares`, and whether a factor was too poor.

    Features must all be penalized. Cost: r d³ / 3, and r d² t + r² d t.
    """
    problem = system(train, objective)
    weight, poor = _weights(problem, chosen.alpha)
    center = located(train, objective)
    seen = about(held, center.mean_x, center.mean_y)
    cross, yy = (seen.cross, seen.yy) if problem.prior is None else residual_moments(seen, problem.prior)
    linear = (weight * cross).sum(1)  # (r, t)
    product = seen.gram @ weight  # (r, d, t)
    pairs = weight.permute(2, 0, 1) @ product.permute(2, 1, 0)  # (t, r, r)
    mixed = pairs @ chosen.mix  # (t, r, L)
    squares = yy - 2 * (chosen.mix.T @ linear) + (mixed * chosen.mix).sum(1).T
    return squares.clamp_min(0), poor


def _weights(problem: System, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return (gram + α D)⁻¹ cross at every node, (r, d, t), and whether a factor is too poor to believe."""
    d = problem.gram.shape[0]
    penalty = torch.ones_like(problem.gram[0]) if problem.penalty is None else problem.penalty
    parts, poor = [], torch.zeros_like(alpha[0], dtype=torch.bool)
    for some in torch.split(alpha, max(1, NODE_BYTES // (problem.gram.element_size() * d * d))):
        matrix = problem.gram.repeat(len(some), 1, 1)
        matrix.diagonal(dim1=1, dim2=2).add_(some[:, None] * penalty)
        factor, info = torch.linalg.cholesky_ex(matrix)
        pivots = factor.diagonal(dim1=1, dim2=2)
        poor = poor | (info != 0).any() | (pivots.amin(1) < _PIVOTS * pivots.amax(1)).any()
        parts.append(torch.cholesky_solve(problem.cross.expand(len(some), -1, -1), factor))
    return torch.cat(parts), poor
