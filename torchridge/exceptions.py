"""The warnings that torchridge raises, one class for each thing a reader can act on."""

import sys
from pathlib import Path

import torch

_INSIDE = tuple(f"{Path(str(file)).parent}/" for file in (__file__, torch.__file__))


class TorchridgeWarning(UserWarning):
    """Base of every warning that torchridge raises."""


class RankDeficientWarning(TorchridgeWarning):
    """The features are linearly dependent and the penalty is too weak to decide: minimum norm was taken."""


class IllConditionedWarning(TorchridgeWarning):
    """The answer has lost digits that its inputs cannot give back."""


class GridEdgeWarning(TorchridgeWarning):
    """The best strength lies at the edge of the grid that was given."""


class ConvergenceWarning(TorchridgeWarning):
    """An iterative solver stopped before it reached its tolerance."""


class MissingClassWarning(TorchridgeWarning):
    """A class is missing from the rows that a fold is fitted on: it has probability zero there."""


class IgnoredOptionWarning(TorchridgeWarning):
    """An option of scikit-learn's signature was given that has no effect here."""


class SeparationWarning(TorchridgeWarning):
    """A logistic fit without a penalty has classes that are separable: no optimum exists."""


class UndefinedScoreWarning(TorchridgeWarning):
    """The score of a fold is NaN, which counts as the worst."""


class InertPenaltyWarning(TorchridgeWarning):
    """L2 on a weight whose scale the model divides out again: it changes the learning rate, not the function."""


class DoublePenaltyWarning(TorchridgeWarning):
    """A weight is penalized in the loss and at the step: the penalty counts twice."""


def outside() -> int:
    """The `stacklevel` of the caller's first frame outside torchridge and torch, e.g. the line that steps."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return level
