"""L2 regularization for PyTorch: penalties, weight decay and the ridge solution in closed form."""

from importlib.metadata import version as _version

from torchridge._warnings import (
    ConvergenceWarning,
    GridEdgeWarning,
    IllConditionedWarning,
    RankDeficientWarning,
    TorchridgeWarning,
)

__version__ = _version("torchridge")

__all__ = [
    "ConvergenceWarning",
    "GridEdgeWarning",
    "IllConditionedWarning",
    "RankDeficientWarning",
    "TorchridgeWarning",
    "__version__",
]
