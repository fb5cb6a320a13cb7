"""What a picture of a result shows, as plain numbers on the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchridge import _check


class Curve(NamedTuple):
    """The score of every strength that was tried; larger is better."""

    strengths: Tensor  # (L,) float64
    scores: Tensor  # (L,)
    folds: Tensor | None  # (K, L); None if the score is not a mean over folds
    chosen: float
    name: str  # of the strength: "α", "C" or "γ"
    scoring: str


class Lines(NamedTuple):
    """The weights of one target at every strength of a path."""

    strengths: Tensor  # (L,) float64
    weight: Tensor  # (L, d)
    name: str  # of the strength: "α" or "C"


def curve(
    strengths: Tensor | None,
    scores: Tensor | None,
    fold_scores: Tensor | None,
    chosen: Tensor,
    name: str,
    scoring: str | None,
    target: int | None,
) -> Curve:
    """Return the scores (L, t) of one target, or their mean over targets."""
    if strengths is None or scores is None:
        raise ValueError(
            "this solution was fitted at given strengths, so nothing was chosen. Call `ridge_cv` or `logistic_cv`."
        )
    if scores.ndim != 2:
        raise ValueError(f"the scores have shape {tuple(scores.shape)}, expected (L, t): one problem, not a batch.")
    if target is None and chosen.ndim == 1 and len(chosen) > 1:
        raise ValueError("each target has its own strength. Pass one of them as `target`.")
    row = None if target is None else row_of(target, scores.shape[1])
    pick = slice(None) if row is None else slice(row, row + 1)
    folds = None if fold_scores is None else plain(fold_scores)[:, :, pick].mean(2)
    best = chosen if chosen.ndim == 0 else chosen[row or 0]
    return Curve(plain(strengths), plain(scores)[:, pick].mean(1), folds, float(best), name, str(scoring))


def lines(strengths: Tensor, weight: Tensor, name: str, target: int) -> Lines:
    """Return the weights (L, t, d) of one target."""
    if strengths.ndim == 0 or weight.ndim == 2:
        raise ValueError("this solution has one strength, expected a path of several. Call `ridge_path(X, y, alphas)`.")
    if weight.ndim != 3:
        raise ValueError(f"the weights have shape {tuple(weight.shape)}, expected (L, t, d): one problem.")
    return Lines(plain(strengths), plain(weight)[:, row_of(target, weight.shape[1])], name)


def plain(values: Tensor) -> Tensor:
    """Return values as float64 on the host."""
    return values.detach().to("cpu", torch.float64)


def row_of(target: int, count: int) -> int:
    """Return the number of a target, or raise."""
    row = _check.integer(target, "target", minimum=0)
    if row >= count:
        raise ValueError(f"`target`={row} is out of range: there are {count} targets (0 to {count - 1}).")
    return row
