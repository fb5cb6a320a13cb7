"""Logistic fits on a sparse matrix by products alone: every head, row weight and strength, each from its neighbour.

Measured on TF-IDF rows, one thread, relative gap 1e-10: see `logistic_descent`. Memory: the pairs of one problem, 20
vectors of its coefficients, and what is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy import descent
from torchridge.solvers.cross_entropy.descent import State
from torchridge.solvers.cross_entropy.features import SparseFeatures
from torchridge.solvers.cross_entropy.path import extrapolate
from torchridge.solvers.cross_entropy.problem import Problem
from torchridge.solvers.cross_entropy.scaling import Diagonal
from torchridge.solvers.iterative.operators import Operator

# A matrix of so few numbers is made dense: exact Newton steps cost nothing there.
_SMALL = 2**16

# And one of up to 128 MiB in which one entry in eight is there: products of dense matrices are that much faster.
_FULL, _FULL_NUMBERS = 8, 2**24


def filled(shape: tuple[int, int], entries: int) -> bool:
    """Choose whether a sparse matrix is made dense: by the cost of products, and if it is tiny."""
    numbers = shape[0] * shape[1]
    return numbers <= _SMALL or (numbers <= _FULL * entries and numbers <= _FULL_NUMBERS)


@dataclass(frozen=True)
class Found:
    """One head under one row weight, at L strengths that rise: (L, …), with k or one logit."""

    weight: Tensor  # (L, c, d)
    bias: Tensor  # (L, c)
    objective: Tensor  # (L,), mean loss plus ½·penalty·‖weight‖²
    gap: Tensor  # (L,), relative
    n_iter: Tensor
    converged: Tensor
    separated: Tensor


def fit(
    features: SparseFeatures, labels: Tensor, weight: Tensor, seen: Tensor, penalty: Tensor, *,
    tol: float, max_iter: int,
) -> Found:  # fmt: skip
    """Fit labels (n,) under row weights (n,) that sum to one and penalties (L,) that fall; `seen` (k,) are the shares.

    A class without a share is left out, and has bias −∞ and no weight.
    """
    k, d = len(seen), features.X.shape[1]
    open_ = (seen > 0).nonzero()[:, 0]
    number = torch.zeros_like(seen, dtype=torch.int64)
    number[open_] = torch.arange(len(open_), device=seen.device)
    shares = seen[1:] if k == 2 else seen[open_]
    problem = Problem(features, number[labels], weight, float(penalty[0]), float((shares * (1 - shares)).mean()))
    theta = _start(seen, open_, d, features.intercept)
    logits = theta[:, -1:].repeat(1, len(weight)) if features.intercept else theta.new_zeros(len(theta), len(weight))
    state = descent.start(problem, theta, logits)
    c, L = 1 if k == 2 else k, len(penalty)
    out = Found(
        weight.new_zeros(L, c, d),
        weight.new_full((L, c), -torch.inf if features.intercept else 0.0),
        *weight.new_zeros(2, L),
        *torch.zeros(3, L, dtype=torch.int64, device=weight.device),
    )
    rows = slice(None) if k == 2 else open_
    known: list[Tensor] = []
    for i, value in enumerate(penalty.tolist()):
        problem, state = descent.repenalized(problem, state, value)
        if len(known) > 1:
            state = _ahead(problem, state, penalty[: i + 1], known)
        state = descent.solve(problem, state, Diagonal(problem), tol=tol, max_iter=max_iter)
        known = [*known[-2:], state.theta]
        _keep(out, i, rows, problem, state, tol)
    return out


def _start(seen: Tensor, open_: Tensor, d: int, intercept: bool) -> Tensor:
    theta = seen.new_zeros(1 if len(seen) == 2 else len(open_), d + int(intercept))
    if intercept:
        log = seen[open_].log()
        theta[:, -1] = torch.logit(seen[1:]) if len(seen) == 2 else log - log.mean()
    return theta


def _ahead(problem: Problem, state: State, penalty: Tensor, known: list[Tensor]) -> State:
    """Return the state at what the last solutions, at all penalties but the last, tell of the next, if it is lower.

    It costs an evaluation, and saves half of them on a grid of 20 strengths.
    """
    before = penalty[-1 - len(known) : -1, None]
    guess = extrapolate(before, torch.stack(known)[:, None], penalty[-1:, None])[0, 0]
    there = descent.start(problem, guess)
    return there if descent.value(there) < descent.value(state) else replace(state, n_iter=1)


def _keep(out: Found, i: int, rows: Tensor | slice, problem: Problem, state: State, tol: float) -> None:
    theta, features = state.theta, problem.features
    now = descent.value(state)
    out.objective[i], out.gap[i] = now, state.gap / max(now, torch.finfo(torch.float64).tiny)
    out.n_iter[i], out.converged[i] = state.n_iter, int(state.gap <= tol * now)
    chosen = (state.logits[0] > 0).long() if len(theta) == 1 else state.logits.argmax(0)
    out.separated[i] = int(((chosen == problem.labels) | (problem.weight == 0)).all())
    if not features.intercept:
        out.weight[i][rows] = theta
        out.bias[i][rows] = 0
        return
    weight = theta[:, :-1]
    bias = theta[:, -1] - weight @ features.mean
    out.weight[i][rows], out.bias[i][rows] = weight, bias - bias.mean() if len(bias) > 1 else bias


def doubled(X: Operator) -> Operator:
    """Return the operator with its entries in float64, converted once and not in every product."""
    return X if X.dtype is torch.float64 else X.double()  # type: ignore[attr-defined]
