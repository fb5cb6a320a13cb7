"""Which columns of a table are features, targets, weights and fold ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Column = str | int
Columns = Column | Sequence[Column]


class Selection(NamedTuple):
    """Positions of columns in a table."""

    features: tuple[int, ...]
    targets: tuple[int, ...]
    vector_target: bool  # a single target, given as such: y is (n,)
    sample_weight: int | None
    fold: int | None

    @property
    def wanted(self) -> tuple[int, ...]:
        """All of them, in one order: features, targets, weight, fold."""
        extra = tuple(c for c in (self.sample_weight, self.fold) if c is not None)
        return (*self.features, *self.targets, *extra)

    def roles(self) -> dict[str, Any]:
        """Return the positions as JSON holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in self._asdict().items()}


def select(
    names: Sequence[str],
    target: Columns | None,
    features: Columns | None,
    sample_weight: Column | None,
    fold: Column | None,
    where: str,
) -> Selection:
    """Find the columns; features are by default all the others, in their order."""
    table = _Table(names, where)
    targets = table.positions(target, "target")
    extra = [
        None if c is None else table.position(c, name) for name, c in (("sample_weight", sample_weight), ("fold", fold))
    ]
    taken = {*targets, *(c for c in extra if c is not None)}
    chosen = (
        tuple(i for i in range(len(names)) if i not in taken)
        if features is None
        else table.positions(features, "features")
    )
    if not chosen:
        raise ValueError(f"`features`: {where} has no column left for them; its columns are {_listed(names)}.")
    if both := taken.intersection(chosen):
        raise ValueError(
            f"`features` holds {names[min(both)]!r} of {where}, which is target, weight or fold too. Leave it out."
        )
    return Selection(chosen, targets, isinstance(target, (str, int)), extra[0], extra[1])


class _Table:
    """The columns of a table by their names."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        self.names, self.where = names, where
        self.numbers: dict[str, int] = {}
        for i, name in enumerate(names):
            if (first := self.numbers.setdefault(name, i)) < i:
                raise ValueError(
                    f"`source`: {where} names {name!r} twice, columns {first + 1} and {i + 1}; expected a name for "
                    f"each. Rename one of them."
                )

    def positions(self, columns: Columns | None, argument: str) -> tuple[int, ...]:
        if columns is None:
            return ()
        if not isinstance(columns, (str, int, Iterable)):
            raise TypeError(f"`{argument}` should name columns or give their numbers, got {columns!r}.")
        each = [columns] if isinstance(columns, (str, int)) else list(columns)
        found = tuple(self.position(c, argument) for c in each)
        if len(set(found)) < len(found):
            raise ValueError(f"`{argument}` names a column of {self.where} twice: {each}.")
        return found

    def position(self, column: Any, argument: str) -> int:
        width = len(self.names)
        if isinstance(column, bool) or not isinstance(column, (str, int)):
            raise TypeError(f"`{argument}` should name columns or give their numbers, got {column!r}.")
        if isinstance(column, int):
            if not -width <= column < width:
                raise ValueError(f"`{argument}`={column}, but {self.where} has {width} columns.")
            return column % width
        if column not in self.numbers:
            raise ValueError(
                f"`{argument}`: {self.where} has no column {column!r}; its columns are {_listed(self.names)}."
            )
        return self.numbers[column]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:12])
    return shown if len(names) <= 12 else f"{shown}, … ({len(names)} in all)"
