"""What public parameters take, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from torch import Tensor


class SupportsArray(Protocol):
    """What NumPy reads as an array: its own arrays, and columns of data frames."""

    def __array__(self) -> Any:
        """Return the values as an array."""


class Splitter(Protocol):
    """A splitter of scikit-learn."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterable[Any]:
        """Yield (train, test) row numbers."""


# A number of folds, fold ids, a criterion, a splitter, or (train, test) row numbers.
CV: TypeAlias = int | str | Tensor | Splitter | SupportsArray | Iterable[Any] | None

# A label for each row.
Groups: TypeAlias = Tensor | Sequence[Any] | SupportsArray | None

# A class or a number for each row, or numbers for each target.
Labels: TypeAlias = Tensor | Sequence[Any] | SupportsArray

# A name, a callable, an object with `update` and `compute`, or a scorer of scikit-learn.
Scoring: TypeAlias = str | Callable[..., Any] | object
