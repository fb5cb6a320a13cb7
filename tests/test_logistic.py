"""L2 logistic regression against scikit-learn, its own gradient by autograd, and what must hold by symmetry."""

import math
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from shared_answers import shared
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from torchridge.exceptions import ConvergenceWarning
from torchridge.linear.logistic.logistic import logistic

STRENGTHS = np.logspace(-5, 3, 20)


def planted(n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian rows with a falling spectrum, off centre, and labels drawn from a softmax, every class present."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.5 + 1.0
    y = (X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k))).argmax(1)
    y[:k] = np.arange(k)
    return torch.tensor(X), torch.tensor(y)


def breast_cancer() -> tuple[Tensor, Tensor]:
    X, y = load_breast_cancer(return_X_y=True)
    return torch.tensor(StandardScaler().fit_transform(X)), torch.tensor(y)


def digits() -> tuple[Tensor, Tensor]:
    return tuple(torch.tensor(a) for a in load_digits(return_X_y=True))  # type: ignore[return-value]


def objective(
    X: Tensor, y: Tensor, weight: Tensor, bias: Tensor, C: float, sample_weight: Tensor | None = None
) -> Tensor:
    logits = X @ weight.mT + bias
    each = (
        functional.binary_cross_entropy_with_logits(logits[:, 0], y.to(X.dtype), reduction="none")
        if len(weight) == 1
        else functional.cross_entropy(logits, y, reduction="none")
    )
    each = each if sample_weight is None else each * sample_weight
    return C * each.sum() + 0.5 * weight.square().sum()


def scikit_learn(X: Tensor, y: Tensor, C: float, **options: object) -> LogisticRegression:
    weight = options.pop("sample_weight", None)
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=500, **options)
    return model.fit(X.numpy(), y.numpy(), sample_weight=None if weight is None else weight.numpy())


def relative_gap(X: Tensor, y: Tensor, weight: Tensor, bias: Tensor, C: float) -> float:
    peer = scikit_learn(X, y, C)
    best = objective(X, y, torch.tensor(peer.coef_), torch.tensor(peer.intercept_), C)
    return float(objective(X, y, weight, bias, C) / best - 1)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "d", "k"), [(200, 6, 2), (200, 6, 4), (20, 50, 3)])
def test_coefficients_equal_scikit_learn(device: torch.device, n: int, d: int, k: int, intercept: bool) -> None:
    X, y = planted(n, d, k)
    sample_weight = torch.randint(0, 4, (n,)).double()
    sample_weight[:k] = 1
    ours = logistic(
        X.to(device),
        y.to(device),
        0.3,
        sample_weight=sample_weight.to(device),
        fit_intercept=intercept,
        tol=1e-13,
    )
    peer = scikit_learn(X, y, 0.3, fit_intercept=intercept, sample_weight=sample_weight)
    np.testing.assert_allclose(ours.weight.cpu().numpy(), peer.coef_, atol=tolerances.LOGISTIC_WEIGHT)
    np.testing.assert_allclose(ours.bias.cpu().numpy(), peer.intercept_ + 0 * ours.bias.cpu().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X.to(device)).cpu().numpy(), peer.predict_proba(X.numpy()), atol=1e-5)
    assert np.array_equal(ours.predict(X.to(device)).cpu().numpy(), peer.predict(X.numpy()))


DATA = {
    "breast cancer": breast_cancer,
    "ten classes": lambda: planted(600, 12, 10),
    "digits": digits,
    "a hundred classes": lambda: planted(1500, 5, 100),
}


@shared
def least_objectives(data: str) -> list[float]:
    """Of scikit-learn along the path. Its own warm start takes nothing from ours, and a third of the time."""
    X, y = DATA[data]()
    peer = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=500, warm_start=True)
    least = []
    for C in STRENGTHS:
        peer.set_params(C=C).fit(X.numpy(), y.numpy())
        least.append(float(objective(X, y, torch.tensor(peer.coef_), torch.tensor(peer.intercept_), C)))
    return least


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
def test_the_whole_path_reaches_the_optimum(device: torch.device, data: str) -> None:
    X, y = DATA[data]()
    path = logistic(X.to(device), y.to(device), torch.tensor(STRENGTHS, device=device))
    assert bool(path.converged.all())
    for i, (C, best) in enumerate(zip(STRENGTHS, least_objectives(data), strict=True)):
        found = float(objective(X, y, path.weight[i].cpu(), path.bias[i].cpu(), C) / best - 1)
        assert found < tolerances.OBJECTIVE, (C, found)


