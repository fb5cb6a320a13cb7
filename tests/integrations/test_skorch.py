"""skorch itself, against SGD's own weight decay in the same net."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

skorch = pytest.importorskip("skorch", reason="the extra `integrations` is not installed")

from torchridge.integrations.skorch import L2Regularization  # noqa: E402

LAMBDA = 0.05
rng = np.random.default_rng(0)
X, Y = rng.standard_normal((32, 4)).astype("float32"), rng.standard_normal((32, 1)).astype("float32")


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def net(callbacks: Any = None, weight_decay: float = 0.0, make: Any = torch.optim.SGD) -> Any:
    groups = {"optimizer__param_groups": [("*.bias", {"weight_decay": 0.0})], "optimizer__weight_decay": weight_decay}
    options = {"lr": 0.05, "batch_size": 8, "max_epochs": 5, "verbose": 0, "train_split": None}
    return skorch.NeuralNetRegressor(module, optimizer=make, callbacks=callbacks, **options, **groups)


def weights(fitted: Any) -> list[Tensor]:
    return [p.detach() for p in fitted.module_.parameters()]


def close(a: Any, b: Any) -> None:
    for p, q in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
def test_the_callback_is_the_optimizers_own_decay(make: Any) -> None:
    penalized = net([("l2", L2Regularization(LAMBDA))], make=make).fit(X, Y)
    close(penalized, net(weight_decay=2 * LAMBDA, make=make).fit(X, Y))
    last = sum(float(w.square().sum()) for w in weights(penalized) if w.ndim > 1)
    assert penalized.history[-1, "l2_penalty"] == pytest.approx(LAMBDA * last, rel=1e-5)


def test_partial_fit_and_pickles_go_on() -> None:
    both = [net([("l2", L2Regularization(LAMBDA))]), net(weight_decay=2 * LAMBDA)]
    for n in both:
        n.fit(X, Y)
    both = [pickle.loads(pickle.dumps(n)) for n in both]
    for n in both:
        n.partial_fit(X, Y)
    close(*both)


def test_the_strength_is_a_parameter_to_search() -> None:
    from sklearn.model_selection import GridSearchCV

    grid = {"callbacks__l2__regularizer": [1e-4, 10.0]}
    search = GridSearchCV(net([("l2", L2Regularization(0.1))]), grid, cv=2, refit=False).fit(X, Y)
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 2 and scores[0] != scores[1]
    clone = net([("l2", L2Regularization(0.1))]).set_params(callbacks__l2__regularizer=LAMBDA)
    close(clone.fit(X, Y), net(weight_decay=2 * LAMBDA).fit(X, Y))


def test_nothing_to_penalize_is_refused() -> None:
    with pytest.raises(ValueError, match="carries no regularizer of weights"):
        net([("l2", L2Regularization())]).fit(X, Y)
