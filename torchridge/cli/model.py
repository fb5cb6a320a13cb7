"""A fitted model in a file: a solution as `RidgeSolution.save` writes it, with the names of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge import _files
from torchridge.linear.logistic.solution import LogisticSolution
from torchridge.linear.ridge.solution.solution import RidgeSolution


@dataclass(frozen=True)
class Model:
    """A solution and the names of its columns."""

    solution: RidgeSolution | LogisticSolution
    features: list[str] | None
    targets: list[str]

    @property
    def n_features(self) -> int:
        """How many features the rows should have."""
        return self.solution.weight.shape[-1]

    def predict(self, X: Tensor) -> Tensor:
        """Return the predictions (n, t), or the classes (n, h)."""
        predicted = self.solution.predict(X)
        return predicted[:, None] if predicted.ndim == 1 else predicted


def write(path: Path, solution: RidgeSolution, features: list[str] | None, targets: list[str]) -> None:
    """Write the model whole, or leave what was there."""
    solution.save(path, names={"features": features, "targets": targets})


def read(path: Path) -> Model:
    """Return a model that `write` wrote, or `save` of a solution.

    Raises:
        ValueError: if the file does not hold a solution of one strength, and names that fit it.
    """
    kinds: dict[str, type[RidgeSolution] | type[LogisticSolution]] = {
        RidgeSolution.KIND: RidgeSolution,
        LogisticSolution.KIND: LogisticSolution,
    }
    solution, names = kinds[_files.kind_of(path, kinds, name="model")].read(path, name="model")
    with _files.understood(path, "model"):
        heads = isinstance(solution, LogisticSolution) and not solution.heads
        if solution.weight.ndim != 2 + (isinstance(solution, LogisticSolution) and solution.heads):
            raise ValueError(f"expected a model of one strength, got weights {tuple(solution.weight.shape)}")
        count = 1 if heads else len(solution.weight)
        targets = names.get("targets") or (["y"] if count == 1 else [f"y{k}" for k in range(count)])
        fitted = Model(solution, names.get("features"), targets)
        _check_names("features", fitted.features, fitted.n_features)
        _check_names("targets", fitted.targets, count)
    return fitted


def _check_names(what: str, names: Any, count: int) -> None:
    fits = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
    if not (fits and len(set(names or [])) == count) and not (names is None and what == "features"):
        raise ValueError(f"expected {count} different names of {what}, got {names!r:.200}")


def check_names(model: Model, names: tuple[str, ...] | None, d: int | None) -> None:
    """Raise if rows do not have the features of the model."""
    if d != model.n_features:
        raise ValueError(f"the rows have {d} features, the model {model.n_features}. Name them: --features.")
    if names is not None and model.features is not None and list(names) != model.features:
        wrong = next((a, b) for a, b in zip(names, model.features, strict=True) if a != b)
        raise ValueError(f"the rows have a feature {wrong[0]!r} in the place of the model's {wrong[1]!r}.")


def as_float64(value: Tensor) -> list[Any]:
    """Return nested lists of Python floats."""
    return list(value.detach().to(torch.float64).cpu().tolist())
