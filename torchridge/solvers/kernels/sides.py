"""The gram matrices of training parts on the complement of what is not penalized, and how held-out rows see it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.kernels import complement, series
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.kernels.own_scales import OwnScales
from torchridge.solvers.least_squares import spectral
from torchridge.solvers.moments.folds import Split

# Terms of a series of the held-out rows, for each training row, that take less than the eigenvectors of a part. On one
# thread, 16 terms of 120 held-out rows and 480 others take 27 ms, the eigenvectors and operators 70 ms.
_WORTH = 6


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


class Part(NamedTuple):
    """The problem of one training part as it stands."""

    gram: Tensor  # (n_T, n_T)
    across: Tensor  # (f, n_T) that of held-out rows with it, less N times it
    fixed: Tensor | None
    unpenalized: Tensor  # (n_T, q) orthonormal
    condition: float
    norm: Tensor
    moved: float  # bound on how far the scale of the part moves eigenvalues from those of all rows


class Way(Enum):
    """What the operators of a training part are made from."""

    EXACT = "float64 sums"
    CHANGES = "float32 sums of what its scale changes"
    SERIES = "the same, by a series in place of eigenvectors"


@dataclass(frozen=True)
class Sides:
    """The training parts of all splits, each made once, when it is asked for."""

    own: OwnScales
    root: Tensor | None  # (n,) √s
    scaled: bool  # whether every part has a scale of its own; else the kernel of all rows serves

    def at(self, k: int, way: Way) -> Side:
        """Return one part, diagonalized. Cost 10 n³, and n² d for a scale of its own, half of that unless exact."""
        key = (k, way is Way.EXACT)
        if key not in self._known:
            self._known[key] = side(self._parts.pop(k) if k in self._parts and not key[1] else self._part(*key))
        return self._known[key]

    def ends(self, way: Way) -> tuple[float, float]:
        """Return the least and the largest eigenvalue of any part, on the host."""
        if way not in self._ends:
            self._ends[way] = ends([self.at(k, way).eigvals for k in range(len(self.own.splits))])
        return self._ends[way]

    @cached_property
    def moved(self) -> float:
        """The bound on how far scales move eigenvalues, of any part."""
        for k in range(len(self.own.splits)):
            self._parts[k] = self._part(k, False)
        return max(part.moved for part in self._parts.values())

    def left(self, weakest: float, way: Way) -> float:
        """Return the worst condition of the elimination of what is not penalized."""
        return max(self.at(k, way).left(weakest) for k in range(len(self.own.splits)))

    def operators(self, k: int, alpha: Tensor, way: Way, low: float, top: float) -> Tensor:
        """Return what takes training targets to held-out predictions at strengths (r,), (r, f, n_T).

        Eigenvalues lie from `low` to `top`.
        """
        part = self._parts.get(k) if way is Way.SERIES else None
        if part is not None and _few_terms(part, series.terms(low, top, float(alpha.min()))):
            operator, fixed = series.solved(*_complement(part), alpha, low, top), part.fixed
        else:
            known = self.at(k, way)
            kept, fixed = spectral.filters(known.eigvals, alpha).T, known.fixed  # (r, m)
            operator = (known.seen * kept[:, None, :]).flatten(0, 1) @ known.basis.T
            operator = operator.view(len(alpha), len(known.seen), -1)
        return operator if fixed is None else operator.add_(fixed)

    def _part(self, k: int, exact: bool) -> Part:
        kernel = self.own.kernel
        if self.scaled:
            kernel = self.own.summed(k) if exact else self.own.changed(k)
        assert kernel is not None
        before = self.own.about(k) if self.scaled and not exact else None
        return part_of(self.own.rows.X.detach(), self.own.splits[k], kernel, self.root, before)

    @cached_property
    def _known(self) -> dict[tuple[int, bool], Side]:
        return {}

    @cached_property
    def _parts(self) -> dict[int, Part]:
        return {}

    @cached_property
    def _ends(self) -> dict[Way, tuple[float, float]]:
        return {}


def part_of(X: Tensor, split: Split, problem: Kernel, root: Tensor | None, before: Tensor | None) -> Part:
    """Return one training part of a gram matrix of all rows, whose √s are `root` (n,).

    `before` (n, n) is that in the scale of all rows.
    """
    train, held = split
    gram, across, fixed = problem.gram[train][:, train], problem.gram[held][:, train], None
    change = None if before is None else gram - before[train][:, train]
    condition = 1.0
    root = None if root is None else root[train]
    if root is not None:
        gram, across = gram * root * root[:, None], across * root
        change = None if change is None else change * root * root[:, None]
    columns = complement.free_columns(X, problem.center, problem.free, problem.intercept)
    inside = columns[train] if root is None else columns[train] * root[:, None]
    if columns.shape[1] == 1 and problem.intercept:
        fixed = (inside / (inside * inside).sum()).T.expand(len(held), -1)
    elif columns.shape[1]:
        fixed, condition = complement.fitted_by_columns(inside, columns[held])
    across = across if fixed is None else across - fixed @ gram
    moved = 0.0 if change is None else float((change @ change).norm().sqrt())  # its fourth Schatten norm
    return Part(gram, across, fixed, complement.orthonormal(inside), condition, gram.diagonal().sum(), moved)


def side(part: Part) -> Side:
    """Diagonalize one training part. Cost 10 n³."""
    eigvals, basis = complement.complement_eigh(part.gram, part.unpenalized)
    return Side(eigvals, basis, part.across @ basis, part.fixed, part.condition, part.norm)


def _few_terms(part: Part, terms: int) -> bool:
    """Return whether products with the held-out rows take less than eigenvectors."""
    f, n = part.across.shape
    return terms * f <= _WORTH * n


def _complement(part: Part) -> tuple[Tensor, Tensor]:
    """Return the gram matrix and that of held-out rows on the complement of what is not penalized."""
    gram, across, u = part.gram, part.across, part.unpenalized
    toward = u.T @ gram  # (q, n_T)
    gram = gram - u @ (toward - (toward @ u) @ u.T) - toward.T @ u.T
    return gram, across - (across @ u) @ u.T


def ends(eigvals: list[Tensor]) -> tuple[float, float]:
    """Return the least and the largest of all eigenvalues, on the host."""
    found = torch.stack([torch.stack(e.aminmax()) for e in eigvals]).tolist()
    return min(low for low, _ in found), max(high for _, high in found)
