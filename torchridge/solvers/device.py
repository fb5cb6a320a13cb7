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

# Chunks of rows that CUDA takes at once: 240 MiB of them. Four times as much gains 4 to 9 % on an H200, a third of it
# loses 3 to 20 %.
_CUDA_CHUNKS = 6

# Strengths up to which Cholesky factors are cheaper than one eigendecomposition. On an H200 a path from the moments of
# 1024 features takes 2.4 ms a strength by factors, and 11.4 ms by the eigendecomposition at any number of them; folds
# by Cholesky factors at 72 nodes took 1 to 5 times as long as by eigenvectors, at 512 to 8192 features.
FEW_STRENGTHS = 4


def sent(value: Tensor, to: Tensor | torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers of the host on a device, without a wait for it; those that are there already as they are.

    CUDA stages the copy of ordinary memory before it returns (CUDA Runtime API, "API synchronization behavior"), so
    that the host may go on, and write to it. Pinned memory is read later: that is waited for.
    """
    device, dtype = (to.device, to.dtype if dtype is None else dtype) if isinstance(to, Tensor) else (to, dtype)
    staged = device.type == "cuda" and value.device.type == "cpu" and not value.is_pinned()
    return value.to(device, dtype, non_blocking=staged)


def slices(device: torch.device, rows: torch.dtype, sums: torch.dtype) -> int:
    """Return how many slices the rows of a symmetric product are cut into; 0 for the plain product in `sums`.

    Never TF32: it keeps 10 bits of each factor. Slices have 8, so that even TF32 would not change their product.
    """
    if device.type != "cuda" or sums is not torch.float64 or torch.cuda.get_device_capability(device) in _FULL_RATE:
        return 0
    return _SLICES.get(rows, 0)


# Columns of a block of a symmetric product. On the CPU see `algebra`; of up to 256 columns, blocks of 64 take 0.85 of
# the time of the whole product at (400, 200), on one thread. On an H200 blocks of 512, 1024 and 2048 columns take 28.5,
# 29.4 and 36.0 ms at (65536, 4096) in float64, and 8.7, 10.5 and 10.8 at (200000, 1024).
_CPU_GRAM_COLUMNS, _CUDA_GRAM_COLUMNS = ((256, 64), (768, 128), (2**63, 256)), 512


def gram_columns(device: torch.device, d: int) -> int:
    """Return how many columns one block of a symmetric product of side d takes."""
    if device.type == "cuda":
        return _CUDA_GRAM_COLUMNS
    return next(columns for most, columns in _CPU_GRAM_COLUMNS if d <= most)


def chunks(device: torch.device) -> int:
    """Return how many times the chunk of a CPU one pass over rows works on at once."""
    return _CUDA_CHUNKS if device.type == "cuda" else 1


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


def keeps_float32(device: torch.device) -> bool:
    """Return whether float32 products keep their digits: the process does not let them round to bfloat16 or TF32."""
    own = getattr(torch.backends.mkldnn, "matmul", None)  # from torch 2.9 on; the older question fails if it is set
    if device.type != "cpu" or own is None:
        return torch.get_float32_matmul_precision() == "highest"
    return own.fp32_precision in ("none", "ieee")


def half_price(device: torch.device) -> bool:
    """Return whether float32 products take half the time of float64's, and keep float32's digits.

    On a GPU whose float64 is slow they would take far less, but every split would wait for the host.
    """
    return device.type == "cpu" and keeps_float32(device)
