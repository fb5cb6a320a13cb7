"""Every kind of metric in every cross-validation: the value under a name is that metric computed by hand."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import linear_model as sk
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import (
    f1_score,
    get_scorer,
    log_loss,
    make_scorer,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)
from torch import Tensor, nn

from torchridge import RidgeSolution, estimators, logistic_cv, probe_layers, ridge_cv
from torchridge.probing import LinearProbe

torchmetrics = pytest.importorskip("torchmetrics")

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")  # three strengths will do

SINGLE = 2e-6  # the states of torchmetrics are float32

G = torch.Generator().manual_seed(3)
N, K = 90, 3
X = torch.randn(N, 5, generator=G, dtype=torch.float64)
NOISE = torch.randn(N, 2, generator=G, dtype=torch.float64)
Y2 = torch.stack([X[:, 0] - X[:, 1], X[:, 2]], 1) + 0.7 * NOISE
FOLD = torch.arange(N) % K
BINARY = (X[:, 0] + NOISE[:, 0] > 0).long()
THREE = (torch.stack([X[:, 0], X[:, 1], X[:, 2]], 1) + 0.5 * torch.randn(N, 3, generator=G)).argmax(1)
ALPHAS, CS = [0.3, 5.0, 80.0], [0.02, 0.3, 5.0]
TARGETS = {2: BINARY, 3: THREE}


class Object:
    """What is documented: `update` and `compute`, not callable, without `reset`; predictions first."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    def update(self, predicted: Tensor, target: Tensor) -> None:
        self.parts.append((predicted, target))

    def compute(self) -> float:
        predicted, target = (torch.cat(p) for p in zip(*self.parts, strict=True))
        return -float((predicted - target).abs().sum())


def absolute_error(y_true: Any, y_score: Any) -> float:
    return -float(abs(y_true - y_score).sum())


# name: (metric, by hand of (truth, predictions) as arrays, whether larger is better)
NUMBERS: dict[str, tuple[Any, Callable[..., float], bool]] = {
    "a string of scikit-learn": ("neg_mean_absolute_error", lambda y, p: -mean_absolute_error(y, p), True),
    "a callable": (absolute_error, absolute_error, True),
    "a function of scikit-learn": (r2_score, r2_score, True),
    "an object": (Object(), absolute_error, True),
    "torchmetrics, larger is better": (torchmetrics.R2Score(), r2_score, True),
    "torchmetrics, smaller is better": (torchmetrics.MeanSquaredError(), mean_squared_error, False),
    "a collection": (torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]), mean_squared_error, False),
    "a scorer": (
        make_scorer(mean_squared_error, greater_is_better=False),
        lambda y, p: -mean_squared_error(y, p),
        True,
    ),
}


def hard(scores: Any) -> Any:
    return (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)


def f1(y: Any, scores: Any) -> float:
    return float(f1_score(y, hard(scores), average="macro"))


def share_right(y: Any, scores: Any) -> float:
    return float((hard(scores) == y).mean())


def auc(y: Any, scores: Any) -> float:
    if scores.ndim == 1:
        return float(roc_auc_score(y, scores))
    return float(roc_auc_score(y, torch.from_numpy(scores).softmax(1).numpy(), multi_class="ovr"))


def classes(k: int) -> dict[str, tuple[Any, Callable[..., float]]]:
    task: dict[str, Any] = {"task": "binary"} if k == 2 else {"task": "multiclass", "num_classes": k}
    both: dict[str, Any] = {"task": "multiclass", "num_classes": k, "average": "macro"}
    return {
        "a string": ("accuracy", share_right),
        "a string of scikit-learn": ("f1_macro", f1),
        "a callable": (
            lambda y, s: float(s[torch.arange(len(y)), y].sum() if s.ndim == 2 else s[y == 1].sum()),
            lambda y, s: float(s[np.arange(len(y)), y].sum() if s.ndim == 2 else s[y == 1].sum()),
        ),
        "torchmetrics F1": (torchmetrics.F1Score(**both), f1),
        "torchmetrics AUROC": (torchmetrics.AUROC(**task), auc),
        "a collection": (torchmetrics.MetricCollection({"only": torchmetrics.F1Score(**both)}), f1),
        "a scorer": (make_scorer(f1_score, average="macro", pos_label=None), f1),
    }


def parts() -> list[tuple[Any, Any]]:
    return [((k != FOLD).numpy(), (k == FOLD).numpy()) for k in range(K)]


