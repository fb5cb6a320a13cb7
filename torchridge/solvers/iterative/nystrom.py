"""Randomized Nyström approximation of a positive semidefinite operator, and the preconditioner it makes.

Sources: Frangella, Tropp & Udell 2023, doi:10.1137/21M1466244; Tropp, Yurtsever, Udell & Cevher 2017,
arXiv:1706.05736.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Columns that are sketched at once; those that tell whether a sketch is worth its cost, and those of the first one.
_WIDTH = 64
PROBE = 4
FIRST = 16

# Rows of the sketch that are transformed at once, in place.
_ROWS = 2**14

# Under this ratio of (λ_k + α) to (λ_1 + α), float32 vectors would leave more of the leading directions than the
# preconditioner removes.
_SINGLE = 1e-4


class Nystrom(NamedTuple):
    """G ≈ U diag(λ) Uᵀ, of rank k."""

    vectors: Tensor  # U, (m, k)
    eigvals: Tensor  # λ, (k,) descending, float64

    @property
    def rank(self) -> int:
        """K."""
        return len(self.eigvals)


def empty(m: int, device: torch.device) -> Nystrom:
    """Return the approximation of rank zero, which preconditions nothing."""
    return Nystrom(
        torch.zeros(m, 0, dtype=torch.float64, device=device), torch.zeros(0, dtype=torch.float64, device=device)
    )


class Sketch:
    """Y = G Ω for Gaussian Ω, which grows; Ω itself is not kept, only Ωᵀ Y."""

    def __init__(self, product: Callable[[Tensor], Tensor], m: int, dtype: torch.dtype, device: torch.device) -> None:
        self.product, self.m, self.dtype = product, m, dtype
        self.generator = torch.Generator(device).manual_seed(0)
        self.images: list[Tensor] = []
        self.core = torch.zeros(0, 0, dtype=torch.float64, device=device)

    @property
    def rank(self) -> int:
        """Columns that have been sketched."""
        return self.core.shape[0]

    def grow(self, columns: int) -> None:
        """Sketch so many columns more."""
        while columns > 0:
            self._add(min(columns, _WIDTH))
            columns -= _WIDTH

    def _add(self, columns: int) -> None:
        device, k = self.core.device, self.rank
        omega = torch.randn(self.m, columns, generator=self.generator, dtype=torch.float32, device=device)
        image = self.product(omega.to(self.dtype)).double()
        omega = omega.double()
        across = [omega.T @ other for other in [*self.images, image]]
        core = torch.zeros(k + columns, k + columns, dtype=torch.float64, device=device)
        core[:k, :k] = self.core
        core[k:] = torch.cat(across, 1)
        core[:k, k:] = core[k:, :k].T
        core[k:, k:] = (core[k:, k:] + core[k:, k:].T) / 2
        self.core = core
        self.images.append(image)

    def _root(self) -> Tensor:
        """Return C with C Cᵀ = (ΩᵀGΩ)⁻¹ over the directions that rounding leaves, (k, r)."""
        eigvals, eigvecs = torch.linalg.eigh(self.core)
        rounding = torch.finfo(self.dtype).eps * max(10, self.rank)
        kept = eigvals > rounding * eigvals.abs().amax()
        root: Tensor = eigvecs[:, kept] * eigvals[kept].rsqrt()
        return root

    def eigvals(self) -> Tensor:
        """Return the eigenvalues of the approximation, descending, from products of the sketch alone."""
        root = self._root()
        squares = torch.cat([torch.cat([a.T @ b for b in self.images], 1) for a in self.images])
        values: Tensor = torch.linalg.eigvalsh(root.T @ (squares @ root))
        return values.clamp_min(0).flip(0)

    def finish(self) -> Nystrom:
        """Return the approximation; the memory of the sketch becomes that of its vectors."""
        root = self._root()
        factor = torch.cat(self.images, 1) if len(self.images) > 1 else self.images[0]
        self.images = []
        factor = _times(factor, root)
        eigvals, right = torch.linalg.eigh(factor.T @ factor)
        eigvals, right = eigvals.flip(0), right.flip(1)
        kept = eigvals > torch.finfo(torch.float64).eps * 1e2 * eigvals[:1]
        eigvals = eigvals[kept]
        return Nystrom(_times(factor, right[:, kept] * eigvals.rsqrt()), eigvals)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in the memory of left, if right is no wider."""
    for start in range(0, left.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        left[rows, : right.shape[1]] = left[rows] @ right
    return left[:, : right.shape[1]]


def packed(approximation: Nystrom, weakest: float) -> Nystrom:
    """Return the approximation with vectors in float32, if that is precise enough at the weakest strength."""
    vectors, eigvals = approximation
    if approximation.rank and float((eigvals[-1] + weakest) / (eigvals[0] + weakest)) > _SINGLE:
        return Nystrom(vectors.float().contiguous(), eigvals)
    return Nystrom(vectors.contiguous(), eigvals)


def precondition(approximation: Nystrom, alpha: Tensor, share: Tensor, r: Tensor) -> Tensor:
    """Return P⁻¹ r for P = U diag((λ + α) / (λ_k + α)) Uᵀ + I − U Uᵀ; column c is for strength α_c and G times share_c.

    Cost: 4 m k a column.
    """
    if approximation.rank == 0:
        return r.clone()
    vectors, eigvals = approximation
    spectrum = eigvals[:, None] * share  # (k, c)
    gain = 1 - (spectrum[-1] + alpha) / (spectrum + alpha).clamp_min(1e-300)
    inner = vectors.T @ r.to(vectors.dtype)
    return r - (vectors @ (gain * inner).to(vectors.dtype))
