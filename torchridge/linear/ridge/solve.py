"""From a problem to a solution: choose, solve, round, and say aloud what was wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import IllConditionedWarning, RankDeficientWarning, warn
from torchridge.linear.arguments import Options
from torchridge.linear.ridge.choose import Choice, choose
from torchridge.linear.ridge.dense import Dense, Fit
from torchridge.linear.ridge.fits import fit_cholesky, fit_spectral
from torchridge.linear.ridge.fits_dual import fit_dual
from torchridge.linear.ridge.problem import Problem, of_rows
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.dual_solution import EachVariance
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.ridge.table import SOLVERS, Solver
from torchridge.solvers.moments.finite import check_squares, check_vanishing
from torchridge.solvers.moments.rows import Rows

# A new solver is a function (problem, choice) → Fit and a line here.
SOLVERS["cholesky"] = Solver(fit_cholesky, shared=True)
SOLVERS["spectral"] = Solver(fit_spectral)
SOLVERS["dual"] = Solver(fit_dual, rows=True)
SOLVERS["svd"] = Solver(fit_spectral, rows=True, penalized=True)


def fit_dense(dense: Dense, choice: Choice) -> Fit:
    """Return the fit of a problem by the solver that was chosen, from the table that this file fills."""
    fit: Fit = SOLVERS[choice.solver].fit(dense, choice)
    return fit


def solve_rows(
    X: Tensor, y: Tensor, alpha: Any, name: str, sample_weight: Tensor | None, options: Options
) -> RidgeSolution:
    """Solve one problem of rows with care."""
    return solve(of_rows(Rows(*_check.rows(X, y, sample_weight)), alpha, name, options))


def solve(problem: Problem) -> RidgeSolution:
    """Choose a solver and fit."""
    dense = problem.dense
    choice = choose(
        problem.solver,
        n=problem.n_samples,
        d=problem.shape[0],
        strengths=dense.strengths,
        free=dense.objective.free is not None,
        rows_at_hand=dense.rows is not None,
        precomputed=dense.objective.precomputed,
    )
    return rounded(SOLVERS[choice.solver].fit(dense, choice), problem)


class _Degrees(NamedTuple):
    """What residual variances are divided by."""

    n: int
    intercept: bool
    per_target: bool

    def variance(self, squares: Tensor, dof: Tensor) -> Tensor:
        """Return Σ s (y − ŷ)² / (n − dof − 1), (L, t); NaN if nothing is left."""
        left = self.n - dof - int(self.intercept)
        left = torch.where(left > 0.5, left, torch.nan)
        return squares / (left[None] if self.per_target else left[:, None])


def rounded(fit: Fit, problem: Problem) -> RidgeSolution:
    """Round a fit into a solution, in the dtype its rows came in, and warn of what is wrong with it."""
    strengths, objective = problem.dense.strengths, problem.dense.objective
    pick = slice(None) if strengths.path else 0
    _check_range(fit, problem)
    warn_of_lost_digits(fit)
    single = not strengths.path and not strengths.per_target
    degrees, found = _Degrees(problem.n_samples, objective.intercept, strengths.per_target), fit.diagnosis
    diagnosis = Diagnosis(
        dof=lambda: found["dof"][0] if single else found["dof"],
        condition=lambda: found["condition"],
        rank=lambda: found["rank"],
        residual_variance=lambda: degrees.variance(found["squares"], found["dof"])[pick],
        unit_variance=lambda: found["unit_variance"][:, 0] if single else found["unit_variance"].T,
    )
    if fit.dual is not None and strengths.per_target:
        variance = EachVariance(fit.dual, strengths.alpha, lambda: found["spectrum"])
        diagnosis = diagnosis.extended(unit_variance=variance)
    return RidgeSolution(
        weight=_weight(fit, problem.dense.dtype, pick),
        bias=fit.bias[pick].to(problem.dense.dtype),
        alpha=strengths.alpha[0] if single else strengths.alpha,
        solver=fit.choice.solver,
        reason=fit.choice.reason,
        n_samples=problem.n_samples,
        diagnosis=diagnosis,
        fit_intercept=objective.intercept,
        vector_target=problem.source.vector_target,
        is_path=strengths.path,
        dual=fit.dual,
    )


def _weight(fit: Fit, dtype: torch.dtype, pick: slice | int) -> Any:
    """Return weights (L, t, d) or one strength of them, or what makes them when they are read."""
    if fit.weight is None:
        return None
    return fit.weight.permute(1, 2, 0)[pick].to(dtype).contiguous()


def _largest(values: Tensor) -> Tensor:
    """Return the largest absolute value, without a copy."""
    return torch.maximum(*(end.abs() for end in torch.aminmax(values)))


def _check_range(fit: Fit, problem: Problem) -> None:
    """Raise if squares of the features vanished, or the weights or biases overflow."""
    source, dtype = problem.source, problem.dense.dtype
    largest = fit.largest
    if largest is None:
        largest = float(torch.maximum(_largest(fit.columns_kept), _largest(fit.bias)))
    finite = largest <= torch.finfo(dtype).max
    if isinstance(source, Rows) and not finite:
        check_squares(source, fit.bias.dtype)
    if isinstance(source, Rows) and (not finite or fit.rank == 0):
        check_vanishing(source, fit.bias.dtype)
    if not finite:
        raise ValueError(
            f"the weights are too large for {dtype}, or the biases. Rescale `X` or `y`, raise `alpha`, or pass "
            f"`X.double()`."
        )


def _norm(fit: Fit) -> str:
    """Return the norm of the weights as a warning says it; of a dual form they are not made for it."""
    return "" if fit.weight is None else f", {float(fit.weight.norm()):.6g},"


def warn_of_lost_digits(fit: Fit) -> None:
    """Warn of a minimum-norm answer and of lost digits."""
    if fit.rank is not None:
        warn(
            f"X (centred) has rank {fit.rank} of {fit.features} features and the penalty is too weak to choose "
            f"between solutions: the one of minimum norm{_norm(fit)} is returned. Raise `alpha`, or drop dependent "
            f"features.",
            RankDeficientWarning,
        )
    elif fit.lost > fit.loss_to_tell:
        condition = float(fit.diagnosis["condition"])
        from_rows = "or call `ridge(X, y, ...)` on the rows in float64, which can go back to them"
        warn(
            f"the condition number is {condition:.1e}; the weights may be off by {min(fit.lost, 1.0):.0e}. "
            f"Raise `alpha`, {'or bring the features to one scale' if fit.choice.solver == 'svd' else from_rows}.",
            IllConditionedWarning,
        )
