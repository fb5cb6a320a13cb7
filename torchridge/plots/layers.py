"""Scores by layer, one line for each readout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torchridge.plots.axes import axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_layers(report: Iterable[Any], ax: Axes | None = None, *, score: str | None = None) -> Axes:
    """Draw a score by layer, one line for each readout, with bootstrap intervals and the control task if there are any.

    Args:
        report: a `ProbeReport`, or several probes.
        ax: axes to draw into; by default those of a new figure.
        score: a name of `Probe.scores`; by default the one that layers are compared by.

    Returns:
        The axes.

    Raises:
        ValueError: on no probes, and on a score that none of them has.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from torchridge.plots import plot_layers
        >>> from torchridge.probing import LinearProbe
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]] * 10)
        >>> y = (X[:, 0] > 1.5).long()
        >>> report = LinearProbe(task="classification", metrics="accuracy").fit({"one": X, "two": 2 * X}, y)
        >>> ax = plot_layers(report)
        >>> [tick.get_text() for tick in ax.get_xticklabels()], ax.lines[0].get_label()
        (['one', 'two'], 'ridge: accuracy')
    """
    probes = list(report)
    known = list(dict.fromkeys(name for p in probes for name in p.fold_scores))
    if not probes or score not in (None, *known):
        raise ValueError(f"`score`={score!r} is in none of the {len(probes)} probes. There are {known}.")
    ax = axes(ax)
    layers = list(dict.fromkeys(p.layer for p in probes))
    for readout in dict.fromkeys(p.readout for p in probes):
        mine = [p for p in probes if p.readout == readout]
        name = score or mine[0].rank_score[0]
        _layer_line(ax, layers, [p for p in mine if name in p.fold_scores], readout, name, ranked=score is None)
    crowded = len(layers) > 8 or max(map(len, layers)) > 8
    ax.set_xticks(range(len(layers)), layers, rotation=90 if crowded else 0)
    ax.set_xlabel("layer")
    ax.set_ylabel(score or "held-out score")
    ax.legend(frameon=False)
    return ax


def _layer_line(ax: Any, layers: list[str], probes: list[Any], readout: str, name: str, *, ranked: bool) -> None:
    at = [layers.index(p.layer) for p in probes]
    line = ax.plot(at, [p.scores[name] for p in probes], marker="o", label=f"{readout}: {name}")[0]
    if ranked and probes and all(p.interval for p in probes):
        low, high = zip(*(p.interval or (0.0, 0.0) for p in probes), strict=True)
        ax.fill_between(at, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    if probes and all(name in p.control for p in probes):
        control = [p.control[name] for p in probes]
        ax.plot(at, control, linestyle=":", color=line.get_color(), label=f"{readout}: shuffled labels")
