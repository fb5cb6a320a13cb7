"""Pictures of what was computed: paths of coefficients, choices of a strength, bands, layers, weight decay.

Every function draws into the axes it is given, or into new ones, and returns them. They need matplotlib, the extra
`torchridge[plot]`, and need no display: with matplotlib's `Agg` backend they draw to files.
"""

from torchridge.plots.bands import plot_bands
from torchridge.plots.decay import plot_decay
from torchridge.plots.layers import plot_layers
from torchridge.plots.strengths import plot_cv, plot_path

__all__ = ["plot_bands", "plot_cv", "plot_decay", "plot_layers", "plot_path"]
