"""Run by `test_killed.py`: forks a pass over rows for every point, ends it there, and prints what it has left as JSON.

A process of its own, so that what is forked has no threads of a test's.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from torchridge import Moments, stream_moments
from torchridge._files import replacement

BATCHES, EVERY = 8, 2
POINTS = 31


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    for _ in range(BATCHES):
        X = torch.randn(20, 3, generator=g, dtype=torch.float64) + 5
        yield X, X.sum(1)


def one_pass(path: Path) -> Moments:
    return stream_moments(list(batches()), checkpoint=path, checkpoint_every=EVERY, cv=4)


class Points:
    """Counts the calls to the system that a checkpoint makes, and does something at one of them."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.seen = at, act, 0

    def reached(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.act()

    def watch(self) -> None:
        """Before and after every call: in the middle of a write, half of it is there."""
        for name in ("open", "fsync", "replace", "chmod", "close"):
            setattr(replacement.os, name, self._watched(getattr(os, name)))
        kept = os.fdopen
        replacement.os.fdopen = lambda handle, mode: _Halves(kept(handle, mode), self)  # type: ignore[assignment]

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.reached()
            result = call(*arguments, **options)
            self.reached()
            return result

        return watched


class _Halves:
    """A file that writes the first half, then lets something happen."""

    def __init__(self, file: Any, points: Points) -> None:
        self.file, self.points = file, points

    def __enter__(self) -> "_Halves":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.points.reached()
        return int(self.file.write(data[len(data) // 2 :]))


def killed(path: Path, number: int, how: int) -> int:
    """Return how a forked pass ended that was told to end at a point."""
    child = os.fork()
    if child == 0:
        Points(number, lambda: os.kill(os.getpid(), how)).watch()
        one_pass(path)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def full(path: Path, number: int) -> str:
    """Return what a pass says on a disk that is full at a point."""

    def no_room() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        Points(number, no_room).watch()
        try:
            one_pass(path)
        except OSError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def state(folder: Path, unbroken: Moments) -> dict[str, Any]:
    """Return what lies in a folder, and whether a resumed pass gives the numbers of an unbroken one."""
    left = sorted(p.name for p in folder.iterdir() if p.name != "c.st")
    here = (folder / "c.st").exists()
    resumed = one_pass(folder / "c.st")
    same = all(
        a.equal(b) if isinstance(a, torch.Tensor) else a == b
        for k in unbroken.folds
        for a, b in zip(resumed.block(k), unbroken.block(k), strict=True)
    )
    after = sorted(p.name for p in folder.iterdir() if p.name != "c.st")
    return {"left": left, "there": here, "same": same, "after": after}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results, unbroken = [], stream_moments(list(batches()), cv=4)
    os.fsync = lambda _: None  # what a killed process has written stays, synchronized or not
    for how in ("SIGKILL", "SIGTERM", "full disk"):
        for number in range(1, POINTS + 1):
            place = folder / f"{how}-{number}"
            place.mkdir()
            if how == "full disk":
                ended: Any = full(place / "c.st", number)
            else:
                ended = killed(place / "c.st", number, getattr(signal, how))
            results.append({"how": how, "number": number, "ended": ended} | state(place, unbroken))
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
