"""Decay of the weights themselves: to zero, to a reference, or only along the step that was taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchridge.training.sums import widened


def shrink_(params: Sequence[Tensor], strength: Tensor) -> None:
    """Multiply in place by 1 − `strength`, a 0-d tensor."""
    wide = _widened(params)
    torch._foreach_mul_(wide, 1 - strength)
    _round_into(params, wide)


def shrink_toward_(params: Sequence[Tensor], references: Sequence[Tensor], strength: Tensor) -> None:
    """Move in place toward `references` by the share `strength`, a 0-d tensor."""
    wide = _widened(params)
    distances = torch._foreach_sub(_widened(references), wide)
    torch._foreach_mul_(distances, strength)
    torch._foreach_add_(wide, distances)
    _round_into(params, wide)


def shrink_where_aligned_(
    params: Sequence[Tensor], before: Sequence[Tensor], references: Sequence[Tensor] | None, strength: Tensor
) -> None:
    """Subtract `strength` times the distance from the reference, where the step that was taken shortened it.

    With old values x, new values x − ηu and distances z: x − ηu − strength · 1[u ⊙ z ≥ 0] ⊙ z.
    """
    wide, old = _widened(params), _widened(before)
    distances = old if references is None else torch._foreach_sub(old, _widened(references))
    updates = torch._foreach_sub(old, wide)
    masks = [(u * z >= 0).to(z.dtype) for u, z in zip(updates, distances, strict=True)]
    decays = torch._foreach_mul(distances, masks)
    torch._foreach_mul_(decays, strength)
    torch._foreach_sub_(wide, decays)
    _round_into(params, wide)


def _widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    """In at least float32: a factor or a distance rounded to bfloat16 would lose much of the decay."""
    return [widened(t) for t in tensors]


def _round_into(params: Sequence[Tensor], wide: Sequence[Tensor]) -> None:
    for param, value in zip(params, wide, strict=True):
        if param is not value:
            param.copy_(value)
