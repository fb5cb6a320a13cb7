"""One bar for each parameter, coloured by what weight decay does to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from torchridge.plots.axes import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EXEMPT, _FROZEN = "#d98c3f", "#b8b8b8"

# Strengths of weight decay, the strongest darkest.
_DARK, _LIGHT = (0.13, 0.29, 0.53), (0.62, 0.75, 0.90)


def plot_decay(table: Iterable[Any], ax: Axes | None = None, *, reasons: bool = True) -> Axes:
    """Draw one bar for each parameter, as long as it has numbers, coloured by what weight decay does to it.

    Args:
        table: of `explain_weight_decay`.
        ax: axes to draw into; by default those of a new figure, as tall as the table is long.
        reasons: whether the reason stands next to each bar.

    Returns:
        The axes.

    Raises:
        TypeError: if the table does not come from `explain_weight_decay`.
        ImportError: without matplotlib.

    Example:
        >>> from torch import nn
        >>> from torchridge import explain_weight_decay
        >>> from torchridge.plots import plot_decay
        >>> ax = plot_decay(explain_weight_decay(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 0.05))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['weight_decay 0.05', 'not decayed']
    """
    rows = list(table) if isinstance(table, Iterable) else []
    if not rows or not all(hasattr(row, "weight_decay") and hasattr(row, "reason") for row in rows):
        raise TypeError(f"`table` should be what `explain_weight_decay` returns, got {type(table).__name__}.")
    ax = axes(ax, size=(9.0 if reasons else 6.4, 1.3 + 0.24 * len(rows)))
    shades, labels = _shades(rows), set[str]()
    for place, row in enumerate(rows):
        label = _decay_label(row)
        color = _FROZEN if row.group == "frozen" else shades[row.weight_decay] if row.decay else _EXEMPT
        ax.barh(place, _size(row), color=color, height=0.7, label=f"_{label}" if label in labels else label)
        labels.add(label)
        if reasons:
            text = f" {row.reason}"
            ax.annotate(text, (1.0, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xscale("log")
    ax.set_xlim(left=1)
    ax.set_xlabel("numbers in the parameter")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return ax


def _shades(rows: list[Any]) -> dict[float, tuple[float, ...]]:
    strengths = sorted({row.weight_decay for row in rows if row.decay})
    steps = [1.0 if len(strengths) == 1 else i / (len(strengths) - 1) for i in range(len(strengths))]
    pairs = list(zip(_LIGHT, _DARK, strict=True))
    return {w: tuple(a + (b - a) * x for a, b in pairs) for w, x in zip(strengths, steps, strict=True)}


def _decay_label(row: Any) -> str:
    return "frozen" if row.group == "frozen" else f"weight_decay {row.weight_decay:g}" if row.decay else "not decayed"


def _size(row: Any) -> int:
    return 1 if row.shape is None else int(torch.Size(row.shape).numel())
