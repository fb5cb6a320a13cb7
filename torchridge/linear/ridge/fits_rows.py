"""Solve from an orthogonal factor, columns at one size: free features, far units, dependent columns."""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.linear.ridge.choose import CAREFUL, Choice
from torchridge.linear.ridge.dense import Dense, Fit
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.solvers.kernels import dual_weights, gram_matrix
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.least_squares import precision
from torchridge.solvers.least_squares.objective import System
from torchridge.solvers.least_squares.triangle import estimates, factor, roots
from torchridge.solvers.least_squares.triangle.factor import Triangle
from torchridge.solvers.moments.blocks import Block, constant_noise
from torchridge.solvers.moments.rows import Rows

# Ratio of the sizes of columns, in the metric of the penalty, that costs a gram matrix half of its digits.
_FAR = 1e4


def far_apart(equations: System) -> bool:
    """Return whether columns differ in size by more than their singular values may; one wait for a device."""
    squares = equations.gram.diagonal()
    return _far(squares if equations.penalty is None else squares / equations.penalty)


def needs_rows(problem: Dual, rows: Rows) -> bool:
    """Return `far_apart` or `precision.offset` of rows whose gram matrix (n, n) was taken; one wait for a device."""
    parts, moved = [], []
    weight = problem.center.new_tensor(float(len(rows.X))) if problem.root is None else (problem.root**2).sum()
    for part in gram_matrix.column_chunks(rows.X, torch.float64):
        x = dual_weights.columns_of(rows.X.detach(), part, problem, torch.float64)
        square = (x * x).sum(0)
        parts.append(square if problem.scale is None else square * problem.scale[part])
        moved.append(precision.offset_columns(problem.center[part], square, weight))
    return bool(torch.cat(moved).any()) or _far(torch.cat(parts))


def rows_far_apart(rows: Rows) -> bool:
    """Return `far_apart` of rows of which no matrix was taken, each column about its mean; one wait for a device."""
    parts = []
    for part in gram_matrix.column_chunks(rows.X, torch.float64):
        x = rows.X.detach()[:, part].double()
        mean = x.mean(0)
        squares = ((x - mean) ** 2).sum(0)
        parts.append(torch.where(squares > len(x) * constant_noise(mean), squares, 0))
    return _far(torch.cat(parts))


def _far(squares: Tensor) -> bool:
    squares = squares[torch.isfinite(squares) & (squares > 0)]
    return len(squares) > 0 and bool(squares.amax() > _FAR**2 * squares.amin())


def fit_rows(problem: Dense, reason: str) -> Fit:
    """Solve from the rows. Cost: `factor.triangle`, and `roots.roots` of every strength."""
    assert problem.rows is not None
    tri = factor.triangle(problem.rows, problem.objective)
    return _fit(tri, problem, Choice("svd", reason))


def fit_moments(problem: Dense, equations: System, block: Block) -> Fit | None:
    """Solve from moments whose columns differ in size and in nothing else; None if that is not so."""
    if block.gram.dtype is not torch.float64 or not far_apart(equations):
        return None
    tri = factor.triangle_of(block, problem.objective)
    weakest = tri.rest.new_tensor([problem.strengths.weakest])
    if not float(roots.roots(tri, weakest).spread) ** 2 <= CAREFUL[torch.float32]:
        return None
    return _fit(tri, problem, Choice("cholesky", "columns that differ in size by decades, brought to one"))


def _fit(tri: Triangle, problem: Dense, choice: Choice) -> Fit:
    strengths = problem.strengths
    alpha = strengths.alpha.to(tri.rest)
    parts, spreads, weak, rank = [], [], [], len(tri.size)
    for start, some in _runs(tri, alpha):
        own = _targets(tri, start, len(some)) if strengths.per_target else tri
        found = roots.roots(own, some)
        w = estimates.weights(own, found, some)  # (d, L, t)
        parts.append(w.diagonal(dim1=1, dim2=2) if strengths.per_target else w)
        spreads.append(found.spread)
        weak.append(found.weak)
        rank = min(rank, found.rank) if bool(found.weak.any()) else rank
    weight = torch.cat(parts, 1)
    weight = weight[:, None] if strengths.per_target else weight
    low = (tri.center[1] @ weight.flatten(1)).reshape(weight.shape[1:])
    high = (tri.center[0] @ weight.flatten(1)).reshape(weight.shape[1:])
    bias = (tri.target_center[0] - high) + (tri.target_center[1] - low)
    worst, eps = float(torch.cat(spreads).amax()), torch.finfo(weight.dtype).eps
    lost = eps * (worst if tri.exact else worst**2)
    return Fit(weight, bias, lost, rank if bool(torch.cat(weak).any()) else None, _known(tri, problem, worst), choice)


def _runs(tri: Triangle, alpha: Tensor) -> list[tuple[int, Tensor]]:
    runs, start = [], 0
    for some in roots.at_once(tri, alpha):
        runs.append((start, some))
        start += len(some)
    return runs


def _targets(tri: Triangle, start: int, count: int) -> Triangle:
    """Return the factor with some of the targets."""
    part = slice(start, start + count)
    return tri._replace(
        target=tri.target[:, part],
        rest=tri.rest[part],
        prior=None if tri.prior is None else tri.prior[:, part],
        target_center=tri.target_center[:, part],
        right=None if tri.right is None else tri.right[:, part],
    )


def _known(tri: Triangle, problem: Dense, spread: float) -> Diagnosis:
    """Return what the factor tells of the fit, when it is read."""
    strengths = problem.strengths
    alpha = strengths.alpha.to(tri.rest)

    def squares() -> Tensor:
        parts = []
        for start, some in _runs(tri, alpha):
            own = _targets(tri, start, len(some)) if strengths.per_target else tri
            table = estimates.residual_squares(own, estimates.scaled_weights(own, roots.roots(own, some), some))
            parts.append(table.diagonal()[None] if strengths.per_target else table)
        return torch.cat(parts, 1 if strengths.per_target else 0)

    def dof() -> Tensor:
        return torch.cat([estimates.dof(tri, roots.roots(tri, some)) for _, some in _runs(tri, alpha)])

    def unit_variance() -> Tensor:
        return torch.cat([estimates.unit_variance(tri, roots.roots(tri, some)) for _, some in _runs(tri, alpha)], 1)

    return Diagnosis(
        squares=squares,
        dof=dof,
        unit_variance=unit_variance,
        condition=lambda: spread**2,
        rank=lambda: factor.rank(tri),
    )
