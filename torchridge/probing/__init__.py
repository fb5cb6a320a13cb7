"""Linear probes of frozen models: moments of every layer in one forward pass, readouts in closed form."""

from torchridge.probing.probe import LinearProbe, probe_layers
from torchridge.probing.report import Probe, ProbeReport

__all__ = ["LinearProbe", "Probe", "ProbeReport", "probe_layers"]
