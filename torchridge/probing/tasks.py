"""Whether labels are classes or numbers, if the caller leaves it open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from torchridge._ranks import Group, Ranks
from torchridge.probing.features.batches import Reader
from torchridge.probing.settings import Task


def task_of(labels: Tensor | None, process_group: Group | None = None) -> Task:
    """Return the task that labels ask for: integers and booleans are classes. Ranks without rows follow the others."""
    own = None if labels is None or not labels.numel() else _own(labels)
    if process_group is None:
        return own or "regression"
    told = Ranks(process_group).exchange("probing (its task)", {"task": own}, agree=("task",))
    found: Task = next((t["task"] for t in told if t["task"] is not None), "regression")
    return found


def _own(labels: Tensor) -> Task:
    return "regression" if labels.is_floating_point() or labels.is_complex() else "classification"


def task_of_batches(
    task: Task, batches: Iterable[Any], reader: Reader, process_group: Group | None
) -> tuple[Task, Iterable[Any]]:
    """Return the task, of the labels of the first batch if it is "auto", and the batches with none left out."""
    if task != "auto":
        return task, batches
    with torch.random.fork_rng(devices=[]):  # a loader that shuffles would shuffle the pass anew
        items = iter(batches)
        first = list(islice(items, 1))
    labels = reader.labels_of(first[0]) if first else None
    return task_of(labels, process_group), chain(first, items) if isinstance(batches, Iterator) else batches
