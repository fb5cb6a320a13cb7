"""Cross-entropy of linear classifiers that share their rows, with gradient and mean curvature, in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Rows:
    """The rows that P problems share: problem p has labels `labels[head[p]]` and row weights `weight[group[p]]`.

    Attributes:
        features: (n, q), in the dtype that the products are taken in.
        labels: (h, n), class indices; 0 or 1 if there is a single logit.
        weight: (g, n), not negative, each row of it summing to one, in the dtype of `features`.
        closed: (h, g, k), true for a class that the head lacks under these weights: its probability is zero.
            None if no class is missing.
        max_elements: bound on the elements of the logits of one chunk.
        share: has other ranks evaluate their rows too, and adds up; None if these are all the rows.
    """

    features: Tensor
    labels: Tensor
    weight: Tensor
    closed: Tensor | None
    max_elements: int
    share: Share | None = None


@dataclass(frozen=True)
class Problems:
    """P problems over the same `Rows`, each with its head, its row weights and its penalty.

    Attributes:
        head: (P,), row of `Rows.labels`.
        group: (P,), row of `Rows.weight`.
        penalty: (P,), factor l of ½·l·‖weight‖², added to the mean loss.
    """

    head: Tensor
    group: Tensor
    penalty: Tensor

    def select(self, index: Tensor) -> Problems:
        """Return the problems at `index`."""
        return Problems(self.head[index], self.group[index], self.penalty[index])

    def with_penalty(self, penalty: Tensor) -> Problems:
        """Return the same problems under another penalty."""
        return replace(self, penalty=penalty)


class Evaluation(NamedTuple):
    """Mean loss (P,), its gradient (P, c, q), and, if asked for, the mean Hessian in the logits (P, c, c)."""

    loss: Tensor
    grad: Tensor
    curvature: Tensor | None


Share = Callable[[Rows, Problems, Tensor, bool], Evaluation]


def chunks(n: int, columns: int, max_elements: int) -> Iterator[slice]:
    """Yield slices of rows whose logits, rows × columns, stay within `max_elements` (one row at the least)."""
    size = max(1, max_elements // max(1, columns))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def evaluate(rows: Rows, problems: Problems, theta: Tensor, *, curvature: bool) -> Evaluation:
    """Evaluate the weighted mean cross-entropy of every problem at its coefficients.

    `Σ_i w_i CE(y_i, θ f_i)`: a softmax over the c rows of θ, or a single logit if c is 1. The products are taken
    in the dtype of the features, sums over chunks and what is returned in float64. The layout (problem, class, row)
    keeps rows contiguous: both products and the softmax are then 2 to 20 times faster than with classes last.

    Shape:
        theta: (P, c, q); see `Evaluation` for what is returned.

    Cost: 4·n·q·P·c flops in two products, and P·n·c² for the curvature.
    """
    if rows.share is not None:
        return rows.share(rows, problems, theta, curvature)
    count, c, q = theta.shape
    weight = theta.to(rows.features.dtype).reshape(count * c, q)
    loss = theta.new_zeros(count)
    grad = theta.new_zeros(count * c, q)
    hessian = theta.new_zeros(count, c, c) if curvature else None
    for part in chunks(len(rows.features), count * c, rows.max_elements):
        block = rows.features[part]  # (m, q)
        logits = (weight @ block.mT).view(count, c, -1)  # (P, c, m)
        row_weight = rows.weight[problems.group, part]  # (P, m)
        if c == 1:
            row_loss, residual = _single_logit(rows, problems, logits, part, row_weight, hessian)
        else:
            row_loss, residual = _softmax(rows, problems, logits, part, row_weight, hessian)
        loss += row_loss.sum(1, dtype=loss.dtype)
        grad += residual.reshape(count * c, -1) @ block
    return Evaluation(loss, grad.view(count, c, q), hessian)


def _single_logit(
    rows: Rows, problems: Problems, logits: Tensor, part: slice, weight: Tensor, hessian: Tensor | None
) -> tuple[Tensor, Tensor]:
    sign = rows.labels[problems.head, part].to(logits.dtype).mul_(2).sub_(1)  # (P, m)
    against = logits[:, 0].mul_(sign).neg_()
    wrong = torch.sigmoid(against)  # the probability of the other class keeps its digits if the fit is close
    residual = wrong * weight
    if hessian is not None:
        hessian += (residual * (1 - wrong)).sum(1, dtype=hessian.dtype)[:, None, None]
    return functional.softplus(against).mul_(weight), residual.mul_(sign).neg_()[:, None]


def _softmax(
    rows: Rows, problems: Problems, logits: Tensor, part: slice, weight: Tensor, hessian: Tensor | None
) -> tuple[Tensor, Tensor]:
    if rows.closed is not None:
        logits.masked_fill_(rows.closed[problems.head, problems.group][:, :, None], -torch.inf)
    labels = rows.labels[problems.head, part][:, None]  # (P, 1, m)
    log_proba = torch.log_softmax(logits, 1)
    log_true = log_proba.gather(1, labels)
    # The probability of the other classes, summed, keeps the digits that 1 − p loses if the fit is close.
    proba = log_proba.exp_().scatter_(1, labels, 0)
    wrong = proba.sum(1, keepdim=True)  # (P, 1, m)
    each = torch.where(wrong < 0.5, torch.log1p(-wrong), log_true).neg_()[:, 0]
    # A row without weight may carry a class that is closed to it: 0 × inf would be NaN.
    row_loss = torch.where(weight > 0, each * weight, 0)
    if hessian is not None:
        proba.scatter_(1, labels, 1 - wrong)
        shared = ((proba * weight[:, None]) @ proba.mT).to(hessian.dtype)
        shared.diagonal(dim1=1, dim2=2).zero_()
        # Σ w p (1 − p) is the sum over the other classes of Σ w p p': it keeps its digits if p is close to 1.
        hessian += torch.diag_embed(shared.sum(2)) - shared
    return row_loss, proba.mul_(weight[:, None]).scatter_(1, labels, -wrong * weight[:, None])


class Loss:
    """The weighted loss of one problem in which no class is closed, and its derivative by the logits (c, n).

    A few operations, as small problems are made of nothing else: what `_softmax` does for losses that are tiny next to
    the logits is left out, so that a loss has an absolute error of a few roundings of its logits.
    """

    def __init__(self, labels: Tensor, weight: Tensor) -> None:
        self.index, self.weight, self.against = labels[None], weight, -weight
        self.flip = labels.to(weight.dtype).mul_(-2).add_(1)  # 1 for the first class, −1 for the second
        self.flipped = self.flip * weight

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return both."""
        if logits.shape[0] == 1:
            against = logits[0] * self.flip
            loss = torch.dot(functional.softplus(against), self.weight)
            return loss, torch.sigmoid_(against).mul_(self.flipped)[None]
        log_proba = torch.log_softmax(logits, 0)
        loss = torch.dot(log_proba.gather(0, self.index)[0], self.against)
        return loss, log_proba.exp_().mul_(self.weight).scatter_add_(0, self.index, self.against[None])
