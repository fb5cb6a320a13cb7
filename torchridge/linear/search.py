"""Choose a strength: score a grid, refine it, take the best (NaN last), warn at its edge.

A score is larger for a better strength, whatever it is: errors and losses carry a minus sign.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchridge.exceptions import GridEdgeWarning, UndefinedScoreWarning, UnresolvedChoiceWarning, warn
from torchridge.linear.arguments import Strengths
from torchridge.solvers.device import sent
from torchridge.solvers.least_squares.criteria import CRITERIA
from torchridge.solvers.least_squares.grid import finer_grid
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.precision import Precision

T = TypeVar("T")


class Kind(NamedTuple):
    """What a grid holds: the argument it came in, what widens it, and whether a larger value is a weaker penalty."""

    name: str
    cure: str
    weaker: bool = False

    def preference(self, grid: Tensor) -> Tensor:
        """Return what of equal scores is preferred if it is larger: the stronger penalty."""
        return 1 / grid if self.weaker else grid


ALPHAS = Kind("alphas", "Widen `alphas`, or pass alphas='auto'.")
SHRINKAGES = Kind("shrinkages", "Widen `shrinkages`.")
CS = Kind("Cs", "Widen `Cs`.", weaker=True)


class Live(NamedTuple):
    """Which scores count: a target that is constant has no R² and no correlation, and has no say in a shared choice."""

    folds: Tensor | None = None  # (K, t) whether a target varies in a fold; None if that does not matter to the score
    dead: Tensor | None = None  # (t,) whether it is constant over all rows

    def mean_of_folds(self, table: Tensor) -> Tensor:
        """Return the mean of scores (K, L, t) over the folds if a target varies: NaN if it never does."""
        if self.folds is None:
            return table.mean(0)
        return torch.where(self.folds[:, None], table, 0).sum(0) / self.folds.sum(0)

    def mean_of_targets(self, scores: Tensor) -> Tensor:
        """Return the mean of scores (L, t) over the targets that are not dead, (L, 1); over all if none is left."""
        if self.dead is None or self.dead.shape[0] != scores.shape[1]:
            return scores.mean(1, keepdim=True)
        kept = ~self.dead | self.dead.all()
        return torch.where(kept, scores, 0).sum(1, keepdim=True) / kept.sum()

    def places(self, place: Tensor) -> Tensor:
        """Return the places of targets that are not dead, on the host."""
        return place if self.dead is None or len(place) != len(self.dead) else place[~self.dead.cpu()]


EVERYTHING = Live()


class Found(NamedTuple, Generic[T]):
    """The strengths that were tried, their scores, and the best of them."""

    grid: Tensor  # (L,) on the host
    scored: T  # what the scorer returned, over all strengths
    table: Tensor  # (K, L, t)
    place: Tensor  # (1,) or, a strength for each target, (t,); on the host
    score: Tensor  # of the best, () or (t,)
    live: Live = EVERYTHING

    @property
    def scores(self) -> Tensor:
        """The mean over folds, (L, t)."""
        return self.live.mean_of_folds(self.table)

    def strengths(self, per_target: bool) -> Strengths:
        """Return the best strengths, on the device of the scores."""
        alpha = self.grid[self.place]
        return Strengths(sent(alpha, self.table.device), per_target and len(self.place) > 1, float(alpha.min()))


def best_index(scores: Tensor, preference: Tensor) -> Tensor:
    """Return the index of the best for each column of scores (L, c), on the host; NaN is the worst score.

    Of equal ones that of the largest `preference` (L,). One wait for a device.
    """
    scores = scores.detach().cpu()
    scores = torch.where(torch.isnan(scores), -torch.inf, scores)
    preference = preference.detach().cpu()[:, None]
    least = torch.full_like(preference, -torch.inf)
    return torch.where(scores == scores.amax(0), preference, least).argmax(0)


def first_best(scores: Tensor) -> Tensor:
    """Return the same, of equal ones the first, as scikit-learn does."""
    return best_index(scores, -torch.arange(len(scores), dtype=torch.float64))


def search(
    score: Callable[[Tensor], T],
    grid: Tensor,
    table: Callable[[T], Tensor],
    *,
    kind: Kind = ALPHAS,
    given: bool,
    per_target: bool = False,
    join: Callable[[T, T, Tensor], T] | None = None,
    cells: int = 16,
    live: Live = EVERYTHING,
) -> Found[T]:
    """Score the strengths of a grid, and finer ones around the best; warn if the best ends a `given` grid.

    Args:
        score: of strengths (L,).
        grid: (L,) on the host.
        table: takes the scores (K, L, t) out of what `score` returns.
        kind: of the strengths.
        given: whether the grid came from the caller.
        per_target: whether each target has its own best; otherwise the mean over targets is compared.
        join: puts together what two grids scored, in an order (L,); without it nothing is refined.
        cells: into which each cell next to the best is divided.
        live: which scores count.
    """
    scored = score(grid)
    if join is not None:
        finer = finer_grid(grid, _best(table(scored), grid, kind, per_target, live), cells)
        grid, order = torch.cat([grid, finer]).sort()
        scored = join(scored, score(finer), order)
    place = _best(table(scored), grid, kind, per_target, live)
    if given:
        warn_of_edge(grid, live.places(place) if per_target else place, kind)
    return Found(grid, scored, table(scored), place, _score_at(table(scored), place, per_target, live), live)


def itself(table: Tensor) -> Tensor:
    """Return what a scorer returned, if that is its scores and nothing else."""
    return table


def joined(coarse: Tensor, finer: Tensor, order: Tensor) -> Tensor:
    """Return the scores (K, L, t) of two grids, in an order (L,)."""
    return torch.cat([coarse, finer], 1)[:, sent(order, coarse.device)]


def mean_over_folds(table: Tensor) -> Tensor:
    """Return the mean over folds of scores (K, L) or (K, L, t), some of which are NaN, and warn of the folds.

    A fold without a score at any strength says nothing and is left out; elsewhere a NaN makes its strength the worst.

    Raises:
        ValueError: if no strength is left with a score.
    """
    nan = torch.isnan(table)
    silent = nan.all(1, keepdim=True)  # (K, 1) or (K, 1, t)
    mean = torch.where(silent, 0, table).sum(0) / (~silent).sum(0)  # 0 / 0 if no fold says anything
    folds, none = (flags.flatten(1).any(1).nonzero()[:, 0].tolist() for flags in (nan, silent))
    if bool(torch.isnan(mean).all()):
        raise ValueError(
            f"no strength has a score: it is NaN in folds {folds}. R² needs two rows in every held-out part; use fewer "
            f"folds, or another `scoring`, e.g. squared error."
        )
    left = f"; folds {none} have none at all and are left out" if none else ""
    warn(f"the score is NaN in folds {folds}{left}. A strength with a NaN counts as the worst.", UndefinedScoreWarning)
    return mean


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


def warn_of_nan(table: Tensor) -> None:
    """Warn if a scorer returned NaN, which is the worst of all scores, and name the folds of (K, L, t)."""
    undefined = torch.isnan(table).flatten(1).any(1)
    if bool(undefined.any()):
        folds = undefined.nonzero()[:, 0].tolist()
        warn(f"the score is NaN in folds {folds}. A strength with a NaN counts as the worst.", UndefinedScoreWarning)


def warn_of_silent(table: Tensor, live: Live) -> None:
    """Warn if R² or a correlation is undefined in some folds, whose targets are constant there; one wait."""
    if live.folds is None:
        return
    places = (~live.folds).detach().cpu()
    if not bool(places.any()):
        return
    found = [f"target {j} in folds {places[:, j].nonzero()[:, 0].tolist()}" for j in range(places.shape[1])]
    named = [text for text, some in zip(found, places.any(0).tolist(), strict=True) if some]
    listed = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    warn(
        f"held-out targets are constant, so that they have no score there: {listed}. Those folds are left out.",
        UndefinedScoreWarning,
    )


def refuse_one_row(n: int, cv: str, objective: Objective) -> None:
    """Raise if a criterion would judge strengths by a single row: its mean, or leaving it out, leaves nothing."""
    if n < 2 and (CRITERIA[cv].holds_out or objective.intercept):
        raise ValueError(
            f"`cv`={cv!r} cannot choose a strength by one row (n_samples={n}): nothing is left to learn from. Give "
            f"more rows, or the strength: `ridge(X, y, alpha)`."
        )


def warn_of_edge(grid: Tensor, best: Tensor, kind: Kind = ALPHAS) -> None:
    """Warn if the best of several strengths is the first or last of the grid."""
    if len(grid) < 2 or len(best) == 0:
        return
    grid = grid.detach().cpu()
    chosen = grid[best]
    at_edge = ((chosen == grid.min()) | (chosen == grid.max())) & torch.isfinite(chosen)  # nothing is beyond C = ∞
    if bool(at_edge.any()):
        count = f" for {int(at_edge.sum())} of {len(best)} targets" if len(best) > 1 else ""
        edge = float(chosen[at_edge][0])
        warn(
            f"the best strength, {edge:g}{count}, lies at the edge of the grid from {float(grid.min()):g} to "
            f"{float(grid.max()):g}. {kind.cure}",
            GridEdgeWarning,
        )


def _compared(table: Tensor, per_target: bool, live: Live) -> Tensor:
    mean = live.mean_of_folds(table)
    return mean if per_target else live.mean_of_targets(mean)


def _best(table: Tensor, grid: Tensor, kind: Kind, per_target: bool, live: Live) -> Tensor:
    return best_index(_compared(table, per_target, live), kind.preference(grid))


def _score_at(table: Tensor, place: Tensor, per_target: bool, live: Live) -> Tensor:
    scores = _compared(table, per_target, live).gather(0, sent(place, table.device)[None])[0]
    return scores if per_target else scores[0]
