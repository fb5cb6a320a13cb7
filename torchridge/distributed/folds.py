"""Folds of rows that are spread over ranks: those of one process that holds all rows, in the order of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge._ranks import Ranks
from torchridge.solvers.moments import folds

Number = Callable[[int, int], Tensor]


def fold_plan(
    rows: Callable[[], int],
    cv: Any,
    groups: Any,
    ranks: Ranks,
    operation: str,
    alike: Mapping[str, Any],
    number: Number = folds.fold_ids,
) -> Callable[[], Tensor]:
    """Learn how many rows and groups other ranks have, and return what gives the folds of this rank's rows.

    A number of folds makes runs of the rows of all ranks, or what else `number` makes of (folds, rows); with groups,
    whole groups, wherever their rows are. Ids come for this rank's rows, or for the rows of all ranks.

    Args:
        rows: gives the number of this rank's rows, or raises.
        cv: a number of folds, or ids.
        groups: labels of this rank's rows, integers or strings.
        ranks: over which the rows are spread.
        operation: for errors.
        alike: what else ranks must agree on.
        number: gives the folds of all rows.
    """
    cv = folds.as_ids(cv)

    def own() -> tuple[int, list[Any] | None]:
        n = rows()
        if not isinstance(cv, Tensor) and (not isinstance(cv, int) or isinstance(cv, bool)):
            raise ValueError(
                f"`cv` over ranks should be a number of folds or integer fold ids (for ridge also 'gcv', 'loo' or "
                f"'evidence'), got {cv!r}. A splitter knows the rows of one process only: turn its splits into ids."
            )
        return n, None if groups is None else _labels(groups, n)

    def says(done: tuple[int, list[Any] | None]) -> dict[str, Any]:
        n, labels = done
        kind = str(cv) if isinstance(cv, int) else "fold ids"
        grouped = {"groups": "none" if labels is None else "given", "counts": list(Counter(labels or ()).items())}
        return {"rows": n, "cv": kind, **grouped, **alike}

    (n, labels), told = ranks.together(operation, own, says, agree=("cv", "groups", *alike))
    start, total = sum(t["rows"] for t in told[: ranks.index]), sum(t["rows"] for t in told)
    if labels is not None:
        return lambda: _of_groups(labels, [pair for t in told for pair in t["counts"]], cv)
    if isinstance(cv, Tensor):
        return lambda: _given(cv, n, start, total)
    return lambda: number(cv, total)[start : start + n]


def _labels(groups: Any, n: int) -> list[Any]:
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(labels) != n or any(not isinstance(v, (int, str)) for v in labels):
        raise ValueError(f"`groups` over ranks should hold an integer or a string for each of this rank's {n} rows.")
    return labels


def _of_groups(labels: list[Any], pairs: list[list[Any]], cv: Any) -> Tensor:
    counts: dict[Any, int] = {}
    for label, count in pairs:
        counts[label] = counts.get(label, 0) + count
    names = sorted(counts)
    fold_of = folds.folds_of_groups(torch.tensor([counts[k] for k in names]), _folds_for(cv, len(names)))
    table = dict(zip(names, fold_of.tolist(), strict=True))
    return torch.tensor([table[label] for label in labels], dtype=torch.int64)


def _folds_for(cv: Any, groups: int) -> int:
    if isinstance(cv, Tensor):
        raise ValueError("`groups` has no use with fold ids in `cv`. Leave it out, or pass a number of folds.")
    k = _check.integer(cv, "cv", minimum=2)
    if groups < k:
        raise ValueError(f"`cv`={k} folds need at least {k} groups, got {groups}. Lower `cv` to at most {groups}.")
    return k


def _given(cv: Tensor, n: int, start: int, total: int) -> Tensor:
    if cv.ndim != 1 or cv.is_floating_point() or len(cv) not in (n, total):
        raise ValueError(
            f"`cv`: fold ids should be integers of shape ({n},), one for each of this rank's rows, or ({total},), for "
            f"the rows of all ranks, got {cv.dtype} of {tuple(cv.shape)}."
        )
    return cv if len(cv) == n else cv[start : start + n]
