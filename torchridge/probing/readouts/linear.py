"""Linear readouts of one layer from the moments of its folds, the strength chosen on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.linear.arguments import Strengths
from torchridge.linear.ridge.choose import choose
from torchridge.linear.ridge.dense import Dense
from torchridge.linear.ridge.solve import fit_dense
from torchridge.linear.search import ALPHAS, SHRINKAGES, Kind, itself, search, warn_unless_resolved
from torchridge.probing.readouts.table import READOUTS, Readout, Source
from torchridge.solvers.device import sent
from torchridge.solvers.least_squares import discriminant
from torchridge.solvers.least_squares.discriminant import as_difference
from torchridge.solvers.least_squares.each_fold import FoldMoments, fold_weights
from torchridge.solvers.least_squares.grid import coarse_grid
from torchridge.solvers.least_squares.objective import Objective, feature_variance
from torchridge.solvers.moments import targets
from torchridge.solvers.moments.blocks import Block

SIZE = 100  # strengths of an automatic grid


class Parts(NamedTuple):
    """The moments of K folds, as they train and as they are held out, and of all rows."""

    train: list[Block]
    held: list[Block]
    whole: Block

    def map(self, change: Callable[[Block], Block]) -> Parts:
        """Return every block changed."""
        return Parts([change(b) for b in self.train], [change(b) for b in self.held], change(self.whole))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A readout at its best strength.

    Attributes:
        weight: (t, d) of all rows.
        bias: (t,).
        fold_weight: (K, t, d) of each training part.
        fold_bias: (K, t).
        strength: the chosen one.
        strengths: (L,).
        criterion: what chose: "mse" and "log_loss" (with a minus sign), or "log_likelihood"; larger is better.
        curve: (K, L) that criterion.
        scores: (K,) held-out scores by name; larger is better.
        held_mean: (K, t) of the held-out targets, in a regression.
        held_variance: (K, t).
    """

    weight: Tensor
    bias: Tensor
    fold_weight: Tensor
    fold_bias: Tensor
    strength: float
    strengths: Tensor
    criterion: str
    curve: Tensor
    scores: dict[str, Tensor]
    held_mean: Tensor | None = None
    held_variance: Tensor | None = None

    @property
    def has_proba(self) -> bool:
        """Whether the softmax of the scores is the model's probability: not that of ridge."""
        return self.criterion != "mse"


def ridge(parts: Parts, alphas: Tensor | None, standardize: bool) -> Fitted:
    """Fit Σ s ‖y − Wx − b‖² + α ‖W‖², α by the mean held-out squared error.

    Cost: K + 1 eigendecompositions.
    """
    objective = Objective(standardize=standardize)
    folds = FoldMoments(parts.train, parts.held, objective)
    grid = sent(coarse_grid(folds.eigvals, SIZE) if alphas is None else alphas, folds.eigvals)
    squares = folds.squares(grid)  # (K, L, t)
    curve = -squares.mean(2)
    best = _best(curve, grid, ALPHAS, given=alphas is not None)
    variance = folds.variances()
    # A target that is constant in a fold has R² 0, as in scikit-learn.
    share = squares[:, best] / torch.where(variance > 0, variance, torch.ones_like(variance))
    r2 = torch.where(variance > 0, 1 - share, torch.zeros_like(share))
    alpha = grid[best : best + 1]
    warn_unless_resolved(folds.precision, float(curve.mean(0)[grid.argmin()]), float(curve.mean(0)[best]), grid.dtype)
    each = [fold_weights(folds, k, alpha) for k in range(len(parts.train))]
    weight, bias = torch.stack([w[:, 0].T for w, _ in each]), torch.stack([b[0] for _, b in each])  # (K, t, d)
    final, final_bias = ridge_weights(parts.whole, alpha, objective)
    scores = {"r2": r2.mean(1), "mse": curve[:, best]}
    mean = torch.stack([b.mean_y for b in parts.held])
    return Fitted(final, final_bias, weight, bias, float(alpha), grid, "mse", curve, scores, mean, variance)


