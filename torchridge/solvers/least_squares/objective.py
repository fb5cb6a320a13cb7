"""The objective of a ridge problem apart from its data, and the linear system that moments and objective make.

minimize over W, b:   Σ_i s_i ‖y_i − W x_i − b‖² + α Σ_j p_j Σ_k (W_kj − prior_kj)²
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.moments.blocks import Block, about_origin


class Objective(NamedTuple):
    """What is minimized, α apart."""

    intercept: bool = True
    standardize: bool = False  # p_j is multiplied by the variance of feature j
    penalty: Tensor | None = None  # p, (d,); zero leaves a feature unpenalized
    prior: Tensor | None = None  # (d, t)
    free: Tensor | None = None  # the features of zero penalty, their numbers; None if there are none
    precomputed: bool = False  # whether the rows are those of a kernel (n, n), and the penalty its norm

    def to(self, dtype: torch.dtype) -> Objective:
        """Return the objective in another dtype."""
        penalty, prior = (None if a is None else a.detach().to(dtype) for a in (self.penalty, self.prior))
        return self._replace(penalty=penalty, prior=prior)


class System(NamedTuple):
    """(gram + α diag(penalty)) w = cross, for w the weights less the prior."""

    gram: Tensor  # (d, d)
    cross: Tensor  # (d, t), of what the prior leaves
    yy: Tensor  # (t,), of what the prior leaves
    penalty: Tensor | None  # (d,)
    prior: Tensor | None  # (d, t)
    free: Tensor | None = None  # features of zero penalty


class Frame(NamedTuple):
    """Where a model is centred and what pulls its weights: all that a pass over rows needs besides them."""

    center: Tensor  # (d,) x̄, or zero without intercept
    target_center: Tensor  # (t,)
    penalty: Tensor | None  # (d,)
    prior: Tensor | None  # (d, t)


def frame(block: Block, objective: Objective) -> Frame:
    """Return the frame of the model that one block trains."""
    center = located(block, objective)
    return Frame(center.mean_x, center.mean_y, penalty_of(block, objective), objective.prior)


def located(block: Block, objective: Objective) -> Block:
    """Return moments about the point the model is centred on: the means, or zero if there is no intercept."""
    return block if objective.intercept else about_origin(block)


def system(block: Block, objective: Objective) -> System:
    """Return the linear system of one block."""
    penalty = penalty_of(block, objective)
    block = located(block, objective)
    if objective.prior is None:
        return System(block.gram, block.cross, block.yy, penalty, None, objective.free)
    cross, yy = residual_moments(block, objective.prior)
    return System(block.gram, cross, yy, penalty, objective.prior, objective.free)


def residual_moments(block: Block, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return cross and yy of the targets y − wᵀx, for weights (d, t)."""
    fitted = block.gram @ weight  # (d, t)
    yy = block.yy - (weight * (2 * block.cross - fitted)).sum(0)
    return block.cross - fitted, yy.clamp_min(0)


def penalty_of(block: Block, objective: Objective) -> Tensor | None:
    """Return the penalty factor of each feature, or None if all are one."""
    if not objective.standardize:
        return objective.penalty
    variance = feature_variance(block)
    return variance if objective.penalty is None else variance * objective.penalty


def feature_variance(block: Block) -> Tensor:
    """Return the weighted variance of each feature (ddof 0), and one for a feature that is constant to rounding."""
    variance = block.gram.diagonal() / block.weight
    noise = (10 * torch.finfo(variance.dtype).eps * block.mean_x) ** 2
    return torch.where(variance > noise, variance, torch.ones_like(variance))
