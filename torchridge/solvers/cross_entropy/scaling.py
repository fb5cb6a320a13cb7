"""Scalings of a descent: by the diagonal of the Hessian, or by its Cholesky factor."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy.features import DenseFeatures
from torchridge.solvers.cross_entropy.problem import Problem


class Scaling(Protocol):
    """Coordinates z of θ in which the Hessian at θ = 0 is close to the identity."""

    def inside(self, grad: Tensor) -> Tensor:
        """Return the gradient by z, (c·q,), from that by θ (c, q)."""

    def outside(self, step: Tensor, like: Tensor) -> Tensor:
        """Return the step of θ, shaped as `like`, that is a step (c·q,) of z."""


class Diagonal:
    """By the diagonal of the Hessian."""

    def __init__(self, problem: Problem) -> None:
        self.root = (problem.diagonal + problem.curvature * problem.features.square).rsqrt_()

    def inside(self, grad: Tensor) -> Tensor:
        """Return the gradient by z."""
        return (grad * self.root).view(-1)

    def outside(self, step: Tensor, like: Tensor) -> Tensor:
        """Return the step of θ."""
        return step.view_as(like) * self.root


class Cholesky:
    """By a factor of the whole Hessian b FᵀWF + λ, of dense features."""

    def __init__(self, problem: Problem, features: DenseFeatures) -> None:
        gram = features.gram().mul_(problem.curvature)
        gram.diagonal().add_(problem.diagonal)
        self.lower = factor(gram)

    def inside(self, grad: Tensor) -> Tensor:
        """Return the gradient by z."""
        flat: Tensor = torch.linalg.solve_triangular(self.lower, grad.mT, upper=False).mT.reshape(-1)
        return flat

    def outside(self, step: Tensor, like: Tensor) -> Tensor:
        """Return the step of θ."""
        solved: Tensor = torch.linalg.solve_triangular(self.lower.mT, step.view_as(like).mT, upper=True)
        return solved.mT.contiguous()


def factor(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor; if rounding has made the matrix indefinite, with a larger diagonal."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    share = torch.finfo(matrix.dtype).eps
    while bool(info) and share < 1:  # a matrix that is not finite has none
        matrix.diagonal().mul_(1 + share)
        lower, info = torch.linalg.cholesky_ex(matrix)
        share *= 10
    factor_: Tensor = lower
    return factor_
