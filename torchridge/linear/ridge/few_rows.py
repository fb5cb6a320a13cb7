"""Prepare the scorer of folds of few rows, within the memory that the caller states."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.arguments import Options
from torchridge.solvers.device import sent
from torchridge.solvers.kernels import dual, gram_matrix, own_scales
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.kernels.kernel_folds import OPERATOR_BYTES, KernelFolds
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.target_scores import BATCH_BYTES
from torchridge.solvers.moments import finite
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.one_pass import CHUNK_BYTES
from torchridge.solvers.moments.rows import Rows

_LOG = logging.getLogger(__name__)


def counted_of(rows: Rows, objective: Objective) -> Rows:
    """Return the rows that count; of a kernel that is given, the columns that belong to them."""
    counted = rows.counted
    if counted is rows or not objective.precomputed or rows.sample_weight is None:
        return counted
    keep = (rows.sample_weight > 0).nonzero()[:, 0]
    return counted._replace(X=counted.X[:, keep])


def refuse_memory(options: Options) -> None:
    """Raise if a bound was stated for what takes no batches of targets."""
    if options.max_bytes is not None:
        raise ValueError(
            "`max_bytes` bounds folds of fewer training rows than features, which take targets in batches; this takes "
            "the moments of all rows. Leave it out."
        )


def kernel_folds(
    rows: Rows, parts: list[Split], objective: Objective, source: Rows, options: Options, fitted: bool = True
) -> KernelFolds:
    """Return the scorer of splits of rows that count, `parts` on the host; `source` are the rows that came."""
    dtype, device, n = options.moments_dtype, rows.X.device, len(rows.X)
    scaled = own_scales.held_bytes(n, len(parts), dtype) if objective.standardize else 0
    batch = memory_of_batches(rows, len(parts), dtype, options.max_bytes, scaled)
    complementary = all(len(a) + len(b) == n and bool(_present(a, b, n).all()) for a, b in parts)
    parts = [(sent(a, device), sent(b, device)) for a, b in parts]
    if not _check.sum_is_finite(rows.y):
        finite.check_squares(source, dtype, overflowed=True)
    if objective.standardize:
        finite.check_squares(source, dtype)
    kernel, problem = whole(rows, objective, source, dtype)
    return KernelFolds(rows, parts, objective, kernel, problem, complementary, dtype, batch)


def _present(train: Tensor, held: Tensor, n: int) -> Tensor:
    found = torch.zeros(n, dtype=torch.bool)
    found[train] = found[held] = True
    return found


def whole(rows: Rows, objective: Objective, source: Rows, dtype: torch.dtype) -> tuple[Kernel, Dual]:
    """Return the kernel of all rows, without their weights, and it diagonalized with them; both without targets."""
    n, device, weight = len(rows.X), rows.X.device, rows.sample_weight
    weight = None if weight is None else weight.detach().to(dtype)
    share = torch.full((n,), 1 / n, dtype=dtype, device=device) if weight is None else weight / weight.sum()
    kernel = gram_matrix.kernel_about(rows, share, objective, dtype)
    finite.check_kernel(kernel.gram, kernel.target, source)
    return kernel, dual.diagonalized(gram_matrix.weighted(kernel, None if weight is None else weight.sqrt()), rows)


def memory_of_batches(rows: Rows, count: int, dtype: torch.dtype, most: int | None, scaled: int = 0) -> int:
    """Return what a batch of targets may take, or raise if `most` bytes do not hold what a batch comes on top of.

    That are the matrices of n × n, the operators of a fold, and what folds with scales of their own hold (`scaled`), or
    before them a chunk of columns; the scores and the coefficients that are returned are not counted.
    """
    (n, d), size = rows.X.shape, dtype.itemsize
    chunk = 2 * min(CHUNK_BYTES, n * d * size) + 2 * n * n * size
    fixed = 6 * n * n * size + 2 * OPERATOR_BYTES + scaled
    held = -(-n // count)
    one = size * (2 * n + 60 * held)  # a target: itself, its training part, its predictions at several strengths
    least = max(chunk, fixed + one)
    if most is not None and most < least:
        raise ValueError(
            f"`max_bytes`={most} is too small: the gram matrix of {n} rows, its eigenvectors and the operators of a "
            f"fold take {least} bytes ({least / 2**20:.3g} MiB). Raise it, or leave it out."
        )
    batch = BATCH_BYTES if most is None else min(most - fixed, 4 * BATCH_BYTES)
    _LOG.info(
        "%d rows, %d targets: at most %.3g MiB above the data and the answer, in batches of about %d targets",
        n, rows.y.shape[1], max(chunk, fixed + batch) / 2**20, max(1, batch // one),
    )  # fmt: skip
    return batch
