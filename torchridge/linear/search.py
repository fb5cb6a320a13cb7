"""Choose a strength: score a grid, refine it, take the best (NaN last), warn at its edge."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.exceptions import GridEdgeWarning
from torchridge.linear.arguments import Strengths
from torchridge.solvers.grid import finer_grid
from torchridge.solvers.least_squares.objective import Objective


class Chosen(NamedTuple):
    """The best of some strengths."""

    place: Tensor  # (1,) or, a strength for each target, (t,); on the host
    score: Tensor  # () or (t,)
    strengths: Strengths


def best_index(scores: Tensor, grid: Tensor, higher_is_better: bool) -> Tensor:
    """Return the index of the best strength for each column of scores (L, c), on the host; of equal ones the strongest.

    NaN is the worst score. One wait for a device.
    """
    loss = (-scores if higher_is_better else scores).detach().cpu()
    loss = torch.where(torch.isnan(loss), torch.inf, loss)
    tied = loss == loss.amin(0)
    return torch.where(tied, grid.cpu()[:, None], -1).argmax(0)


def choose(
    scores: Tensor, grid: Tensor, higher_is_better: bool, per_target: bool, given: bool, dead: Tensor | None = None
) -> Chosen:
    """Return the best of strengths (L,) by scores (L, t) or their mean; warn at the edge of a `given` grid.

    Targets that are `dead` (t,), constant, count for nothing in the mean and in the warning.
    """
    compared = scores if per_target else mean_of_targets(scores, dead)
    index = best_index(compared, grid, higher_is_better)
    if given:
        warn_of_edge(grid, index if dead is None or not per_target else index[~dead.cpu()])
    alpha = grid[index]
    score = compared.gather(0, index.to(compared.device)[None])[0]
    strengths = Strengths(alpha.to(scores.device), per_target and len(index) > 1, float(alpha.min()))
    return Chosen(index, score if per_target else score[0], strengths)


def mean_of_targets(scores: Tensor, dead: Tensor | None) -> Tensor:
    """Return the mean of scores (L, t) over the targets that are not dead, (L, 1); over all if none is left."""
    if dead is None:
        return scores.mean(1, keepdim=True)
    live = ~dead | dead.all()
    return torch.where(live, scores, 0).sum(1, keepdim=True) / live.sum()


def mean_of_folds(table: Tensor, live: Tensor | None = None) -> Tensor:
    """Return the mean of scores (K, L, t) over the folds where a target is `live` (K, t): NaN if it never is."""
    if live is None:
        return table.mean(0)
    return torch.where(live[:, None], table, 0).sum(0) / live.sum(0)


def refined(
    score: Callable[[Tensor], Tensor],
    grid: Tensor,
    higher_is_better: bool,
    per_target: bool,
    live: Tensor | None = None,
    dead: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return strengths and their scores (K, L, t): those of a coarse grid, and of finer ones around the best."""
    table = score(grid)
    scores = mean_of_folds(table, live)
    best = best_index(scores if per_target else mean_of_targets(scores, dead), grid, higher_is_better)
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
    if len(grid) < 2 or len(best) == 0:
        return
    chosen = grid[best]
    at_edge = (chosen == grid.min()) | (chosen == grid.max())
    if bool(at_edge.any()):
        count = f" for {int(at_edge.sum())} of {len(best)} targets" if len(best) > 1 else ""
        edge = float(chosen[at_edge][0])
        warnings.warn(
            f"the best strength, {edge:g}{count}, lies at the edge of the grid from {float(grid.min()):g} to "
            f"{float(grid.max()):g}. Widen `alphas`, or pass alphas='auto'.",
            GridEdgeWarning,
            stacklevel=6,
        )
