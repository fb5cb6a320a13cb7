"""The orthogonal factor of rows, from themselves or from their moments, columns of norm one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.least_squares.objective import Objective, system
from torchridge.solvers.moments.blocks import Block, constant_noise
from torchridge.solvers.moments.one_pass import CHUNK_BYTES
from torchridge.solvers.moments.rows import Rows


class Triangle(NamedTuple):
    """The orthogonal factor of rows; r = min(n, d)."""

    factor: Tensor  # (r, d) R, columns of norm one, or zero for a constant feature
    target: Tensor  # (r, t) Qᵀ b
    rest: Tensor  # (t,) squares of b outside the span of A: those of b less those of Qᵀ b
    size: Tensor  # (d,) D, one for a constant feature
    penalty: Tensor  # (d,) p
    prior: Tensor | None  # (d, t)
    center: Tensor  # (2, d): the mean as a sum, zero without intercept
    target_center: Tensor  # (2, t)
    rows: int
    weight: Tensor  # () Σ s
    right: Tensor | None = None  # (d, t) Rᵀ Qᵀ b of one that was taken from a gram matrix, which holds half the digits

    @property
    def exact(self) -> bool:
        """Whether the rows themselves were factored."""
        return self.right is None

    @property
    def floor(self) -> float:
        """The size under which a singular value of R is rounding, relative to the largest."""
        lost = max(self.rows, self.factor.shape[1], 10) * float(torch.finfo(self.factor.dtype).eps)
        return lost if self.exact else lost**0.5

    def unexplained(self, X: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """Return y − ŷ for rows X (k, d), y (k, t) and weights (d, L, t), as (k, L, t)."""
        d, L, t = weight.shape
        left = (y.to(weight) - self.target_center[0]) - self.target_center[1]
        return left[:, None, :] - (self.centred(X) @ weight.reshape(d, L * t)).reshape(-1, L, t)

    def centred(self, X: Tensor) -> Tensor:
        """Return rows of X less the mean."""
        return (X.to(self.factor) - self.center[0]) - self.center[1]


class Roots(NamedTuple):
    """(RᵀR + C²)⁻¹ = rootᵀ root at each strength, and where that starts from."""

    root: Tensor  # (L, m, d)
    start: Tensor  # (L, m, t): v = rootᵀ start
    spread: Tensor  # (L,) condition of the stacked columns
    volume: Tensor  # (L,) log det of what was factored; see `log_volume`
    rank: int  # of R
    weak: Tensor  # (L,) whether the penalty leaves a choice between solutions, and that of least norm was taken


def triangle(rows: Rows, objective: Objective) -> Triangle:
    """Factor rows of positive weight. Cost 2 n d min(n, d); memory r (d + t) numbers and 40 MiB above the rows."""
    X, y = rows.X.detach(), rows.y.detach()
    n, d = X.shape
    weight = None if rows.sample_weight is None else rows.sample_weight.detach().double()
    order = None if weight is None else weight.argsort(descending=True, stable=True)  # heavy rows first: they pivot
    total = torch.full((), float(n), dtype=torch.float64, device=X.device) if weight is None else weight.sum()
    center, target_center = (_mean(a, weight, total, objective.intercept) for a in (X, y))
    factor, target = X.new_zeros(0, d, dtype=torch.float64), y.new_zeros(0, y.shape[1], dtype=torch.float64)
    rest, spread = torch.zeros_like(target_center[0]), torch.zeros_like(center[0])
    about = center if objective.intercept or not objective.standardize else _mean(X, weight, total, True)
    prior = None if objective.prior is None else objective.prior.detach().double()
    for start in range(0, n, size := max(2 * d, CHUNK_BYTES // (8 * (d + y.shape[1])))):
        part = slice(start, start + size) if order is None else order[start : start + size]
        x, z = (((a[part].double() - c[0]) - c[1]) for a, c in ((X, center), (y, target_center)))
        z = z if prior is None else z - x @ prior
        s = torch.ones_like(x[:, :1]) if weight is None else weight[part][:, None]
        spread += (s * ((X[part].double() - about[0]) - about[1]) ** 2).sum(0) if objective.standardize else 0
        q, upper = torch.linalg.qr(torch.cat([factor, x * s.sqrt()]))
        stacked = torch.cat([target, z * s.sqrt()])
        factor, target = upper, q.mT @ stacked
        rest += ((stacked - q @ target) ** 2).sum(0)
    size_ = torch.linalg.vector_norm(factor, dim=0)
    kept = size_**2 > total * constant_noise(center.sum(0)) if objective.intercept else size_ > 0
    factor, size_ = torch.where(kept, factor / size_, 0), torch.where(kept, size_, 1)
    penalty = torch.ones_like(size_) if objective.penalty is None else objective.penalty.detach().double()
    if objective.standardize:
        variance = spread / total
        penalty = penalty * torch.where(variance > constant_noise(about.sum(0)), variance, 1)
    return Triangle(factor, target, rest, size_, penalty, prior, center, target_center, n, total)


def triangle_of(block: Block, objective: Objective) -> Triangle:
    """Return the factor of rows of which only the moments are left: exact in units, not in dependent columns."""
    problem = system(block, objective)
    size = problem.gram.diagonal().sqrt()
    size = torch.where(size > 0, size, 1)
    eigvals, vectors = torch.linalg.eigh(problem.gram / size / size[:, None])
    kept = eigvals > max(len(eigvals), 10) * torch.finfo(eigvals.dtype).eps * eigvals[-1].clamp_min(1e-300)
    root = eigvals.clamp_min(0).sqrt()
    target = (vectors.mT @ (problem.cross / size[:, None])) * torch.where(kept, 1 / root, 0)[:, None]
    rest = problem.yy - (target**2).sum(0)  # of nothing left, rounding of either sign
    penalty = torch.ones_like(size) if problem.penalty is None else problem.penalty
    center, target_center = (
        torch.stack([a if objective.intercept else a * 0, a * 0]) for a in (block.mean_x, block.mean_y)
    )
    factor = torch.where(problem.gram.diagonal() > 0, root[:, None] * vectors.mT, 0)
    return Triangle(
        factor,
        target,
        rest,
        size,
        penalty,
        problem.prior,
        center,
        target_center,
        block.rows,
        block.weight,
        problem.cross / size[:, None],
    )


def _mean(a: Tensor, weight: Tensor | None, total: Tensor, intercept: bool) -> Tensor:
    """Return the weighted mean of the columns as a sum of two numbers, (2, c): it has digits that one does not hold."""
    if not intercept:
        return torch.zeros(2, a.shape[1], dtype=torch.float64, device=a.device)
    share = torch.full((len(a),), 1.0, dtype=torch.float64, device=a.device) if weight is None else weight
    share = share / total
    high = share @ a.double()
    return torch.stack([high, share @ (a.double() - high)])


def shrinkage(tri: Triangle, alpha: Tensor) -> Tensor:
    """Return C at every strength, (L, d); one for a constant feature that nothing shrinks, whose weight is zero."""
    c = (alpha[:, None] * tri.penalty).sqrt() / tri.size
    return torch.where((c == 0) & ~varies(tri), 1, c)


def varies(tri: Triangle) -> Tensor:
    """Return which features are not constant, (d,)."""
    return (tri.factor != 0).any(0)


def rank_of_free(tri: Triangle) -> int:
    """Return the numerical rank of the features that are not penalized."""
    free = tri.factor[:, tri.penalty == 0]
    if not free.shape[1] or not free.shape[0]:
        return 0
    sigma = torch.linalg.svdvals(free)
    return int((sigma > tri.floor * sigma[0]).sum())


def rank(tri: Triangle) -> int:
    """Return the numerical rank of the rows, columns at one size."""
    sigma = torch.linalg.svdvals(tri.factor)
    return int((sigma > tri.floor * sigma[0]).sum())
