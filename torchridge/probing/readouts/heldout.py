"""Scores that need predictions: every row is predicted by the fold that did not see it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchridge.linear.metrics import Held, Metric
from torchridge.probing.readouts.linear import Fitted
from torchridge.solvers.device import sent


class HeldOut:
    """Held-out scores of one readout, gathered chunk by chunk.

    Args:
        fitted: the readout, with the weights of every training part.
        order: (k,) class codes in the order of the weights' rows; None in regression.
        metrics: by name.
        units: whether to keep a loss for each row, for the bootstrap.
    """

    def __init__(self, fitted: Fitted, order: Tensor | None, metrics: Mapping[str, Metric], *, units: bool) -> None:
        self.fitted, self.order, self.metrics, self.units = fitted, order, metrics, units
        self.right = torch.zeros(2, fitted.fold_bias.shape[0], dtype=torch.float64)  # Σ s right, Σ s, by fold
        self.rows: list[tuple[Tensor, ...]] = []  # predictions, targets, folds, weights
        self.weighted = False
        self.losses: list[tuple[Tensor, Tensor, Tensor]] = []  # unit, s · loss, s · scale

    def update(self, rows: Tensor, target: Tensor, fold: Tensor, unit: Tensor, weight: Tensor | None) -> None:
        """Add rows (m, d)."""
        predicted = self._predict(rows, fold)
        target = target if self.order is None else self.order.argsort()[target]
        s = torch.ones(len(fold), dtype=torch.float64) if weight is None else weight
        if self.order is not None:
            right = (_winner(predicted) == target).double()
            self.right[0].index_add_(0, fold, s * right)
            self.right[1].index_add_(0, fold, s)
        if self.units:
            kept = (right, torch.ones_like(right)) if self.order is not None else self._squares(predicted, target, fold)
            self.losses.append((unit, s * kept[0], s * kept[1]))
        if any(m.own is None for m in self.metrics.values()):
            self.rows.append((predicted, target, fold, s))
            self.weighted |= weight is not None

    def _predict(self, rows: Tensor, fold: Tensor) -> Tensor:
        weight, bias = self.fitted.fold_weight, self.fitted.fold_bias
        result = torch.empty(len(fold), weight.shape[1], dtype=torch.float64)
        for k in torch.unique(fold).tolist():
            at = (fold == k).nonzero()[:, 0]
            x = rows[sent(at, rows.device)].to(weight)
            result[at] = (x @ weight[k].T + bias[k]).cpu()
        return result

    def _squares(self, predicted: Tensor, target: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared errors and squared deviations, each in units of the target's variance in its fold."""
        target = target[:, None] if target.ndim == 1 else target
        assert self.fitted.held_mean is not None
        assert self.fitted.held_variance is not None
        gap = target - self.fitted.held_mean.cpu()[fold]
        scale = self.fitted.held_variance.cpu().mean(0)
        return ((predicted - target) ** 2 / scale).mean(1), (gap**2 / scale).mean(1)

    def scores(self, classes: Tensor | None) -> dict[str, Tensor]:
        """Return the score of every fold by name, (K,)."""
        result = {}
        for name, metric in self.metrics.items():
            result[name] = self.right[0] / self.right[1] if metric.own == "accuracy" else self._metric(metric, classes)
        return result

    def _metric(self, metric: Metric, classes: Tensor | None) -> Tensor:
        predicted, target, fold, weight = (torch.cat(parts) for parts in zip(*self.rows, strict=True))
        target = target[:, 0] if target.ndim == 2 and target.shape[1] == 1 else target
        folds = []
        for k in range(self.right.shape[1]):
            at = fold == k
            held = self._held(predicted[at], target[at], classes)
            folds.append(metric(held._replace(weight=weight[at]) if self.weighted else held))
        return torch.tensor(folds, dtype=torch.float64)

    def _held(self, predicted: Tensor, target: Tensor, classes: Tensor | None) -> Held:
        scores = predicted[:, 0] if predicted.shape[1] == 1 else predicted
        held = Held(target, scores, classes)
        # Those of the discriminant and of the logistic model are the softmax of their scores; ridge has none.
        return held if classes is None or not self.fitted.has_proba else held._replace(proba=held.likely)

    def interval(self, draws: int, seed: int, level: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of accuracy, or of R²; whole units are drawn."""
        unit, loss, scale = (torch.cat(parts) for parts in zip(*self.losses, strict=True))
        _, index = torch.unique(unit, return_inverse=True)
        totals = torch.zeros(2, int(index.max()) + 1, dtype=torch.float64)
        totals[0].index_add_(0, index, loss)
        totals[1].index_add_(0, index, scale)
        ratio = bootstrap_ratio(totals, draws, seed)
        ratio = ratio if self.order is not None else 1 - ratio
        tail = (1 - level) / 2
        low, high = torch.quantile(ratio, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return low, high


def bootstrap_ratio(totals: Tensor, draws: int, seed: int) -> Tensor:
    """Return Σ totals[0] / Σ totals[1] over units (2, u) drawn with replacement, (draws,)."""
    generator = torch.Generator().manual_seed(seed)
    u = totals.shape[1]
    sums = [totals[:, torch.randint(u, (u,), generator=generator)].sum(1) for _ in range(draws)]
    stacked = torch.stack(sums)
    return stacked[:, 0] / stacked[:, 1]


def _winner(predicted: Tensor) -> Tensor:
    return (predicted[:, 0] > 0).long() if predicted.shape[1] == 1 else predicted.argmax(1)
