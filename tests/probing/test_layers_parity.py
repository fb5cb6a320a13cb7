"""Probing a network in one pass equals extracting each layer's features and scikit-learn on the same folds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from torchridge.probing import ProbeReport, probe_layers

PARITY = 1e-6  # what the issue of the probes promises; features are float32, sums float64
ROWS, K = 600, 5
LAYERS = {"conv1": 12, "conv2": 16, "fc1": 24}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1)
        self.fc1, self.drop, self.fc = nn.Linear(16 * 64, 24), nn.Dropout(0.5), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu_()).relu_()
        out: Tensor = self.fc(self.drop(self.fc1(x.flatten(1)).relu_()))
        return out


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images[:ROWS, None] / 16).float(), torch.from_numpy(data.target[:ROWS])


def features(model: Net, X: Tensor) -> dict[str, np.ndarray]:
    """The usual way: run the network by hand, layer by layer."""
    model.eval()
    with torch.no_grad():
        a = model.conv1(X)
        b = model.conv2(model.norm(a).relu())
        c = model.fc1(b.relu().flatten(1))
    return {
        "conv1": a.mean((2, 3)).double().cpu().numpy(),
        "conv2": b.mean((2, 3)).double().cpu().numpy(),
        "fc1": c.double().cpu().numpy(),
    }


def features_on(case: Any, device: torch.device) -> dict[str, np.ndarray]:
    """The features as the device rounds them in batches of this size: a convolution of more rows may round otherwise.

    Those of conv1 are dependent but for rounding, and weak penalties see it.
    """
    model, X, y = case[:3]
    try:
        model.to(device)
        parts = [features(model, rows.to(device)) for rows, _ in batches(X, y)]
    finally:
        model.cpu()
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in LAYERS}


def stratified_in_turn(y: Tensor) -> np.ndarray:
    """Fold ids as documented: example i of a class to fold i mod K, classes numbered by arrival in each batch."""
    seen: dict[int, int] = {}
    number: dict[int, int] = {}
    ids = np.zeros(len(y), dtype=int)
    for start in range(0, len(y), 64):
        for c in sorted(set(y[start : start + 64].tolist())):
            number.setdefault(c, len(number))
    for i, c in enumerate(y.tolist()):
        ids[i] = (seen.get(c, 0) + number[c]) % K
        seen[c] = seen.get(c, 0) + 1
    return ids


def batches(X: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(X[i : i + 64], y[i : i + 64]) for i in range(0, len(X), 64)]


def refit(
    make: Callable[[], Any], X: np.ndarray, y: np.ndarray, ids: np.ndarray, score: Callable[[Any, Any, Any], Any]
) -> np.ndarray:
    splits = PredefinedSplit(ids).split()
    return np.array([score(make().fit(X[train], y[train]), X[test], y[test]) for train, test in splits])


def accuracy(model: Any, X: np.ndarray, y: np.ndarray) -> float:
    return float(model.score(X, y))


@pytest.fixture(scope="module")
def case() -> tuple[Net, Tensor, Tensor, dict[str, np.ndarray], np.ndarray]:
    torch.manual_seed(0)
    model, (X, y) = Net(), digits()
    return model, X, y, features(model, X), stratified_in_turn(y)


def probed(case: Any, device: torch.device, **options: Any) -> ProbeReport:
    model, X, y = case[:3]
    options = {"task": "classification", "metrics": "accuracy", **options}
    try:
        return probe_layers(model.to(device), batches(X, y), list(LAYERS), **options)
    finally:
        model.cpu()


def test_ridge_equals_ridge_classifier(case: Any, device: torch.device) -> None:
    y, ids, known = case[2], case[4], features_on(case, device)
    report = probed(case, device, readout="ridge")
    assert [p.layer for p in report] == list(LAYERS)
    assert report.source == "a second pass"
    assert report.passes == 2
    for probe in report:
        F = known[probe.layer]
        make = lambda a=probe.strength: RidgeClassifier(alpha=a)  # noqa: E731
        np.testing.assert_array_equal(probe.fold_scores["accuracy"].cpu(), refit(make, F, y.numpy(), ids, accuracy))
        whole = make().fit(F, y.numpy())
        np.testing.assert_allclose(probe.weight.cpu(), whole.coef_, rtol=PARITY, atol=PARITY)
        np.testing.assert_allclose(probe.bias.cpu(), whole.intercept_, rtol=PARITY, atol=PARITY)
        codes = 2.0 * (y.numpy()[:, None] == np.arange(10)) - 1

        def both(model: Any, X: np.ndarray, z: np.ndarray) -> list[float]:
            error = ((z - model.predict(X)) ** 2).mean(0)
            return [error.mean(), (1 - error / z.var(0)).mean()]

        for i in (0, 50, 99):
            alpha = float(probe.strengths[i])
            got = refit(lambda a=alpha: Ridge(alpha=a), F, codes, ids, both)
            np.testing.assert_allclose(probe.strength_scores[:, i].cpu(), -got[:, 0], rtol=PARITY)
        chosen = refit(lambda a=probe.strength: Ridge(alpha=a), F, codes, ids, both)
        np.testing.assert_allclose(probe.fold_scores["mse"].cpu(), -chosen[:, 0], rtol=PARITY)
        np.testing.assert_allclose(probe.fold_scores["r2"].cpu(), chosen[:, 1], rtol=PARITY, atol=PARITY)


@pytest.mark.parametrize("standardize", [False, True])
def test_lda_equals_discriminant_analysis(case: Any, device: torch.device, standardize: bool) -> None:
    y, ids, known = case[2], case[4], features_on(case, device)
    for probe in probed(case, device, readout="lda", standardize=standardize):
        F = known[probe.layer]

        def make(s: float = probe.strength) -> Any:
            lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=s)
            return make_pipeline(StandardScaler(), lda) if standardize else lda

        np.testing.assert_array_equal(probe.fold_scores["accuracy"].cpu(), refit(make, F, y.numpy(), ids, accuracy))
        want = make().fit(F, y.numpy()).decision_function(F)
        got = probe.decision_function(torch.from_numpy(F).to(probe.weight.device)).cpu().numpy()
        want, got = (a - a.mean(1, keepdims=True) for a in (want, got))  # a term that all classes share says nothing
        np.testing.assert_allclose(got, want, rtol=PARITY, atol=PARITY * np.abs(want).max())


def test_lda_strength_maximizes_the_density_of_held_out_rows(case: Any) -> None:
    _, _, y, known, ids = case
    for probe in probed(case, torch.device("cpu"), readout="lda", metrics=()):
        F, s = known[probe.layer], float(probe.strengths[60])

        def density(model: Any, X: np.ndarray, z: np.ndarray) -> float:
            total = 0.0
            for c, prior, mean in zip(model.classes_, model.priors_, model.means_, strict=True):
                law = torch.distributions.MultivariateNormal(
                    torch.from_numpy(mean), torch.from_numpy(model.covariance_)
                )
                total += float((law.log_prob(torch.from_numpy(X[z == c])) + np.log(prior)).sum())
            return total / len(z)

        want = refit(lambda s=s: LinearDiscriminantAnalysis(solver="eigen", shrinkage=s), F, y.numpy(), ids, density)
        np.testing.assert_allclose(probe.strength_scores[:, 60], want, rtol=PARITY)


def test_logistic_equals_logistic_regression(case: Any, device: torch.device) -> None:
    y, ids, known = case[2], case[4], features_on(case, device)
    options = {"keep": "memory", "keep_dtype": torch.float64, "keep_bytes": 2**24, "Cs": [10.0]}
    report = probed(case, device, readout="logistic", **options)
    assert (report.source, report.passes) == ("kept features", 1)
    for probe in report:
        F = known[probe.layer]
        make = lambda c=probe.strength: LogisticRegression(C=c, solver="newton-cg", tol=1e-12, max_iter=1000)  # noqa: E731
        np.testing.assert_array_equal(probe.fold_scores["accuracy"].cpu(), refit(make, F, y.numpy(), ids, accuracy))
        p = torch.softmax(probe.decision_function(torch.from_numpy(F).to(probe.weight.device)), 1).cpu()
        np.testing.assert_allclose(p, make().fit(F, y.numpy()).predict_proba(F), atol=PARITY)


def test_regression_equals_ridge(case: Any, device: torch.device) -> None:
    model, X, y = case[:3]
    known = features_on(case, device)
    target = torch.stack([X[:, 0, 3].sum(1) + y, X[:, 0, :, 4].sum(1)], 1)
    ids = np.arange(ROWS) % K
    report = probe_layers(model.to(device), batches(X, target), list(LAYERS), bootstrap=50)
    model.cpu()

    def score(fitted: Any, F: np.ndarray, z: np.ndarray) -> float:
        return float(fitted.score(F, z))

    for probe in report:
        F, z = known[probe.layer], target.double().numpy()
        want = refit(lambda a=probe.strength: Ridge(alpha=a), F, z, ids, score)
        np.testing.assert_allclose(probe.fold_scores["r2"].cpu(), want, rtol=PARITY, atol=PARITY)
        assert probe.interval is not None
        assert probe.interval[0] < probe.scores["r2"] < probe.interval[1]


@pytest.mark.parametrize("weights", ["balanced", {0: 3.0, 7: 0.5}])
def test_class_weights(case: Any, weights: Any) -> None:
    model, X, y, known, _ = case
    keep = (y > 2) | (torch.arange(ROWS) % 3 == 0)  # three rare classes
    X, y = X[keep], y[keep]
    s = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) + 0.5
    report = probe_layers(
        model, batches(X, y), "fc1", task="classification", class_weight=weights, sample_weight=s, metrics="accuracy"
    )
    probe, F, ids = report.best, known["fc1"][keep.numpy()], stratified_in_turn(y)
    for fold in range(K):
        train, test = ids != fold, ids == fold
        peer = RidgeClassifier(alpha=probe.strength, class_weight=weights)
        # scikit-learn balances by counts of rows, without their weights: those are handed over multiplied.
        if weights == "balanced":
            mass = np.array([s.numpy()[train][y.numpy()[train] == c].sum() for c in range(10)])
            peer = RidgeClassifier(alpha=probe.strength, class_weight=dict(enumerate(mass.sum() / (10 * mass))))
        peer.fit(F[train], y.numpy()[train], sample_weight=s.double().numpy()[train])
        want = np.average(peer.predict(F[test]) == y.numpy()[test], weights=s.double().numpy()[test])
        np.testing.assert_allclose(probe.fold_scores["accuracy"][fold], want, rtol=PARITY)


def test_two_classes_have_one_row(case: Any) -> None:
    model, X, y, known, _ = case
    two = (y == 4) | (y == 9)
    report = probe_layers(
        model, batches(X[two], y[two]), "fc1", task="classification", readout=["ridge", "lda"], metrics="accuracy"
    )
    F, z = known["fc1"][two.numpy()], y[two].numpy()
    ridge, lda = report.of(readout="ridge"), report.of(readout="lda")
    assert ridge.weight.shape == lda.weight.shape == (1, 24)
    np.testing.assert_allclose(ridge.weight, RidgeClassifier(alpha=ridge.strength).fit(F, z).coef_[None], atol=PARITY)
    peer = LinearDiscriminantAnalysis(solver="eigen", shrinkage=lda.strength).fit(F, z)
    np.testing.assert_allclose(lda.decision_function(torch.from_numpy(F))[:, 0], peer.decision_function(F), rtol=1e-5)
    assert set(lda.predict(torch.from_numpy(F)).tolist()) == {4, 9}


def test_metrics_of_predictions(case: Any) -> None:
    model, X, y = case[:3]

    class Counting:
        def reset(self) -> None:
            self.right = self.all = 0

        def update(self, scores: Tensor, target: Tensor) -> None:
            self.right += int((scores.argmax(1) == target).sum())
            self.all += len(target)

        def compute(self) -> float:
            return self.right / self.all

        def __call__(self, scores: Tensor, target: Tensor) -> float:
            raise AssertionError

    metrics = {"accuracy": "accuracy", "own": lambda y, s: (s.argmax(1) == y).double().mean(), "object": Counting()}
    probe = probe_layers(model, batches(X, y), "fc1", task="classification", metrics=metrics).best
    for name in ("own", "object"):
        torch.testing.assert_close(probe.fold_scores[name], probe.fold_scores["accuracy"])


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_kept_features_stand_in_for_the_second_pass(case: Any, where: str, tmp_path: Any) -> None:
    options = {"keep": where if where == "memory" else tmp_path, "keep_bytes": 2**20, "keep_dtype": torch.float32}
    kept, again = probed(case, torch.device("cpu"), **options), probed(case, torch.device("cpu"))
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a.fold_scores["accuracy"], b.fold_scores["accuracy"], rtol=0, atol=0)
    with pytest.raises(ValueError, match="`keep_bytes`"):
        probed(case, torch.device("cpu"), **{**options, "keep_bytes": 1000})
