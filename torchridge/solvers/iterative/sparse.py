"""Sparse matrices that multiply blocks of vectors, by SciPy on CPU if it is installed, else by torch.

Measured at 10 M entries, float64, one column: SciPy takes 13.5 ms for X v and 11.8 ms for Xᵀ r; torch takes 14 ms and
970 ms, as it has no product with a transposed CSR matrix. So torch is given a transposed copy, SciPy none. Two threads
took longer than one for SciPy's products, whose vectors fall out of the shared cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchridge.solvers.iterative.operators import Between, TwoProducts

# Entries that are converted to another dtype at a time.
_PIECE = 2**22

# Columns multiplied at once: so many float32 fill a cache line.
_COLUMNS = 16

# Columns up to which one product that is not copied costs less: of 20, 0.8 of the time at 4 M entries.
_DIRECT = 24


class SparseArray:
    """A scipy.sparse CSR matrix."""

    sketch_cost = 0.4

    def __init__(self, X: Any) -> None:
        self.X = X
        self.shape, self.device = (int(X.shape[0]), int(X.shape[1])), torch.device("cpu")
        self.dtype = torch.float32 if X.dtype.itemsize <= 4 and X.dtype.kind == "f" else torch.float64
        self.nbytes = int(X.data.nbytes + X.indices.nbytes + X.indptr.nbytes)
        self._transposed: Any = None  # X.T, which shares the memory of X

    def _across(self) -> Any:
        if self._transposed is None:
            self._transposed = self.X.T
        return self._transposed

    def _pieces(self, dtype: torch.dtype, squared: bool = False) -> Iterator[tuple[slice, Any]]:
        """Yield X, or runs of rows in another dtype that share the memory of the indices."""
        if dtype is self.dtype and not squared:
            yield slice(0, self.shape[0]), self.X
            return
        starts, n, row = self.X.indptr, self.shape[0], 0
        wanted = "f8" if dtype is torch.float64 else "f4"
        while row < n:
            end = max(row + 1, int(starts.searchsorted(starts[row] + _PIECE, "right")) - 1)
            run = slice(int(starts[row]), int(starts[end]))
            data = self.X.data[run].astype(wanted)
            parts = (data**2 if squared else data, self.X.indices[run], starts[row : end + 1] - starts[row])
            yield slice(row, end), type(self.X)(parts, shape=(end - row, self.shape[1]))
            row = end

    def double(self) -> SparseArray:
        """Return the matrix with float64 entries."""
        return self if self.dtype is torch.float64 else SparseArray(self.X.astype("f8"))

    def matmul(self, v: Tensor) -> Tensor:
        """Return X v."""
        if v.shape[1] <= _DIRECT and v.dtype is self.dtype:
            return _product(self.X, v)
        out = v.new_empty(self.shape[0], v.shape[1])
        for part, piece in self._pieces(v.dtype):
            _by_columns(piece, v, out[part])
        return out

    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r."""
        if r.shape[1] <= _DIRECT and r.dtype is self.dtype:
            return _product(self._across(), r)
        out = r.new_zeros(self.shape[1], r.shape[1])
        for part, piece in self._pieces(r.dtype):
            _by_columns(piece.T, r[part], out, add=True)
        return out

    def normal(self, v: Tensor, between: Between) -> Tensor:
        """Return Xᵀ between(X v)."""
        return self.rmatmul(between(slice(0, self.shape[0]), slice(0, v.shape[1]), self.matmul(v)))

    def conormal(self, r: Tensor, between: Between) -> Tensor:
        """Return X between(Xᵀ r)."""
        return self.matmul(between(slice(0, self.shape[1]), slice(0, r.shape[1]), self.rmatmul(r)))

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns of X."""
        return torch.from_numpy(self.X[:, index.numpy()].toarray()).double()

    def some_rows(self, count: int) -> Tensor:
        """Return some rows of X."""
        return torch.from_numpy(self.X[:: -(-self.shape[0] // count)].toarray().astype("f8"))

    def outer(self, out: Tensor) -> None:
        """Write X Xᵀ, (n, n), a run of rows at a time."""
        X = self.double().X
        step = max(1, _PIECE // self.shape[0])
        for start in range(0, self.shape[0], step):
            out[start : start + step] = torch.from_numpy((X[start : start + step] @ X.T).toarray())

    def squares(self, weight: Tensor, center: Tensor | None) -> Tensor:
        """Return Σ s (x − center)², from the entries that are there; of x² without a center."""
        out = weight.new_zeros(self.shape[1], weight.shape[1])
        for part, piece in self._pieces(torch.float64, squared=True):
            _by_columns(piece.T, weight[part], out, add=True)
        if center is None:
            return out
        return out - 2 * center[:, None] * self.rmatmul(weight) + center[:, None] ** 2 * weight.sum(0)


def _product(matrix: Any, v: Tensor) -> Tensor:
    if v.shape[1] == 1:
        return torch.from_numpy(matrix @ v.numpy()[:, 0])[:, None]
    return torch.from_numpy(matrix @ v.numpy())


def _by_columns(matrix: Any, v: Tensor, out: Tensor, add: bool = False) -> None:
    """Write, or add, matrix @ v to `out`, some columns at a time."""
    source, target = v.numpy(), out.numpy()
    for start in range(0, v.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        values = source[:, some].copy()
        product = (matrix @ values[:, 0])[:, None] if values.shape[1] == 1 else matrix @ values
        if add:
            target[:, some] += product
        else:
            target[:, some] = product


class SparseTensor(TwoProducts):
    """A torch CSR matrix and its transpose, on any device."""

    sketch_cost = 0.4

    def __init__(self, X: Tensor) -> None:
        self.forward = {X.dtype: X}
        self.backward = {X.dtype: X.t().to_sparse_csr()}
        self.shape, self.device = (X.shape[0], X.shape[1]), X.device
        self.dtype = X.dtype
        self.nbytes = sum(2 * a.numel() * a.element_size() for a in (X.values(), X.col_indices()))

    def _in(self, matrices: dict[torch.dtype, Tensor], dtype: torch.dtype) -> Tensor:
        if dtype not in matrices:
            matrices[dtype] = matrices[self.dtype].to(dtype)
        return matrices[dtype]

    def double(self) -> SparseTensor:
        """Return the matrix, which keeps a float64 copy by itself."""
        return self

    def matmul(self, v: Tensor) -> Tensor:
        """Return X v."""
        return self._in(self.forward, v.dtype) @ v

    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r."""
        return self._in(self.backward, r.dtype) @ r

    def squares(self, weight: Tensor, center: Tensor | None) -> Tensor:
        """Return Σ s (x − center)², from the entries that are there; of x² without a center."""
        back = self._in(self.backward, torch.float64)
        squared = torch.sparse_csr_tensor(
            back.crow_indices(), back.col_indices(), back.values() ** 2, back.shape, check_invariants=False
        )
        if center is None:
            return squared @ weight
        return squared @ weight - 2 * center[:, None] * (back @ weight) + center[:, None] ** 2 * weight.sum(0)
