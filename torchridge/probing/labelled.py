"""Moments of labelled features outside a pass: classes may be added at any time, and rows taken away again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.probing.features.batches import as_tensor
from torchridge.probing.features.folding import ClassCodes, check_classes
from torchridge.probing.layer_probe import Probe
from torchridge.probing.readouts.table import READOUTS, names
from torchridge.probing.tasks import task_of
from torchridge.solvers.device import sent
from torchridge.solvers.moments import blocks, finite, one_pass, targets
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.rows import Rows


class Labelled:
    """One block of moments, its targets the indicators of the classes met so far, or those of a regression."""

    def __init__(self, task: str) -> None:
        _check.option(task, "task", ("auto", "regression", "classification"))
        self.task = task  # "auto" until labels are seen
        self.codes = ClassCodes()
        self.block: Block | None = None
        self.dtype = torch.float32

    def measured(self, features: Tensor, labels: Any, sample_weight: Tensor | None) -> Block:
        """Return the moments of some rows, checked against what is held."""
        _check.is_tensor(features, "features")
        y = as_tensor(labels, "labels")
        task = task_of(y) if self.task == "auto" else self.task
        if task == "classification":
            check_classes(y)
            _check.same_length(len(y), len(features), "labels", "features")
            codes = self.codes.encode(y)
            y = targets.indicators(codes, len(self.codes))
        rows = Rows(*_check.rows(features.detach(), y.to(features.device), sample_weight))
        held = self.block
        if held is not None and (got := rows.X.shape[1]) != (d := held.gram.shape[0]):
            raise ValueError(f"`features` should have {d} columns as before, got {got}.")
        block = one_pass.block_of(*rows[:3], None, torch.float64, features.device)
        finite.check_finite(block, rows)
        self.task = task
        self.dtype = features.dtype if features.is_floating_point() else torch.float64
        return block

    def widened(self, block: Block) -> Block:
        """Return moments with a column for every class met so far."""
        if self.task == "regression":
            return block
        return targets.widened(block, torch.arange(len(block.yy)), len(self.codes))

    def add(self, block: Block) -> None:
        """Add moments."""
        self.block = block if self.block is None else blocks.merge([self.widened(self.block), self.widened(block)])

    def take_away(self, block: Block) -> None:
        """Take moments away that were added before."""
        if self.block is None or block.rows > self.block.rows:
            held = 0 if self.block is None else self.block.rows
            raise ValueError(
                f"cannot forget {block.rows} rows: only {held} are held. Forget only rows that were added."
            )
        left = blocks.remove(self.widened(self.block), self.widened(block))
        self.block = left if left.rows else None

    def solve(self, readout: str, strength: float, standardize: bool) -> Probe:
        """Return a readout at a given strength.

        Classes that are not held any more are left out.
        """
        _check.option(readout, "readout", names(self.task, at=True))
        if self.block is None:
            raise ValueError("there are no rows yet. Call `update(features, labels)` first.")
        block, classes = self.widened(self.block), None
        if self.task == "classification":
            block, classes = self._present(block)
        weight, bias = _at(readout)(block, strength, standardize, self.task == "classification")
        one = torch.tensor([strength], dtype=torch.float64)
        return Probe(
            "features",
            readout,
            weight,
            bias,
            strength,
            one,
            "given",
            torch.empty(0, 1),
            {},
            classes=classes,
            dtype=self.dtype,
        )

    def _present(self, block: Block) -> tuple[Block, Tensor]:
        order = self.codes.order
        share = block.mean_y[sent(order, block.mean_y.device)].cpu()
        kept = order[share * float(block.weight) > 1e-9 * max(float(block.weight), 1.0)]
        if len(kept) < 2:
            raise ValueError(f"the rows hold {len(kept)} class; expected at least two. Call `update` with others.")
        by_code = torch.tensor(list(self.codes.codes))
        return targets.selected(block, kept), by_code[kept]


def _at(readout: str) -> Callable[[Block, float, bool, bool], tuple[Tensor, Tensor]]:
    way = READOUTS[readout].at
    assert way is not None
    return way
