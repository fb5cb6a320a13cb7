"""One word for one thing: names, prints and conventions that hold everywhere."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from public_api import docs_script
from torch import nn

import torchridge
from torchridge import (
    ContinualProbe,
    LinearProbe,
    Moments,
    OnlineProbe,
    convert_strength,
    explain_weight_decay,
    fit_head_,
    logistic,
    logistic_cv,
    probe_layers,
    ridge,
    ridge_cv,
    ridge_path,
    weight_decay_groups,
)

CHANGELOG = (Path(__file__).parent.parent / "CHANGELOG.md").read_text()
OLD = """
ConstantWeightDecay ContinualProbe ConvergenceWarning CosineWeightDecay DecayRow DecayTable
DecoupledWeightDecay DoublePenaltyWarning GridEdgeWarning IllConditionedWarning InertPenaltyWarning L2Linear
L2Monitor LazyL2Linear LinearOperator LinearProbe LogisticCV LogisticSolution MissingClassWarning Moments
MomentsFolder OnlineProbe Probe ProbeReport RankDeficientWarning RankError RowSource Solution StepPenalty
TorchridgeWarning __version__ all_reduce check_optimizer clear_regularizers column_moments convert_strength
explain_weight_decay fit_head_ logistic logistic_cv muon_groups open_rows penalize_step penalties penalty
probe_layers regularize regularizers ridge ridge_cv ridge_path stream_moments weight_decay_groups
""".split()  # noqa: SIM905

X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1) + torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = (Y > 0).long()


def test_the_table_of_names_is_complete() -> None:
    table = CHANGELOG[CHANGELOG.index("| old | new |") : CHANGELOG.index("### Changes")]
    rows = [line.split("|") for line in table.splitlines()[2:] if line.startswith("|")]
    told = {name for row in rows for name in re.findall(r"`(?:torchridge\.)?(\w+)`", row[1])}
    assert set(OLD) - set(torchridge.__all__) <= told
    for row in rows:
        for path in re.findall(r"`(torchridge(?:\.\w+)+)`", row[2]):
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(module), name), path


def test_about_35_names_at_the_top() -> None:
    assert len(torchridge.__all__) <= 40
    assert set(torchridge.__all__) <= set(dir(torchridge))


def test_modules_are_found_and_none_is_hidden_by_a_function() -> None:
    assert "regularizers" in torchridge._MODULES
    for name in torchridge._MODULES:
        assert inspect.ismodule(getattr(torchridge, name)), name
    for info in pkgutil.walk_packages(torchridge.__path__, "torchridge."):
        if info.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(info.name)
        except ImportError:
            continue  # an extra that is not installed
        parent, _, leaf = info.name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(parent), leaf), ModuleType), info.name


def printed() -> dict[str, Any]:
    many = LinearProbe(metrics=()).fit({f"layer{i}": X + i for i in range(30)}, Y)
    wide = torch.randn(20, 300, dtype=torch.float64)
    return {
        "ridge": ridge(X, Y, 1.0),
        "ridge_path": ridge_path(X, Y, torch.logspace(-2, 4, 200)),
        "ridge_cv": ridge_cv(X, Y, cv=5),
        "a strength for each target": ridge_cv(X, torch.stack([Y] * 40, 1), alpha_per_target=True),
        "wide": ridge_cv(wide, wide[:, 0]),
        "cg": ridge(X, Y, 1.0, solver="cg"),
        "batch": ridge(torch.stack([X, X]), torch.stack([Y, Y]), 1.0),
        "logistic": logistic(X, LABELS),
        "logistic path": logistic(X, LABELS, [0.1, 1.0]),
        "logistic_cv": logistic_cv(X, LABELS, [1e-4, 1e-2, 1.0, 1e4], cv=3),
        "probe": many.best,
        "report": many,
    }


def test_results_print_in_twelve_lines() -> None:
    for name, result in printed().items():
        text = str(result)
        assert text == repr(result) and len(text.splitlines()) <= 12, f"{name}:\n{text}"
        assert max(map(len, text.splitlines())) <= 200 and "tensor(" not in text


def test_a_report_of_many_layers_prints_the_best() -> None:
    report = printed()["report"]
    assert report.best.layer in str(report) and "table()" in str(report) and len(report.table().splitlines()) == 31


@pytest.mark.parametrize("weighted", [False, True])
def test_lambda_means_one_thing_in_ridge_and_logistic(weighted: bool) -> None:
    s = torch.rand(60, dtype=torch.float64) if weighted else None
    total = 60.0 if s is None else float(s.sum())
    alpha = convert_strength(0.1, "lambda", "sklearn", n_samples=60, sample_weight_sum=total)
    want = ridge(X, Y, alpha, sample_weight=s)
    for got in (
        ridge(X, Y, strength=0.1, sample_weight=s),
        ridge(X, Y, strength=torch.tensor(0.1, dtype=torch.float64), sample_weight=s),
        ridge(Moments().update(X, Y, s), strength=0.1),
        ridge_path(X, Y, strength=[0.5, 0.1], sample_weight=s).at(1),
        ridge(X, Y, strength=0.1, sample_weight=s, solver="cg", tol=1e-13),
    ):
        torch.testing.assert_close(got.weight, want.weight, rtol=1e-8, atol=1e-10)
    C = convert_strength(0.1, "lambda", "logistic_C", n_samples=60, sample_weight_sum=total)
    a, b = (logistic(X, LABELS, sample_weight=s, **given) for given in ({"C": C}, {"strength": 0.1}))
    torch.testing.assert_close(a.weight, b.weight)


def test_lambda_of_batches_and_its_refusals() -> None:
    batch, targets = torch.stack([X, 2 * X]), torch.stack([Y, Y])
    weight = torch.rand(2, 60, dtype=torch.float64)
    got = ridge(batch, targets, strength=0.1, sample_weight=weight)
    for i in range(2):
        alone = ridge(batch[i], targets[i], 0.1 * float(weight[i].sum()), sample_weight=weight[i])
        torch.testing.assert_close(got.weight[i], alone.weight)
    with pytest.raises(ValueError, match="`alpha` and `strength` were both given"):
        ridge(X, Y, 1.0, strength=1.0)
    with pytest.raises(ValueError, match="`strength` should be a finite number at least 0"):
        ridge(X, Y, strength=-1.0)


@pytest.mark.parametrize("alpha", [[1, 2], torch.tensor([1.0, 2.0, 3.0])])
def test_several_strengths_are_told_of_ridge_path(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"`alpha` should have shape .* call `ridge_path\(X, y, alphas\)`"):
        ridge(X, Y, alpha)


def test_conversions_by_position() -> None:
    assert convert_strength(0.01, "keras", "sklearn", n_samples=1000) == 10.0


def test_the_table_of_decisions_makes_the_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    options: dict[str, Any] = {"rules": {"2.*": 0.3}}
    want = weight_decay_groups(model, 0.1, lr=1e-3, **options)
    got = explain_weight_decay(model, 0.1, **options).groups(1e-3)
    assert [{**g, "params": list(map(id, g["params"]))} for g in got] == [
        {**g, "params": list(map(id, g["params"]))} for g in want
    ]


INTEGERS = [LABELS, LABELS.to(torch.int8), LABELS.bool()]


@pytest.mark.parametrize("labels", INTEGERS, ids=lambda v: str(v.dtype))
def test_integers_and_booleans_are_classes_in_every_probe(labels: torch.Tensor) -> None:
    network, rows = nn.Sequential(nn.Linear(5, 4), nn.Tanh()), X.float()
    batches = [(rows[:30], labels[:30]), (rows[30:], labels[30:])]
    assert probe_layers(network, batches).task == "classification"
    assert probe_layers(network, iter(batches)).n_samples == 60
    assert LinearProbe().fit(rows, labels).task == "classification"
    assert ContinualProbe().update(rows, labels).ridge().classes is not None
    online = OnlineProbe().update(rows, labels)
    assert online.probe is not None and online.probe.classes is not None
    assert fit_head_(nn.Linear(5, 2), [(rows, labels.long())]).readout == "lda"


def test_numbers_are_targets_in_every_probe() -> None:
    network, rows = nn.Sequential(nn.Linear(5, 4), nn.Tanh()), X.float()
    assert probe_layers(network, [(rows, Y)]).task == "regression"
    assert LinearProbe().fit(rows, Y).task == "regression"
    assert ContinualProbe().update(rows, Y).ridge().classes is None
    online = OnlineProbe().update(rows, Y)
    assert online.probe is not None and online.probe.classes is None
    assert fit_head_(nn.Linear(5, 1), [(rows, Y)]).readout == "ridge"


def test_unknown_options_of_probes_are_named_by_python() -> None:
    for call in (lambda: LinearProbe(alpha=[1.0]), lambda: probe_layers(nn.Sequential(), [], folds=5)):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            call()


def test_strengths_of_an_online_probe() -> None:
    assert OnlineProbe(alpha=2.0).strength == 2.0 and OnlineProbe(readout="lda", shrinkage=0.1).strength == 0.1
    with pytest.raises(ValueError, match="`shrinkage` belongs to readout='lda'"):
        OnlineProbe(shrinkage=0.1)
    with pytest.raises(ValueError, match="`alpha` belongs to readout='ridge'"):
        OnlineProbe(readout="lda", alpha=1.0)


def test_folds_of_a_probe_are_those_of_scikit_learn() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    for labels, splitter in ((Y, selection.KFold(4)), (LABELS, selection.StratifiedKFold(4))):
        ids = torch.zeros(60, dtype=torch.int64)
        for k, (_, test) in enumerate(splitter.split(X.numpy(), labels.numpy())):
            ids[torch.from_numpy(test)] = k
        got, want = (LinearProbe(cv=cv).fit(X, labels).best for cv in (4, ids))
        assert got.strength_scores.equal(want.strength_scores)


def public_parameters() -> dict[str, str]:
    """The annotation of every parameter of the public functions and methods, but for scikit-learn's protocol."""
    reference, found = docs_script("reference"), {}
    values = [value for module in reference.public_modules() for _, value in reference.names(module)]
    for value in values:
        members = vars(value).items() if inspect.isclass(value) else [("", value)]
        for name, item in members:
            if not inspect.isfunction(item) or (name.startswith("_") and name != "__init__"):
                continue
            if "torchridge" in item.__module__ and ".estimators" not in item.__module__:
                for parameter in inspect.signature(item).parameters.values():
                    found[f"{item.__module__}.{item.__qualname__}.{parameter.name}"] = str(parameter.annotation)
    return {path: kind for path, kind in found.items() if not path.endswith((".self", ".cls"))}


def test_public_parameters_have_types() -> None:
    parameters = public_parameters()
    bare = [path for path, kind in parameters.items() if kind in ("Any", "Any | None", "<class 'inspect._empty'>")]
    assert len(parameters) > 400 and len(bare) <= 0.03 * len(parameters), bare


@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
def test_a_solver_is_asked_for_by_callers_alone(per_target: bool) -> None:
    X, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(60, 2, dtype=torch.float64)
    chosen = ridge_cv(X, y, [0.1, 1.0, 10.0], cv=5, alpha_per_target=per_target)
    assert chosen.reason == "the moments that scored the strengths serve the fit too"
    assert ridge(X, y, 1.0, solver="spectral").reason == "asked for"
