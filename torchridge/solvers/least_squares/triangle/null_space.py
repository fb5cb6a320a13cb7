"""Dependent columns: their null space is eliminated, by the penalty first and then by the norm."""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.least_squares.triangle.factor import Roots, Triangle

# Entries of a unit vector of a null space that are rounding.
_NOISE = 1e-13

# The least pivot whose rounding is told from entries of a null space.
_LEAST_PIVOT = 1e-3

# Share of a unit vector in the penalized features, above the rounding of one that has none.
_SEEN = 1e-10


def without_null_space(tri: Triangle, alpha: Tensor, left: Tensor, sigma: Tensor, right: Tensor, rank: int) -> Roots:
    """Factor over the row space of R: the penalty, then the norm, choose among what fits the rows alike."""
    root_p = tri.penalty.sqrt() / tri.size
    row, null = right[:rank].mT, right[rank:].mT  # (d, rank), (d, d − rank)
    null = torch.where(null.abs() > _NOISE, null, 0)  # or a large penalty would make something of it
    null, idle = _split(null, tri.penalty > 0)
    space, outer = _least(root_p, null, row)
    if idle.shape[1]:
        space, _ = _least(1 / tri.size, idle, space)
    shrunk = root_p[:, None] * space  # (d, rank)
    for _ in range(2):
        shrunk = shrunk - outer @ (outer.mT @ shrunk)
    # Nor may rounding be left in the space itself: α p can be as large as its inverse squared.
    space = torch.where(root_p[:, None] > 0, shrunk / root_p[:, None], space)
    matrix = torch.cat([sigma.diag().expand(len(alpha), -1, -1), alpha.sqrt()[:, None, None] * shrunk], 1)
    norm = torch.linalg.vector_norm(matrix, dim=1)
    q, upper = torch.linalg.qr(matrix / norm[:, None])
    eye = torch.eye(rank, dtype=sigma.dtype, device=sigma.device).expand(len(alpha), -1, -1)
    inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
    singular = torch.linalg.svdvals(upper)
    start = q[:, :rank].mT @ (left.mT @ tri.target)
    volume = 2 * (upper.diagonal(dim1=1, dim2=2).abs().log().sum(1) + norm.log().sum(1))
    volume = volume - _volume_at_infinity(sigma, shrunk, alpha)
    # Singular values are off by eps of the largest, whatever the size they are brought to.
    spread = singular[:, 0] / singular[:, -1] * norm.amax(1).clamp_min(float(sigma[0])) / norm.amin(1)
    weak = torch.ones_like(alpha, dtype=torch.bool)
    return Roots((inverse.mT / norm[:, None]) @ space.mT, start, spread, volume, rank, weak)


def _least(root: Tensor, null: Tensor, space: Tensor) -> tuple[Tensor, Tensor]:
    """Return `space` plus what of the columns `null` makes root ∘ space least, and a basis of root ∘ null.

    Large rows first, each with one direction more of the null space: else small ones lose their digits to them.
    """
    order = root.argsort(descending=True)
    null = _echelon(null[order])[order.argsort()]
    outer, upper = torch.linalg.qr((root[:, None] * null)[order])
    outer = outer[order.argsort()]
    solved = torch.linalg.solve_triangular(upper, outer.mT @ (root[:, None] * space), upper=True)
    return space - null @ solved, outer


def _echelon(null: Tensor) -> Tensor:
    """Return a basis of the columns `null`, each with one leading zero more, rounding taken for zero.

    A direction is known up to the rounding of those before it over their smallest pivot.
    """
    echelon = torch.linalg.qr(null.mT)[1].mT
    pivots = echelon.diagonal().abs()
    pivots = torch.where(pivots > _NOISE, pivots, 1).cummin(0).values
    before = torch.cat([pivots.new_ones(1), pivots])[: echelon.shape[1]].clamp_min(_LEAST_PIVOT)
    return torch.where(echelon.abs() > _NOISE / before, echelon, 0)


def _split(null: Tensor, penalized: Tensor) -> tuple[Tensor, Tensor]:
    """Return a basis of the directions that the penalty sees, and of those of the free features alone."""
    _, values, inner = torch.linalg.svd(null[penalized], full_matrices=True)
    seen = torch.nn.functional.pad(values > _SEEN, (0, len(inner) - len(values)))
    bases = (null @ inner[seen].mT, null @ inner[~seen].mT)
    shown, idle = (torch.where(basis.abs() > _NOISE, basis, 0) for basis in bases)
    return shown, idle


def _volume_at_infinity(sigma: Tensor, shrunk: Tensor, alpha: Tensor) -> Tensor:
    """Return what log det(Σ² + α shrunkᵀ shrunk) tends to as α grows, (L,)."""
    _, values, inner = torch.linalg.svd(shrunk, full_matrices=True)
    keep = values > len(sigma) * torch.finfo(sigma.dtype).eps * values[0]
    free = sigma[:, None] * inner[~torch.nn.functional.pad(keep, (0, len(inner) - len(keep)))].mT
    fixed = torch.linalg.qr(free, mode="r")[1].diagonal().abs().log().sum() if free.shape[1] else 0.0
    volume: Tensor = 2 * (fixed + values[keep].log().sum()) + int(keep.sum()) * alpha.log()
    return volume
