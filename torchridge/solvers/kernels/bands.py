"""Strengths of several bands of features for each target: exact K-fold losses, their derivatives, Newton-like steps.

With K_b the gram matrix of band b, γ_b = 1 / α_b and A = I + Σ γ_b K_b of the training rows of a fold, all centred on
them, a = A⁻¹ y and the held-out errors are e = y_F − Σ γ_b K_b,FT a, with

    ∂e / ∂ log γ_b = −γ_b K_b,FT a + Σ_c γ_c K_c,FT A⁻¹ γ_b K_b a,

exactly. The loss of a target is the mean over folds of its mean squared error; steps are Levenberg and Marquardt's
(Marquardt 1963, doi:10.1137/0111030), many targets at once, each with a factorization of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.moments.folds import Split

# Damping to start from, and by what it falls and rises after a good and a bad step.
_DAMPING, _FALLS, _RISES = 1e-2, 0.2, 8.0

# The longest step in log γ, and the farthest that log γ goes from where a band's kernel has unit mean diagonal.
_LONGEST, FARTHEST = 3.0, 16.0

# A step that gains less than this share of the loss is the last.
_SETTLED = {torch.float32: 1e-6, torch.float64: 1e-10}

# Memory of the matrices of a batch of targets in a step.
_STEP_BYTES = 2**27


class Fold(NamedTuple):
    """Kernels of the bands in one fold, centred on its training rows."""

    train: Tensor  # (B, n_T, n_T)
    across: Tensor  # (B, f, n_T)
    y_train: Tensor  # (n_T, t)
    y_held: Tensor  # (f, t)

    def to(self, dtype: torch.dtype) -> Fold:
        """Return the fold in another dtype."""
        return Fold(*(a.to(dtype) for a in self))

    def of(self, targets: Tensor | slice) -> Fold:
        """Return the fold of some targets."""
        return self._replace(y_train=self.y_train[:, targets], y_held=self.y_held[:, targets])


def folds_of(kernels: Tensor, y: Tensor, splits: list[Split], intercept: bool) -> list[Fold]:
    """Return the folds of kernels (B, n, n) and targets (n, t)."""
    result = []
    for train, held in splits:
        own, across = kernels[:, train][:, :, train], kernels[:, held][:, :, train]
        y_train, y_held = y[train], y[held]
        if intercept:
            mean, center = own.mean(1, keepdim=True), y_train.mean(0)
            across = across - mean - across.mean(2, keepdim=True) + mean.mean(2, keepdim=True)
            own = own - mean - mean.mT + mean.mean(2, keepdim=True)
            y_train, y_held = y_train - center, y_held - center
        result.append(Fold(own, across, y_train, y_held))
    return result


class Local(NamedTuple):
    """The loss of each target at its strengths, and the linear model of its errors there."""

    loss: Tensor  # (t,)
    slope: Tensor  # (t, B) half the gradient in log γ
    curvature: Tensor  # (t, B, B) half of Gauss and Newton's Hessian


def local(folds: list[Fold], log_gamma: Tensor, derivatives: bool = True) -> Local:
    """Return the loss at log γ (t, B), a factorization for each target and fold. Cost n³ / 3 + O(B n²) a target."""
    t, B = log_gamma.shape
    loss, slope = log_gamma.new_zeros(t), log_gamma.new_zeros(t, B)
    curvature = log_gamma.new_zeros(t, B, B)
    gamma = log_gamma.exp()
    for fold in folds:
        share = 1 / (len(folds) * fold.across.shape[1])
        for part in _batches(t, fold.train.shape[1] ** 2, log_gamma.element_size()):
            error, change = _errors(fold.of(part), gamma[part], derivatives)
            loss[part] += share * (error * error).sum(1)
            if change is not None:
                slope[part] += share * (change.mT @ error[:, :, None])[:, :, 0]
                curvature[part] += share * (change.mT @ change)
    return Local(loss, slope, curvature)


def _errors(fold: Fold, gamma: Tensor, derivatives: bool) -> tuple[Tensor, Tensor | None]:
    """Return held-out errors (t, f), and their derivatives in log γ, (t, f, B)."""
    n = fold.train.shape[1]
    matrix = (gamma @ fold.train.flatten(1)).view(-1, n, n)
    matrix.diagonal(dim1=1, dim2=2).add_(1)
    lower, _ = torch.linalg.cholesky_ex(matrix)
    a = torch.cholesky_solve(fold.y_train.T[:, :, None], lower)[:, :, 0]  # (t, n)
    seen = (a @ fold.across.mT) * gamma.T[:, :, None]  # (B, t, f)
    error = fold.y_held.T - seen.sum(0)
    if not derivatives:
        return error, None
    moved = (a @ fold.train) * gamma.T[:, :, None]  # (B, t, n)
    moved = torch.cholesky_solve(moved.permute(1, 2, 0), lower)  # (t, n, B)
    scaled = moved.permute(2, 0, 1)[:, None] * gamma.T[None, :, :, None]  # (B, B', t, n)
    back = torch.einsum("bctn,cfn->tfb", scaled, fold.across)
    return error, back - seen.permute(1, 2, 0)


def _batches(t: int, numbers: int, itemsize: int) -> Iterator[slice]:
    size = max(1, _STEP_BYTES // (2 * numbers * itemsize))
    for i in range(0, t, size):
        yield slice(i, min(i + size, t))


def descend(folds: list[Fold], start: Tensor, low: Tensor, high: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return log γ (t, B) of less loss, and the losses (t,), after at most so many steps within bounds (B,).

    A target stops when a step gains less than `_SETTLED` of its loss. One wait for a device a step.
    """
    best, at = start.clamp(low, high), local(folds, start.clamp(low, high))
    loss, slope, curvature = at.loss.clone(), at.slope.clone(), at.curvature.clone()
    damping = torch.full_like(loss, _DAMPING)
    active = torch.arange(len(loss), device=loss.device)
    for _ in range(steps):
        step = _step(slope[active], curvature[active], damping[active], best[active], low, high)
        tried = (best[active] + step).clamp(low, high)
        own = [f.of(active) for f in folds]
        found = local(own, tried)
        better = found.loss < loss[active]
        gain = torch.where(better, 1 - found.loss / loss[active], 0)
        damping[active] = damping[active] * torch.where(better, _FALLS, _RISES)
        best[active] = torch.where(better[:, None], tried, best[active])
        slope[active] = torch.where(better[:, None], found.slope, slope[active])
        curvature[active] = torch.where(better[:, None, None], found.curvature, curvature[active])
        loss[active] = torch.where(better, found.loss, loss[active])
        active = active[(~better & (damping[active] < 1e6)) | (gain > _SETTLED[loss.dtype])]
        if not len(active):
            break
    return best, loss


def _step(slope: Tensor, curvature: Tensor, damping: Tensor, at: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return damped steps (t, B); a band at a bound that the slope leans on stays there."""
    stuck = ((at <= low) & (slope > 0)) | ((at >= high) & (slope < 0))
    size = curvature.diagonal(dim1=1, dim2=2)
    floor = 1e-8 * size.amax(1, keepdim=True) + torch.finfo(size.dtype).tiny
    matrix = curvature + torch.diag_embed(damping[:, None] * size + floor)
    free = (~stuck).to(slope)
    matrix = matrix * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free)
    step: Tensor = torch.linalg.solve_ex(matrix, -(slope * free)[:, :, None])[0][:, :, 0]
    return step.clamp(-_LONGEST, _LONGEST)
