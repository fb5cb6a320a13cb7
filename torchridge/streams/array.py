"""One array of rows: in memory, or mapped from a file and read from there."""

from __future__ import annotations

import mmap
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge._files import content as _content
from torchridge.streams.direct import Direct, Slot, cut_short, direct_of
from torchridge.streams.shared import shared

# A batch of fewer bytes is not worth a question about the page cache.
_DIRECT_BYTES = 2**20


class Array:
    """One array of n rows that gives tensors of its own memory, and keeps no mapped page resident."""

    def __init__(
        self, values: Any, name: str, view: torch.dtype | None = None, *, path: str | Path | None = None
    ) -> None:
        of = "" if path is None else f" of {Path(path).name}"
        if not isinstance(values, Tensor):
            values = values if isinstance(values, np.ndarray) else np.asarray(values)
            if values.dtype.kind not in "fiub":
                wrong = TypeError if path is None else ValueError
                raise wrong(f"`{name}`{of} should hold real numbers, got dtype {values.dtype}.")
        if values.ndim not in (1, 2):
            raise ValueError(f"`{name}`{of} should have one or two dimensions, got shape {tuple(values.shape)}.")
        self.values, self._dtype, self.path = values, view, path
        self._map = _mapping(values)
        self._size = 0 if self._map is None else self._map.size()
        self._whole = _tensor_of(values, view)

    @property
    def name(self) -> str:
        """The file, for errors."""
        return "the mapped file" if self.path is None else Path(self.path).name

    @property
    def in_place(self) -> bool:
        """Whether rows can be summed where they lie."""
        return self._whole is not None

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows as a tensor: a copy, but of a tensor."""
        if isinstance(self.values, Tensor):
            return self.values[start:stop]
        part = self._copied(start, min(stop, len(self.values)))
        rows = torch.from_numpy(np.array(part, dtype=part.dtype.newbyteorder("="), order="C"))
        self.drop()
        return rows if self._dtype is None else rows.view(self._dtype)

    def _copied(self, start: int, stop: int) -> Any:
        """Return rows that no one can cut off: of a file they are read, as mapped pages would end the process."""
        part = self.values[start:stop]
        if part.size == 0 or self._file is None:
            self._check_whole()
            return part
        if self.values.flags.c_contiguous:
            found = self._file.buffered(start * self.row_bytes, stop * self.row_bytes, {})
            return found.view(part.dtype).reshape(part.shape)
        size, n = part.dtype.itemsize, len(self.values)  # column after column
        columns = [
            self._file.buffered((j * n + start) * size, (j * n + stop) * size, {}).view(part.dtype)
            for j in range(part.shape[1])
        ]
        return np.stack(columns, 1)

    def _check_whole(self) -> None:
        """Raise if the file under a mapping is shorter than it was: what was cut off must not be touched."""
        if self._map is not None and (size := self._map.size()) < self._size:
            raise cut_short(self.name, self._size, size)

    def view(self, start: int, stop: int, slot: Slot) -> Tensor:
        """Return rows without a copy of what is in memory, to be read and not written; those of a file in a slot."""
        assert self._whole is not None
        low, high = start * self.row_bytes, min(stop, len(self.values)) * self.row_bytes
        if self._file is None or low >= high:
            self._check_whole()
            return self._whole[start:stop]
        found = None
        if high - low >= _DIRECT_BYTES and not self._file.cached(low, high):
            found = self._file.read(low, high, slot)
        found = self._file.buffered(low, high, slot) if found is None else found
        return torch.from_numpy(found).view(self._whole.dtype).view(-1, *self._whole.shape[1:])

    def content(self) -> dict[str, Any]:
        """Return what tells this array from others."""
        head = {"shape": list(self.values.shape), "dtype": str(self.read(0, 1).dtype)}
        return head | _content.of_rows(self.read, len(self.values), self.row_bytes)

    @cached_property
    def _file(self) -> Direct | None:
        kept = self._map is not None and (self.values.flags.c_contiguous or self.values.flags.f_contiguous)
        return direct_of(self.values, self._map, self.name) if kept and self._map is not None else None

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
    """Return the mapping under an array if its pages can be dropped: not if they hold unsaved changes."""
    keep = isinstance(values, np.memmap) and values.mode == "c"
    while isinstance(values, np.ndarray) and values.base is not None:
        values = values.base
        keep = keep or (isinstance(values, np.memmap) and values.mode == "c")
    return values if isinstance(values, mmap.mmap) and not keep and hasattr(mmap, "MADV_DONTNEED") else None


def _tensor_of(values: Any, dtype: torch.dtype | None) -> Tensor | None:
    """Return a tensor of the same memory, or None if torch has none of that kind."""
    if isinstance(values, Tensor):
        return values
    kept = values.dtype.isnative and values.dtype.itemsize <= 8 and values.flags.c_contiguous and values.flags.aligned
    if not kept or values.size == 0:
        return None
    whole = shared(values)
    return whole if dtype is None else whole.view(dtype)
