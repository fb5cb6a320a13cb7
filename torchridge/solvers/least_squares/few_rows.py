"""Scorers of few rows of many features: all from the n × n gram matrix of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.least_squares import dual, scoring, spectral
from torchridge.solvers.least_squares.dual import Dual
from torchridge.solvers.least_squares.target_scores import Sums, target_batches
from torchridge.solvers.moments.parts import target_variance, weight_of
from torchridge.solvers.moments.rows import Rows


class WholeDual(NamedTuple):
    """The criteria of `Whole` for fewer rows than features."""

    criterion: str
    problem: Dual
    rows: Rows

    @property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        return self.problem.eigvals

    @property
    def like(self) -> Tensor:
        """Those eigenvalues."""
        return self.problem.eigvals

    def squares(self, alpha: Tensor) -> Tensor:
        """Return the criterion, (1, L, t)."""
        alpha = alpha.to(self.like)
        n, weight = self.rows.X.shape[0], weight_of(self.rows, slice(None))
        if self.criterion == "loo":
            errors = (e.square_().sum(0) for _, e in self._errors(alpha))
            return (torch.cat(list(errors), 1) / weight)[None]
        squares = dual.residual_squares(self.problem, alpha)
        if self.criterion == "gcv":
            hat = dual.dof(self.problem, alpha) + int(self.problem.intercept)
            return scoring.gcv(squares, hat, n, weight)[None]
        kept = spectral.filters(self.problem.eigvals, alpha)
        shrunk = (self.problem.eigvals[:, None] * kept**2).T @ self.problem.coef**2
        count = n - self.problem.unpenalized.shape[1]
        return scoring.evidence(self.problem.eigvals, squares + alpha[:, None] * shrunk, alpha, count)[None]

    def _errors(self, alpha: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield runs of targets and √s times their leave-one-out residuals, (n, L, run)."""
        n, t = self.problem.target.shape
        for part in target_batches(t, 4 * n * len(alpha), self.like.element_size(), None):
            own = self.problem._replace(target=self.problem.target[:, part], coef=self.problem.coef[:, part])
            yield part, dual.leave_one_out(own, alpha)

    def correlations(self, alpha: Tensor) -> Tensor:
        """Return correlations of leave-one-out predictions and targets, (1, L, t)."""
        sums, root = Sums(self.rows.y, self.rows.sample_weight, len(alpha)), self.problem.root
        everything = slice(0, len(self.rows.y))
        for part, error in self._errors(alpha.to(self.like)):
            error = error if root is None else error / root[:, None, None]
            y = self.rows.y[:, part].detach().to(error)
            sums.add(everything, part, (y[:, None, :] - error).transpose(0, 1))
        return sums.scores("correlation")[None]

    def variances(self) -> Tensor | None:
        """Only leave-one-out holds targets out."""
        return target_variance(self.rows, slice(None))[None] if self.criterion == "loo" else None
