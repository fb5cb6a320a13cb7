"""Losses of the folds at many overall strengths of one kernel, for bands: no weights, no prior, a loss for each target.

With H = Q diag(1 / (λ + α)) Qᵀ of all rows, held-out errors of a fold F are H_FF⁻¹ (H y)_F = W Qᵀ y, with
W = H_FF⁻¹ Q_F diag(1 / (λ + α)) of shape (f, m). Only W depends on the strength, so that one product serves all of them
and all targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.device import chunks, sent
from torchridge.solvers.kernels.bands import solved
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.kernels.kernel_folds import KernelFolds
from torchridge.solvers.kernels.shared_strengths import shared
from torchridge.solvers.least_squares.spectral import filters
from torchridge.solvers.least_squares.target_scores import SCORES
from torchridge.solvers.moments.folds import Split

# What a combination of strengths may miss of a prediction: float32 only tells proportions apart, and with 12 strengths
# for 24 it does so as well as with 16.
_TOLERANCE = {torch.float32: 3e-4, torch.float64: 1e-11}

# Numbers in the errors that are held at once.
_NUMBERS = 2**20

# The condition of H, in units of what the dtype resolves, up to which H_FF is inverted.
_CONDITION = 1e-2


def fold_losses(scorer: KernelFolds, alpha: Tensor) -> Tensor:
    """Return mean squared errors, mean over folds, (L, t), of strengths (L,) on the host. A wait for a device."""
    problem = scorer.problem
    if problem is None or not scorer.complementary or not problem.eigvals.numel():
        return scorer.by_kernels(SCORES["mse"], alpha).mean(0)
    low, top = torch.stack(problem.eigvals.aminmax()).tolist()
    weakest, eps = float(alpha.min()), torch.finfo(scorer.dtype).eps
    if top + weakest > _CONDITION / eps * (low + weakest):
        return scorer.by_kernels(SCORES["mse"], alpha).mean(0)
    chosen = shared(alpha, low, top, _TOLERANCE[scorer.dtype])
    kept = filters(problem.eigvals, sent(chosen.alpha, problem.eigvals)).T  # (r, m)
    mix = None if chosen.mix is None else sent(chosen.mix.T, problem.eigvals).contiguous()  # (L, r)
    return _of_folds(problem, scorer.rows.y, scorer.splits, kept, mix, len(alpha))


def _of_folds(problem: Dual, y: Tensor, splits: list[Split], kept: Tensor, mix: Tensor | None, L: int) -> Tensor:
    inner, r = _inner(problem, y), len(kept)
    loss = inner.new_zeros(L, y.shape[1])
    many = y.shape[1] >= len(y)
    size = max(1, chunks(y.device) * _NUMBERS // (max(len(f) for _, f in splits) * (r + L)))
    for _, held in splits:
        own, f = problem.basis[held], len(held)
        scaled = torch.cat([own * k for k in kept])  # (r f, m)
        lower, _ = torch.linalg.cholesky_ex((scaled @ own.T).view(r, f, f))
        if many:
            inverse = solved(lower, torch.eye(f, dtype=own.dtype, device=own.device).expand(r, f, f))
            scaled = (inverse @ scaled.view(r, f, -1)).flatten(0, 1)
        for i in range(0, y.shape[1], size):
            part = slice(i, i + size)
            error = (scaled @ inner[:, part]).view(r, f, -1)
            error = (error if many else solved(lower, error)).reshape(r, -1)
            error = error if mix is None else mix @ error
            loss[:, part] += error.view(L, f, -1).square_().mean(1) / len(splits)
    return loss


def _inner(problem: Dual, y: Tensor) -> Tensor:
    """Return Qᵀ y, (m, t), of targets (n, t): about their means if there is an intercept, for the sake of rounding."""
    y = y.detach().to(problem.basis.dtype)
    return problem.basis.T @ (y - y.mean(0) if problem.intercept else y)
