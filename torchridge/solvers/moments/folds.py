"""Which rows are held out together: K folds, groups, ids, or any splitter with scikit-learn's `split`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from torchridge import _check

Split = tuple[Tensor, Tensor]  # row numbers of the training part and of the held-out part


def contiguous_folds(n: int, k: int) -> Tensor:
    """Return fold ids (n,): k runs of rows whose lengths differ by at most one, as scikit-learn's `KFold`."""
    sizes = torch.full((k,), n // k)
    sizes[: n % k] += 1
    return torch.repeat_interleave(torch.arange(k), sizes)


def group_folds(groups: Tensor, k: int) -> Tensor:
    """Return fold ids (n,) that keep every group whole: largest group first, to the lightest fold (`GroupKFold`)."""
    _, inverse, counts = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
    return folds_of_groups(counts, k)[inverse]


def folds_of_groups(counts: Tensor, k: int) -> Tensor:
    """Return the fold of each group, (g,), from how many rows each has, in the order of sorted labels."""
    load, fold_of, sizes = [0] * k, [0] * len(counts), counts.tolist()
    for group in counts.argsort(stable=True).flip(0).tolist():  # the sort, and so the order of ties, is scikit-learn's
        lightest = load.index(min(load))
        load[lightest] += sizes[group]
        fold_of[group] = lightest
    return torch.tensor(fold_of)


def fold_ids(cv: int | Tensor, n: int, groups: Any = None) -> Tensor:
    """Return compact fold ids 0 … K−1 of shape (n,), from a number of folds (and groups) or from given ids."""
    if isinstance(cv, Tensor):
        if cv.shape != (n,) or cv.is_floating_point() or cv.is_complex():
            raise ValueError(f"`cv`: fold ids should be integers of shape ({n},), got {cv.dtype} of {tuple(cv.shape)}.")
        if bool((cv < 0).any()):
            raise ValueError(f"`cv`: fold ids should not be negative, got {int(cv.min())}.")
        if groups is not None:
            raise ValueError("`groups` has no use with fold ids in `cv`. Leave it out, or pass a number of folds.")
        values, inverse = torch.unique(cv.cpu(), return_inverse=True)
        if len(values) < 2:
            raise ValueError("`cv`: fold ids name a single fold; expected at least two.")
        ids: Tensor = inverse
        return ids
    k = _check.integer(cv, "cv", minimum=2)
    if k > n:
        raise ValueError(f"`cv`={k} folds cannot be made of {n} rows. Use at most {n}, or cv='loo'.")
    if groups is None:
        return contiguous_folds(n, k)
    labels = check_groups(groups, n)
    if (count := len(torch.unique(labels))) < k:
        raise ValueError(f"`cv`={k} folds need at least {k} groups, got {count}. Lower `cv` to at most {count}.")
    return group_folds(labels, k)


def as_ids(cv: Any) -> Any:
    """Return an array of fold ids as a tensor, and anything else as it is."""
    return torch.as_tensor(cv) if getattr(getattr(cv, "dtype", None), "kind", "") in ("i", "u", "b") else cv


def check_groups(groups: Any, n: int) -> Tensor:
    """Return group labels as integers (n,); strings and other labels are numbered."""
    if isinstance(groups, Tensor):
        labels = groups
    else:
        try:
            listed = groups.tolist() if hasattr(groups, "tolist") else list(groups)
            number = {label: i for i, label in enumerate(sorted({*listed}))}
            if None in number:
                raise TypeError
        except TypeError:
            raise TypeError(f"`groups` should hold labels of one kind that can be sorted, got {groups!r}.") from None
        labels = torch.tensor([number[label] for label in listed])
    if labels.shape != (n,):
        raise ValueError(f"`groups` should hold one label for each row, shape ({n},), got {tuple(labels.shape)}.")
    return labels


def splits(cv: Any, n: int, y: Tensor, groups: Any) -> list[Split]:
    """Return the splits of a splitter or of an iterable of (train, test) row numbers."""
    if hasattr(cv, "split"):
        target = (y.float() if y.dtype is torch.bfloat16 else y).detach().cpu().squeeze(-1).numpy()
        labels = groups.cpu().numpy() if isinstance(groups, Tensor) else groups
        pairs: Iterable[Any] = cv.split(torch.zeros(n, 1).numpy(), target, labels)
    elif isinstance(cv, Iterable) and not isinstance(cv, (str, bytes, dict)):
        if groups is not None:
            raise ValueError("`groups` has no use with given splits in `cv`. Leave it out, or pass a splitter.")
        pairs = cv
    else:
        raise ValueError(
            f"`cv` should be 'gcv', 'loo', 'evidence', a number of folds, integer fold ids of shape ({n},), a splitter "
            f"with `.split`, or an iterable of (train, test) row numbers, got {cv!r}."
        )
    result = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"`cv` should give pairs of (train, test) row numbers or masks, got {pair!r}.")
        result.append((_row_numbers(pair[0], n), _row_numbers(pair[1], n)))
    if not result or any(len(a) == 0 or len(b) == 0 for a, b in result):
        raise ValueError("`cv` gave no split, or a split with an empty part; expected rows on both sides of each.")
    return result


def _row_numbers(values: Any, n: int) -> Tensor:
    rows = values if isinstance(values, Tensor) else torch.as_tensor(values)
    if rows.dtype is torch.bool:
        if rows.shape != (n,):
            raise ValueError(f"`cv`: a mask should have shape ({n},), got {tuple(rows.shape)}.")
        rows = rows.nonzero()[:, 0]
    if len(rows) and (rows.is_floating_point() or rows.is_complex()):
        raise ValueError(f"`cv`: row numbers should be integers or a mask, got {rows.dtype}.")
    rows = rows.to(torch.int64).cpu()
    if rows.ndim != 1 or (len(rows) and (int(rows.max()) >= n or int(rows.min()) < 0)):
        raise ValueError(f"`cv`: row numbers should lie between 0 and {n - 1}, in one dimension.")
    return rows


def partition(parts: list[Split], n: int) -> Tensor | None:
    """Return fold ids if every row is held out exactly once, and each training part is all the other rows."""
    ids = torch.full((n,), -1, dtype=torch.int64)
    for k, (train, test) in enumerate(parts):
        if len(train) + len(test) != n or bool((ids[test] >= 0).any()):
            return None
        ids[test] = k
        inside = torch.zeros(n, dtype=torch.bool)
        inside[train] = True
        if bool(inside[test].any()) or int(inside.sum()) != len(train):
            return None
    return ids if bool((ids >= 0).all()) else None


def check_fold(fold: int | Tensor | None, had: set[int | None], n: int, flatten: bool) -> int | Tensor | None:
    """Return the fold of a batch, or the ids of its n rows, or raise; `had` are the folds of earlier batches."""
    if had and (fold is None) != (None in had):
        earlier, got = ("no fold", "one") if fold is not None else ("folds", "none")
        raise ValueError(
            f"`fold`: earlier rows came with {earlier}, these with {got}. Give every batch its fold, or none."
        )
    if fold is None:
        return None
    if not isinstance(fold, Tensor):
        return _check.integer(fold, "fold", minimum=0)
    ids = fold.reshape(-1) if flatten else fold
    if ids.shape != (n,) or ids.is_floating_point() or ids.is_complex():
        raise ValueError(
            f"`fold` should be an int or integer ids of shape ({n},), got {fold.dtype} of {tuple(fold.shape)}."
        )
    if bool((ids < 0).any()):
        raise ValueError(f"`fold` ids should not be negative, got {int(ids.min())}.")
    return ids
