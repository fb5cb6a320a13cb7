"""The fork in front of all three functions: rows that are factored, or products with a matrix that is left as it is."""

from __future__ import annotations

from typing import Any

from torchridge import _check
from torchridge._ridge_options import Options, check_options, needs_torch
from torchridge.solvers import select
from torchridge.solvers.matrices import dense_of, kind_of, shape_of
from torchridge.solvers.moments import Moments
from torchridge.solvers.select import Choice

_OWN = ("tol", "max_iter", "rank")


def route(X: Any, y: Any, alpha: Any, options: Options) -> tuple[Any, Choice | None]:
    """Return X and a choice of products, or X as a strided tensor (or `Moments`) and None."""
    check_options(options)
    choice = _choice(X, y, alpha, options)
    if choice is not None:
        return X, choice
    refuse_own(options)
    return (dense_of(X) if kind_of(X) == "sparse" else X), None


def refuse_own(options: Options, over_ranks: bool = False) -> None:
    """Raise on what belongs to products alone."""
    if over_ranks and options.solver == "cg":
        raise ValueError("`solver`='cg' multiplies with the rows of one process. Leave out `process_group`.")
    for name in _OWN:
        if getattr(options, name) is not None:
            raise ValueError(
                f"`{name}` belongs to solver='cg', got it with `solver`={options.solver!r}, which is direct here. "
                f"Leave it out, or pass solver='cg'."
            )


def route_cv(
    X: Any, y: Any, alphas: Any, cv: Any, scoring: Any, per_target: Any, options: Options
) -> tuple[Any, Choice | None]:
    """Return the same for cross-validation."""
    _check.option(options.solver, "solver", ("auto", "spectral", "dual", "cg"))
    _check.option(scoring, "scoring", ("mse", "r2"))
    _check.option(per_target, "alpha_per_target", (True, False))
    if isinstance(X, Moments) and options.solver == "cg":
        raise ValueError("`solver`='cg' needs the rows themselves, got moments. Use 'auto'.")
    direct = isinstance(cv, str) and cv in ("loo", "evidence") and kind_of(X) == "dense" and options.solver == "auto"
    return (X, None) if direct else route(X, y, alphas, options)


def _choice(X: Any, y: Any, alpha: Any, options: Options) -> Choice | None:
    kind = kind_of(X)
    if kind is None:
        return None
    if kind == "dense" and options.solver != "cg":
        direct = options.solver != "auto" or X.ndim != 2 or str(options.moments_dtype) != "torch.float64"
        given = (X, y, alpha, options.penalty_factors, options.prior)
        if direct or 0 in X.shape or needs_torch(*given):
            return None
    n, d = shape_of(X)
    return select.choose_products(options.solver, kind, n=n, d=d, columns=_columns(y, alpha))


def _columns(y: Any, alpha: Any) -> int:
    """Return how many right-hand sides there are, one where that cannot be told yet."""
    t = y.shape[1] if getattr(y, "ndim", 1) == 2 else 1
    strengths = 1 if isinstance(alpha, str) or getattr(alpha, "ndim", 1) == 0 else len(alpha) if _sized(alpha) else 1
    return max(1, t * (1 if strengths == t else strengths))


def _sized(value: Any) -> bool:
    return hasattr(value, "__len__")
