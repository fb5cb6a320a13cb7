"""What a reader sees of probes: scores with their error, warnings that name the layer, kept features as they are."""

import warnings
from typing import Any

import pytest
import torch

from torchridge.exceptions import GridEdgeWarning
from torchridge.probing import LinearProbe, probe_layers

X = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + 0.3 * X[:, 1] > 0).long()
CLASSES: dict[str, Any] = {"task": "classification", "cv": 3}


def test_the_table_shows_the_standard_error_over_folds_and_marks_what_is_negated() -> None:
    report = LinearProbe(readout=["ridge", "logistic"], metrics="accuracy", **CLASSES).fit(X, Y)
    ridge = report.of(readout="ridge")
    folds = ridge.fold_scores["accuracy"]
    head, first, _ = report.table().splitlines()
    assert f"{float(folds.mean()):.4g} ± {float(folds.std()) / 3**0.5:.2g}" in first
    assert "−mse" in head and "−log_loss" in head and " accuracy" in head
    assert ridge.scores["mse"] < 0 and report.of(readout="logistic").scores["log_loss"] < 0


def test_a_warning_of_the_grid_names_the_layer_and_the_readout() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"alphas": [1e7, 1e9], "Cs": [1e-6, 1e-5], **CLASSES}
        LinearProbe(readout=["ridge", "logistic"], **options).fit({"early": X, "late": X[:, :2]}, Y)
    edges = [str(w.message).partition(":")[0] for w in caught if w.category is GridEdgeWarning]
    names = [
        f"layer '{layer}', readout '{readout}'" for layer in ("early", "late") for readout in ("ridge", "logistic")
    ]
    assert edges == names
    with pytest.warns(GridEdgeWarning, match="^the best strength"):  # and no layer where there is none
        LinearProbe(alphas=[1e7, 1e9])
        from torchridge import ridge_cv

        ridge_cv(X, X[:, 0], [1e7, 1e9], cv=3)


def test_the_logistic_readout_takes_one_try_and_features_keep_their_digits() -> None:
    model, batches = torch.nn.Sequential(torch.nn.Linear(4, 3)), [(X[:40], Y[:40]), (X[40:], Y[40:])]
    one = probe_layers(model, batches, readout="logistic", Cs=[0.1], **CLASSES).best
    with torch.no_grad():
        two = LinearProbe(readout="logistic", Cs=[0.1], **CLASSES).fit(model(X), Y).best
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-9, atol=1e-12)
    bound = {"readout": "logistic", "keep_bytes": 100, **CLASSES}
    with pytest.raises(ValueError, match="`keep_bytes`=100"):
        probe_layers(model, batches, **bound)
    with pytest.raises(ValueError, match=r"`checkpoint` keeps moments.*'logistic'"):
        probe_layers(model, batches, readout="logistic", checkpoint="file", **CLASSES)
