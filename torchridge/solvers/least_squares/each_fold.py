"""A scorer of K folds, each from the moments of its training and held-out parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from torchridge.solvers import device as device_constants
from torchridge.solvers.device import sent
from torchridge.solvers.least_squares import precision, scoring, spectral
from torchridge.solvers.least_squares.objective import Objective, frame, system
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.least_squares.target_scores import ProductsScore, Score, above_noise
from torchridge.solvers.least_squares.triangle import estimates, roots
from torchridge.solvers.least_squares.triangle.factor import Triangle
from torchridge.solvers.moments.blocks import Block, about
from torchridge.solvers.moments.finite import check_finite
from torchridge.solvers.moments.parts import PATH_NUMBERS, portions, variance_of
from torchridge.solvers.moments.rows import Rows

# If a held-out error is under this share of the variance, the difference of moments that gives it has lost its
# tenth digit, and it is taken from predictions instead.
_NEARLY_PERFECT = 1e-4

# Steps that even the best-conditioned features take.
_STEPS = 8


@dataclass(frozen=True)
class FoldMoments:
    """K folds, each scored from the moments of its training and held-out parts."""

    train: list[Block]
    held: list[Block]
    objective: Objective
    rows: Rows | None = None
    held_rows: list[Tensor] | None = None
    train_rows: list[Tensor] | None = None  # None if they are all that are not held out
    precision: Precision = field(default_factory=Precision)

    @cached_property
    def spectra(self) -> list[Spectrum]:
        """Eigendecompositions of the training parts, when something first asks for them."""
        try:
            return spectral.spectra([system(b, self.objective) for b in self.train])
        except RuntimeError:  # an eigendecomposition refuses what is not finite
            self._check_finite()
            raise

    @cached_property
    def _host_eigvals(self) -> Tensor:
        """The eigenvalues of all training parts, (K, m), on the host: one wait, right after that for the vectors."""
        return torch.stack([s.eigvals for s in self.spectra]).cpu()

    def _check_finite(self) -> None:
        if self.rows is not None:
            for block in self.held:
                check_finite(block, self.rows)

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the moments."""
        return self.train[0].gram

    @property
    def eigvals(self) -> Tensor:
        """Those of the first training part."""
        return self.spectra[0].eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (K, L, t)."""
        few = self._partial(alpha.detach().cpu())
        if self.held_by_gram(alpha, few):
            squares = self._by_gram(alpha, few)
        else:
            squares = torch.stack([self._careful_squares(k, sent(alpha, self.like)) for k in range(len(self.train))])
        return squares / torch.stack([b.weight for b in self.held])[:, None, None]

    def held_by_gram(self, alpha: Tensor, few: list[Spectrum] | None = None) -> bool:
        """Return whether eigenvalues of the training parts, or the `few` that count, hold the digits of strengths."""
        weakest = float(alpha.detach().cpu().min())
        if few is None:
            worst = precision.condition(self._host_eigvals, weakest)
        else:
            ends = torch.stack([torch.stack([s.eigvals.amin(), s.eigvals.amax()]) for s in few]).cpu()
            worst = precision.condition(ends, weakest)
        if self.objective.free is not None and worst <= precision.GRAM:
            worst = max(worst, *(precision.free_condition(system(b, self.objective), weakest) for b in self.train))
        held = precision.holds(
            worst,
            self.like.dtype,
            lambda: min(precision.scaled_condition(system(b, self.objective), weakest) for b in self.train),
        )
        held = held and not precision.outweighed(self.train, self.rows, self.objective)
        if held:
            self.precision.note(torch.finfo(self.like.dtype).eps * worst, "")
        return held

    def _by_gram(self, alpha: Tensor, few: list[Spectrum] | None) -> Tensor:
        spectra = self.spectra if few is None else few
        eigvals = list(self._host_eigvals) if few is None else [s.eigvals for s in few]
        host = alpha.detach().cpu()
        squares = scoring.heldout_squares(spectra, eigvals, self.train, self.held, self.objective, host)
        if self.rows is not None and self.held_rows is not None:
            yy = torch.stack([self._unfitted(k) for k in range(len(self.held))])[:, None]
            lost = (squares < _NEARLY_PERFECT * yy).flatten(1).any(1)
            finite = torch.stack([b.gram.diagonal().sum() + b.yy.sum() for b in self.held]).sum()
            *again, sums = torch.cat([lost.to(finite), finite[None]]).tolist()  # one wait for all folds
            if not math.isfinite(sums):
                self._check_finite()
            for k in range(len(again)):
                if again[k]:
                    squares[k] = self._predicted(k, sent(alpha, self.like))
        return squares

    def _unfitted(self, k: int) -> Tensor:
        """Return Σ s (y − ȳ)² of held-out part k about the mean of its training part, (t,)."""
        held, gap = self.held[k], self.held[k].mean_y - self.train[k].mean_y
        return held.yy + held.weight * gap * gap if self.objective.intercept else held.yy + held.weight * held.mean_y**2

    def careful(self, k: int, alpha: Tensor) -> Triangle:
        """Return the factor of training part k that holds the digits of these strengths."""
        self._check_finite()
        index = None if self.rows is None else self._trained(k)
        return precision.careful(self.train[k], self.objective, float(alpha.min()), self.rows, index, self.precision)

    def _trained(self, k: int) -> Tensor:
        """Return the numbers of the rows of training part k."""
        assert self.rows is not None
        assert self.held_rows is not None
        if self.train_rows is not None:
            return sent(self.train_rows[k], self.like.device)
        inside = torch.ones(self.rows.X.shape[0], dtype=torch.bool)
        inside[self.held_rows[k].cpu()] = False
        return sent(inside.nonzero()[:, 0], self.like.device)

    def _careful_squares(self, k: int, alpha: Tensor) -> Tensor:
        """Return Σ s (y − ŷ)² over held-out part k, (L, t)."""
        tri = self.careful(k, alpha)
        if self.rows is not None and self.held_rows is not None:
            return estimates.heldout_squares(tri, self.rows, sent(self.held_rows[k], self.like.device), alpha)[0]
        seen, squares = about(self.held[k], tri.center.sum(0), tri.target_center.sum(0)), []
        for some in roots.at_once(tri, alpha):
            w = estimates.weights(tri, roots.roots(tri, some), some)  # (d, L, t)
            fitted = (seen.gram @ w.flatten(1)).view_as(w)
            squares.append(seen.yy + (w * (fitted - 2 * seen.cross[:, None])).sum(0))
        return torch.cat(squares).clamp_min(0)

    def _partial(self, alpha: Tensor) -> list[Spectrum] | None:
        """Return spectra of the few directions that the targets reach; None unless every part has such."""
        d, t = self.train[0].cross.shape
        most, weakest = device_constants.most_directions(self.like.device, d), float(alpha.min())
        if "spectra" in self.__dict__ or not weakest > 0 or t * _STEPS > most:
            return None
        found = []
        for block in self.train:
            part = spectral.partial(system(block, self.objective), weakest, most)
            if part is None:
                return None
            found.append(part)
        return found

    def _predicted(self, k: int, alpha: Tensor) -> Tensor:
        assert self.rows is not None
        assert self.held_rows is not None
        d, t = self.train[k].cross.shape
        place = frame(self.train[k], self.objective)
        parts = []
        for some in portions(alpha, PATH_NUMBERS // (d * t)):
            weight = spectral.weights(self.spectra[k], some)
            parts.append(
                scoring.heldout_squares_by_prediction(
                    weight, place.center, place.target_center, self.rows, sent(self.held_rows[k], self.like.device)
                )
            )
        return torch.cat(parts)

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of predictions and held-out targets that follows from products, (K, L, t)."""
        assert isinstance(score, ProductsScore)
        self._check_finite()
        each = scoring.heldout_products(self.spectra, list(self._host_eigvals), self.held, alpha.detach().cpu())
        found = []
        for seen, (linear, own) in zip(self.held, each, strict=True):
            spread = above_noise(own, seen.yy) / seen.weight
            score_of_fold = score.of(linear / seen.weight, spread, seen.yy / seen.weight)
            found.append(score.masked(score_of_fold, seen.yy > 0))
        return torch.stack(found)

    def variances(self) -> Tensor:
        """Return yy / Σ s of the held-out parts, (K, t)."""
        return torch.stack([variance_of(b) for b in self.held])


def fold_weights(scorer: FoldMoments, k: int, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (d, L, t) and biases (L, t) of training part k at every strength."""
    alpha = alpha.to(scorer.like)
    if scorer.held_by_gram(alpha):
        weight = spectral.weights(scorer.spectra[k], alpha)
        place = frame(scorer.train[k], scorer.objective)
        return weight, place.target_center - torch.einsum("dlt,d->lt", weight, place.center)
    tri = scorer.careful(k, alpha)
    runs = roots.at_once(tri, alpha)
    weight = torch.cat([estimates.weights(tri, roots.roots(tri, some), some) for some in runs], 1)
    center, target_center = tri.center.sum(0), tri.target_center.sum(0)
    return weight, target_center - torch.einsum("dlt,d->lt", weight, center)
