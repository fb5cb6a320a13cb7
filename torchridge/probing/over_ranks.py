"""One probing over the rows of all ranks: each passes over its own, and all go on from the same moments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge._ranks import Ranks, brief
from torchridge.distributed import collectives
from torchridge.probing.features.chunks import Gatherer
from torchridge.probing.features.table import Key, LayerTable
from torchridge.probing.readouts.heldout import HeldOut
from torchridge.probing.settings import Settings
from torchridge.solvers.moments import blocks, targets
from torchridge.solvers.moments.blocks import Block

_AGREE = ("layers", "targets", "vector_target", "settings")


def gathered(
    ranks: Ranks, settings: Settings, gather: Callable[[], tuple[Gatherer, LayerTable]]
) -> tuple[Gatherer, LayerTable]:
    """Return what `gather` gathers of this rank's rows, with the moments, classes and layers of all ranks in it.

    Classes keep the numbers that they have here, and those that only other ranks met are numbered after them: rows of
    a second pass, or kept ones, go on to fit.
    """
    (gatherer, table), told = ranks.together("probing", gather, lambda done: _says(*done, settings), agree=_AGREE)
    first = next((t for t in told if t["layers"] is not None), None)
    if first is None:
        raise ValueError("`batches` is empty on every rank; expected at least one batch.")
    codes = gatherer.labeler.codes
    for value in sorted({v for t in told for v in t["classes"]}):
        codes.codes.setdefault(value, len(codes.codes))
    if not table.blocks:
        gatherer.vector_target = first["vector_target"]
        gatherer.dtypes = {layer: getattr(torch, dtype) for layer, _, dtype in first["layers"]}
    order = codes.order if settings.classification else torch.arange(first["targets"])
    _pool(table, told, first["layers"], _Columns(order, settings.control), ranks)
    return gatherer, table


def _says(gatherer: Gatherer, table: LayerTable, settings: Settings) -> dict[str, Any]:
    layers = [
        [layer, next(iter(held.values())).gram.shape[0], str(gatherer.dtypes[layer]).removeprefix("torch.")]
        for layer, held in table.blocks.items()
    ]
    held = next(iter(table.blocks.values()), {})
    classes = list(gatherer.labeler.codes.codes)
    names = {-1: None, **dict(enumerate(classes))}
    return {
        "layers": layers or None,
        "targets": table.width if layers and not settings.classification else None,
        "vector_target": gatherer.vector_target if layers else None,
        "classes": classes,
        "counts": [[fold, names[kind], b.rows, float(b.weight)] for (fold, kind), b in held.items()],
        "settings": "; ".join(f"{name} {brief(getattr(settings, name))}" for name in _SETTINGS),
    }


_SETTINGS = ("task", "readouts", "class_weight", "alphas", "shrinkages", "Cs", "standardize", "control", "metrics")


class _Columns:
    """The way from this rank's numbers of classes to their place among sorted classes, and back."""

    def __init__(self, order: Tensor, control: bool) -> None:
        self.width, self.control = len(order), control
        self.order, self.place = order, order.argsort()

    def sorted(self, block: Block, known: int) -> Block:
        """Return the moments with a column for every class, sorted; `known` of them have columns here."""
        columns, total = torch.arange(known), self.width
        if self.control:
            columns, total = torch.cat([columns, self.width + columns]), 2 * self.width
        return targets.selected(targets.widened(block, columns, total), self._both(self.order, block))

    def own(self, block: Block) -> Block:
        """Return sorted columns in this rank's numbers."""
        return targets.selected(block, self._both(self.place, block))

    def _both(self, columns: Tensor, like: Block) -> Tensor:
        both = torch.cat([columns, self.width + columns]) if self.control else columns
        return both.to(like.yy.device)


