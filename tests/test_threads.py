"""torch's thread count belongs to the caller: no call changes it, whatever runs at the same time."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchridge import Moments, logistic, ridge, ridge_cv, ridge_path

X = torch.randn(4000, 60, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] + torch.randn(4000, generator=torch.Generator().manual_seed(1))
CALLS: dict[str, Callable[[], Any]] = {
    "ridge": lambda: ridge(X, Y, 1.0),
    "few rows": lambda: ridge(X[:30], Y[:30], 1.0),
    "path": lambda: ridge_path(X, Y, [0.1, 1.0]),
    "folds": lambda: ridge_cv(X, Y, [0.1, 1.0, 10.0], cv=5),
    "leave-one-out": lambda: ridge_cv(X[:200], Y[:200], [0.1, 1.0, 10.0], cv="loo"),
    "products": lambda: ridge(X, Y, 1.0, solver="cg"),
    "moments": lambda: Moments().update(X, Y),
    "batch": lambda: ridge(X.view(40, 100, 60), Y.view(40, 100), 1.0),
    "logistic": lambda: logistic(X, (Y > 0).long(), 0.1),
}


@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
@pytest.mark.parametrize("name", CALLS)
def test_counts_are_left_as_they_were_by_calls_at_once(name: str) -> None:
    before, seen = torch.get_num_threads(), []

    def call() -> None:
        own = torch.get_num_threads()
        CALLS[name]()
        seen.append((own, torch.get_num_threads()))

    for _ in range(3):
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        CALLS["few rows"]()
        for thread in threads:
            thread.join()
    assert torch.get_num_threads() == before
    assert len(seen) == 12 and all(after == own for own, after in seen)
