"""A fitted model in a file: safetensors with `weight` and `bias`, as `nn.Linear` names them, and what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge import _files
from torchridge.solvers.solution import Solution

KIND = "torchridge.model/1"


@dataclass(frozen=True)
class Model:
    """A linear model and the names of its columns."""

    weight: Tensor  # (t, d)
    bias: Tensor  # (t,)
    features: list[str] | None
    targets: list[str]

    def predict(self, X: Tensor) -> Tensor:
        """Return X Wᵀ + b, (n, t)."""
        return X.to(self.weight.dtype) @ self.weight.T + self.bias


def write(path: Path, solution: Solution, features: list[str] | None, targets: list[str]) -> None:
    """Write the model whole, or leave what was there."""
    tensors = {"weight": solution.weight, "bias": solution.bias}
    tensors |= {
        name: value for name in ("alphas", "scores", "fold_scores") if (value := getattr(solution, name)) is not None
    }
    content: dict[str, Any] = {"features": features, "targets": targets, "alpha": float(solution.alpha)}
    content |= {"n_samples": solution.n_samples, "solver": solution.solver}
    _files.write(path, KIND, tensors, content, name="output")


def read(path: Path) -> Model:
    """Return a model that `write` wrote."""
    tensors, content = _files.read(path, KIND, name="model")
    return Model(tensors["weight"], tensors["bias"], content["features"], content["targets"])


def check_names(model: Model, names: tuple[str, ...] | None, d: int | None) -> None:
    """Raise where rows do not have the features of the model."""
    if d != model.weight.shape[1]:
        raise ValueError(f"the rows have {d} features, the model {model.weight.shape[1]}. Name them: --features.")
    if names is not None and model.features is not None and list(names) != model.features:
        wrong = next((a, b) for a, b in zip(names, model.features, strict=True) if a != b)
        raise ValueError(f"the rows have a feature {wrong[0]!r} where the model has {wrong[1]!r}.")


def as_float64(value: Tensor) -> list[Any]:
    """Return nested lists of Python floats."""
    return list(value.detach().to(torch.float64).cpu().tolist())
