"""Solve one problem at given strengths by the chosen solver, or by a more careful one if its condition asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import CAREFUL, Choice, resolved
from torchridge.linear.ridge.dense import Dense, Fit, bias_of
from torchridge.linear.ridge.fits_rows import far_apart, fit_moments, fit_rows
from torchridge.linear.ridge.solution.diagnosis import Diagnosis, once
from torchridge.solvers import algebra
from torchridge.solvers.algebra import Factor
from torchridge.solvers.least_squares import precision, spectral
from torchridge.solvers.least_squares.objective import Frame, System, frame, system
from torchridge.solvers.least_squares.orthogonal import svd_spectrum
from torchridge.solvers.least_squares.refine import refine
from torchridge.solvers.least_squares.scoring import residual_squares, residual_squares_per_target
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows

# Condition in the metric of the penalty from which even singular values of the rows lose digits to units of columns,
# and features up to which columns are brought to one size and stacked, a matrix of them squared for each strength.
SCALED, STACKED = 1e10, 4096

# Columns of weights refined in one pass over the rows.
_REFINED_COLUMNS = 512


def settled(condition: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
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
    condition, largest = settled(conditions(factors), weight, bias)
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


def conditions(factors: list[Factor]) -> Tensor:
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
        if far_apart(equations) or (problem.objective.intercept and precision.offset(equations, block)):
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
        moved = rows is not None and problem.objective.intercept and precision.offset(equations, block)
        if rows is not None and (spec.free is not None or condition > SCALED or moved or far_apart(equations)):
            return fit_rows(problem, f"condition {max(condition, free):.1e}: orthogonal factors, columns at one size")
        if rows is None and (fit := fit_moments(problem, equations, block)) is not None:
            return fit
    if (careful or unclear) and rows is not None and choice.solver != "svd" and not resolved(found):
        reason = f"condition {condition:.1e}: the gram matrix does not resolve the rank"
        choice, spec = Choice("svd", reason), svd_spectrum(rows, place, equations.cross)
        found = spectral.summary(spec)
        careful = found.condition(weakest) > CAREFUL[problem.dtype]
    weight = weights_of(spec, problem.strengths)
    if careful and rows is not None:
        weight = refined(rows, place, spec, problem.strengths, weight)
        choice = choice._replace(reason=f"{choice.reason}; refined, as the condition is {found.condition(weakest):.1e}")
    fit = of_spectrum(
        spec, found, place, weight, careful, choice, problem.strengths, _diagnosis(lambda: spec, problem, block)
    )
    eps = torch.finfo(weight.dtype).eps
    return fit if fit.rank is not None or free <= fit.lost / eps else _as_lossy_as(fit, free, eps * free)


def _as_lossy_as(fit: Fit, condition: float, lost: float) -> Fit:
    """Return the fit with the loss and the condition of its free features."""
    known = fit.diagnosis.map(condition=lambda own: max(own, condition))
    return fit._replace(lost=lost, diagnosis=known)


def of_spectrum(
    spec: Spectrum,
    found: spectral.Summary,
    place: Frame,
    weight: Tensor,
    exact: bool,
    choice: Choice,
    strengths: Strengths,
    diagnosis: Diagnosis,
) -> Fit:
    """Return the fit of weights that a spectrum gave, with what rounding has taken of them."""
    eps, condition = torch.finfo(weight.dtype).eps, found.condition(strengths.weakest)
    lost = eps * (condition**0.5 if exact else condition)  # of the rows, or of their gram matrix
    least_norm = found.rank < weight.shape[0] and strengths.weakest <= found.tolerance
    least_norm = least_norm or (spec.free is not None and spec.free.rank < len(spec.free.columns))
    rank = found.rank if least_norm else None
    return Fit(weight, bias_of(weight, place), lost, rank, diagnosis, choice)


def weights_of(spec: Spectrum, strengths: Strengths) -> Tensor:
    """Return the weights (d, L, t) of a spectrum, L = 1 for one strength a target."""
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
