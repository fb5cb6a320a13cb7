"""Answers built another way than the package builds them: exact planted factors, long arithmetic, plain refits."""

from typing import NamedTuple

import mpmath
import numpy as np
import torch
from torch import Tensor


class Planted(NamedTuple):
    """A problem whose centred X is H_n diag(sigma) H_d with Hadamard factors: exact in float64, and so is its SVD."""

    X: Tensor  # (n, d)
    y: Tensor  # (n, t)
    left: Tensor  # (n, m) orthonormal
    sigma: Tensor  # (m,) singular values, descending
    right: Tensor  # (d, m) orthonormal

    def weight(self, alpha: float) -> Tensor:
        """Return the ridge weights (t, d); those of minimum norm at alpha = 0."""
        total = self.sigma**2 + alpha
        shrunk = torch.where(total > 0, self.sigma / torch.where(total > 0, total, 1), 0.0)
        return (self.right @ (shrunk[:, None] * (self.left.T @ self.y))).T

    def condition(self, alpha: float) -> float:
        """Return the condition number of S + alpha I, over the range of S where alpha is zero."""
        d = self.X.shape[1]
        positive = self.sigma[self.sigma > 0]
        full = len(positive) == d
        low = float(positive[-1]) ** 2 if full or alpha == 0 else 0.0
        return (float(self.sigma[0]) ** 2 + alpha) / (low + alpha)


def _hadamard(n: int) -> Tensor:
    assert n & (n - 1) == 0, "a power of two"
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def planted(
    n: int, d: int, t: int = 2, *, decades: float = 2.0, rank: int | None = None, mean: float = 0.0, seed: int = 0
) -> Planted:
    """Return a problem with n, d powers of two and singular values that fall over so many decades.

    The first Hadamard column is constant, so it is left out of H_n and the columns of X are centred exactly. The
    targets are unrelated noise beside a signal: the residual is large.
    """
    m = min(n - 1, d)
    scale = torch.exp2(-torch.linspace(0, decades * 3.3219280948873626, m, dtype=torch.float64).round())
    scale[m if rank is None else rank :] = 0
    left, right = _hadamard(n)[:, 1 : m + 1], _hadamard(d)[:, :m]
    X = (left * scale) @ right.T
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(-512, 512, (n, t), generator=generator).double() / 256
    signal = (left * scale.clamp_min(2.0**-8) * (scale > 0)).sum(1, keepdim=True)
    y = y + (signal * 16).round() / 16
    sigma = scale * float(n * d) ** 0.5
    return Planted(X + mean, y, left / float(n) ** 0.5, sigma, right / float(d) ** 0.5)


def exact_ridge(
    X: Tensor,
    y: Tensor,
    alpha: float,
    *,
    sample_weight: Tensor | None = None,
    penalty: Tensor | None = None,
    prior: Tensor | None = None,
    intercept: bool = True,
    standardize: bool = False,
    digits: int = 80,
) -> tuple[Tensor, Tensor]:
    """Solve the normal equations of the floats as they are given, in `digits` digits: weight (t, d) and bias (t,)."""
    with mpmath.workdps(digits):
        n, d = X.shape
        a, b = mpmath.matrix(X.double().tolist()), mpmath.matrix(y.double().reshape(n, -1).tolist())
        t = b.cols
        s = [mpmath.mpf(1)] * n if sample_weight is None else [mpmath.mpf(v) for v in sample_weight.double().tolist()]
        total = mpmath.fsum(s)
        means = [mpmath.fsum(s[i] * a[i, j] for i in range(n)) / total for j in range(d)]
        mean_y = [
            mpmath.fsum(s[i] * b[i, k] for i in range(n)) / total if intercept else mpmath.mpf(0) for k in range(t)
        ]
        factors = [mpmath.mpf(1)] * d if penalty is None else [mpmath.mpf(v) for v in penalty.double().tolist()]
        if standardize:
            spread = [mpmath.fsum(s[i] * (a[i, j] - means[j]) ** 2 for i in range(n)) / total for j in range(d)]
            factors = [f * v for f, v in zip(factors, spread, strict=True)]
        center = means if intercept else [mpmath.mpf(0)] * d
        start = mpmath.matrix(d, t) if prior is None else mpmath.matrix(prior.double().expand(t, d).T.tolist())
        for i in range(n):
            for j in range(d):
                a[i, j] -= center[j]
            for k in range(t):
                b[i, k] -= mean_y[k]
        scaled = mpmath.matrix(n, d)
        for i in range(n):
            for j in range(d):
                scaled[i, j] = s[i] * a[i, j]
        gram, right = scaled.T * a, scaled.T * b
        for j in range(d):
            gram[j, j] += mpmath.mpf(float(alpha)) * factors[j]
            for k in range(t):
                right[j, k] += mpmath.mpf(float(alpha)) * factors[j] * start[j, k]
        columns = [mpmath.lu_solve(gram, right[:, k]) for k in range(t)]
        weight = torch.tensor([[float(c[j]) for j in range(d)] for c in columns], dtype=torch.float64)
        bias = [
            float(mean_y[k] - mpmath.fsum(center[j] * columns[k][j] for j in range(d))) if intercept else 0.0
            for k in range(t)
        ]
        return weight, torch.tensor(bias, dtype=torch.float64)


def least_norm(X: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Return the least-squares weights of minimum norm with an intercept, (t, d), by NumPy's pseudoinverse."""
    s = torch.ones_like(X[:, 0]) if sample_weight is None else sample_weight
    share, root = s / s.sum(), s.sqrt()[:, None]
    x, z = (X - share @ X) * root, (y - share @ y) * root
    return torch.from_numpy(np.linalg.pinv(x.numpy(), rcond=1e-12) @ z.numpy()).T


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors relative to the norm of the second."""
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected))
