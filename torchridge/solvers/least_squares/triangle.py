"""Every strength from an orthogonal factor of the rows: the digits that no gram matrix of them holds.

The rows a_i = √s_i (x_i − x̄) are factored once, A = Q R D with the columns of R of norm one. At strength α, with
w = D⁻¹ v + prior and c_j² = α p_j / D_j²,

    ‖R v − Qᵀ b‖² + Σ_j c_j² v_j²

is a least-squares problem of the stacked columns (R; C), which are brought to norm one again and factored. So neither
the units of a column, nor free features (c_j = 0), nor penalties that differ by decades cost digits. Where the columns
of R are dependent, their null space is eliminated: least squares first, then the penalty, then the norm of the rest.

Sources: Björck 1996, §2.9 (corrected seminormal equations) and §5.3, doi:10.1137/1.9781611971484; van der Sluis 1969,
doi:10.1007/BF02165096; Eldén 1982, doi:10.1007/BF01932761 (standard form with a null space).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.least_squares.objective import Objective, system
from torchridge.solvers.moments.blocks import CHUNK_BYTES, Block, constant_noise
from torchridge.solvers.moments.rows import Rows

# Numbers of all stacked factors that are held at once.
_NUMBERS = 2**24

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

# The same from which the penalty of dependent features is too weak to choose between solutions.
_WEAK = 1e8

# Entries of a unit vector of a null space that are rounding.
_NOISE = 1e-13

# C² of a column of norm one from which its coordinate is told by itself.
_STRONG = 1e4

# Share of a unit vector in the penalized features, above the rounding of one that has none.
_SEEN = 1e-10


class Triangle(NamedTuple):
    """The orthogonal factor of rows; r = min(n, d)."""

    factor: Tensor  # (r, d) R, columns of norm one, or zero for a constant feature
    target: Tensor  # (r, t) Qᵀ b
    rest: Tensor  # (t,) squares of b outside the span of A
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
        variance, noise = spread / total, (10 * torch.finfo(torch.float64).eps * about.sum(0)) ** 2
        penalty = penalty * torch.where(variance > noise, variance, 1)
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
    rest = (problem.yy - (target**2).sum(0)).clamp_min(0)
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


def at_once(tri: Triangle, alpha: Tensor) -> list[Tensor]:
    """Return runs of strengths whose factors fit the working memory."""
    r, d = tri.factor.shape
    return list(torch.split(alpha, max(1, _NUMBERS // ((r + d) * d))))


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
    reduced = _without_null_space(tri, alpha, left[:, :rank], sigma[:rank], right, rank)
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


def _without_null_space(tri: Triangle, alpha: Tensor, left: Tensor, sigma: Tensor, right: Tensor, rank: int) -> Roots:
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
    echelon = torch.linalg.qr(null[order].mT)[1].mT
    null = torch.where(echelon.abs() > _NOISE, echelon, 0)[order.argsort()]
    outer, upper = torch.linalg.qr((root[:, None] * null)[order])
    outer = outer[order.argsort()]
    solved = torch.linalg.solve_triangular(upper, outer.mT @ (root[:, None] * space), upper=True)
    return space - null @ solved, outer


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
    # What is shrunk to nearly nothing is rounding beside the others: each such coordinate has its own optimum.
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
    return ((tri.target - tri.factor @ v) ** 2).sum(1) + tri.rest


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
    size = max(1, _NUMBERS // (weight[0].numel() + len(weight)))
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
