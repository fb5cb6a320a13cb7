"""One ridge problem, as an estimator asks for it: scikit-learn's names of solvers onto ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.estimators._few_rows import Weights, own_rows
from torchridge.estimators._input import Table, filled, fits, too_large
from torchridge.estimators._linear import with_sparse_rows
from torchridge.estimators._protocol import convergence_warning
from torchridge.exceptions import warn
from torchridge.linear.ridge.ridge import ridge
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.iterative.sparse_ridge import pays
from torchridge.solvers.least_squares.nonnegative import nonnegative
from torchridge.solvers.least_squares.objective import Objective, frame, system
from torchridge.solvers.moments import one_pass
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.moments import Moments
from torchridge.streams.sparse import COLUMNS

SOLVERS = ("auto", "svd", "cholesky", "lsqr", "sparse_cg", "sag", "saga", "lbfgs")


class Fitted(NamedTuple):
    """What was found, and what is called its solver."""

    solver: str
    solution: RidgeSolution | Weights


class Request(NamedTuple):
    """The parameters of an estimator that matter to the solve."""

    alpha: Any
    fit_intercept: bool
    solver: str
    positive: bool
    max_iter: Any
    tol: Any


def check_request(request: Request, sparse: bool) -> None:
    """Raise on parameters that do not go together."""
    _check.option(request.solver, "solver", SOLVERS)
    for name in ("fit_intercept", "positive"):
        _check.option(getattr(request, name), name, (True, False))
    _check.number(request.tol, "tol")
    if request.max_iter is not None:
        _check.integer(request.max_iter, "max_iter", minimum=1)
    if request.solver == "lbfgs" and not request.positive:
        raise ValueError("'lbfgs' solver can be used only when `positive`=True. Please use another `solver`.")
    if request.positive and request.solver not in ("auto", "lbfgs"):
        raise ValueError(
            f"solver='{request.solver}' does not support positive fitting. Please set `solver` to 'auto' or 'lbfgs', "
            f"or set `positive=False`."
        )
    if sparse and request.fit_intercept and request.solver in ("svd", "cholesky", "saga"):
        raise ValueError(
            f"solver='{request.solver}' does not support fitting the intercept on sparse data. Please set `solver` to "
            f"'auto', 'lsqr', 'sparse_cg', 'sag' or 'lbfgs', or set `fit_intercept=False`."
        )


def strength_of(alpha: Any, targets: int) -> Tensor:
    """Return α as float64, () or (t,)."""
    values = alpha.detach().double() if isinstance(alpha, Tensor) else _numbers(alpha)
    if values.numel() not in (1, targets) or values.ndim > 1:
        raise ValueError(
            f"Number of targets and number of penalties do not correspond: {values.numel()} != {targets}. `alpha` "
            f"should be one number, or one for each target."
        )
    _check.non_negative(values, "alpha")
    return values.reshape(()) if values.numel() == 1 else values


def _numbers(alpha: Any) -> Tensor:
    if isinstance(alpha, (str, bytes, bool)) or alpha is None:
        raise TypeError(f"`alpha` should be a number or numbers, got {alpha!r}.")
    return torch.from_numpy(np.array(alpha, dtype=np.float64))


def solve_rows(table: Table, y: Tensor, weight: Tensor | None, request: Request) -> Fitted:
    """Solve for the rows of a table."""
    if table.sparse:
        if _by_products(table, y.shape[1] if y.ndim == 2 else 1, request):
            return _solve_products(table, y, weight, request)
        if not fits(table):
            if request.positive or table.X.shape[1] <= COLUMNS:
                return solve_moments(sparse_moments(table.X, y, weight), request)
            return _solve_products(table, y, weight, request)
        table = filled(table)
    target = y[:, None] if y.ndim == 1 else y
    alpha = strength_of(request.alpha, target.shape[1]).to(target.device)
    if request.positive:
        _check.finite(table.X, "X")
        block = one_pass.block_of(table.X, target, weight, None, torch.float64, table.X.device)
        return _positive(block, alpha, request)
    solver = "svd" if request.solver == "svd" else "auto"
    rows = own_rows(table.X, target.shape[1])
    solution = ridge(rows, target, alpha, sample_weight=weight, fit_intercept=request.fit_intercept, solver=solver)
    return Fitted(_name(request, solution.solver), solution)


def _by_products(table: Table, columns: int, request: Request) -> bool:
    """Choose whether a sparse table is only multiplied with, by cost; at strengths that are above zero."""
    if request.positive or request.solver in ("svd", "cholesky"):
        return False
    n, d = table.X.shape
    return pays(n, d, int(table.X.nnz), columns) and bool((strength_of(request.alpha, columns) > 0).all())


def _tolerance(tol: float) -> float:
    """Return the relative residual to reach: 1e-8 at scikit-learn's default of 1e-4, which stops there."""
    return min(1e-8, max(1e-4 * float(tol), 1e-12))


def _solve_products(table: Table, y: Tensor, weight: Tensor | None, request: Request) -> Fitted:
    target = (y[:, None] if y.ndim == 1 else y).double()
    solution = ridge(
        table.X,
        target,
        strength_of(request.alpha, target.shape[1]),
        sample_weight=weight,
        fit_intercept=request.fit_intercept,
        solver="cg",
        tol=_tolerance(request.tol),
        max_iter=request.max_iter,
    )
    return Fitted(_name(request, solution.solver), solution)


def solve_moments(moments: Moments, request: Request) -> Fitted:
    """Solve for rows of which the moments were kept."""
    alpha = strength_of(request.alpha, moments.n_targets).to(moments.device or "cpu")
    if request.positive:
        return _positive(moments.block(), alpha, request)
    solution = ridge(moments, alpha=alpha, fit_intercept=request.fit_intercept)
    return Fitted(_name(request, solution.solver), solution)


def _name(request: Request, solver: str) -> str:
    return solver if request.solver == "auto" else request.solver


def _positive(block: Block, alpha: Tensor, request: Request) -> Fitted:
    objective = Objective(intercept=request.fit_intercept)
    problem, place = system(block, objective), frame(block, objective)
    solved = nonnegative(problem.gram, problem.cross, alpha.reshape(-1), request.max_iter)
    if not solved.converged:
        warn(
            f"lbfgs solver did not converge after `max_iter`={solved.steps} exchanges. Raise `max_iter` or `alpha`.",
            convergence_warning(),
        )
    weight = solved.weight.T
    return Fitted("lbfgs", Weights(weight, place.target_center - weight @ place.center))


def sparse_moments(X: Any, y: Tensor, weight: Tensor | None) -> Moments:
    """Return the moments of sparse rows, filled a run at a time."""
    if X.shape[1] > COLUMNS:
        raise ValueError(too_large(X.shape))
    return with_sparse_rows(Moments(), X, y, weight)
