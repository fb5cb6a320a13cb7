"""Counts what a GPU makes the host wait for: copies to the host and reads that synchronize, each with its place.

On the pretended device every operation is seen; on a real one torch's own synchronization debug mode warns of each."""

from __future__ import annotations

import ctypes
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

WAIT, UPLOAD = 0, 1


@dataclass(frozen=True)
class Wait:
    """One wait: what for, and the innermost line of torchridge that asked for it."""

    operation: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.operation}"


@dataclass
class HostWaits:
    """The waits of a block, and the copies of pageable host memory to the device apart from them."""

    waits: list[Wait] = field(default_factory=list)
    uploads: list[Wait] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.waits)

    def __len__(self) -> int:
        return len(self.waits)

    def __str__(self) -> str:
        lines = [f"{self.count} host waits"]
        lines += [f"    {n:4d} × {wait}" for wait, n in Counter(self.waits).most_common()]
        lines += [f"{len(self.uploads)} uploads from pageable memory"]
        lines += [f"    {n:4d} × {upload}" for upload, n in Counter(self.uploads).most_common()]
        return "\n".join(lines)


# Modules whose frames say nothing about who asked.
_BETWEEN = ("torch.", "warnings", "pretended_cuda.waits", "pretended_cuda.install")

_SYNCHRONIZED = "called a synchronizing"  # what torch warns of at each; that the mode is a prototype it says once

_open: list[HostWaits] = []
_lock = threading.Lock()
_keep: list[Any] = []  # callbacks that C++ holds


@contextmanager
def host_waits() -> Iterator[HostWaits]:
    """Count the host's waits inside the block, from all threads."""
    from pretended_cuda.install import installed

    waits = HostWaits()
    with _counting(waits) if installed() else _warned(waits):
        yield waits


@contextmanager
def _counting(waits: HostWaits) -> Iterator[None]:
    with _lock:
        _open.append(waits)
    try:
        yield
    finally:
        with _lock:
            _open.remove(waits)


@contextmanager
def _warned(waits: HostWaits) -> Iterator[None]:
    import torch

    before, showwarning = torch.cuda.get_sync_debug_mode(), warnings.showwarning

    def record(message: Warning | str, *rest: Any, **options: Any) -> None:
        if str(message).startswith(_SYNCHRONIZED):
            waits.waits.append(Wait("synchronizing operation", _place(sys._getframe(1))))
        else:
            showwarning(message, *rest, **options)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=_SYNCHRONIZED)
        warnings.showwarning = record
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def note(kind: int, operation: str) -> None:
    if _open:
        wait = Wait(operation, _place(sys._getframe(1)))
        with _lock:
            for waits in _open:
                (waits.waits if kind == WAIT else waits.uploads).append(wait)


def _place(frame: FrameType | None) -> str:
    """The innermost frame inside the package; outside it, the innermost that is neither torch's nor ours."""
    outside = ""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        here = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        if name == "torchridge" or name.startswith("torchridge."):
            inside = here.rsplit("/torchridge/", 1)[-1]
            return f"torchridge/{inside}"
        if not outside and not name.startswith(
            ("torch.", "warnings", "pretended_cuda.waits", "pretended_cuda.install")
        ):
            outside = here
        frame = frame.f_back
    return outside or "a thread of autograd"


def listen(library: ctypes.CDLL) -> None:
    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)
    def heard(kind: int, operation: bytes) -> None:
        try:
            note(kind, operation.decode())
        except Exception:  # C++ could not carry it further
            traceback.print_exc()

    _keep.append(heard)
    library.pretend_listen(heard)
