"""The state of L-BFGS: iterates, their values, and the pairs it remembers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy.hessian import Blocks
from torchridge.solvers.cross_entropy.loss import Evaluation
from torchridge.solvers.device import sent

MEMORY = 20  # pairs that L-BFGS keeps; 60 saved a fifth of the passes on 100 classes, at three times the memory


# What a pair consists of, with a field of its shape.
PAIRS = {"steps": "theta", "changes": "theta", "inverse": "loss"}
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


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products of every problem."""
    # Elementwise if one thread does it, at a seventh of the time; if threads are woken for it, at ten times.
    if a.numel() < _ONE_THREAD or a.is_cuda:
        return (a * b).sum((1, 2))
    return (a.flatten(1)[:, None] @ b.flatten(1)[:, :, None])[:, 0, 0]


def remember(state: State, step: Tensor, change: Tensor, accepted: Tensor) -> State:
    """Append a pair; blank if its curvature is not positive.

    The curvature of a failed step is as true, and is kept, but not with the Hessian itself, which knows better: there
    the next step goes less far in the same direction, or damped Newton steps would come to creep.
    """
    newton = sent(torch.tensor([model is not None and model.whole for model in state.blocks]), accepted.device)
    inner = dot(step, change)
    usable = torch.isfinite(inner) & (inner > 0) & (accepted | ~newton)
    wide = usable[:, None, None]
    steps = (*state.steps, torch.where(wide, step, 0))[-MEMORY:]
    changes = (*state.changes, torch.where(wide, change, 0))[-MEMORY:]
    inverse = (*state.inverse, torch.where(usable, inverted(inner), 0))[-MEMORY:]
    return replace(state, steps=steps, changes=changes, inverse=inverse)


def counted(state: State) -> State:
    """Return the state with one more evaluation."""
    return replace(state, n_iter=state.n_iter + 1, waited=state.waited + 1)


def forget(state: State, fresh: Tensor) -> State:
    """Blank the pairs of the problems in `fresh`: they mend the faults of a model that is no longer used."""
    keep = (~fresh)[:, None, None]
    steps = tuple(torch.where(keep, step, 0) for step in state.steps)
    changes = tuple(torch.where(keep, change, 0) for change in state.changes)
    inverse = tuple(torch.where(~fresh, rho, 0) for rho in state.inverse)
    return replace(state, steps=steps, changes=changes, inverse=inverse)


def moved(state: State, trial: Tensor, at: Evaluation, accepted: Tensor) -> State:
    """Return the state with the steps taken that are accepted."""
    wide = accepted[:, None, None]
    ahead = replace(
        state,
        theta=torch.where(wide, trial, state.theta),
        loss=torch.where(accepted, at.loss, state.loss),
        grad=torch.where(wide, at.grad, state.grad),
    )
    if at.curvature is None:
        return ahead
    curvature, vectors = factored(torch.where(torch.isfinite(at.curvature), at.curvature, 0))
    return replace(
        ahead,
        curvature=torch.where(accepted[:, None], curvature, state.curvature),
        vectors=torch.where(wide, vectors, state.vectors),
    )


def factored(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of curvatures, the small ones raised."""
    eigvals, vectors = torch.linalg.eigh(curvature)
    floor = _SMALLEST_CURVATURE * eigvals[:, -1:]
    return eigvals.maximum(floor).clamp_min(torch.finfo(eigvals.dtype).tiny), vectors


def inverted(curvature: Tensor) -> Tensor:
    """1 / curvature, and 0 for a pair that was blanked out."""
    return torch.where(curvature > 0, 1 / curvature, 0)
