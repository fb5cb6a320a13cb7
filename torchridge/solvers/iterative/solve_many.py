"""Solve for many strengths, targets and folds by products with the matrix, all of them as columns of one block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.iterative import conjugate_gradients, nystrom, sketch_rank
from torchridge.solvers.iterative import standard_form as design
from torchridge.solvers.iterative.conjugate_gradients import Solved, System
from torchridge.solvers.iterative.nystrom import Nystrom
from torchridge.solvers.iterative.standard_form import Design

# Numbers that the vectors of one block of columns may take (1 GiB), and vectors that a column needs.
_NUMBERS = 2**27
_VECTORS = 10

# The dual stops on the residual of the primal, which is first measured when its own is this many times the tolerance.
_EARLY = 100.0

# Under this ratio of the strength to the largest eigenvalue, a float32 sketch does not tell noise from eigenvalues.
_SINGLE = 1e-5


class Columns(NamedTuple):
    """What every column of a block solves."""

    part: Tensor  # (c,) its set of weights
    alpha: Tensor  # (c,)
    target: Tensor  # (c,) its column of y

    def at(self, index: slice | Tensor) -> Columns:
        """Return some of the columns."""
        return Columns(self.part[index], self.alpha[index], self.target[index])


class Rule(NamedTuple):
    """When to stop."""

    tol: float
    max_iter: int


class Block(NamedTuple):
    """Solved columns."""

    weight: Tensor  # (d, c) of the penalized features, zero at the others
    fixed: Tensor  # (q, c) coefficients of y on what is not penalized
    error: Tensor  # (c,) relative residual
    steps: Tensor  # (c,)


def grid(alpha: Tensor, per_target: bool, t: int, parts: int) -> Columns:
    """Return columns for every set of weights, strength and target, in this order."""
    device = alpha.device
    if per_target:
        parts_of, target = torch.arange(parts, device=device), torch.arange(t, device=device)
        return Columns(parts_of.repeat_interleave(t), alpha.repeat(parts), target.repeat(parts))
    part, which, target = (
        a.reshape(-1)
        for a in torch.meshgrid(
            torch.arange(parts, device=device),
            torch.arange(len(alpha), device=device),
            torch.arange(t, device=device),
            indexing="ij",
        )
    )
    return Columns(part, alpha[which], target)


def approximate(form: Design, weakest: float, columns: int, rank: int | None, tol: float) -> Nystrom:
    """Return the Nyström approximation of the gram matrix of one set of weights; its rank is found if it is None."""
    m, device = form.size(form.dual), form.X.device
    if rank == 0:
        return nystrom.empty(m, device)
    product = design.dual_gram if form.dual else design.gram

    def apply(v: Tensor) -> Tensor:
        return product(form, v, torch.zeros(v.shape[1], dtype=torch.int64, device=device))

    limit = sketch_rank.rank_limit(m) if rank is None else min(rank, m)
    cost = form.X.sketch_cost
    sketch = nystrom.Sketch(apply, m, torch.float32, device)
    sketch.grow(min(nystrom.PROBE, limit))
    eigvals = sketch.eigvals()
    top = float(eigvals[0]) if len(eigvals) else 0.0
    if weakest < _SINGLE * top:
        sketch = nystrom.Sketch(apply, m, torch.float64, device)
    more = 0
    if rank is not None:
        sketch.grow(limit - sketch.rank)
    elif not sketch_rank.few_steps(top, weakest, columns, tol, nystrom.FIRST, cost):
        sketch.grow(min(nystrom.FIRST, limit) - sketch.rank)
        more = 1
    while more:
        more = sketch_rank.more_rank(sketch.eigvals(), sketch.rank, weakest, columns, tol, limit, cost)
        sketch.grow(more)
    return nystrom.packed(sketch.finish(), weakest)


def blocks(form: Design, columns: Columns) -> Iterator[slice]:
    """Yield runs of columns whose vectors fit in the working memory."""
    n, d = form.X.shape
    size = max(1, _NUMBERS // (_VECTORS * (n + d)))
    for start in range(0, len(columns.alpha), size):
        yield slice(start, start + size)


def target_runs(form: Design, targets: int, strengths: int) -> Iterator[slice]:
    """Yield runs of targets of which the vectors at all strengths fit in the working memory."""
    n, d = form.X.shape
    size = max(1, _NUMBERS // (_VECTORS * (n + d) * strengths))
    return (slice(i, min(i + size, targets)) for i in range(0, targets, size))


def solve(form: Design, approximation: Nystrom, share: Tensor, y: Tensor, columns: Columns, rule: Rule) -> Block:
    """Solve a block of columns for targets y (n, t); `approximation` times share (F,) stands for each set's gram."""
    part = columns.part
    target = y[:, columns.target]
    fixed = design.on_fixed(form, target, part)
    if form.fixed.shape[1]:
        target = target - (form.fixed @ fixed)
    system = system_of(form, approximation, share, columns)
    if form.dual:
        weight, solved = _dual(form, system, target, columns, rule)
    else:
        weight, solved = _primal(form, system, target, columns, rule)
    return Block(weight, fixed, solved.error, solved.steps)


