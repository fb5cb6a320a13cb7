"""An interrupted pass over rows: the moments so far and how many rows they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from torchridge import _files
from torchridge.solvers.blocks import Block
from torchridge.solvers.moments import Moments

KIND = "torchridge.stream-checkpoint/1"


def write(path: str | Path, moments: Moments, done: int, about: dict[str, Any]) -> None:
    """Write the file whole, or leave what was there."""
    state = moments.state_dict()
    tensors: dict[str, Tensor] = {}
    heads = []
    for i, block in enumerate(state.pop("blocks")):
        tensors |= {f"{i}/{name}": block.pop(name) for name in Block._fields[1:]}
        heads.append(block)
    content = {"about": about, "done": done, "blocks": heads, **state}
    _files.write(path, KIND, tensors, content, name="checkpoint")


def resume(path: str | Path, moments: Moments, about: dict[str, Any]) -> int:
    """Take over what `write` left, and return how many rows were done.

    Raises:
        ValueError: where the file was written for other rows or options, or is damaged.
    """
    tensors, content = _files.read(path, KIND, name="checkpoint")
    if content["about"] != about:
        wrong = sorted(k for k in {*about, *content["about"]} if content["about"].get(k) != about.get(k))
        raise ValueError(
            f"`checkpoint`: {Path(path).name} was written for other rows or options ({', '.join(wrong)} differ). "
            f"Delete it to start anew."
        )
    names = Block._fields[1:]
    blocks = [head | {name: tensors[f"{i}/{name}"] for name in names} for i, head in enumerate(content["blocks"])]
    moments.load_state_dict({**content, "blocks": blocks})
    return int(content["done"])
