"""The gram matrices of training parts on the complement of what is not penalized, and how held-out rows see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.kernels import complement
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.kernels.own_scales import OwnScales
from torchridge.solvers.least_squares import spectral
from torchridge.solvers.moments.folds import Split


class Side(NamedTuple):
    """The problem of one training part, diagonalized, and how its held-out rows see it."""

    eigvals: Tensor  # (m,)
    basis: Tensor  # (n_T, m)
    seen: Tensor  # (f, m)
    fixed: Tensor | None  # (f, n_T) N
    condition: float  # of what is not penalized, columns at one size, squared
    norm: Tensor  # () trace of the gram matrix from which that is eliminated

    def left(self, weakest: float) -> float:
        """Return the condition of the elimination at a strength: of free features, and of what is left of others."""
        return max(self.condition, float((self.norm + weakest) / (self.eigvals.amin() + weakest).clamp_min(1e-300)))


@dataclass(frozen=True)
class Sides:
    """The training parts of all splits, each diagonalized once, when it is asked for.

    `swift` asks for kernels in whose changes of scale float32 has rounded, see `own_scales`.
    """

    own: OwnScales
    root: Tensor | None  # (n,) √s
    scaled: bool  # whether every part has a scale of its own; else the kernel of all rows serves

    @property
    def swift(self) -> bool:
        """Whether there are such kernels."""
        return self.scaled and self.own.swift

    def at(self, k: int, swift: bool) -> Side:
        """Return one part. Cost 10 n³, and n² d for a scale of its own, half of that if swift."""
        if (k, swift) not in self._known:
            kernel = self.own.kernel
            if self.scaled:
                kernel = self.own.changed(k) if swift else self.own.summed(k)
            assert kernel is not None
            self._known[k, swift] = side(self.own.rows.X.detach(), self.own.splits[k], kernel, self.root)
        return self._known[k, swift]

    def ends(self, swift: bool) -> tuple[float, float]:
        """Return the least and the largest eigenvalue of any part, on the host."""
        if swift not in self._ends:
            self._ends[swift] = ends([self.at(k, swift).eigvals for k in range(len(self.own.splits))])
        return self._ends[swift]

    def left(self, weakest: float, swift: bool) -> float:
        """Return the worst condition of the elimination of what is not penalized."""
        return max(self.at(k, swift).left(weakest) for k in range(len(self.own.splits)))

    def operators(self, k: int, alpha: Tensor, swift: bool) -> Tensor:
        """Return what takes training targets to held-out predictions at strengths (r,), (r, f, n_T)."""
        part = self.at(k, swift)
        kept = spectral.filters(part.eigvals, alpha).T  # (r, m)
        operator = (part.seen * kept[:, None, :]).flatten(0, 1) @ part.basis.T
        operator = operator.view(len(alpha), len(part.seen), -1)
        return operator if part.fixed is None else operator.add_(part.fixed)

    @cached_property
    def _known(self) -> dict[tuple[int, bool], Side]:
        return {}

    @cached_property
    def _ends(self) -> dict[bool, tuple[float, float]]:
        return {}


def side(X: Tensor, split: Split, problem: Kernel, root: Tensor | None) -> Side:
    """Diagonalize one training part of a gram matrix of all rows, whose √s are `root` (n,). Cost 10 n³."""
    train, held = split
    own, across, fixed = problem.gram[train][:, train], problem.gram[held][:, train], None
    condition = 1.0
    root = None if root is None else root[train]
    if root is not None:
        own, across = own * root * root[:, None], across * root
    norm = own.diagonal().sum()
    columns = complement.free_columns(X, problem.center, problem.free, problem.intercept)
    inside = columns[train] if root is None else columns[train] * root[:, None]
    if columns.shape[1] == 1 and problem.intercept:
        fixed = (inside / (inside * inside).sum()).T.expand(len(held), -1)
    elif columns.shape[1]:
        fixed, condition = complement.fitted_by_columns(inside, columns[held])
    eigvals, basis = complement.complement_eigh(own, complement.orthonormal(inside))
    across = across if fixed is None else across - fixed @ own
    return Side(eigvals, basis, across @ basis, fixed, condition, norm)


def ends(eigvals: list[Tensor]) -> tuple[float, float]:
    """Return the least and the largest of all eigenvalues, on the host."""
    found = torch.stack([torch.stack(e.aminmax()) for e in eigvals]).tolist()
    return min(low for low, _ in found), max(high for _, high in found)
