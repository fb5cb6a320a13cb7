"""What a caller gets wrong is named, with what to do, and warned of once."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchridge.exceptions import MissingClassWarning
from torchridge.probing import ContinualProbe, LinearProbe, OnlineProbe, fit_head_, probe_layers

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
COLUMN = [(X, Y[:, None])]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


SHAPE = r"`labels` of a classification should have shape \(n,\), got \(40, 1\).*`labels\[:, 0\]`"
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "labels (n, 1)": (lambda: probe_layers(model(), COLUMN, task="classification"), ValueError, SHAPE),
    "labels (n, 1) of features": (lambda: LinearProbe("classification").fit(X, Y[:, None]), ValueError, SHAPE),
    "labels (n, 1) of a head": (lambda: fit_head_(nn.Linear(3, 2), COLUMN), ValueError, SHAPE),
    "labels (n, 1) online": (lambda: OnlineProbe("classification").update(X, Y[:, None]), ValueError, SHAPE),
    "labels (n, 1) task by task": (lambda: ContinualProbe().update(X, Y[:, None]), ValueError, SHAPE),
    "layers": (lambda: probe_layers(model(), [(X, X)], layers=0), TypeError, r"`layers` should be a pattern.*got 0"),  # type: ignore[arg-type]
    "no batches": (lambda: probe_layers(model(), None), TypeError, "`batches` should be an iterable.*got NoneType"),  # type: ignore[arg-type]
    "a number of batches": (lambda: fit_head_(nn.Linear(3, 2), 5), TypeError, "`batches` should be an iterable"),  # type: ignore[arg-type]
    "a bare layer": (
        lambda: probe_layers(nn.Linear(3, 2), [(X, X)]),
        ValueError,
        r"`model` is a single Linear.*`nn.Sequential\(model\)`.*`LinearProbe`",
    ),
}


NAMES = ["cat" if label else "dog" for label in Y.tolist()]
NUMBERED = (
    r"`labels` should be a tensor or numbers, got strings.*`names, labels = np.unique\(labels, return_inverse=True\)`"
)
for kind, names in {"list": NAMES, "array": np.array(NAMES), "objects": np.array(NAMES, dtype=object)}.items():
    BAD |= {
        f"{kind} of names": (lambda names=names: LinearProbe().fit(X, names), TypeError, NUMBERED),
        f"{kind} of names in batches": (lambda names=names: probe_layers(model(), [(X, names)]), TypeError, NUMBERED),
        f"{kind} of names of a head": (
            lambda names=names: fit_head_(nn.Linear(3, 2), [(X, names)]),
            TypeError,
            NUMBERED,
        ),
        f"{kind} of names online": (lambda names=names: OnlineProbe().update(X, names), TypeError, NUMBERED),
        f"{kind} of names task by task": (lambda names=names: ContinualProbe().update(X, names), TypeError, NUMBERED),
    }


def test_named_classes_are_numbered_as_the_error_says() -> None:
    names, labels = np.unique(NAMES, return_inverse=True)
    report = LinearProbe().fit(X, labels)
    assert list(names[report.best.classes.numpy()]) == ["cat", "dog"]  # type: ignore[union-attr]
    assert np.mean(names[report.best.predict(X).numpy()] == np.array(NAMES)) > 0.9


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    report = LinearProbe().fit(X, X[:, 0])
    with pytest.raises(FileNotFoundError, match=r"`path`: there is no folder '.*nowhere'"):
        report.save(tmp_path / "nowhere" / "report")
    with pytest.raises(FileNotFoundError, match=r"`checkpoint`: there is no folder '.*nowhere'"):
        probe_layers(model(), iter([(X, X)]), checkpoint=tmp_path / "nowhere" / "file")


def test_a_missing_class_is_warned_of_once_whatever_the_number_of_layers() -> None:
    labels = torch.cat([torch.arange(32) % 2, torch.full((8,), 2)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cv = torch.arange(40) // 8
        probe_layers(model(), [(X, labels)], task="classification", readout=["ridge", "lda"], cv=cv, control=True)
    assert [w.category for w in told] == [MissingClassWarning]
    assert "folds [4]" in str(told[0].message) and told[0].filename == __file__
