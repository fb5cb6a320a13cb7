"""The warnings that torchridge raises, one class for each thing a reader can act on."""


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


class InertPenaltyWarning(TorchridgeWarning):
    """L2 on a weight whose scale the model divides out again: it changes the learning rate, not the function."""
