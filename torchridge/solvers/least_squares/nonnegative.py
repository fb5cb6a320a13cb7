"""Ridge under w ≥ 0, exact: block principal pivoting on the moments.

Minimize ½ wᵀ A w − cᵀ w over w ≥ 0, A = gram + α diag(penalty). Guess which weights are positive, solve for them,
exchange all that came out with the wrong sign, and fall back on exchanging one at a time if that does not help.
Sources: Júdice & Pires 1994, doi:10.1016/0305-0548(94)90106-6; Kim & Park 2011, doi:10.1137/110821172.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.least_squares.spectral import pseudoinverse

# Exchanges of all infeasible weights that may fail to lower their number before one is exchanged at a time.
_PATIENCE = 3


class Nonnegative(NamedTuple):
    """Weights under w ≥ 0."""

    weight: Tensor  # (d, t)
    steps: int  # exchanges of the target that took most
    converged: bool


class _State(NamedTuple):
    passive: Tensor  # (d,) whether a weight is free to be positive
    weight: Tensor  # (d,)
    gradient: Tensor  # (d,) A w − c
    fewest: int
    patience: int


def nonnegative(gram: Tensor, cross: Tensor, alpha: Tensor, limit: int | None = None) -> Nonnegative:
    """Minimize for every target, α (1,) or (t,). Cost about ten Cholesky factors of the positive block a target."""
    d, t = cross.shape
    limit = 100 + 10 * d if limit is None else limit
    weight, most, converged = torch.zeros_like(cross), 0, True
    for j in range(t):
        matrix = gram.clone()
        matrix.diagonal().add_(alpha[j if len(alpha) > 1 else 0])
        weight[:, j], steps, done = _column(matrix, cross[:, j], limit)
        most, converged = max(most, steps), converged and done
    return Nonnegative(weight, most, converged)


def _column(matrix: Tensor, cross: Tensor, limit: int) -> tuple[Tensor, int, bool]:
    d = cross.shape[0]
    slack = 10 * d * torch.finfo(cross.dtype).eps * cross.abs().amax()
    state = _State(torch.zeros_like(cross, dtype=torch.bool), torch.zeros_like(cross), -cross, d + 1, _PATIENCE)
    for step in range(limit + 1):
        wrong = torch.where(state.passive, state.weight < 0, state.gradient < -slack)
        if not bool(wrong.any()):
            return state.weight, step, True
        if step < limit:
            state = _exchange(matrix, cross, state, wrong)
    return state.weight.clamp_min(0), limit, False


def _exchange(matrix: Tensor, cross: Tensor, state: _State, wrong: Tensor) -> _State:
    count = int(wrong.sum())
    fewest, patience = state.fewest, state.patience
    if count < fewest:
        fewest, patience = count, _PATIENCE
    elif patience > 0:
        patience -= 1
    else:  # Murty's rule, which ends
        last = int(wrong.nonzero()[-1, 0])
        wrong = torch.zeros_like(wrong)
        wrong[last] = True
    passive = state.passive ^ wrong
    weight = torch.zeros_like(cross)
    index = passive.nonzero()[:, 0]
    weight[index] = _solve(matrix[index][:, index], cross[index])
    return _State(passive, weight, matrix @ weight - cross, fewest, patience)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) > 0:
        inverse, _ = pseudoinverse(matrix)
        return inverse @ right
    solution = torch.cholesky_solve(right[:, None], factor)
    solution += torch.cholesky_solve(right[:, None] - matrix @ solution, factor)
    return solution[:, 0]
