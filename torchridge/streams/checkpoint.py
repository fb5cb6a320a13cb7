"""An interrupted pass over rows: the moments so far and how many rows they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from torchridge import _check, _files
from torchridge._files import content as _content
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.moments import Moments
from torchridge.streams.source import Batch

KIND = "torchridge.stream-checkpoint/2"


class Position(NamedTuple):
    """How far a pass has come."""

    done: int = 0  # rows that are summed
    seen: str = ""  # a digest of their batches, of a source that cannot be known beforehand

    def after(self, batch: Batch, *, known: bool = False) -> Position:
        """Return where one more batch leads; what is known needs no digest."""
        return Position(self.done + len(batch.X), "" if known else _content.chained(self.seen, *batch))


def write(path: str | Path, moments: Moments, at: Position, about: dict[str, Any]) -> None:
    """Write the file whole, or leave what was there."""
    state = moments.state_dict()
    tensors: dict[str, Tensor] = {}
    heads = []
    for i, block in enumerate(state.pop("blocks")):
        tensors |= {f"{i}/{name}": block.pop(name) for name in Block._fields[1:]}
        heads.append(block)
    content = {"about": about, "at": at, "blocks": heads, **state}
    _files.write(path, KIND, tensors, content, name="checkpoint")


def resume(path: str | Path, moments: Moments, about: dict[str, Any]) -> Position:
    """Take over what `write` left, and return how far it had come.

    Raises:
        ValueError: if the file was written for other rows or options, or is damaged.
    """
    tensors, content = _files.read(path, KIND, name="checkpoint")
    with _files.understood(path, "checkpoint"):
        wrong = sorted(k for k in {*about, *content["about"]} if content["about"].get(k) != about.get(k))
    if wrong:
        refuse(path, f"{', '.join(wrong)} differ")
    with _files.understood(path, "checkpoint"):
        names = Block._fields[1:]
        blocks = [head | {name: tensors[f"{i}/{name}"] for name in names} for i, head in enumerate(content["blocks"])]
        done, seen = content["at"]
        at = Position(_check.integer(done, "done", minimum=0), str(seen))
        moments.load_state_dict({**content, "blocks": blocks})
    return at


def pass_over(path: str | Path, stream: Iterator[Batch], at: Position) -> None:
    """Read again what a checkpoint holds, and raise unless it is the same rows in the same batches."""
    now = Position()
    while now.done < at.done and (batch := next(stream, None)) is not None:
        now = now.after(batch)
    if now != at:
        refuse(path, "the rows that it holds differ")


def refuse(path: str | Path, what: str) -> NoReturn:
    """Say that a file is of other rows or options."""
    raise ValueError(
        f"`checkpoint`: {Path(path).name} was written for other rows or options ({what}). Delete it to start anew."
    )
