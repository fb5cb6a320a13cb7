"""How results print: shapes and the figures that matter, in a few lines, never tensors in full."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchridge import _check


def listed(title: str, lines: Mapping[str, str | None]) -> str:
    """Return a title and one line for each entry that is not None."""
    known = {name: value for name, value in lines.items() if value is not None}
    width = max(map(len, known))
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in known.items())])


def shaped(value: Tensor) -> str:
    """Return the shape, dtype and device of a tensor."""
    dtype = str(value.dtype).removeprefix("torch.")
    return f"{tuple(value.shape)} {dtype}" + (f" on {value.device}" if value.device.type != "cpu" else "")


def figures(values: Tensor) -> str:
    """Return one number, or the range of several."""
    values = values.detach()
    if not _check.values_visible(values) or values.numel() == 0:
        return shaped(values)
    if values.numel() == 1:
        return f"{float(values):.6g}"
    low, high = (float(end) for end in torch.aminmax(values.double()))
    return f"{values.numel()} from {low:.4g} to {high:.4g}"


def chosen_by(strengths: Tensor | None, fold_scores: Tensor | None, score: Tensor | None, name: object) -> str | None:
    """Return the best score and what it was chosen among, or None if nothing was chosen."""
    if strengths is None or score is None:
        return None
    folds = "" if fold_scores is None or len(fold_scores) < 2 else f", {len(fold_scores)} folds"
    return f"{figures(score)} ({name}, larger is better; {strengths.numel()} strengths{folds})"


def count_true(flags: Tensor | None) -> str | None:
    """Return how many flags are set."""
    if flags is None or not _check.values_visible(flags):
        return None
    return f"{int(flags.sum())} of {flags.numel()}"
