"""Solve one problem at given strengths by the chosen solver, or by a more careful one if its condition asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import CAREFUL, Choice, resolved
from torchridge.linear.ridge.diagnosis import Diagnosis, once
from torchridge.linear.ridge.dual_solution import DualForm
from torchridge.solvers import algebra
from torchridge.solvers.algebra import Factor
from torchridge.solvers.least_squares import spectral
from torchridge.solvers.least_squares.objective import Frame, Objective, System, frame, system
from torchridge.solvers.least_squares.orthogonal import svd_spectrum
from torchridge.solvers.least_squares.refine import refine
from torchridge.solvers.least_squares.scoring import residual_squares, residual_squares_per_target
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.moments import blocks
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows

# The condition up to which float64 dual coefficients give predictions to float32's last digit. Weights that are kept
# as them are refined only above: that makes them.
_CAREFUL_DUAL = 1e9
_REFINED_BYTES = 2**30

# Columns of weights refined in one pass over the rows.
_REFINED_COLUMNS = 512


@dataclass(frozen=True)
class Dense:
    """A checked problem that is solved by factors, of its rows or of their moments."""

    objective: Objective
    strengths: Strengths
    dtype: torch.dtype  # of the answer
    moments: Callable[[], Block]
    rows: Rows | None  # those that count; None for moments alone
    exact: bool = True  # whether moments are summed in float64, so that going back to the rows is worth it

    @property
    def summed(self) -> torch.dtype:
        """The dtype that sums are taken in: float64, or that of the rows where this was asked for."""
        return torch.float64 if self.exact else torch.float32

    @property
    def keeps_dual(self) -> bool:
        """Whether weights (d, L, t) would outweigh the rows, so that dual coefficients are kept in their place."""
        if self.rows is None or self.objective.precomputed:
            return self.objective.precomputed
        (n, d), t = self.rows.X.shape, self.rows.y.shape[1]
        columns = t if self.strengths.per_target else t * len(self.strengths.alpha)
        return n < d and columns > n and self.objective.prior is None

    @property
    def refines(self) -> bool:
        """Whether going back to rows that are few is worth it, and its weights fit in memory."""
        if self.rows is None or not self.exact or self.objective.free is not None or self.objective.precomputed:
            return False
        columns = self.rows.y.shape[1] * (1 if self.strengths.per_target else len(self.strengths.alpha))
        return not self.keeps_dual or 8 * self.rows.X.shape[1] * columns <= _REFINED_BYTES

    @property
    def careful(self) -> float:
        """The condition from which one goes back to the rows: later if that would make very many weights."""
        limit = CAREFUL[self.dtype]
        return max(limit, _CAREFUL_DUAL) if self.keeps_dual else limit

    def checked(self) -> Block:
        """Return the moments, or raise if they are not finite: the matrix of an eigendecomposition must be."""
        block = self.moments()
        if self.rows is not None:
            blocks.check_finite(block, self.rows)
        return block


class Fit(NamedTuple):
    """Weights of every strength, with what is known about them."""

    weight: Tensor | None  # (d, L, t); L = 1 if each target has its own strength; None if `dual` stands for them
    bias: Tensor  # (L, t)
    lost: float  # estimate of the relative error of the weights
    rank: int | None  # if the penalty was too weak to decide between solutions, the rank of the rows
    diagnosis: Diagnosis  # squares (L, t), dof (L,) or (t,), unit_variance (d, L) or (d, t), condition, rank
    choice: Choice
    largest: float | None = None  # of the weights and biases, NaN if one is; None if it has not been read
    dual: DualForm | None = None

    @property
    def features(self) -> int:
        """How many features there are."""
        return self.dual.features if self.weight is None and self.dual is not None else len(self.columns_kept)

    @property
    def loss_to_tell(self) -> float:
        """The relative error from which the weights have lost digits that the caller should hear of."""
        told: float = torch.finfo(self.bias.dtype).eps ** 0.5
        return told if self.dual is None else max(told, torch.finfo(self.dual.dtype).eps)

    @property
    def columns_kept(self) -> Tensor:
        """Return the weights, or the coefficients that stand for them."""
        given = self.weight if self.dual is None else self.dual.coef
        assert given is not None
        return given


def bias_of(weight: Tensor, place: Frame) -> Tensor:
    """Return the biases (L, t) of weights (d, L, t)."""
    return place.target_center - (place.center @ weight.flatten(1)).reshape(weight.shape[1:])


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
        spec = svd_spectrum(rows, place, equations.cross)
    else:
        spec = spectral.spectrum(equations) if known is None else known
    found = spectral.summary(spec)
    careful = rows is not None and found.condition(weakest) > CAREFUL[problem.dtype]
    # The penalty does not choose between directions that the gram matrix, a square, may have lost: the rows tell.
    unclear = found.undecided(weakest)
    if (
        (careful or unclear)
        and rows is not None
        and choice.solver != "svd"
        and spec.free is None
        and not resolved(found)
    ):
        reason = f"condition {found.condition(weakest):.1e}: the gram matrix does not resolve the rank"
        choice, spec = Choice("svd", reason), svd_spectrum(rows, place, equations.cross)
        found = spectral.summary(spec)
        careful = found.condition(weakest) > CAREFUL[problem.dtype]
    weight = weights_of(spec, problem.strengths)
    if careful and rows is not None:
        weight = refined(rows, place, spec, problem.strengths, weight)
        choice = choice._replace(reason=f"{choice.reason}; refined, as the condition is {found.condition(weakest):.1e}")
    return of_spectrum(
        spec, found, place, weight, careful, choice, problem.strengths, _diagnosis(lambda: spec, problem, block)
    )


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
    """Return the fit of a spectrum, with what it lost."""
    eps, condition = torch.finfo(weight.dtype).eps, found.condition(strengths.weakest)
    lost = eps * (condition**0.5 if exact else condition)  # of the rows, or of their gram matrix
    least_norm = found.rank < weight.shape[0] and strengths.weakest <= found.tolerance
    least_norm = least_norm or (spec.free is not None and spec.free.rank < len(spec.free.columns))
    rank = found.rank if least_norm else None
    return Fit(weight, bias_of(weight, place), lost, rank, diagnosis, choice)


def weights_of(spec: Spectrum, strengths: Strengths) -> Tensor:
    """Return the weights (d, L, t) of a spectrum at its strengths."""
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
