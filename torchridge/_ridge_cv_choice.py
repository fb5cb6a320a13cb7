"""What every way to choose a strength says about its grid."""

from __future__ import annotations

import warnings

from torch import Tensor

from torchridge._warnings import GridEdgeWarning
from torchridge.solvers.objective import Objective


def refuse_one_row(n: int, cv: str, objective: Objective) -> None:
    """Raise where a criterion would judge strengths by a single row: its mean, or leaving it out, leaves nothing."""
    if n < 2 and (cv == "loo" or objective.intercept):
        raise ValueError(
            f"`cv`={cv!r} cannot choose a strength by one row (n_samples={n}): nothing is left to learn from. Give "
            f"more rows, or the strength: `ridge(X, y, alpha)`."
        )


def warn_of_edge(grid: Tensor, best: Tensor) -> None:
    """Warn where the best of several strengths is the first or last of the grid."""
    if len(grid) < 2:
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
            stacklevel=5,
        )
