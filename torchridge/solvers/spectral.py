"""One eigendecomposition that serves every strength.

With D = diag(penalty)^½ and D⁻¹ gram D⁻¹ = V diag(s) Vᵀ, the weights at strength α are

    base + transform · (coef / (s + α)),   transform = D⁻¹ V,   coef = transformᵀ cross.

Features of zero penalty are eliminated first, as an intercept is; `base` holds the prior and what they explain.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.objective import System


class Free(NamedTuple):
    """The features of zero penalty."""

    columns: Tensor  # (q,)
    inverse: Tensor  # (q, q) pseudoinverse of their gram
    rank: int


class Spectrum(NamedTuple):
    """A system of which every strength is solved in O(d t)."""

    eigvals: Tensor  # (m,) ascending, not negative
    transform: Tensor  # (d, m)
    coef: Tensor  # (m, t)
    base: Tensor | None  # (d, t)
    free: Free | None
    floor: Tensor | None = None  # () what s + α must exceed; None for that of a gram matrix, `tolerance`


def spectrum(system: System) -> Spectrum:
    """Diagonalize a system. Cost about 9 d³ on top of d² t."""
    if system.penalty is not None and bool((system.penalty == 0).any()):
        return _with_free_features(system, system.penalty)
    eigvals, transform = _diagonalize(system.gram, system.penalty)
    return Spectrum(eigvals, transform, transform.T @ system.cross, system.prior, None)


def _diagonalize(gram: Tensor, penalty: Tensor | None) -> tuple[Tensor, Tensor]:
    if penalty is None:
        eigvals, transform = torch.linalg.eigh(gram)
    else:
        root = penalty.rsqrt()
        eigvals, transform = torch.linalg.eigh(gram * root[:, None] * root)
        transform = transform * root[:, None]
    return eigvals.clamp_min(0), transform


def _with_free_features(system: System, penalty: Tensor) -> Spectrum:
    held = penalty > 0
    u, p = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    gram, cross = system.gram, system.cross
    inverse, rank = pseudoinverse(gram[u][:, u])
    share = inverse @ gram[u][:, p]  # (q, m): what the free features explain of the others
    eigvals, inner = _diagonalize(gram[p][:, p] - (gram[p][:, u] @ share), penalty[p])
    transform = torch.zeros(gram.shape[0], len(p), dtype=gram.dtype, device=gram.device)
    transform[p], transform[u] = inner, -(share @ inner)
    base = torch.zeros_like(cross) if system.prior is None else system.prior.clone()
    base[u] += inverse @ cross[u]
    return Spectrum(eigvals, transform, transform.T @ cross, base, Free(u, inverse, rank))


def pseudoinverse(gram: Tensor) -> tuple[Tensor, int]:
    """Return the pseudoinverse of a symmetric matrix and its numerical rank."""
    eigvals, eigvecs = torch.linalg.eigh(gram)
    keep = eigvals > tolerance(eigvals)
    scaled = eigvecs[:, keep] / eigvals[keep]
    return scaled @ eigvecs[:, keep].T, int(keep.sum())


def tolerance(eigvals: Tensor) -> Tensor:
    """Return the size under which an eigenvalue of a gram matrix is rounding."""
    if eigvals.shape[-1] == 0:
        return eigvals.new_zeros(eigvals.shape[:-1])
    return max(eigvals.shape[-1], 10) * torch.finfo(eigvals.dtype).eps * eigvals.amax(-1)


def floor(spec: Spectrum) -> Tensor:
    """Return the size under which an eigenvalue of this spectrum is rounding."""
    return tolerance(spec.eigvals) if spec.floor is None else spec.floor


def scale_of(eigvals: Tensor) -> Tensor:
    """Return the largest eigenvalue, or one: what squares are divided by, so that they stay within range."""
    top = eigvals.amax() if len(eigvals) else eigvals.new_zeros(())
    return torch.where(top > 0, top, torch.ones_like(top))


def filters(eigvals: Tensor, alpha: Tensor, floor: Tensor | None = None) -> Tensor:
    """Return 1 / (s + α), (m, L) for α of shape (L,); zero where s + α is rounding, which gives the minimum norm."""
    total = eigvals[:, None] + alpha
    floor = tolerance(eigvals) if floor is None else floor
    return torch.where(total > floor, 1 / total, torch.zeros_like(total))


def weights(spec: Spectrum, alpha: Tensor) -> Tensor:
    """Return weights for each strength and target, (d, L, t). Cost d m L t."""
    scaled = filters(spec.eigvals, alpha, spec.floor)[:, :, None] * spec.coef[:, None, :]  # (m, L, t)
    return _back(spec, scaled)


def weights_per_target(spec: Spectrum, alpha: Tensor) -> Tensor:
    """Return weights for one strength a target, alpha (t,), as (d, 1, t)."""
    return _back(spec, (filters(spec.eigvals, alpha, spec.floor) * spec.coef)[:, None, :])


def _back(spec: Spectrum, scaled: Tensor) -> Tensor:
    m, L, t = scaled.shape
    weight = (spec.transform @ scaled.reshape(m, L * t)).reshape(-1, L, t)
    return weight if spec.base is None else weight + spec.base[:, None, :]


def dof(spec: Spectrum, alpha: Tensor) -> Tensor:
    """Return the effective degrees of freedom Σ s / (s + α), and one for each free feature; (L,)."""
    return (spec.eigvals[:, None] * filters(spec.eigvals, alpha, spec.floor)).sum(0) + (
        spec.free.rank if spec.free else 0
    )


def unit_variance(spec: Spectrum, alpha: Tensor) -> Tensor:
    """Return the sampling variance of each weight for unit noise, diag(A⁻¹ gram A⁻¹), (d, L)."""
    kept = filters(spec.eigvals, alpha, spec.floor)
    variance = (spec.transform**2) @ (spec.eigvals[:, None] * kept * kept)  # s / (s + α) first: no overflow
    if spec.free:
        variance[spec.free.columns] += spec.free.inverse.diagonal()[:, None]
    return variance
