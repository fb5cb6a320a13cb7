"""The one place that holds what differs between devices: precision of sums, sizes of chunks, eigenvectors or factors.

Each number has its source with it; those that were measured on CUDA were on an H200, see `benchmarks/cuda.py`.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

# Compute capabilities whose float64 units run at half the rate of float32, and from 8.0 on, on tensor cores, at its
# full rate: 19.5 and 19.5 TFLOP/s on A100, 67 and 67 on H100. Others have a 32nd or a 64th.
# NVIDIA A100 architecture whitepaper (2020), table 1; NVIDIA H100 datasheet; CUDA C++ Programming Guide, "Throughput of
# Native Arithmetic Instructions".
_FULL_RATE = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}

# Slices of 8 bits that rows of a dtype are cut into if float64 is slow; see `sliced`. What is left out is under
# 2⁻²⁴ of a column's largest value for half precision, and 2⁻³² for single precision.
_SLICES = {torch.bfloat16: 3, torch.float16: 3, torch.float32: 4}

# Chunks of rows that CUDA takes at once: 240 MiB of them. H100 has 132 multiprocessors, which tiles of 128 × 128 of a
# 1024 × 1024 product do not fill, so that long chunks must (NVIDIA, "Matrix Multiplication Background User's Guide").
_CUDA_CHUNKS = 6

# Strengths from which one eigendecomposition beats as many Cholesky factors. Measured on an H200: it takes the time of
# 16 factors of 512 features, 21 of 1024, 27 of 2048 and 49 of 4096, and each factor takes as long again to be solved
# with. Folds at 72 such factors took 1 to 5 times as long as by eigenvectors, at 512 to 8192 features.
_CPU_STRENGTHS, _CUDA_STRENGTHS = 4, 16


def sent(value: Tensor, to: Tensor | torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers of the host on a device, without a wait for it; those that are there already as they are.

    CUDA stages the copy of ordinary memory before it returns (CUDA Runtime API, "API synchronization behavior"), so
    that the host may go on. Not for what it may write to afterwards: memory that is pinned is read later.
    """
    device, dtype = (to.device, to.dtype if dtype is None else dtype) if isinstance(to, Tensor) else (to, dtype)
    return value.to(device, dtype, non_blocking=device.type == "cuda" and value.device.type == "cpu")


def slices(device: torch.device, rows: torch.dtype, sums: torch.dtype) -> int:
    """Return how many slices the rows of a symmetric product are cut into; 0 for the plain product in `sums`.

    Never TF32: it keeps 10 bits of each factor. Slices have 8, so that even TF32 would not change their product.
    """
    if device.type != "cuda" or sums is not torch.float64 or torch.cuda.get_device_capability(device) in _FULL_RATE:
        return 0
    return _SLICES.get(rows, 0)


# Columns of a block of a symmetric product: on CUDA wide enough to fill the device, narrow enough that the skipped half
# of the blocks is close to half of the work. On the CPU measured; see `algebra`. Of up to
# 256 columns, blocks of 64 take 0.85 of the time of the whole product at (400, 200), on one thread.
_CPU_GRAM_COLUMNS, _CUDA_GRAM_COLUMNS = ((256, 64), (768, 128), (2**63, 256)), 1024


def gram_columns(device: torch.device, d: int) -> int:
    """Return how many columns one block of a symmetric product of side d takes."""
    if device.type == "cuda":
        return _CUDA_GRAM_COLUMNS
    return next(columns for most, columns in _CPU_GRAM_COLUMNS if d <= most)


def chunks(device: torch.device) -> int:
    """Return how many times the chunk of a CPU one pass over rows works on at once."""
    return _CUDA_CHUNKS if device.type == "cuda" else 1


def strengths_per_eigh(device: torch.device) -> int:
    """Return the number of strengths up to which Cholesky factors are cheaper."""
    return _CUDA_STRENGTHS if device.type == "cuda" else _CPU_STRENGTHS


def most_directions(device: torch.device, d: int) -> int:
    """Return how many directions a Krylov space may have that stands in for the eigendecomposition of a fold.

    Measured on one thread, 10 targets: 150 directions of 1024 take a quarter of the time, and a vain try a fifth. Few
    features are diagonalized at once. Every step waits for the host: not on a device.
    """
    return d // 5 if device.type == "cpu" and d >= 384 else 0


def memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has, in use or not; None if it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
