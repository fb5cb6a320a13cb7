"""Part of an eigendecomposition: the directions of G that given right-hand sides reach, by products with G alone.

For right-hand sides B (m, t) the orthonormal basis V of span{B, G B, G² B, …} gives (T + α) Z = Vᵀ B with T = Vᵀ G V:
V Z solves (G + α) U = B on it for every α at once, and the residual is what the next block adds. Sources: O'Leary 1980,
doi:10.1016/0024-3795(80)90247-5 (blocks); Frommer & Maass 1999, doi:10.1137/S1064827596313310 (shifts).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A direction of which orthogonalization leaves less than this is rounding.
_NOTHING = 1e-12

# Growth of the basis after which it is solved in anew.
_LOOK = 1.15

Product = Callable[[Tensor], Tensor]


class Basis:
    """V as far as it is built, and its next block: G V = V T + (block · coupling) at the last columns of V."""

    def __init__(self, rhs: Tensor, most: int) -> None:
        self.store = rhs.new_empty(most, len(rhs))  # Vᵀ, row by row, as far as it is used
        self.projected = rhs.new_zeros(most, most)  # T
        self.block, self.start = _orthonormal(rhs)  # (m, b), (b, t)
        self.size = 0
        self.coupling = self.block.new_zeros(self.block.shape[1], 0)

    def extend(self, product: Product) -> None:
        """Take the next block into V, at the cost of one product."""
        old, self.size = self.size, self.size + self.block.shape[1]
        self.store[old : self.size] = self.block.mT
        vectors, new = self.store[: self.size], slice(old, self.size)
        image = product(self.block)
        along = vectors @ image
        image = image - vectors.mT @ along
        again = vectors @ image  # once is not enough to be orthogonal to rounding
        image = image - vectors.mT @ again
        along += again
        along[new] = (along[new] + along[new].mT) / 2
        self.projected[: self.size, new], self.projected[new, : self.size] = along, along.mT
        self.block, self.coupling = _orthonormal(image, float(along.abs().amax()))

    def residual(self, alpha: float, size: Tensor) -> Tensor:
        """Return the relative residuals (t,) at one strength, without eigenvectors."""
        system = self.inside + alpha * torch.eye(self.size, dtype=size.dtype, device=size.device)
        z = torch.linalg.solve(system, self._right())
        left = torch.linalg.vector_norm(self.coupling @ z[self.size - self.coupling.shape[1] :], dim=0)
        return torch.where(size > 0, left / size.clamp_min(torch.finfo(size.dtype).tiny), 0)

    @property
    def inside(self) -> Tensor:
        """T, (k, k)."""
        return self.projected[: self.size, : self.size]

    def _right(self) -> Tensor:
        right = self.start.new_zeros(self.size, self.start.shape[1])
        right[: len(self.start)] = self.start
        return right


def ritz(product: Product, rhs: Tensor, weakest: float, tol: float, most: int) -> tuple[Tensor, Tensor] | None:
    """Return Ritz values (k,) and vectors (m, k) of G that solve (G + α) U = B to `tol` at each α ≥ `weakest`.

    None if k would pass `most`, at a cost of about most² (m + 3 most) multiply-adds and the products.
    """
    size = torch.linalg.vector_norm(rhs, dim=0)
    basis = Basis(torch.where(size > 0, rhs / size, 0), most)
    size, looked = torch.where(size > 0, 1.0, 0.0), 0
    while basis.block.shape[1] and basis.size + basis.block.shape[1] <= most:
        basis.extend(product)
        done = not basis.block.shape[1]
        if done or basis.size >= _LOOK * looked:
            looked = basis.size
            if done or bool((basis.residual(weakest, size) <= tol).all()):
                eigvals, vectors = torch.linalg.eigh(basis.inside)
                return eigvals.clamp_min(0), basis.store[:looked].mT @ vectors
    return None


def _orthonormal(columns: Tensor, scale: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return orthonormal columns (m, b) that span `columns` (m, t) to rounding, and their coefficients (b, t)."""
    q, r = torch.linalg.qr(columns)
    left, sizes, right = torch.linalg.svd(r)
    most = max(float(sizes[0]) if len(sizes) else 0.0, scale)
    kept = sizes > _NOTHING * most if most > 0 else torch.zeros_like(sizes, dtype=torch.bool)
    return q @ left[:, kept], sizes[kept][:, None] * right[: len(sizes)][kept]
