"""L2 logistic regression by L-BFGS, preconditioned by a Kronecker model of the Hessian; many problems at once.

Letters: n rows, q features (the last may be a column of ones), c logits (k classes, or one for two classes),
P problems, λ_p the penalty of problem p beside the mean loss, θ (c, q) its coefficients.

    minimize over θ:   f(θ) = Σ_i w_i CE(y_i, θ f_i)  +  ½ λ ‖θ‖²     without the column of ones; Σ w_i = 1

The Hessian is Σ_i w_i (diag(p_i) − p_i p_iᵀ) ⊗ f_i f_iᵀ + λ. Böhning (1992) bounds its first factor by a constant;
here its mean over the rows takes that place, B = Σ_i w_i (diag(p_i) − p_i p_iᵀ) = Q diag(b) Qᵀ. With features in the
eigenbasis of their second moments, e_j, the model B ⊗ diag(e) + λ is diagonal after Q for every λ, so that one
preconditioner serves a whole path of strengths, and it is the exact Hessian where the penalty is strong. Where it is
not enough, `logistic_blocks` takes its place.

L-BFGS: Liu and Nocedal (1989), doi:10.1007/BF01589116. Bound: Böhning (1992), doi:10.1007/BF00048682.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy.basis import Basis
from torchridge.solvers.cross_entropy.hessian import Blocks, affordable, blocks_or_price
from torchridge.solvers.cross_entropy.loss import Evaluation, Problems, Rows, evaluate

MEMORY = 20  # pairs that L-BFGS keeps; 60 saved a fifth of the passes on 100 classes, at three times the memory

# The gap is read off a model of the Hessian. On planted data the true gap has been up to 28 times what the models say,
# where the classes come apart or the scales of the features differ by orders of magnitude.
SAFETY = 24.0

# What a pair consists of, with a field of its shape.
PAIRS = {"steps": "theta", "changes": "theta", "inverse": "loss"}

_SUFFICIENT = 1e-4  # Armijo's constant
_SHORTEST = 1e-4  # steps below this share of the quasi-Newton step are not worth an evaluation
_FIRST_ASKED, _NEVER = 2, 2**20  # evaluations after which the price of a model of the Hessian is asked
_ONE_THREAD = 2**15  # elements up to which torch keeps to the calling thread
_SMALLEST_CURVATURE = 1e-5  # eigenvalues of B below this share of its largest are raised to it


@dataclass(frozen=True)
class State:
    """Where the P problems stand.

    Attributes:
        theta: (P, c, q), float64.
        loss: (P,), mean loss without the penalty.
        grad: (P, c, q), gradient of the mean loss without the penalty, which serves every penalty.
        direction: (P, c, q), the quasi-Newton step from here.
        gap: (P,), estimate of f(θ) − min f from the quasi-Newton model, half of the decrement.
        step_size: (P,), length of the next step along the direction: 1, unless the last one failed.
        steps: pairs' differences of θ, each (P, c, q), oldest first.
        changes: pairs' differences of the gradient of f, each (P, c, q).
        inverse: pairs' 1 / (step · change), each (P,), zero for a pair that was blanked out.
        vectors: (P, c, c), Q above.
        curvature: (P, c), b above.
        blocks: P models of the Hessian that take the place of B's, or None.
        waited: (P,), evaluations since the model of the Hessian was taken, under this penalty.
        asks: (P,), how many of them are waited for until its price is asked again.
        n_iter: (P,), evaluations under this penalty.
    """

    theta: Tensor
    loss: Tensor
    grad: Tensor
    direction: Tensor
    gap: Tensor
    step_size: Tensor
    steps: tuple[Tensor, ...]
    changes: tuple[Tensor, ...]
    inverse: tuple[Tensor, ...]
    vectors: Tensor
    curvature: Tensor
    blocks: tuple[Blocks | None, ...]
    waited: Tensor
    asks: Tensor
    n_iter: Tensor

    def select(self, index: Tensor) -> State:
        """Return the states of the problems at `index`, which may repeat one."""
        fields = {name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)}
        pairs = {name: tuple(pair[index] for pair in getattr(self, name)) for name in PAIRS}
        blocks = tuple(self.blocks[i] for i in index.tolist())
        return State(**fields, **pairs, blocks=blocks)  # type: ignore[arg-type]


def objective(basis: Basis, problems: Problems, theta: Tensor, loss: Tensor) -> Tensor:
    """Return f (P,) from the mean loss at θ."""
    return loss + 0.5 * problems.penalty * (theta.square() * basis.penalized).sum((1, 2))


def gradient(basis: Basis, problems: Problems, theta: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of f (P, c, q) from the gradient of the mean loss at θ."""
    return grad + problems.penalty[:, None, None] * (theta * basis.penalized)


