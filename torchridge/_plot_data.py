"""What the pictures show, as plain numbers: taken out of solutions and probes, and checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.logistic.cross_validation import LogisticCV
from torchridge.linear.logistic.solution import LogisticSolution
from torchridge.linear.ridge.solution import RidgeSolution


class Curve(NamedTuple):
    strengths: Tensor  # (L,)
    scores: Tensor  # (L,)
    folds: Tensor | None  # (K, L)
    chosen: float
    name: str
    scoring: str


def lines_of(path: Any, target: int) -> tuple[Tensor, Tensor, str]:
    """Return strengths (L,), the weights of one target (L, d) and the letter of the strength."""
    if isinstance(path, RidgeSolution):
        strengths, name, single = path.alpha, "α", not path.is_path
    elif isinstance(path, LogisticSolution):
        strengths, name, single = path.C, "C", path.C.ndim == 0
    else:
        raise TypeError(f"`path` should be of `ridge_path` or `logistic`, got {type(path).__name__}.")
    if single:
        raise ValueError("`path` has one strength, expected several. Call `ridge_path(X, y, alphas)`.")
    if path.weight.ndim != 3:
        raise ValueError(f"`path` has weights of shape {tuple(path.weight.shape)}, expected (L, t, d): one problem.")
    return _plain(strengths), _plain(path.weight)[:, _row(target, path.weight.shape[1])], name


def curve_of(result: Any, target: int | None) -> Curve:
    if isinstance(result, RidgeSolution):
        return _ridge_curve(result, target)
    if isinstance(result, LogisticCV):
        folds = _plain(result.scores)
        return Curve(_plain(result.Cs), folds.mean(0), folds, float(result.C), "C", "held-out score")
    if not all(hasattr(result, name) for name in ("curve", "strengths", "strength", "criterion")):
        raise TypeError(f"`result` should be of `ridge_cv` or `logistic_cv`, or a probe, got {type(result).__name__}.")
    name = {"ridge": "α", "lda": "γ", "logistic": "C"}[result.readout]
    folds = _plain(result.curve)
    return Curve(_plain(result.strengths), folds.mean(0), folds, float(result.strength), name, result.criterion)


def _ridge_curve(solution: RidgeSolution, target: int | None) -> Curve:
    if solution.alphas is None or solution.scores is None:
        raise ValueError("`result` was fitted at given strengths, nothing was chosen. Call `ridge_cv`.")
    if solution.scores.ndim != 2:
        raise ValueError(f"`result` has scores of shape {tuple(solution.scores.shape)}, expected (L, t): one problem.")
    if target is None and solution.alpha.ndim == 1 and len(solution.alpha) > 1:
        raise ValueError("`result` has a strength for each target. Pass one of them as `target`.")
    t = solution.scores.shape[1]
    pick = slice(None) if target is None else slice(_row(target, t), _row(target, t) + 1)
    folds = None if solution.fold_scores is None else _plain(solution.fold_scores)[:, :, pick].mean(2)
    alpha = solution.alpha if solution.alpha.ndim == 0 else solution.alpha[target or 0]
    scores = _plain(solution.scores)[:, pick].mean(1)
    return Curve(_plain(solution.alphas), scores, folds, float(alpha), "α", str(solution.scoring))


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def number_of(value: Any, name: str) -> float:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, (int, float)):
        raise TypeError(f"`{name}` should be one number, got {type(value).__name__}.")
    return float(number)


def _row(target: int, count: int) -> int:
    row = _check.integer(target, "target", minimum=0)
    if row >= count:
        raise ValueError(f"`target`={row} is not there: the weights have {count} targets, counted from 0.")
    return row
