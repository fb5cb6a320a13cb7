"""The one place that chooses how a problem is solved, and says why.

Measured on 2 cores of an AMD EPYC, float64: at d = 512, 1024 `eigh` takes 22–27 and 120–150 ms, Cholesky and the
inverse that the diagnostics need 6 and 40 ms; the Gram matrix of 100,000 rows takes 300 and 1,300 ms. So one
eigendecomposition pays from about four strengths on, and is lost in the Gram matrix for small d.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.device import strengths_per_eigh
from torchridge.solvers.spectral import tolerance

SOLVERS = ("auto", "cholesky", "spectral", "dual", "svd", "cg")

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

# Features for each row from which on the vectors of the primal outweigh its faster product.
_DUAL = 4
_VECTOR_BYTES = 2**29

_SMALL = 128

# Steps that a preconditioner must have a chance to save, in costs of its sketch.
_WORTH = 5.0


class Choice(NamedTuple):
    """A solver and the reason it was taken."""

    solver: str
    reason: str


def choose(
    solver: str, *, n: int, d: int, strengths: int, per_target: bool, free: bool, rows_at_hand: bool, cuda: bool = False
) -> Choice:
    """Choose the solver of a dense problem of n rows, d features and so many strengths."""
    if solver != "auto":
        _refuse_impossible(solver, strengths, per_target, free, rows_at_hand)
        return Choice(solver, "asked for")
    if rows_at_hand and n < d:
        return Choice("dual", f"{n} rows are fewer than {d} features: the gram matrix of the rows is the smaller one")
    if per_target or strengths > strengths_per_eigh(cuda):
        return Choice("spectral", "one eigendecomposition serves all strengths")
    if d <= _SMALL and not cuda:
        return Choice("spectral", f"for {d} features an eigendecomposition costs little beside the gram matrix")
    return Choice("cholesky", "few strengths: Cholesky is several times cheaper than an eigendecomposition")


def choose_products(solver: str, kind: str, *, n: int, d: int, columns: int) -> Choice | None:
    """Choose whether products with X solve the problem; None where X is made dense and solved directly.

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


def choose_dual(n: int, d: int) -> bool:
    """Choose whether rows are the unknowns: n × n, with shorter vectors, but the slower product.

    Xᵀ(X v) takes one pass over rows that lie in memory one after the other; X(Xᵀ z) takes two, or strided pieces.
    Measured at (4000, 10000), float32 data, float64 sums: 15 ms against 32 ms.
    """
    return d > _DUAL * n


def more_rank(
    eigvals: Tensor, sketched: int, weakest: float, columns: int, tol: float, limit: int, column_cost: float
) -> int:
    """Return by how many columns a sketch with these eigenvalues should grow; 0 where it should not.

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
    """Whether conjugate gradients arrive so soon by themselves that a sketch of so many columns can save little."""
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


def coarse_grid_by_norm(top: Tensor, size: int = 11) -> Tensor:
    """Return strengths that span five decades up to ten times the largest eigenvalue, ascending.

    Weaker ones cost conjugate gradients the more steps, and the eigenvalues down there are not known.
    """
    top = torch.where(top > 0, top, torch.ones_like(top))
    return top * torch.logspace(-4, 1, size, dtype=top.dtype, device=top.device)


def _refuse_impossible(solver: str, strengths: int, per_target: bool, free: bool, rows_at_hand: bool) -> None:
    if solver in ("dual", "svd", "cg") and not rows_at_hand:
        raise ValueError(f"`solver`={solver!r} needs the rows themselves, got moments. Use 'cholesky' or 'spectral'.")
    if solver == "cholesky" and per_target:
        raise ValueError("`solver`='cholesky' takes one strength at a time, got one for each target. Use 'spectral'.")
    if solver == "svd" and free:
        raise ValueError("`solver`='svd' needs positive `penalty_factors`. Use 'spectral' where some are zero.")


def choose_cross_validation(solver: str, *, n: int, smallest_train: int, d: int, rows_at_hand: bool) -> Choice:
    """Choose between the moments of the folds and the gram matrix of the rows."""
    if solver == "dual" or (solver == "auto" and rows_at_hand and smallest_train < d and n <= 2 * d):
        return Choice("dual", f"training parts of {smallest_train} rows are fewer than {d} features")
    return Choice("spectral", "every fold is scored from its moments, all strengths by one eigendecomposition")


def resolved(eigvals: Tensor) -> bool:
    """Whether the smallest eigenvalue of a gram matrix stands clear of its rounding."""
    return bool(eigvals.amin() > 1e3 * tolerance(eigvals))


def coarse_grid(eigvals: Tensor, size: int = 50) -> Tensor:
    """Return strengths that span what the data can tell apart, log-spaced and ascending.

    Scale-free: from a thousandth of the smallest eigenvalue above rounding, where nothing is shrunk, to a hundred times
    the largest, where everything is.
    """
    top = eigvals.amax() if len(eigvals) else eigvals.new_zeros(())
    if float(top) == 0:
        return torch.logspace(-3, 3, size, dtype=eigvals.dtype, device=eigvals.device)
    low = torch.maximum(eigvals[eigvals > tolerance(eigvals)].amin() * 1e-3, top * 1e-10)
    return torch.logspace(
        float(low.log10()), float((100 * top).log10()), size, dtype=eigvals.dtype, device=eigvals.device
    )


def finer_grid(grid: Tensor, best: Tensor, cells: int = 16) -> Tensor:
    """Return strengths inside the two cells of an ascending grid beside each of the best indices."""
    centers = torch.unique(best)
    edges = torch.unique(torch.cat([centers - 1, centers]).clamp(0, grid.shape[0] - 2))
    inner = torch.arange(1, cells, dtype=grid.dtype, device=grid.device) / cells
    low, high = grid[edges].log()[:, None], grid[edges + 1].log()[:, None]
    return (low + (high - low) * inner).exp().reshape(-1)


def best_strength(scores: Tensor, alphas: Tensor, higher_is_better: bool) -> Tensor:
    """Return the index of the best strength for each column of scores (L, c); of equal ones the strongest."""
    loss = -scores if higher_is_better else scores
    loss = torch.where(torch.isnan(loss), torch.inf, loss)
    tied = loss == loss.amin(0)
    return torch.where(tied, alphas[:, None], -1).argmax(0)
