"""Rows of arrays: in memory, or mapped from .npy files without staying resident."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchridge.streams.array import Array
from torchridge.streams.columns import select
from torchridge.streams.direct import Slot
from torchridge.streams.source import Batch, RowSource, fold_ids

_BATCH_BYTES = 2**24


class ArrayRows(RowSource):
    """Rows of X and y side by side, perhaps with weights and fold ids."""

    def __init__(
        self,
        X: Array,
        y: Array | None,
        sample_weight: Array | None = None,
        fold: Array | None = None,
        *,
        features: Sequence[int] | None = None,
        files: Sequence[str | Path] = (),
    ) -> None:
        parts = {"X": X, "y": y, "sample_weight": sample_weight, "fold": fold}
        self.name = None if X.path is None else X.name
        lengths = {_called(name, a): a.values.shape[0] for name, a in parts.items() if a is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays differ in rows: {lengths}; expected the same number of rows in each.")
        if X.values.ndim != 2:
            raise ValueError(f"`{_called('X', X)}` should have shape (rows, features), got {tuple(X.values.shape)}.")
        self._parts, self._columns, self._files = parts, None if features is None else list(features), list(files)
        self._count = int(X.values.shape[0])
        self.n_features = X.values.shape[1] if features is None else len(features)
        self.n_targets = 0 if y is None else 1 if y.values.ndim == 1 else y.values.shape[1]
        self.row_bytes = sum(a.row_bytes for a in parts.values() if a is not None)
        self.has_folds = fold is not None
        self.in_place = features is None and all(a.in_place for a in parts.values() if a is not None)

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self._count

    def views(self, start: int, rows: int, held: int) -> Iterator[Batch]:
        """Yield batches where they lie; pages of one are let go when the one after `held` is asked for."""
        if not self.in_place:
            yield from self.batches(start, rows)
            return
        arrays, slots = list(self._parts.values()), [Slot() for _ in range(held)]
        try:
            for i in range(start, self._count, rows):
                self._drop(max(0, i - held * rows), i - (held - 1) * rows)
                slot = slots[i // rows % held]
                yield Batch(*(None if a is None else a.view(i, i + rows, slot) for a in arrays))  # type: ignore[arg-type]
        finally:
            self._drop()

    def _drop(self, start: int = 0, stop: int | None = None) -> None:
        for array in self._parts.values():
            if array is not None:
                array.drop(start, stop)

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Yield batches of `rows` rows."""
        size = rows or max(1, _BATCH_BYTES // max(1, self.row_bytes or 1))
        for i in range(start, self._count, size):
            X, y, sample_weight, fold = (None if a is None else a.read(i, i + size) for a in self._parts.values())
            assert X is not None
            yield Batch(X if self._columns is None else X[:, self._columns], y, sample_weight, fold)

    def identity(self) -> dict[str, Any]:
        """Add every array, in its role; of large files, when they were changed last."""
        content = {name: None if array is None else array.content() for name, array in self._parts.items()}
        sampled = any("sample" in found for found in content.values() if found is not None)
        changed = [Path(file).stat().st_mtime_ns for file in self._files] if sampled else []
        return super().identity() | {"columns": self._columns, "content": content, "changed": changed}


def _called(role: str, array: Array) -> str:
    return role if array.path is None else f"{role} ({array.name})"


class _Columns(ArrayRows):
    """Rows of one matrix that holds features and targets."""

    def __init__(
        self, matrix: Array, target: Any, features: Any, sample_weight: Any, fold: Any, files: Sequence[Any]
    ) -> None:
        super().__init__(matrix, None, files=files)
        names = [str(i) for i in range(matrix.values.shape[1])]
        self._chosen = select(names, target, features, sample_weight, fold, self.name or "the matrix")
        self.n_features, self.n_targets = len(self._chosen.features), len(self._chosen.targets)
        self.has_folds, self.in_place = fold is not None, False

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        chosen = self._chosen
        for batch in super().batches(start, rows):
            X = batch.X
            y = None if not chosen.targets else X[:, list(chosen.targets)]
            sample_weight = None if chosen.sample_weight is None else X[:, chosen.sample_weight]
            fold = None if chosen.fold is None else fold_ids(X[:, chosen.fold], self.name)
            y = y[:, 0] if y is not None and chosen.vector_target else y
            yield Batch(X[:, list(chosen.features)], y, sample_weight, fold)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"roles": self._chosen.roles()}


def array_rows(source: Any, target: Any, features: Any, sample_weight: Any, fold: Any) -> RowSource:
    """Return the rows of an array or .npy file; `target` is another, or column numbers of this one."""
    X, *files = _open(source, "source")
    if target is None or _is_columns(target):
        for name, column in (("sample_weight", sample_weight), ("fold", fold)):
            if column is not None and not _is_columns(column):
                raise TypeError(f"`{name}` should be a column number, as `target` is, got {column!r}.")
        return _Columns(X, target, features, sample_weight, fold, files)
    others = []
    for name, value in (("target", target), ("sample_weight", sample_weight), ("fold", fold)):
        opened, *more = (None,) if value is None else _open(value, name)
        others.append(opened)
        files += more
    names = [str(i) for i in range(X.values.shape[-1])]
    columns = (
        None if features is None else select(names, None, features, None, None, X.name if files else "`X`").features
    )
    return ArrayRows(X, others[0], others[1], others[2], features=columns, files=files)


def _is_columns(value: Any) -> bool:
    many = isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value)
    return many or (isinstance(value, int) and not isinstance(value, bool))


def _open(source: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(source, (str, Path)):
        if isinstance(source, (list, tuple)) and any(isinstance(part, str) for part in source):
            raise TypeError(
                f"`{name}`: the columns of an array have no names, got {list(source)}. Give their numbers, from 0 on."
            )
        return (Array(source, name),)
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"`{name}`: there is no file {str(source)!r}, and the columns of an array have no names. Give column "
            f"numbers, from 0 on, or a .npy file."
        )
    return Array(_loaded(Path(source), name), name, path=source), source


def _loaded(path: Path, name: str) -> Any:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.filename is not None or error.errno is not None:
            raise
        raise ValueError(f"`{name}`: {path.name} is not a .npy file of numbers ({error}).") from None
    except Exception as error:  # a header is parsed as Python: what a mangled one raises is of many kinds
        raise ValueError(f"`{name}`: {path.name} is not a .npy file of numbers ({error}).") from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"`{name}`: {path.name} is an archive of arrays, .npz. Save the one as .npy: numpy.save.")
    return values
