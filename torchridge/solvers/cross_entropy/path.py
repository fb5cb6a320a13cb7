"""A path of strengths, from strong to weak: which problems are solved at once, and where each one starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy import lbfgs
from torchridge.solvers.cross_entropy.basis import Basis
from torchridge.solvers.cross_entropy.loss import Problems, Rows
from torchridge.solvers.cross_entropy.state import PAIRS, State

# If the strengths before took no more evaluations than this, the quasi-Newton step alone finds the next.
_EASY = 2


@dataclass(frozen=True)
class Path:
    """The solutions of L strengths × h heads × g row weights.

    Attributes:
        theta: (L, h, g, c, q), coefficients over the features of the basis.
        objective: (L, h, g), weighted mean loss plus ½·penalty·‖θ‖².
        gap: (L, h, g), estimate of what the objective lacks to its minimum.
        n_iter: (L, h, g), evaluations of loss and gradient.
        converged: (L, h, g), whether the gap is at most tol times the objective.
    """

    theta: Tensor
    objective: Tensor
    gap: Tensor
    n_iter: Tensor
    converged: Tensor


def strengths_at_once(problems: int, logits: int, device: torch.device) -> int:
    """Return how many strengths to solve together: as many as fill one matrix product.

    Measured with n = 16000, d = 512: on two CPU cores a product with 40 columns costs hardly more than one with 10,
    so that a warm start saves less than sharing the product does until there are about 40 columns. The number for
    other devices is a guess.
    """
    columns = 40 if device.type == "cpu" else 1024
    return max(1, columns // (problems * logits))


def solve_path(
    rows: Rows, basis: Basis, start: Tensor, penalty: Tensor, *, at_once: int, tol: float, max_iter: int
) -> Path:
    """Solve every head under every row weight and penalty, warm-started from the next stronger penalties.

    Shape:
        start: (h, g, c, q), coefficients to begin with; penalty: (L, h, g), falling along L.
    """
    head, group = _grid(start.shape[0], start.shape[1], start.device)
    problems = Problems(head, group, penalty[0].flatten())
    state = lbfgs.init(rows, basis, problems, start.flatten(0, 1))
    solved: list[tuple[Tensor, ...]] = []
    count, done = len(head), 0
    for part in torch.split(penalty, at_once):
        index = torch.arange(count, device=start.device).repeat(len(part))
        spread, begun = problems.select(index), state.select(index)
        problems = spread.with_penalty(part.flatten())
        hard = done > 0 and int(begun.n_iter.max()) > _EASY
        state = lbfgs.repenalize(basis, spread, problems, begun)
        if hard:
            known = torch.cat([theta for theta, *_ in solved]).view(done, count, *start.shape[2:])
            ahead = extrapolate(penalty[:done].flatten(1), known, part.flatten(1))
            state = lbfgs.leap(rows, basis, problems, state, ahead.flatten(0, 1))
        else:
            state = lbfgs.aim(basis, problems, state)
        state = _solve(rows, basis, problems, state, tol=tol, max_iter=max_iter)
        solved.append((state.theta, *_diagnose(basis, problems, state, tol)))
        done += len(part)
        weakest = torch.arange(len(index) - count, len(index), device=start.device)
        problems, state = problems.select(weakest), state.select(weakest)
    columns = (_shaped(torch.cat(column), penalty) for column in zip(*solved, strict=True))
    return Path(*columns)


def extrapolate(penalty: Tensor, theta: Tensor, to: Tensor) -> Tensor:
    """Return θ (l, P, c, q) at the penalties `to` (l, P), from the last three of (L, P): a parabola in log penalty.

    Under a weak penalty the weights grow with the logarithm of 1 / penalty, evenly if the classes are separable.
    Fewer than three are taken as they come.
    """
    x, at = penalty[-3:].log(), to.log()
    ahead = theta.new_zeros(*to.shape, *theta.shape[2:])
    for i, value in enumerate(theta[-3:]):
        others = [j for j in range(len(x)) if j != i]
        share = torch.ones_like(at)
        for j in others:
            share = share * (at - x[j]) / (x[i] - x[j])
        ahead += share[:, :, None, None] * value
    return ahead


def repair(rows: Rows, basis: Basis, path: Path, penalty: Tensor, *, at_once: int, tol: float, max_iter: int) -> Path:
    """Go on, over rows of more digits, with the problems of a path that have not converged."""
    heads, groups = penalty.shape[1:]
    head, group = (i.repeat(len(penalty)) for i in _grid(heads, groups, penalty.device))
    columns = [path.theta, path.objective, path.gap, path.n_iter, path.converged]
    flat = [column.flatten(0, 2).clone() for column in columns]
    left = (~flat[-1]).nonzero()[:, 0]
    for part in torch.split(left, max(1, at_once * heads * groups)):
        problems = Problems(head[part], group[part], penalty.flatten()[part])
        state = lbfgs.init(rows, basis, problems, flat[0][part])
        state = _solve(rows, basis, problems, state, tol=tol, max_iter=max_iter)
        for column, value in zip(flat, (state.theta, *_diagnose(basis, problems, state, tol)), strict=True):
            column[part] = value
    return Path(*(_shaped(column, penalty) for column in flat))


def _grid(heads: int, groups: int, device: torch.device) -> Iterator[Tensor]:
    pairs = torch.cartesian_prod(torch.arange(heads, device=device), torch.arange(groups, device=device))
    return iter(pairs.unbind(1))


def _shaped(column: Tensor, like: Tensor) -> Tensor:
    return column.view(*like.shape, *column.shape[1:])


def _diagnose(basis: Basis, problems: Problems, state: State, tol: float) -> tuple[Tensor, ...]:
    value = lbfgs.objective(basis, problems, state.theta, state.loss)
    return value, lbfgs.safe_gap(state), state.n_iter, lbfgs.converged(basis, problems, state, tol)


def _solve(rows: Rows, basis: Basis, problems: Problems, state: State, *, tol: float, max_iter: int) -> State:
    """Step until every problem has converged; those that have leave the products at once."""
    left = torch.arange(len(problems.penalty), device=state.theta.device)
    active, finished = (problems, state), []
    for count in range(max_iter):
        done = lbfgs.converged(basis, *active, tol) | lbfgs.stuck(active[1])
        if bool(done.any()):
            out, stay = done.nonzero()[:, 0], (~done).nonzero()[:, 0]
            finished.append((left[out], active[1].select(out)))
            left, active = left[stay], (active[0].select(stay), active[1].select(stay))
        if len(left) == 0:
            break
        stepped = lbfgs.step(rows, basis, *active, refresh=count == 0)
        active = active[0], lbfgs.remodel(rows, basis, active[0], stepped)
    finished.append((left, active[1]))
    return _merge(finished)


def _merge(parts: list[tuple[Tensor, State]]) -> State:
    """Put states that finished at different times back in order; the shorter memories are padded with blank pairs."""
    order = torch.cat([index for index, _ in parts]).argsort()
    longest = max(len(state.steps) for _, state in parts)
    fields = {
        name: torch.cat([getattr(state, name) for _, state in parts])
        for name, value in vars(parts[0][1]).items()
        if isinstance(value, Tensor)
    }
    pairs = {
        name: tuple(
            torch.cat(column)
            for column in zip(*(_padded(getattr(s, name), getattr(s, like), longest) for _, s in parts), strict=True)
        )
        for name, like in PAIRS.items()
    }
    blocks = tuple(model for _, state in parts for model in state.blocks)
    return State(**fields, **pairs, blocks=blocks).select(order)  # type: ignore[arg-type]


def _padded(pairs: tuple[Tensor, ...], like: Tensor, length: int) -> tuple[Tensor, ...]:
    return (torch.zeros_like(like),) * (length - len(pairs)) + pairs
