"""Choose a strength: score a grid, refine it, take the best (NaN last), warn at its edge."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.exceptions import GridEdgeWarning, UndefinedScoreWarning, UnresolvedChoiceWarning, warn
from torchridge.linear.arguments import Strengths
from torchridge.solvers.grid import finer_grid
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.precision import Precision


class Chosen(NamedTuple):
    """The best of some strengths."""

    place: Tensor  # (1,) or, a strength for each target, (t,); on the host
    score: Tensor  # () or (t,)
    strengths: Strengths
    scores: Tensor  # (L, t), means over folds


def best_index(scores: Tensor, grid: Tensor, higher_is_better: bool) -> Tensor:
    """Return the index of the best strength for each column of scores (L, c), on the host; of equal ones the strongest.

    NaN is the worst score. One wait for a device.
    """
    loss = (-scores if higher_is_better else scores).detach().cpu()
    loss = torch.where(torch.isnan(loss), torch.inf, loss)
    tied = loss == loss.amin(0)
    return torch.where(tied, grid.cpu()[:, None], -1).argmax(0)


def choose(
    table: Tensor, grid: Tensor, higher_is_better: bool, per_target: bool, given: bool, counts: Tensor | None = None
) -> Chosen:
    """Return the best of strengths (L,) by scores (K, L, t) of folds or their mean; warn at the edge of a `given` grid.

    Targets that do not `counts` (t,) have no say in a choice that all share.
    """
    scores = table.mean(0)
    compared = _compared(scores, per_target, counts)
    if bool(torch.isnan(compared.detach()).any().cpu()):
        scores = mean_over_folds(table)
        compared = _compared(scores, per_target, counts)
    index = best_index(compared, grid, higher_is_better)
    if given:
        warn_of_edge(grid, index)
    alpha = grid[index]
    score = compared.gather(0, index.to(compared.device)[None])[0]
    strengths = Strengths(alpha.to(scores.device), per_target and len(index) > 1, float(alpha.min()))
    return Chosen(index, score if per_target else score[0], strengths, scores)


def _compared(scores: Tensor, per_target: bool, counts: Tensor | None) -> Tensor:
    if per_target:
        return scores
    return (scores if counts is None else scores[:, counts]).mean(1, keepdim=True)


def mean_over_folds(table: Tensor) -> Tensor:
    """Return the mean over folds of scores (K, L, ...) some of which are NaN, and warn of the folds.

    A fold without a score at any strength says nothing and is left out; elsewhere a NaN makes its strength the worst.

    Raises:
        ValueError: if no strength is left with a score.
    """
    nan = torch.isnan(table)
    silent = nan.flatten(2).all(2).all(1) if table.ndim > 2 else nan.all(1)  # (K,)
    mean = table[~silent].mean(0) if not bool(silent.all()) else table.mean(0)
    folds = nan.flatten(1).any(1).nonzero()[:, 0].tolist()
    if bool(torch.isnan(mean).all()):
        raise ValueError(
            f"no strength has a score: it is NaN in folds {folds}. R² needs two rows in every held-out part; use fewer "
            f"folds, or another `scoring`, e.g. squared error."
        )
    left = f"; folds {silent.nonzero()[:, 0].tolist()} have none at all and are left out" if bool(silent.any()) else ""
    warn(f"the score is NaN in folds {folds}{left}. A strength with a NaN counts as the worst.", UndefinedScoreWarning)
    return mean


def r2_scores(squares: Tensor, variances: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return R² (K, L, t) of mean squared errors and variances (K, t), and which targets can choose; None for all.

    R² is 0 in a fold whose target is constant, and a target that is constant in all folds chooses nothing.
    """
    constant = variances <= 0
    table = 1 - squares / torch.where(constant, 1, variances)[:, None]
    places = constant.detach().cpu()
    if not bool(places.any()):
        return table, None
    found = [f"target {j} in folds {places[:, j].nonzero()[:, 0].tolist()}" for j in range(places.shape[1])]
    named = [text for text, some in zip(found, places.any(0).tolist(), strict=True) if some]
    listed = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    warn(
        f"R² is undefined where held-out targets are constant: {listed}. It counts as 0 there, whatever the strength.",
        UndefinedScoreWarning,
    )
    counts = ~places.all(0)
    return torch.where(constant[:, None], 0, table), counts.to(squares.device) if bool(counts.any()) else None


def warn_unless_resolved(known: Precision, weakest: float, best: float, dtype: torch.dtype) -> None:
    """Warn if rounding took more of the scores than what sets the weakest strength apart from the best."""
    close = not abs(weakest - best) > 100 * known.lost * abs(weakest)
    if known.lost > torch.finfo(dtype).eps ** 0.5 and close:
        warn(
            f"the scores of the weakest strengths may be off by {min(known.lost, 1.0):.0e} of their size, so that the "
            f"choice between them is unresolved. Leave out the weakest strengths or drop dependent features; from "
            f"moments, call `ridge_cv(X, y, ...)` on the rows in float64, which hold more digits.",
            UnresolvedChoiceWarning,
        )


def refined(
    score: Callable[[Tensor], Tensor], grid: Tensor, higher_is_better: bool, per_target: bool
) -> tuple[Tensor, Tensor]:
    """Return strengths and their scores (K, L, t): those of a coarse grid, and of finer ones around the best."""
    table = score(grid)
    scores = table.nanmean(0)
    best = best_index(scores if per_target else scores.mean(1, keepdim=True), grid, higher_is_better)
    finer = finer_grid(grid, best)
    both, order = torch.cat([grid, finer]).sort()
    return both, torch.cat([table, score(finer)], 1)[:, order.to(table.device)]


def refuse_one_row(n: int, cv: str, objective: Objective) -> None:
    """Raise if a criterion would judge strengths by a single row: its mean, or leaving it out, leaves nothing."""
    if n < 2 and (cv == "loo" or objective.intercept):
        raise ValueError(
            f"`cv`={cv!r} cannot choose a strength by one row (n_samples={n}): nothing is left to learn from. Give "
            f"more rows, or the strength: `ridge(X, y, alpha)`."
        )


def warn_of_edge(grid: Tensor, best: Tensor) -> None:
    """Warn if the best of several strengths is the first or last of the grid."""
    if len(grid) < 2:
        return
    chosen = grid[best]
    at_edge = (chosen == grid.min()) | (chosen == grid.max())
    if bool(at_edge.any()):
        count = f" for {int(at_edge.sum())} of {len(best)} targets" if len(best) > 1 else ""
        edge = float(chosen[at_edge][0])
        warn(
            f"the best strength, {edge:g}{count}, lies at the edge of the grid from {float(grid.min()):g} to "
            f"{float(grid.max()):g}. Widen `alphas`, or pass alphas='auto'.",
            GridEdgeWarning,
        )
