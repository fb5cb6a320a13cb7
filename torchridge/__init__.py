"""L2 regularization for PyTorch: penalties, weight decay and the ridge solution in closed form."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from torchridge import regularizers
from torchridge.exceptions import TorchridgeWarning
from torchridge.linear.ridge.ridge import ridge, ridge_path
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.iterative.operators import LinearOperator
from torchridge.solvers.moments.moments import Moments
from torchridge.strength import convert_strength
from torchridge.training.monitor import L2Monitor
from torchridge.training.penalties.attach import clear_regularizers, penalties, penalty, regularize
from torchridge.training.penalties.layers import L2Linear, LazyL2Linear
from torchridge.training.penalties.step import penalize_step
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups
from torchridge.training.weight_decay.muon import muon_groups
from torchridge.training.weight_decay.optimizers import check_optimizer
from torchridge.training.weight_decay.schedule import ConstantWeightDecay, CosineWeightDecay

if _TYPE_CHECKING:
    from torchridge.linear.bands.banded import banded_ridge_cv
    from torchridge.linear.bands.banded_solution import BandedSolution
    from torchridge.linear.logistic.logistic import logistic, logistic_cv
    from torchridge.linear.logistic.solution import LogisticSolution
    from torchridge.linear.ridge.nested import NestedRidgeCV, nested_ridge_cv
    from torchridge.linear.ridge.ridge_cv import ridge_cv
    from torchridge.probing import ContinualProbe, LinearProbe, OnlineProbe, ProbeReport, fit_head_, probe_layers
    from torchridge.streams import open_rows, stream_moments

try:
    __version__ = _version("torchridge")
except _PackageNotFoundError:  # a checkout on the path, which nothing has installed
    __version__ = "0+checkout"

# Found when they are asked for: most of the time of an import, and modules whose needs may not be installed.
_PROBING = ("ContinualProbe", "LinearProbe", "OnlineProbe", "ProbeReport", "fit_head_", "probe_layers")
_LATER = {
    **dict.fromkeys(_PROBING, "torchridge.probing"),
    **dict.fromkeys(("open_rows", "stream_moments"), "torchridge.streams"),
    "banded_ridge_cv": "torchridge.linear.bands.banded",
    "BandedSolution": "torchridge.linear.bands.banded_solution",
    **dict.fromkeys(("logistic", "logistic_cv"), "torchridge.linear.logistic.logistic"),
    "LogisticSolution": "torchridge.linear.logistic.solution",
    "ridge_cv": "torchridge.linear.ridge.ridge_cv",
    **dict.fromkeys(("NestedRidgeCV", "nested_ridge_cv"), "torchridge.linear.ridge.nested"),
}
_MODULES = ("distributed", "estimators", "integrations", "plots", "probing", "streams", "tensorboard")


def __getattr__(name: str) -> _Any:
    if name in _LATER:
        return getattr(_import_module(_LATER[name]), name)
    if name in _MODULES:
        return _import_module(f"torchridge.{name}")
    raise AttributeError(f"module 'torchridge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_MODULES})


__all__ = [
    "BandedSolution",
    "ConstantWeightDecay",
    "ContinualProbe",
    "CosineWeightDecay",
    "DecoupledWeightDecay",
    "L2Linear",
    "L2Monitor",
    "LazyL2Linear",
    "LinearOperator",
    "LinearProbe",
    "LogisticSolution",
    "Moments",
    "NestedRidgeCV",
    "OnlineProbe",
    "ProbeReport",
    "RidgeSolution",
    "TorchridgeWarning",
    "__version__",
    "banded_ridge_cv",
    "check_optimizer",
    "clear_regularizers",
    "convert_strength",
    "explain_weight_decay",
    "fit_head_",
    "logistic",
    "logistic_cv",
    "muon_groups",
    "nested_ridge_cv",
    "open_rows",
    "penalize_step",
    "penalties",
    "penalty",
    "probe_layers",
    "regularize",
    "regularizers",
    "ridge",
    "ridge_cv",
    "ridge_path",
    "stream_moments",
    "weight_decay_groups",
]
