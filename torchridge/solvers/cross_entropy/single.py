"""One strength of one dense problem: Newton's method if the Hessian is small, L-BFGS on the features else.

What a path earns by an eigendecomposition, a single fit only pays for. What these two do not bring to the tolerance,
`logistic_fit` goes on with from where they stand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy import descent as logistic_descent
from torchridge.solvers.cross_entropy import newton as logistic_newton
from torchridge.solvers.cross_entropy.features import DenseFeatures
from torchridge.solvers.cross_entropy.newton import Solved
from torchridge.solvers.cross_entropy.problem import Problem
from torchridge.solvers.cross_entropy.scaling import Cholesky, Diagonal
from torchridge.solvers.device import keeps_float32

# Multiply-adds of a Newton step up to which nothing else is faster, and rows up to which the dual has such steps.
_NEWTON = 3e7
_DUAL_ROWS = 256

# Evaluations after which L-BFGS by a diagonal is given the whole Hessian at zero, at the least, and features up to
# which it is; and those after which the models of `logistic_blocks` are the better choice.
_PATIENCE, _LARGEST = 40, 4096
_MOST = 200

# Numbers in the products of one evaluation from which float32 pays, the gap to which it goes, and the condition of the
# Hessian that it can tell.
_MUCH, _ROUGH, _RESOLVED = 2**15, 1e-6, 2.0**26


class Single(NamedTuple):
    """Where a single problem ended."""

    weight: Tensor  # (c, d)
    bias: Tensor  # (c,)
    objective: float  # mean loss plus ½·penalty·‖weight‖²
    gap: float
    n_iter: int
    converged: bool
    separated: Tensor  # (), whether every row that has weight is in its class


def fit(
    X: Tensor, labels: Tensor, weight: Tensor, seen: Tensor, penalty: float, *,
    intercept: bool, tol: float, max_iter: int, dtype: torch.dtype, newton: bool = True,
) -> Single:  # fmt: skip
    """Fit rows of shares `weight` (n,) and labels (n,) of classes that all have a share, `seen` (k,).

    `dtype` is that of the products of L-BFGS; without `newton` nothing else is used.

    Cost: see `logistic_newton` and `logistic_descent`; no copy of more than a few MB is made in float64.
    """
    n, d = X.shape
    k = len(seen)
    single = k == 2
    shares = seen[1:] if single else seen
    q, c = d + int(intercept), len(shares)
    theta = X.new_zeros(c, q, dtype=torch.float64)
    if intercept:
        theta[:, -1] = torch.logit(shares) if single else seen.log() - seen.log().mean()
    dual = single and n < d and n <= _DUAL_ROWS
    small = n * (c * q) ** 2 + (c * q) ** 3 / 3 <= _NEWTON
    newton = newton and (dual or small)
    features = DenseFeatures(X, weight, intercept=intercept, dtype=torch.float64 if newton else dtype)
    curvature = float((shares * (1 - shares)).mean())
    problem = Problem(features, labels, weight.to(features.X.dtype), penalty, curvature)
    if newton:
        solve = logistic_newton.dual if dual else logistic_newton.primal
        found = solve(problem, features, theta, tol=tol, max_iter=max_iter)
        return _single(problem, found, tol)
    state = _descend(problem, features, theta, tol, min(max_iter, _MOST))
    value = logistic_descent.value(state)
    return _single(problem, Solved(state.theta, value, state.gap, state.n_iter, state.residual), tol)


def _descend(
    problem: Problem, features: DenseFeatures, theta: Tensor, tol: float, max_iter: int
) -> logistic_descent.State:
    """Start with the diagonal; once as many evaluations went as the whole Hessian costs, take that."""
    n, (c, q) = len(problem.weight), theta.shape
    price = (n * q**2 / 2 + q**3 / 3) / (2 * n * q * c)
    first = max(_PATIENCE, int(price)) if q <= _LARGEST else max_iter
    scaling = Diagonal(problem)
    state = _roughly(problem, features, scaling, theta, tol, min(first, max_iter))
    state = logistic_descent.solve(problem, state, scaling, tol=tol, max_iter=min(first, max_iter))
    if logistic_descent.converged(state, tol) or not state.moving or state.n_iter >= max_iter:
        return state
    state.pairs = None
    return logistic_descent.solve(problem, state, Cholesky(problem, features), tol=tol, max_iter=max_iter)


def _roughly(
    problem: Problem, features: DenseFeatures, scaling: Diagonal, theta: Tensor, tol: float, max_iter: int
) -> logistic_descent.State:
    """Start, in float32 as far as that goes if it pays: products take a third of the time there."""
    coarse = features.rounded() if features.X.dtype is torch.float64 and _pays(problem, features, theta) else None
    if coarse is None:
        return logistic_descent.start(problem, theta)
    rough = replace(problem, features=coarse, weight=problem.weight.float())
    state = logistic_descent.start(rough, theta)
    state = logistic_descent.solve(rough, state, scaling, tol=max(tol, _ROUGH), max_iter=max_iter)
    return logistic_descent.refined(problem, state)


def _pays(problem: Problem, features: DenseFeatures, theta: Tensor) -> bool:
    if not keeps_float32(theta.device) or len(features.X) * theta.numel() < _MUCH:
        return False
    return float(features.square.sum()) <= _RESOLVED * problem.penalty


def _single(problem: Problem, found: Solved, tol: float) -> Single:
    theta, gap, objective = found.theta, found.gap, found.objective
    weight, bias = theta, theta.new_zeros(len(theta))
    if problem.features.intercept:
        weight, bias = theta[:, :-1], theta[:, -1] - theta[:, :-1] @ problem.features.mean
    if len(bias) > 1:  # a shift of all classes costs penalty alone, so that the minimum has none; float32 may leave one
        weight, bias = weight - weight.mean(0), bias - bias.mean()
    return Single(weight, bias, objective, gap, found.n_iter, gap <= tol * objective, _separated(problem, found))


def _separated(problem: Problem, found: Solved) -> Tensor:
    """Read off the residuals w (p − 1) of the class of a row and w p of others whether the first is the largest p."""
    weight, residual = problem.weight, found.residual
    if len(residual) == 1:
        right = 2 * residual[0].abs() < weight
    else:
        own = problem.labels[None]
        others = residual.scatter(0, own, -torch.inf).amax(0)
        right = others < residual.gather(0, own)[0] + weight
    return (right | (weight == 0)).all()
