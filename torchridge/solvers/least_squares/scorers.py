"""Scorers: a prepared problem that gives the errors of any strengths, (K, L, t), K = 1 but for folds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from torchridge.solvers import device as device_constants
from torchridge.solvers.least_squares import dual, nodes, scoring, spectral
from torchridge.solvers.least_squares.few_rows import WholeDual
from torchridge.solvers.least_squares.nodes import Nodes
from torchridge.solvers.least_squares.objective import Objective, frame, system
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.least_squares.target_scores import Sums
from torchridge.solvers.moments import blocks
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.parts import PATH_NUMBERS, portions
from torchridge.solvers.moments.rows import Rows

# Where a held-out error is under this share of the variance, the difference of moments that gives it has lost its
# tenth digit, and it is taken from predictions instead.
_NEARLY_PERFECT = 1e-4

# Steps that even the best-conditioned features take.
_STEPS = 8


class Scorer(Protocol):
    """Gives held-out errors of strengths."""

    @property
    def eigvals(self) -> Tensor:
        """Eigenvalues that tell which strengths are worth trying."""

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype that is scored in, on the device of the rows."""

    def squares(self, alpha: Tensor) -> Tensor:
        """Return mean squared errors (K, L, t), or what stands in for them, of strengths (L,) on any device."""

    def correlations(self, alpha: Tensor) -> Tensor:
        """Return Pearson's correlation of held-out predictions and targets, (K, L, t), where r2 can be told."""

    def variances(self) -> Tensor | None:
        """Return the variance of the held-out targets, (K, t), where r2 can be told."""


@dataclass(frozen=True)
class FoldMoments:
    """K folds, each scored from the moments of its training and held-out parts."""

    train: list[Block]
    held: list[Block]
    objective: Objective
    rows: Rows | None
    held_rows: list[Tensor] | None

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
                blocks.check_finite(block, self.rows)

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
        squares = self._from_moments(alpha)
        if self.rows is not None and self.held_rows is not None:
            yy = torch.stack([b.yy for b in self.held])[:, None]
            lost = (squares < _NEARLY_PERFECT * yy).flatten(1).any(1)
            finite = torch.stack([b.gram.diagonal().sum() + b.yy.sum() for b in self.held]).sum()
            *again, sums = torch.cat([lost.to(finite), finite[None]]).tolist()  # one wait for all folds
            if not math.isfinite(sums):
                self._check_finite()
            for k in range(len(again)):
                if again[k]:
                    squares[k] = self._predicted(k, alpha.to(self.like))
        return squares / torch.stack([b.weight for b in self.held])[:, None, None]

    def _from_moments(self, alpha: Tensor) -> Tensor:
        chosen = self._nodes(alpha)
        if chosen is not None:
            parts = [
                nodes.heldout_squares(chosen, a, b, self.objective) for a, b in zip(self.train, self.held, strict=True)
            ]
            found = torch.stack([p for p, _ in parts])
            if not bool(torch.stack([poor for _, poor in parts]).any()):
                return found
        host = alpha.detach().cpu()
        if (few := self._partial(host)) is not None:
            spectra, eigvals = few, [s.eigvals for s in few]
        else:
            spectra, eigvals = self.spectra, list(self._host_eigvals)
        return scoring.heldout_squares(spectra, eigvals, self.train, self.held, self.objective, host)

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

    def _nodes(self, alpha: Tensor) -> Nodes | None:
        """Return what to score by where an eigendecomposition of every fold costs more; None for those."""
        if self.objective.free is not None or "spectra" in self.__dict__:
            return None
        most = device_constants.most_nodes(self.like.device, self.like.shape[0])
        host = alpha.detach().cpu()
        found = nodes.nodes(host, most) if most and bool(host.min() > 0) else None
        return None if found is None else found._replace(alpha=found.alpha.to(self.like), mix=found.mix.to(self.like))

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
                    weight, place.center, place.target_center, self.rows, self.held_rows[k].to(self.like.device)
                )
            )
        return torch.cat(parts)

    def correlations(self, alpha: Tensor) -> Tensor:
        """Return correlations of predictions and held-out targets, (K, L, t)."""
        self._check_finite()
        host = alpha.detach().cpu()
        return scoring.heldout_correlations(self.spectra, list(self._host_eigvals), self.held, host)

    def variances(self) -> Tensor:
        """Return yy / Σ s of the held-out parts, (K, t)."""
        return torch.stack([b.yy / b.weight for b in self.held])


