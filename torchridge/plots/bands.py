"""The variance that each band of features explains, by itself and together with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from torchridge import _check
from torchridge.plots.axes import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNIQUE, _SHARED = "#214a87", "#9ebfe6"  # as weight decay in `plot_decay`: the strong one dark


class HasParts(Protocol):
    """A partition of explained variance: what `BandedSolution.partition` returns."""

    @property
    def names(self) -> list[str]:
        """Of the B bands."""

    @property
    def parts(self) -> Tensor:
        """What each band explains, (B, t) or (B,)."""

    @property
    def unique(self) -> Tensor:
        """What no other band can explain, in the same shape."""


def plot_bands(partition: HasParts, ax: Axes | None = None, *, target: int | None = None) -> Axes:
    """Draw one bar for each band: the variance it explains alone, and what it explains together with other bands.

    The dark bar is unique to the band: R² minus that of a fit without it. From its end the light bar leads to the black
    mark, the band's part of R²; the marks sum to R². The light bar runs back if bands help each other: then losing the
    band costs more than its part.

    Args:
        partition: of `BandedSolution.partition`.
        ax: axes to draw into; by default those of a new figure.
        target: one target of several; by default their mean, without targets that are constant.

    Returns:
        The axes.

    Raises:
        TypeError: on anything but a partition.
        ValueError: on a target that is not there.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge import banded_ridge_cv
        >>> from torchridge.plots import plot_bands
        >>> g = torch.Generator().manual_seed(0)
        >>> X = torch.randn(90, 30, generator=g, dtype=torch.float64)
        >>> y = X[:, :10].sum(1) + torch.randn(90, generator=g, dtype=torch.float64)
        >>> solution = banded_ridge_cv(X[:60], y[:60], {"signal": slice(0, 10), "noise": slice(10, 30)}, cv=5)
        >>> ax = plot_bands(solution.partition(X[60:], y[60:]))
        >>> [tick.get_text() for tick in ax.get_yticklabels()], bool(ax.patches[0].get_width() > 0.7)
        (['signal', 'noise'], True)
    """
    if not all(hasattr(partition, name) for name in ("names", "parts", "unique")):
        raise TypeError(
            f"`partition` should come from `BandedSolution.partition(X, y)`, got {type(partition).__name__}."
        )
    parts, unique = _of(partition.parts, target), _of(partition.unique, target)
    ax = axes(ax, size=(6.4, 1.4 + 0.5 * len(parts)))
    places = range(len(parts))
    ax.barh(places, unique, color=_UNIQUE, height=0.6, label="unique: lost without the band")
    shared = [p - u for p, u in zip(parts, unique, strict=True)]
    ax.barh(places, shared, left=unique, color=_SHARED, height=0.3, label="shared with other bands")
    ax.plot(parts, places, "|", color="black", markersize=16, markeredgewidth=1.5, label="part of R²")
    ax.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    ax.use_sticky_edges = False  # the longest bar keeps clear of the frame
    ax.margins(x=0.05)
    ax.set_yticks(places, list(partition.names))
    ax.invert_yaxis()
    ax.set_xlabel(f"explained variance, R² = {sum(parts):.3f} in all")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return ax


def _of(values: Tensor, target: int | None) -> list[float]:
    """Return (B,) of one target, or the mean of those that are numbers."""
    table = values.detach().to("cpu", torch.float64)
    table = table if table.ndim == 2 else table[:, None]
    if target is None:
        return [float(x) for x in table.nanmean(1)]
    row = _check.integer(target, "target", minimum=0)
    if row >= table.shape[1]:
        raise ValueError(
            f"`target`={row} is out of range: there are {table.shape[1]} targets (0 to {table.shape[1] - 1})."
        )
    return [float(x) for x in table[:, row]]
