"""Solutions in files: safetensors with `weight` and `bias`, as `nn.Linear` names them, and what else is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from torchridge import _files

Loaded = TypeVar("Loaded", bound="Loadable")
_TENSOR = "tensor"  # stands in the JSON for a value that is among the tensors


class Loadable:
    """A solution that is read from a file, whole or not at all."""

    KIND: ClassVar[str]

    @classmethod
    def load(cls: type[Loaded], path: str | Path, device: torch.device | str = "cpu") -> Loaded:
        """Read a solution. Nothing in the file is executed.

        Raises:
            ValueError: if the file is truncated, altered, or holds something else.
            FileNotFoundError: if there is none.
        """
        return cls.read(path, device)[0]

    @classmethod
    def read(
        cls: type[Loaded], path: str | Path, device: torch.device | str = "cpu", name: str = "path"
    ) -> tuple[Loaded, dict[str, Any]]:
        """Return a saved solution and the names that were saved with it; errors call the file `name`."""
        values, names = read(path, cls.KIND, device, name)
        with _files.understood(path, name):
            return cls(**cls.fields_of(values)), names

    @classmethod
    def fields_of(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a solution from the values of a file."""
        return values


def write(path: str | Path, kind: str, values: Mapping[str, Any], about: Mapping[str, Any], name: str = "path") -> None:
    """Write tensors, numbers and strings by name, and what the caller adds about them; whole, or not at all."""
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    plain = {key: _TENSOR if key in tensors else value for key, value in values.items()}
    for key, value in values.items():
        if isinstance(value, Mapping):  # of tensors by name
            tensors |= {f"{key}/{inner}": tensor for inner, tensor in value.items()}
            plain[key] = {_TENSOR: list(value)}
    _files.write(path, kind, tensors, {"values": plain, **about}, name=name)


def read(path: str | Path, kind: str, device: Any = "cpu", name: str = "path") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values by name, tensors on a device, and what the caller added.

    Raises:
        ValueError: if the file is truncated, altered, of another kind, or its weights do not fit each other.
        FileNotFoundError: if there is none.
    """
    tensors, about = _files.read(path, kind, name=name)
    with _files.understood(path, name):
        values = dict(about.pop("values"))
        values = {key: _value(key, value, tensors, device) for key, value in values.items()}
        if values.get("form") != "dual":
            _check(values["weight"], values["bias"])
    return values, about


def _value(key: str, value: Any, tensors: Mapping[str, Tensor], device: Any) -> Any:
    if isinstance(value, dict) and _TENSOR in value:
        return {name: tensors[f"{key}/{name}"].to(device) for name in value[_TENSOR]}
    return tensors[key].to(device) if value == _TENSOR else value


def _check(weight: Tensor, bias: Tensor) -> None:
    if weight.ndim < 2 or bias.shape != weight.shape[:-1] or 0 in weight.shape:
        raise ValueError(
            f"expected a weight (targets, features) and a bias (targets,), got {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )
    if weight.dtype not in (torch.float32, torch.float64) or bias.dtype is not weight.dtype:
        raise ValueError(f"expected a weight and a bias of float32 or float64, got {weight.dtype} and {bias.dtype}")
    if not bool(torch.isfinite(weight).all()) or bool((torch.isnan(bias) | (bias == torch.inf)).any()):
        raise ValueError("the weight or the bias holds NaN or infinity")