def by_hand(fit: Callable[[Any, Any, float], Any], y: Tensor, hand: Callable[..., float], grid: list[float]) -> Any:
    """(K, L) a metric of what a model fitted to the other folds says of each fold."""
    rows, truth = X.numpy(), y.numpy()
    return np.array([[hand(truth[b], fit(rows[a], truth[a], s)(rows[b])) for s in grid] for a, b in parts()])


def ridge_of(rows: Any, y: Any, alpha: float) -> Any:
    return sk.Ridge(alpha).fit(rows, y).predict


@functools.cache
def left_out(n: int, alpha: float) -> Any:
    """(n,) predictions of every row by the fit to the others."""
    rows, y = X[:n].numpy(), Y2[:n, 0].numpy()
    return np.array([ridge_of(np.delete(rows, i, 0), np.delete(y, i), alpha)(rows[i : i + 1])[0] for i in range(n)])


def classifier_of(rows: Any, y: Any, alpha: float) -> Any:
    return sk.RidgeClassifier(alpha).fit(rows, y).decision_function


def proba_of(rows: Any, y: Any, C: float) -> Any:
    model = sk.LogisticRegression(C=C, tol=1e-8, max_iter=10_000).fit(rows, y)
    return lambda Z: model.predict_proba(Z)[:, 1] if len(model.classes_) == 2 else model.predict_proba(Z)


def best(table: Any, grid: list[float], larger: bool) -> float:
    return grid[int((table if larger else -table).mean(0).argmax())]


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("columns", [1, 2])
def test_ridge_cv(case: str, columns: int) -> None:
    metric, hand, larger = NUMBERS[case]
    y = Y2[:, 0] if columns == 1 else Y2
    found = ridge_cv(X, y, ALPHAS, cv=FOLD, scoring=metric)
    table = by_hand(ridge_of, y, hand, ALPHAS)
    assert found.fold_scores is not None and found.metrics is not None and found.best_score is not None
    sign = 1 if larger else -1
    np.testing.assert_allclose(found.fold_scores[:, :, 0], sign * table, rtol=SINGLE)
    np.testing.assert_allclose(next(iter(found.metrics.values()))[:, :, 0], table, rtol=SINGLE)
    assert float(found.alpha) == best(table, ALPHAS, larger)
    assert float(found.best_score) == pytest.approx(sign * table.mean(0)[ALPHAS.index(float(found.alpha))])


@pytest.mark.parametrize("case", NUMBERS)
@pytest.mark.parametrize("cv", ["loo", "folds"])
def test_estimators_ridge_cv(case: str, cv: Any) -> None:
    metric, hand, larger = NUMBERS[case]
    y = Y2[:, 0]
    if cv == "loo":
        model = estimators.RidgeCV(ALPHAS, scoring=metric).fit(X.numpy(), y.numpy())
        rows, truth = X.numpy(), y.numpy()
        out = [
            [ridge_of(np.delete(rows, i, 0), np.delete(truth, i), a)(rows[i : i + 1])[0] for i in range(N)]
            for a in ALPHAS
        ]
        table = np.array([[hand(truth, np.array(p)) for p in out]])
    else:
        model = estimators.RidgeCV(ALPHAS, scoring=metric, cv=parts()).fit(X.numpy(), y.numpy())
        table = by_hand(ridge_of, y, hand, ALPHAS)
    assert model.alpha_ == best(table, ALPHAS, larger)
    assert model.best_score_ == pytest.approx((1 if larger else -1) * table.mean(0)[ALPHAS.index(model.alpha_)])


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("case", classes(2))
def test_estimators_ridge_classifier_cv(case: str, k: int) -> None:
    metric, hand = classes(k)[case]
    y = TARGETS[k]
    names = np.array(["one", "two", "zwo"])[y.numpy()] if "callable" not in case else y.numpy()
    model = estimators.RidgeClassifierCV(ALPHAS, scoring=metric, cv=parts()).fit(X.numpy(), names)
    table = by_hand(classifier_of, y, hand, ALPHAS)
    assert model.best_score_ == pytest.approx(table.mean(0).max())
    assert table.mean(0)[ALPHAS.index(model.alpha_)] == pytest.approx(table.mean(0).max())


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("case", classes(2))
def test_estimators_logistic_regression_cv(case: str, k: int) -> None:
    metric, hand = classes(k)[case]
    y = TARGETS[k]
    options: dict[str, Any] = {"cv": parts(), "tol": 1e-8, "use_legacy_attributes": False}
    model = estimators.LogisticRegressionCV(Cs=CS, scoring=metric, **options).fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(model.scores_[:, 0], by_hand(proba_of, y, of_proba(hand), CS), rtol=1e-4)
    rows = [proba_of(X.numpy(), y.numpy(), model.C_)(X.numpy())]
    assert model.score(X.numpy(), y.numpy()) == pytest.approx(of_proba(hand)(y.numpy(), rows[0]), rel=1e-4)


