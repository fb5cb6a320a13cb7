"""Axes to draw into, new ones or those that are given, and the axis of strengths, which may hold zero."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from torchridge.exceptions import install

_DECADES = 10  # more are labelled by leaving some out


def axes(ax: Any, size: tuple[float, float] | None = None) -> Any:
    """Return the axes that were given, or those of a new figure."""
    if ax is not None:
        if not callable(getattr(ax, "axvline", None)):
            raise TypeError(f"`ax` should be matplotlib axes, got {type(ax).__name__}. Leave it out for a new figure.")
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError(f"plots need matplotlib. {install('matplotlib', 'plot')}") from None
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def strength_axis(ax: Any, strengths: Tensor, name: str) -> None:
    """Make the horizontal axis one of strengths: logarithmic, with a place for zero if it is among them."""
    positive = strengths[strengths > 0]
    if len(positive) == len(strengths):
        ax.set_xscale("log")
    elif len(positive):
        _axis_with_zero(ax, float(positive.min()))
    ax.set_xlabel({"γ": "shrinkage γ"}.get(name, f"strength {name}"))


def _axis_with_zero(ax: Any, least: float) -> None:
    """Set zero half a decade before the least positive strength, and no place for negative ones."""
    most = float(ax.dataLim.x1)
    ax.set_xscale("symlog", linthresh=least, linscale=0.45)  # matplotlib makes that 0.45 / 0.9 decades
    margin = 0.05 * (0.5 + math.log10(most / least))
    ax.set_xlim(-least * min(1.0, margin / 0.5), most * 10**margin)
    first, last = math.ceil(math.log10(least) - 1e-9), math.floor(math.log10(most) + 1e-9)
    decades = [10.0**k for k in range(first, last + 1, 1 + max(0, last - first) // _DECADES)]
    ax.set_xticks([0.0, *(decades or (least, most))])
    if not decades:
        ax.xaxis.set_major_formatter("{x:g}")
