"""A problem that is solved by factors, and what a solver returns of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import CAREFUL, Choice
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.dual_solution import DualForm
from torchridge.solvers.least_squares.objective import Frame, Objective
from torchridge.solvers.moments import finite
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows

# The condition up to which float64 dual coefficients give predictions to float32's last digit. Weights of more bytes
# than the second number that are kept as them are refined only above: that makes them, if they take up to the third.
_CAREFUL_DUAL = 1e9
_FEW_BYTES, _REFINED_BYTES = 2**26, 2**30


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
        """The dtype that sums are taken in: float64, or that of the rows if this was asked for."""
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
        return not self.keeps_dual or self._weight_bytes <= _REFINED_BYTES

    @property
    def _weight_bytes(self) -> int:
        assert self.rows is not None
        columns = self.rows.y.shape[1] * (1 if self.strengths.per_target else len(self.strengths.alpha))
        return 8 * self.rows.X.shape[1] * columns

    @property
    def careful(self) -> float:
        """The condition from which one goes back to the rows: later if that would make very many weights."""
        limit = CAREFUL[self.dtype]
        return max(limit, _CAREFUL_DUAL) if self.keeps_dual and self._weight_bytes > _FEW_BYTES else limit

    def checked(self) -> Block:
        """Return the moments, or raise if they are not finite: the matrix of an eigendecomposition must be."""
        block = self.moments()
        if self.rows is not None:
            finite.check_finite(block, self.rows)
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
