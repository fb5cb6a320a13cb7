"""Rows of arrays: in memory, or mapped from .npy and safetensors files without staying resident."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge import _content
from torchridge.solvers import blas
from torchridge.streams.columns import select
from torchridge.streams.direct import Direct, Slot, direct_of
from torchridge.streams.source import Batch, RowSource, fold_ids

_BATCH_BYTES = 2**24

# A batch of fewer bytes is not worth a question about the page cache.
_DIRECT_BYTES = 2**20

# dtypes of safetensors, with what NumPy reads them as; it has no bfloat16.
_DTYPES = {
    "F64": (np.float64, torch.float64),
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.int16, torch.bfloat16),
    "I64": (np.int64, torch.int64),
    "I32": (np.int32, torch.int32),
    "I16": (np.int16, torch.int16),
    "I8": (np.int8, torch.int8),
    "U8": (np.uint8, torch.uint8),
    "BOOL": (np.bool_, torch.bool),
}


class Array:
    """One array of n rows that gives tensors of its own memory, and keeps no mapped page resident."""

    def __init__(self, values: Any, name: str, view: torch.dtype | None = None) -> None:
        if not isinstance(values, Tensor):
            values = values if isinstance(values, np.ndarray) else np.asarray(values)
            if values.dtype.kind not in "fiub":
                raise TypeError(f"`{name}` should hold real numbers, got dtype {values.dtype}.")
        if values.ndim not in (1, 2):
            raise ValueError(f"`{name}` should have one or two dimensions, got shape {tuple(values.shape)}.")
        self.values, self._dtype = values, view
        self._map = _mapping(values)
        self._whole = _tensor_of(values, view)

    @property
    def in_place(self) -> bool:
        """Whether rows can be summed where they lie."""
        return self._whole is not None

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows as a tensor: a copy, but of a tensor."""
        if isinstance(self.values, Tensor):
            return self.values[start:stop]
        part = self.values[start:stop]
        rows = torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("="), order="C"))
        self.drop()
        return rows if self._dtype is None else rows.view(self._dtype)

    def view(self, start: int, stop: int, slot: Slot) -> Tensor:
        """Return rows without a copy of what is in memory, to be read and not written.

        Rows of a file that are not in memory are read into a slot.
        """
        assert self._whole is not None
        low, high = start * self.row_bytes, min(stop, len(self.values)) * self.row_bytes
        if high - low >= _DIRECT_BYTES and self._file is not None and not self._file.cached(low, high):
            found = self._file.read(low, high, slot)
            if found is not None:
                return torch.from_numpy(found).view(self._whole.dtype).view(-1, *self._whole.shape[1:])
        return self._whole[start:stop]

    def content(self) -> dict[str, Any]:
        """Return what tells this array from others."""
        head = {"shape": list(self.values.shape), "dtype": str(self.read(0, 1).dtype)}
        return head | _content.of_rows(self.read, len(self.values), self.row_bytes)

    @cached_property
    def _file(self) -> Direct | None:
        return None if self._map is None else direct_of(self.values, self._map)

    def drop(self, start: int = 0, stop: int | None = None) -> None:
        """Let go of the mapped pages of rows; the file keeps them."""
        if self._map is None:
            return
        if stop is None:
            self._map.madvise(mmap.MADV_DONTNEED)
        elif start < stop:
            pages = self._pages(start, stop)
            self._map.madvise(mmap.MADV_DONTNEED, pages.start, pages.stop - pages.start)

    def _pages(self, start: int, stop: int) -> slice:
        """Return the first bytes of the pages of rows, as a slice of those of the mapping."""
        base = np.frombuffer(self._map, np.uint8).ctypes.data  # type: ignore[arg-type]
        first = self.values.ctypes.data - base
        low = (first + start * self.row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        return slice(low, first + min(stop, len(self.values)) * self.row_bytes, mmap.PAGESIZE)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        size: int = self.values.element_size() if isinstance(self.values, Tensor) else self.values.itemsize
        width: int = self.values.shape[1] if self.values.ndim == 2 else 1
        return size * width


def _mapping(values: Any) -> mmap.mmap | None:
    """Return the mapping under an array where its pages can be dropped: not where they hold unsaved changes."""
    keep = isinstance(values, np.memmap) and values.mode == "c"
    while isinstance(values, np.ndarray) and values.base is not None:
        values = values.base
        keep = keep or (isinstance(values, np.memmap) and values.mode == "c")
    return values if isinstance(values, mmap.mmap) and not keep and hasattr(mmap, "MADV_DONTNEED") else None


def _tensor_of(values: Any, dtype: torch.dtype | None) -> Tensor | None:
    """Return a tensor of the same memory, or None where torch has none of that kind."""
    if isinstance(values, Tensor):
        return values
    kept = values.dtype.isnative and values.dtype.itemsize <= 8 and values.flags.c_contiguous and values.flags.aligned
    if not kept or values.size == 0:
        return None
    whole = blas.shared(values)
    return whole if dtype is None else whole.view(dtype)


class ArrayRows(RowSource):
    """Rows of X and y side by side, perhaps with weights and fold ids."""

    def __init__(
        self,
        X: Array,
        y: Array | None,
        weight: Array | None = None,
        fold: Array | None = None,
        *,
        features: Sequence[int] | None = None,
        files: Sequence[str | Path] = (),
    ) -> None:
        parts = {"X": X, "y": y, "weight": weight, "fold": fold}
        lengths = {name: a.values.shape[0] for name, a in parts.items() if a is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"arrays differ in rows: {lengths}; expected as many rows in each.")
        if X.values.ndim != 2:
            raise ValueError(f"`X` should have shape (rows, features), got {tuple(X.values.shape)}.")
        self._parts, self._columns, self._files = parts, None if features is None else list(features), list(files)
        self._count: int = lengths["X"]
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
            X, y, weight, fold = (None if a is None else a.read(i, i + size) for a in self._parts.values())
            assert X is not None
            yield Batch(X if self._columns is None else X[:, self._columns], y, weight, fold)

    def identity(self) -> dict[str, Any]:
        """Add every array, in its role; of large files, when they were changed last."""
        content = {name: None if array is None else array.content() for name, array in self._parts.items()}
        sampled = any("sample" in found for found in content.values() if found is not None)
        changed = [Path(file).stat().st_mtime_ns for file in self._files] if sampled else []
        return super().identity() | {"columns": self._columns, "content": content, "changed": changed}


class _Columns(ArrayRows):
    """Rows of one matrix that holds features and targets."""

    def __init__(self, matrix: Array, target: Any, features: Any, weight: Any, fold: Any, files: Sequence[Any]) -> None:
        super().__init__(matrix, None, files=files)
        names = [str(i) for i in range(matrix.values.shape[1])]
        self._chosen = select(names, target, features, weight, fold, "the matrix")
        self.n_features, self.n_targets = len(self._chosen.features), len(self._chosen.targets)
        self.has_folds, self.in_place = fold is not None, False

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        chosen = self._chosen
        for batch in super().batches(start, rows):
            X = batch.X
            y = None if not chosen.targets else X[:, list(chosen.targets)]
            weight = None if chosen.weight is None else X[:, chosen.weight]
            fold = None if chosen.fold is None else fold_ids(X[:, chosen.fold])
            y = y[:, 0] if y is not None and chosen.vector_target else y
            yield Batch(X[:, list(chosen.features)], y, weight, fold)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"roles": self._chosen.roles()}


