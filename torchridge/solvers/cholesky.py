"""One strength by Cholesky: a tenth of the work of an eigendecomposition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.objective import System


class Factored(NamedTuple):
    """A system solved at one strength."""

    weight: Tensor  # (d, t)
    inverse: Tensor  # (d, d) of gram + α diag(penalty)
    condition: float  # in the 1-norm, which bounds that in the 2-norm from above within a factor of d


def cholesky(system: System, alpha: float) -> Factored | None:
    """Solve (gram + α diag(penalty)) w = cross; None if it is not positive definite to rounding. Cost d³ and d² t."""
    matrix = system.gram.clone()
    matrix.diagonal().add_(alpha if system.penalty is None else alpha * system.penalty)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        return None
    inverse = torch.cholesky_inverse(factor)
    condition = float(torch.linalg.matrix_norm(matrix, 1) * torch.linalg.matrix_norm(inverse, 1))
    weight = inverse @ system.cross
    # An explicit inverse is less stable than its factor; one step on the residual makes up for it.
    weight += inverse @ (system.cross - (matrix @ weight))
    return Factored(weight if system.prior is None else weight + system.prior, inverse, condition)


def dof(system: System, alpha: float, inverse: Tensor) -> Tensor:
    """Return the effective degrees of freedom d − α tr(diag(penalty) A⁻¹)."""
    diagonal = inverse.diagonal() if system.penalty is None else inverse.diagonal() * system.penalty
    return inverse.shape[0] - alpha * diagonal.sum()


def unit_variance(system: System, alpha: float, inverse: Tensor) -> Tensor:
    """Return the sampling variance of each weight for unit noise, diag(A⁻¹ gram A⁻¹), (d,)."""
    scaled = inverse**2 if system.penalty is None else inverse**2 * system.penalty
    return (inverse.diagonal() - alpha * scaled.sum(1)).clamp_min(0)
