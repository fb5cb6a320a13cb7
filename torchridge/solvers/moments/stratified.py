"""Folds that hold out the same share of every class."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_folds(labels: Tensor, k: int) -> Tensor:
    """Return fold ids (n,) in which classes are spread evenly, in the order of scikit-learn's `StratifiedKFold`.

    Shape:
        labels: (n,), int64 class indices on the CPU.
    """
    first = torch.full((int(labels.max()) + 1,), len(labels))
    first.scatter_reduce_(0, labels, torch.arange(len(labels)), "amin")
    renumbered = first.argsort(stable=True).argsort()[labels]  # classes by first appearance
    sorted_ = renumbered.sort().values
    classes = int(renumbered.max()) + 1
    sizes = torch.stack([torch.bincount(sorted_[fold::k], minlength=classes) for fold in range(k)])  # (k, classes)
    ids = torch.empty_like(labels)
    for c in range(classes):
        ids[renumbered == c] = torch.arange(k).repeat_interleave(sizes[:, c])
    return ids