def init(rows: Rows, basis: Basis, problems: Problems, theta: Tensor) -> State:
    """Evaluate the start θ (P, c, q)."""
    at = evaluate(rows, problems, theta, curvature=True)
    assert at.curvature is not None
    curvature, vectors = _factor(at.curvature)
    zeros, ones = torch.zeros_like(at.loss), torch.ones_like(at.loss)
    none, count = (None,) * len(theta), zeros.long()
    state = State(
        theta=theta,
        loss=at.loss,
        grad=at.grad,
        direction=at.grad,
        gap=zeros,
        step_size=ones,
        steps=(),
        changes=(),
        inverse=(),
        vectors=vectors,
        curvature=curvature,
        blocks=none,
        waited=count,
        asks=count + _FIRST_ASKED,
        n_iter=count,
    )
    return aim(basis, problems, state)


def repenalize(basis: Basis, old: Problems, new: Problems, state: State) -> State:
    """Return the state under another penalty: what was learnt of the loss stays, so no pass over the rows is due.

    It is still to `aim` or to `leap`.
    """
    shift = (new.penalty - old.penalty)[:, None, None] * basis.penalized
    changes = tuple(y + shift * s for s, y in zip(state.steps, state.changes, strict=True))
    fresh = replace(
        state,
        changes=changes,
        inverse=tuple(_inverse(_dot(s, y)) for s, y in zip(state.steps, changes, strict=True)),
        blocks=tuple(b and b.under(basis, p) for b, p in zip(state.blocks, new.penalty, strict=True)),
        waited=torch.zeros_like(state.waited),
        asks=(state.asks // 2).clamp_min(_FIRST_ASKED),
        n_iter=torch.zeros_like(state.n_iter),
        step_size=torch.ones_like(state.step_size),
    )
    modelled = torch.tensor([b is not None for b in state.blocks], device=state.waited.device)
    return _forget(fresh, modelled)


def aim(basis: Basis, problems: Problems, state: State) -> State:
    """Return the state with direction and gap from its gradient: L-BFGS in two loops."""
    grad = gradient(basis, problems, state.theta, state.grad)
    rest, along = grad, []
    for s, y, rho in zip(reversed(state.steps), reversed(state.changes), reversed(state.inverse), strict=True):
        along.append(rho * _dot(s, rest))
        rest = rest - along[-1][:, None, None] * y
    ahead = _precondition(basis, problems, state, rest)
    for s, y, rho, a in zip(state.steps, state.changes, state.inverse, reversed(along), strict=True):
        ahead = ahead + (a - rho * _dot(y, ahead))[:, None, None] * s
    return replace(state, direction=-ahead, gap=0.5 * _dot(grad, ahead))


def step(rows: Rows, basis: Basis, problems: Problems, state: State, *, refresh: bool) -> State:
    """Try one step for every problem, at the cost of one evaluation; where it fails, only the next one is shorter.

    `refresh` takes the model of the Hessian anew, from the point that is reached.
    """
    trial = state.theta + state.step_size[:, None, None] * state.direction
    at = evaluate(rows, problems, trial, curvature=refresh)
    grad = gradient(basis, problems, state.theta, state.grad)
    before = objective(basis, problems, state.theta, state.loss)
    after = objective(basis, problems, trial, at.loss)
    slope = _dot(grad, state.direction)
    noise = torch.finfo(rows.features.dtype).eps * before
    accepted = after <= before + _SUFFICIENT * state.step_size * slope + noise
    change = gradient(basis, problems, trial, at.grad) - grad
    moved = _move(_remember(state, trial - state.theta, change, accepted), trial, at, accepted)
    shorter = _shorter(state.step_size, before, after, slope)
    step_size = torch.where(accepted, torch.ones_like(shorter), shorter)
    return aim(basis, problems, _counted(replace(moved, step_size=step_size)))


def leap(rows: Rows, basis: Basis, problems: Problems, state: State, theta: Tensor) -> State:
    """Move every problem to θ (P, c, q) where f is lower there, at the cost of one evaluation."""
    at = evaluate(rows, problems, theta, curvature=True)
    better = objective(basis, problems, theta, at.loss) < objective(basis, problems, state.theta, state.loss)
    change = gradient(basis, problems, theta, at.grad) - gradient(basis, problems, state.theta, state.grad)
    moved = _move(_remember(state, theta - state.theta, change, better), theta, at, better)
    return aim(basis, problems, _retaken(rows, basis, problems, _counted(moved)))


def _retaken(rows: Rows, basis: Basis, problems: Problems, state: State) -> State:
    """Take the blocks that there are afresh, whatever they cost.

    Those of a stronger penalty have too much curvature, tenfold after a few strengths of separable classes, and would
    call a fit converged too early by as much.
    """
    old = [p for p, model in enumerate(state.blocks) if model is not None]
    blocks, waited = list(state.blocks), state.waited.clone()
    for p in old:
        of_p = problems.head[p], problems.group[p], problems.penalty[p]
        found = blocks_or_price(rows, basis, *of_p, state.theta[p], patience=math.inf)
        assert isinstance(found, Blocks)
        blocks[p], waited[p] = found, 0
    return replace(state, blocks=tuple(blocks), waited=waited)


def remodel(rows: Rows, basis: Basis, problems: Problems, state: State) -> State:
    """Take blocks as the model of the Hessian where as many evaluations went without them as they cost.

    Whoever buys once the rent has added up to the price never pays more than twice what was needed.
    """
    # Over ranks the rows of a model would have to travel too: there L-BFGS does without one.
    if rows.share is not None or not affordable(*state.theta.shape[1:]):
        return state
    due = _due(state)
    if not any(due):
        return state
    blocks, asks = list(state.blocks), state.asks.clone()
    fresh = torch.zeros_like(state.waited, dtype=torch.bool)
    for p in (i for i, asked in enumerate(due) if asked):
        of_p, waited = (problems.head[p], problems.group[p], problems.penalty[p]), int(state.waited[p])
        found = blocks_or_price(rows, basis, *of_p, state.theta[p], patience=waited)
        if isinstance(found, Blocks):
            blocks[p], fresh[p], asks[p] = found, True, _FIRST_ASKED
        else:
            asks[p] = int(max(2 * waited, min(found / 2, _NEVER)))  # the price falls as the classes come apart
    state = replace(state, blocks=tuple(blocks), waited=torch.where(fresh, 0, state.waited), asks=asks)
    return aim(basis, problems, _forget(state, fresh)) if bool(fresh.any()) else state


def _due(state: State) -> list[bool]:
    """Say which problems ask for the price, which costs half an evaluation.

    Blocks are taken once under a penalty, since each time costs the pairs that have been collected; the Hessian itself
    needs none, and is taken as often as it pays.
    """
    due = (state.waited >= state.asks) & (state.step_size >= 1)
    untouched = state.n_iter == state.waited
    again = torch.tensor([model is None or model.whole for model in state.blocks], device=due.device)
    answer: list[bool] = (due & (again | untouched)).tolist()
    return answer


def converged(basis: Basis, problems: Problems, state: State, tol: float) -> Tensor:
    """Return (P,) whether the estimated gap is at most `tol` times the objective."""
    enough: Tensor = safe_gap(state) <= tol * objective(basis, problems, state.theta, state.loss)
    return enough


def safe_gap(state: State) -> Tensor:
    """Return (P,) the estimated gap times what the model it is read off may be wrong by."""
    return SAFETY * state.gap


def stuck(state: State) -> Tensor:
    """Return (P,) whether steps have failed so often that rounding must hide the descent."""
    return torch.lt(state.step_size, _SHORTEST)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # Elementwise where one thread does it, at a seventh of the time; where threads are woken for it, at ten times.
    if a.numel() < _ONE_THREAD or a.is_cuda:
        return (a * b).sum((1, 2))
    return (a.flatten(1)[:, None] @ b.flatten(1)[:, :, None])[:, 0, 0]


def _factor(curvature: Tensor) -> tuple[Tensor, Tensor]:
    eigvals, vectors = torch.linalg.eigh(curvature)
    floor = _SMALLEST_CURVATURE * eigvals[:, -1:]
    return eigvals.maximum(floor).clamp_min(torch.finfo(eigvals.dtype).tiny), vectors


def _precondition(basis: Basis, problems: Problems, state: State, grad: Tensor) -> Tensor:
    ahead = torch.empty_like(grad)
    if None in state.blocks:
        ahead = _kronecker(basis, problems, state, grad) * _scale(basis, problems, state)
    for p, blocks in enumerate(state.blocks):
        if blocks is not None:
            ahead[p] = blocks.solve(grad[p])
    return ahead


def _kronecker(basis: Basis, problems: Problems, state: State, grad: Tensor) -> Tensor:
    model = state.curvature[:, :, None] * basis.eigvals + problems.penalty[:, None, None] * basis.penalized
    return state.vectors @ (state.vectors.mT @ grad / model)


def _scale(basis: Basis, problems: Problems, state: State) -> Tensor | float:
    """How far the last pair says that the Kronecker model lacks curvature: a factor of at most 1, (P, 1, 1).

    Without it the first step overshoots on nearly separable data: on one planted problem (2000, 256, 30 classes), 20
    strengths took 865 evaluations without a factor, 515 with one of any size, 261 with one of at most 1.
    """
    if not state.steps:
        return 1.0
    step, change = state.steps[-1], state.changes[-1]
    ratio = _dot(step, change) / _dot(change, _kronecker(basis, problems, state, change))
    return torch.where(ratio > 0, ratio, 1).clamp_max(1)[:, None, None]


def _inverse(curvature: Tensor) -> Tensor:
    """1 / curvature, and 0 for a pair that was blanked out."""
    return torch.where(curvature > 0, 1 / curvature, 0)


def _remember(state: State, step: Tensor, change: Tensor, accepted: Tensor) -> State:
    """Append a pair; blank where its curvature is not positive.

    The curvature of a failed step is as true, and is kept, but not beside the Hessian itself, which knows better: there
    the next step goes less far in the same direction, or damped Newton steps would come to creep.
    """
    newton = torch.tensor([model is not None and model.whole for model in state.blocks], device=accepted.device)
    inner = _dot(step, change)
    usable = torch.isfinite(inner) & (inner > 0) & (accepted | ~newton)
    wide = usable[:, None, None]
    steps = (*state.steps, torch.where(wide, step, 0))[-MEMORY:]
    changes = (*state.changes, torch.where(wide, change, 0))[-MEMORY:]
    inverse = (*state.inverse, torch.where(usable, _inverse(inner), 0))[-MEMORY:]
    return replace(state, steps=steps, changes=changes, inverse=inverse)


def _counted(state: State) -> State:
    return replace(state, n_iter=state.n_iter + 1, waited=state.waited + 1)


def _forget(state: State, fresh: Tensor) -> State:
    """Blank the pairs of the problems in `fresh`: they mend the faults of a model that is no longer used."""
    keep = (~fresh)[:, None, None]
    steps = tuple(torch.where(keep, step, 0) for step in state.steps)
    changes = tuple(torch.where(keep, change, 0) for change in state.changes)
    inverse = tuple(torch.where(~fresh, rho, 0) for rho in state.inverse)
    return replace(state, steps=steps, changes=changes, inverse=inverse)


def _move(state: State, trial: Tensor, at: Evaluation, accepted: Tensor) -> State:
    wide = accepted[:, None, None]
    moved = replace(
        state,
        theta=torch.where(wide, trial, state.theta),
        loss=torch.where(accepted, at.loss, state.loss),
        grad=torch.where(wide, at.grad, state.grad),
    )
    if at.curvature is None:
        return moved
    curvature, vectors = _factor(torch.where(torch.isfinite(at.curvature), at.curvature, 0))
    return replace(
        moved,
        curvature=torch.where(accepted[:, None], curvature, state.curvature),
        vectors=torch.where(wide, vectors, state.vectors),
    )


def _shorter(step_size: Tensor, before: Tensor, after: Tensor, slope: Tensor) -> Tensor:
    """The minimum of the parabola through both values and the slope, between a tenth and a half of the step."""
    rise = after - before - step_size * slope
    best = -slope * step_size / (2 * rise)
    return step_size * torch.where(torch.isfinite(best), best, 0).clamp(0.1, 0.5)
