"""How large a preconditioner pays, and which side of a matrix to work on."""

from __future__ import annotations

import math

from torch import Tensor

# Features for each row from which on the vectors of the primal outweigh its faster product.
_DUAL = 4
_VECTOR_BYTES = 2**29

# Steps that a preconditioner must have a chance to save, in costs of its sketch.
_WORTH = 5.0


def choose_dual(n: int, d: int) -> bool:
    """Choose whether rows are the unknowns: n × n, with shorter vectors, but the slower product.

    Xᵀ(X v) takes one pass over rows that lie in memory one after the other; X(Xᵀ z) takes two, or strided pieces.
    Measured at (4000, 10000), float32 data, float64 sums: 15 ms against 32 ms.
    """
    return d > _DUAL * n


def more_rank(
    eigvals: Tensor, sketched: int, weakest: float, columns: int, tol: float, limit: int, column_cost: float
) -> int:
    """Return by how many columns a sketch with these eigenvalues should grow; 0 if it should not.

    Doubling costs a sketch of as many columns, each `column_cost` steps of a single column. It saves the steps between
    the condition numbers (λ_k + α) / α of before and after, λ_2k being guessed from how the eigenvalues have fallen.
    """
    k = len(eigvals)
    if k < sketched or sketched >= limit or float(eigvals[0]) <= 0:  # the rank is found, or may not grow
        return 0
    alpha = max(weakest, 1e-12 * float(eigvals[0]))
    last, middle = float(eigvals[-1]), float(eigvals[k // 2])
    next_last = last * (last / middle if middle > 0 else 0.0)
    saved = _steps(last / alpha, tol) - _steps(next_last / alpha, tol)
    return min(k, limit - k) if saved > _cost(k, columns, column_cost) else 0


def few_steps(top: float, weakest: float, columns: int, tol: float, sketch: int, column_cost: float) -> bool:
    """Whether conjugate gradients converge so soon by themselves that a sketch of so many columns can save little."""
    return weakest > 0 and _steps(top / weakest, tol) <= _WORTH * _cost(sketch, columns, column_cost)


def _steps(ratio: float, tol: float) -> float:
    """Return a bound on the steps at the condition number 1 + ratio."""
    return 0.5 * math.log(2 / tol) * math.sqrt(1 + ratio)


def _cost(sketch: int, columns: int, column_cost: float) -> float:
    """Return what a sketch costs, in steps of all the columns that are solved for."""
    return sketch * column_cost / (1 + column_cost * (columns - 1))


def rank_limit(m: int) -> int:
    """Return the largest rank of a Nyström approximation for m unknowns: its vectors take at most half a GiB."""
    return max(1, min(m, 1024, _VECTOR_BYTES // (8 * m)))
