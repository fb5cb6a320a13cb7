"""Moments of every layer and fold, from one pass."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.probing.features.chunks import Chunk
from torchridge.solvers.device import sent
from torchridge.solvers.moments import blocks, one_pass, targets
from torchridge.solvers.moments.blocks import Block

Key = tuple[int, int]  # fold; class, or −1 if the classes of a fold share one block


@dataclass(frozen=True)
class Plan:
    """What the moments are of.

    Attributes:
        classes: whether targets are class codes, held as indicator columns.
        by_class: whether every class of a fold has moments of its own, for weights that depend on the counts.
        control: whether shuffled targets are fitted along with the real ones.
        seed: of the shuffle.
    """

    classes: bool
    by_class: bool
    control: bool
    seed: int


class LayerTable:
    """Blocks by layer, fold and perhaps class. Columns of targets grow as classes come."""

    def __init__(self, plan: Plan, device: torch.device | None) -> None:
        self.plan, self.device = plan, device
        self.blocks: dict[str, dict[Key, Block]] = {}
        self.width = 0  # targets, controls not counted
        self.chunks = 0

    def update(self, chunk: Chunk, width: int) -> None:
        """Add a chunk; `width` is the number of classes, or of targets, known by now."""
        parts = self._parts(chunk)
        y = self._targets(chunk, width)
        added = {}
        for layer, rows in chunk.features.items():
            device = self.device or (torch.device("cpu") if rows.device.type == "mps" else rows.device)
            x, z = rows.to(device), sent(y, device)
            weight = None if chunk.weight is None else sent(chunk.weight, device)
            own = {k: sent(i, device) for k, i in parts.items()}
            fresh = {k: one_pass.block_of(x, z, weight, i, torch.float64, device) for k, i in own.items()}
            _check_finite(fresh, rows, layer)
            added[layer] = {**(old := self._widened(layer, width)), **_merged(old, fresh)}
        self.blocks, self.width, self.chunks = added, width, self.chunks + 1

    def _parts(self, chunk: Chunk) -> dict[Key, Tensor]:
        classes = chunk.target if self.plan.by_class else torch.full_like(chunk.fold, -1)
        pairs = torch.stack([chunk.fold, classes], 1)
        keys, inverse = torch.unique(pairs, dim=0, return_inverse=True)
        return {(int(f), int(c)): (inverse == i).nonzero()[:, 0] for i, (f, c) in enumerate(keys.tolist())}

    def _targets(self, chunk: Chunk, width: int) -> Tensor:
        target = chunk.target[:, None] if chunk.target.ndim == 1 and not self.plan.classes else chunk.target
        real = targets.indicators(target, width) if self.plan.classes else target
        if not self.plan.control:
            return real
        return torch.cat([real, real[shuffle(len(real), self.plan.seed, self.chunks)]], 1)

    def _widened(self, layer: str, width: int) -> dict[Key, Block]:
        columns = torch.arange(self.width)
        if self.plan.control:
            columns, width = torch.cat([columns, width + columns]), 2 * width
        return {k: targets.widened(b, columns, width) for k, b in self.blocks.get(layer, {}).items()}

    def bytes_needed(self, sizes: dict[str, int], folds: int, width: int) -> int:
        """Return the bytes of all moments, and of the work on the largest layer."""
        parts = folds * (max(width, 2) if self.plan.by_class else 1)
        t = width * (2 if self.plan.control else 1)
        held = sum(parts * (d * d + d * t + d + t) for d in sizes.values())
        return 8 * (held + (2 * folds + 6) * max(d * (d + t) for d in sizes.values())) + one_pass.CHUNK_BYTES

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors, and what JSON holds."""
        names = list(self.blocks)
        tensors: dict[str, Tensor] = {}
        rows = {}
        for i, layer in enumerate(names):
            for (fold, kind), block in self.blocks[layer].items():
                key = f"{i}/{fold}/{kind}"
                rows[key] = block.rows
                tensors |= {f"block/{key}/{f}": a for f, a in block._asdict().items() if f != "rows"}
        return tensors, {"layers": names, "rows": rows, "width": self.width, "chunks": self.chunks}

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any], devices: dict[str, torch.device]) -> None:
        """Take over what `state` returned."""
        self.width, self.chunks = state["width"], state["chunks"]
        self.blocks = {layer: {} for layer in state["layers"]}
        for key, rows in state["rows"].items():
            i, fold, kind = (int(part) for part in key.split("/"))
            layer = state["layers"][i]
            fields = (tensors[f"block/{key}/{f}"].to(self.device or devices[layer]) for f in Block._fields[1:])
            self.blocks[layer][fold, kind] = Block(rows, *fields)


def shuffle(m: int, seed: int, chunk: int) -> Tensor:
    """Return the permutation of the m rows of a chunk that makes its control task."""
    return torch.randperm(m, generator=torch.Generator().manual_seed(seed + chunk))


def _merged(old: dict[Key, Block], fresh: dict[Key, Block]) -> dict[Key, Block]:
    return {k: blocks.merge([old[k], b]) if k in old else b for k, b in fresh.items()}


def _check_finite(fresh: dict[Key, Block], rows: Tensor, layer: str) -> None:
    finite = [torch.isfinite(b.gram.diagonal()).all() & torch.isfinite(b.yy).all() for b in fresh.values()]
    if bool(torch.stack(finite).all()):  # one wait for a device
        return
    _check.finite(rows, f"features of layer {layer}")
    raise ValueError("`labels` hold NaN or infinity. Drop these examples.")


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device, or None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_memory(needed: int, limit: int | None, device: torch.device) -> None:
    """Raise if the moments will not fit."""
    free = available_bytes(device) if limit is None else limit
    if free is not None and needed > free:
        raise ValueError(
            f"the moments need about {needed / 2**30:.2f} GiB on {device}, but "
            f"{'there are' if limit is None else '`max_memory` allows'} {free / 2**30:.2f} GiB. Probe fewer `layers` "
            f"at a time, lower `cv`, give `class_weight` as a mapping in place of 'balanced', or choose another "
            f"`moments_device`."
        )


def folds_of(table: dict[Key, Block], columns: Tensor) -> dict[int, dict[int, Block]]:
    """Return the blocks of one layer by fold, then by class, with some of the target columns."""
    result: dict[int, dict[int, Block]] = {}
    for (fold, kind), block in sorted(table.items()):
        result.setdefault(fold, {})[kind] = targets.selected(block, columns)
    return result


def split(folds: dict[int, dict[int, Block]], fold: int | None) -> tuple[Block, Block | None]:
    """Return the training and the held-out moments of one fold; of None, all rows.

    If classes have moments of their own, they are weighted to count equally: n / (k n_c) by the training part.
    """
    train = [blocks_ for f, blocks_ in folds.items() if f != fold]
    counts: dict[int, float] = {}
    for part in train:
        for kind, block in part.items():
            counts[kind] = counts.get(kind, 0.0) + float(block.weight)
    if -1 in counts:
        held = None if fold is None else folds[fold][-1]
        return blocks.merge([part[-1] for part in train]), held
    total = sum(counts.values()) / len(counts)
    factor = {kind: total / count for kind, count in counts.items()}
    both = [[targets.reweighted(b, factor.get(c, 1.0)) for c, b in part.items()] for part in train]
    held = (
        None
        if fold is None
        else blocks.merge([targets.reweighted(b, factor.get(c, 1.0)) for c, b in folds[fold].items()])
    )
    return blocks.merge([b for part in both for b in part]), held