def _pool(
    table: LayerTable, told: list[dict[str, Any]], layers: list[list[Any]], columns: _Columns, ranks: Ranks
) -> None:
    """Replace the moments of this rank's rows by those of all ranks'."""
    values = sorted({v for t in told for v in t["classes"]})
    place = {None: -1, **{v: i for i, v in enumerate(values)}}
    counts = [{(f, place[c]): (rows, weight) for f, c, rows, weight in t["counts"]} for t in told]
    back = {-1: -1, **dict(enumerate(columns.order.tolist()))}
    forth = {v: k for k, v in back.items()}
    t = columns.width * (1 + columns.control)
    pooled: dict[str, dict[Key, Block]] = {}
    for layer, d, _ in layers:
        held = table.blocks.get(layer, {})
        device = next(iter(held.values())).gram.device if held else table.device or torch.device("cpu")
        mine = {(f, forth[kind]): columns.sorted(b, table.width) for (f, kind), b in held.items()}
        empty = blocks.empty_block(d, t, torch.float64, device)
        whole = collectives.reduce_blocks(mine, counts, empty, ranks)
        pooled[layer] = {(f, back[kind]): columns.own(b) for (f, kind), b in whole.items()}
    table.blocks, table.width = pooled, columns.width


def pool_scores(ranks: Ranks, look: Callable[[], None], gatherer: Gatherer, heldout: dict[Any, HeldOut]) -> None:
    """Look at this rank's rows again, and add up what all ranks saw."""
    folds = gatherer.labeler.folds

    def says(_: None) -> dict[str, Any]:
        return {"examples": folds.examples, "groups": [repr(label) for label in folds.group_number]}

    _, told = ranks.together("the second pass of probing", look, says)
    names = {label: i for i, label in enumerate(dict.fromkeys(g for t in told for g in t["groups"]))}
    number = torch.tensor([names[g] for g in told[ranks.index]["groups"]], dtype=torch.int64)
    before = sum(t["examples"] for t in told[: ranks.index])
    for held in heldout.values():
        held.right = ranks.all_sum("held-out scores", held.right)
        if held.units:
            unit, loss, scale = _joined(held.losses)
            held.losses = [_gathered(ranks, number[unit] if len(number) else unit + before, loss, scale)]


def _joined(losses: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.float64)
    unit, loss, scale = (torch.cat(parts) for parts in zip((none.long(), none, none), *losses, strict=True))
    return unit, loss, scale


def _gathered(ranks: Ranks, unit: Tensor, loss: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of all ranks' rows, three numbers a row, in the order of ranks."""
    sizes = ranks.all_gather("the rows", torch.tensor([len(unit)]))[:, 0].tolist()
    padded = torch.zeros(3, max(sizes), dtype=torch.float64)
    padded[:, : len(unit)] = torch.stack([unit.double(), loss, scale])
    each = ranks.all_gather("the losses", padded)
    unit, loss, scale = torch.cat([part[:, :size] for part, size in zip(each, sizes, strict=True)], 1)
    return unit.long(), loss, scale


def checkpoint_file(path: str | Path, ranks: Ranks) -> Path:
    """Return the file of this rank, or raise if another number of ranks has left some."""
    path = Path(path)
    end = f"-of-{ranks.size}"
    others = [f.name for f in path.parent.glob(f"{path.name}.*-of-*") if not f.name.endswith((end, ".part"))]
    if others:
        raise ValueError(
            f"`checkpoint`: {sorted(others)} were written by another number of ranks, whose batches these {ranks.size} "
            f"ranks do not have. Start as many ranks again, or delete the files to start anew."
        )
    return path.with_name(f"{path.name}.{ranks.index}{end}")


def folder(keep: str | Path, ranks: Ranks) -> str | Path:
    """Return where this rank keeps its features."""
    return keep if keep == "memory" else Path(keep) / f"rank-{ranks.index}"


def refuse(settings: Settings) -> None:
    """Raise on metrics that would need the predictions of all rows in one place."""
    named = sorted(name for name, metric in settings.named_metrics.items() if metric.own is None)
    if named:
        raise ValueError(
            f"`metrics` {named} would need the predictions of all ranks in one place. Over ranks ask for 'accuracy', "
            f"R² or mse, which are added up."
        )
