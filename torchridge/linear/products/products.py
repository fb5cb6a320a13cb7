"""Ridge by products with X alone: check, approximate, iterate, and warn if the iteration did not converge."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.exceptions import ConvergenceWarning, warn
from torchridge.linear.arguments import Options, Strengths, strengths_of
from torchridge.linear.matrices import kind_of, operator_of, shape_of
from torchridge.linear.ridge.choose import Choice
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.iterative import nystrom, solve_many, sparse_ridge
from torchridge.solvers.iterative import standard_form as design
from torchridge.solvers.iterative.nystrom import Nystrom
from torchridge.solvers.iterative.operators import Operator
from torchridge.solvers.iterative.solve_many import Columns, Rule
from torchridge.solvers.iterative.standard_form import Design
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.rows import result_dtype

# The columns of X without a penalty are held dense, and projected on in every product.
_MOST_FREE = 256


class Problem(NamedTuple):
    """A checked problem."""

    X: Operator
    y: Tensor  # (n, t) float64, less what the prior predicts
    given: Tensor  # (n, t) y as it came
    sample_weight: Tensor | None  # (n,) float64
    objective: Objective
    vector_target: bool
    dtype: torch.dtype  # of the answer: the wider one of X and y
    rule: Rule
    rank: int | None

    @property
    def rows(self) -> int:
        """Rows of positive weight."""
        return self.X.shape[0] if self.sample_weight is None else int((self.sample_weight > 0).sum())

    def form(self) -> Design:
        """Return the standard form of all rows."""
        weight = None if self.sample_weight is None else self.sample_weight[:, None]
        return design.design(self.X, weight, self.objective)


def check(X: Any, y: Any, sample_weight: Any, options: Options) -> Problem:
    """Return the problem, or raise with what is wrong."""
    if options.moments_dtype is not torch.float64:
        raise ValueError("`moments_dtype` has no use with solver='cg', which forms no moments. Leave it out.")
    if y is None:
        raise TypeError("`y` is missing; pass the targets.")
    for name, value in (("y", y), ("sample_weight", sample_weight)):
        if name == "y" or value is not None:
            _check.is_tensor(value, name)
            _check.is_dense_real(value, name)
    like = torch.empty(0, dtype=torch.float64, device=getattr(X, "device", "cpu") if _ours(X) else "cpu")
    _check.same_device({"X": like, "y": y, "sample_weight": sample_weight})
    if _check.watched(*(v for v in (X, y, sample_weight, *options) if isinstance(v, Tensor))):
        raise ValueError(
            "`solver`='cg' gives no gradients and passes through no transform or compiler. Use `torch.no_grad()`, "
            "detach the inputs, or pass a dense `X` and a direct solver, e.g. solver='dual'."
        )
    kind = kind_of(X)
    assert kind is not None
    n, d = shape_of(X)
    _check_target(y, n)
    weight = None
    if sample_weight is not None:
        _check.least_weight(_check.weight_shape(sample_weight, n))
        weight = sample_weight.double()
    objective = options.objective(d, 1 if y.ndim == 1 else y.shape[1], like).to(torch.float64)
    _check_free(objective)
    rule, rank = _rule(options)
    X_ = operator_of(X, kind)
    given = target = (y[:, None] if y.ndim == 1 else y).detach().double()
    if objective.prior is not None:
        target = given - X_.matmul(objective.prior)
    dtype = torch.promote_types(result_dtype(X_.dtype), result_dtype(y.dtype))
    return Problem(X_, target, given, weight, objective, y.ndim == 1, dtype, rule, rank)


def _ours(X: Any) -> bool:
    return isinstance(getattr(X, "device", None), torch.device)


def _check_target(y: Tensor, n: int) -> None:
    if y.ndim not in (1, 2):
        raise ValueError(f"`y` should have shape (rows,) or (rows, targets), got {tuple(y.shape)}.")
    _check.not_empty(y, "y")
    _check.same_length(y.shape[0], n, "y", "X")
    _check.finite(y, "y")


def _check_free(objective: Objective) -> None:
    free = 0 if objective.penalty is None else int((objective.penalty == 0).sum())
    if free > _MOST_FREE:
        raise ValueError(
            f"`penalty_factors` is zero for {free} features; solver='cg' takes at most {_MOST_FREE} of them. Give them "
            f"a small factor, or use a direct solver."
        )


def _rule(options: Options) -> tuple[Rule, int | None]:
    tol = 1e-8 if options.tol is None else _check.number(options.tol, "tol", strict=True)
    steps = 2000 if options.max_iter is None else _check.integer(options.max_iter, "max_iter", minimum=1)
    return Rule(tol, steps), None if options.rank is None else _check.integer(options.rank, "rank", minimum=0)


def solve(X: Any, y: Any, alpha: Any, name: str, sample_weight: Any, options: Options, choice: Choice) -> RidgeSolution:
    """Solve at the strengths `alpha`; `name` is "alphas" for a path."""
    problem = check(X, y, sample_weight, options)
    strengths = strengths_of(alpha, name, problem.y.shape[1], problem.y)
    count = problem.y.shape[1] * len(strengths.alpha)
    form = problem.form()
    solved = by_shared_products(problem, form, strengths)
    if solved is not None:
        return fit(problem, form, nystrom.empty(0, problem.y.device), strengths, choice, solved)
    approximation = solve_many.approximate(form, strengths.weakest, count, problem.rank, problem.rule.tol)
    return fit(problem, form, approximation, strengths, choice)


def by_shared_products(
    problem: Problem, form: Design, strengths: Strengths, targets: slice = slice(None)
) -> sparse_ridge.Solved | None:
    """Return some targets of a sparse matrix, at strengths that share all products; None if that does not pay."""
    plain = problem.rank is None and problem.objective.prior is None and strengths.weakest > 0
    if not plain or not sparse_ridge.applies(problem.X, form, strengths.per_target):
        return None
    return sparse_ridge.solve(form, problem.y[:, targets], strengths.alpha, problem.rule, problem.objective.intercept)


def fit(
    problem: Problem, form: Design, approximation: Nystrom, strengths: Strengths, choice: Choice,
    solved: sparse_ridge.Solved | None = None,
) -> RidgeSolution:  # fmt: skip
    """Solve with an approximation that is at hand, unless it is solved, and warn if the tolerance was not reached."""
    t, d, path = problem.y.shape[1], problem.X.shape[1], strengths.path
    columns = solve_many.grid(strengths.alpha, strengths.per_target, t, 1)
    weight, bias, error, steps = solved or solve_columns(problem, form, approximation, columns)
    preconditioner = "no" if solved else "Nyström"
    L = len(columns.alpha) // t
    pick: Any = slice(None) if path else 0
    single = not path and not strengths.per_target
    weakest = strengths.weakest
    top = float(approximation.eigvals[0]) if approximation.rank else float("nan")
    unknown = torch.full((L, t), torch.nan, dtype=torch.float64, device=weight.device)
    solution = RidgeSolution(
        weight=weight.T.reshape(L, t, d)[pick].to(problem.dtype).contiguous(),
        bias=bias.reshape(L, t)[pick].to(problem.dtype),
        alpha=strengths.alpha[0] if single else strengths.alpha,
        solver="cg",
        reason=f"{choice.reason}; {preconditioner} preconditioner of rank {approximation.rank}, "
        f"{'rows' if form.dual else 'features'} as unknowns",
        n_samples=problem.rows,
        diagnosis=Diagnosis.of(
            dof=unknown[0, 0] if single else unknown[:, 0] if path else unknown[0],
            condition=(top + weakest) / weakest if weakest > 0 else float("inf"),
            rank=None,
            residual_variance=unknown[pick],
            unit_variance=None,
        ),
        fit_intercept=problem.objective.intercept,
        vector_target=problem.vector_target,
        is_path=path,
        n_iter=int(steps.max()),
        residual=error.reshape(L, t)[pick],
        converged=(error <= problem.rule.tol).reshape(L, t)[pick],
    )
    warn_unless_converged(error, steps, problem.rule)
    return solution


def solve_columns(
    problem: Problem, form: Design, approximation: Nystrom, columns: Columns
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights (d, c) with the prior, biases (c,), relative residuals (c,) and steps (c,)."""
    intercept, share = problem.objective.intercept, torch.ones_like(form.total)
    parts = []
    for some in solve_many.blocks(form, columns):
        part = columns.at(some)
        block = solve_many.solve(form, approximation, share, problem.y, part, problem.rule)
        weight, bias = design.completed(form, block.weight, block.fixed, part.part, intercept)
        if problem.objective.prior is not None:
            weight = weight + problem.objective.prior[:, part.target]
        parts.append((weight, bias, block.error, block.steps))
    weight, bias, error, steps = (torch.cat(p, -1) for p in zip(*parts, strict=True))
    return weight, bias, error, steps


def warn_unless_converged(error: Tensor, steps: Tensor, rule: Rule) -> None:
    """Warn if a column did not reach the tolerance."""
    missed = ~(error <= rule.tol)
    if not bool(missed.any()):
        return
    limit = int(steps.max()) >= rule.max_iter
    why = f"`max_iter`={rule.max_iter} steps" if limit else f"{int(steps.max())} steps, at the limit of rounding"
    cure = "`max_iter`, `rank` or `alpha`" if limit else "`tol` or `alpha`"
    warn(
        f"conjugate gradients stopped after {why}: {int(missed.sum())} of {len(error)} columns (targets × strengths) "
        f"have a relative residual up to {float(error.max()):.1e}, above `tol`={rule.tol:g}. Raise {cure}.",
        ConvergenceWarning,
    )


def with_scores(solution: RidgeSolution, **scores: Any) -> RidgeSolution:
    """Return the solution with what cross-validation found."""
    return dataclasses.replace(solution, **scores)