def of_proba(hand: Callable[..., float]) -> Callable[..., float]:
    """A metric of probabilities: the classes are those above one half, and AUROC takes them as they are."""
    if hand is auc:
        return lambda y, p: float(roc_auc_score(y, p, multi_class="ovr"))
    return lambda y, p: hand(y, p - 0.5 if p.ndim == 1 and hand in (f1, share_right) else p)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("case", classes(2))
def test_logistic_cv(case: str, k: int) -> None:
    metric, hand = classes(k)[case]
    found = logistic_cv(X, TARGETS[k], CS, cv=FOLD, scoring=metric, tol=1e-13)
    table = by_hand(proba_of, TARGETS[k], of_proba(hand), CS)
    assert found.fold_scores is not None
    np.testing.assert_allclose(found.fold_scores[:, :, 0], table, rtol=1e-4)
    assert found.metrics is None if case == "a string" else found.metrics is not None
    assert best(table, CS, True) == found.C


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def probed(where: str, y: Tensor, **options: Any) -> Any:
    if where == "LinearProbe":
        return LinearProbe(**options).fit({"layer": 2 * X}, y).best
    model = nn.Sequential(Doubled())
    return probe_layers(model, [(X[i : i + 40], y[i : i + 40]) for i in range(0, N, 40)], "0", **options).best


@pytest.mark.parametrize("where", ["LinearProbe", "probe_layers"])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("case", NUMBERS)
def test_probes_of_numbers(case: str, columns: int, where: str) -> None:
    metric, hand, _ = NUMBERS[case]
    y = Y2[:, 0] if columns == 1 else Y2
    probe = probed(where, y, cv=FOLD, alphas=[4 * 5.0], metrics={"it": metric})
    np.testing.assert_allclose(probe.fold_scores["it"], by_hand(ridge_of, y, hand, [5.0])[:, 0], rtol=SINGLE)