def fold_moments(
    train: list[Block], held: list[Block], objective: Objective, rows: Rows | None, index: list[Tensor] | None
) -> FoldMoments:
    """Prepare the training parts, which are diagonalized when that is asked for."""
    return FoldMoments(train, held, objective, rows, index)


class Whole(NamedTuple):
    """Criteria that hold out no fold: "gcv", "evidence", and "loo" where the rows are at hand."""

    criterion: str
    spectrum: Spectrum
    block: Block
    objective: Objective
    rows: Rows | None

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.spectrum.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.spectrum.eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return the criterion, (1, L, t)."""
        alpha = alpha.to(self.like)
        spec, block, fixed = self.spectrum, self.block, int(self.objective.intercept)
        if self.criterion == "loo":
            assert self.rows is not None
            return scoring.leave_one_out(spec, block, self.objective, self.rows, alpha)[None]
        squares = scoring.residual_squares(spec, block, self.objective, alpha)
        if self.criterion == "gcv":
            whole = scoring.explainable(spec, block, self.objective)
            return scoring.gcv(squares, spectral.dof(spec, alpha) + fixed, block.rows, block.weight, whole)[None]
        shrunk = (spectral.filters(spec.eigvals, alpha) ** 2).T @ spec.coef**2
        count = block.rows - fixed - (spec.free.rank if spec.free else 0)
        return scoring.evidence(spec.eigvals, squares + alpha[:, None] * shrunk, alpha, count)[None]

    def correlations(self, alpha: Tensor) -> Tensor:
        """Return correlations of leave-one-out predictions and targets, (1, L, t)."""
        assert self.rows is not None
        alpha = alpha.to(self.like)
        sums = Sums(self.rows.y, self.rows.sample_weight, len(alpha))
        each = scoring.leave_one_out_residuals(self.spectrum, self.block, self.objective, self.rows, alpha)
        everything = slice(0, self.rows.y.shape[1])
        for part, error in each:
            y = self.rows.y[part].detach().to(error)
            sums.add(part, everything, (y[:, None, :] - error).transpose(0, 1))
        return sums.scores("correlation")[None]

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        yy = system(self.block, self.objective._replace(prior=None)).yy
        return (yy / self.block.weight)[None] if self.criterion == "loo" else None


def fold_blocks(rows: Rows, index: list[Tensor], dtype: torch.dtype) -> list[Block]:
    """Return the moments of each fold, `index` on the host, in one pass; runs of rows are read without a copy."""
    (_, d), (_, t), device = rows.X.shape, rows.y.shape, rows.X.device
    work = blocks.workspace(max(len(i) for i in index), d, t, dtype, device)
    result = []
    for i in index:
        if len(i) and int(i[-1]) - int(i[0]) + 1 == len(i) and bool((i[1:] > i[:-1]).all()):
            run = slice(int(i[0]), int(i[-1]) + 1)
            weight = None if rows.sample_weight is None else rows.sample_weight[run]
            result.append(blocks.block_of(rows.X[run], rows.y[run], weight, None, dtype, device, work))
        else:
            result.append(blocks.block_of(*rows[:3], i.to(device), dtype, device, work))
    return result


def fold_weights(scorer: FoldMoments, k: int, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (d, L, t) and biases (L, t) of training part k at every strength."""
    weight = spectral.weights(scorer.spectra[k], alpha)
    place = frame(scorer.train[k], scorer.objective)
    return weight, place.target_center - torch.einsum("dlt,d->lt", weight, place.center)


def leave_one_out_errors(scorer: Whole | WholeDual, rows: Rows, alpha: Tensor) -> Tensor:
    """Return the leave-one-out residuals of all rows, (n, L, t); of a row of zero weight, those of the whole fit."""
    if isinstance(scorer, Whole):
        runs = scoring.leave_one_out_residuals(scorer.spectrum, scorer.block, scorer.objective, rows, alpha)
        return torch.cat([error for _, error in runs])
    errors = dual.leave_one_out(scorer.problem, alpha)
    if scorer.problem.root is not None:
        errors = errors / scorer.problem.root[:, None, None]
    if len(errors) == rows.X.shape[0] or rows.sample_weight is None:
        return errors
    counted = rows.sample_weight > 0
    weight = dual.weights(scorer.problem, scorer.rows, Objective(), dual.coefficients(scorer.problem, alpha))
    x = rows.X[~counted].to(weight.dtype) - scorer.problem.center
    y = rows.y[~counted].to(weight.dtype) - scorer.problem.target_center
    everything = errors.new_empty(len(counted), *errors.shape[1:])
    everything[counted] = errors
    everything[~counted] = y[:, None, :] - torch.einsum("nd,dlt->nlt", x, weight)
    return everything
