"""Solve one problem at given strengths by the chosen solver, or by a more careful one if its condition asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import CAREFUL, Choice, resolved
from torchridge.linear.ridge.dense import Dense, Fit, bias_of
from torchridge.linear.ridge.diagnosis import Diagnosis, once, unchanged
from torchridge.linear.ridge.dual_solution import DualForm
from torchridge.linear.ridge.fits_rows import far_apart, fit_moments, fit_rows, needs_rows, offset
from torchridge.solvers import algebra
from torchridge.solvers.algebra import Factor
from torchridge.solvers.device import strengths_per_eigh
from torchridge.solvers.least_squares import dual, precision, spectral
from torchridge.solvers.least_squares.few_rows import free_condition
from torchridge.solvers.least_squares.objective import Frame, Objective, System, frame, system
from torchridge.solvers.least_squares.orthogonal import svd_spectrum
from torchridge.solvers.least_squares.refine import refine
from torchridge.solvers.least_squares.scoring import residual_squares, residual_squares_per_target
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.moments import blocks
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows

# Condition in the metric of the penalty from which even singular values of the rows lose digits to units of columns,
# and features up to which columns are brought to one size and stacked, a matrix of them squared for each strength.
SCALED, STACKED = 1e10, 4096


# Columns of weights refined in one pass over the rows.
_REFINED_COLUMNS = 512


def _settled(condition: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """Return the condition, infinite if a factor failed, and the largest weight or bias; one wait for both."""
    largest = torch.maximum(weight.abs().amax(), bias.abs().amax())
    worst, largest_ = torch.stack([condition.amax().to(largest), largest]).tolist()
    return (float(worst) if worst == worst else math.inf), float(largest_)


def fit_cholesky(problem: Dense, choice: Choice) -> Fit:
    """Solve by a Cholesky factor for each strength; by the spectrum if one of them is ill-conditioned."""
    block = problem.moments()
    equations = system(block, problem.objective)
    factors = [_factored(equations, a) for a in problem.strengths.alpha.to(block.gram.dtype)]
    place = frame(block, problem.objective)
    weight = torch.stack([f.solve(equations.cross) for f in factors], 1)  # (d, L, t)
    weight = weight if place.prior is None else weight + place.prior[:, None]
    bias = bias_of(weight, place)
    condition, largest = _settled(_conditions(factors), weight, bias)
    # Moments alone leave no better way, until the matrix is singular to rounding: then the minimum norm.
    eps = torch.finfo(block.gram.dtype).eps
    if not condition <= (CAREFUL[problem.dtype] if problem.rows is not None else 1e-3 / eps):
        return fit_spectral(problem, Choice("spectral", "gram + αD is too ill-conditioned for Cholesky"))
    spec = once(lambda: spectral.spectrum(equations))
    diagnosis = _diagnosis(spec, problem, block).extended(rank=lambda: spectral.rank_of(block, problem.objective))
    return Fit(weight, bias, eps * condition, None, diagnosis, choice, largest)


def _factored(equations: System, alpha: Tensor) -> Factor:
    matrix = equations.gram.clone()
    matrix.diagonal().add_(alpha if equations.penalty is None else alpha * equations.penalty)
    return algebra.cholesky(matrix)


def _conditions(factors: list[Factor]) -> Tensor:
    """Return the condition of every matrix, infinite or NaN if its factor failed."""
    return torch.stack([torch.where(f.info == 0, f.condition(), torch.inf) for f in factors])


def fit_spectral(problem: Dense, choice: Choice, known: Spectrum | None = None) -> Fit:
    """Solve by the eigenvalues of the gram matrix, or by the singular values of the rows if those are ambiguous.

    `known` is the spectrum of the system if it has been taken already.
    """
    block = problem.moments() if known is not None else problem.checked()
    equations, place = system(block, problem.objective), frame(block, problem.objective)
    rows = problem.rows if problem.exact else None
    weakest = problem.strengths.weakest
    if choice.solver == "svd" and rows is not None:
        if far_apart(equations) or (problem.objective.intercept and offset(equations, block)):
            return fit_rows(problem, "asked for; columns at one size")
        spec = svd_spectrum(rows, place, equations.cross)
    else:
        spec = spectral.spectrum(equations) if known is None else known
    found = spectral.summary(spec)
    condition = found.condition(weakest)
    careful = rows is not None and condition > CAREFUL[problem.dtype]
    # The penalty does not choose between directions that the gram matrix, a square, may have lost: the rows tell.
    unclear = found.undecided(weakest) or (rows is None and condition > CAREFUL[torch.float64])
    free = precision.free_condition(equations, weakest)
    if choice.solver != "svd" and problem.exact and (careful or unclear or free > CAREFUL[problem.dtype]):
        moved = rows is not None and problem.objective.intercept and offset(equations, block)
        if rows is not None and (spec.free is not None or condition > SCALED or moved or far_apart(equations)):
            return fit_rows(problem, f"condition {max(condition, free):.1e}: orthogonal factors, columns at one size")
        if rows is None and (fit := fit_moments(problem, equations, block)) is not None:
            return fit
    if (careful or unclear) and rows is not None and choice.solver != "svd" and not resolved(found):
        reason = f"condition {condition:.1e}: the gram matrix does not resolve the rank"
        choice, spec = Choice("svd", reason), svd_spectrum(rows, place, equations.cross)
        found = spectral.summary(spec)
        careful = found.condition(weakest) > CAREFUL[problem.dtype]
    weight = _weights(spec, problem.strengths)
    if careful and rows is not None:
        weight = refined(rows, place, spec, problem.strengths, weight)
        choice = choice._replace(reason=f"{choice.reason}; refined, as the condition is {found.condition(weakest):.1e}")
    fit = _of_spectrum(
        spec, found, place, weight, careful, choice, problem.strengths, _diagnosis(lambda: spec, problem, block)
    )
    eps = torch.finfo(weight.dtype).eps
    return fit if fit.rank is not None or free <= fit.lost / eps else _as_lossy_as(fit, free, eps * free)


def _as_lossy_as(fit: Fit, condition: float, lost: float) -> Fit:
    """Return the fit with the loss and the condition of its free features."""
    known = fit.diagnosis.map(condition=lambda own: max(own, condition))
    return fit._replace(lost=lost, diagnosis=known)


def _of_spectrum(
    spec: Spectrum,
    found: spectral.Summary,
    place: Frame,
    weight: Tensor,
    exact: bool,
    choice: Choice,
    strengths: Strengths,
    diagnosis: Diagnosis,
) -> Fit:
    eps, condition = torch.finfo(weight.dtype).eps, found.condition(strengths.weakest)
    lost = eps * (condition**0.5 if exact else condition)  # of the rows, or of their gram matrix
    least_norm = found.rank < weight.shape[0] and strengths.weakest <= found.tolerance
    least_norm = least_norm or (spec.free is not None and spec.free.rank < len(spec.free.columns))
    rank = found.rank if least_norm else None
    return Fit(weight, bias_of(weight, place), lost, rank, diagnosis, choice)


def _weights(spec: Spectrum, strengths: Strengths) -> Tensor:
    alpha = strengths.alpha.to(spec.coef.dtype)
    return spectral.weights_per_target(spec, alpha) if strengths.per_target else spectral.weights(spec, alpha)


def _diagnosis(spec: Callable[[], Spectrum], problem: Dense, block: Block) -> Diagnosis:
    """Return what a spectrum tells of the fit, when it is read."""
    strengths, objective = problem.strengths, problem.objective
    alpha = strengths.alpha.to(block.gram.dtype)
    measure = residual_squares_per_target if strengths.per_target else residual_squares
    found = once(lambda: spectral.summary(spec()))
    return Diagnosis(
        squares=lambda: measure(spec(), block, objective, alpha),
        dof=lambda: spectral.dof(spec(), alpha),
        unit_variance=lambda: spectral.unit_variance(spec(), alpha),
        condition=lambda: found().condition(strengths.weakest),
        rank=lambda: found().rank,
    )


def refined(rows: Rows, place: Frame, spec: Spectrum, strengths: Strengths, weight: Tensor) -> Tensor:
    """Return refined weights (d, L, t), some columns at a time."""
    d, L, t = weight.shape
    alpha = strengths.alpha if strengths.per_target else strengths.alpha.repeat_interleave(t)
    flat, parts = weight.reshape(d, L * t), []
    step = max(t, _REFINED_COLUMNS // t * t)  # whole strengths, so that column j is target j mod t
    for i in range(0, L * t, step):
        parts.append(refine(rows, place, spec, alpha[i : i + step], flat[:, i : i + step]))
    return torch.cat(parts, 1).reshape(d, L, t)


def fit_dual(problem: Dense, choice: Choice) -> Fit:
    """Solve from the n × n gram matrix of the rows: by a Cholesky factor for each of few strengths, or its spectrum."""
    assert problem.rows is not None
    dtype = problem.summed
    objective, rows, strengths = problem.objective.to(dtype), problem.rows, problem.strengths
    kernel = dual.kernel(rows, objective, dtype)
    few = not strengths.per_target and len(strengths.alpha) <= strengths_per_eigh(rows.X.device)
    if few and strengths.weakest > 0 and objective.free is None:
        factors = [_shifted(kernel.gram, a) for a in strengths.alpha.to(dtype)]
        coef = torch.stack([f.solve(kernel.target) for f in factors], 1)  # (n, L, t)
        fit = of_coefficients(kernel, problem, coef, choice)
        condition, largest = _settled(_dual_bounds(kernel.gram, factors, strengths), fit.columns_kept, fit.bias)
        if CAREFUL[problem.dtype] < condition < torch.inf:
            condition = float(_conditions(factors).nan_to_num(torch.inf).amax())
        if condition <= problem.careful:
            solved = once(lambda: dual.diagonalized(kernel, rows))
            diagnosis = _dual_diagnosis(solved, rows, objective, strengths)
            lost = torch.finfo(dtype).eps * condition
            return fit._replace(lost=lost, diagnosis=diagnosis, largest=largest)
    blocks.check_kernel(kernel.gram, kernel.target, rows)
    fit = fit_from_dual(dual.diagonalized(kernel, rows), problem, choice)
    n, d = rows.X.shape
    lossy = fit.lost > torch.finfo(dtype).eps * CAREFUL[problem.dtype]
    if n >= d and fit.choice.solver == "dual" and lossy and not objective.precomputed:
        return fit_spectral(problem, Choice("spectral", "the gram matrix of the rows loses digits"))
    return fit


def of_coefficients(solved: dual.Dual | dual.Kernel, problem: Dense, coef: Tensor, choice: Choice) -> Fit:
    """Return the fit of dual coefficients (n, L, t): in place of weights that would outweigh the rows, themselves."""
    rows, objective = problem.rows, problem.objective.to(coef.dtype)
    assert rows is not None
    if problem.keeps_dual:
        form, bias = dual_form(solved, problem, coef)
        return Fit(None, bias, 0.0, None, Diagnosis(), choice, dual=form)
    weight = dual.weights(solved, rows, objective, coef)
    return Fit(weight, bias_of(weight, dual_frame(solved, objective)), 0.0, None, Diagnosis(), choice)


def dual_form(solved: dual.Dual | dual.Kernel, problem: Dense, coef: Tensor) -> tuple[DualForm, Tensor]:
    """Return the dual form of a solution, and its biases (L, t). Cost n d, and n² t if features are free."""
    rows, objective = problem.rows, problem.objective
    assert rows is not None
    own = None
    if solved.free is not None:
        own = dual.free_weights(solved, rows.X.detach(), coef)
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
        toward = dual.seen_from(kept.detach(), solved.center, solved.scale) if toward is None else toward
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
    weight = refined(rows, place, spec, strengths, _weights(spec, strengths))
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
    return _of_spectrum(spec, found, place, weight, True, choice, strengths, diagnosis)


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
        return dual.unit_variance(solved(), rows, strengths.alpha)

    return Diagnosis(
        squares=squares,
        dof=lambda: dual.dof(solved(), strengths.alpha),
        unit_variance=unit_variance,
        condition=condition,
        rank=lambda: dual.rank(solved()),
    )


def dual_frame(problem: dual.Dual | dual.Kernel, objective: Objective) -> Frame:
    """Return the frame of a dual problem."""
    penalty = None if problem.scale is None else 1 / problem.scale
    return Frame(problem.center, problem.target_center, penalty, objective.prior)


def _dual_cross(problem: dual.Dual, rows: Rows) -> Tensor:
    unscaled = problem._replace(scale=None, free=None)
    return dual.weights(unscaled, rows, Objective(), problem.target[:, None, :])[:, 0]
