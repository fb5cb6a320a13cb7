"""L2 regularization for PyTorch: penalties, weight decay and the ridge solution in closed form."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from torchridge.exceptions import TorchridgeWarning
    from torchridge.linear.bands.banded import banded_ridge_cv
    from torchridge.linear.bands.banded_solution import BandedSolution
    from torchridge.linear.logistic.logistic import logistic, logistic_cv
    from torchridge.linear.logistic.solution import LogisticSolution
    from torchridge.linear.ridge.nested import NestedRidgeCV, nested_ridge_cv
    from torchridge.linear.ridge.ridge import ridge, ridge_path
    from torchridge.linear.ridge.ridge_cv import ridge_cv
    from torchridge.linear.ridge.solution.solution import RidgeSolution
    from torchridge.probing import ContinualProbe, LinearProbe, OnlineProbe, ProbeReport, fit_head_, probe_layers
    from torchridge.solvers.iterative.operators import LinearOperator
    from torchridge.solvers.moments.moments import Moments
    from torchridge.streams import open_rows, stream_moments
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

try:
    __version__ = _version("torchridge")
except _PackageNotFoundError:  # a checkout on the path, which nothing has installed
    __version__ = "0+checkout"

# Every name is imported when it is first asked for: who fits a ridge does not wait for the probes, and a module
# whose needs are not installed does not stand in the way of the others.
_NAMES = {
    "exceptions": "TorchridgeWarning",
    "linear.bands.banded": "banded_ridge_cv",
    "linear.bands.banded_solution": "BandedSolution",
    "linear.logistic.logistic": "logistic logistic_cv",
    "linear.logistic.solution": "LogisticSolution",
    "linear.ridge.nested": "NestedRidgeCV nested_ridge_cv",
    "linear.ridge.ridge": "ridge ridge_path",
    "linear.ridge.ridge_cv": "ridge_cv",
    "linear.ridge.solution.solution": "RidgeSolution",
    "probing": "ContinualProbe LinearProbe OnlineProbe ProbeReport fit_head_ probe_layers",
    "solvers.iterative.operators": "LinearOperator",
    "solvers.moments.moments": "Moments",
    "streams": "open_rows stream_moments",
    "strength": "convert_strength",
    "training.monitor": "L2Monitor",
    "training.penalties.attach": "clear_regularizers penalties penalty regularize",
    "training.penalties.layers": "L2Linear LazyL2Linear",
    "training.penalties.step": "penalize_step",
    "training.weight_decay.decoupled": "DecoupledWeightDecay",
    "training.weight_decay.groups": "explain_weight_decay weight_decay_groups",
    "training.weight_decay.muon": "muon_groups",
    "training.weight_decay.optimizers": "check_optimizer",
    "training.weight_decay.schedule": "ConstantWeightDecay CosineWeightDecay",
}
_HOMES = {name: f"torchridge.{home}" for home, names in _NAMES.items() for name in names.split()}
_MODULES = [
    "distributed",
    "estimators",
    "exceptions",
    "integrations",
    "plots",
    "probing",
    "regularizers",
    "streams",
    "tensorboard",
]


def __getattr__(name: str) -> _Any:
    if name in _HOMES:
        found = getattr(_import_module(_HOMES[name]), name)
    elif name in _MODULES:
        found = _import_module(f"torchridge.{name}")
    else:
        raise AttributeError(f"module 'torchridge' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})


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
