"""What a caller asks of a probe, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Group
from torchridge.linear.arguments import check_strengths
from torchridge.linear.metrics import Metric, named
from torchridge.probing.features.table import Plan
from torchridge.probing.readouts.table import READOUTS, names

_KEPT = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Metrics = str | Callable[..., Any] | Sequence[Any] | Mapping[str, Any]
Task = Literal["auto", "regression", "classification"]


@dataclass(frozen=True)
class Settings:
    """Options of `probe_layers` and `LinearProbe` that do not concern the model; see there."""

    task: Task = "auto"  # settled before rows are gathered
    readout: str | Sequence[str] = "ridge"
    cv: int | Tensor = 5
    class_weight: str | Mapping[int, float] | None = None
    classes: Any = None
    alphas: Any = "auto"
    shrinkages: Any = "auto"
    Cs: Any = "auto"
    standardize: bool = False
    metrics: Any = ()
    control: bool = False
    bootstrap: int = 0
    keep: str | Path | None = None
    keep_dtype: torch.dtype | None = None
    keep_bytes: int | None = None
    moments_device: torch.device | str | None = None
    max_memory: int | None = None
    chunk_rows: int | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int = 100
    progress: bool = False
    seed: int = 0
    process_group: Group | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Return the options among the arguments of a call, its `locals()`, all of which it has to have."""
        return cls(**{f.name: given[f.name] for f in fields(cls)})

    def __post_init__(self) -> None:
        _check.option(self.task, "task", ("auto", "regression", "classification"))
        for name in self.readouts:
            _check.option(name, "readout", names(self.task))
        for flag in ("standardize", "control", "progress"):
            _check.option(getattr(self, flag), flag, (True, False))
        for name, least in (("bootstrap", 0), ("checkpoint_every", 1), ("seed", 0)):
            _check.integer(getattr(self, name), name, minimum=least)
        _check.option(self.keep_dtype, "keep_dtype", (None, *_KEPT))
        self._check_classes()
        self._check_kept()
        for name in ("alphas", "shrinkages", "Cs"):
            self.grid(name)
        _ = self.named_metrics  # which refuses what is not a metric

    def _check_classes(self) -> None:
        if self.task == "regression" and (self.class_weight is not None or self.classes is not None):
            raise ValueError("`class_weight` and `classes` have no use in a regression. Pass task='classification'.")
        if isinstance(self.class_weight, Mapping):
            for weight in self.class_weight.values():
                _check.number(weight, "class_weight")
        elif not _check.one_of(self.class_weight, None, "balanced"):
            raise ValueError(f"`class_weight` should be 'balanced' or a mapping, got {self.class_weight!r}.")

    def _check_kept(self) -> None:
        if self.keep_bytes is not None:
            _check.integer(self.keep_bytes, "keep_bytes", minimum=1)
        if self.where_kept is not None and self.checkpoint is not None:
            what = "leave out `keep`" if self.keep is not None else "leave out `readout`='logistic', which needs them"
            raise ValueError(f"`checkpoint` keeps moments, not features. Leave out `checkpoint`, or {what}.")

    @property
    def where_kept(self) -> str | Path | None:
        """Where features are kept: the logistic readout needs them, in memory unless a folder was named."""
        features = any(READOUTS[name].features for name in self.readouts)
        return "memory" if self.keep is None and features else self.keep

    @property
    def classification(self) -> bool:
        """Whether labels are classes."""
        return self.task == "classification"

    @property
    def readouts(self) -> tuple[str, ...]:
        """The readouts asked for."""
        return (self.readout,) if isinstance(self.readout, str) else tuple(self.readout)

    @property
    def named_metrics(self) -> dict[str, Metric]:
        """Metrics that need predictions, by name."""
        always = {} if self.task == "classification" else {"r2": 1, "mse": -1}
        found = named(self.metrics, "metrics", {"accuracy": 1, **always})
        for name, metric in found.items():
            if metric.own == "accuracy" and self.task == "regression":
                raise ValueError(f"`metrics`: {name!r} needs task='classification'. R² and mse are always there.")
            if metric.own in always and name != metric.own:
                raise ValueError(
                    f"`metrics`: {metric.own!r} is always reported, under its own name; got {name!r} for it."
                )
        found = {name: metric for name, metric in found.items() if metric.own not in always}
        if self.classification and (self.where_kept is not None or self.bootstrap):
            # Features are at hand, or a second pass is made anyway.
            found = {**named("accuracy", "metrics", {"accuracy": 1}), **found}
        return found

    @property
    def needs_predictions(self) -> bool:
        """Whether moments alone do not suffice."""
        return bool(self.named_metrics) or self.bootstrap > 0

    @property
    def plan(self) -> Plan:
        """What the moments are of."""
        return Plan(self.classification, _check.same(self.class_weight, "balanced"), self.control, self.seed)

    def grid(self, name: str) -> Tensor | None:
        """Return checked strengths, or None for those chosen from the data."""
        given = getattr(self, name)
        if isinstance(given, str) and given == "auto":
            return None
        endless = _infinite(given) if name == "Cs" else None  # no penalty
        if endless is not None:
            given = torch.where(endless, 1.0, torch.as_tensor(given, dtype=torch.float64))
        values = check_strengths(given, name, like=torch.empty(0))[0].reshape(-1)
        if endless is not None:
            values = torch.where(endless.reshape(-1), torch.inf, values)
        if name == "shrinkages" and bool((values > 1).any()):
            raise ValueError(f"`shrinkages` should lie between 0 and 1, got {float(values.max()):g}.")
        return values


def _infinite(strengths: Any) -> Tensor | None:
    """Return where strengths are infinite, or None if none is."""
    try:
        endless = torch.isposinf(torch.as_tensor(strengths, dtype=torch.float64))
    except (TypeError, ValueError, RuntimeError):
        return None
    return endless if bool(endless.any()) else None
