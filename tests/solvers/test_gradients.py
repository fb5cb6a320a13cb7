"""Derivatives of the closed form: gradcheck, gradgradcheck, transforms, compilation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import relative
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torchridge import RidgeSolution, ridge, ridge_cv, ridge_path
from torchridge.exceptions import IllConditionedWarning

SHAPES = {"primal": (7, 3), "dual": (4, 6), "batch": (2, 6, 3), "wide batch": (2, 3, 5)}


def tensors(shape: tuple[int, ...], t: int, device: torch.device) -> list[Tensor]:
    """Return X, y, sample weights, penalty factors and prior that ask for gradients."""
    generator = torch.Generator().manual_seed(4)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device)

    *batch, n, d = shape
    positive = [(normal(*size) / 2).exp() for size in ((*batch, n), (d,))]
    return [v.requires_grad_() for v in (normal(*shape) + 1, normal(*batch, n, t), *positive, normal(t, d))]


def outputs(solution: RidgeSolution) -> tuple[Tensor, Tensor]:
    return solution.weight, solution.bias


def whole(**options: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def solve(X: Tensor, y: Tensor, alpha: Tensor, s: Tensor, penalty: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        given = {"sample_weight": s, "penalty_factors": penalty, "prior": prior}
        return outputs(ridge(X, y, alpha, **given, **options))

    return solve


OPTIONS: dict[str, dict[str, Any]] = {
    "intercept": {},
    "no intercept": {"fit_intercept": False},
    "standardize": {"standardize": True},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_in_every_argument(shape: str, per_target: bool, options: str, device: torch.device) -> None:
    X, y, s, penalty, prior = tensors(SHAPES[shape], 2, device)
    alpha = torch.tensor([0.7, 1.5] if per_target and X.ndim == 2 else 0.7, dtype=torch.float64, device=device)
    if per_target and X.ndim > 2:
        alpha = torch.tensor([[0.7, 1.5], [1.0, 2.0]], dtype=torch.float64, device=device)
    assert gradcheck(whole(**OPTIONS[options]), (X, y, alpha.requires_grad_(), s, penalty, prior))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", ["primal", "dual", "batch"])
def test_second_derivatives_in_every_argument(shape: str, options: str, device: torch.device) -> None:
    arguments = tensors(SHAPES[shape], 1, device)
    alpha = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    assert gradgradcheck(whole(**OPTIONS[options]), (*arguments[:2], alpha, *arguments[2:]))


@pytest.mark.parametrize("shape", ["primal", "dual"])
def test_gradients_without_weights(shape: str, device: torch.device) -> None:
    X, y, *_ = tensors(SHAPES[shape], 2, device)
    alpha = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
    plain: Callable[..., tuple[Tensor, Tensor]] = lambda *a: outputs(ridge(*a))  # noqa: E731
    assert gradcheck(plain, (X, y, alpha))
    assert gradgradcheck(plain, (X, y, alpha))


def test_gradients_of_a_path(device: torch.device) -> None:
    X, y, *_ = tensors((6, 3), 2, device)
    alphas = torch.tensor([0.3, 1.0, 9.0], dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda *a: outputs(ridge_path(*a)), (X, y, alphas))


def test_gradients_in_weights_that_are_zero(device: torch.device) -> None:
    X, y, s, *_ = tensors((4, 6), 1, device)
    s = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64, device=device, requires_grad=True)
    ridge(X, y, 1.0, sample_weight=s).weight.sum().backward()
    step = 1e-6 * torch.eye(4, dtype=torch.float64, device=device)[1]
    change = (
        ridge(X, y, 1.0, sample_weight=s.detach() + step).weight.sum() - ridge(X, y, 1.0, sample_weight=s).weight.sum()
    )
    assert s.grad is not None
    assert float(s.grad[1]) == pytest.approx(float(change.detach()) / 1e-6, rel=1e-4)


@pytest.mark.parametrize("shape", [(20, 5), (6, 15), (3, 20, 5), (2, 2, 6, 15)])
@pytest.mark.parametrize("options", OPTIONS)
def test_values_are_those_without_gradients(shape: tuple[int, ...], options: str, device: torch.device) -> None:
    X, y, s, penalty, prior = tensors(shape, 2, device)
    given = {"sample_weight": s, "penalty_factors": penalty, "prior": prior, **OPTIONS[options]}
    solution = ridge(X, y, 2.0, **given)
    plain = {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.items()}
    batch = shape[:-2]
    for i in range(int(torch.tensor(batch).prod()) if batch else 1):
        at = torch.unravel_index(torch.tensor(i), batch) if batch else ()
        own = plain | {"sample_weight": s.detach()[at]}
        single = ridge(X.detach()[at], y.detach()[at], 2.0, **own)
        torch.testing.assert_close(solution.bias[at], single.bias, rtol=1e-9, atol=1e-12)
        for name in ("weight", "dof", "residual_variance", "unit_variance"):
            assert relative(getattr(solution, name)[at], getattr(single, name)) <= 1e-9, name
        assert int(torch.as_tensor(solution.rank)[at]) == single.rank
        assert relative(torch.as_tensor(solution.condition)[at], torch.tensor(single.condition)) <= 1e-6


@pytest.mark.parametrize("shape", [(5, 20, 4), (5, 4, 9)])
def test_vmap_equals_a_loop(shape: tuple[int, ...], device: torch.device) -> None:
    X = torch.randn(shape, dtype=torch.float64, device=device)
    y = torch.randn(*shape[:2], 2, dtype=torch.float64, device=device)
    alpha = torch.rand(5, dtype=torch.float64, device=device)
    mapped = torch.func.vmap(lambda x, z, a: outputs(ridge(x, z, a)))(X, y, alpha)
    batched = ridge(X, y, alpha)
    for i in range(5):
        single = ridge(X[i], y[i], alpha[i])
        assert relative(mapped[0][i], single.weight) <= 1e-10
        assert relative(mapped[1][i], single.bias) <= 1e-10
        assert relative(batched.weight[i], single.weight) <= 1e-10


def test_functional_derivatives(device: torch.device) -> None:
    X, y, *_ = (v.detach() for v in tensors((8, 3), 1, device))
    loss: Callable[[Tensor], Tensor] = lambda a: (ridge(X, y, a).predict(X) - y).square().sum()  # noqa: E731
    alpha = torch.tensor(0.8, dtype=torch.float64, device=device)
    step = 1e-6
    slope = (loss(alpha + step) - loss(alpha - step)) / (2 * step)
    assert float(torch.func.grad(loss)(alpha)) == pytest.approx(float(slope), rel=1e-6)
    reverse = torch.func.jacrev(lambda z: ridge(X, z, 0.8).weight)(y)
    forward = torch.func.jacfwd(lambda z: ridge(X, z, 0.8).weight)(y)
    assert relative(reverse, forward) <= 1e-12
    many = torch.func.vmap(torch.func.grad(loss))(torch.stack([alpha, 2 * alpha]))
    assert float(many[0]) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", [(20, 4), (4, 9)])
def test_compiled_without_a_graph_break(shape: tuple[int, int], backend: str, device: torch.device) -> None:
    torch._dynamo.reset()
    X = torch.randn(shape, dtype=torch.float64, device=device)
    y = torch.randn(shape[0], 2, dtype=torch.float64, device=device)
    compiled = torch.compile(lambda a, b: ridge(a, b, 1.0).weight, fullgraph=True, backend=backend)
    assert relative(compiled(X, y), ridge(X, y, 1.0).weight) <= 1e-10


def test_a_compiled_gradient(device: torch.device) -> None:
    torch._dynamo.reset()
    X = torch.randn(12, 4, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(12, dtype=torch.float64, device=device)
    compiled = torch.compile(lambda a, b: ridge(a, b, 1.0).weight.square().sum(), fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(X, y), X)
    (expected,) = torch.autograd.grad(ridge(X, y, 1.0).weight.square().sum(), X)
    assert relative(got, expected) <= 1e-10


def test_cross_validation_chooses_without_and_fits_with_gradients(device: torch.device) -> None:
    X, y, *_ = tensors((30, 3), 2, device)
    solution = ridge_cv(X, y, [0.1, 1.0, 10.0, 1e3], cv=5)
    expected = ridge_cv(X.detach(), y.detach(), [0.1, 1.0, 10.0, 1e3], cv=5)
    assert solution.alpha == expected.alpha
    assert relative(solution.weight, expected.weight) <= 1e-10
    (got,) = torch.autograd.grad(solution.weight.sum(), X)
    (direct,) = torch.autograd.grad(ridge(X, y, expected.alpha).weight.sum(), X)
    assert relative(got, direct) <= 1e-12


def test_a_singular_problem_under_autograd_is_refused(device: torch.device) -> None:
    X = torch.randn(10, 3, dtype=torch.float64, device=device)
    X = torch.cat([X, X @ torch.randn(3, 2, dtype=torch.float64, device=device)], 1).requires_grad_()
    y = torch.randn(10, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="`alpha` is too weak"):
        ridge(X, y, 0.0)
    with pytest.raises(ValueError, match="`alpha` is too weak"):
        ridge(torch.randn(4, 9, dtype=torch.float64, device=device, requires_grad=True), y[:4], 0.0, fit_intercept=True)


def test_digits_lost_under_autograd_are_told(device: torch.device) -> None:
    X = torch.randn(30, 3, dtype=torch.float64, device=device)
    X[:, 2] = X[:, 1] + 1e-6 * X[:, 2]
    with pytest.warns(IllConditionedWarning, match="condition number"):
        ridge(X.requires_grad_(), torch.randn(30, dtype=torch.float64, device=device), 0.0)
