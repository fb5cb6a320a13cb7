"""L2 regularization for PyTorch: penalties, weight decay and the ridge solution in closed form."""

from importlib.metadata import version as _version

from torchridge import regularizers
from torchridge._logistic_cv import LogisticCV
from torchridge._warnings import (
    ConvergenceWarning,
    GridEdgeWarning,
    IllConditionedWarning,
    InertPenaltyWarning,
    MissingClassWarning,
    RankDeficientWarning,
    TorchridgeWarning,
)
from torchridge.logistic import logistic, logistic_cv
from torchridge.ridge import ridge, ridge_cv, ridge_path
from torchridge.solvers.logistic_solution import LogisticSolution
from torchridge.solvers.moments import Moments
from torchridge.solvers.operators import LinearOperator
from torchridge.solvers.solution import Solution
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

__version__ = _version("torchridge")

__all__ = [
    "ConstantWeightDecay",
    "ConvergenceWarning",
    "CosineWeightDecay",
    "DecayRow",
    "DecayTable",
    "DecoupledWeightDecay",
    "GridEdgeWarning",
    "IllConditionedWarning",
    "InertPenaltyWarning",
    "L2Linear",
    "L2Monitor",
    "LazyL2Linear",
    "LinearOperator",
    "LogisticCV",
    "LogisticSolution",
    "MissingClassWarning",
    "Moments",
    "RankDeficientWarning",
    "Solution",
    "StepPenalty",
    "TorchridgeWarning",
    "__version__",
    "check_optimizer",
    "clear_regularizers",
    "convert_strength",
    "explain_weight_decay",
    "logistic",
    "logistic_cv",
    "muon_groups",
    "penalize_step",
    "penalties",
    "penalty",
    "regularize",
    "regularizers",
    "ridge",
    "ridge_cv",
    "ridge_path",
    "weight_decay_groups",
]