@pytest.mark.parametrize("where", ["LinearProbe", "probe_layers"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("case", classes(2))
def test_probes_of_classes(case: str, k: int, where: str) -> None:
    metric, hand = classes(k)[case]
    probe = probed(where, TARGETS[k], task="classification", cv=FOLD, alphas=[4 * 5.0], metrics={"it": metric})
    np.testing.assert_allclose(
        probe.fold_scores["it"], by_hand(classifier_of, TARGETS[k], hand, [5.0])[:, 0], rtol=SINGLE
    )


@pytest.mark.parametrize("where", ["LinearProbe", "probe_layers"])
def test_the_discriminant_and_the_logistic_readout_have_probabilities(where: str) -> None:
    loss = "neg_log_loss"
    probe = probed(where, THREE, task="classification", readout="lda", cv=FOLD, shrinkages=[1e-9], metrics=loss)
    table = by_hand(
        lambda a, y, _: LinearDiscriminantAnalysis().fit(a, y).predict_proba, THREE, lambda y, p: -log_loss(y, p), [0.0]
    )
    np.testing.assert_allclose(probe.fold_scores[loss], table[:, 0], rtol=1e-6)
    kept = {"keep": "memory", "keep_bytes": 2**30, "keep_dtype": None}
    probe = probed(where, THREE, task="classification", readout="logistic", cv=FOLD, Cs=[0.3 / 4], metrics=loss, **kept)
    table = by_hand(proba_of, THREE, lambda y, p: -log_loss(y, p), [0.3])
    np.testing.assert_allclose(probe.fold_scores[loss], table[:, 0], rtol=1e-6)


def test_several_are_all_reported_and_the_first_chooses() -> None:
    collection = torchmetrics.MetricCollection(
        [torchmetrics.MeanAbsoluteError(), torchmetrics.R2Score()], prefix="val_"
    )
    found = ridge_cv(X, Y2[:, 0], ALPHAS, cv=FOLD, scoring=collection)
    assert found.metrics is not None and found.fold_scores is not None
    assert list(found.metrics) == ["val_MeanAbsoluteError", "val_R2Score"] and found.scoring == "val_MeanAbsoluteError"
    np.testing.assert_allclose(found.metrics["val_R2Score"][:, :, 0], by_hand(ridge_of, Y2[:, 0], r2_score, ALPHAS))
    assert torch.equal(found.fold_scores, -found.metrics["val_MeanAbsoluteError"])
    probe = LinearProbe(metrics=[collection, "r2"], cv=FOLD).fit(X, Y2[:, 0]).best
    assert {"val_MeanAbsoluteError", "val_R2Score", "r2", "mse"} == set(probe.scores)
    assert probe.scores["val_R2Score"] == pytest.approx(probe.scores["r2"])


def test_own_names_beside_a_metric_are_those_of_moments() -> None:
    found = ridge_cv(X, Y2, ALPHAS, cv=FOLD, scoring=["mse", "r2", r2_score])
    for name in ("mse", "r2"):
        alone = ridge_cv(X, Y2, ALPHAS, cv=FOLD, scoring=name)
        assert found.metrics is not None and alone.fold_scores is not None
        sign = -1 if name == "mse" else 1
        torch.testing.assert_close(found.metrics[name][:, :, 0], sign * alone.fold_scores.mean(2))
    alone = ridge_cv(X, Y2, ALPHAS, cv=FOLD)
    assert float(found.alpha) == float(alone.alpha)


def test_a_strength_for_each_target_by_a_metric() -> None:
    found = ridge_cv(X, Y2, ALPHAS, cv=FOLD, scoring=torchmetrics.PearsonCorrCoef(), alpha_per_target=True)
    for j in range(2):
        alone = ridge_cv(X, Y2[:, j], ALPHAS, cv=FOLD, scoring="r2")
        assert found.fold_scores is not None and alone.fold_scores is not None
        hand = by_hand(ridge_of, Y2[:, j], lambda y, p: float(np.corrcoef(y, p)[0, 1]), ALPHAS)
        np.testing.assert_allclose(found.fold_scores[:, :, j], hand, rtol=1e-6)
        assert float(found.alpha[j]) == best(hand, ALPHAS, True)


def test_an_automatic_grid_is_refined_around_the_best_of_the_metric() -> None:
    squares = ridge_cv(X, Y2[:, 0], cv=FOLD)
    found = ridge_cv(X, Y2[:, 0], cv=FOLD, scoring=torchmetrics.MeanSquaredError())
    assert float(found.alpha) == pytest.approx(float(squares.alpha), rel=0.05)
    assert found.best_score is not None and squares.best_score is not None
    assert float(found.best_score) == pytest.approx(float(squares.best_score), rel=1e-5)


@pytest.mark.parametrize("n", [N, 4], ids=["tall", "wide"])
def test_leave_one_out_by_a_metric_and_sparse_rows(n: int) -> None:
    rows, y = X[:n], Y2[:n, 0]
    truth = left_out(n, 5.0)
    for options in ({}, {"solver": "cg", "tol": 1e-12}):
        found = ridge_cv(rows, y, [5.0], cv="loo", scoring=mean_absolute_error, **options)  # type: ignore[arg-type]
        assert float(found.best_score) == pytest.approx(mean_absolute_error(y, truth))  # type: ignore[arg-type]
    if n == N:
        sparse = ridge_cv(X.to_sparse_csr(), Y2[:, 0], ALPHAS, cv=FOLD, scoring=absolute_error, solver="cg", tol=1e-12)
        assert sparse.fold_scores is not None
        hand = by_hand(ridge_of, Y2[:, 0], absolute_error, ALPHAS)
        np.testing.assert_allclose(sparse.fold_scores[:, :, 0], hand, rtol=1e-6)


def test_a_metric_is_copied_and_reset_for_every_fold() -> None:
    metric = torchmetrics.R2Score()
    metric.update(torch.tensor([1.0, 5.0, -3.0]), torch.tensor([9.0, 0.0, 7.0]))
    before = copy.deepcopy(metric).compute()
    found = ridge_cv(X, Y2[:, 0], [1.0], cv=FOLD, scoring=metric)
    assert found.fold_scores is not None
    np.testing.assert_allclose(found.fold_scores[:, 0, 0], by_hand(ridge_of, Y2[:, 0], r2_score, [1.0])[:, 0])
    assert metric.compute() == before


def test_labels_that_are_not_counted_from_zero() -> None:
    y, metric = THREE + 2, torchmetrics.F1Score(task="multiclass", num_classes=5, average="micro")
    found = logistic_cv(X, y, CS, cv=FOLD, scoring=metric)
    accuracy = logistic_cv(X, y, CS, cv=FOLD, scoring="accuracy")
    torch.testing.assert_close(found.scores, accuracy.scores)


def test_scorers_are_given_the_weights() -> None:
    s = torch.linspace(0.5, 2, N, dtype=torch.float64)
    own, theirs = (
        logistic_cv(X, BINARY, CS, cv=FOLD, scoring=m, sample_weight=s) for m in ("accuracy", get_scorer("accuracy"))
    )
    torch.testing.assert_close(own.scores, theirs.scores)
    one = ridge_cv(X, Y2[:, 0], ALPHAS, cv=FOLD, scoring=get_scorer("r2"), sample_weight=s)
    two = ridge_cv(X, Y2[:, 0], ALPHAS, cv=FOLD, scoring="r2", sample_weight=s)
    torch.testing.assert_close(one.fold_scores, two.fold_scores)


BY_CLASS = torchmetrics.F1Score("multiclass", num_classes=3, average=None)

BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an unknown name": (
        lambda: ridge_cv(X, Y2, ALPHAS, 5, scoring="corelation"),
        ValueError,
        "`scoring`.*'corelation'",
    ),
    "no metric": (lambda: ridge_cv(X, Y2, ALPHAS, 5, scoring=3.0), TypeError, "`scoring`.*float"),
    "none": (lambda: logistic_cv(X, BINARY, CS, scoring=[]), ValueError, "`scoring` is empty"),
    "without folds": (lambda: ridge_cv(X, Y2, ALPHAS, scoring=r2_score), ValueError, "`scoring`.*gcv.*cv=5"),
    "two of one name": (lambda: LinearProbe(metrics=[r2_score, r2_score]), ValueError, "two metrics.*r2_score"),
    "several numbers": (
        lambda: LinearProbe(
            "classification", metrics=torchmetrics.F1Score("multiclass", num_classes=3, average=None)
        ).fit(X, THREE),
        ValueError,
        r"`metrics`.*shape \(3,\).*macro",
    ),
    "the wrong kind": (
        lambda: logistic_cv(X, THREE, CS, scoring=torchmetrics.AUROC("binary")),
        ValueError,
        r"`scoring`: 'BinaryAUROC' .*refuses predictions of shape",
    ),
    "no direction": (
        lambda: ridge_cv(X, Y2[:, 0], ALPHAS, 5, scoring=torchmetrics.MeanMetric()),
        ValueError,
        "`scoring`: 'MeanMetric' does not say whether larger is better",
    ),
    "accuracy of numbers": (lambda: LinearProbe("regression", metrics="accuracy"), ValueError, "task='classification'"),
    "probabilities of ridge": (
        lambda: LinearProbe("classification", metrics="neg_log_loss").fit(X, THREE),
        (ValueError, AttributeError),
        "predict_proba",
    ),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", BAD)
def test_bad_metrics(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_metrics_are_saved_with_the_solution(tmp_path: Any) -> None:
    found = ridge_cv(X, Y2, ALPHAS, cv=FOLD, scoring=["r2", torchmetrics.MeanSquaredError()])
    found.save(tmp_path / "ridge.safetensors")
    kept = RidgeSolution.load(tmp_path / "ridge.safetensors").metrics
    assert kept is not None and found.metrics is not None and list(kept) == list(found.metrics)
    assert all(torch.equal(kept[name], found.metrics[name]) for name in kept)


def test_a_kernel_is_cut_to_its_training_rows() -> None:
    plain = ridge_cv(X, Y2, ALPHAS, cv=FOLD, scoring=torchmetrics.R2Score(), fit_intercept=False)
    options = {"scoring": torchmetrics.R2Score(), "kernel": "precomputed", "fit_intercept": False}
    kernel = ridge_cv(X @ X.T, Y2, ALPHAS, cv=FOLD, **options)
    torch.testing.assert_close(kernel.fold_scores, plain.fold_scores, rtol=1e-5, atol=1e-8)
