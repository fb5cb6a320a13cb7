"""The eigenbasis of the centred second moments of the features, in which a constant Hessian is diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of the row space: features are (X − mean) @ directions, and ones if there is a bias.

    Attributes:
        mean: (d,), zero without an intercept.
        directions: (d, r), orthonormal columns, r = min(n, d).
        eigvals: (q,), weighted mean square of each feature; 1 for the column of ones.
        penalized: (q,), 1 for a direction and 0 for the column of ones; q = r + 1 with an intercept, else r.
    """

    mean: Tensor
    directions: Tensor
    eigvals: Tensor
    penalized: Tensor

    @property
    def intercept(self) -> bool:
        """Whether the last feature is a column of ones."""
        return len(self.eigvals) > self.directions.shape[1]


def _pieces(X: Tensor, mean: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(X), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        yield part, X[part].double() - mean


def eigenbasis(X: Tensor, weight: Tensor, *, intercept: bool) -> Basis:
    """Return the eigenbasis of `Σ_i w_i (x_i − x̄)(x_i − x̄)ᵀ`, in float64; about zero without an intercept.

    No direction is left out: under a weak penalty even one with a small eigenvalue matters, and collinear features
    only give directions in which the features are zero. With more features than rows the rows are first reduced to
    an orthonormal basis of their span, which holds the solution of every penalty.

    Shape:
        X: (n, d); weight: (n,), float64, summing to one.

    Cost: n·d² + 9·d³ flops, or 4·d·n² + 10·n³ if d > n.
    """
    mean = weight @ X.double() if intercept else X.new_zeros(X.shape[1], dtype=torch.float64)
    reduction = None
    if X.shape[1] > len(X):
        reduction = torch.linalg.qr((X.double() - mean).mT).Q  # (d, n)
    size = X.shape[1] if reduction is None else reduction.shape[1]
    gram = mean.new_zeros(size, size)
    for part, centred in _pieces(X, mean):
        piece = centred if reduction is None else centred @ reduction
        gram += piece.mT @ (piece * weight[part, None])
    eigvals, vectors = torch.linalg.eigh(gram)
    return basis_of(mean, vectors if reduction is None else reduction @ vectors, eigvals, intercept)


def basis_of(mean: Tensor, directions: Tensor, eigvals: Tensor, intercept: bool) -> Basis:
    """Return the basis of given directions, with a column of ones if there is an intercept."""
    ones = eigvals.new_ones(int(intercept))
    return Basis(
        mean=mean,
        directions=directions,
        eigvals=torch.cat([eigvals.clamp_min(0), ones]),
        penalized=torch.cat([torch.ones_like(eigvals), 1 - ones]),
    )


def rotate(basis: Basis, X: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the features (n, q) of X in the basis.

    The product is taken in float64 and rounded once, so that a direction with a small eigenvalue keeps its digits in
    float32 too, whatever the condition number and the mean of X.
    """
    features = torch.ones(len(X), len(basis.eigvals), dtype=dtype, device=X.device)
    r = basis.directions.shape[1]
    for part, centred in _pieces(X, basis.mean):
        features[part, :r] = (centred @ basis.directions).to(dtype)
    return features


def unrotate(basis: Basis, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight (..., c, d) and bias (..., c) over X from coefficients (..., c, q) over the features."""
    r = basis.directions.shape[1]
    weight = theta[..., :r] @ basis.directions.mT
    bias = theta[..., r] if basis.intercept else theta.new_zeros(theta.shape[:-1])
    return weight, bias - weight @ basis.mean
