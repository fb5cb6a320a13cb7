"""Strengths of several bands of features for each target: exact K-fold losses, their derivatives, Newton-like steps.

With K_b the gram matrix of band b, γ_b = 1 / α_b and A = I + Σ γ_b K_b of the training rows of a fold, all centred on
them, a = A⁻¹ y and the held-out errors are e = y_F − Σ γ_b K_b,FT a, with

    ∂e / ∂ log γ_b = −γ_b K_b,FT a + Σ_c γ_c K_c,FT A⁻¹ γ_b K_b a,

exactly. The loss of a target is the mean over folds of its mean squared error; steps are Levenberg and Marquardt's
(Marquardt 1963, doi:10.1137/0111030), many targets at once, each with a factorization of its own.

Steps are taken in log(γ_b + c), c a share of Σ γ_b: for a band that explains much that is log γ_b, and for one that
explains nothing yet it is γ_b itself. In log γ_b the loss is flat there, and a band would take many steps to come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.device import chunks
from torchridge.solvers.moments.folds import Split

# Damping to start from, and by what it falls and rises after a good and a bad step. On problems of 2 to 5 bands, three
# steps from 0.1 to 0.4 came as close as each other, and closer than from 0.01.
_DAMPING, _FALLS, _RISES = 0.2, 0.2, 8.0

# The share c of Σ γ_b: from 0.1 to 0.6 steps come equally close.
_OFFSET = 0.3

# The longest step, and the farthest that log γ goes from where a band's kernel has unit mean diagonal.
_LONGEST, FARTHEST = 3.0, 16.0

# A target settles when a step promises less than this share of its loss. In float32 one more is taken in the end.
_SETTLED = {torch.float32: 3e-4, torch.float64: 1e-10}

# Memory of the matrices of a batch of targets in a step, and as much again for their factors.
_STEP_BYTES = 2**23


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


class Factors:
    """Memory for the matrices of a batch of targets and their factors, which the batches and folds take in turn.

    Fresh memory for each would be asked of the system each time; its first use takes as long as the factorizations.
    """

    def __init__(self, t: int, n: int, like: Tensor) -> None:
        self.t, self.size = t, min(t, max(1, chunks(like.device) * _STEP_BYTES // (n * n * like.element_size())))
        self.matrix, self.lower = like.new_empty(2, self.size * n * n)
        self.info = torch.empty(self.size, dtype=torch.int32, device=like.device)

    def batches(self) -> Iterator[slice]:
        """Yield runs of targets that fit."""
        for i in range(0, self.t, self.size):
            yield slice(i, min(i + self.size, self.t))

    def of(self, gamma: Tensor, kernels: Tensor) -> Tensor:
        """Return the Cholesky factors of I + Σ γ_b K_b for γ (m, B) and K (B, n, n), (m, n, n), until the next call."""
        m, n = len(gamma), kernels.shape[1]
        matrix = self.matrix[: m * n * n].view(m, n, n)
        lower: Tensor = self.lower[: m * n * n].view(m, n, n).mT  # by columns, as LAPACK wants it
        torch.mm(gamma, kernels.flatten(1), out=matrix.view(m, -1))
        matrix.diagonal(dim1=1, dim2=2).add_(1)
        torch.linalg.cholesky_ex(matrix, out=(lower, self.info[:m]))
        return lower


def solved(lower: Tensor, right: Tensor) -> Tensor:
    """Return A⁻¹ right, (m, n, r), from Cholesky factors of A. `torch.cholesky_solve` would copy these first."""
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return whole


def local(folds: list[Fold], log_gamma: Tensor, derivatives: bool = True) -> Local:
    """Return the loss at log γ (t, B), a factorization for each target and fold. Cost n³ / 3 + O(B n²) a target."""
    t, B = log_gamma.shape
    loss, slope = log_gamma.new_zeros(t), log_gamma.new_zeros(t, B)
    curvature = log_gamma.new_zeros(t, B, B)
    gamma = log_gamma.exp()
    factors = Factors(t, max(f.train.shape[1] for f in folds), log_gamma)
    for fold in folds:
        share = 1 / (len(folds) * fold.across.shape[1])
        for part in factors.batches():
            error, change = _errors(fold.of(part), gamma[part], factors, derivatives)
            loss[part] += share * (error * error).sum(1)
            if change is not None:
                slope[part] += share * (change.mT @ error[:, :, None])[:, :, 0]
                curvature[part] += share * (change.mT @ change)
    return Local(loss, slope, curvature)


def _errors(fold: Fold, gamma: Tensor, factors: Factors, derivatives: bool) -> tuple[Tensor, Tensor | None]:
    """Return held-out errors (t, f), and their derivatives in log γ, (t, f, B)."""
    lower = factors.of(gamma, fold.train)
    a = solved(lower, fold.y_train.T[:, :, None])[:, :, 0]  # (t, n)
    seen = (a @ fold.across.mT) * gamma.T[:, :, None]  # (B, t, f)
    error = fold.y_held.T - seen.sum(0)
    if not derivatives:
        return error, None
    moved = (a @ fold.train) * gamma.T[:, :, None]  # (B, t, n)
    moved = solved(lower, moved.permute(1, 2, 0)).permute(2, 0, 1)  # (B', t, n)
    back = sum((moved @ across.T) * g[:, None] for across, g in zip(fold.across, gamma.T, strict=True))  # (B', t, f)
    return error, (back - seen).permute(1, 2, 0)


class Descent(NamedTuple):
    """Where targets are on their way to less loss."""

    log_gamma: Tensor  # (t, B)
    loss: Tensor  # (t,)
    slope: Tensor  # (t, B)
    curvature: Tensor  # (t, B, B)
    damping: Tensor  # (t,)

    def of(self, targets: Tensor) -> Descent:
        """Return some targets."""
        return Descent(*(a[targets] for a in self))


def descend(folds: list[Fold], start: Tensor, low: Tensor, high: Tensor, steps: int) -> tuple[Descent, Tensor]:
    """Go from log γ (t, B) to less loss by at most so many steps within bounds (B,); with where the next would lead.

    A target stops when a step promises less than `_SETTLED` of its loss. One wait for a device a step.
    """
    begin = start.clamp(low, high)
    found = local(folds, begin)
    at = Descent(begin, *found, torch.full_like(found.loss, _DAMPING))
    ahead, promised = _ahead(at, low, high)
    for _ in range(steps):
        active = ((promised > _SETTLED[start.dtype] * at.loss) & (at.damping < 1e6)).nonzero()[:, 0]
        if not len(active):
            break
        after = _moved([f.of(active) for f in folds], at.of(active), ahead[active])
        for whole, part in zip(at, after, strict=True):
            whole[active] = part
        ahead[active], promised[active] = _ahead(after, low, high)
    return at, ahead


def _moved(folds: list[Fold], at: Descent, tried: Tensor) -> Descent:
    """Return where targets are after a step to log γ (t, B), which is taken if it gains."""
    found = local(folds, tried)
    better = found.loss < at.loss
    damping = at.damping * torch.where(better, _FALLS, _RISES)
    arrived = Descent(tried, *found, damping)
    kept = at._replace(damping=damping)
    return Descent(
        *(torch.where(better.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(arrived, kept, strict=True))
    )


def _ahead(at: Descent, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log γ (t, B) that a damped step leads to, and the loss that it promises to save, (t,).

    A band at a bound that the slope leans on stays there.
    """
    gamma = at.log_gamma.exp()
    offset = _OFFSET * gamma.sum(1, keepdim=True)
    stretch = 1 + offset / gamma  # d log γ / d log(γ + c)
    stuck = ((at.log_gamma <= low) & (at.slope > 0)) | ((at.log_gamma >= high) & (at.slope < 0))
    stretch = torch.where(stuck, 0, stretch)
    slope, curvature = at.slope * stretch, at.curvature * stretch[:, :, None] * stretch[:, None, :]
    step = torch.where(stuck, 0, _step(slope, curvature, at.damping))
    gamma = torch.maximum((gamma + offset) * step.exp() - offset, low.exp())
    return torch.where(stuck, at.log_gamma, gamma.log().clamp(low, high)), -(slope * step).sum(1)


def _step(slope: Tensor, curvature: Tensor, damping: Tensor) -> Tensor:
    size = curvature.diagonal(dim1=1, dim2=2)
    floor = 1e-8 * size.amax(1, keepdim=True) + torch.finfo(size.dtype).tiny
    matrix = curvature + torch.diag_embed(damping[:, None] * size + floor)
    step: Tensor = torch.linalg.solve_ex(matrix, -slope[:, :, None])[0][:, :, 0]
    return step.clamp(-_LONGEST, _LONGEST)
