"""A fitted model in a file: safetensors with `weight` and `bias`, as `nn.Linear` names them, and what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge import _files
from torchridge.linear.ridge.solution import RidgeSolution

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


def write(path: Path, solution: RidgeSolution, features: list[str] | None, targets: list[str]) -> None:
    """Write the model whole, or leave what was there."""
    tensors = {"weight": solution.weight, "bias": solution.bias}
    tensors |= {
        name: value for name in ("alphas", "scores", "fold_scores") if (value := getattr(solution, name)) is not None
    }
    content: dict[str, Any] = {"features": features, "targets": targets, "alpha": float(solution.alpha)}
    content |= {"n_samples": solution.n_samples, "solver": solution.solver}
    _files.write(path, KIND, tensors, content, name="output")


def read(path: Path) -> Model:
    """Return a model that `write` wrote.

    Raises:
        ValueError: if the file does not hold a weight, a bias, and names that fit them.
    """
    tensors, content = _files.read(path, KIND, name="model")
    with _files.understood(path, "model"):
        fitted = Model(tensors["weight"], tensors["bias"], content["features"], content["targets"])
        _check_whole(fitted)
    return fitted


def _check_whole(model: Model) -> None:
    weight, bias = model.weight, model.bias
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or 0 in weight.shape:
        raise ValueError(
            f"expected a weight (targets, features) and a bias (targets,), got {[*map(_shape, (weight, bias))]}"
        )
    if weight.dtype not in (torch.float32, torch.float64) or bias.dtype is not weight.dtype:
        raise ValueError(f"expected a weight and a bias of float32 or float64, got {weight.dtype} and {bias.dtype}")
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise ValueError("the weight or the bias holds NaN or infinity")
    for what, names, count in (("features", model.features, len(weight[0])), ("targets", model.targets, len(weight))):
        fits = isinstance(names, list) and len(names) == count and all(isinstance(name, str) for name in names)
        if not (fits and len(set(names or [])) == count) and not (names is None and what == "features"):
            raise ValueError(f"expected {count} different names of {what}, got {names!r:.200}")


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


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