def array_rows(source: Any, target: Any, features: Any, weight: Any, fold: Any) -> RowSource:
    """Return the rows of an array or .npy file; `target` is another, or column numbers of this one."""
    X, *files = _open(source, "source")
    if target is None or _is_columns(target):
        for name, column in (("weight", weight), ("fold", fold)):
            if column is not None and not _is_columns(column):
                raise TypeError(f"`{name}` should be a column number, as `target` is, got {column!r}.")
        return _Columns(X, target, features, weight, fold, files)
    others = []
    for name, value in (("target", target), ("weight", weight), ("fold", fold)):
        opened, *more = (None,) if value is None else _open(value, name)
        others.append(opened)
        files += more
    names = [str(i) for i in range(X.values.shape[-1])]
    columns = None if features is None else select(names, None, features, None, None, "`X`").features
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
    try:
        return Array(np.load(source, mmap_mode="r", allow_pickle=False), name), source
    except ValueError as error:
        raise ValueError(f"`{name}`: {Path(source).name} is no .npy file of numbers ({error}).") from None


def safetensors_rows(path: Path, target: Any, features: Any, weight: Any, fold: Any) -> RowSource:
    """Return the rows of the tensors of a file; `target`, `features`, `weight` and `fold` are their names."""
    tensors = _safetensors(path)
    taken = [name for name in (target, weight, fold) if name is not None]
    if features is None:
        others = [name for name, a in tensors.items() if name not in taken and a.values.ndim == 2]
        if len(others) != 1:
            raise ValueError(f"`features` should name one of the matrices {others} in {path.name}; got None.")
        features = others[0]
    for name, key in (("features", features), ("target", target), ("weight", weight), ("fold", fold)):
        if key is not None and (not isinstance(key, str) or key not in tensors):
            raise ValueError(f"`{name}`={key!r} is no tensor of one or two dimensions in {path.name}: {list(tensors)}.")
    y, s, ids = (None if key is None else tensors[key] for key in (target, weight, fold))
    return ArrayRows(tensors[features], y, s, ids, files=[path])


def _safetensors(path: Path) -> dict[str, Array]:
    """Map the tensors of a file. The format: 8 bytes of length, a JSON header, then the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 10**8):
            raise ValueError(f"`source`: {path.name} is truncated or no safetensors file.")
        try:
            header = dict(json.loads(file.read(length)))
            header.pop("__metadata__", None)
            return {k: a for k, v in header.items() if (a := _tensor(path, size, 8 + length, k, v)) is not None}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`source`: {path.name} is truncated or no safetensors file ({error!r}).") from None


def _tensor(path: Path, size: int, base: int, name: str, entry: Any) -> Array | None:
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if len(shape) not in (1, 2) or entry["dtype"] not in _DTYPES or 0 in shape:
        return None
    kind, dtype = _DTYPES[entry["dtype"]]
    expected = int(np.prod(shape)) * np.dtype(kind).itemsize
    if stop - start != expected or start < 0 or base + stop > size:
        raise ValueError(f"tensor {name!r} should have {expected} bytes within the file")
    values = np.memmap(path, dtype=kind, mode="r", offset=base + start, shape=shape)
    return Array(values, name, dtype if dtype is torch.bfloat16 else None)
