"""Solve one problem of few rows from their gram matrix, or more carefully if its condition asks for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import CAREFUL, Choice
from torchridge.linear.ridge.dense import Dense, Fit, bias_of
from torchridge.linear.ridge.fits import STACKED, conditions, fit_spectral, of_spectrum, refined, settled, weights_of
from torchridge.linear.ridge.fits_rows import fit_rows, needs_rows
from torchridge.linear.ridge.solution.diagnosis import Diagnosis, once, unchanged
from torchridge.linear.ridge.solution.dual_solution import DualForm
from torchridge.solvers import algebra
from torchridge.solvers.algebra import Factor
from torchridge.solvers.device import FEW_STRENGTHS
from torchridge.solvers.kernels import dual, dual_weights, gram_matrix
from torchridge.solvers.kernels.few_rows import free_condition
from torchridge.solvers.least_squares import spectral
from torchridge.solvers.least_squares.objective import Frame, Objective
from torchridge.solvers.least_squares.orthogonal import svd_spectrum
from torchridge.solvers.moments import finite
from torchridge.solvers.moments.rows import Rows


def fit_dual(problem: Dense, choice: Choice) -> Fit:
    """Solve from the n × n gram matrix of the rows: by a Cholesky factor for each of few strengths, or its spectrum."""
    assert problem.rows is not None
    dtype = problem.summed
    objective, rows, strengths = problem.objective.to(dtype), problem.rows, problem.strengths
    kernel = gram_matrix.kernel(rows, objective, dtype)
    few = not strengths.per_target and len(strengths.alpha) <= FEW_STRENGTHS
    if few and strengths.weakest > 0 and objective.free is None:
        factors = [_shifted(kernel.gram, a) for a in strengths.alpha.to(dtype)]
        coef = torch.stack([f.solve(kernel.target) for f in factors], 1)  # (n, L, t)
        fit = of_coefficients(kernel, problem, coef, choice)
        condition, largest = settled(_dual_bounds(kernel.gram, factors, strengths), fit.columns_kept, fit.bias)
        if CAREFUL[problem.dtype] < condition < torch.inf:
            condition = float(conditions(factors).nan_to_num(torch.inf).amax())
        if condition <= problem.careful:
            solved = once(lambda: dual.diagonalized(kernel, rows))
            diagnosis = _dual_diagnosis(solved, rows, objective, strengths.to(dtype))
            lost = torch.finfo(dtype).eps * condition
            return fit._replace(lost=lost, diagnosis=diagnosis, largest=largest)
    finite.check_kernel(kernel.gram, kernel.target, rows)
    fit = fit_from_dual(dual.diagonalized(kernel, rows), problem, choice)
    n, d = rows.X.shape
    lossy = fit.lost > torch.finfo(dtype).eps * CAREFUL[problem.dtype]
    if n >= d and fit.choice.solver == "dual" and lossy and not objective.precomputed:
        return fit_spectral(problem, Choice("spectral", "the gram matrix of the rows loses digits"))
    return fit


def of_coefficients(solved: dual.Dual | gram_matrix.Kernel, problem: Dense, coef: Tensor, choice: Choice) -> Fit:
    """Return the fit of dual coefficients (n, L, t): in place of weights that would outweigh the rows, themselves."""
    rows, objective = problem.rows, problem.objective.to(coef.dtype)
    assert rows is not None
    if problem.keeps_dual:
        form, bias = dual_form(solved, problem, coef)
        return Fit(None, bias, 0.0, None, Diagnosis(), choice, dual=form)
    weight = dual_weights.weights(solved, rows, objective, coef)
    return Fit(weight, bias_of(weight, dual_frame(solved, objective)), 0.0, None, Diagnosis(), choice)


def dual_form(solved: dual.Dual | gram_matrix.Kernel, problem: Dense, coef: Tensor) -> tuple[DualForm, Tensor]:
    """Return the dual form of a solution, and its biases (L, t). Cost n d, and n² t if features are free."""
    rows, objective = problem.rows, problem.objective
    assert rows is not None
    own = None
    if solved.free is not None:
        own = dual_weights.free_weights(solved, rows.X.detach(), coef)
    coef = coef if solved.root is None else coef * solved.root[:, None, None]
    place = (solved.center, solved.target_center, solved.scale, solved.free, own)
    kept = None if objective.precomputed else rows.X
    check = None if kept is None else unchanged(kept)
    form = DualForm(coef, kept, *place, problem.dtype, check)
    if not objective.intercept:
        return form, torch.zeros_like(coef[0])
    if kept is None:
        fitted = solved.center @ coef.flatten(1)
    else:
        toward = solved.toward
        toward = dual_weights.seen_from(kept.detach(), solved.center, solved.scale) if toward is None else toward
        fitted = toward @ coef.flatten(1)
    fitted = fitted.reshape(coef.shape[1:])
    if own is not None and solved.free is not None:
        fitted = fitted + (solved.center[solved.free] @ own.flatten(1)).reshape(fitted.shape)
    return form, solved.target_center - fitted


def _shifted(gram: Tensor, alpha: Tensor) -> Factor:
    matrix = gram.clone()
    matrix.diagonal().add_(alpha)
    return algebra.cholesky(matrix)


def _dual_bounds(gram: Tensor, factors: list[Factor], strengths: Strengths) -> Tensor:
    """Return a bound on the condition of every matrix, from its strength: its smallest eigenvalue is at least α."""
    norms = torch.stack([torch.where(f.info == 0, f.norm, torch.inf) for f in factors])
    return norms * (gram.diagonal().amax() + strengths.alpha) / strengths.alpha


def fit_from_dual(problem_: dual.Dual, problem: Dense, choice: Choice) -> Fit:
    """Solve from a problem of the rows that is already diagonalized; its targets may be left out."""
    rows, strengths = problem.rows, problem.strengths.to(problem_.basis.dtype)
    objective = problem.objective.to(problem_.basis.dtype)
    assert rows is not None
    found, weakest = spectral.bare_summary(problem_.eigvals), strengths.weakest
    if problem_.free is not None:  # their weights are fitted to the targets themselves
        problem_ = dual.of_targets(problem_, rows, objective, slice(None))
    careful = found.top + weakest > problem.careful * (found.low + weakest)
    small = rows.X.shape[1] <= STACKED and not objective.precomputed and problem.exact
    dependent = problem_.free is not None and (
        careful or free_condition(problem_, rows, weakest) > CAREFUL[problem.dtype]
    )
    if dependent and small:
        return fit_rows(problem, "free features: orthogonal factors of the rows, columns at one size")
    if careful and problem.refines:
        if small and needs_rows(problem_, rows):
            return fit_rows(problem, "orthogonal factors of the rows, columns at one size")
        whole = dual.of_targets(problem_, rows, objective, slice(None))
        return _fit_wide_rows(whole, rows, dual_frame(whole, objective), objective, problem.strengths)
    weak = weakest <= found.tolerance
    rank = dual.rank(problem_) if weak else 0
    least_norm = (weak and rank < rows.X.shape[1]) or (
        problem_.free is not None and problem_.unpenalized.shape[1] - problem_.intercept < len(problem_.free)
    )
    lost = torch.finfo(problem_.basis.dtype).eps * (found.top + weakest) / max(found.low + weakest, 1e-300)
    problem_, coef = dual.solved(problem_, rows, objective, strengths.alpha, strengths.per_target)
    fit = of_coefficients(problem_, problem, coef, choice)
    return fit._replace(
        lost=lost,
        rank=(rank or dual.rank(problem_)) if least_norm and not objective.precomputed else None,
        diagnosis=_dual_diagnosis(lambda: problem_, rows, objective, strengths),
    )


def _fit_wide_rows(problem: dual.Dual, rows: Rows, place: Frame, objective: Objective, strengths: Strengths) -> Fit:
    """Solve by the singular values of the rows, whose gram matrix has lost digits."""
    spec = svd_spectrum(rows, place, _dual_cross(problem, rows))
    found = spectral.summary(spec)
    weight = refined(rows, place, spec, strengths, weights_of(spec, strengths))
    condition = found.condition(strengths.weakest)
    choice = Choice("svd", f"condition {condition:.1e}: the gram matrix of the rows loses digits; refined")
    dual_known = _dual_diagnosis(lambda: problem, rows, objective, strengths)
    diagnosis = Diagnosis(
        squares=lambda: dual_known["squares"],
        dof=lambda: spectral.dof(spec, strengths.alpha),
        unit_variance=lambda: spectral.unit_variance(spec, strengths.alpha),
        condition=lambda: condition,
        rank=lambda: found.rank,
    )
    return of_spectrum(spec, found, place, weight, True, choice, strengths, diagnosis)


def _dual_diagnosis(
    solved: Callable[[], dual.Dual], rows: Rows, objective: Objective, strengths: Strengths
) -> Diagnosis:
    weakest, check, check_targets = strengths.weakest, unchanged(rows.X), unchanged(rows.y, "y")

    def condition() -> float:
        found = spectral.bare_summary(solved().eigvals)
        smallest = 0.0 if weakest > found.tolerance else found.least
        return (found.top + weakest) / (smallest + weakest)

    def squares() -> Tensor:
        if solved().target.shape[1] != rows.y.shape[1]:
            check_targets()
        return dual.all_squares(solved(), rows, objective, strengths.alpha, strengths.per_target)

    def unit_variance() -> Tensor:
        if objective.precomputed:
            return torch.full((rows.X.shape[1], len(strengths.alpha)), torch.nan, device=rows.X.device)
        check()
        return dual_weights.unit_variance(solved(), rows, strengths.alpha)

    return Diagnosis(
        squares=squares,
        dof=lambda: dual.dof(solved(), strengths.alpha),
        unit_variance=unit_variance,
        condition=condition,
        rank=lambda: dual.rank(solved()),
        spectrum=lambda: dual_weights.spectrum(solved()),
    )


def dual_frame(problem: dual.Dual | gram_matrix.Kernel, objective: Objective) -> Frame:
    """Return the frame of a dual problem."""
    penalty = None if problem.scale is None else 1 / problem.scale
    return Frame(problem.center, problem.target_center, penalty, objective.prior)


def _dual_cross(problem: dual.Dual, rows: Rows) -> Tensor:
    unscaled = problem._replace(scale=None, free=None)
    return dual_weights.weights(unscaled, rows, Objective(), problem.target[:, None, :])[:, 0]
