"""Heads in closed form, probes that fade, and data that is forgotten as if it had never been."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier
from torch import Tensor, nn

from torchridge.probing import ContinualProbe, OnlineProbe, fit_head_, probe_layers


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target)


def rows_of(X: Tensor, y: Tensor, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), y.split(size), strict=True))


def trained(X: Tensor, y: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        for inputs, labels in rows_of(X, y):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("readout", ["lda", "ridge"])
def test_head_matches_or_beats_the_trained_one(readout: str, device: torch.device) -> None:
    X, y = digits()
    model = trained(X[:1200], y[:1200])
    refitted = copy.deepcopy(model).to(device).train()
    probe = fit_head_(refitted[-1], rows_of(X[:1200], y[:1200]), model=refitted, readout=readout)
    assert refitted.training
    assert not refitted[-1]._forward_pre_hooks

    def accuracy(net: nn.Module) -> float:
        net.eval().cpu()
        with torch.no_grad():
            return float((net(X[1200:]).argmax(1) == y[1200:]).double().mean())

    assert accuracy(refitted) >= accuracy(model)
    torch.testing.assert_close(refitted[-1].weight.double(), probe.weight.cpu(), rtol=1e-6, atol=1e-6)


def test_two_logits_and_plain_features() -> None:
    X, y = digits()
    X, y = X[(y == 3) | (y == 8)], (y[(y == 3) | (y == 8)] == 8).long()
    head = nn.Linear(64, 2)
    probe = fit_head_(head, rows_of(X, y))
    with torch.no_grad():
        out = head(X)
    torch.testing.assert_close((out[:, 1] - out[:, 0]).double(), probe.decision_function(X)[:, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (nn.Linear(4, 2), torch.arange(20) % 3, r"`head` has 2 outputs, but `labels` hold \[2\]"),
        (nn.Linear(4, 3, bias=False), torch.arange(20) % 3, "`head` has no bias"),
        (nn.Linear(5, 3), torch.arange(20) % 3, r"`head` takes rows \(n, 5\)"),
    ],
)
def test_refused_heads_are_untouched(head: nn.Linear, labels: Tensor, message: str) -> None:
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(ValueError, match=message):
        fit_head_(head, [(torch.randn(20, 4), labels)])
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)


def test_continual_probe_is_that_of_all_data_held(device: torch.device) -> None:
    X, y = digits()
    probe = ContinualProbe()
    for c in (7, 1, 4, 2):  # classes arrive out of order
        probe.update(X[y == c].to(device), y[y == c], name=c)
    held = (y == 7) | (y == 1) | (y == 4) | (y == 2)
    assert_like_sklearn(probe, X[held], y[held])
    probe.forget(4)
    assert probe.tasks == (7, 1, 2)
    assert_like_sklearn(probe, X[held & (y != 4)], y[held & (y != 4)])
    some = (y == 1) & (torch.arange(len(y)) % 2 == 0)
    probe.forget(features=X[some].to(device), labels=y[some])
    rest = held & (y != 4) & ~some
    assert probe.n_samples == int(rest.sum())
    assert_like_sklearn(probe, X[rest], y[rest])


def assert_like_sklearn(probe: ContinualProbe, X: Tensor, y: Tensor) -> None:
    F, z = X.double().numpy(), y.numpy()
    got = probe.ridge(2.0).decision_function(X).cpu()
    np.testing.assert_allclose(got, RidgeClassifier(alpha=2.0).fit(F, z).decision_function(F), atol=1e-6)
    lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(F, z)
    want, ours = lda.decision_function(F), probe.lda(0.1).decision_function(X).cpu().numpy()
    np.testing.assert_allclose(ours - ours[:, :1], want - want[:, :1], rtol=1e-6, atol=1e-6)
    assert (probe.lda(0.1).predict(X).cpu().numpy() == lda.predict(F)).all()


def test_continual_refusals_change_nothing() -> None:
    probe = ContinualProbe("regression").update(torch.randn(20, 3), torch.randn(20), name="a")
    before = probe.ridge().weight
    for call, message in (
        (lambda: probe.forget("b"), "`name`='b' is not a task"),
        (lambda: probe.forget(features=torch.randn(30, 3), labels=torch.randn(30)), "cannot forget 30 rows"),
        (lambda: probe.update(torch.randn(5, 4), torch.randn(5)), "should have 3 columns"),
        (lambda: probe.update(torch.full((5, 3), torch.nan), torch.randn(5)), "NaN"),
        (lambda: probe.lda(), "`readout` should be one of 'ridge'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    torch.testing.assert_close(probe.ridge().weight, before, rtol=0, atol=0)


def test_online_probe_is_a_weighted_fit(device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    steps = [(torch.randn(16, 5, generator=g), torch.randn(16, generator=g)) for _ in range(9)]
    online = OnlineProbe("regression", decay=0.8, alpha=0.5, every=3)
    for X, y in steps:
        online.update(X.to(device), y)
    assert [step for step, _ in online.history] == [3, 6]
    weight = np.repeat(0.8 ** np.arange(8, -1, -1), 16)
    F, z = (torch.cat(part).double().numpy() for part in zip(*steps, strict=True))
    peer = Ridge(alpha=0.5).fit(F, z, sample_weight=weight)
    assert online.probe is not None
    np.testing.assert_allclose(online.probe.weight[0].cpu(), peer.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(online.probe.bias.cpu(), peer.intercept_, rtol=1e-6, atol=1e-9)


def test_online_probe_follows_a_change() -> None:
    """Labels swap half-way: the fading probe recovers, one that keeps everything does not."""
    g = torch.Generator().manual_seed(0)
    fading, keeping = OnlineProbe(decay=0.8), OnlineProbe(decay=1.0)
    for step in range(60):
        X = torch.randn(32, 4, generator=g)
        y = ((X[:, 0] > 0) ^ (step >= 40)).long()
        fading.update(X, y)
        keeping.update(X, y)
    assert fading.score is not None
    assert keeping.score is not None
    assert fading.score > 0.9
    assert keeping.score < 0.5


class Scalars:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen.append((name, step))


def test_curves_and_plot() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    X, y = digits()
    model = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    report = probe_layers(
        model, rows_of(X[:300], y[:300]), "*", task="classification", bootstrap=20, readout=["ridge", "lda"]
    )
    writer = Scalars()
    report.add_to(writer)
    assert ("probe/ridge/accuracy", 2) in writer.seen
    assert ("probe/lda/1/log_likelihood", 99) in writer.seen
    assert [line.get_label() for line in report.plot().lines] == ["ridge: accuracy", "lda: accuracy"]
    with pytest.raises(TypeError, match="`writer` should have a method"):
        report.add_to(object())
    table: Any = report.table().splitlines()
    assert len(table) == 7
    assert sum(line.endswith("best") for line in table) == 1
