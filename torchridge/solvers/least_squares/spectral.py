"""One eigendecomposition that serves every strength.

With D = diag(penalty)^½ and D⁻¹ gram D⁻¹ = V diag(s) Vᵀ, the weights at strength α are

    base + transform · (coef / (s + α)),   transform = D⁻¹ V,   coef = transformᵀ cross.

Features of zero penalty are eliminated first, as an intercept is; `base` holds the prior and what they explain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers import krylov
from torchridge.solvers.least_squares.objective import Objective, System, located
from torchridge.solvers.moments.blocks import Block

# Relative residual to which part of a spectrum solves: about what an eigendecomposition leaves.
_PARTIAL_TOLERANCE = 1e-14


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
    if system.penalty is not None and system.free is not None:
        return _with_free_features(system, system.penalty, system.free)
    eigvals, transform = _diagonalize(system.gram, system.penalty)
    return Spectrum(eigvals, transform, transform.T @ system.cross, system.prior, None)


def spectra(systems: list[System]) -> list[Spectrum]:
    """Diagonalize several systems of one size in one call, for which a device is waited for once."""
    if systems[0].free is not None or len(systems) == 1 or systems[0].gram.device.type == "cpu":
        return [spectrum(s) for s in systems]
    roots = [None if s.penalty is None else s.penalty.rsqrt() for s in systems]
    grams = [s.gram if r is None else s.gram * r[:, None] * r for s, r in zip(systems, roots, strict=True)]
    stacked = torch.stack(grams)
    eigvals, vectors = torch.linalg.eigh(stacked)
    vectors = _varying(stacked, vectors)
    result = []
    for values, transform, s, root in zip(eigvals.clamp_min(0), vectors, systems, roots, strict=True):
        transform = transform if root is None else transform * root[:, None]
        result.append(Spectrum(values, transform, transform.T @ s.cross, s.prior, None))
    return result


def _diagonalize(gram: Tensor, penalty: Tensor | None) -> tuple[Tensor, Tensor]:
    if penalty is None:
        eigvals, transform = torch.linalg.eigh(gram)
        return eigvals.clamp_min(0), _varying(gram, transform)
    root = penalty.rsqrt()
    eigvals, transform = torch.linalg.eigh(gram * root[:, None] * root)
    return eigvals.clamp_min(0), _varying(gram, transform) * root[:, None]


def _varying(gram: Tensor, vectors: Tensor) -> Tensor:
    """Return eigenvectors (..., d, m) with exact zeros for constant features, whose rounding would have a weight."""
    return vectors * (gram.diagonal(dim1=-2, dim2=-1) > 0)[..., None]


def partial(system: System, weakest: float, most: int) -> Spectrum | None:
    """Return part of a spectrum, which gives the weights of all strengths from the weakest on; None if it is not small.

    Few targets of well-conditioned features reach few directions. `most` bounds their number, and so what a vain try
    costs: at d / 4 about a tenth of an eigendecomposition.
    """
    if system.free is not None:
        return None
    root = None if system.penalty is None else system.penalty.rsqrt()
    gram = system.gram if root is None else system.gram * root[:, None] * root
    cross = system.cross if root is None else system.cross * root[:, None]
    found = krylov.ritz(lambda v: gram @ v, cross, weakest, _PARTIAL_TOLERANCE, most)
    if found is None:
        return None
    eigvals, vectors = found
    transform = vectors if root is None else vectors * root[:, None]
    return Spectrum(eigvals, transform, vectors.T @ cross, system.prior, None)


def _with_free_features(system: System, penalty: Tensor, u: Tensor) -> Spectrum:
    p = (penalty > 0).nonzero()[:, 0]
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
    """Return the pseudoinverse of a symmetric matrix and its numerical rank, judged on columns of one size."""
    size = gram.diagonal().sqrt()
    size = torch.where(size > 0, size, 1)
    eigvals, eigvecs = torch.linalg.eigh(gram / size / size[:, None])
    keep = eigvals > tolerance(eigvals)
    rank = int(keep.sum())
    if rank == len(size):
        eigvecs = eigvecs / size[:, None]
    else:  # of minimum norm in the units of the columns themselves
        eigvals, eigvecs = torch.linalg.eigh(gram)
        keep = eigvals > tolerance(eigvals)
    scaled = eigvecs[:, keep] / eigvals[keep]
    return scaled @ eigvecs[:, keep].T, rank


def tolerance(eigvals: Tensor) -> Tensor:
    """Return the size under which an eigenvalue of a gram matrix is rounding."""
    if eigvals.shape[-1] == 0:
        return eigvals.new_zeros(eigvals.shape[:-1])
    return max(eigvals.shape[-1], 10) * torch.finfo(eigvals.dtype).eps * eigvals.amax(-1)


class Summary(NamedTuple):
    """What the eigenvalues say of a problem, on the host."""

    top: float  # the largest; 1 if all are zero
    low: float  # the smallest
    least: float  # the smallest above rounding; `top` if there is none
    kept: int  # how many are above rounding
    penalized: int  # how many directions are penalized
    tolerance: float  # what is rounding, in a gram matrix
    free: int  # rank of the features that are not penalized

    @property
    def rank(self) -> int:
        """Return the numerical rank of the rows."""
        return self.kept + self.free

    def undecided(self, weakest: float) -> bool:
        """Return whether eigenvalues are lost in rounding, and the penalty is too weak to decide in their place."""
        return self.kept < self.penalized and weakest <= self.tolerance

    def condition(self, weakest: float) -> float:
        """Return the condition of gram + αD in the metric of the penalty, over the directions that are kept."""
        if not self.kept:
            return 1.0
        lowest = self.least if self.kept == self.penalized or self.undecided(weakest) else 0.0
        return (self.top + weakest) / (lowest + weakest) if lowest + weakest > 0 else math.inf


def summary(spec: Spectrum) -> Summary:
    """Return the summary of a spectrum; one wait for a device."""
    free, penalized = (spec.free.rank, len(spec.free.columns)) if spec.free else (0, 0)
    penalized = spec.transform.shape[0] - penalized
    return bare_summary(spec.eigvals, 0.0 if spec.floor is not None else None, penalized, free)


def bare_summary(eigvals: Tensor, floor: float | None = None, penalized: int | None = None, free: int = 0) -> Summary:
    """Return the summary of eigenvalues that are rounding below `floor`, by default that of a gram matrix."""
    values = eigvals.detach().cpu()
    if not len(values):
        return Summary(1.0, 0.0, 1.0, 0, penalized or 0, 0.0, free)
    limit = float(tolerance(values))
    kept = values[values > (limit if floor is None else floor)]
    top = float(values.amax()) or 1.0
    least = float(kept.amin()) if len(kept) else top
    return Summary(top, float(values.amin()), least, len(kept), penalized or len(values), limit, free)


def scale_of(eigvals: Tensor) -> Tensor:
    """Return the largest eigenvalue, or one: what squares are divided by, so that they stay within range."""
    top = eigvals.amax() if len(eigvals) else eigvals.new_zeros(())
    return torch.where(top > 0, top, torch.ones_like(top))


def rank_of(block: Block, objective: Objective) -> int:
    """Return the numerical rank of the rows, their columns brought to one size. Cost: eigenvalues alone, 4/3 d³."""
    gram = located(block, objective).gram
    size = gram.diagonal()
    scale = torch.where(size > 0, size, torch.inf).rsqrt()
    eigvals = torch.linalg.eigvalsh(gram * scale * scale[:, None])
    return int((eigvals > tolerance(eigvals)).sum())


def filters(eigvals: Tensor, alpha: Tensor, floor: Tensor | None = None) -> Tensor:
    """Return 1 / (s + α), (m, L) for α of shape (L,); zero if s + α is rounding, which gives the minimum norm."""
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
