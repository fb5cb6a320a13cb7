"""One logistic problem that a descent minimizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from torchridge.solvers.cross_entropy.features import Features
from torchridge.solvers.cross_entropy.loss import Loss


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem: labels (n,), row weights (n,) that sum to one, and the penalty λ.

    Attributes:
        features: the rows.
        labels: (n,) class indices, 0 or 1 for a single logit.
        weight: (n,) in the dtype of the products.
        penalty: λ.
        curvature: b above.
    """

    features: Features
    labels: Tensor
    weight: Tensor
    penalty: float
    curvature: float

    @cached_property
    def diagonal(self) -> Tensor:
        """What the penalty adds to the diagonal of the Hessian, (q,)."""
        mean = self.features.mean
        out = mean.new_full((mean.shape[0] + int(self.features.intercept),), self.penalty)
        if self.features.intercept:
            out[-1].zero_()
        return out

    @cached_property
    def _loss(self) -> Loss:
        return Loss(self.labels, self.weight)

    def loss(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of logits (c, n), and its derivative by them."""
        return self._loss(logits)
