import pytest
import torch
from torch import Tensor

from tests.tolerances import ROUNDED_ONCE
from torchridge.training.sums import sum_absolute, sum_squares


def exact(x: Tensor) -> float:
    """Σ x² in float64, block by block."""
    return sum(float(block.double().square().sum()) for block in x.reshape(-1).split(1 << 20))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "normal"])
def test_a_hundred_million_float32_elements_are_right_to_1e_6(kind: str) -> None:
    x = torch.full((10**8,), 0.0103) if kind == "constant" else torch.randn(10**8)
    want = exact(x)
    assert abs(float(sum_squares([x])) - want) < 1e-6 * want
    if kind == "constant":  # what is avoided: the obvious way is a percent off
        assert abs(float(torch.linalg.vector_norm(x) ** 2) - want) > 1e-3 * want


@pytest.mark.parametrize("value", [0.0103, 0.1234567, 0.7312, 3.3, 1e-9, 1e12])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 2**20 + 3])
def test_rounding_does_not_pile_up_in_equal_elements(value: float, size: int, device: torch.device) -> None:
    x = torch.full((size,), value, device=device)
    want = size * float(x[0].double()) ** 2
    assert float(sum_squares([x])) == pytest.approx(want, rel=ROUNDED_ONCE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_is_twice_the_strength_times_the_weight_to_the_last_bit(
    dtype: torch.dtype, device: torch.device
) -> None:
    w = torch.randn(37, 41, dtype=dtype, device=device, requires_grad=True)
    (0.01 * sum_squares([w])).backward()
    wide = w.detach().to(torch.float64 if dtype == torch.float64 else torch.float32)
    assert w.grad is not None
    assert torch.equal(w.grad, (2 * 0.01 * wide).to(dtype))


def test_complex_counts_by_its_modulus(device: torch.device) -> None:
    z = torch.randn(3, 4, dtype=torch.complex64, device=device, requires_grad=True)
    total = sum_squares([z])
    total.backward()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), z.detach().cdouble().abs().square().sum(), rtol=1e-6, atol=0)
    assert z.grad is not None
    assert torch.equal(z.grad, 2 * z.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_first_and_second_derivatives(dtype: torch.dtype, device: torch.device) -> None:
    tensors = [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in [(3, 2), (), (5,)]]
    assert torch.autograd.gradcheck(lambda *ts: 0.3 * sum_squares(ts), tensors)
    assert torch.autograd.gradgradcheck(lambda *ts: sum_squares(ts).square(), tensors)


def test_layouts_that_are_not_row_major_are_read_where_they_lie(device: torch.device) -> None:
    base = torch.randn(6, 5, 4, 3, device=device)
    for x in (base.to(memory_format=torch.channels_last), base.transpose(0, 2), base[:, ::2], base[..., 0]):
        x = x.detach().requires_grad_()
        total = sum_squares([x])
        total.backward()
        assert total.item() == pytest.approx(exact(x.detach().contiguous()), rel=ROUNDED_ONCE)
        torch.testing.assert_close(x.grad, 2 * x.detach())


def test_mixed_dtypes_are_summed_in_the_widest(device: torch.device) -> None:
    tensors = [torch.randn(300, device=device, dtype=d) for d in (torch.bfloat16, torch.float64, torch.float32)]
    total = sum_squares(tensors)
    assert total.dtype == torch.float64
    assert float(total) == pytest.approx(sum(exact(t) for t in tensors), rel=1e-7)


def test_a_frozen_tensor_gets_no_gradient() -> None:
    free, frozen = torch.randn(4, requires_grad=True), torch.randn(4)
    sum_squares([frozen, free]).backward()
    assert frozen.grad is None
    assert free.grad is not None


def test_transforms_and_forward_mode_see_through() -> None:
    w = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.grad(lambda w: sum_squares([w]))(w), 2 * w)
    torch.testing.assert_close(torch.func.vmap(lambda w: sum_squares([w]))(w), w.square().sum(1))
    torch.testing.assert_close(torch.func.jvp(lambda w: sum_squares([w]), (w,), (w,))[1], 2 * w.square().sum())
    torch.testing.assert_close(
        torch.func.hessian(lambda w: sum_squares([w]))(w[0]), 2 * torch.eye(3, dtype=torch.float64)
    )


def test_absolute_values_are_summed_in_at_least_float32() -> None:
    x = torch.full((4096,), -0.1, dtype=torch.bfloat16)
    assert float(sum_absolute(x)) == pytest.approx(4096 * -float(x[0]), rel=1e-6)
    assert sum_absolute(torch.tensor([3.0 + 4.0j])) == 5.0
