"""All targets and strengths of (G + α) U = B from one Krylov space, by products with G alone.

For right-hand sides B (m, t) the orthonormal basis V of span{B, G B, G² B, …} gives (T + α) Z = Vᵀ B with T = Vᵀ G V:
V Z solves (G + α) U = B on it for every α at once, and the residual is what the next block adds: a further strength
costs a small solve. Sources: O'Leary 1980, doi:10.1016/0024-3795(80)90247-5 (blocks); Frommer & Maass 1999,
doi:10.1137/S1064827596313310 (shifts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of the basis that may be held (256 MiB), and its share of all directions, past which nothing is gained.
_NUMBERS = 2**25
_SHARE = 0.5

# Unknowns for each target, with which a basis has room for the steps that a solve takes before it holds that share.
_ROOM = 100

# A direction of which orthogonalization leaves less than this is rounding.
_NOTHING = 1e-12

# Growth of the basis after which it is solved in anew, and the share of the tolerance that the recurrence has to say.
_LOOK = 1.15
_MARGIN = 0.5

Product = Callable[[Tensor], Tensor]


class Solved(NamedTuple):
    """Solutions at L strengths."""

    solution: Tensor  # (L, m, t)
    error: Tensor  # (L, t) relative residuals, as the recurrence has them
    steps: int


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

    def solved(self, alphas: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """Return Z (L, k, t) and the relative residuals (L, t)."""
        eigvals, vectors = torch.linalg.eigh(self.inside)
        z = vectors @ (vectors.mT @ self._right() / (eigvals.clamp_min(0)[:, None] + alphas[:, None, None]))
        return z, self._residuals(z, size)

    def residual(self, alpha: float, size: Tensor) -> Tensor:
        """Return the relative residuals (t,) at one strength, without eigenvectors."""
        system = self.inside + alpha * torch.eye(self.size, dtype=size.dtype, device=size.device)
        return self._residuals(torch.linalg.solve(system, self._right()), size)

    @property
    def inside(self) -> Tensor:
        """T, (k, k)."""
        return self.projected[: self.size, : self.size]

    def _right(self) -> Tensor:
        right = self.start.new_zeros(self.size, self.start.shape[1])
        right[: len(self.start)] = self.start
        return right

    def _residuals(self, z: Tensor, size: Tensor) -> Tensor:
        last = self.coupling.shape[1]
        residual = torch.linalg.vector_norm(self.coupling @ z[..., self.size - last :, :], dim=-2)
        return torch.where(size > 0, residual / size.clamp_min(torch.finfo(size.dtype).tiny), 0)


def affordable(m: int, targets: int) -> bool:
    """Whether a few steps for so many targets fit in the memory that a basis may take."""
    return m * targets * 4 <= _NUMBERS and targets * _ROOM <= m


def solve(product: Product, rhs: Tensor, alphas: Tensor, tol: float, max_iter: int) -> Solved:
    """Solve (G + α) U = B for B (m, t) at strengths (L,) above zero, `product` taking v to G v.

    Cost: a step takes one product in t columns, and 8·m·k·t flops for k vectors of the basis.
    """
    m, t = rhs.shape
    most = int(min(m * _SHARE, _NUMBERS / m))
    basis, size = Basis(rhs, most), torch.linalg.vector_norm(rhs, dim=0)
    z, error, steps, looked = rhs.new_zeros(len(alphas), 0, t), rhs.new_ones(len(alphas), t), 0, 0
    while True:
        full = steps >= max_iter or basis.size + basis.block.shape[1] > most or not basis.block.shape[1]
        if steps and (full or basis.size >= _LOOK * looked):
            z, error = basis.solved(alphas, size)
            looked = basis.size
            if bool((error <= _MARGIN * tol).all()):
                break
        if full:
            break
        basis.extend(product)
        steps += 1
    return Solved(basis.store[: z.shape[1]].mT @ z, error, steps)


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
