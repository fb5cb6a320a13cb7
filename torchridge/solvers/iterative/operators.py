"""Matrices as conjugate gradients see them: products with blocks of vectors, and nothing else.

The vectors say in which precision a product is summed: float64 vectors get float64 sums from float32 data, converted a
piece at a time, so that no float64 copy of the data is ever held. A piece that is in cache serves both halves of
Xᵀ(X v), which therefore costs one pass over memory and not two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

# What happens between the halves of a product: (rows, or columns, of X; columns of the block; X v there) → the same.
Between = Callable[[slice, slice, Tensor], Tensor]

# Numbers of one piece: 4 MB that stay in cache. A block of many columns earns larger pieces, as its products do more
# with each number; a piece that is converted to another dtype is held next to the data, so its size has a limit.
_PIECE = 2**20
_FEW = 8
_CONVERTED = 2**23


class Operator(Protocol):
    """A matrix X (n, d) that multiplies blocks of vectors."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    nbytes: int  # what the data take, 0 if unknown
    sketch_cost: float  # of one column among many, in products with a single vector

    def matmul(self, v: Tensor) -> Tensor:
        """Return X v, (n, c)."""

    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r, (d, c)."""

    def normal(self, v: Tensor, between: Between) -> Tensor:
        """Return Xᵀ between(X v), (d, c)."""

    def conormal(self, r: Tensor, between: Between) -> Tensor:
        """Return X between(Xᵀ r), (n, c)."""

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns of X, (n, q), float64."""

    def some_rows(self, count: int) -> Tensor | None:
        """Return up to `count` rows of X, evenly spaced, float64; None if entries are not at hand."""

    def squares(self, weight: Tensor, center: Tensor | None) -> Tensor:
        """Return Σ_i s_i (x_i − center)², (d, F), for weights s (n, F); of x_i² without a center."""


