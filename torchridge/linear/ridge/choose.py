"""The one place that chooses how a problem is solved, and says why.

Measured on 2 cores of an AMD EPYC, float64: at d = 512, 1024 `eigh` takes 22–27 and 120–150 ms, Cholesky and the
inverse that the diagnostics need 6 and 40 ms; the Gram matrix of 100,000 rows takes 300 and 1,300 ms. So one
eigendecomposition pays from about four strengths on, and is lost in the Gram matrix for small d.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.table import SOLVERS, Solver
from torchridge.solvers.device import FEW_STRENGTHS
from torchridge.solvers.least_squares.spectral import Summary

# From this condition number of gram + αD on, float64 normal equations can miss the tenth digit (or, of an answer
# that is rounded to float32, the seventh).
CAREFUL = {torch.float64: 1e4, torch.float32: 1e7}

# A sparse matrix of up to this many bytes when dense is made dense, unasked, and if a direct solver is asked for.
_DENSE_BYTES = 2**27
DENSE_BYTES = 2**30

# From this side of the gram matrix on (2 GiB in float64, minutes to factor), products are the cheaper way, if this
# many for every right-hand side are fewer than the side.
_LARGE_SIDE = 16384
_STEPS = 128


class Choice(NamedTuple):
    """A solver and the reason it was taken."""

    solver: str
    reason: str


def choose(
    solver: str,
    *,
    n: int,
    d: int,
    strengths: Strengths,
    free: bool = False,
    rows_at_hand: bool = True,
    precomputed: bool = False,
) -> Choice:
    """Choose the solver of a dense problem of n rows, d features and so many strengths."""
    count, per_target = len(strengths.alpha), strengths.per_target
    if precomputed:
        return Choice("dual", "a kernel was given")
    if solver != "auto":
        _refuse_impossible(solver, per_target, free, rows_at_hand)
        return Choice(solver, "asked for")
    if rows_at_hand and n < d:
        return Choice("dual", f"{n} rows are fewer than {d} features: the gram matrix of the rows is the smaller one")
    if per_target or count > FEW_STRENGTHS:
        return Choice("spectral", "one eigendecomposition serves all strengths")
    return Choice("cholesky", "few strengths: Cholesky is several times cheaper than an eigendecomposition")


def choose_products(solver: str, kind: str, *, n: int, d: int, columns: int) -> Choice | None:
    """Choose whether products with X solve the problem; None if X is made dense and solved directly.

    `kind` is "dense", "sparse" or "operator"; `columns` are the right-hand sides, targets × strengths.
    """
    if solver == "cg":
        return Choice("cg", "asked for")
    if kind == "operator":
        if solver != "auto":
            raise ValueError(f"`solver`={solver!r} needs the entries of `X`, got an operator. Use 'cg' or 'auto'.")
        return Choice("cg", "an operator gives products and nothing else")
    side, size = min(n, d), 8 * n * d
    if kind == "sparse":
        if size <= (_DENSE_BYTES if solver == "auto" else DENSE_BYTES):
            return None
        if solver != "auto":
            raise ValueError(
                f"`solver`={solver!r} needs a dense `X`, and a sparse one of shape ({n}, {d}) would take "
                f"{size / 2**30:.3g} GiB. Use 'cg' or 'auto'."
            )
        return Choice("cg", f"sparse, and {size / 2**30:.3g} GiB if it were made dense")
    if solver == "auto" and side >= _LARGE_SIDE and columns * _STEPS <= side:
        return Choice("cg", f"a gram matrix of side {side} costs more than {_STEPS} products for each right-hand side")
    return None


def _refuse_impossible(solver: str, per_target: bool, free: bool, rows_at_hand: bool) -> None:
    asked = SOLVERS.get(solver, _PRODUCTS)
    if asked.rows and not rows_at_hand:
        raise ValueError(f"`solver`={solver!r} needs the rows themselves, got moments. Use 'cholesky' or 'spectral'.")
    if asked.shared and per_target:
        raise ValueError(f"`solver`={solver!r} takes one strength at a time, got one for each target. Use 'spectral'.")
    if asked.penalized and free:
        raise ValueError(f"`solver`={solver!r} needs positive `penalty_factors`. Use 'spectral' if some are zero.")


def _no_fit(*_: object) -> None:
    raise AssertionError("products have solvers of their own")


_PRODUCTS = Solver(_no_fit, rows=True)  # "cg"


def choose_cross_validation(solver: str, *, n: int, smallest_train: int, d: int) -> Choice:
    """Choose between the moments of the folds and the gram matrix of the rows."""
    if solver == "dual" or (solver == "auto" and smallest_train < d and n <= 2 * d):
        return Choice("dual", f"training parts of {smallest_train} rows are fewer than {d} features")
    return Choice("spectral", "every fold is scored from its moments, all strengths by one eigendecomposition")


def resolved(found: Summary) -> bool:
    """Whether the smallest eigenvalue of a gram matrix stands clear of its rounding."""
    return found.low > 1e3 * found.tolerance
