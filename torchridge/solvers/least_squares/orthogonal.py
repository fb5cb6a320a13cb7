"""Orthogonal factors of the rows themselves, for problems whose gram matrix has lost what decides them.

The gram matrix resolves singular values down to √eps of the largest, its QR factor down to eps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchridge.solvers.least_squares.objective import Frame
from torchridge.solvers.least_squares.spectral import Spectrum
from torchridge.solvers.moments.one_pass import CHUNK_BYTES
from torchridge.solvers.moments.rows import Rows


def svd_spectrum(rows: Rows, frame: Frame, cross: Tensor) -> Spectrum:
    """Return the spectrum of rows and their cross moments (d, t), cut at the numerical rank of the rows.

    Tall rows go through a QR factor kept up to date chunk by chunk (memory d²), wide ones through that of the
    transpose. All features must be penalized. Cost 2 n d min(n, d) and more. Source: Demmel, Grigori, Hoemmen &
    Langou 2012, doi:10.1137/080731992.
    """
    root, center = None if frame.penalty is None else frame.penalty.rsqrt(), frame.center
    n, d = rows.X.shape
    if n > d:
        _, sigma, right = torch.linalg.svd(_triangle(rows, center, root), full_matrices=False)
        right = right.T
    else:
        q, r = torch.linalg.qr(scaled_rows(rows, slice(None), center, root).T)
        left, sigma, _ = torch.linalg.svd(r, full_matrices=False)
        right = q @ left
    keep = sigma > max(n, d) * torch.finfo(sigma.dtype).eps * sigma[0]
    floor = sigma.new_zeros(())  # the cut is made here, if the rows resolve far smaller values than their gram
    transform = right[:, keep].flip(1)  # ascending, as `eigh` orders
    transform = transform if root is None else transform * root[:, None]
    return Spectrum(sigma[keep].flip(0) ** 2, transform, transform.T @ cross, frame.prior, None, floor)


def scaled_rows(rows: Rows, part: slice, center: Tensor, root: Tensor | None) -> Tensor:
    """Return rows of X, centred, times the root of their weight, and `root` for each feature."""
    x = rows.X[part].detach().to(center.device, center.dtype) - center
    if rows.sample_weight is not None:
        x *= rows.sample_weight[part].to(center.device, center.dtype).sqrt()[:, None]
    return x if root is None else x * root


def _triangle(rows: Rows, center: Tensor, root: Tensor | None) -> Tensor:
    n, d = rows.X.shape
    size = max(2 * d, CHUNK_BYTES // (8 * d))
    factor = torch.zeros(0, d, dtype=center.dtype, device=center.device)
    for start in range(0, n, size):
        chunk = scaled_rows(rows, slice(start, start + size), center, root)
        factor = torch.linalg.qr(torch.cat([factor, chunk]), mode="r")[1]
    return factor
