"""Rows of a mapped file, read from the file: a page that is cut off a mapping ends the process, a read does not.

They are read past the page cache if they are not in it: it does not help a pass over more than it holds, and it has
its cost. Pages that are not in the cache have to be found, entered in it, mapped and taken out again. Measured on 2
cores of a virtual machine, cold, for 0.5 GB of float32 rows and their conversion: by the mapping 0.3 to 1.0 s of a
core, by direct reads into memory that is used again 0.08 s.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

# Offsets and lengths of direct reads are multiples of the block size of the disk, which is at most this.
_BLOCK = 4096

# The share of pages in the cache from which on the mapping is read.
_CACHED = 0.9


# Memory of the batches of one pass, by the file that they come from.
Slot = dict["Direct", mmap.mmap]


class Direct:
    """The file under a mapped array, read into memory that is used again."""

    def __init__(self, handle: int, past: int | None, start: int, address: int, name: str) -> None:
        self._handle, self._past = handle, past  # `past` the page cache, if the file system has such reads
        self._start, self._address, self._name = start, address, name

    def __del__(self) -> None:
        for handle in (self._handle, self._past):
            if handle is not None:
                os.close(handle)

    def buffered(self, low: int, high: int, slot: Slot) -> Any:
        """Return bytes of the array by way of the page cache, in memory of a slot.

        Raises:
            ValueError: if the file has become shorter.
        """
        size, got = high - low, 0
        buffer = self._buffer(size, slot)
        with memoryview(buffer) as view:
            while got < size:
                some = os.preadv(self._handle, [view[got:size]], self._start + low + got)
                if some <= 0:
                    raise cut_short(self._name, self._start + high, os.fstat(self._handle).st_size)
                got += some
        return np.frombuffer(buffer, np.uint8)[:size]

    def _buffer(self, size: int, slot: Slot) -> mmap.mmap:
        buffer = slot.get(self)
        if buffer is None or len(buffer) < size:
            buffer = slot[self] = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # aligned to a page
        return buffer

    def cached(self, low: int, high: int) -> bool:
        """Whether most of some bytes of the array are in the page cache."""
        first = (self._address + low) // mmap.PAGESIZE * mmap.PAGESIZE
        length = self._address + high - first
        found = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
        asked = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_void_p(found.ctypes.data)
        )
        return asked != 0 or float((found & 1).mean()) >= _CACHED

    def read(self, low: int, high: int, slot: Slot) -> Any:
        """Return bytes of the array, in memory of a slot, or None if the disk does not give them."""
        start = (self._start + low) // _BLOCK * _BLOCK
        size = -(-(self._start + high - start) // _BLOCK) * _BLOCK
        if self._past is None:
            return None
        buffer = self._buffer(size, slot)
        skip, wanted, got = self._start + low - start, self._start + high - start, 0
        with memoryview(buffer) as view:
            while got < wanted:
                try:
                    some = os.preadv(self._past, [view[got:size]], start + got)
                except OSError:
                    return None
                if some <= 0 or (some % _BLOCK and got + some < wanted):
                    return None
                got += some
        return np.frombuffer(buffer, np.uint8)[skip:wanted]


def cut_short(name: str, expected: int, size: int) -> ValueError:
    """Return the error of a file that became shorter while it was open."""
    return ValueError(
        f"`source`: {name} was cut short after it was opened: expected at least {expected} bytes, found {size}. Write "
        f"it whole, and open it again."
    )


def direct_of(values: Any, mapping: mmap.mmap, name: str) -> Direct | None:
    """Return the file under a mapped array, or None if it cannot be read so, or its name tells another file."""
    file = values
    while not isinstance(file, np.memmap) and isinstance(file.base, np.ndarray):
        file = file.base
    if not isinstance(file, np.memmap) or file.filename is None or not hasattr(os, "preadv"):
        return None
    base, address = np.frombuffer(mapping, np.uint8).ctypes.data, values.ctypes.data
    offset = file.offset - file.offset % mmap.ALLOCATIONGRANULARITY  # where the mapping starts
    handle = _opened(file.filename, 0)
    if handle is None:
        return None
    past = _opened(file.filename, os.O_DIRECT) if hasattr(os, "O_DIRECT") else None
    found = Direct(handle, past, offset + address - base, address, name)
    status = os.fstat(handle)
    return found if _mapped_file(base) == (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino) else None


def _opened(path: Any, flags: int) -> int | None:
    try:
        return os.open(str(path), os.O_RDONLY | flags)
    except OSError:
        return None


def _mapped_file(address: int) -> tuple[int, int, int] | None:
    """Return the device, major and minor, and the number of the file that is mapped at an address."""
    maps = Path("/proc/self/maps")
    for line in os.fsdecode(maps.read_bytes()).splitlines() if maps.exists() else ():
        bounds, _, _, device, inode, *_ = line.split()
        low, high = (int(x, 16) for x in bounds.split("-"))
        if low <= address < high:
            major, minor = (int(x, 16) for x in device.split(":"))
            return major, minor, int(inode)
    return None