def test_float32_stops_within_its_gap(device: torch.device) -> None:
    X, y = planted(400, 10, 3)
    path = logistic(X.float().to(device), y.to(device), STRENGTHS.tolist())
    assert path.weight.dtype is torch.float32
    for i, C in enumerate(STRENGTHS):
        weight, bias = path.weight[i].double().cpu(), path.bias[i].double().cpu()
        assert relative_gap(X.float().double(), y, weight, bias, C) < 1e-6


def scales() -> tuple[Tensor, Tensor]:
    """Columns over six decades."""
    rng = np.random.default_rng(10)
    X = rng.standard_normal((600, 8))
    y = (X @ rng.standard_normal((8, 4)) * 3 + rng.gumbel(size=(600, 4))).argmax(1)
    return torch.tensor(X * np.logspace(-3, 3, 8)), torch.tensor(y)


def rare_flags() -> tuple[Tensor, Tensor]:
    """Columns of 0 and 1, most rows alike, separable: probabilities within 1e-6 of 1."""
    rng = np.random.default_rng(1)
    X = (rng.random((1000, 6)) < 0.02).astype(float)
    return torch.tensor(X), torch.tensor((X @ rng.standard_normal((6, 3)) * 9).argmax(1))


@pytest.mark.parametrize("tol", [1e-5, 1e-6, 1e-7])
@pytest.mark.parametrize("data", [scales, rare_flags])
def test_converged_keeps_its_promise_where_the_hessian_is_close_to_singular(data: Any, tol: float) -> None:
    X, y = data()
    path = logistic(X, y, [1e2, 1e4], tol=tol)
    assert bool(path.converged.all())
    for i, C in enumerate((1e2, 1e4)):
        assert relative_gap(X, y, path.weight[i], path.bias[i], C) <= tol


def test_more_parameters_than_rows_reach_the_gap_in_float32(device: torch.device) -> None:
    """Separable, c·q above what Newton's method is used for: blocks, extrapolation, losses far below 1."""
    X, y = planted(400, 120, 30)
    path = logistic(X.float().to(device), y.to(device), [0.1, 1.0, 10.0, 100.0, 1000.0])
    exact = logistic(X.float().double().to(device), y.to(device), [0.1, 1.0, 10.0, 100.0, 1000.0], tol=1e-11)
    assert bool(path.separated[-1])
    assert bool(path.converged.all())
    assert bool(exact.converged.all())
    for i, C in enumerate([0.1, 1.0, 10.0, 100.0, 1000.0]):
        W, b = (t[i].cpu().requires_grad_() for t in (exact.weight, exact.bias))
        optimum = objective(X.float().double(), y, W, b, C)
        grads = torch.autograd.grad(optimum, [W, b])
        best = float(optimum.detach())
        value = objective(X.float().double(), y, path.weight[i].double().cpu(), path.bias[i].double().cpu(), C)
        assert float(value) / best - 1 < 1e-6
        # The penalty is strongly convex, so that the square of the gradient bounds what the reference lacks.
        assert float(sum(g.square().sum() for g in grads)) / 2 < 1e-7 * best


def test_the_gradient_vanishes_by_autograd(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(150, 5, 3))
    solution = logistic(X, y, 2.0, tol=1e-14)
    weight, bias = solution.weight.clone().requires_grad_(), solution.bias.clone().requires_grad_()
    value = objective(X, y, weight, bias, 2.0)
    value_ = float(value.detach())
    for grad in torch.autograd.grad(value, [weight, bias]):
        assert float(grad.abs().max()) < 1e-5 * value_
    torch.testing.assert_close(float(solution.objective), value_, rtol=1e-12, atol=0)


def test_warm_start_does_not_stop_early_at_the_weak_end(device: torch.device) -> None:
    """An absolute gradient tolerance stops at once there, far above the optimum."""
    X, y = planted(300, 5, 2)
    tiny = X * 1e-4
    path = logistic(tiny.to(device), y.to(device), [1e-5, 1e8])
    alone = logistic(tiny.to(device), y.to(device), 1e8)
    torch.testing.assert_close(path.objective[1], alone.objective, rtol=1e-9, atol=0)


