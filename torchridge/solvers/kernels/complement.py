"""What is fitted without a penalty, and the eigenvalues of a gram matrix on the complement of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def unpenalized_basis(X: Tensor, center: Tensor, root: Tensor | None, free: Tensor | None, intercept: bool) -> Tensor:
    """Return an orthonormal basis (n, q) of what is fitted without a penalty, times √s."""
    n = X.shape[0]
    if free is None and intercept:
        return torch.full_like(X[:, :1], n**-0.5, dtype=center.dtype) if root is None else root[:, None] / root.norm()
    columns = free_columns(X, center, free, intercept)
    return orthonormal(columns if root is None else columns * root[:, None])


def free_columns(X: Tensor, center: Tensor, free: Tensor | None, intercept: bool) -> Tensor:
    """Return what is fitted without a penalty, (n, q): a column of ones for an intercept, and the free features."""
    columns = [torch.ones(X.shape[0], int(intercept), dtype=center.dtype, device=X.device)]
    if free is not None:
        columns.append(X[:, free].to(center.dtype) - center[free])
    return torch.cat(columns, 1)


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of what the columns (n, q) span: nothing if they are zero."""
    if columns.shape[1] == 0:
        return columns
    size = sizes(columns)
    if columns.shape[1] == 1:
        return columns / size if bool(columns.any()) else columns[:, :0]
    left, sigma, _ = torch.linalg.svd(columns / size, full_matrices=False)
    keep = sigma > len(columns) * torch.finfo(sigma.dtype).eps * sigma[0]
    independent: Tensor = left[:, keep]
    return independent


def sizes(columns: Tensor) -> Tensor:
    """Return the norm of every column, one for a column of zeros."""
    size = torch.linalg.vector_norm(columns, dim=0)
    return torch.where(size > 0, size, 1)


def fitted_by_columns(inside: Tensor, held: Tensor) -> tuple[Tensor, float]:
    """Return what takes targets (n, t) to their least-squares fit by `inside` (n, q) at rows `held` (f, q), (f, n).

    With the condition of the columns, brought to one size, squared: infinite if there are more of them than rows.
    """
    size = sizes(inside)
    left, sigma, right = torch.linalg.svd(inside / size, full_matrices=False)
    kept = sigma > max(inside.shape) * torch.finfo(sigma.dtype).eps * sigma[0]
    inverse = (right.mT * torch.where(kept, 1 / sigma, 0)) @ left.mT
    full = len(sigma) == inside.shape[1]
    return (held / size) @ inverse, float(sigma[0] / sigma[-1]) ** 2 if full else math.inf


def complement_eigh(gram: Tensor, unpenalized: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of gram on the complement of the orthonormal columns `unpenalized`."""
    n, q = unpenalized.shape
    if q == n:  # nothing is left to be shrunk, as for a single row and an intercept
        return torch.zeros_like(gram[:1, 0]), torch.zeros_like(gram[:, :1])
    if q == 0:
        eigvals, basis = torch.linalg.eigh(gram)
        return eigvals.clamp_min(0), basis
    # Householder vectors of the unpenalized columns span the complement without an n × n factor of their own.
    reflected = gram
    vectors = _reflectors(unpenalized)
    for v in vectors:
        reflected = reflected - 2 * torch.outer(v, v @ reflected)
        reflected = reflected - 2 * torch.outer(reflected @ v, v)
    eigvals, inner = torch.linalg.eigh(reflected[q:, q:].contiguous())
    basis = torch.cat([torch.zeros(q, inner.shape[1], dtype=gram.dtype, device=gram.device), inner])
    for v in reversed(vectors):
        basis -= 2 * torch.outer(v, v @ basis)
    return eigvals.clamp_min(0), basis


def _reflectors(columns: Tensor) -> list[Tensor]:
    """Return unit vectors whose reflections, in order, take orthonormal columns to the first coordinates."""
    columns, vectors = columns.clone(), []
    for j in range(columns.shape[1]):
        v = columns[:, j].clone()
        v[:j] = 0
        v[j] += torch.where(v[j] < 0, -1.0, 1.0) * torch.linalg.vector_norm(v)
        v /= torch.linalg.vector_norm(v)
        columns -= 2 * torch.outer(v, v @ columns)
        vectors.append(v)
    return vectors
