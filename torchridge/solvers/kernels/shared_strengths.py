"""Few strengths from which all others follow, for one spectrum: the low rank of 1 / (s + α) in α.

Every held-out prediction is a constant plus Σ_j g_j / (s_j + α) over eigenvalues s_j of the training rows. If for
all s between the least and the largest eigenvalue, and for the constant 1, h_l(s) = Σ_r mix_rl h_r(s) with
h_l(s) = 1 / (s + α_l), then the predictions at strength l are the same combination of those at the strengths r.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Points of the spectrum at which combinations are fitted.
_POINTS = 200

# From this share of the strengths on, combining costs as much as it saves.
_WORTH = 0.8


class Shared(NamedTuple):
    """Strengths to predict at, and what makes the others of them."""

    alpha: Tensor  # (r,)
    mix: Tensor | None  # (r, L); None if they are the strengths themselves


def shared(alpha: Tensor, low: float, top: float, tolerance: float) -> Shared:
    """Return as few of the strengths `alpha` (L,), on the host, as give all of them for spectra from `low` to `top`."""
    values = alpha.double()
    weakest = float(values.min())
    if len(values) < 4 or weakest <= 0 or top <= 0:
        return Shared(values, None)
    start = max(low, 1e-3 * weakest, 1e-300)  # below it the factor at every strength is constant
    points = torch.logspace(math.log10(start), math.log10(max(top, start)), _POINTS, dtype=torch.float64)
    s = torch.cat([points.new_full((1,), max(low, 0.0)), points])[:, None]
    wanted = torch.cat([(s + weakest) / (s + values), torch.ones(1, len(values), dtype=torch.float64)])
    picked = _pivots(wanted, tolerance, int(_WORTH * len(values)))
    if picked is None:
        return Shared(values, None)
    mix = torch.linalg.lstsq(wanted[:, picked], wanted, rcond=1e-15, driver="gelsd").solution
    error = (wanted[:, picked] @ mix - wanted).abs().max()
    return Shared(values[picked], mix) if float(error) <= 100 * tolerance else Shared(values, None)


def _pivots(matrix: Tensor, tolerance: float, most: int) -> list[int] | None:
    """Return columns that span the others to `tolerance`, by Gram–Schmidt with pivoting; None if `most` do not."""
    left = matrix.clone()
    picked: list[int] = []
    while len(picked) < most:
        sizes = torch.linalg.vector_norm(left, dim=0)
        at = int(sizes.argmax())
        if float(sizes[at]) <= tolerance:
            return sorted(picked)
        direction = left[:, at] / sizes[at]
        for _ in range(2):  # once more, for what rounding left
            left = left - torch.outer(direction, direction @ left)
        picked.append(at)
    return None
