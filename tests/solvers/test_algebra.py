"""Symmetric products, Cholesky factors and their condition, against plain torch and 2-norms."""

import pytest
import torch
from oracles import relative

from torchridge.solvers import algebra


@pytest.mark.parametrize("d", [1, 7, 64, 65, 200, 256, 257, 600])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gram_matrix_is_the_product_and_exactly_symmetric(d: int, dtype: torch.dtype, device: torch.device) -> None:
    a = torch.randn(300, d, dtype=dtype, device=device)
    got = algebra.gram(a)
    assert got.equal(got.T)
    assert relative(got.double(), a.double().T @ a.double()) <= 10 * torch.finfo(dtype).eps


def test_sums_of_products_are_mirrored_once(device: torch.device) -> None:
    a, b = torch.randn(2, 50, 300, dtype=torch.float64, device=device)
    total = torch.zeros(300, 300, dtype=torch.float64, device=device)
    algebra.add_gram(total, a)
    algebra.add_gram(total, b)
    both = algebra.mirror(total)
    assert both.equal(both.T) and relative(both, a.T @ a + b.T @ b) <= 1e-14


def hilbert(m: int) -> torch.Tensor:
    i = torch.arange(m, dtype=torch.float64)
    return 1 / (i[:, None] + i + 1)


def matrices(m: int) -> dict[str, torch.Tensor]:
    q, _ = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64))
    return {
        "random": torch.eye(m, dtype=torch.float64) + torch.cov(torch.randn(m, 3 * m, dtype=torch.float64)),
        "one small eigenvalue": q * torch.cat([torch.tensor([1e-9]), torch.ones(m - 1)]).double() @ q.T,
        "falling": q * torch.logspace(0, -8, m, dtype=torch.float64) @ q.T,
    }


@pytest.mark.parametrize("m", [5, 128, 129, 300])
@pytest.mark.parametrize("name", ["random", "one small eigenvalue", "falling"])
def test_the_condition_is_that_of_the_scaled_matrix(m: int, name: str, device: torch.device) -> None:
    matrix = matrices(m)[name].to(device)
    matrix = (matrix + matrix.T) / 2
    scale = matrix.diagonal().rsqrt()
    exact = float(torch.linalg.cond(matrix * scale * scale[:, None], 1))
    got = float(algebra.cholesky(matrix).condition())
    assert exact / 3 <= got <= exact * (1 + 1e-6)


def test_the_condition_does_not_know_units(device: torch.device) -> None:
    a = torch.randn(50, 6, dtype=torch.float64, device=device)
    units = torch.tensor([1e-9, 1e-3, 1.0, 1e3, 1e6, 1e9], dtype=torch.float64, device=device)
    plain, scaled = (algebra.cholesky(x.T @ x).condition() for x in (a, a * units))
    assert relative(scaled, plain) <= 1e-9


@pytest.mark.parametrize("m", [12, 200])
def test_what_is_not_positive_definite_says_so_beside_what_is(m: int, device: torch.device) -> None:
    good = torch.eye(m, dtype=torch.float64, device=device)
    bad = good.clone()
    bad[0, 1] = bad[1, 0] = 2.0
    factor = algebra.cholesky(torch.stack([good, bad]))
    assert (factor.info > 0).tolist() == [False, True]
    assert abs(float(factor.condition()[0]) - 1) <= 1e-12
    right = torch.ones(2, m, 1, dtype=torch.float64, device=device)
    assert factor.solve(right)[0].equal(right[0])