def system_of(form: Design, approximation: Nystrom, share: Tensor, columns: Columns) -> System:
    """Return the products of a block of columns, all of them or some."""
    product = design.dual_gram if form.dual else design.gram
    part, alpha, shares = columns.part, columns.alpha, share[columns.part]
    return System(
        lambda v, at: product(form, v, part[at]),
        lambda r, at: nystrom.precondition(approximation, alpha[at], shares[at], r),
        alpha,
    )


def norm(v: Tensor) -> Tensor:
    """Return the norm of every column."""
    size: Tensor = torch.linalg.vector_norm(v, dim=0)
    return size


def ratio(size: Tensor, of: Tensor) -> Tensor:
    """Return size / of, zero if there was nothing to solve."""
    return torch.where(of > 0, size / of, torch.zeros_like(size))


def relative(form: Design, residual: Tensor, rhs: Tensor, size: Tensor, columns: Columns) -> Tensor:
    """Return relative residuals of the gradient, (c,): if features are far apart, the worse of that and of one size."""
    plain = ratio(norm(residual), size)
    if form.spread is None:
        return plain
    own = (design.spread_of(form, columns.part) + columns.alpha).sqrt()
    own = torch.where(own > 0, own, 1)
    return torch.maximum(plain, ratio(norm(residual / own), norm(rhs / own)))


def _primal(form: Design, system: System, y: Tensor, columns: Columns, rule: Rule) -> tuple[Tensor, Solved]:
    rhs = design.backward(form, design.weigh(form, y, columns.part), columns.part)
    size = norm(rhs)

    def measure(u: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        residual = rhs[:, at] - system.product(u, at) - columns.alpha[at] * u
        return residual, relative(form, residual, rhs[:, at], size[at], columns.at(at))

    solved = conjugate_gradients.solve(system, rhs, measure, rule.tol, rule.max_iter, 0.9 * rule.tol * size)
    return design.penalized(form, solved.solution, columns.part), solved


def _dual(form: Design, system: System, y: Tensor, columns: Columns, rule: Rule) -> tuple[Tensor, Solved]:
    part = columns.part
    rhs = design.weigh(form, y, part, root=True)
    right = design.backward(form, design.weigh(form, y, part), part)
    size = norm(right)

    def measure(z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        image = system.product(z, at)
        residual = rhs[:, at] - image - columns.alpha[at] * z
        gradient = design.backward(form, design.weigh(form, residual, part[at], root=True), part[at])
        return residual, relative(form, gradient, right[:, at], size[at], columns.at(at))

    solved = conjugate_gradients.solve(system, rhs, measure, rule.tol, rule.max_iter, _EARLY * rule.tol * norm(rhs))
    u = design.backward(form, design.weigh(form, solved.solution, part, root=True), part)
    return design.penalized(form, u, part), solved


def residual_squares(form: Design, y: Tensor, block: Block, columns: Columns) -> Tensor:
    """Return Σ s (y − ŷ)² over the rows that were fitted, (c,)."""
    target = y[:, columns.target]
    if form.fixed.shape[1]:
        target = target - (form.fixed @ block.fixed)
    left = target - design.forward(form, block.weight, columns.part)
    return design.weigh(form, left**2, columns.part).sum(0)
