"""Folds of a stream whose length nobody knows yet: groups whole, classes spread evenly, the order on record."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.probing.features.batches import numbered


class StreamFolds:
    """Gives every example its fold as it passes.

    Without groups, example i of the class met c-th goes to fold (i + c) mod K, in regression to i mod K. A group
    goes, whole, to the fold that is lightest when the group is first met. Given ids are read off in order. A
    running digest of labels and groups tells whether a later pass brings the same rows in the same order.

    Args:
        cv: number of folds, or (n,) fold ids in the order of the stream.
        by_label: whether the fold of a group follows from its label alone, since other processes may hold it too.
    """

    def __init__(self, cv: int | Tensor, *, by_label: bool = False) -> None:
        self.by_label = by_label
        self.given = cv if isinstance(cv, Tensor) else None
        if self.given is not None and (self.given.ndim != 1 or self.given.is_floating_point()):
            got = f"{self.given.dtype} of {tuple(self.given.shape)}"
            raise ValueError(f"`cv`: fold ids should be integers of shape (n,), got {got}.")
        self.k = _check.integer(cv, "cv", minimum=2) if self.given is None else _count(self.given)
        self.examples = 0
        self.counts: dict[int, int] = {}  # examples by class code
        self.loads = [0] * self.k
        self.group_number: dict[Any, int] = {}
        self.group_fold: list[int] = []
        self.digest = ""

    def assign(self, labels: Tensor, codes: Tensor | None, groups: Any) -> tuple[Tensor, Tensor | None]:
        """Return fold ids (n,), and the numbers of the groups (n,) if there are some."""
        n = len(labels)
        seen = None if groups is None else numbered(groups)
        self._record(labels, seen)
        numbers = None if seen is None else torch.tensor([self._group(g) for g in seen])
        if self.given is not None:
            ids = self.given[self.examples : self.examples + n].cpu().long()
            _check.same_length(len(ids), n, "cv", "batches")
        elif numbers is not None:
            ids = self._by_group(numbers)
        else:
            ids = self._in_turn(torch.zeros(n, dtype=torch.int64) if codes is None else codes)
        self.examples += n
        return ids, numbers

    def _record(self, labels: Tensor, groups: list[Any] | None) -> None:
        content = labels.contiguous().view(torch.uint8).numpy().tobytes() + repr(groups).encode()
        self.digest = hashlib.blake2b(self.digest.encode() + content, digest_size=16).hexdigest()

    def _group(self, label: Any) -> int:
        return self.group_number.setdefault(label, len(self.group_number))

    def _by_group(self, numbers: Tensor) -> Tensor:
        counts = torch.bincount(numbers).tolist()
        labels = list(self.group_number)
        for number in dict.fromkeys(numbers.tolist()):
            if number == len(self.group_fold):
                self.group_fold.append(self._fold_of_group(labels[number]))
            self.loads[self.group_fold[number]] += counts[number]
        return torch.tensor(self.group_fold)[numbers]

    def _fold_of_group(self, label: Any) -> int:
        if not self.by_label:
            return self.loads.index(min(self.loads))
        return int.from_bytes(hashlib.blake2b(repr(label).encode(), digest_size=8).digest(), "big") % self.k

    def _in_turn(self, codes: Tensor) -> Tensor:
        ids = torch.empty_like(codes)
        for code in torch.unique(codes).tolist():
            rows = (codes == code).nonzero()[:, 0]
            first = self.counts.get(code, 0)
            ids[rows] = (first + code + torch.arange(len(rows))) % self.k  # + code: small classes start apart
            self.counts[code] = first + len(rows)
        return ids

    def state(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        names = ("examples", "loads", "group_fold", "digest")
        pairs = {"counts": list(self.counts.items()), "groups": list(self.group_number.items())}
        return {**{name: getattr(self, name) for name in names}, **pairs}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.examples, self.digest = state["examples"], state["digest"]
        self.loads, self.group_fold = list(state["loads"]), list(state["group_fold"])
        self.counts = {int(c): int(n) for c, n in state["counts"]}
        self.group_number = {tuple(g) if isinstance(g, list) else g: n for g, n in state["groups"]}


def _count(ids: Tensor) -> int:
    return int(ids.max()) + 1 if len(ids) else 0


def check_classes(labels: Tensor) -> None:
    """Raise unless there is one class a row."""
    if labels.ndim != 1:
        raise ValueError(
            f"`labels` of a classification should have shape (n,), got {tuple(labels.shape)}. Pass `labels[:, 0]` "
            f"if that is the class, or `labels.argmax(1)` if the columns are indicators."
        )


class ClassCodes:
    """Numbers classes as they come; `order` sorts them in the end."""

    def __init__(self, classes: Tensor | None = None) -> None:
        self.codes: dict[Any, int] = {}
        if classes is not None:
            self.encode(classes)

    def encode(self, labels: Tensor) -> Tensor:
        """Return codes of the labels' shape."""
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(
                f"`labels` of a classification should be integers or booleans, got {labels.dtype}. "
                f"Pass `labels.long()`, or task='regression'."
            )
        values, inverse = torch.unique(labels, return_inverse=True)
        table = torch.tensor([self.codes.setdefault(v, len(self.codes)) for v in values.tolist()], dtype=torch.int64)
        return table[inverse]

    @property
    def order(self) -> Tensor:
        """The codes in the order of sorted classes, (k,)."""
        return torch.tensor([self.codes[v] for v in sorted(self.codes)], dtype=torch.int64)

    @property
    def classes(self) -> Tensor:
        """The classes, sorted, (k,)."""
        return torch.tensor(sorted(self.codes))

    def __len__(self) -> int:
        return len(self.codes)
