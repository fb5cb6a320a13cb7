"""The warnings and errors of torchridge, one class for each thing a reader can act on."""

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType

import torch

__all__ = [
    "ConvergenceWarning",
    "DoublePenaltyWarning",
    "GridEdgeWarning",
    "IgnoredOptionWarning",
    "IllConditionedWarning",
    "InertPenaltyWarning",
    "MissingClassWarning",
    "RankDeficientWarning",
    "RankError",
    "SeparationWarning",
    "TorchridgeWarning",
    "UndefinedScoreWarning",
]

_INSIDE = tuple(os.path.join(os.path.dirname(str(module.__file__)), "") for module in (sys.modules[__name__], torch))
_BETWEEN = (contextlib.__file__, functools.__file__)


class TorchridgeWarning(UserWarning):
    """Base of every warning that torchridge raises."""


class RankDeficientWarning(TorchridgeWarning):
    """The features are linearly dependent and the penalty is too weak to decide: minimum norm was taken."""


class IllConditionedWarning(TorchridgeWarning):
    """The answer has lost digits that its inputs cannot give back."""


class GridEdgeWarning(TorchridgeWarning):
    """The best strength lies at the edge of the grid that was given."""


class UnresolvedChoiceWarning(TorchridgeWarning):
    """Scores have lost the digits that tell strengths apart, so that another strength may be the best."""


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


class RankError(RuntimeError):
    """A rank died, failed, or does not fit the others; raised on every other rank, and names the ranks it knows."""


_ABOUT: ContextVar[str] = ContextVar("about", default="")


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Name what warnings of this context are about, e.g. one layer of many."""
    before = _ABOUT.set(what)
    try:
        yield
    finally:
        _ABOUT.reset(before)


_GATHERED: ContextVar[list[tuple[str, type[Warning]]] | None] = ContextVar("gathered", default=None)


@contextlib.contextmanager
def one_for_all(problems: int) -> Iterator[None]:
    """Gather what the problems of a batch warn of, and warn once of each kind."""
    found: list[tuple[str, type[Warning]]] = []
    token = _GATHERED.set(found)
    try:
        yield
    finally:
        _GATHERED.reset(token)
    for category in dict.fromkeys(c for _, c in found):
        messages = [m for m, c in found if c is category]
        more = f" (the first of {len(messages)} such problems of {problems})" if problems > 1 else ""
        warn(messages[0] + more, category)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the caller's line: that of the first frame outside torchridge, and outside torch where torch called us.

    Python shows equal messages at one line once. A message about one fit therefore holds a figure of that fit.
    """
    gathered = _GATHERED.get()
    if gathered is not None:
        gathered.append((message, category))
        return
    frame, level = sys._getframe(1), 2
    while _inside(frame) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    of = _ABOUT.get()
    warnings.warn(f"{of}: {message}" if of else message, category, stacklevel=level)


def _inside(frame: FrameType) -> bool:
    """Whether a frame is ours, torch's, or of the standard library's decorators and generated code in between."""
    file = frame.f_code.co_filename
    return file.startswith(_INSIDE) or file in _BETWEEN or (file == "<string>" and _ours(frame))


def _ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("torchridge.")


def install(package: str, extra: str) -> str:
    """Return how to get a package that an error misses, by its own name or by an extra of a checkout of torchridge."""
    return f"Install it: `pip install {package}`, or in a checkout of torchridge `pip install -e '.[{extra}]'`."
