"""The door: arguments become a checked problem, of rows, moments or products, or of rows that torch watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchridge import _check
from torchridge.linear.arguments import Asked, Options, check_options, refuse_beside_moments, strengths_of
from torchridge.linear.matrices import dense_of, kind_of, shape_of
from torchridge.linear.ridge.choose import Choice, choose_products
from torchridge.linear.ridge.dense import Dense
from torchridge.linear.ridge.solution.diagnosis import once
from torchridge.solvers.least_squares.criteria import criterion_of
from torchridge.solvers.least_squares.target_scores import from_moments
from torchridge.solvers.moments import one_pass
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.rows import Rows, result_dtype


@dataclass(frozen=True)
class Problem:
    """A problem that is solved by factors, and what its solution is rounded to."""

    dense: Dense
    source: Rows | Moments
    solver: str  # as it was asked for
    n_samples: int
    shape: tuple[int, int]  # d, t
    device: torch.device


def of_rows(rows: Rows, alpha: Any, name: str, options: Options) -> Problem:
    """Return the problem of checked rows at the strengths `alpha`; `name` is "alphas" for a path."""
    (_, d), t = rows.X.shape, rows.y.shape[1]
    options = options.for_rows(rows.X)
    dtype = options.moments_dtype
    objective = options.objective(d, t, rows.X)
    strengths = strengths_of(alpha, name, t, rows.X)
    counted = rows.counted if rows.idle else rows
    moments = once(lambda: one_pass.block_of(*counted[:3], None, dtype, rows.X.device))
    dense = Dense(objective, strengths, result_dtype(rows.X.dtype), moments, counted, dtype is torch.float64)
    return Problem(dense, rows, options.solver, counted.X.shape[0], (d, t), rows.X.device)


def of_moments(moments: Moments, alpha: Any, name: str, options: Options) -> Problem:
    """Return the problem of moments."""
    block = moments.block()
    d, t = block.cross.shape
    objective = options.objective(d, t, block.gram, dtype=moments.dtype)
    strengths = strengths_of(alpha, name, t, block.gram)
    dense = Dense(objective, strengths, moments.result_dtype, lambda: block, None)
    return Problem(dense, moments, options.solver, block.rows, (d, t), block.gram.device)


def dense_problem(X: Any, y: Any, alpha: Any, name: str, sample_weight: Any, options: Options) -> Problem | None:
    """Return the checked problem of rows or moments; None if only plain torch operations solve it.

    Those are batches, and rows that autograd, a transform or a compiler watches.
    """
    if isinstance(X, Moments):
        refuse_beside_moments(kernel=options.kernel)
        if alpha is None and y is not None:
            y, alpha = None, y  # ridge(moments, 1.0)
        refuse_beside_moments(y=y, sample_weight=sample_weight)
        return of_moments(X, alpha, name, options)
    if y is None:
        raise TypeError("`y` is missing; pass the targets, or `Moments` in place of `X`.")
    if options.kernel == "precomputed":
        _check.is_tensor(y, "y")
        check_given_kernel(X, y, alpha, sample_weight)
    checked = _check.plain_rows(X, y, sample_weight, alpha, options.penalty_factors, options.prior)
    return None if checked is None else of_rows(Rows(*checked), alpha, name, options)


def route(X: Any, y: Any, alpha: Any, options: Options) -> tuple[Any, Choice | None]:
    """Return X and a choice of products, or X as a strided tensor (or `Moments`) and None."""
    check_options(options)
    if options.kernel == "precomputed":
        return X, None
    kind = kind_of(X)
    choice = None if kind is None else _choice(X, kind, y, alpha, options)
    if choice is not None:
        return X, choice
    refuse_own(options)
    return (dense_of(X) if kind == "sparse" else X), None


def check_given_kernel(X: Any, *others: Any) -> None:
    """Raise unless a kernel (n, n) is given as a symmetric tensor that nothing watches."""
    _check.is_tensor(X, "X")
    _check.is_dense_real(X, "X")
    if _check.watched(X, *others):
        raise ValueError("kernel='precomputed' has no gradients and no transforms. Pass `X.detach()`.")
    if X.ndim != 2 or X.shape[0] != X.shape[1]:
        raise ValueError(f"`X` should be a kernel of shape (n, n) with kernel='precomputed', got {tuple(X.shape)}.")
    _check.not_empty(X, "X")
    _check.finite(X, "X")
    _check.finite(others[0], "y")
    largest, apart = torch.stack([X.abs().amax(), (X - X.mT).abs().amax()]).tolist()
    eps = torch.finfo(X.dtype if X.is_floating_point() else torch.float64).eps
    if apart > 1e3 * eps * largest:
        raise ValueError(
            f"`X` should be a symmetric kernel with kernel='precomputed', got one that differs from its transpose by "
            f"{apart:.3g} (largest entry {largest:.3g}). Pass k(x_i, x_j) of the rows that are fitted."
        )


def refuse_own(options: Options, over_ranks: bool = False) -> None:
    """Raise on what belongs to products alone."""
    if over_ranks and (options.kernel is not None or options.max_bytes is not None):
        raise ValueError("`kernel` and `max_bytes` are of the rows of one process. Leave out `process_group`.")
    if over_ranks and options.solver == "cg":
        raise ValueError("`solver`='cg' multiplies with the rows of one process. Leave out `process_group`.")
    for name, value in (("tol", options.tol), ("max_iter", options.max_iter), ("rank", options.rank)):
        if value is not None:
            raise ValueError(
                f"`{name}` belongs to solver='cg', got it with `solver`={options.solver!r}, which is direct here. "
                f"Leave it out, or pass solver='cg'."
            )


def route_cv(asked: Asked) -> tuple[Any, Choice | None]:
    """Return the same for cross-validation."""
    X, options = asked.X, asked.options
    _check.option(options.solver, "solver", ("auto", "spectral", "dual", "cg"))
    _check.option(asked.scoring, "scoring", from_moments())
    _check.option(asked.per_target, "alpha_per_target", (True, False))
    if isinstance(X, Moments) and options.solver == "cg":
        raise ValueError("`solver`='cg' needs the rows themselves, got moments. Use 'auto'.")
    criterion = criterion_of(asked.cv)
    direct = criterion is not None and criterion.lacks and kind_of(X) == "dense" and options.solver == "auto"
    return (X, None) if direct else route(X, asked.y, asked.alphas, options)


def _choice(X: Any, kind: str, y: Any, alpha: Any, options: Options) -> Choice | None:
    whole = kind == "dense" and options.solver != "cg"  # products are then a matter of cost
    double = options.moments_dtype is torch.float64
    if whole and (options.solver != "auto" or X.ndim != 2 or 0 in X.shape or not double):
        return None
    n, d = shape_of(X)
    choice = choose_products(options.solver, kind, n=n, d=d, columns=_columns(y, alpha))
    if choice is None or not whole:
        return choice
    return None if _check.watched(X, y, alpha, options.penalty_factors, options.prior) else choice


def _columns(y: Any, alpha: Any) -> int:
    """Return how many right-hand sides there are, one if that cannot be told yet."""
    t = y.shape[1] if getattr(y, "ndim", 1) == 2 else 1
    many = not isinstance(alpha, str) and getattr(alpha, "ndim", 1) != 0 and hasattr(alpha, "__len__")
    strengths = len(alpha) if many else 1
    return max(1, t * (1 if strengths == t else strengths))
