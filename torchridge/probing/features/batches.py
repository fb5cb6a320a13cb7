"""What a batch holds: inputs, labels, groups, weights and the attention mask, wherever the loader put them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchridge import _check

_LABELS = ("labels", "label", "y", "target")
_KEEP_MASKS = ("attention_mask", "mask")
_PADDING_MASKS = ("src_key_padding_mask", "key_padding_mask", "padding_mask")


@dataclass(frozen=True)
class Batch:
    """One batch, sorted out."""

    inputs: Any
    labels: Tensor  # (n,), (n, t), or (n, T) for tokens
    groups: Tensor | None  # (n,)
    weight: Tensor | None  # (n,) float64


@dataclass(frozen=True)
class Reader:
    """Reads batches: (inputs, labels[, groups]) or a mapping.

    Attributes:
        target: None for the second part of a batch, or the key "labels"; another key; a column number of the labels;
            or a callable of the labels.
        groups: None for the third part, or the key "groups"; another key; or (n,) labels in the order of the stream.
        sample_weight: a key, or (n,) weights in the order of the stream.
        mask: a key of the inputs, a position in a tuple of inputs, or a callable of the inputs.
    """

    target: Any = None
    groups: Any = None
    sample_weight: Any = None
    mask: Any = None

    def read(self, batch: Any, start: int) -> Batch:
        """Sort out one batch; `start` counts the examples before it."""
        inputs, labels, groups = self._parts(batch)
        labels = self._target(labels)
        if labels.ndim == 0 or len(labels) == 0:
            raise ValueError(f"a batch has labels of shape {tuple(labels.shape)}; expected at least one example.")
        n = len(labels)
        groups = _column(self.groups, batch, groups, start, n, "groups")
        weight = _column(self.sample_weight, batch, None, start, n, "sample_weight")
        if weight is not None:
            weight = torch.as_tensor(weight).detach().cpu().double()
            _check.non_negative(weight, "sample_weight")
        return Batch(inputs, labels, groups, weight)

    def labels_of(self, batch: Any) -> Tensor:
        """Return the labels of one batch."""
        return self._target(self._parts(batch)[1])

    def _parts(self, batch: Any) -> tuple[Any, Any, Any]:
        if isinstance(batch, Mapping):
            key = self.target if isinstance(self.target, str) else next((k for k in _LABELS if k in batch), None)
            if key is None or key not in batch:
                raise ValueError(f"`target`: a batch has the keys {list(batch)}; name the one that holds the labels.")
            other = {key, "groups", self.sample_weight if isinstance(self.sample_weight, str) else key}
            other |= {self.groups} if isinstance(self.groups, str) else set()
            return {k: v for k, v in batch.items() if k not in other}, batch[key], batch.get("groups")
        if isinstance(batch, (list, tuple)) and len(batch) in (2, 3):
            return batch[0], batch[1], batch[2] if len(batch) == 3 else None
        raise TypeError(
            f"a batch should be (inputs, labels), (inputs, labels, groups) or a mapping, got {type(batch).__name__}"
            + (f" of {len(batch)} parts." if isinstance(batch, (list, tuple)) else ".")
        )

    def _target(self, labels: Any) -> Tensor:
        if callable(self.target):
            labels = self.target(labels)
        elif isinstance(self.target, str) and isinstance(labels, Mapping):
            labels = labels[self.target]
        elif isinstance(self.target, int):
            labels = torch.as_tensor(labels)[:, self.target]
        return as_tensor(labels, "labels")

    def mask_of(self, inputs: Any) -> Tensor | None:
        """Return the mask of the inputs, true where a token counts, or None."""
        if callable(self.mask):
            return _as_mask(self.mask(inputs), "mask")
        if self.mask is not None:
            try:
                found = inputs[self.mask]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"`mask`={self.mask!r} is not among the inputs, {_names(inputs)}.") from None
            return _as_mask(found, str(self.mask))
        if isinstance(inputs, Mapping):
            names = (k for k in (*_KEEP_MASKS, *_PADDING_MASKS) if isinstance(inputs.get(k), Tensor))
            name = next(names, None)
            return None if name is None else _as_mask(inputs[name], name)
        return None


def as_tensor(values: Any, name: str) -> Tensor:
    """Return labels as a detached tensor on the CPU, or raise."""
    try:
        return torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        if _holds_text(values):
            raise TypeError(
                f"`{name}` should be a tensor or numbers, got strings. Number the classes first, with "
                f"`names, {name} = np.unique({name}, return_inverse=True)`; names[i] is then the name of class i."
            ) from None
        raise TypeError(f"`{name}` should be a tensor or numbers, got {type(values).__name__}.") from None


def _holds_text(values: Any) -> bool:
    listed = values.tolist() if hasattr(values, "tolist") else values
    return isinstance(listed, (list, tuple)) and any(isinstance(v, str) for v in listed)


def check_batches(batches: Any) -> None:
    """Raise unless `batches` can be gone over."""
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(
            f"`batches` should be an iterable of (inputs, labels), got {type(batches).__name__}. Pass a DataLoader or "
            f"list."
        )


def numbered(groups: Any) -> list[Any]:
    """Return group labels as hashable values."""
    values = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    return [tuple(v) if isinstance(v, list) else v for v in values]


def _column(spec: Any, batch: Any, found: Any, start: int, n: int, name: str) -> Any:
    """Return n values of a column: by key, cut out of the whole stream's, or found in the batch."""
    if spec is None:
        values = found
    elif isinstance(spec, str):
        if not isinstance(batch, Mapping) or spec not in batch:
            raise ValueError(f"`{name}`={spec!r} is not a key of a batch; got {_names(batch)}.")
        values = batch[spec]
    elif callable(spec):
        values = spec(batch)
    else:
        values = spec[start : start + n]
    if values is not None and len(values) != n:
        raise ValueError(
            f"`{name}` has {len(values)} values for a batch of {n} examples from {start} on; expected {n}."
        )
    return values


def _as_mask(values: Any, name: str) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim != 2:
        raise ValueError(f"the mask {name!r} should be a tensor of shape (n, T), got {_names(values)}.")
    return values == 0 if "padding" in name else values != 0


def _names(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"keys {list(value)}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{len(value)} parts" if isinstance(value, (list, tuple)) else type(value).__name__


Column = str | Tensor | Callable[[Any], Any] | None
