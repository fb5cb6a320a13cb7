"""What weights are decayed toward, and the coordinates in which that is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from torchridge import _check
from torchridge.training.sums import is_dtensor, local


def references_of(
    groups: Sequence[dict[str, Any]], reference: Literal["initial"] | Mapping[str, Tensor] | None, *, late: bool = False
) -> dict[Tensor, Tensor]:
    """Copy what each parameter of the groups is pulled to; `late` lets groups without any in `reference` pass.

    Raises:
        ValueError: As :class:`~torchridge.training.weight_decay.decoupled.DecoupledWeightDecay`.
    """
    if reference is None:
        return {}
    if isinstance(reference, str):
        _check.option(reference, "reference", ("initial", None))
        return {p: p.detach().clone() for group in groups for p in group["params"]}
    if any("param_names" not in group for group in groups):
        raise ValueError(
            "`reference` by name needs groups with `param_names`, got groups without. "
            "Build the optimizer on `weight_decay_groups(model, weight_decay)`."
        )
    named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
    known = {name: p for name, p in named.items() if name in reference}
    if not known and not late:
        raise ValueError(
            f"`reference` has no parameter of the optimizer, got {_some(reference)}; expected some of {_some(named)}."
        )
    for name, p in known.items():
        _check.is_tensor(reference[name], f"reference[{name!r}]")
        _check.shape(reference[name], [tuple(p.shape)], f"reference[{name!r}]")
    return {p: like(reference[name], p) for name, p in known.items()}


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy in the dtype and on the device of the parameter, sharded as it is."""
    value = value.detach()
    if not is_dtensor(parameter):
        return value.to(parameter, copy=True)
    if not is_dtensor(value):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        value = distribute_tensor(value.to(parameter.device), mesh, placements)
    return value.to(parameter.dtype, copy=True)


def coordinates(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of the real coordinates, of this rank's shard if a tensor is sharded."""
    shards = [local(t.detach()) for t in tensors]
    return [torch.view_as_real(t) if t.is_complex() else t for t in shards]


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in list(names)[:3]) + (", ..." if len(names) > 3 else "")