class Dense:
    """A strided tensor of any real dtype, row by row in memory."""

    sketch_cost = 0.15

    def __init__(self, X: Tensor) -> None:
        self.X = X.detach()
        self.shape, self.dtype, self.device = (X.shape[0], X.shape[1]), X.dtype, X.device
        self.nbytes = X.numel() * X.element_size()

    def _pieces(self, dim: int, c: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        size, other = self.shape[dim], self.shape[1 - dim]
        converted = self.dtype is not dtype
        numbers = _PIECE * max(1, c // _FEW) if self.device.type == "cpu" else _CONVERTED
        numbers = min(numbers, _CONVERTED) if converted else numbers
        step = max(1, min(size, numbers // other))
        shape = (step, other) if dim == 0 else (other, step)
        work = torch.empty(shape if converted else 0, dtype=dtype, device=self.device)
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            piece = self.X.narrow(dim, start, part.stop - start)
            if converted:
                piece = work.narrow(dim, 0, part.stop - start).copy_(piece)
            yield part, piece

    def matmul(self, v: Tensor) -> Tensor:
        """Return X v."""
        if self.dtype is v.dtype:
            return self.X @ v
        out = v.new_empty(self.shape[0], v.shape[1])
        for part, piece in self._pieces(0, v.shape[1], v.dtype):
            out[part] = piece @ v
        return out

    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r."""
        if self.dtype is r.dtype:
            return self.X.T @ r
        out = r.new_zeros(self.shape[1], r.shape[1])
        for part, piece in self._pieces(0, r.shape[1], r.dtype):
            out += piece.T @ r[part]
        return out

    def normal(self, v: Tensor, between: Between) -> Tensor:
        """Return Xᵀ between(X v)."""
        every, out = slice(0, v.shape[1]), torch.zeros_like(v)
        for part, piece in self._pieces(0, v.shape[1], v.dtype):
            out += piece.T @ between(part, every, piece @ v)
        return out

    def conormal(self, r: Tensor, between: Between) -> Tensor:
        """Return X between(Xᵀ r)."""
        every, out = slice(0, r.shape[1]), torch.zeros_like(r)
        for part, piece in self._pieces(1, r.shape[1], r.dtype):
            out += piece @ between(part, every, piece.T @ r)
        return out

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns of X."""
        return self.X[:, index].double()

    def some_rows(self, count: int) -> Tensor:
        """Return some rows of X."""
        return self.X[:: -(-self.shape[0] // count)].double()

    def squares(self, weight: Tensor, center: Tensor | None) -> Tensor:
        """Return Σ s (x − center)²."""
        out = weight.new_zeros(self.shape[1], weight.shape[1])
        for part, piece in self._pieces(0, weight.shape[1], torch.float64):
            out += ((piece if center is None else piece - center) ** 2).T @ weight[part]
        return out


class TwoProducts(ABC):
    """What follows from X v and Xᵀ r for a matrix whose pieces cannot serve both at once."""

    shape: tuple[int, int]
    device: torch.device

    @abstractmethod
    def matmul(self, v: Tensor) -> Tensor:
        """Return X v."""

    @abstractmethod
    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r."""

    def normal(self, v: Tensor, between: Between) -> Tensor:
        """Return Xᵀ between(X v)."""
        return self.rmatmul(between(slice(0, self.shape[0]), slice(0, v.shape[1]), self.matmul(v)))

    def conormal(self, r: Tensor, between: Between) -> Tensor:
        """Return X between(Xᵀ r)."""
        return self.matmul(between(slice(0, self.shape[1]), slice(0, r.shape[1]), self.rmatmul(r)))

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns of X, from products with unit vectors."""
        unit = torch.zeros(self.shape[1], len(index), dtype=torch.float64, device=self.device)
        unit[index, torch.arange(len(index), device=self.device)] = 1
        return self.matmul(unit)

    def some_rows(self, count: int) -> Tensor | None:
        """Return some rows of X, from products with unit vectors."""
        index = torch.arange(0, self.shape[0], -(-self.shape[0] // count), device=self.device)
        unit = torch.zeros(self.shape[0], len(index), dtype=torch.float64, device=self.device)
        unit[index, torch.arange(len(index), device=self.device)] = 1
        return self.rmatmul(unit).mT


class LinearOperator(TwoProducts):
    r"""A matrix X (n, d) that is known only by its products, for `ridge`, `ridge_path` and `ridge_cv`.

    Args:
        shape: (n, d).
        matmul: maps (d, c) to X v, (n, c).
        rmatmul: maps (n, c) to Xᵀ r, (d, c).
        dtype: of the vectors that both are given, float64 or float32; with float32 a relative residual stops near 1e-6.
        device: where the vectors lie.

    Raises:
        ValueError: if `shape` is not two positive whole numbers, `dtype` another, or a product has another shape.
        TypeError: if a product is not a function.

    Cost: a solve takes one product of each kind for an iteration, over all targets and strengths at once.

    Example:
        >>> import torch
        >>> from torchridge import LinearOperator, ridge
        >>> diagonal = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        >>> X = LinearOperator((3, 3), lambda v: diagonal[:, None] * v, lambda r: diagonal[:, None] * r)
        >>> ridge(X, torch.ones(3, dtype=torch.float64), 1.0, fit_intercept=False).weight
        tensor([[0.5000, 0.4000, 0.3000]], dtype=torch.float64)
    """

    nbytes = 0
    sketch_cost = 1.0

    def __init__(
        self,
        shape: tuple[int, int],
        matmul: Callable[[Tensor], Tensor],
        rmatmul: Callable[[Tensor], Tensor],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(shape) != 2 or not all(isinstance(s, int) and s > 0 for s in shape):
            raise ValueError(f"`shape` should be two positive whole numbers (n, d), got {shape!r}.")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` should be torch.float64 or torch.float32, got {dtype}.")
        for name, value in (("matmul", matmul), ("rmatmul", rmatmul)):
            if not callable(value):
                raise TypeError(f"`{name}` should be a function of a tensor, got {type(value).__name__}.")
        self.shape, self.dtype, self.device = (shape[0], shape[1]), dtype, torch.device(device)
        self._matmul, self._rmatmul = matmul, rmatmul

    def _product(self, of: Callable[[Tensor], Tensor], v: Tensor, rows: int, name: str) -> Tensor:
        out = of(v.to(self.dtype))
        if not isinstance(out, Tensor) or tuple(out.shape) != (rows, v.shape[1]):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"`{name}` of {tuple(v.shape)} should be a tensor ({rows}, {v.shape[1]}), got {got}.")
        return out.detach().to(v.dtype)

    def matmul(self, v: Tensor) -> Tensor:
        """Return X v."""
        return self._product(self._matmul, v, self.shape[0], "matmul")

    def rmatmul(self, r: Tensor) -> Tensor:
        """Return Xᵀ r."""
        return self._product(self._rmatmul, r, self.shape[1], "rmatmul")

    def some_rows(self, count: int) -> None:
        """Return None: products are dear, and need not be exact."""

    def squares(self, weight: Tensor, center: Tensor | None) -> Tensor:
        """Raise: products do not tell the size of an entry.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "`standardize` needs the entries of `X`, got an operator. Pass the variances as `penalty_factors`."
        )

    def adjoint_error(self) -> float:
        """Return how far <X v, r> and <v, Xᵀ r> are apart for random v and r, relative to their size."""
        g = torch.Generator(self.device).manual_seed(0)
        v = torch.randn(self.shape[1], 1, generator=g, dtype=torch.float64, device=self.device)
        r = torch.randn(self.shape[0], 1, generator=g, dtype=torch.float64, device=self.device)
        image, back = self.matmul(v), self.rmatmul(r)
        size = torch.maximum(image.norm() * r.norm(), back.norm() * v.norm())
        return float(((image * r).sum() - (v * back).sum()).abs() / size.clamp_min(1e-300))


def from_scipy(operator: Any) -> LinearOperator:
    """Return a scipy.sparse.linalg.LinearOperator as ours."""
    double = operator.dtype is None or operator.dtype.itemsize > 4

    def apply(product: Callable[[Any], Any], v: Tensor) -> Tensor:
        return torch.from_numpy(product(v.numpy()))

    return LinearOperator(
        (int(operator.shape[0]), int(operator.shape[1])),
        lambda v: apply(operator.matmat, v),
        lambda r: apply(operator.rmatmat, r),
        dtype=torch.float64 if double else torch.float32,
    )
