"""Linear probes of frozen models: moments of every layer in one forward pass, readouts in closed form."""

from torchridge.probing.continual import ContinualProbe
from torchridge.probing.head import fit_head_
from torchridge.probing.layer_probe import Probe
from torchridge.probing.linear_probe import LinearProbe
from torchridge.probing.online import OnlineProbe
from torchridge.probing.probe import probe_layers
from torchridge.probing.readouts import linear as _linear  # noqa: F401 they enter the table
from torchridge.probing.readouts import logistic as _logistic  # noqa: F401
from torchridge.probing.report import ProbeReport

__all__ = ["ContinualProbe", "LinearProbe", "OnlineProbe", "Probe", "ProbeReport", "fit_head_", "probe_layers"]
