"""Few rows and more targets than rows: models that hold the rows and coefficients of them in place of weights (t, d).

Predictions come from the kernel of new rows with those that were fitted; `coef_` is made when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchridge import _check
from torchridge.estimators._input import as_array, as_tensor, check_entries
from torchridge.linear.ridge.solution.solution import RidgeSolution

# Sparse rows that are filled at once to be predicted on another device than the CPU.
_FILLED_BYTES = 2**26


class Weights(NamedTuple):
    """Weights and biases without a solution: of `positive`, and of folds that are told from their moments."""

    weight: Tensor  # (t, d)
    bias: Tensor  # (t,)


def own_rows(X: Tensor, targets: int) -> Tensor:
    """Return rows (n, d) that a solution may keep: a copy, so that a model does not follow the caller's array.

    It has fewer numbers than the weights that it stands for. All other solutions keep weights.
    """
    n, d = X.shape
    return X.clone() if n < d and n < targets else X


def _runs(X: Any, device: torch.device) -> Iterator[tuple[int, Any]]:
    """Yield rows as they are multiplied with on a device: sparse ones on the CPU alone, elsewhere filled, with a place.

    All at once, but for those that are filled.
    """
    if isinstance(X, Tensor) or device.type == "cpu":
        yield 0, X.to(device) if isinstance(X, Tensor) else X
        return
    step = max(1, _FILLED_BYTES // (8 * X.shape[1]))
    for start in range(0, X.shape[0], step):
        yield start, as_tensor(as_array(X[start : start + step].toarray(), "X")).to(device)


def predict(solution: RidgeSolution, X: Any, intercept: Tensor) -> Tensor:
    """Return X Wᵀ + intercept, (m, t), or (m,) of one target, for X (m, d) or a scipy.sparse matrix."""
    dtype = torch.float64
    if isinstance(X, Tensor):
        _check.finite(X, "X")
        dtype = torch.promote_types(X.dtype if X.is_floating_point() else dtype, solution.bias.dtype)
    else:
        check_entries(X)
    out = solution.bias.new_empty(X.shape[0], len(solution.bias), dtype=dtype)
    for start, some in _runs(X, solution.bias.device):
        for rows, part, found in solution.predictions(some):
            out[start + rows.start : start + rows.stop, part] = found[0].to(dtype)
    intercept = intercept.to(out.device)
    if bool((intercept != solution.bias.to(intercept.dtype)).any()):  # it was set after the fit
        out += intercept.double() - solution.bias.double()
    return out[:, 0] if out.shape[1] == 1 else out
