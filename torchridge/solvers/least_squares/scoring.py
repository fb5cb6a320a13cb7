"""How well each strength predicts: GCV, evidence, leave-one-out, and held-out folds, from moments if they suffice.

All of them return errors of shape (L, t): L strengths, t targets; lower is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.device import sent
from torchridge.solvers.least_squares import spectral
from torchridge.solvers.least_squares.objective import Objective, feature_variance, located, residual_moments, system
from torchridge.solvers.least_squares.spectral import Spectrum, filters
from torchridge.solvers.moments.blocks import Block, about
from torchridge.solvers.moments.one_pass import chunk_rows
from torchridge.solvers.moments.rows import Rows

# Shrinkage factors lie in (0, 1]; what their low-rank basis leaves out is under this.
_BASIS_TOLERANCE = 1e-12

# Under this many columns (strengths × targets) the basis costs more than it saves.
_DIRECT_COLUMNS = 256

# Numbers of one chunk of rows in leave-one-out: enough for a product to be worth two threads.
_CACHED_NUMBERS = 2**21

# Targets scored at once, so that the basis of their weights stays in the working memory.
_TARGET_BLOCK = 128


class Paths(NamedTuple):
    """Weights of all strengths as combinations: weight(α_l) = base + transform · (basis · mix[:, l] ∘ start)."""

    basis: Tensor  # (m, r)
    mix: Tensor | None  # (r, L); None if the basis is the strengths themselves
    start: Tensor  # (m, t) weights at the weakest strength, in eigencoordinates


def paths(spectra: list[Spectrum], eigvals: list[Tensor], host: Tensor) -> list[Paths]:
    """Return the weights of all strengths α (L,) in a basis of r functions of the eigenvalue, for several spectra.

    The matrix of shrinkage relative to the weakest strength, (s + α_min) / (s + α), is numerically of low rank: r is
    about 15 for a hundred strengths, whatever the number of features. It is found on the host, where `eigvals`, K of
    (m,), and `host`, the strengths, lie.
    """
    alpha = sent(host, spectra[0].coef)
    weakest = alpha.min().reshape(1)
    starts = [filters(s.eigvals, weakest) * s.coef for s in spectra]
    if alpha.shape[0] * spectra[0].coef.shape[1] <= _DIRECT_COLUMNS:
        ratios = [(s.eigvals[:, None] + weakest) * filters(s.eigvals, alpha) for s in spectra]  # (m, L)
        return [Paths(ratio, None, start) for ratio, start in zip(ratios, starts, strict=True)]
    return [_low_rank(e, s, host) for e, s in zip(eigvals, starts, strict=True)]


def _low_rank(eigvals: Tensor, start: Tensor, host: Tensor) -> Paths:
    shrinkage = (eigvals[:, None] + host.min()) * filters(eigvals, host)  # (m, L)
    left, sigma, right = torch.linalg.svd(shrinkage, full_matrices=False)
    r = max(1, int((sigma > _BASIS_TOLERANCE * sigma[0]).sum()))
    return Paths(sent(left[:, :r] * sigma[:r], start), sent(right[:r], start), start)


def heldout_squares(
    spectra: list[Spectrum],
    eigvals: list[Tensor],
    train: list[Block],
    held: list[Block],
    objective: Objective,
    alpha: Tensor,
) -> Tensor:
    """Return Σ s (y − ŷ)² over held-out rows for every fold, strength and target, from the moments of both parts.

    With the moments S, C, yy of the held-out rows about the centre of the training rows,
    Σ s (y − Wx − b)² = yy − 2 tr(Wᵀ C) + tr(Wᵀ S W). Cost d² (m + r t) and d t (L + r²) a fold, r the rank of `paths`.
    """
    if len(spectra[0].eigvals) == 0:  # every feature is free: one answer for all strengths
        return torch.stack(
            [
                _seen(s, a, b, objective)[2].clamp_min(0).repeat(len(alpha), 1)
                for s, a, b in zip(spectra, train, held, strict=True)
            ]
        )
    each = zip(spectra, train, held, paths(spectra, eigvals, alpha), strict=True)
    return torch.stack([_heldout(spec, *_seen(spec, a, b, objective), path) for spec, a, b, path in each])


def _seen(spec: Spectrum, train: Block, held: Block, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """Return gram, cross and yy of the held-out rows about the centre of the training rows, less what `base` fits."""
    center = located(train, objective)
    seen = about(held, center.mean_x, center.mean_y)
    cross, yy = (seen.cross, seen.yy) if spec.base is None else residual_moments(seen, spec.base)
    return seen.gram, cross, yy


def _heldout(spec: Spectrum, gram: Tensor, cross: Tensor, yy: Tensor, path: Paths) -> Tensor:
    linear, quadratic = _products(spec, gram, cross, path)
    return (yy - 2 * linear + quadratic).clamp_min(0)


def heldout_products(
    spectra: list[Spectrum], eigvals: list[Tensor], held: list[Block], alpha: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield sums of products of predictions, about their mean, with held-out targets and with themselves, (L, t).

    Once for each fold, from the moments of both parts: with the moments S, C of the held-out rows about their own mean,
    wᵀC and wᵀSw. Cost as `heldout_squares`.
    """
    for spec, seen, path in zip(spectra, held, paths(spectra, eigvals, alpha), strict=True):
        linear, own = _products(spec, seen.gram, seen.cross, path)
        if spec.base is not None:
            fitted = seen.gram @ spec.base
            own = own + 2 * _products(spec, seen.gram, fitted, path)[0] + (spec.base * fitted).sum(0)
            linear = linear + (spec.base * seen.cross).sum(0)
        yield linear, own


