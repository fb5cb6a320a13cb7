"""L2 regularization for PyTorch: penalties, weight decay and the ridge solution in closed form."""

from importlib.metadata import version as _version

from torchridge._warnings import (
    ConvergenceWarning,
    GridEdgeWarning,
    IllConditionedWarning,
    RankDeficientWarning,
    TorchridgeWarning,
)
from torchridge.ridge import ridge, ridge_cv, ridge_path
from torchridge.solvers.moments import Moments
from torchridge.solvers.solution import Solution
from torchridge.strength import convert_strength

__version__ = _version("torchridge")

__all__ = [
    "ConvergenceWarning",
    "GridEdgeWarning",
    "IllConditionedWarning",
    "Moments",
    "RankDeficientWarning",
    "Solution",
    "TorchridgeWarning",
    "__version__",
    "convert_strength",
    "ridge",
    "ridge_cv",
    "ridge_path",
]
