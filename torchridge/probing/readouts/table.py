"""The table of readouts: what each is fitted to, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from torchridge._ranks import Ranks
    from torchridge.probing.features.folding import ClassCodes
    from torchridge.probing.features.kept import Kept
    from torchridge.probing.readouts.linear import Fitted, Parts
    from torchridge.probing.settings import Settings
    from torchridge.solvers.moments.blocks import Block


@dataclass(frozen=True)
class Source:
    """One layer, and what is asked of it."""

    layer: str
    parts: Parts  # moments of the folds, with a column for each class or target
    settings: Settings
    codes: ClassCodes
    control: bool  # whether labels are shuffled
    kept: Kept | None  # the features themselves
    empty: Tensor  # (0, d)
    ranks: Ranks | None


class Readout(NamedTuple):
    """A way to read labels out of features."""

    fit: Callable[[Source], Fitted]
    letter: str  # of its strength, in pictures
    numbers: bool = False  # whether it reads out numbers, not only classes
    features: bool = False  # whether it needs the features, which moments do not hold
    at: Callable[[Block, float, bool, bool], tuple[Tensor, Tensor]] | None = None
    """Weights (t, d) and biases (t,) from moments, at a strength, standardized or not, of classes or not."""


# Filled by the modules that hold them: a new readout is a file, and a line here or there.
READOUTS: dict[str, Readout] = {}


def names(task: str, *, at: bool = False) -> tuple[str, ...]:
    """Return the readouts that serve a task; with `at`, those that moments give at a strength."""
    known = {name: readout for name, readout in READOUTS.items() if readout.at is not None or not at}
    return tuple(name for name, readout in known.items() if readout.numbers or task != "regression")