def _products(spec: Spectrum, gram: Tensor, cross: Tensor, path: Paths) -> tuple[Tensor, Tensor]:
    """Return wᵀ cross and wᵀ gram w of the weights w less `base`, for every strength and target, (L, t) each."""
    cross = spec.transform.T @ cross  # (m, t)
    transform: Tensor | None = spec.transform
    inner = gram
    if path.basis.shape[1] * cross.shape[1] > spec.transform.shape[1]:  # more columns than eigenvectors: rotate once
        transform, inner = None, spec.transform.T @ (gram @ spec.transform)  # (m, m)
    result = []
    for i in range(0, cross.shape[1], _TARGET_BLOCK):
        block = slice(i, i + _TARGET_BLOCK)
        result.append(_quadratic(path._replace(start=path.start[:, block]), transform, inner, cross[:, block]))
    return torch.cat([a for a, _ in result], 1), torch.cat([b for _, b in result], 1)


def _quadratic(path: Paths, transform: Tensor | None, inner: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """Return wᵀ cross and wᵀ inner w for every strength and target, (L, t); `inner` is in the space of `transform`."""
    linear = path.basis.T @ (path.start * cross)  # (r, t)
    # Target-major, so that the r weights of one target lie together for the small products below.
    weight = path.start.T[:, None, :] * path.basis.T.contiguous()  # (t, r, m)
    if transform is not None:
        weight = (weight.flatten(0, 1) @ transform.T).reshape(*weight.shape[:2], -1)  # (t, r, d)
    product = (weight.flatten(0, 1) @ inner).view_as(weight)
    if path.mix is None:
        return linear, (weight * product).sum(2).T
    pairs = weight @ product.mT  # (t, r, r)
    both = (path.mix[:, None, :] * path.mix[None, :, :]).flatten(0, 1)  # (r², L)
    return path.mix.T @ linear, both.T @ pairs.flatten(1).T


def heldout_squares_by_prediction(
    weight: Tensor, center: Tensor, target_center: Tensor, rows: Rows, index: Tensor
) -> Tensor:
    """Return Σ s (y − ŷ)² over the rows `index`, (L, t), weights (d, L, t): slower, and exact near a perfect fit."""
    d, L, t = weight.shape
    total = torch.zeros(L, t, dtype=weight.dtype, device=weight.device)
    flat = weight.flatten(1)
    size = chunk_rows(d, L * t, weight.dtype.itemsize)
    for start in range(0, index.shape[0], size):
        part = index[start : start + size]
        x = rows.X[part].detach().to(weight) - center
        y = rows.y[part].detach().to(weight) - target_center
        error = y[:, None, :] - (x @ flat).reshape(-1, L, t)
        square = (
            error**2 if rows.sample_weight is None else error**2 * rows.sample_weight[part].to(weight)[:, None, None]
        )
        total += square.sum(0)
    return total


def residual_squares(spec: Spectrum, block: Block, objective: Objective, alpha: Tensor) -> Tensor:
    """Return Σ s (y − ŷ)² over the training rows, (L, t). Cost m t L."""
    filtered, top = filters(spec.eigvals, alpha, spec.floor), spectral.scale_of(spec.eigvals)
    # Scaled by the largest eigenvalue, so that no square leaves the range of numbers.
    explained = (top * filtered * (1 + alpha * filtered)).T @ ((spec.coef / top.sqrt()) ** 2)
    return (explainable(spec, block, objective) - explained).clamp_min(0)


def residual_squares_per_target(spec: Spectrum, block: Block, objective: Objective, alpha: Tensor) -> Tensor:
    """Return the same for one strength a target, alpha (t,), as (1, t)."""
    filtered, top = filters(spec.eigvals, alpha, spec.floor), spectral.scale_of(spec.eigvals)
    explained = (top * filtered * (1 + alpha * filtered) * (spec.coef / top.sqrt()) ** 2).sum(0)
    return (explainable(spec, block, objective) - explained).clamp_min(0)[None]


def explainable(spec: Spectrum, block: Block, objective: Objective) -> Tensor:
    """Return what the prior and the free features leave of Σ s (y − ȳ)², (t,)."""
    problem = system(block, objective)
    if spec.free is None:
        return problem.yy
    cross = problem.cross[spec.free.columns]
    return problem.yy - (cross * (spec.free.inverse @ cross)).sum(0)


def volume(eigvals: Tensor, alpha: Tensor) -> Tensor:
    """Return log det(I + X Xᵀ / α), (L,)."""
    return torch.log1p(eigvals[:, None] / alpha).sum(0)


def leave_one_out(
    spec: Spectrum, block: Block, objective: Objective, rows: Rows, alpha: Tensor, tiny: float
) -> tuple[Tensor, Tensor]:
    """Return Σ s e² over exact leave-one-out residuals e_i / (1 − h_i), (L, t), and the rows that are not in it.

    Those are the ones whose 1 − h_i is under `tiny` and so rounding. Cost n d m and n m L t.
    """
    L, t = alpha.shape[0], spec.coef.shape[1]
    total, left = torch.zeros(L, t, dtype=spec.coef.dtype, device=spec.coef.device), []
    for part, error, share in leave_one_out_residuals(spec, block, objective, rows, alpha):
        left.append(share.amin(1))
        square = error.square_()
        if rows.sample_weight is not None:
            square *= rows.sample_weight[part].detach().to(error)[:, None, None]
        total += square.masked_fill_((left[-1] < tiny)[:, None, None], 0).sum(0)
    return total, (torch.cat(left) < tiny).nonzero()[:, 0]


def leave_one_out_residuals(
    spec: Spectrum, block: Block, objective: Objective, rows: Rows, alpha: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield runs of rows, their leave-one-out residuals e_i / (1 − h_i), (run, L, t), and 1 − h_i, (run, L).

    A weight of zero has h = 0.
    """
    center = located(block, objective)
    filtered = filters(spec.eigvals, alpha)  # (m, L)
    L, t = alpha.shape[0], spec.coef.shape[1]
    inner = (filtered[:, :, None] * spec.coef[:, None, :]).reshape(-1, L * t)
    # Small means are taken off after the product: off z rather than off a copy of x.
    shifted = spec.base is not None or bool((center.mean_x**2 > feature_variance(block)).any())
    offset = spec.transform.mT @ center.mean_x
    size = max(256, _CACHED_NUMBERS // (spec.transform.shape[0] + L * t))
    z = inner.new_empty(spec.transform.shape[1], min(size, rows.X.shape[0]))
    for start in range(0, rows.X.shape[0], size):
        part = slice(start, start + size)
        x = rows.X[part].detach().to(inner)
        x = x - center.mean_x if shifted else x
        y = rows.y[part].detach().to(inner) - center.mean_y
        y = y if spec.base is None else y - (x @ spec.base)
        # (m, chunk): products with few strengths are three times as fast this way round.
        z = torch.mm(spec.transform.mT, x.mT, out=z if len(x) == z.shape[1] else z.new_empty(len(z), len(x)))
        z = z if shifted else z.sub_(offset[:, None])
        error = y[:, None, :] - (inner.mT @ z).mT.reshape(-1, L, t)
        leverage = (filtered.mT @ z.mul_(z)).mT + _fixed_leverage(spec, block, objective, x)
        if rows.sample_weight is not None:
            leverage = leverage * rows.sample_weight[part].detach().to(inner)[:, None]
        left = 1 - leverage
        yield part, error / left.clamp_min(torch.finfo(inner.dtype).eps)[:, :, None], left


def _fixed_leverage(spec: Spectrum, block: Block, objective: Objective, x: Tensor) -> Tensor:
    """Return the leverage of the intercept and of the features that are not penalized, (chunk, 1)."""
    fixed = torch.zeros_like(x[:, :1])
    if objective.intercept:
        fixed = fixed + 1 / block.weight
    if spec.free is not None:
        free = x[:, spec.free.columns]
        fixed = fixed + (free * (free @ spec.free.inverse)).sum(1, keepdim=True)
    return fixed


def train_spectrum(block: Block, objective: Objective) -> Spectrum:
    """Return the spectrum of one training part."""
    return spectral.spectrum(system(block, objective))
