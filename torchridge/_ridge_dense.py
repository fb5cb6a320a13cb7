"""Ridge in plain torch operations: under autograd, a transform or a compiler, and for batches of problems."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ridge_options import Options
from torchridge._warnings import IllConditionedWarning
from torchridge.solvers import dense, select
from torchridge.solvers.arguments import check_strengths
from torchridge.solvers.rows import result_dtype
from torchridge.solvers.solution import Solution


def solve_watched(X: Tensor, y: Tensor, alpha: Any, name: str, sample_weight: Any, options: Options) -> Solution:
    """Solve by torch operations alone, and raise or warn, where values may be looked at, if digits were lost."""
    solution = solve_dense(X, y, alpha, name, sample_weight, options)
    condition = torch.as_tensor(solution.condition)
    if not _check.values_visible(solution.weight, condition):
        return solution
    eps, worst = torch.finfo(torch.float64).eps, float(condition.nan_to_num(torch.inf).amax())
    if worst > 1 / eps or not bool(torch.isfinite(solution.weight).all()):
        raise ValueError(
            "`alpha` is too weak for a unique solution: gram + α diag(penalty_factors) is singular to rounding. Raise "
            "`alpha`; the minimum-norm solution is offered without gradients."
        )
    if eps * worst > eps**0.5:
        warnings.warn(
            f"the condition number is {worst:.1e}; the weights may be off by {eps * worst:.0e}. Raise `alpha`, or call "
            f"`ridge` without gradients, which refines the solution.",
            IllConditionedWarning,
            stacklevel=5,
        )
    return solution


def solve_dense(X: Tensor, y: Tensor, alpha: Any, name: str, sample_weight: Any, options: Options) -> Solution:
    """Solve by torch operations alone."""
    problem, vector = _problem(X, y, alpha, name, sample_weight, options)
    visible = _check.values_visible(problem.X, problem.y, problem.alpha, sample_weight, problem.penalty, problem.prior)
    n, d = problem.X.shape[-2:]
    free = visible and problem.penalty is not None and bool((problem.penalty == 0).any())
    primal = options.solver in ("cholesky", "spectral", "svd") or (options.solver == "auto" and (n >= d or free))
    solved = dense.solve(problem, primal)
    path = name == "alphas"
    single = not path and not problem.per_target
    left = n - solved.dof - int(problem.intercept)
    left = torch.where(left > 0.5, left, torch.nan)
    variance = solved.squares / (left.unsqueeze(-2) if problem.per_target else left.unsqueeze(-1))
    dtype = result_dtype(X)
    return Solution(
        weight=(solved.weight if path else solved.weight[..., 0, :, :]).to(dtype),
        bias=(solved.bias if path else solved.bias[..., 0, :]).to(dtype),
        alpha=problem.alpha[..., 0] if single else problem.alpha,
        solver="cholesky" if primal else "dual",
        reason="plain torch operations: gradients, a transform, a compiler, or a batch",
        n_samples=n,
        dof=solved.dof[..., 0] if single else solved.dof,
        condition=solved.condition,
        rank=solved.rank,
        residual_variance=variance if path else variance[..., 0, :],
        unit_variance=solved.unit_variance[..., 0, :] if single else solved.unit_variance,
        fit_intercept=problem.intercept,
        vector_target=vector,
        is_path=path,
    )


def _problem(
    X: Tensor, y: Tensor, alpha: Any, name: str, sample_weight: Any, options: Options
) -> tuple[dense.Problem, bool]:
    for argument, value in (("X", X), ("y", y)):
        _check.is_dense_real(value, argument)
        _check.not_empty(value, argument)
        _check.finite(value, argument)
    batch, n, d = tuple(X.shape[:-2]), X.shape[-2] if X.ndim > 1 else 0, X.shape[-1]
    if X.ndim < 2 or (tuple(y.shape) != (*batch, n) and tuple(y.shape[:-1]) != (*batch, n)):
        remedy = " Pass `X[:, None]` for rows of one feature." if X.ndim < 2 else ""
        raise ValueError(
            f"`X` has shape {tuple(X.shape)} and `y` {tuple(y.shape)}; expected (*b, n, d), and (*b, n) or (*b, n, t)."
            f"{remedy}"
        )
    vector = y.ndim == X.ndim - 1
    target = (y.unsqueeze(-1) if vector else y).double()
    weight = None
    if sample_weight is not None:
        _check.is_tensor(sample_weight, "sample_weight")
        _check.is_dense_real(sample_weight, "sample_weight")
        _check.shape(sample_weight, list(dict.fromkeys([(n,), (*batch, n)])), "sample_weight")
        _check.non_negative(sample_weight, "sample_weight")
        weight = sample_weight.double().expand(*batch, n)
    _check.same_device({"X": X, "y": y, "sample_weight": sample_weight})
    t = target.shape[-1]
    objective = options.objective(d, t, X, batch, torch.float64)
    values, per_target = _batch_strengths(alpha, name, batch, t, X)
    prior = None if objective.prior is None else objective.prior.mT.expand(*batch, t, d)
    penalty = None if objective.penalty is None else objective.penalty.expand(*batch, d)
    problem = dense.Problem(
        X.double(), target, values, weight, penalty, prior, objective.intercept, objective.standardize, per_target
    )
    return problem, vector


def _batch_strengths(alpha: Any, name: str, batch: tuple[int, ...], t: int, like: Tensor) -> tuple[Tensor, bool]:
    """Return strengths (*b, a), and whether a counts targets."""
    values = check_strengths(alpha, name, like=like)
    if name == "alphas":
        if values.ndim > 1:
            raise ValueError(f"`alphas` should have shape (L,), got {tuple(values.shape)}.")
        return values.reshape(-1).expand(*batch, values.numel()), False
    shapes = [(), (1,), batch, (*batch, 1), (t,), (*batch, t)]
    _check.shape(values, list(dict.fromkeys(shapes)), "alpha")
    shape = tuple(values.shape)
    if shape in ((), (1,), (*batch, 1)):
        return values.expand(*batch, 1), False
    if shape == batch:
        return values.unsqueeze(-1), False
    return values.expand(*batch, t), True


def solve_batch(
    single: Callable[..., Solution], X: Tensor, y: Tensor, alpha: Any, name: str, sample_weight: Any, options: Options
) -> Solution:
    """Solve a batch at once; where one of its problems is ill-conditioned, each by itself, with care."""
    problem, _ = _problem(X, y, alpha, name, sample_weight, options)
    if options.solver in ("auto", "cholesky", "dual") and float(problem.alpha.amin()) > 0:
        solution = solve_dense(X, y, alpha, name, sample_weight, options)
        if bool((torch.as_tensor(solution.condition) <= select.CAREFUL[result_dtype(X)]).all()):
            return solution
    return each_alone(single, X, y, problem, name, options)


def each_alone(
    single: Callable[..., Solution], X: Tensor, y: Tensor, problem: dense.Problem, name: str, options: Options
) -> Solution:
    """Solve the problems of a batch one by one, and stack their solutions."""
    batch = tuple(X.shape[:-2])
    solutions = []
    for i in range(math.prod(batch)):
        at = torch.unravel_index(torch.tensor(i), batch)
        alpha = problem.alpha[at]
        alpha = alpha if name == "alphas" or problem.per_target else alpha[0]
        weight = None if problem.sample_weight is None else problem.sample_weight[at]
        own = options._replace(
            penalty_factors=None if problem.penalty is None else problem.penalty[at],
            prior=None if problem.prior is None else problem.prior[at],
        )
        solutions.append(single(X[at], y[at], alpha, name, weight, own))
    return stack(solutions, batch)


def stack(solutions: list[Solution], batch: tuple[int, ...]) -> Solution:
    """Stack the solutions of several problems into one of leading dimensions `batch`."""
    first = solutions[0]
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(Solution):
        values = [getattr(s, field.name) for s in solutions]
        if isinstance(values[0], Tensor):
            fields[field.name] = torch.stack(values).reshape(*batch, *values[0].shape)
        elif field.name in ("condition", "rank"):
            fields[field.name] = torch.tensor(values).reshape(batch)
    return dataclasses.replace(first, **fields)
