"""The inverse at every strength as a product of roots: the cheapest of three ways that holds the digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.least_squares.triangle.factor import Roots, Triangle, shrinkage, varies
from torchridge.solvers.least_squares.triangle.null_space import without_null_space

# Numbers of all stacked factors that are held at once.
NUMBERS = 2**24

# Condition of the rows in the metric of the penalty up to which one decomposition serves all strengths: eps times it
# is the error. Above, every strength is factored by itself, its columns brought to one size; and above the second
# number, if that would make the condition so many times smaller, which is then one of units alone.
_ONE_METRIC, _ANY_UNITS, _UNITS = 1e5, 1e2, 10.0

# Condition of RᵀR + C², its columns brought to one size, up to which Cholesky factors hold the digits.
GRAM = 1e5

# The same of a matrix that is singular to rounding, which is all that is left of rows that are gone.
_SINGULAR = 1e14

# Condition of stacked columns from which dependent features are taken for what they are; the second from moments.
_DEPENDENT, _DEPENDENT_MOMENTS = 1e2, 1e7

# The same from which the penalty of dependent features is too weak to choose between solutions: eps times its square is
# the error.
_WEAK = 1e7


def at_once(tri: Triangle, alpha: Tensor) -> list[Tensor]:
    """Return runs of strengths whose factors fit the working memory."""
    r, d = tri.factor.shape
    return list(torch.split(alpha, max(1, NUMBERS // ((r + d) * d))))


def roots(tri: Triangle, alpha: Tensor) -> Roots:
    """Factor the problem at strengths (L,). Cost 22 d³ for all, or about 4 (d + r) d² for each."""
    found = _in_one_metric(tri, alpha)
    if found is not None:
        return found
    found = _by_cholesky(tri, alpha)
    if found is not None:
        return found
    left, sigma, right = torch.linalg.svd(tri.factor, full_matrices=True)
    rank = int((sigma > tri.floor * sigma[0]).sum())
    every = _stacked(tri, alpha, rank)
    if rank == len(right) or not bool(
        (dependent := ~(every.spread < (_DEPENDENT if tri.exact else _DEPENDENT_MOMENTS))).any()
    ):
        return every
    if rank == 0:
        nothing = torch.zeros_like(every.spread)
        return Roots(every.root * 0, every.start * 0, nothing + 1, nothing, 0, every.weak)
    reduced = without_null_space(tri, alpha, left[:, :rank], sigma[:rank], right, rank)
    if tri.exact:  # a null space is known up to eps over the least singular value above zero
        dependent = dependent & ~(every.spread < (reduced.spread * sigma[0] / sigma[rank - 1]).clamp_max(_WEAK))
    pick = dependent[:, None, None]
    wide = torch.nn.functional.pad  # the reduced problem has fewer rows
    missing = every.root.shape[1] - rank
    return Roots(
        torch.where(pick, wide(reduced.root, (0, 0, 0, missing)), every.root),
        torch.where(pick, wide(reduced.start, (0, 0, 0, missing)), every.start),
        torch.where(dependent, reduced.spread, every.spread) if tri.exact else every.spread,
        torch.where(dependent, reduced.volume, every.volume),
        rank,
        ~(every.spread < _WEAK),
    )


def _in_one_metric(tri: Triangle, alpha: Tensor) -> Roots | None:
    """Return the factors from the singular values of R D P^−½; None if these do not hold the digits."""
    if not bool((tri.penalty > 0).all()):
        return None
    metric = tri.size / tri.penalty.sqrt()
    left, sigma, right = torch.linalg.svd(tri.factor * metric, full_matrices=False)
    if tri.exact:  # the weights have no part in a null space: what rounding leaves there would be divided by α
        seen = sigma > tri.floor * sigma[0]
        sigma, right = torch.where(seen, sigma, 0), torch.where(seen[:, None], right, 0)
    least = sigma[-1] if len(sigma) == tri.factor.shape[1] else torch.zeros_like(sigma[0])
    spread = ((sigma[0] ** 2 + alpha) / (least**2 + alpha)).sqrt()
    worst = float(spread.max())
    if not worst <= _ONE_METRIC or (worst > _ANY_UNITS and worst > _UNITS * _spread_at_one_size(tri, alpha.min())):
        return None
    total = (sigma**2 + alpha[:, None]).sqrt()  # (L, r)
    volume = torch.log1p(sigma**2 / alpha[:, None]).sum(1)
    start = (sigma / total)[:, :, None] * (left.mT @ tri.target)
    sure = torch.zeros_like(alpha, dtype=torch.bool)
    return Roots((right * metric) / total[:, :, None], start, spread, volume, len(sigma), sure)


def _spread_at_one_size(tri: Triangle, alpha: Tensor) -> float:
    """Return the condition of the stacked columns, brought to one size, at one strength. Cost: a Cholesky factor."""
    factor = algebra.cholesky(tri.factor.mT @ tri.factor + torch.diag(shrinkage(tri, alpha[None])[0] ** 2))
    squared = float(torch.where(factor.info == 0, factor.condition(), torch.inf).nan_to_num(torch.inf))
    return math.sqrt(squared)


def _by_cholesky(tri: Triangle, alpha: Tensor) -> Roots | None:
    """Return the factors of RᵀR + C²; None if these do not hold the digits."""
    c = shrinkage(tri, alpha)
    matrix = (tri.factor.mT @ tri.factor).expand(len(c), -1, -1) + torch.diag_embed(c**2)
    factor = algebra.cholesky(matrix)
    condition = torch.where(factor.info == 0, factor.condition(), torch.inf).nan_to_num(torch.inf)
    if not bool((condition <= (GRAM if tri.exact else _SINGULAR)).all()):
        return None
    eye = torch.eye(c.shape[1], dtype=c.dtype, device=c.device).expand_as(matrix)
    root = torch.linalg.solve_triangular(factor.lower, eye, upper=False) * factor.scale.mT
    volume = 2 * (factor.lower.diagonal(dim1=1, dim2=2).log().sum(1) - factor.scale.log().sum((1, 2)))
    start = root @ (tri.factor.mT @ tri.target if tri.right is None else tri.right)
    sure = torch.zeros_like(alpha, dtype=torch.bool)
    return Roots(root, start, condition.sqrt(), volume - _fixed_volume(tri, c), c.shape[1], sure)


def _fixed_volume(tri: Triangle, c: Tensor) -> Tensor:
    """Return log det C² over the penalized features, and that of the gram matrix of the free ones, (L,)."""
    free = (tri.penalty == 0) & varies(tri)
    volume = 2 * torch.where(tri.penalty == 0, 0, c.log()).sum(1)
    inner = torch.linalg.qr(tri.factor[:, free], mode="r")[1]
    fixed: Tensor = volume + 2 * inner.diagonal().abs().log().sum()
    return fixed


def _stacked(tri: Triangle, alpha: Tensor, rank: int) -> Roots:
    c = shrinkage(tri, alpha)
    norm = torch.hypot(torch.linalg.vector_norm(tri.factor, dim=0), c)  # (L, d)
    r, (L, d) = tri.factor.shape[0], c.shape
    matrix = torch.cat([tri.factor / norm[:, None], torch.diag_embed(c / norm)], 1)
    q, upper = torch.linalg.qr(matrix)
    inverse = torch.linalg.solve_triangular(
        upper, torch.eye(d, dtype=c.dtype, device=c.device).expand(L, d, d), upper=True
    )
    start = q[:, :r].mT @ tri.target
    volume = 2 * (upper.diagonal(dim1=1, dim2=2).abs().log().sum(1) + norm.log().sum(1))
    volume = volume - _fixed_volume(tri, c)
    singular = torch.linalg.svdvals(upper)
    spread = torch.where(singular[:, -1] > 0, singular[:, 0] / singular[:, -1], torch.inf)
    weak = (spread > _WEAK) & (rank < d)
    return Roots(inverse.mT / norm[:, None], start, spread, volume, rank, weak)
