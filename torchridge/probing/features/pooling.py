"""From a layer's output to one row for each example, under the attention mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check

Pool = str | Callable[[Tensor, "Tensor | None"], Tensor]


def check_pool(pool: Pool) -> None:
    """Raise unless `pool` is known or callable."""
    if not callable(pool):
        _check.option(pool, "pool", POOLS)


def tensor_of(output: Any, layer: str) -> Tensor:
    """Return the tensor of a layer's output: itself, the first of a tuple, or the hidden state of an output object."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    elif hasattr(output, "last_hidden_state"):
        output = (output.last_hidden_state,)
    if isinstance(output, (list, tuple)):
        for part in output:
            if isinstance(part, Tensor):
                return part
    raise TypeError(
        f"layer {layer!r} returns {type(output).__name__}, without a tensor. Probe a layer that returns a tensor."
    )


def pooled(hidden: Tensor, mask: Tensor | None, pool: Pool, layer: str) -> Tensor:
    """Return rows that share no memory with the output.

    Args:
        hidden: (n, T, d) sequences; (n, c, *space) maps with the channels second; or (n, d) rows, taken as they are.
        mask: (n, T), true where a token counts.
        pool: "mean", "max", "cls" (the first token that counts), "last" (the last that counts), "token" (every token
            that counts, as rows of their own), or a callable of (hidden, mask).
        layer: its name, for errors.

    Returns:
        (n, d), or (tokens, d) for "token".

    Raises:
        TypeError: on complex numbers.
        ValueError: on shapes that cannot be pooled.
    """
    hidden = hidden.detach()
    if callable(pool):
        rows = pool(hidden, mask)
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            raise ValueError(f"`pool` should return rows of shape (n, d), got {_described(rows)} for layer {layer!r}.")
        _refuse_complex(rows, layer)
        return _widened(rows).clone()
    _refuse_complex(hidden, layer)
    way = POOLS[pool]
    if hidden.ndim == 2 and not way.tokens:
        return _widened(hidden).clone()
    if hidden.ndim == 3:
        return _sequence(hidden, mask, pool, layer)
    if hidden.ndim > 3 and way.maps:
        return _widened(way.rows(hidden.flatten(2).mT, None))
    raise ValueError(
        f"`pool`={pool!r} cannot make rows of layer {layer!r}, whose output has shape {tuple(hidden.shape)}. "
        f"Pass a callable of (output, mask) that returns (n, d)."
    )


def _sequence(hidden: Tensor, mask: Tensor | None, pool: str, layer: str) -> Tensor:
    if mask is not None and mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)}, but layer {layer!r} returns {tuple(hidden.shape)}; expected the "
            f"first two dimensions to agree. Name the right mask with `mask=`, or pass a callable `pool`."
        )
    way = POOLS[pool]
    if mask is not None and not way.tokens and not bool(mask.any(1).all()):
        raise ValueError(f"`pool`={pool!r}: an example has no token that counts. Leave out examples that are all mask.")
    return _widened(way.rows(hidden, mask)).clone()


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden.mean(1, dtype=_wide(hidden))
    # Filled, not multiplied: what stands at padding may be NaN.
    return _widened(hidden.masked_fill(~mask[:, :, None], 0)).sum(1) / mask.sum(1, keepdim=True)


def _max(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return (hidden if mask is None else hidden.masked_fill(~mask[:, :, None], -torch.inf)).amax(1)


def _cls(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden[:, 0] if mask is None else _at(hidden, mask.int().argmax(1))


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return hidden[:, -1]
    return _at(hidden, (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1))


def _tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden.flatten(0, 1) if mask is None else hidden[mask]


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), place]


class Way(NamedTuple):
    """How a sequence becomes rows."""

    rows: Callable[[Tensor, Tensor | None], Tensor]  # of hidden (n, T, d) and mask (n, T), true where a token counts
    maps: bool = False  # whether positions may stand in any order, so that maps (n, c, *space) are pooled, too
    tokens: bool = False  # whether every token is a row of its own


# A new pool is a function and a line here.
POOLS: dict[str, Way] = {
    "mean": Way(_mean, maps=True),
    "cls": Way(_cls),
    "last": Way(_last),
    "max": Way(_max, maps=True),
    "token": Way(_tokens, tokens=True),
}


def _refuse_complex(rows: Tensor, layer: str) -> None:
    if rows.is_complex():
        raise TypeError(
            f"layer {layer!r} gives {rows.dtype}, expected real numbers. Pass a callable `pool` that returns real "
            f"rows, e.g. lambda output, mask: torch.view_as_real(output).flatten(1)."
        )


def _wide(a: Tensor) -> torch.dtype:
    return torch.float32 if a.is_floating_point() and a.dtype is not torch.float64 else torch.float64


def _widened(a: Tensor) -> Tensor:
    return a.to(_wide(a))


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
