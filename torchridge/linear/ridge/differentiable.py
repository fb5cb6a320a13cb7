"""Ridge in plain torch operations: under autograd, a transform or a compiler, and for batches of problems."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import IllConditionedWarning, one_for_all, warn
from torchridge.linear.arguments import Options, check_one_strength, check_strengths
from torchridge.linear.ridge.choose import CAREFUL
from torchridge.linear.ridge.solution.diagnosis import Diagnosis, once
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.least_squares import batches as dense
from torchridge.solvers.least_squares.batches import Batch
from torchridge.solvers.moments.rows import result_dtype


class Given(NamedTuple):
    """A checked batch, and what its answer looks like."""

    batch: Batch
    weakest: float  # NaN if values are not visible
    dtype: torch.dtype  # of the answer
    solver: str
    free: bool  # whether a feature is not penalized
    vector: bool
    path: bool
    watched: bool  # by autograd, a transform or a compiler

    @property
    def primal(self) -> bool:
        """Return whether features are the unknowns."""
        n, d = self.batch.X.shape[-2:]
        asked = self.solver in ("cholesky", "spectral", "svd")
        return asked or (self.solver == "auto" and (n >= d or self.free))

    @property
    def alpha(self) -> Tensor:
        """Return the strengths of every problem, (*b, a)."""
        return self.batch.alpha.expand(*self.batch.X.shape[:-2], self.batch.alpha.shape[-1])


def solve(X: Tensor, y: Any, alpha: Any, name: str, sample_weight: Any, options: Options, single: Any) -> RidgeSolution:
    """Solve by torch operations; what is ill-conditioned raises or warns if it is watched, else is solved by itself.

    `single` solves one problem (X, y, alpha, name, sample_weight, options) with care.
    """
    given = check(X, y, alpha, name, sample_weight, options)
    careful = not given.watched and (options.solver in ("spectral", "svd") or given.weakest == 0)
    if careful and given.batch.X.ndim > 2:
        return _each_alone(single, X, y, given, name, options)
    with torch.set_grad_enabled(torch.is_grad_enabled() and given.watched):
        solved, rows = dense.solve(given.batch, given.primal, smooth=given.watched)
        solution = _solution(given, solved, rows)
    if not _check.values_visible(solution.weight, solved.weight):
        return solution
    condition, total = _condition(given, solved, rows, solution.weight)
    if given.watched:
        _refuse_or_warn(condition, total, torch.finfo(given.batch.X.dtype).eps)
    elif not condition <= CAREFUL[given.dtype]:
        return _each_alone(single, X, y, given, name, options)
    return solution


@torch.no_grad()
def _condition(given: Given, solved: dense.Solved, rows: dense.Centred, weight: Tensor) -> tuple[float, float]:
    """Return the worst condition of the batch, from the strengths if that settles it, else estimated; and Σ weight."""
    total = weight.sum().to(solved.weight.dtype)
    plain = given.batch.penalty is None and given.batch.sample_weight is None and not given.batch.standardize
    if plain and given.weakest > 0:
        most = dense.condition_bound(solved, given.batch.alpha).nan_to_num(torch.inf).amax()
        bound, summed = torch.stack([most, total]).tolist()  # one wait for a device
        if bound <= CAREFUL[given.dtype]:
            return bound, summed
    worst = dense.condition_estimate(given.batch, rows, given.primal).amax()
    condition, summed = torch.stack([worst, total]).tolist()
    return condition, summed


def _refuse_or_warn(condition: float, total: float, eps: float) -> None:
    if condition > 1 / eps or not math.isfinite(total):
        raise ValueError(
            "`alpha` is too weak for a unique solution: gram + α diag(penalty_factors) is singular to rounding. Raise "
            "`alpha`; the minimum-norm solution is offered without gradients."
        )
    if eps * condition > eps**0.5:
        warn(
            f"the condition number is {condition:.1e}; the weights may be off by {eps * condition:.0e}. Raise `alpha`, "
            f"or call `ridge` without gradients, which refines the solution.",
            IllConditionedWarning,
        )


def _solution(given: Given, solved: dense.Solved, rows: dense.Centred) -> RidgeSolution:
    batch, path = given.batch, given.path
    single = not path and not batch.per_target
    n, intercept = batch.X.shape[-2], int(batch.intercept)
    known = once(lambda: dense.diagnosed(batch, solved, rows, given.primal))

    def variance() -> Tensor:
        left = n - known().dof - intercept
        left = torch.where(left > 0.5, left, torch.nan)
        value: Tensor = known().squares / (left.unsqueeze(-2) if batch.per_target else left.unsqueeze(-1))
        return value if path else value[..., 0, :]

    diagnosis = Diagnosis(
        dof=lambda: known().dof[..., 0] if single else known().dof,
        condition=lambda: known().condition,
        rank=lambda: known().rank,
        residual_variance=variance,
        unit_variance=lambda: known().unit_variance[..., 0, :] if single else known().unit_variance,
    )
    return RidgeSolution(
        weight=(solved.weight if path else solved.weight[..., 0, :, :]).to(given.dtype),
        bias=(solved.bias if path else solved.bias[..., 0, :]).to(given.dtype),
        alpha=given.alpha[..., 0] if single else given.alpha,
        solver="cholesky" if given.primal else "dual",
        reason="plain torch operations: gradients, a transform, a compiler, or a batch",
        n_samples=n,
        diagnosis=diagnosis,
        fit_intercept=batch.intercept,
        vector_target=given.vector,
        is_path=path,
    )


def check(X: Tensor, y: Tensor, alpha: Any, name: str, sample_weight: Any, options: Options) -> Given:
    """Return the checked batch, or raise with what is wrong."""
    for argument, value in (("X", X), ("y", y)):
        _check.is_dense_real(value, argument)
        _check.not_empty(value, argument)
        _check.exact_integers(value, argument)
    _check_finite({"X": X, "y": y})
    shape, n, d = tuple(X.shape[:-2]), X.shape[-2] if X.ndim > 1 else 0, X.shape[-1]
    if X.ndim < 2 or (tuple(y.shape) != (*shape, n) and tuple(y.shape[:-1]) != (*shape, n)):
        remedy = " Pass `X[:, None]` for rows of one feature." if X.ndim < 2 else ""
        raise ValueError(
            f"`X` has shape {tuple(X.shape)} and `y` {tuple(y.shape)}; expected (*b, n, d), and (*b, n) or (*b, n, t)."
            f"{remedy}"
        )
    watched = _check.watched(X, y, alpha, sample_weight, options.penalty_factors, options.prior)
    vector = y.ndim == X.ndim - 1
    options = options.for_rows(X)
    work = options.moments_dtype
    target = (y.unsqueeze(-1) if vector else y).to(work)
    weight = _weight(sample_weight, shape, n, work)
    _check.same_device({"X": X, "y": y, "sample_weight": sample_weight})
    t = target.shape[-1]
    objective = options.objective(d, t, X, shape, work)
    values, weakest, per_target = _strengths(alpha, name, shape, t, X)
    prior = None if objective.prior is None else objective.prior.mT.expand(*shape, t, d)
    penalty = None if objective.penalty is None else objective.penalty.expand(*shape, d)
    free = _check.values_visible(penalty) and penalty is not None and bool((penalty.detach() == 0).any())
    batch = Batch(
        X.to(work),
        target,
        values.to(work),
        weight,
        penalty,
        prior,
        objective.intercept,
        objective.standardize,
        per_target,
    )
    return Given(batch, weakest, result_dtype(X.dtype), options.solver, free, vector, name == "alphas", watched)


def _check_finite(values: dict[str, Tensor]) -> None:
    """Raise if any holds NaN or infinity; one wait for a device in place of one for each."""
    on_device = [
        v.detach() for v in values.values() if v.is_cuda and v.is_floating_point() and _check.values_visible(v)
    ]
    if len(on_device) == len(values) and len({v.device for v in on_device}) == 1:
        total = torch.stack([v.sum(dtype=torch.float64) for v in on_device]).sum()
        if math.isfinite(float(total)):
            return
    for name, value in values.items():
        _check.finite(value, name)


def _weight(sample_weight: Any, shape: tuple[int, ...], n: int, dtype: torch.dtype) -> Tensor | None:
    if sample_weight is None:
        return None
    _check.is_tensor(sample_weight, "sample_weight")
    _check.is_dense_real(sample_weight, "sample_weight")
    _check.shape(sample_weight, list(dict.fromkeys([(n,), (*shape, n)])), "sample_weight")
    _check.non_negative(sample_weight, "sample_weight")
    weight: Tensor = sample_weight.to(dtype).clone().expand(*shape, n)
    return weight


def _strengths(alpha: Any, name: str, batch: tuple[int, ...], t: int, like: Tensor) -> tuple[Tensor, float, bool]:
    """Return strengths (*b, a) or (a,), the least of them, and whether a counts targets."""
    values, weakest = check_strengths(alpha, name, like=like)
    if name == "alphas":
        if values.ndim > 1:
            raise ValueError(f"`alphas` should have shape (L,), got {tuple(values.shape)}.")
        return values.reshape(-1), weakest, False
    shapes = [(), (1,), batch, (*batch, 1), (t,), (*batch, t)]
    check_one_strength(tuple(values.shape), list(dict.fromkeys(shapes)))
    shape = tuple(values.shape)
    if shape in ((), (1,), (*batch, 1)):
        return values.reshape(-1) if values.ndim < 2 else values, weakest, False
    if shape == batch:
        return values.unsqueeze(-1), weakest, False
    return values, weakest, True


def _each_alone(
    single: Callable[..., RidgeSolution], X: Tensor, y: Tensor, given: Given, name: str, options: Options
) -> RidgeSolution:
    """Solve the problems of a batch one by one, and stack their solutions."""
    shape, batch = tuple(X.shape[:-2]), given.batch
    solutions = []
    with one_for_all(math.prod(shape)):
        for i in range(math.prod(shape)):
            at = torch.unravel_index(torch.tensor(i), shape)
            alpha = given.alpha[at]
            alpha = alpha if name == "alphas" or batch.per_target else alpha[0]
            weight = None if batch.sample_weight is None else batch.sample_weight[at]
            own = options._replace(
                penalty_factors=None if batch.penalty is None else batch.penalty[at],
                prior=None if batch.prior is None else batch.prior[at],
            )
            solutions.append(single(X[at], y[at], alpha, name, weight, own))
    return stack(solutions, shape)


def stack(solutions: list[RidgeSolution], batch: tuple[int, ...]) -> RidgeSolution:
    """Stack the solutions of several problems into one of leading dimensions `batch`."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(RidgeSolution):
        values = [getattr(s, field.name) for s in solutions]
        if isinstance(values[0], Tensor):
            fields[field.name] = torch.stack(values).reshape(*batch, *values[0].shape)

    def joined(name: str) -> Callable[[], Tensor]:
        def join() -> Tensor:
            found = [s.diagnosis[name] for s in solutions]
            values = [
                torch.tensor(v, dtype=torch.float64) if isinstance(v, float) else torch.as_tensor(v) for v in found
            ]
            return torch.stack(values).reshape(*batch, *values[0].shape)

        return join

    names = ("dof", "condition", "rank", "residual_variance", "unit_variance")
    diagnosis = Diagnosis(**{name: joined(name) for name in names})
    return solutions[0].with_changes(diagnosis=diagnosis, dual=None, **fields)
