"""What is known of a fit apart from its weights, worked out when it is first read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


class Late:
    """A value as large as the weights, made when it is read: files and copies hold what it is made of in its place."""

    def __call__(self) -> Any:
        """Return the value."""
        raise NotImplementedError

    def settled(self) -> Any:
        """Return the same with tensors in place of functions, for a pickle."""
        raise NotImplementedError


class Diagnosis:
    """Values by name, each computed at most once, when it is read.

    A condition number costs an eigendecomposition, several times a solve by Cholesky factors: whoever does not ask for
    it does not pay. A copy or a pickle holds the values, not the data they are computed from.
    """

    def __init__(self, **compute: Callable[[], Any]) -> None:
        self._compute: Mapping[str, Callable[[], Any]] = compute
        self._known: dict[str, Any] = {}

    @classmethod
    def of(cls, **values: Any) -> Diagnosis:
        """Return a diagnosis whose values are known already, or made when they are read."""
        late = {name: value for name, value in values.items() if isinstance(value, Late)}
        result = cls(**late)
        result._known = {name: value for name, value in values.items() if name not in late}
        return result

    def __getitem__(self, name: str) -> Any:
        if name not in self._known:
            with torch.no_grad():
                self._known[name] = self._compute[name]()
        return self._known[name]

    @property
    def known(self) -> dict[str, Any]:
        """The values that have been read already."""
        return dict(self._known)

    def keys(self) -> list[str]:
        """Return the names of all values."""
        return [*{**self._compute, **self._known}]

    @property
    def late(self) -> dict[str, Any]:
        """The values as large as the weights that have not been read, as what makes them."""
        return {n: f for n, f in self._compute.items() if isinstance(f, Late) and n not in self._known}

    def __getstate__(self) -> dict[str, Any]:
        late = {name: value.settled() for name, value in self.late.items()}
        return {"_compute": late, "_known": {name: self[name] for name in self.keys() if name not in late}}

    def map(self, **change: Callable[[Any], Any]) -> Diagnosis:
        """Return the diagnosis with some values changed; the others stay."""

        def changed(name: str) -> Callable[[], Any]:
            return lambda: change[name](self[name]) if name in change else self[name]

        late = {name: value for name, value in self.late.items() if name not in change}
        return Diagnosis(**{**{name: changed(name) for name in self.keys()}, **late})

    def extended(self, **compute: Callable[[], Any]) -> Diagnosis:
        """Return the diagnosis with more values, or other ones."""
        own = self.map()
        return Diagnosis(**{**own._compute, **compute})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Diagnosis):
            return NotImplemented
        return {*self.keys()} == {*other.keys()} and all(_same(self[n], other[n]) for n in self.keys())

    __hash__ = None  # type: ignore[assignment]


def unchanged(X: torch.Tensor, name: str = "X") -> Callable[[], None]:
    """Return a function that raises if a tensor has been changed in place since."""
    version = None if X.is_inference() else X._version

    def check() -> None:
        if version is not None and X._version != version:
            raise ValueError(
                f"`{name}` was changed in place after the fit, and this value is computed from it when it is read. "
                f"Read it before, or fit a copy, `{name}.clone()`."
            )

    return check


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.device == b.device and torch.equal(a, b)
    return bool(a == b)


def once(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that computes its value at the first call and keeps it."""
    kept: list[Any] = []

    def value() -> Any:
        if not kept:
            kept.append(function())
        return kept[0]

    return value
