"""L2 in a training loop: what a parameter is, penalties in the loss and at the step, weight decay in the optimizer."""

from torchridge.training.penalties.step import StepPenalty
from torchridge.training.weight_decay.table import DecayRow, DecayTable

__all__ = ["DecayRow", "DecayTable", "StepPenalty"]
