"""The warnings that torchridge raises, one class for each thing a reader can act on."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


class UndefinedScoreWarning(TorchridgeWarning):
    """Some held-out scores are NaN, or of a target that is constant: they choose nothing."""


class UnresolvedChoiceWarning(TorchridgeWarning):
    """Scores have lost the digits that tell strengths apart, so that another strength may be the best."""


class ConvergenceWarning(TorchridgeWarning):
    """An iterative solver stopped before it reached its tolerance."""


class MissingClassWarning(TorchridgeWarning):
    """A class is missing from the rows that a fold is fitted on: it has probability zero there."""


class InertPenaltyWarning(TorchridgeWarning):
    """L2 on a weight whose scale the model divides out again: it changes the learning rate, not the function."""


class DoublePenaltyWarning(TorchridgeWarning):
    """A weight is penalized in the loss and at the step: the penalty counts twice."""


_gathered: ContextVar[list[tuple[str, type[Warning]]] | None] = ContextVar("_gathered", default=None)


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the caller's line, or with the others of a batch; see `one_for_all`."""
    gathered = _gathered.get()
    if gathered is None:
        warnings.warn(message, category, stacklevel=outside())
    else:
        gathered.append((message, category))


@contextmanager
def one_for_all(problems: int) -> Iterator[None]:
    """Gather what the problems of a batch warn of, and warn once of each kind."""
    found: list[tuple[str, type[Warning]]] = []
    token = _gathered.set(found)
    try:
        yield
    finally:
        _gathered.reset(token)
    for category in dict.fromkeys(c for _, c in found):
        messages = [m for m, c in found if c is category]
        more = f" (the first of {len(messages)} such problems of {problems})" if problems > 1 else ""
        warn(messages[0] + more, category)


def outside() -> int:
    """The `stacklevel` of the caller's first frame outside torchridge and torch, e.g. the line that steps."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame, level = frame.f_back, level + 1
    return level
