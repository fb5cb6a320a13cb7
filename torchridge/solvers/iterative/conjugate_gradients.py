"""Preconditioned conjugate gradients for many right-hand sides and strengths at once: one product serves all columns.

Solves (G + α_c I) x_c = b_c. Every column has its own steps and stops by itself, on its own residual; what the
recurrence says of that residual is never believed: `refresh` computes it anew, and the iteration goes on from there.
Sources: Hestenes & Stiefel 1952, doi:10.6028/jres.049.044; van der Vorst & Ye 2000, doi:10.1137/S1064827599353865.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# From this share of a residual on, the recurrence is no longer about it.
_APART = 0.1

# (block (m, c), numbers of its columns (c,)) → block (m, c)
Product = Callable[[Tensor, Tensor], Tensor]


class System(NamedTuple):
    """What a column is multiplied by."""

    product: Product  # G
    precondition: Product  # P⁻¹
    alpha: Tensor  # (c,)


class State(NamedTuple):
    """The columns that still move."""

    columns: Tensor  # (a,) their numbers
    solution: Tensor  # x, (m, a)
    residual: Tensor  # b − (G + α) x, (m, a), by recurrence
    direction: Tensor  # (m, a)
    energy: Tensor  # rᵀ P⁻¹ r, (a,)
    steps: int


def init(system: System, rhs: Tensor) -> State:
    """Start at x = 0."""
    columns = torch.arange(rhs.shape[1], device=rhs.device)
    direction = system.precondition(rhs, columns)
    return State(columns, torch.zeros_like(rhs), rhs.clone(), direction, (rhs * direction).sum(0), 0)


def step(system: System, state: State) -> State:
    """Take one step in every column."""
    p = state.direction
    image = system.product(p, state.columns) + system.alpha[state.columns] * p
    curvature = (p * image).sum(0)
    length = torch.where(curvature > 0, state.energy / curvature, 0)
    solution = state.solution.addcmul_(p, length)
    residual = state.residual.addcmul_(image, -length)
    z = system.precondition(residual, state.columns)
    energy = (residual * z).sum(0)
    direction = z.addcmul_(p, torch.where(state.energy > 0, energy / state.energy, 0))
    return state._replace(
        solution=solution, residual=residual, direction=direction, energy=energy, steps=state.steps + 1
    )


def refresh(system: System, state: State, residual: Tensor) -> State:
    """Put a residual that was computed anew in the place of that of the recurrence.

    The direction stays conjugate to those before it; if the two have come apart, the column starts anew.
    """
    z = system.precondition(residual, state.columns)
    direction = state.direction - system.precondition(state.residual, state.columns) + z
    gap = torch.linalg.vector_norm(state.residual - residual, dim=0)
    apart = gap > _APART * torch.linalg.vector_norm(residual, dim=0)
    direction = torch.where(apart, z, direction)
    return state._replace(residual=residual, direction=direction, energy=(residual * z).sum(0))


def select(state: State, keep: Tensor) -> State:
    """Return the columns of a mask (a,)."""
    return State(
        state.columns[keep],
        state.solution[:, keep],
        state.residual[:, keep],
        state.direction[:, keep],
        state.energy[keep],
        state.steps,
    )


def converged(state: State, target: Tensor) -> Tensor:
    """Return which columns have a residual of at most their target, or can no longer move, (a,)."""
    size: Tensor = torch.linalg.vector_norm(state.residual, dim=0)
    return (size <= target) | ~(state.energy > 0)


class Solved(NamedTuple):
    """Solutions, and how good they are."""

    solution: Tensor  # (m, c)
    error: Tensor  # (c,) relative residual, computed anew in float64
    steps: Tensor  # (c,)


# (x (m, c), numbers of its columns) → (residual (m, c), relative residual that the stopping rule looks at (c,))
Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# A residual that was computed anew and has shrunk by less than this has met the limit of rounding.
_STALLED = 0.7
_PATIENCE = 3

# The target of the next measurement, as a share of what should just be enough.
_MARGIN = 0.7


def solve(system: System, rhs: Tensor, measure: Measure, tol: float, max_iter: int, first: Tensor) -> Solved:
    """Iterate until every column's measured residual is at most tol, or moves no more, or max_iter steps are taken.

    `first` (c,) are norms of the recurrence's residual at which a first measurement is worth its cost.
    """
    out = Solved(torch.zeros_like(rhs), torch.zeros_like(first), torch.zeros_like(first, dtype=torch.int64))
    state, target = init(system, rhs), first.clone()
    best = torch.full_like(first, torch.inf)
    stalls = torch.zeros_like(first, dtype=torch.int64)
    while len(state.columns):
        state = _iterate(system, state, target, out, max_iter)
        at = state.columns
        residual, error = measure(state.solution, at)
        out.error[at] = error
        stalls[at] += (error > _STALLED * best[at]).to(torch.int64)
        best[at] = torch.minimum(best[at], error)
        going = (error > tol) & (stalls[at] < _PATIENCE) & (state.steps < max_iter)
        if bool(going.any()):
            size = torch.linalg.vector_norm(residual, dim=0)
            target[at] = _MARGIN * size * tol / error.clamp_min(torch.finfo(error.dtype).tiny)
            state = refresh(system, select(state, going), residual[:, going])
        else:
            state = select(state, going)
    return out


def _iterate(system: System, state: State, target: Tensor, out: Solved, max_iter: int) -> State:
    """Step until every column is at its target; columns that are there wait. Solutions are left in `out`."""
    waiting: list[State] = []
    moving = state
    while len(moving.columns):
        done = converged(moving, target[moving.columns])
        if moving.steps >= max_iter:
            done = torch.ones_like(done)
        if bool(done.any()):
            arrived = select(moving, done)
            out.solution[:, arrived.columns] = arrived.solution
            out.steps[arrived.columns] = arrived.steps
            waiting.append(arrived)
            moving = select(moving, ~done)
        if len(moving.columns):
            moving = step(system, moving)
    return _joined(waiting)


def _joined(states: list[State]) -> State:
    if len(states) == 1:
        return states[0]
    fields = zip(*(s[:5] for s in states), strict=True)
    columns, solution, residual, direction, energy = (torch.cat(f, -1) for f in fields)
    return State(columns, solution, residual, direction, energy, max(s.steps for s in states))
