"""L2 regularization for PyTorch: penalties, weight decay and the ridge solution in closed form."""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from torchridge import regularizers
from torchridge._logistic_cv import LogisticCV
from torchridge._warnings import (
    ConvergenceWarning,
    DoublePenaltyWarning,
    GridEdgeWarning,
    IllConditionedWarning,
    InertPenaltyWarning,
    MissingClassWarning,
    RankDeficientWarning,
    TorchridgeWarning,
)
from torchridge.distributed import MomentsFolder, RankError, all_reduce, column_moments
from torchridge.linear.logistic_solution import LogisticSolution
from torchridge.linear.ridge.ridge import ridge, ridge_cv, ridge_path
from torchridge.linear.ridge.solution import Solution
from torchridge.logistic import logistic, logistic_cv
from torchridge.solvers.moments import Moments
from torchridge.solvers.operators import LinearOperator
from torchridge.strength import convert_strength
from torchridge.training.attach import clear_regularizers, penalties, penalty, regularize
from torchridge.training.decay import explain_weight_decay, weight_decay_groups
from torchridge.training.decay_table import DecayRow, DecayTable
from torchridge.training.decoupled import DecoupledWeightDecay
from torchridge.training.layers import L2Linear, LazyL2Linear
from torchridge.training.monitor import L2Monitor
from torchridge.training.muon import muon_groups
from torchridge.training.optimizers import check_optimizer
from torchridge.training.schedule import ConstantWeightDecay, CosineWeightDecay
from torchridge.training.step import StepPenalty, penalize_step

if _TYPE_CHECKING:
    from torchridge.probing import ContinualProbe, LinearProbe, OnlineProbe, Probe, ProbeReport, fit_head_, probe_layers
    from torchridge.streams import RowSource, open_rows, stream_moments

__version__ = _version("torchridge")

# Found when they are asked for: half of the time of an import, and modules whose needs may not be installed.
_PROBING = ("ContinualProbe", "LinearProbe", "OnlineProbe", "Probe", "ProbeReport", "fit_head_", "probe_layers")
_LATER = {
    **dict.fromkeys(_PROBING, "torchridge.probing"),
    **dict.fromkeys(("RowSource", "open_rows", "stream_moments"), "torchridge.streams"),
}
_MODULES = ("estimators", "integrations", "plots", "probing", "streams", "tensorboard")


def __getattr__(name: str) -> _Any:
    if name in _LATER:
        return getattr(_import_module(_LATER[name]), name)
    if name in _MODULES:
        return _import_module(f"torchridge.{name}")
    raise AttributeError(f"module 'torchridge' has no attribute {name!r}")


__all__ = [
    "ConstantWeightDecay",
    "ContinualProbe",
    "ConvergenceWarning",
    "CosineWeightDecay",
    "DecayRow",
    "DecayTable",
    "DecoupledWeightDecay",
    "DoublePenaltyWarning",
    "GridEdgeWarning",
    "IllConditionedWarning",
    "InertPenaltyWarning",
    "L2Linear",
    "L2Monitor",
    "LazyL2Linear",
    "LinearOperator",
    "LinearProbe",
    "LogisticCV",
    "LogisticSolution",
    "MissingClassWarning",
    "Moments",
    "MomentsFolder",
    "OnlineProbe",
    "Probe",
    "ProbeReport",
    "RankDeficientWarning",
    "RankError",
    "RowSource",
    "Solution",
    "StepPenalty",
    "TorchridgeWarning",
    "__version__",
    "all_reduce",
    "check_optimizer",
    "clear_regularizers",
    "column_moments",
    "convert_strength",
    "explain_weight_decay",
    "fit_head_",
    "logistic",
    "logistic_cv",
    "muon_groups",
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
