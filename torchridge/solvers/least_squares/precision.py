"""Whether eigenvalues of a gram matrix hold the digits of a score: the one place that chooses what scores come from.

An eigenvalue of a gram matrix is off by eps times the largest, so a score at strength α has lost eps · κ, κ the
condition of gram + αD as it stands. If that is too much, columns are brought to one size first, from the moments if
that alone settles it, else from the rows: there the loss is eps · √κ of the scaled columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchridge.solvers import algebra
from torchridge.solvers.least_squares.objective import Objective, System, system
from torchridge.solvers.least_squares.triangle import roots
from torchridge.solvers.least_squares.triangle.factor import Triangle, triangle, triangle_of
from torchridge.solvers.moments.blocks import Block, constant_noise
from torchridge.solvers.moments.parts import take
from torchridge.solvers.moments.rows import Rows

GRAM = roots.GRAM

# Condition that units may cost above that of the columns at one size.
UNITS = 100.0

# Mean of a column over its spread from which moments of it lose digits that the rows have.
_OFFSET = 1e4

_EPS = torch.finfo(torch.float64).eps


@dataclass
class Precision:
    """What the last scores came from, and the share of them that rounding may have taken."""

    lost: float = 0.0
    reason: str = ""

    def note(self, lost: float, reason: str) -> None:
        """Keep the worst of what is noted."""
        if lost >= self.lost:
            self.lost, self.reason = lost, reason


def condition(eigvals: Tensor, weakest: float) -> float:
    """Return the largest condition of gram + αD, for eigenvalues (..., m) on the host."""
    if not eigvals.numel():
        return 1.0
    top, low = eigvals.amax(-1), eigvals.amin(-1)
    worst = (top + weakest) / (low + weakest)
    return float(torch.where(top > 0, worst, 1).amax())


def free_condition(problem: System, weakest: float) -> float:
    """Return the condition of gram + αD, columns at one size, of a system with free features, which are eliminated."""
    if problem.free is None:
        return 1.0
    return scaled_condition(problem, weakest)


def holds(found: float, dtype: torch.dtype, scaled: Callable[[], float]) -> bool:
    """Return whether a condition leaves the digits that scores of this dtype are asked for.

    `scaled` gives the condition of the columns at one size: a loss far above that is one of units alone.
    """
    return dtype is not torch.float64 or found <= UNITS or (found <= GRAM and found <= UNITS * scaled())


def scaled_condition(problem: System, weakest: float) -> float:
    """Return the condition of gram + αD, columns at one size. Cost: a Cholesky factor."""
    matrix = problem.gram.clone()
    matrix.diagonal().add_(weakest if problem.penalty is None else weakest * problem.penalty)
    factor = algebra.cholesky(matrix)
    return float(torch.where(factor.info == 0, factor.condition(), torch.inf).nan_to_num(torch.inf))


def offset(equations: System, block: Block) -> bool:
    """Return whether means are so large beside the spread of a column that one number does not hold what it needs.

    So is the mean of any column if one row outweighs the others.
    """
    return bool(offset_columns(block.mean_x, equations.gram.diagonal(), block.weight).any())


def outweighed(parts: list[Block], rows: Rows | None, objective: Objective) -> bool:
    """Return the same of parts of rows at hand that bring weights, float64 sums of which lose digits then."""
    if rows is None or rows.sample_weight is None or not objective.intercept or parts[0].gram.dtype != torch.float64:
        return False
    return bool(torch.stack([offset_columns(b.mean_x, b.gram.diagonal(), b.weight).any() for b in parts]).any())


def offset_columns(mean: Tensor, squares: Tensor, weight: Tensor) -> Tensor:
    """Return the same of each column, (d,), of Σ s (x − x̄)² and Σ s."""
    level = weight * mean**2
    return (level > _OFFSET**2 * squares) & (squares > level * constant_noise(torch.ones_like(mean)))


def careful(
    block: Block, objective: Objective, weakest: float, rows: Rows | None, index: Tensor | None, precision: Precision
) -> Triangle:
    """Return the factor that holds the digits: of the moments, columns at one size, or else of the rows `index`."""
    moved = rows is not None and objective.intercept and offset(system(block, objective), block)
    tri = triangle_of(block, objective)
    strength = tri.rest.new_tensor([weakest])
    spread = float(roots.roots(tri, strength).spread)
    if rows is None or (spread**2 <= GRAM and not moved):
        precision.note(_EPS * spread**2, f"scores from moments, columns at one size: condition {spread**2:.1e}")
        return tri
    tri = triangle(rows if index is None else take(rows, index), objective)
    spread_rows = float(roots.roots(tri, strength).spread)
    precision.note(_EPS * spread_rows, f"scores from the rows: condition {spread**2:.1e}")
    return tri
