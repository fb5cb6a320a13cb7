"""The report of which parameter is decayed, in which group, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torchridge.training.parameters.decisions import Decision
from torchridge.training.weight_decay.gather import gathered


@dataclass(frozen=True)
class DecayRow:
    """One parameter in the report.

    Attributes:
        name: The name in the model's state dict, without wrapper prefixes.
        shape: Its shape, the full one if it is sharded; None for a lazy parameter.
        group: The name of its parameter group; `frozen` if it is in none.
        decay: Whether it is decayed.
        weight_decay: Its strength, in torch's convention: 2λ for the penalty λ‖w‖².
        lr_scale: What its learning rate is multiplied by.
        reason: Why, in words.
        aliases: Its other names, if it is tied.

    Example:
        >>> from torch import nn
        >>> from torchridge import explain_weight_decay
        >>> row = explain_weight_decay(nn.Sequential(nn.Linear(3, 1)), 0.1)["0.bias"]
        >>> row.shape, row.decay, row.reason
        ((1,), False, 'bias of Linear')
    """

    name: str
    shape: tuple[int, ...] | None
    group: str
    decay: bool
    weight_decay: float
    lr_scale: float
    reason: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class DecayTable:
    """The rows of :func:`~torchridge.training.weight_decay.groups.explain_weight_decay`, to print or to iterate over.

    Attributes:
        rows: One `DecayRow` for each parameter, in the order of the model.
        decisions: What the rows tell of, for `groups`.

    Example:
        >>> from torch import nn
        >>> from torchridge import explain_weight_decay
        >>> print(explain_weight_decay(nn.Sequential(nn.Linear(3, 1)), 0.1))
        name      shape  group     weight_decay  lr_scale  reason
        0.weight  1×3    decay     0.1           1         weight of Linear
        0.bias    1      no_decay  0             1         bias of Linear
        1 decayed, 1 not decayed, 0 frozen
    """

    rows: tuple[DecayRow, ...]
    decisions: tuple[Decision, ...] = field(default=(), repr=False, compare=False)

    def groups(self, lr: float | None = None, *, param_names: bool = True) -> list[dict[str, Any]]:
        """The parameter groups that this table explains, as `weight_decay_groups` makes them.

        Args:
            lr: Base learning rate; put in the groups, and required if any learning rate is scaled.
            param_names: Whether the groups name their parameters.

        Raises:
            ValueError: If a learning rate is scaled and `lr` is missing, or the model has no trainable parameter.
        """
        chosen = [decision for decision in self.decisions if decision.judgement.trainable]
        if not chosen:
            raise ValueError("the model has no trainable parameter; expected at least one. Is all of it frozen?")
        return gathered(chosen, lr, param_names)

    def __iter__(self) -> Iterator[DecayRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> DecayRow:
        """The row of the parameter with this name, or alias."""
        for row in self.rows:
            if name == row.name or name in row.aliases:
                return row
        raise KeyError(f"no parameter `{name}`; the names are those of the model without wrapper prefixes")

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries, e.g. for `pandas.DataFrame(table.to_dicts())`."""
        return [asdict(row) for row in self.rows]

    def to_json(self, *, indent: int | None = 2) -> str:
        """The rows as a JSON array."""
        return json.dumps(self.to_dicts(), indent=indent)

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [("name", "shape", "group", "weight_decay", "lr_scale", "reason")]
        cells += [_cells(row) for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        lines = [
            "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[5]])
            for line in cells
        ]
        return "\n".join([*lines, self._totals()])

    def _totals(self) -> str:
        frozen = sum(row.group == "frozen" for row in self.rows)
        decayed = sum(row.decay and row.group != "frozen" for row in self.rows)
        return f"{decayed} decayed, {len(self.rows) - decayed - frozen} not decayed, {frozen} frozen"


def _cells(row: DecayRow) -> tuple[str, ...]:
    shape = "lazy" if row.shape is None else "×".join(map(str, row.shape)) or "scalar"
    return (row.name, shape, row.group, f"{row.weight_decay:g}", f"{row.lr_scale:g}", row.reason)
