"""What only CUDA devices choose, held to its oracles on the CPU: sliced products."""

import pytest
import torch
from oracles import relative
from pretended_cuda.marks import on_cuda

from torchridge import Moments, ridge_cv
from torchridge.solvers import device as rules
from torchridge.solvers.moments import float_slices as sliced

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")


def whole_numbers(n: int, d: int, bits: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(-(2**bits), 2**bits + 1, (n, d), generator=g)


def test_slices_of_whole_numbers_are_multiplied_without_any_rounding() -> None:
    z = whole_numbers(3000, 17, 20)
    z[:, 3] = 0
    exact = z.T @ z  # int64
    assert int(exact.max()) < 2**53 and sliced.gram(z.double(), 5).equal(exact.double())


def test_every_product_of_slices_is_exact_whatever_the_order_of_its_sum() -> None:
    z = torch.randn(1024, 8, dtype=torch.float64).clamp(-1, 1)
    z[:512] = 1.0  # the worst case: 2⁷ in every row
    for a in sliced.slices(z, 3):
        assert bool((a == a.round()).all()) and float(a.abs().max()) <= 2**7
        assert a.to(torch.bfloat16).float().equal(a), "8 bits: neither bfloat16 nor TF32 would round them"
        exact = a.double().T @ a.double()
        for order in (torch.arange(1024), torch.randperm(1024)):
            assert (a[order].T @ a[order]).double().equal(exact)


@pytest.mark.parametrize(("dtype", "slices"), [(torch.bfloat16, 3), (torch.float16, 3), (torch.float32, 4)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_sliced_moments_are_right_to_a_ten_millionth(
    dtype: torch.dtype, slices: int, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = (torch.randn(5000, 24) + mean).to(dtype)
    y, s = X[:, :2].float() + torch.randn(5000, 2), torch.rand(5000)
    want = Moments().update(X, y, s)
    monkeypatch.setattr(rules, "slices", lambda *_: slices)
    got = Moments().update(X, y, s)
    bound = 1e-7 if slices == 3 else 1e-9
    scale = want.gram.diagonal().sqrt()
    assert float(((got.gram - want.gram).abs() / (scale[:, None] * scale)).max()) <= bound
    assert relative(got.gram, want.gram) <= bound and relative(got.cross, want.cross) <= bound
    assert got.gram.equal(got.gram.T) and relative(got.mean, want.mean) <= 1e-12


def test_the_rule_slices_only_where_double_precision_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    for capability, slow in (((8, 0), False), ((9, 0), False), ((8, 6), True), ((8, 9), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        counts = [rules.slices(cuda, t, torch.float64) for t in (torch.bfloat16, torch.float32, torch.float64)]
        assert counts == ([3, 4, 0] if slow else [0, 0, 0])
        assert rules.slices(cuda, torch.bfloat16, torch.float32) == 0
        assert rules.slices(torch.device("cpu"), torch.bfloat16, torch.float64) == 0


@on_cuda
def test_on_cuda_folds_and_slices_agree_with_the_cpu(device: torch.device) -> None:
    X, y = torch.randn(4000, 600), torch.randn(4000, 3)
    ids, alphas = torch.arange(4000) % 5, torch.logspace(0, 4, 100, dtype=torch.float64)
    want = ridge_cv(Moments().update(X, y, fold=ids), alphas=alphas)
    got = ridge_cv(Moments().update(X.to(device), y.to(device), fold=ids.to(device)), alphas=alphas)
    assert relative(got.fold_scores.cpu(), want.fold_scores) <= 1e-8
    assert sliced.gram(X.to(device).double(), 4).cpu().equal(sliced.gram(X.double(), 4))
