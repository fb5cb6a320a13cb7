"""Large dense products and factorizations, each given to the library that does it best.

On CPU all of them go to NumPy, over views that share the tensors' memory:

- NumPy recognizes `A.T @ A` and calls BLAS `syrk`, which does half the work of the general product that torch calls
  (measured at (100000, 1024), float64, 2 threads: 1.2 s against 2.5 s).
- NumPy and torch bring separate thread pools, and the idle one spins: a 200 × 200 product in torch just after one in
  NumPy took 16 ms instead of 0.4 ms, and the reverse likewise. A solve therefore keeps to NumPy's pool, and `one_pool`
  holds torch's elementwise operations to the calling thread meanwhile.

Elsewhere they go to torch. These functions are not differentiable; `dense.py` holds the ones that are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Columns of one block of the symmetric product on CUDA: wide enough to fill the device, narrow enough that the
# skipped half of the blocks is close to half of the work.
_BLOCK = 1024

# From this size on a factorization outlasts the spinning of another library's threads.
_LARGE = 2048


_lock = threading.Lock()
_users = 0
_threads = 1


@contextmanager
def one_pool(device: torch.device) -> Iterator[None]:
    """Hold torch to one thread on CPU while NumPy's pool works; the count comes back with the last solve to end."""
    global _users, _threads
    if device.type != "cpu":
        yield
        return
    with _lock:
        if _users == 0:
            _threads = torch.get_num_threads()
            torch.set_num_threads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_threads)


def array(tensor: Tensor) -> Any:
    """View the tensor as what computes fastest on its device: a NumPy array on CPU, itself elsewhere."""
    if tensor.device.type != "cpu":
        return tensor.detach()
    tensor = tensor.detach().resolve_neg()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def tensor(values: Any) -> Tensor:
    """Undo `array`: a tensor that shares the memory of `values`."""
    if isinstance(values, Tensor):
        return values
    shared: Tensor = torch.from_numpy(np.ascontiguousarray(values))
    return shared


class _Writable:
    """A view of a read-only array that does not say so: torch warns of arrays that it must not write to."""

    def __init__(self, values: Any) -> None:
        self.values = values
        address = values.__array_interface__["data"][0]
        self.__array_interface__ = {**values.__array_interface__, "data": (address, False)}


def shared(values: Any) -> Tensor:
    """Return a tensor of the memory of an array, which may be read-only: it is to be read and not written."""
    plain = values.flags.writeable or not values.size
    whole: Tensor = torch.from_numpy(np.asarray(values if plain else _Writable(values)))
    return whole


def empty(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Allocate an uninitialized array (see `array`) on the device of `like`."""
    return array(torch.empty(shape, dtype=dtype or like.dtype, device=like.device))


def gram_into(a: Any, out: Any) -> None:
    """Write aᵀ a into `out`; a is (n, d), an `array`."""
    if isinstance(a, Tensor):
        _blocked_gram(a, out)
    else:
        np.matmul(a.T, a, out=out)


def _blocked_gram(a: Tensor, out: Tensor) -> None:
    d = a.shape[1]
    for i in range(0, d, _BLOCK):
        rows = slice(i, i + _BLOCK)
        out[rows, i:] = a[:, rows].T @ a[:, i:]
        out[i:, rows] = out[rows, i:].T.clone()


def gram(a: Tensor) -> Tensor:
    """Return aᵀ a, exactly symmetric. a: (n, d)."""
    out = empty(a.shape[1], a.shape[1], like=a)
    gram_into(array(a), out)
    return tensor(out)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, broadcasting leading dimensions as torch does."""
    return tensor(np.matmul(array(a), array(b))) if a.device.type == "cpu" else torch.matmul(a, b)


def eigh(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues (d,) and eigenvectors (d, d) of a symmetric matrix."""
    if a.device.type == "cpu":
        eigvals, eigvecs = np.linalg.eigh(array(a))
        return tensor(eigvals), tensor(eigvecs)
    eigvals, eigvecs = torch.linalg.eigh(a)
    return eigvals, eigvecs


def solve(a: Tensor, b: Tensor) -> Tensor:
    """Return the solution of a square system a x = b."""
    if a.device.type == "cpu":
        return tensor(np.linalg.solve(array(a), array(b)))
    x: Tensor = torch.linalg.solve(a, b)
    return x


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin singular value decomposition: U, σ, Vᵀ."""
    if a.device.type == "cpu":
        left, sigma, right = np.linalg.svd(array(a), full_matrices=False)
        return tensor(left), tensor(sigma), tensor(right)
    result: tuple[Tensor, Tensor, Tensor] = torch.linalg.svd(a, full_matrices=False)
    return result


def cholesky_inverse(a: Tensor) -> Tensor | None:
    """Return the inverse of a symmetric matrix, or None if it is not positive definite to rounding."""
    # NumPy offers no inverse from a Cholesky factor. A large matrix is worth the wait for torch's threads.
    held = a.device.type == "cpu" and a.shape[0] >= _LARGE and torch.get_num_threads() < _threads
    if held:
        torch.set_num_threads(_threads)
    factor, info = torch.linalg.cholesky_ex(a)
    inverse = torch.cholesky_inverse(factor) if int(info) == 0 else None
    if held:
        torch.set_num_threads(1)
    return inverse


def qr(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the thin QR factors."""
    if a.device.type == "cpu":
        q, r = np.linalg.qr(array(a))
        return tensor(q), tensor(r)
    result: tuple[Tensor, Tensor] = torch.linalg.qr(a)
    return result


def triangle(a: Tensor) -> Tensor:
    """Return the R of a QR factorization alone."""
    if a.device.type == "cpu":
        return tensor(np.linalg.qr(array(a), mode="r"))
    r: Tensor = torch.linalg.qr(a, mode="r")[1]
    return r
