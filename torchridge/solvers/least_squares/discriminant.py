"""Linear discriminant analysis from moments, every shrinkage from one eigendecomposition.

With indicators as targets, moments hold what LDA needs: for class c of weight n_c and mean m_c,

    cross[:, c] = n_c (m_c − x̄),    within = gram − Σ_c n_c (m_c − x̄)(m_c − x̄)ᵀ

and the shrunk covariance is (1 − s) W + s (tr W / d) I for W = within / Σ n_c, as in scikit-learn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.moments.blocks import Block


class Classes(NamedTuple):
    """Rows of k classes that share a covariance."""

    weight: Tensor  # (k,) n_c
    mean: Tensor  # (k, d)
    within: Tensor  # (d, d) scatter about the class means


class Discriminant(NamedTuple):
    """Classes with their covariance diagonalized: V diag(eigvals) Vᵀ."""

    prior: Tensor  # (k,)
    mean: Tensor  # (k, d)
    eigvals: Tensor  # (d,)
    vectors: Tensor  # (d, d)


def classes_of(block: Block) -> Classes:
    """Return the classes of a block whose targets are indicators. Cost d² k."""
    weight = block.mean_y * block.weight
    present = weight > 0.5 * torch.finfo(weight.dtype).eps * block.weight
    safe = torch.where(present, weight, torch.ones_like(weight))
    shift = torch.where(present, block.cross / safe, torch.zeros_like(block.cross))  # (d, k)
    within = block.gram - ((shift * weight.clamp_min(0)) @ shift.T)
    return Classes(torch.where(present, weight, torch.zeros_like(weight)), block.mean_x + shift.T, within)


def discriminant(block: Block) -> Discriminant:
    """Diagonalize the covariance within classes. Cost 9 d³."""
    classes = classes_of(block)
    covariance = classes.within / block.weight
    eigvals, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return Discriminant(classes.weight / block.weight, classes.mean, eigvals.clamp_min(0), vectors)


def spread(model: Discriminant, shrinkage: Tensor) -> Tensor:
    """Return the eigenvalues of the shrunk covariance, (d, L), not below rounding."""
    e = model.eigvals[:, None]
    floor = e.amax() * e.shape[0] * torch.finfo(e.dtype).eps
    return ((1 - shrinkage) * e + shrinkage * e.mean()).clamp_min(torch.where(floor > 0, floor, torch.ones_like(floor)))


def weights(model: Discriminant, shrinkage: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (L, k, d) and biases (L, k) of log π_c + δ_cᵀ Σ⁻¹ (x − x̄) − ½ δ_cᵀ Σ⁻¹ δ_c, δ_c = m_c − x̄.

    Taken about x̄, which adds the same to every class and keeps the digits of classes far from zero. Cost L k d².
    """
    center = model.prior @ model.mean
    rotated = (model.mean - center) @ model.vectors  # (k, d)
    inverse = 1 / spread(model, shrinkage).T  # (L, d)
    weight = (rotated * inverse[:, None, :]) @ model.vectors.T  # (L, k, d)
    bias = model.prior.log() - 0.5 * (inverse @ (rotated**2).T)
    return weight, bias - weight @ center


def heldout_log_likelihood(model: Discriminant, held: Block, shrinkage: Tensor) -> Tensor:
    """Return the mean over held-out rows of log p(x, class), (L,), from their moments.

    Rows of a class that the model has not seen count by their scatter alone. Cost 2 d³.
    """
    seen = classes_of(held)
    gap = (seen.mean - model.mean) @ model.vectors  # (k, d)
    known = (seen.weight > 0) & (model.prior > 0)
    inside = (model.vectors * (seen.within @ model.vectors)).sum(0)  # (d,)
    squares = inside + torch.where(known, seen.weight, torch.zeros_like(seen.weight)) @ gap**2
    lam = spread(model, shrinkage)
    log_prior = torch.where(known, seen.weight * model.prior.log(), torch.zeros_like(seen.weight)).sum()
    fit = -0.5 * ((squares[:, None] / lam).sum(0) / held.weight + (2 * torch.pi * lam).log().sum(0))
    return fit + log_prior / held.weight


def as_difference(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the one discriminant of two classes, second less first; leave more classes as they are."""
    if weight.shape[-2] != 2:
        return weight, bias
    return weight[..., 1:, :] - weight[..., :1, :], bias[..., 1:] - bias[..., :1]
