"""Scores by layer and by strength, for TensorBoard and matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchridge.plots import plot_layers

if TYPE_CHECKING:
    from torchridge.probing.layer_probe import Probe


def add_scalars(writer: Any, probes: Sequence[Probe], tag: str) -> None:
    """Write every score with the depth of the layer as step, and every curve with the number of the strength."""
    if not callable(getattr(writer, "add_scalar", None)):
        raise TypeError(f"`writer` should have a method `add_scalar`, got {type(writer).__name__}.")
    depth = {layer: i for i, layer in enumerate(dict.fromkeys(p.layer for p in probes))}
    for probe in probes:
        for name, value in probe.scores.items():
            writer.add_scalar(f"{tag}/{probe.readout}/{name}", value, depth[probe.layer])
        for step, value in enumerate(probe.strength_scores.mean(0).tolist()):
            writer.add_scalar(f"{tag}/{probe.readout}/{probe.layer}/{probe.criterion}", value, step)


def plot(probes: Sequence[Probe], score: str | None, ax: Any) -> Any:
    """Draw a score by layer, with its interval if there is one."""
    return plot_layers(probes, ax, score=score)
