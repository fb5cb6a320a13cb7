"""What is known of a fit apart from its weights, worked out when it is first read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


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
        """Return a diagnosis whose values are known already."""
        result = cls()
        result._known = values
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

    def __getstate__(self) -> dict[str, Any]:
        return {"_compute": {}, "_known": {name: self[name] for name in self.keys()}}

    def map(self, **change: Callable[[Any], Any]) -> Diagnosis:
        """Return the diagnosis with some values changed; the others stay."""

        def changed(name: str) -> Callable[[], Any]:
            return lambda: change[name](self[name]) if name in change else self[name]

        return Diagnosis(**{name: changed(name) for name in self.keys()})

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
