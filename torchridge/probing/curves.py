"""Scores by layer and by strength, for TensorBoard and matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchridge.probing.report import Probe


def add_scalars(writer: Any, probes: Sequence[Probe], tag: str) -> None:
    """Write every score with the depth of the layer as step, and every curve with the number of the strength."""
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(f"`writer` should have a method `add_scalar`, got {type(writer).__name__}.")
    depth = {layer: i for i, layer in enumerate(dict.fromkeys(p.layer for p in probes))}
    for probe in probes:
        for name, value in probe.scores.items():
            writer.add_scalar(f"{tag}/{probe.readout}/{name}", value, depth[probe.layer])
        for step, value in enumerate(probe.curve.mean(0).tolist()):
            writer.add_scalar(f"{tag}/{probe.readout}/{probe.layer}/{probe.criterion}", value, step)


def plot(probes: Sequence[Probe], score: str | None, ax: Any) -> Any:
    """Draw a score by layer, with its interval where there is one."""
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError:
            raise ImportError("plots need matplotlib. Install it with `pip install torchridge[plot]`.") from None
        ax = pyplot.subplots()[1]
    layers = list(dict.fromkeys(p.layer for p in probes))
    for readout in dict.fromkeys(p.readout for p in probes):
        mine = [p for p in probes if p.readout == readout]
        name = score or mine[0].rank_score[0]
        mine = [p for p in mine if name in p.fold_scores]
        at = [layers.index(p.layer) for p in mine]
        line = ax.plot(at, [p.scores[name] for p in mine], marker="o", label=f"{readout}: {name}")[0]
        if all(p.interval for p in mine) and mine:
            low, high = zip(*(p.interval or (0.0, 0.0) for p in mine), strict=True)
            ax.fill_between(at, low, high, alpha=0.2, color=line.get_color())
    ax.set_xticks(range(len(layers)), layers, rotation=90)
    ax.legend()
    return ax
