"""Solve one problem at given strengths by the chosen solver, and by a more careful one where its condition asks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import cholesky, dual, select, spectral
from torchridge.solvers.blocks import Block
from torchridge.solvers.objective import Frame, Objective, System, frame, system
from torchridge.solvers.orthogonal import svd_spectrum
from torchridge.solvers.refine import refine
from torchridge.solvers.rows import Rows
from torchridge.solvers.scoring import residual_squares, residual_squares_per_target
from torchridge.solvers.select import Choice
from torchridge.solvers.spectral import Spectrum, tolerance

# Columns of weights refined in one pass over the rows.
_REFINED_COLUMNS = 512


class Fit(NamedTuple):
    """Weights of every strength, with what is known about them."""

    weight: Tensor  # (d, L, t); L = 1 where each target has its own strength
    center: Tensor  # (d,)
    target_center: Tensor  # (t,)
    squares: Tensor  # (L, t) Σ s (y − ŷ)²
    dof: Tensor  # (L,); (t,) where each target has its own strength
    unit_variance: Tensor | None  # (d, L) or (d, t); None where it was not asked for
    condition: float  # of gram + αD in the metric of the penalty, at the weakest strength
    rank: int
    minimum_norm: bool  # the penalty was too weak to decide between solutions
    lost: float  # estimate of the relative error of the weights
    choice: Choice


class Strengths(NamedTuple):
    """L strengths that all targets share, or one for each target."""

    alpha: Tensor  # (L,) or (t,)
    per_target: bool

    def weights(self, spec: Spectrum) -> Tensor:
        """Return weights (d, L, t) of a spectrum."""
        return spectral.weights_per_target(spec, self.alpha) if self.per_target else spectral.weights(spec, self.alpha)

    def squares(self, spec: Spectrum, block: Block, objective: Objective) -> Tensor:
        """Return Σ s (y − ŷ)², (L, t)."""
        measure = residual_squares_per_target if self.per_target else residual_squares
        return measure(spec, block, objective, self.alpha)

    def dual_squares(self, problem: dual.Dual) -> Tensor:
        """Return Σ s (y − ŷ)², (L, t)."""
        measure = dual.residual_squares_per_target if self.per_target else dual.residual_squares
        return measure(problem, self.alpha)


def fit_block(
    block: Block,
    rows: Rows | None,
    objective: Objective,
    strengths: Strengths,
    choice: Choice,
    result_dtype: torch.dtype,
    known: Spectrum | None = None,
) -> Fit:
    """Solve from moments, going back to the rows, where they are at hand, if the condition asks for it.

    `known` is the spectrum of the system, where it has been taken already.
    """
    problem, place = system(block, objective), frame(block, objective)
    if choice.solver == "cholesky":
        results = [_fit_cholesky(problem, place, float(a), choice) for a in strengths.alpha]
        # Moments alone leave no better way, until the matrix is singular to rounding: then the minimum norm.
        worst = 1e-3 / torch.finfo(problem.gram.dtype).eps if rows is None else select.CAREFUL[result_dtype]
        if all(r is not None and r.condition <= worst for r in results):
            rank = min(problem.gram.shape[0], block.rows - objective.intercept)
            return _joined([r._replace(rank=rank) for r in results if r is not None])
        choice = Choice("spectral", "gram + αD is too ill-conditioned for Cholesky")
    if choice.solver == "svd" and rows is not None:
        spec = svd_spectrum(rows, place, problem.cross)
    else:
        spec = spectral.spectrum(problem) if known is None else known
    condition = condition_number(spec, strengths.alpha.min(), place)
    # The penalty does not choose between directions that the gram matrix, a square, may have lost: the rows tell.
    unclear = rank_matters(spec, strengths.alpha.min())
    careful = rows is not None and condition > select.CAREFUL[result_dtype]
    if (
        (careful or unclear)
        and rows is not None
        and choice.solver != "svd"
        and spec.free is None
        and not select.resolved(spec.eigvals)
    ):
        choice = Choice("svd", f"condition {condition:.1e}: the gram matrix does not resolve the rank")
        spec = svd_spectrum(rows, place, problem.cross)
        condition = condition_number(spec, strengths.alpha.min(), place)
        careful = condition > select.CAREFUL[result_dtype]
    weight = strengths.weights(spec)
    if careful and rows is not None:
        weight = refined(rows, place, spec, strengths, weight)
        choice = choice._replace(reason=f"{choice.reason}; refined, as the condition is {condition:.1e}")
    squares = strengths.squares(spec, block, objective)
    return _fit(spec, place, weight, squares, strengths.alpha, condition, careful, choice)


def _fit(
    spec: Spectrum,
    place: Frame,
    weight: Tensor,
    squares: Tensor,
    alpha: Tensor,
    condition: float,
    exact: bool,
    choice: Choice,
) -> Fit:
    eps = torch.finfo(weight.dtype).eps
    return Fit(
        weight,
        place.center,
        place.target_center,
        squares,
        spectral.dof(spec, alpha),
        spectral.unit_variance(spec, alpha),
        condition,
        rank := int((spec.eigvals > spectral.floor(spec)).sum()) + (spec.free.rank if spec.free else 0),
        (rank < weight.shape[0] and bool(alpha.min() <= tolerance(spec.eigvals)))
        or (spec.free is not None and spec.free.rank < len(spec.free.columns)),
        eps * (condition**0.5 if exact else condition),  # of the rows, or of their gram matrix
        choice,
    )


def _fit_cholesky(problem: System, place: Frame, alpha: float, choice: Choice) -> Fit | None:
    solved = cholesky.cholesky(problem, alpha)
    if solved is None:
        return None
    weight = solved.weight if problem.prior is None else solved.weight - problem.prior
    shrunk = weight**2 if problem.penalty is None else weight**2 * problem.penalty[:, None]
    squares = problem.yy - (weight * problem.cross).sum(0) - alpha * shrunk.sum(0)
    return Fit(
        solved.weight[:, None],
        place.center,
        place.target_center,
        squares.clamp_min(0)[None],
        cholesky.dof(problem, alpha, solved.inverse)[None],
        cholesky.unit_variance(problem, alpha, solved.inverse)[:, None],
        solved.condition,
        problem.gram.shape[0],
        False,
        torch.finfo(weight.dtype).eps * solved.condition,
        choice,
    )


def _joined(fits: list[Fit]) -> Fit:
    """Join fits of single strengths into one of several."""
    return fits[0]._replace(
        weight=torch.cat([f.weight for f in fits], 1),
        squares=torch.cat([f.squares for f in fits]),
        dof=torch.cat([f.dof for f in fits]),
        unit_variance=torch.cat([f.unit_variance for f in fits if f.unit_variance is not None], 1),
        condition=max(f.condition for f in fits),
        lost=max(f.lost for f in fits),
    )


def condition_number(spec: Spectrum, weakest: Tensor, place: Frame) -> float:
    """Return the condition number of gram + αD in the metric of the penalty, over the directions that are kept."""
    penalized = spec.transform.shape[0] - (len(spec.free.columns) if spec.free else 0)
    kept = spec.eigvals[spec.eigvals > spectral.floor(spec)]
    if len(kept) == 0:
        return 1.0
    decided = len(kept) < penalized and not rank_matters(spec, weakest)
    lowest = torch.zeros_like(weakest) if decided else kept.amin()
    return float((kept.amax() + weakest) / (lowest + weakest))


def rank_matters(spec: Spectrum, weakest: Tensor) -> bool:
    """Whether eigenvalues are lost in rounding, and the penalty is too weak to decide in their place."""
    lost = bool((spec.eigvals <= spectral.floor(spec)).any())
    return lost and bool(weakest <= tolerance(spec.eigvals))


def refined(rows: Rows, place: Frame, spec: Spectrum, strengths: Strengths, weight: Tensor) -> Tensor:
    """Return refined weights (d, L, t), some columns at a time."""
    d, L, t = weight.shape
    alpha = strengths.alpha if strengths.per_target else strengths.alpha.repeat_interleave(t)
    flat, parts = weight.reshape(d, L * t), []
    step = max(t, _REFINED_COLUMNS // t * t)  # whole strengths, so that column j is target j mod t
    for i in range(0, L * t, step):
        parts.append(refine(rows, place, spec, alpha[i : i + step], flat[:, i : i + step]))
    return torch.cat(parts, 1).reshape(d, L, t)


def fit_dual(rows: Rows, objective: Objective, strengths: Strengths, choice: Choice, result_dtype: torch.dtype) -> Fit:
    """Solve from the gram matrix of the rows."""
    problem = dual.dual(rows, objective, torch.float64)
    return fit_from_dual(problem, rows, objective, strengths, choice, result_dtype)


def fit_from_dual(
    problem: dual.Dual,
    rows: Rows,
    objective: Objective,
    strengths: Strengths,
    choice: Choice,
    result_dtype: torch.dtype,
    errors: bool = True,
) -> Fit:
    """Solve from a problem that is already diagonalized; `errors` asks for the variance of the weights, as costly."""
    alpha = strengths.alpha
    top, low = spectral.scale_of(problem.eigvals), problem.eigvals.amin() if len(problem.eigvals) else alpha.amax()
    ambiguous = bool((top + alpha.min()) > select.CAREFUL[result_dtype] * (low + alpha.min()))
    place = dual_frame(problem, objective)
    if ambiguous and problem.free is None:
        spec = svd_spectrum(rows, place, _dual_cross(problem, rows))
        condition = condition_number(spec, alpha.min(), place)
        weight = refined(rows, place, spec, strengths, strengths.weights(spec))
        squares = strengths.dual_squares(problem)
        reason = f"condition {condition:.1e}: the gram matrix of the rows loses digits; refined"
        return _fit(spec, place, weight, squares, alpha, condition, True, Choice("svd", reason))
    coefficients = dual.coefficients_per_target if strengths.per_target else dual.coefficients
    rank = dual.rank(problem)
    weak = bool(alpha.min() <= tolerance(problem.eigvals))
    kept = problem.eigvals[problem.eigvals > tolerance(problem.eigvals)]
    smallest = torch.zeros_like(top) if not weak else kept.amin() if len(kept) else top
    return Fit(
        dual.weights(problem, rows, objective, coefficients(problem, alpha)),
        place.center,
        place.target_center,
        strengths.dual_squares(problem),
        dual.dof(problem, alpha),
        dual.unit_variance(problem, rows, alpha) if errors else None,
        float((top + alpha.min()) / (smallest + alpha.min())),
        rank,
        (weak and rank < rows.X.shape[1])
        or (problem.free is not None and problem.unpenalized.shape[1] - problem.intercept < len(problem.free)),
        torch.finfo(top.dtype).eps * float((top + alpha.min()) / (low + alpha.min()).clamp_min(1e-300)),
        choice,
    )


def dual_frame(problem: dual.Dual, objective: Objective) -> Frame:
    """Return the frame of a dual problem."""
    penalty = None if problem.scale is None else 1 / problem.scale
    return Frame(problem.center, problem.target_center, penalty, objective.prior)


def _dual_cross(problem: dual.Dual, rows: Rows) -> Tensor:
    unscaled = problem._replace(scale=None, free=None)
    return dual.weights(unscaled, rows, Objective(), problem.target[:, None, :])[:, 0]
