"""Batches ahead of time: read by another thread, and copied to CUDA from pinned memory while the device computes."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from torchridge.streams.source import Batch, RowSource

# Batches that lie ready while one is worked on. A third is in the making, so four are held.
_AHEAD = 2
HELD = _AHEAD + 2

T = TypeVar("T")


def batches(source: RowSource, start: int, rows: int | None, device: torch.device) -> Iterator[Batch]:
    """Yield the rows from `start` on in batches of `rows` (None: as they come), on the device.

    Rows that lie in memory, or are mapped into it, are not copied for a CPU; the pages of one batch are brought there
    while the one before it is worked on.
    """
    if (count := held(source, device)) < HELD and rows is not None:
        yield from ahead(source.views(start, rows, count), count - 2)
        return
    stream: Iterator[Batch] = regrouped(source.batches(start, rows), rows)
    if device.type != "cuda":
        yield from ahead(stream)
        return
    for moved, copied in ahead(_copied(stream, device)):
        work = torch.cuda.current_stream(device)
        work.wait_event(copied)
        for tensor in moved:
            if tensor is not None:
                tensor.record_stream(work)
        yield moved


def held(source: RowSource, device: torch.device) -> int:
    """Return how many batches are held at once."""
    return 2 if source.in_place and device.type == "cpu" else HELD


def regrouped(stream: Iterable[Batch], rows: int | None) -> Iterator[Batch]:
    """Cut and join batches to `rows` rows each, but for the last."""
    pending: list[Batch] = []
    have = 0
    for batch in stream:
        at = 0
        while rows is not None and have + len(batch.X) - at >= rows:
            pending.append(batch.cut(at, at + rows - have))
            at += rows - have
            yield _joined(pending)
            pending, have = [], 0
        if at < len(batch.X):
            pending.append(batch.cut(at, len(batch.X)) if at else batch)
            have += len(batch.X) - at
        if rows is None and pending:
            yield pending.pop()
            have = 0
    if pending:
        yield _joined(pending)


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    columns: list[Any] = [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]
    return Batch(*columns)


class _End(NamedTuple):
    error: BaseException | None


def ahead(stream: Iterator[T], ready_made: int = _AHEAD) -> Generator[T, None, None]:
    """Yield what `stream` yields, made by another thread while the caller works on what came before."""
    room, ready, stop = threading.Semaphore(ready_made), SimpleQueue[Any](), threading.Event()

    def work() -> None:
        error: BaseException | None = None
        try:
            with closing(stream) as items:  # type: ignore[type-var]
                for item in items:
                    ready.put(item)
                    room.acquire()
                    if stop.is_set():
                        return
        except BaseException as caught:  # whatever it is, the thread that waits must hear of it
            error = caught
        ready.put(_End(error))

    thread = threading.Thread(target=work, name="torchridge-rows", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            room.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        room.release()
        thread.join()


class _Pinned:
    """Pinned memory for one batch, and the event that tells when it may be filled again."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}
        self.copied: torch.cuda.Event | None = None

    def filled(self, batch: Batch) -> Batch:
        if self.copied is not None:
            self.copied.synchronize()
        return Batch(*(None if a is None else self._staged(i, a) for i, a in enumerate(batch)))  # type: ignore[arg-type]

    def _staged(self, i: int, rows: Tensor) -> Tensor:
        if rows.is_cuda:
            return rows
        held = self.buffers.get(i)
        if held is None or held.dtype is not rows.dtype or len(held) < len(rows) or held.shape[1:] != rows.shape[1:]:
            held = self.buffers[i] = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        return held[: len(rows)].copy_(rows)


def _copied(stream: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Yield batches whose copies are under way on a stream of their own, each with the event that ends its copy."""
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    slots = [_Pinned(), _Pinned()]
    for batch in stream:
        slots.reverse()
        pinned = slots[0].filled(batch)
        with torch.cuda.stream(copies):
            moved = [None if a is None else a.to(device, non_blocking=True) for a in pinned]
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(copies)
        slots[0].copied = done
        yield Batch(*moved), done  # type: ignore[arg-type]
