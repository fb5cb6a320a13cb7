"""Which kind of matrix came as `X`, and how products with it are taken: strided, sparse of torch or SciPy, operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.solvers.iterative import operators
from torchridge.solvers.iterative.operators import Dense, LinearOperator, Operator
from torchridge.solvers.iterative.sparse import SparseArray, SparseTensor

# Of random products of an operator and its transpose, relative to their size.
_ADJOINT = {torch.float64: 1e-8, torch.float32: 1e-3}


def kind_of(X: Any) -> str | None:
    """Return "dense", "sparse" or "operator", or None for what is none of them."""
    if isinstance(X, Tensor):
        return "dense" if X.layout is torch.strided else "sparse"
    if hasattr(X, "tocsr") and hasattr(X, "nnz"):
        return "sparse"
    if isinstance(X, LinearOperator) or (hasattr(X, "matmat") and hasattr(X, "rmatmat") and hasattr(X, "shape")):
        return "operator"
    return None


def shape_of(X: Any) -> tuple[int, int]:
    """Return (n, d), or raise."""
    shape = tuple(int(s) for s in X.shape)
    if len(shape) != 2:
        raise ValueError(f"`X` should have shape (rows, features), got {shape}. Solvers of products take one problem.")
    if 0 in shape:
        raise ValueError(f"`X` is empty, got shape {shape}; expected at least one row and one column.")
    return shape[0], shape[1]


def dense_of(X: Any) -> Tensor:
    """Return a sparse matrix as a strided tensor."""
    shape_of(X)
    if isinstance(X, Tensor):
        return X.to_dense()
    _real(X)
    array = X.toarray()
    return torch.from_numpy(array if array.dtype.kind in "iufb" and array.dtype.isnative else array.astype("f8"))


def operator_of(X: Any, kind: str) -> Operator:
    """Return what takes products with X, or raise if its entries are not finite real numbers."""
    shape_of(X)
    if kind == "operator":
        return _checked(X if isinstance(X, LinearOperator) else operators.from_scipy(X))
    if kind == "dense":
        _check.is_dense_real(X, "X")
        _check.exact_integers(X, "X")
        _finite_rows(X)
        return Dense(X)
    if isinstance(X, Tensor):
        return _from_torch(X)
    _real(X)
    rows = X.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    if rows.data.dtype.kind in "iu":
        _check.exact_integers(torch.from_numpy(rows.data.astype("i8", copy=False)), "X")
    if rows.data.dtype.kind not in "f" or rows.data.dtype.itemsize not in (4, 8):
        rows = rows.astype("f8")
    _finite_entries(torch.from_numpy(rows.data), torch.from_numpy(rows.indptr))
    return SparseArray(rows)


def _finite_rows(X: Tensor) -> None:
    if not _check.sum_is_finite(X):
        _check.finite(X, "X")


def _checked(X: LinearOperator) -> LinearOperator:
    error = X.adjoint_error()
    if not error <= _ADJOINT[X.dtype]:
        raise ValueError(
            f"`X`: `rmatmul` is not the transpose of `matmul`: <X v, r> and <v, Xᵀ r> differ by {error:.1e} of their "
            f"size for random v and r. Expected Xᵀ r for real X."
        )
    return X


def _real(X: Any) -> None:
    if X.dtype.kind not in "fiub":
        raise TypeError(f"`X` should hold real numbers, got {X.dtype}.")


def _from_torch(X: Tensor) -> Operator:
    if X.is_complex():
        raise TypeError(f"`X` should be real, got {X.dtype}.")
    X = X.detach()
    X = X.coalesce().to_sparse_csr() if X.layout is torch.sparse_coo else X
    X = X if X.layout is torch.sparse_csr else X.to_sparse_csr()
    _check.exact_integers(X.values(), "X")
    if X.dtype not in (torch.float32, torch.float64):
        X = X.double()
    _finite_entries(X.values(), X.crow_indices())
    if X.device.type == "cpu":
        try:
            from scipy.sparse import csr_array
        except ImportError:
            return SparseTensor(X)
        parts = tuple(a.numpy() for a in (X.values(), X.col_indices(), X.crow_indices()))
        shared = csr_array(parts, shape=tuple(X.shape))
        return operator_of(shared, "sparse")
    return SparseTensor(X)


def _finite_entries(values: Tensor, starts: Tensor) -> None:
    if _check.sum_is_finite(values):
        return
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        row = int((starts <= first).sum()) - 1
        kind = "NaN" if bool(torch.isnan(values[first])) else "infinity"
        raise ValueError(
            f"`X` holds {kind}, first in row {row} ({int(bad.sum())} such values); expected finite numbers. Drop or "
            f"impute these rows."
        )
