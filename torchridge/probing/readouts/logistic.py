"""The logistic readout of one layer, from its kept features."""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge._ranks import Ranks
from torchridge.linear.logistic.logistic import choose_strength
from torchridge.probing.features.folding import ClassCodes
from torchridge.probing.features.kept import Kept
from torchridge.probing.features.table import shuffle
from torchridge.probing.readouts.linear import Fitted
from torchridge.probing.readouts.table import READOUTS, Readout, Source
from torchridge.probing.settings import Settings
from torchridge.solvers.cross_entropy.over_ranks import summed
from torchridge.solvers.device import sent

_SIZE = 25  # strengths of an automatic grid

# Relative gap of the objective: probabilities are off by about its root.
_TOL = 1e-13

_OPTIONS = {"fit_intercept": True, "max_iter": 1000, "max_elements": 2**24, "dtype": None}


def fit(
    kept: Kept,
    layer: str,
    codes: ClassCodes,
    settings: Settings,
    control: bool,
    *,
    empty: Tensor,
    ranks: Ranks | None = None,
) -> Fitted:
    """Fit C Σ s CE + ½ ‖W‖², C by the held-out log-loss; features in units of their deviation over all rows if asked.

    Weights that balance classes are taken from the counts over all rows. `empty` (0, d) stands for no rows; with
    `ranks`, all their rows are fitted.
    """
    X = kept.layer(layer) if kept.chunks else kept.as_read(empty)
    mean, scale = _spread(X, ranks) if settings.standardize else (None, None)
    rows = X if mean is None or scale is None else ((X - mean) / scale).to(X.dtype)
    none = torch.empty(0, dtype=torch.int64)
    coded = [_targets(c.target, settings, i, control) for i, c in enumerate(kept.chunks)]
    target = codes.order.argsort()[torch.cat([none, *coded])]
    fold = torch.cat([none, *(c.fold for c in kept.chunks)])
    grid = settings.grid("Cs")
    solution, folds = choose_strength(
        rows,
        sent(target, X.device),
        torch.logspace(-4, 4, _SIZE, dtype=torch.float64) if grid is None else grid,
        fold,
        None,
        "log_loss",
        _weight(kept, target, codes, settings, X, ranks),
        {**_OPTIONS, "tol": _TOL if X.dtype is torch.float64 else None, "process_group": settings.process_group},
    )
    assert solution.Cs is not None
    assert solution.fold_scores is not None
    curve = solution.fold_scores[..., 0]
    weight, bias = _unscaled(solution.weight.double(), solution.bias.double(), mean, scale)
    fold_weight, fold_bias = _unscaled(folds.weight.double(), folds.bias.double(), mean, scale)
    scores = {"log_loss": curve[:, folds.place].double()}
    return Fitted(weight, bias, fold_weight, fold_bias, float(solution.C), solution.Cs, "log_loss", curve, scores)


def _spread(X: Tensor, ranks: Ranks | None) -> tuple[Tensor, Tensor]:
    """Return the means and the standard deviations of all rows; 1 for a feature that is constant."""
    n = summed(ranks, "the rows", torch.tensor(float(len(X)), dtype=torch.float64, device=X.device))
    mean = summed(ranks, "the means", X.double().sum(0)) / n
    scale = (summed(ranks, "the variances", (X.double() - mean).square().sum(0)) / n).sqrt()
    return mean, torch.where(scale > 0, scale, 1)


def _targets(target: Tensor, settings: Settings, chunk: int, control: bool) -> Tensor:
    return target[shuffle(len(target), settings.seed, chunk)] if control else target


def _unscaled(weight: Tensor, bias: Tensor, mean: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weights and biases in the units of the features."""
    if mean is None or scale is None:
        return weight, bias
    weight = weight / scale
    return weight, bias - weight @ mean


def _weight(
    kept: Kept, target: Tensor, codes: ClassCodes, settings: Settings, like: Tensor, ranks: Ranks | None
) -> Tensor | None:
    given = settings.class_weight
    parts = [c.weight for c in kept.chunks if c.weight is not None]
    weight = torch.cat(parts) if parts else None
    if given is not None:
        if isinstance(given, str):
            own = torch.bincount(target, weights=weight, minlength=len(codes)).double()
            counts = summed(ranks, "class weights", own)
            table = counts.sum() / (len(counts) * counts)
        else:
            table = torch.tensor([float(given.get(c, 1.0)) for c in codes.classes.tolist()], dtype=torch.float64)
        weight = table[target] if weight is None else weight * table[target]
    return None if weight is None else weight.to(like.device, like.dtype)


def _fit(source: Source) -> Fitted:
    assert source.kept is not None
    options = {"empty": source.empty, "ranks": source.ranks}
    return fit(source.kept, source.layer, source.codes, source.settings, source.control, **options)  # type: ignore[arg-type]


READOUTS["logistic"] = Readout(_fit, "C", features=True)
