"""A problem that is solved by factors, and what a solver returns of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import Choice
from torchridge.linear.ridge.diagnosis import Diagnosis
from torchridge.solvers.least_squares.objective import Frame, Objective
from torchridge.solvers.moments import blocks
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows


@dataclass(frozen=True)
class Dense:
    """A checked problem that is solved by factors, of its rows or of their moments."""

    objective: Objective
    strengths: Strengths
    dtype: torch.dtype  # of the answer
    moments: Callable[[], Block]
    rows: Rows | None  # those that count; None for moments alone
    exact: bool = True  # whether moments are summed in float64, so that going back to the rows is worth it

    def checked(self) -> Block:
        """Return the moments, or raise if they are not finite: the matrix of an eigendecomposition must be."""
        block = self.moments()
        if self.rows is not None:
            blocks.check_finite(block, self.rows)
        return block


class Fit(NamedTuple):
    """Weights of every strength, with what is known about them."""

    weight: Tensor  # (d, L, t); L = 1 if each target has its own strength
    bias: Tensor  # (L, t)
    lost: float  # estimate of the relative error of the weights
    rank: int | None  # if the penalty was too weak to decide between solutions, the rank of the rows
    diagnosis: Diagnosis  # squares (L, t), dof (L,) or (t,), unit_variance (d, L) or (d, t), condition, rank
    choice: Choice
    largest: float | None = None  # of the weights and biases, NaN if one is; None if it has not been read


def bias_of(weight: Tensor, place: Frame) -> Tensor:
    """Return the biases (L, t) of weights (d, L, t)."""
    return place.target_center - (place.center @ weight.flatten(1)).reshape(weight.shape[1:])
