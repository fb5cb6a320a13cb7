"""Every convention against the library it names, or, where that is not at hand, against its written objective."""

import itertools
import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchridge.strength import CONVENTIONS, convert_strength

LAM = 0.03
FACTS: dict[str, Any] = {
    "n_samples": 40,
    "n_targets": 3,
    "sample_weight_sum": 31.5,
    "target_std": 1.7,
    "feature_std": 0.6,
}


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 4)) * [1.0, 2.0, 0.5, 1.5] + 1
    return X, X @ [1.0, -2.0, 0.5, 0.0] + rng.standard_normal(60), rng.uniform(0.2, 2.0, 60)


def pivot(X: np.ndarray, y: np.ndarray, lam: Any, s: np.ndarray | None = None) -> np.ndarray:
    """Minimize Σ s e² / Σ s + Σ λ_j w_j² by its normal equations."""
    share = np.full(len(X), 1 / len(X)) if s is None else s / s.sum()
    X, y = X - share @ X, y - share @ y
    return np.linalg.solve(X.T @ (share[:, None] * X) + np.diag(np.broadcast_to(lam, X.shape[1])), X.T @ (share * y))


def minimized(loss: Any, d: int) -> np.ndarray:
    """Minimize a written objective of (w, b) in float64."""
    w, b = torch.zeros(d, dtype=torch.float64, requires_grad=True), torch.zeros((), dtype=torch.float64)
    b.requires_grad_()
    solver = torch.optim.LBFGS(
        [w, b], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(w, b)
        value.backward()
        return value

    solver.step(closure)
    return w.detach().numpy()


def test_sklearn_ridge() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y, s = data()
    alpha = convert_strength(LAM, source="lambda", target="sklearn", n_samples=60)
    np.testing.assert_allclose(linear_model.Ridge(alpha).fit(X, y).coef_, pivot(X, y, LAM), rtol=1e-10)
    alpha = convert_strength(LAM, source="lambda", target="sklearn", n_samples=60, sample_weight_sum=s.sum())
    np.testing.assert_allclose(linear_model.Ridge(alpha).fit(X, y, s).coef_, pivot(X, y, LAM, s), rtol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_elastic_net(weighted: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y, s = data()
    weight, total = (s, float(s.sum())) if weighted else (None, None)
    alpha = convert_strength(LAM, source="lambda", target="elastic_net", n_samples=60, sample_weight_sum=total)
    model = linear_model.ElasticNet(alpha=alpha, l1_ratio=0, tol=1e-14, max_iter=100000)
    # With no L1 term its duality gap does not exist, and it says so.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.coef_, pivot(X, y, LAM, weight), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_sgd_regressor(weighted: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y, s = data()
    weight, total = (s, float(s.sum())) if weighted else (None, None)
    lam = 0.3  # strong, to tell Σ s from n by far more than the noise of SGD
    alpha = convert_strength(lam, source="lambda", target="sgd_regressor", n_samples=60, sample_weight_sum=total)
    model = linear_model.SGDRegressor(
        alpha=alpha, tol=None, max_iter=5000, learning_rate="invscaling", eta0=0.05, power_t=0.6, random_state=0
    )
    model.fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(model.coef_, pivot(X, y, lam, weight), atol=5e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_C(weighted: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y, s = data()
    label = (y > np.median(y)).astype(float)
    weight, total = (s, float(s.sum())) if weighted else (None, None)
    C = convert_strength(LAM, source="lambda", target="logistic_C", n_samples=60, sample_weight_sum=total)
    model = linear_model.LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12).fit(X, label, weight)
    rows, target = torch.from_numpy(X), torch.from_numpy(label)
    share = torch.full((60,), 1 / 60, dtype=torch.float64) if weight is None else torch.from_numpy(s / s.sum())

    def loss(w: Tensor, b: Tensor) -> Tensor:
        return (
            nn.functional.binary_cross_entropy_with_logits(rows @ w + b, target, share, reduction="sum")
            + LAM * (w**2).sum()
        )

    np.testing.assert_allclose(model.coef_[0], minimized(loss, 4), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_keras(k: int) -> None:
    keras = pytest.importorskip("keras")
    X, y, _ = data()
    Y = np.stack([y, *(np.roll(y, i) for i in range(1, k))], 1)
    kernel = np.random.default_rng(1).standard_normal((4, k))
    layer = keras.layers.Dense(k, kernel_regularizer=keras.regularizers.L2(LAM), dtype="float64")
    model = keras.Sequential([keras.Input((4,), dtype="float64"), layer])
    model.compile(loss="mse", optimizer="sgd")
    layer.set_weights([kernel, np.zeros(k)])
    lam = convert_strength(LAM, source="keras", target="lambda", n_targets=k)
    mean = ((X @ kernel - Y) ** 2).sum() / 60 + lam * (kernel**2).sum()  # the pivot; Keras takes the mean over outputs
    np.testing.assert_allclose(model.evaluate(X, Y, batch_size=60, verbose=0), mean / k, rtol=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("k", [1, 3])
def test_torch_weight_decay(optimizer: Any, k: int) -> None:
    X, y, _ = data()
    rows = torch.from_numpy(X)
    target = torch.stack([torch.from_numpy(np.roll(y, i)) for i in range(k)], 1)
    decay = convert_strength(LAM, source="lambda", target="torch", n_targets=k)
    mean_loss = convert_strength(LAM, source="lambda", target="mse_loss", n_targets=k)
    by_decay, by_penalty = (nn.Linear(4, k, dtype=torch.float64) for _ in range(2))
    by_penalty.load_state_dict(by_decay.state_dict())
    first = optimizer([{"params": [by_decay.weight], "weight_decay": decay}, {"params": [by_decay.bias]}], lr=0.01)
    second = optimizer(by_penalty.parameters(), lr=0.01)
    for _ in range(50):
        for model, step, lam in ((by_decay, first, 0.0), (by_penalty, second, mean_loss)):
            step.zero_grad()
            (nn.functional.mse_loss(model(rows), target) + lam * (model.weight**2).sum()).backward()
            step.step()
    torch.testing.assert_close(by_decay.weight, by_penalty.weight, rtol=1e-10, atol=1e-12)


def test_mse_loss_over_several_outputs_against_ridge() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y, _ = data()
    Y = np.stack([y, np.roll(y, 1), np.roll(y, 2)], 1)
    alpha = convert_strength(LAM, source="mse_loss", target="sklearn", n_samples=60, n_targets=3)
    assert alpha == pytest.approx(60 * 3 * LAM)
    model = linear_model.Ridge(alpha).fit(X, Y)
    w, b = (torch.tensor(v, requires_grad=True) for v in (model.coef_, model.intercept_))
    loss = nn.MSELoss()(torch.from_numpy(X) @ w.T + b, torch.from_numpy(Y)) + LAM * (w**2).sum()
    for gradient in torch.autograd.grad(loss, [w, b]):
        assert gradient.abs().max() < 1e-12


def test_lecture_form() -> None:
    X, y, _ = data()
    strength = convert_strength(LAM, source="lambda", target="lecture", n_samples=60)
    rows, target = torch.from_numpy(X), torch.from_numpy(y)

    def loss(w: Tensor, b: Tensor) -> Tensor:
        return (((rows @ w + b - target) ** 2).sum() + strength * (w**2).sum()) / (2 * 60)

    np.testing.assert_allclose(minimized(loss, 4), pivot(X, y, LAM), rtol=1e-7)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("convention", "ddof"), [("glmnet", 0), ("spark_linear", 0), ("spark_linear", 1)])
def test_glmnet_and_spark_scale_the_target_by_its_deviation(convention: str, ddof: int, standardize: bool) -> None:
    X, y, _ = data()
    sd_y, sd_x = y.std(ddof=ddof), X.std(0, ddof=ddof) if standardize else np.ones(4)
    given = 0.2
    rows, target = torch.from_numpy(X), torch.from_numpy(y / sd_y)

    def loss(w: Tensor, b: Tensor) -> Tensor:  # of the scaled problem; reported weights are scaled back
        penalty = 0.5 * (given / sd_y) * (torch.from_numpy(sd_x) ** 2 * w**2).sum()
        return ((rows @ w + b - target) ** 2).sum() / (2 * 60) + penalty

    spread = sd_x.tolist() if standardize else None
    lam = convert_strength(given, source=convention, target="lambda", target_std=sd_y, feature_std=spread)
    np.testing.assert_allclose(minimized(loss, 4) * sd_y, pivot(X, y, lam), rtol=1e-7)
    back = [
        convert_strength(v, source="lambda", target=convention, target_std=sd_y, feature_std=f)
        for v, f in zip(np.broadcast_to(lam, 4), sd_x, strict=True)
    ]
    np.testing.assert_allclose(back, given)


def test_spark_logistic() -> None:
    X, y, _ = data()
    label = torch.from_numpy((y > 0).astype(float))
    sd = X.std(0, ddof=1)
    lam = convert_strength(0.1, source="spark_logistic", target="lambda", feature_std=sd.tolist())
    rows = torch.from_numpy(X)

    def loss(w: Tensor, b: Tensor) -> Tensor:
        entropy = nn.functional.binary_cross_entropy_with_logits(rows @ w + b, label)
        return entropy + 0.5 * 0.1 * (torch.from_numpy(sd) ** 2 * w**2).sum()

    def ours(w: Tensor, b: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(rows @ w + b, label) + (torch.tensor(lam) * w**2).sum()

    np.testing.assert_allclose(minimized(loss, 4), minimized(ours, 4), rtol=1e-6)
    assert convert_strength(0.1, source="lambda", target="spark_logistic") == pytest.approx(0.2)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(CONVENTIONS, CONVENTIONS)))
def test_there_and_back(source: str, target: str) -> None:
    there = convert_strength(0.37, source=source, target=target, **FACTS)
    assert convert_strength(there, source=target, target=source, **FACTS) == pytest.approx(0.37, rel=1e-13)
    through = convert_strength(0.37, source=source, target="lambda", **FACTS)
    assert convert_strength(through, source="lambda", target=target, **FACTS) == pytest.approx(there, rel=1e-13)


def test_what_cancels_is_not_asked_for() -> None:
    assert convert_strength(2.0, source="sklearn", target="logistic_C") == 0.25
    assert convert_strength(2.0, source="sklearn", target="lecture") == 2.0
    assert convert_strength(0.5, source="glmnet", target="spark_linear") == 0.5


def test_no_penalty_is_infinite_C() -> None:
    assert convert_strength(0.0, source="lambda", target="logistic_C", n_samples=10) == math.inf
    assert convert_strength(math.inf, source="logistic_C", target="lambda", n_samples=10) == 0.0


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"value": 1.0, "source": "keras", "target": "sklearn"}, ValueError, "`n_samples` is missing"),
    ({"value": 1.0, "source": "sgd_regressor", "target": "keras", "sample_weight_sum": 3.0}, ValueError, "`n_samples`"),
    ({"value": 1.0, "source": "mse_loss", "target": "sklearn", "n_samples": 3}, ValueError, "`n_targets` is missing"),
    ({"value": 1.0, "source": "glmnet", "target": "keras"}, ValueError, "`target_std` is missing"),
    ({"value": 1.0, "source": "adamw", "target": "keras"}, ValueError, "`source` should be one of 'lambda', 'keras'"),
    ({"value": 1.0, "source": "keras", "target": "Keras"}, ValueError, "`target` should be one of"),
    (
        {"value": -1.0, "source": "keras", "target": "torch"},
        ValueError,
        "`value` should be a finite number of at least",
    ),
    ({"value": math.nan, "source": "keras", "target": "torch"}, ValueError, "`value`.*nan"),
    ({"value": math.inf, "source": "keras", "target": "torch"}, ValueError, "`value`.*inf"),
    (
        {"value": 0.0, "source": "logistic_C", "target": "torch", "n_samples": 2},
        ValueError,
        "`value` should be positive",
    ),
    ({"value": "1", "source": "keras", "target": "torch"}, TypeError, "`value` should be a number, got str"),
    ({"value": None, "source": "keras", "target": "torch"}, TypeError, "`value` should be a number, got NoneType"),
    ({"value": 1.0, "source": "keras", "target": "sklearn", "n_samples": 0}, ValueError, "`n_samples`.*positive"),
    ({"value": 1.0, "source": "keras", "target": "sklearn", "n_samples": -2}, ValueError, "`n_samples`.*positive"),
    (
        {"value": 1.0, "source": "glmnet", "target": "keras", "target_std": 1, "feature_std": [1.0, 0.0]},
        ValueError,
        "`feature_std`.*positive",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert_strength(arguments.pop("value"), **arguments)


def test_plain_numbers_need_no_torch() -> None:
    import torchridge.strength as module

    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, module.__file__], check=False).returncode == 0
