"""The one place that holds what differs between devices: precision of sums, sizes of chunks, eigenvectors or nodes.

None of the numbers for CUDA was measured by this project; each has its source with it.
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

# Strengths from which one eigendecomposition beats as many Cholesky factors. It takes 9 d³ multiply-adds against d³/3,
# half of them in matrix-vector products that run at the speed of memory: Tomov, Nath & Dongarra 2010,
# doi:10.1016/j.parco.2010.06.001.
_CPU_STRENGTHS, _CUDA_STRENGTHS = 4, 32

# Features from which folds are scored by Cholesky factors at nodes on CUDA, and the most nodes that may take.
_NODE_FEATURES, _MOST_NODES = 512, 72

# What the combination of nodes may miss of a shrinkage factor, which lies in (0, 1].
NODE_TOLERANCE = 1e-10

# Memory of the factors at several nodes at once.
NODE_BYTES = 2**30


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
    features are diagonalized at once. Every step waits for the host, so that a device takes nodes.
    """
    return d // 5 if device.type == "cpu" and d >= 384 else 0


def most_nodes(device: torch.device, d: int) -> int:
    """Return how many Cholesky factors may stand in for the eigendecomposition of a fold; 0 for none.

    1/(s + α), s ≥ 0 and α from low to high, is of rank r to within 4 exp(−π² r / log(16 high / low)): Beckermann &
    Townsend 2017, doi:10.1137/16M1096426. Found for 1e-10: 20 nodes for two decades, 32 for four, 72 for eight.
    """
    return _MOST_NODES if device.type == "cuda" and d >= _NODE_FEATURES else 0


def memory(device: torch.device) -> int | None:
    """Return the bytes of memory that a device has, in use or not; None if it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