def ridge_weights(block: Block, alpha: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return weights (t, d) and biases (t,) at one strength, alpha (1,)."""
    d, strengths = block.gram.shape[0], Strengths(alpha, False, float(alpha.min()))
    choice = choose("auto", n=block.rows, d=d, strengths=strengths, rows_at_hand=False)
    fit = fit_dense(Dense(objective, strengths, torch.float64, lambda: block, None), choice)
    assert fit.weight is not None  # moments have no dual form
    return fit.weight[:, 0].T, fit.bias[0]


def lda(parts: Parts, shrinkages: Tensor | None, standardize: bool) -> Fitted:
    """Fit regularized discriminants, shrinkage by the mean held-out log-likelihood of features and classes.

    Cost: K + 1 eigendecompositions.
    """
    grid = torch.logspace(-5, 0, SIZE, dtype=torch.float64) if shrinkages is None else shrinkages
    grid = sent(grid, parts.whole.gram)
    pairs = [unit(b, h, standardize) for b, h in zip(parts.train, parts.held, strict=True)]
    models = [discriminant.discriminant(train) for train, _, _ in pairs]
    curve = torch.stack(
        [discriminant.heldout_log_likelihood(m, held, grid) for m, (_, held, _) in zip(models, pairs, strict=True)]
    )
    best = _best(curve, grid, SHRINKAGES, given=False)  # no shrinkage and full shrinkage are the natural ends
    chosen = grid[best : best + 1]
    folds = [lda_weights(m, chosen, scale) for m, (_, _, scale) in zip(models, pairs, strict=True)]
    whole, _, scale = unit(parts.whole, parts.whole, standardize)
    weight, bias = lda_weights(discriminant.discriminant(whole), chosen, scale)
    fold_weight, fold_bias = torch.stack([w for w, _ in folds]), torch.stack([b for _, b in folds])
    scores = {"log_likelihood": curve[:, best]}
    return Fitted(weight, bias, fold_weight, fold_bias, float(chosen), grid, "log_likelihood", curve, scores)


def _best(curve: Tensor, grid: Tensor, kind: Kind, *, given: bool) -> int:
    """Return the place of the best mean over folds of scores (K, L)."""
    return int(search(lambda _: curve[..., None], grid.cpu(), itself, kind=kind, given=given).place)


def unit(train: Block, held: Block, standardize: bool) -> tuple[Block, Block, Tensor | None]:
    """Return both parts in units of the training part's standard deviations, if asked, and the scale."""
    if not standardize:
        return train, held, None
    scale = feature_variance(train).rsqrt()
    return targets.rescaled(train, scale), targets.rescaled(held, scale), scale


def lda_weights(
    model: discriminant.Discriminant, shrinkage: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return discriminants (t, d) and (t,) in the units of the features, at one shrinkage (1,)."""
    weight, bias = as_difference(*discriminant.weights(model, shrinkage))
    return (weight[0] if scale is None else weight[0] * scale), bias[0]


def coded(parts: Parts) -> Parts:
    """Return the moments with RidgeClassifier's targets: −1 and 1, one column for two classes."""
    return parts.map(signed)


def signed(block: Block) -> Block:
    """Return the moments of indicators as those of −1 and 1, one column for two classes."""
    last = block.yy.new_full((1,), 1, dtype=torch.int64)
    return targets.signed(targets.selected(block, last) if block.yy.shape[0] == 2 else block)


def _fit_ridge(source: Source) -> Fitted:
    settings = source.settings
    parts = coded(source.parts) if settings.classification else source.parts
    return ridge(parts, settings.grid("alphas"), settings.standardize)


def _fit_lda(source: Source) -> Fitted:
    return lda(source.parts, source.settings.grid("shrinkages"), source.settings.standardize)


def _ridge_at(block: Block, strength: float, standardize: bool, classes: bool) -> tuple[Tensor, Tensor]:
    alpha = block.gram.new_full((1,), strength, dtype=torch.float64)
    return ridge_weights(signed(block) if classes else block, alpha, Objective(standardize=standardize))


def _lda_at(block: Block, strength: float, standardize: bool, classes: bool) -> tuple[Tensor, Tensor]:
    scaled, _, scale = unit(block, block, standardize)
    value = block.gram.new_full((1,), strength, dtype=torch.float64)
    return lda_weights(discriminant.discriminant(scaled), value, scale)


READOUTS["ridge"] = Readout(_fit_ridge, "α", numbers=True, at=_ridge_at)
READOUTS["lda"] = Readout(_fit_lda, "γ", at=_lda_at)