@pytest.mark.parametrize("k", [2, 4])
def test_weight_two_is_the_row_twice_and_zero_is_none(device: torch.device, k: int) -> None:
    X, y = (t.to(device) for t in planted(80, 4, k))
    count = torch.ones(80, device=device)
    count[10:30], count[40:50] = 2, 0
    weighted = logistic(X, y, 1.0, sample_weight=count, tol=1e-14)
    repeat = torch.repeat_interleave(torch.arange(80, device=device), count.long())
    repeated = logistic(X[repeat], y[repeat], 1.0, tol=1e-14)
    torch.testing.assert_close(weighted.weight, repeated.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(weighted.objective, repeated.objective, rtol=1e-10, atol=0)


def test_order_of_classes_rows_and_strengths_does_not_matter(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(120, 4, 3))
    one = logistic(X, y, [0.1, 10.0], tol=1e-14)
    shuffled = torch.randperm(120, device=device)
    other = logistic(X[shuffled], 2 - y[shuffled], [10.0, 0.1], tol=1e-14)
    torch.testing.assert_close(other.weight.flip(0).flip(1), one.weight, rtol=0, atol=1e-5)


def test_every_head_equals_its_own_fit(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(120, 4, 4))
    two = torch.where(y > 1, 3, 0)  # the second head lacks two of the classes
    heads = logistic(X, torch.stack([y, two], 1), [0.1, 1.0], tol=1e-14)
    assert heads.weight.shape == (2, 2, 4, 4)
    first, second = logistic(X, y, [0.1, 1.0], tol=1e-14), logistic(X, two, [0.1, 1.0], tol=1e-14)
    torch.testing.assert_close(heads.weight[:, 0], first.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(heads.objective[:, 1], second.objective, rtol=1e-9, atol=0)
    proba = heads.predict_proba(X)
    assert proba.shape == (2, 120, 2, 4)
    torch.testing.assert_close(proba[:, :, 1, [0, 3]], second.predict_proba(X), rtol=0, atol=1e-5)
    assert bool((proba[:, :, 1, 1:3] == 0).all())


def test_chunks_of_rows_change_nothing(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(100, 4, 3))
    whole = logistic(X, y, [0.1, 1.0], tol=1e-12)
    pieces = logistic(X, y, [0.1, 1.0], tol=1e-12, max_elements=50)
    torch.testing.assert_close(pieces.weight, whole.weight, rtol=0, atol=1e-6)


def test_separable_classes_have_a_finite_answer_that_says_so(device: torch.device) -> None:
    X = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64, device=device)
    y = torch.tensor([0, 0, 1, 1], device=device)
    solution = logistic(X, y, 100.0)
    assert bool(solution.separated) and bool(solution.converged)
    assert not bool(logistic(X, y.roll(1), 100.0).separated)
    assert relative_gap(X.cpu(), y.cpu(), solution.weight.cpu(), solution.bias.cpu(), 100.0) < tolerances.OBJECTIVE


def test_collinear_features_share_their_weight(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(100, 3, 3))
    constant = torch.ones(100, 1, dtype=torch.float64, device=device)
    solution = logistic(torch.cat([X, X[:, :1], constant], 1), y, 1.0, tol=1e-14)
    torch.testing.assert_close(solution.weight[:, 0], solution.weight[:, 3], rtol=0, atol=1e-8)
    assert float(solution.weight[:, 4].abs().max()) < 1e-8


def test_a_class_without_weight_has_probability_zero(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(100, 3, 4))
    present = logistic(X, y, 1.0, sample_weight=(y != 2).double(), tol=1e-14)
    without = logistic(X[y != 2], y[y != 2], 1.0, tol=1e-14)
    assert bool((present.predict_proba(X)[:, 2] == 0).all())
    torch.testing.assert_close(present.predict_proba(X)[:, [0, 1, 3]], without.predict_proba(X), rtol=0, atol=1e-6)


def test_a_large_mean_costs_no_digits_in_float32(device: torch.device) -> None:
    X, y = planted(300, 4, 2)
    far = (X + 1000).float()
    solution = logistic(far.to(device), y.to(device), 1.0, dtype=torch.float64, tol=1e-6)
    weight, bias = solution.weight.cpu(), solution.bias.cpu()
    assert relative_gap(far.double(), y, weight, bias, 1.0) < 1e-6


def test_strength_is_the_factor_beside_the_mean_loss(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(100, 3, 2))
    torch.testing.assert_close(logistic(X, y, strength=0.01).weight, logistic(X, y, 1 / (2 * 100 * 0.01)).weight)


def test_to_linear_gives_the_logits(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(60, 3, 3))
    path = logistic(X, y, [0.1, 1.0])
    torch.testing.assert_close(path.at(1).to_linear()(X), path.decision_function(X)[1])
    with pytest.raises(ValueError, match="Pick one"):
        path.to_linear()
    with pytest.raises(ValueError, match="path"):
        path.at(0).at(0)


def test_stopping_early_warns_and_shows(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(100, 5, 3))
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        solution = logistic(X, y, 1e3, max_iter=2)
    assert not bool(solution.converged)


GOOD_X, GOOD_Y = torch.eye(4), torch.tensor([0, 1, 0, 1])
BAD = [
    ({"X": [[1.0]]}, TypeError, "`X` should be a torch.Tensor"),
    ({"X": torch.ones(4)}, ValueError, r"`X` should have shape \(n, d\)"),
    ({"X": torch.full((4, 4), math.nan)}, ValueError, "`X` holds NaN, first in row 0"),
    ({"X": torch.ones(0, 4)}, ValueError, "`X` is empty"),
    ({"X": torch.ones(3, 4)}, ValueError, "`y` has 4 rows"),
    ({"X": torch.ones(4, 4, dtype=torch.complex64)}, TypeError, "`X` should be real"),
    ({"y": GOOD_Y.float()}, TypeError, r"`y.long\(\)`"),
    ({"y": torch.zeros(4, dtype=torch.long)}, ValueError, "one class only"),
    ({"y": torch.stack([GOOD_Y, GOOD_Y * 0], 1)}, ValueError, "column 1 of `y`"),
    ({"y": GOOD_Y.reshape(4, 1, 1)}, ValueError, "`y` should have shape"),
    ({"C": 0.0}, ValueError, "`C` should be above 0"),
    ({"C": [1.0, math.nan]}, ValueError, "`C` should be above 0"),
    ({"C": "strong"}, TypeError, "`C` should be a number"),
    ({"C": []}, ValueError, "`C` should be a number"),
    ({"C": 1.0, "strength": 1.0}, ValueError, "Pass one of them"),
    ({"strength": -1.0}, ValueError, "`strength` should be finite and at least 0"),
    ({"strength": math.inf}, ValueError, "`strength` should be finite"),
    ({"sample_weight": torch.ones(3)}, ValueError, "`sample_weight` should have shape"),
    ({"sample_weight": -torch.ones(4)}, ValueError, "`sample_weight` should not be negative"),
    ({"sample_weight": torch.zeros(4)}, ValueError, "`sample_weight` is zero"),
    ({"sample_weight": torch.tensor([1.0, 0, 1, 0])}, ValueError, "one class only"),
    ({"fit_intercept": "yes"}, ValueError, "`fit_intercept`"),
    ({"tol": 0.0}, ValueError, "`tol`"),
    ({"max_iter": 0}, ValueError, "`max_iter`"),
    ({"max_elements": 0}, ValueError, "`max_elements`"),
    ({"dtype": torch.float16}, ValueError, "`dtype`"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logistic(**{"X": GOOD_X, "y": GOOD_Y, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "d", "classes"), [(300, 40, 2), (60, 200, 2), (1000, 50, 10)], ids=["primal", "dual", "descent"]
)
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("unit", [1.0, 1e-15, 1e25])
def test_what_goes_in_float32_first_ends_in_float64(n: int, d: int, classes: int, C: float, unit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = (X[:, :classes] + torch.randn(n, classes, generator=generator, dtype=torch.float64)).argmax(1)
    found = logistic(X * unit, y, C / unit**2, tol=1e-10)
    logits = (X * unit) @ found.weight.mT + found.bias
    logits = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 2 else logits
    wrong = logits.softmax(1) - torch.nn.functional.one_hot(y, classes)
    wrong = wrong[:, 1:] if classes == 2 else wrong
    gradient = wrong.mT @ X * (C / unit) + found.weight
    gap = 0.5 * float(gradient.square().sum())  # the objective is 1-strongly convex in the weights
    assert bool(found.converged)
    assert gap <= 1e-6 * float(found.objective)
    if classes > 2:
        assert float(found.weight.sum(0).abs().max()) <= 1e-12 * float(found.weight.abs().max())
