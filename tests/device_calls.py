"""Every public call, by what it is called, as a function of a device and a dtype: the table of `test_devices.py`.

Each returns what the user gets. Data are drawn on the CPU and then moved, so that all devices see the same numbers.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import torchridge
from torchridge import (
    ConstantWeightDecay,
    ContinualProbe,
    CosineWeightDecay,
    DecoupledWeightDecay,
    L2Linear,
    L2Monitor,
    LazyL2Linear,
    LinearOperator,
    LinearProbe,
    Moments,
    OnlineProbe,
    ProbeReport,
    banded_ridge_cv,
    check_optimizer,
    clear_regularizers,
    explain_weight_decay,
    fit_head_,
    logistic,
    logistic_cv,
    muon_groups,
    nested_ridge_cv,
    open_rows,
    penalize_step,
    penalties,
    penalty,
    plots,
    probe_layers,
    regularize,
    regularizers,
    ridge,
    ridge_cv,
    ridge_path,
    stream_moments,
    tensorboard,
    weight_decay_groups,
)
from torchridge import estimators as models

Call = Callable[["Case"], Any]
CALLS: dict[str, Call] = {}

N, D, T = 60, 8, 3
EXACT = {"cg": 1e-13}  # what a solver that approaches the answer is asked for
ALPHAS = torch.logspace(-1, 3, 12, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """Where and in what precision a call is made, and the data for it."""

    device: torch.device
    dtype: torch.dtype

    def tensor(self, *shape: int, seed: int = 0, kind: str = "normal") -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        make = torch.randn if kind == "normal" else torch.rand
        return make(*shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def on(self, values: Tensor) -> Tensor:
        return values.to(self.device)

    @property
    def X(self) -> Tensor:
        return self.tensor(N, D, seed=1) * torch.linspace(0.5, 3, D, dtype=self.dtype, device=self.device) + 2

    @property
    def wide(self) -> Tensor:
        return self.tensor(20, 45, seed=2)

    @property
    def Y(self) -> Tensor:
        return self.X[:, :T] @ self.tensor(T, T, seed=3) + 2 * self.tensor(N, T, seed=4)

    @property
    def y(self) -> Tensor:
        return self.Y[:, 0]

    @property
    def s(self) -> Tensor:
        return self.tensor(N, seed=5, kind="uniform") + 0.5

    @property
    def p(self) -> Tensor:
        return self.tensor(D, seed=6, kind="uniform") + 0.5

    @property
    def labels(self) -> Tensor:
        return self.on(torch.arange(N) * 7 % 3)

    @property
    def signs(self) -> Tensor:
        return self.on(torch.arange(N) * 7 % 5 % 2)

    @property
    def ids(self) -> Tensor:
        return self.on(torch.arange(N) % 4)

    def model(self) -> nn.Module:
        torch.manual_seed(7)
        layers = [nn.Linear(D, 6), nn.Softplus(), nn.Tanh(), nn.Linear(6, T)]
        return nn.Sequential(*layers).to(self.device, self.dtype)

    def batches(self, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(self.X[i : i + 16], y[i : i + 16]) for i in range(0, N, 16)]


def call(name: str) -> Callable[[Call], Call]:
    def add(function: Call) -> Call:
        assert name not in CALLS, name
        CALLS[name] = function
        return function

    return add


def calls(**named: Call) -> None:
    for name, function in named.items():
        call(name.replace("__", ", "))(function)


# ---------------------------------------------------------------- ridge at one strength

for solver in ("auto", "cholesky", "spectral", "dual", "svd", "cg"):
    call(f"ridge, {solver}")(lambda c, solver=solver: ridge(c.X, c.Y, 2.0, solver=solver, tol=EXACT.get(solver)))
    call(f"ridge of few rows, {solver}")(
        lambda c, solver=solver: (
            ridge(c.wide, c.Y[:20], 2.0, solver=solver, tol=EXACT.get(solver)) if solver != "spectral" else None
        )
    )

OPTIONS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "weights": lambda c: {"sample_weight": c.s},
    "no intercept": lambda c: {"fit_intercept": False},
    "standardize": lambda c: {"standardize": True},
    "penalty factors": lambda c: {"penalty_factors": c.p},
    "free features": lambda c: {"penalty_factors": torch.cat([c.p[:-2], 0 * c.p[:2]])},
    "prior": lambda c: {"prior": c.tensor(T, D, seed=8)},
    "float32 sums": lambda c: {"moments_dtype": torch.float32} if c.dtype is torch.float32 else {},
}
for name, options in OPTIONS.items():
    call(f"ridge, {name}")(lambda c, options=options: ridge(c.X, c.Y, 2.0, **options(c)))
    call(f"ridge_path, {name}")(lambda c, options=options: ridge_path(c.X, c.Y, ALPHAS, **options(c)))
    call(f"ridge_cv of folds, {name}")(lambda c, options=options: ridge_cv(c.X, c.Y, ALPHAS, 5, **options(c)))
    call(f"ridge_cv, {name}")(lambda c, options=options: ridge_cv(c.X, c.Y, ALPHAS, **options(c)))


@call("ridge, a strength for each target")
def _(c: Case) -> Any:
    return ridge(c.X, c.Y, c.on(torch.tensor([0.5, 2.0, 8.0], dtype=c.dtype)))


@call("ridge of duplicate columns without penalty")
def _(c: Case) -> Any:
    solution = ridge(torch.cat([c.X, c.X], 1), c.Y, 0.0)
    return solution.weight, solution.bias, solution.rank, solution.predict(torch.cat([c.X, c.X], 1))


@call("ridge of moments")
def _(c: Case) -> Any:
    return ridge(Moments().update(c.X, c.Y), alpha=2.0)


@call("ridge of bfloat16 rows")
def _(c: Case) -> Any:
    solution = ridge(c.X.bfloat16(), c.Y.bfloat16(), 2.0)
    return solution.weight.float(), solution.bias.float()


@call("ridge of a batch")
def _(c: Case) -> Any:
    return ridge(c.tensor(5, 12, 4, seed=9), c.tensor(5, 12, 2, seed=10), c.on(torch.linspace(1, 2, 5, dtype=c.dtype)))


@call("ridge of a batch of few rows")
def _(c: Case) -> Any:
    return ridge(c.tensor(5, 4, 12, seed=9), c.tensor(5, 4, seed=10), 0.5)


@call("gradients of ridge")
def _(c: Case) -> Any:
    alpha = torch.tensor(2.0, dtype=c.dtype, device=c.device)
    inputs = [a.clone().requires_grad_() for a in (c.X, c.Y, alpha, c.s, c.p, c.tensor(T, D, seed=8))]
    X, Y, alpha, s, p, prior = inputs
    solution = ridge(X, Y, alpha, sample_weight=s, penalty_factors=p, prior=prior)
    return torch.autograd.grad(solution.weight.square().sum() + solution.bias.sum(), inputs)


@call("gradients of a batch of ridge")
def _(c: Case) -> Any:
    inputs = [a.requires_grad_() for a in (c.tensor(5, 4, 12, seed=9), c.tensor(5, 4, 2, seed=10))]
    return torch.autograd.grad(ridge(*inputs, 0.5).predict(c.tensor(5, 3, 12, seed=11)).square().sum(), inputs)


@call("ridge under vmap")
def _(c: Case) -> Any:
    return torch.func.vmap(lambda X, y: ridge(X, y, 0.5).weight)(c.tensor(5, 12, 4, seed=9), c.tensor(5, 12, seed=10))


@call("members of a path")
def _(c: Case) -> Any:
    path = ridge_path(c.X, c.Y, ALPHAS, sample_weight=c.s)
    one = path.at(3)
    return path.predict(c.X), path.standard_errors, one, one.predict(c.X[0]), one.standard_errors, one.to_linear()


@call("ridge_path of few rows")
def _(c: Case) -> Any:
    return ridge_path(c.wide, c.Y[:20], ALPHAS)


@call("ridge_path of a batch")
def _(c: Case) -> Any:
    return ridge_path(c.tensor(5, 12, 4, seed=9), c.tensor(5, 12, 2, seed=10), ALPHAS)


# ---------------------------------------------------------------- matrices that are only multiplied with


def sparse(c: Case) -> Tensor:
    return torch.where(c.tensor(N, D, seed=12).abs() > 1, c.X, torch.zeros_like(c.X))


for layout in ("csr", "coo", "csc"):
    call(f"ridge of {layout}")(
        lambda c, layout=layout: ridge(getattr(sparse(c), f"to_sparse_{layout}")(), c.Y, 2.0, solver="cg", tol=1e-13)
    )
    call(f"prediction from {layout}")(
        lambda c, layout=layout: ridge(c.X, c.Y, 2.0).predict(getattr(sparse(c), f"to_sparse_{layout}")())
    )


def operator(c: Case) -> LinearOperator:
    X = c.X.double()
    return LinearOperator((N, D), lambda v: X @ v, lambda r: X.T @ r, device=c.device)


def answer(solution: Any) -> Any:
    """What was fitted, without dof and condition: conjugate gradients estimate them, from products in float32."""
    return solution.weight, solution.bias, solution.alpha, solution.scores, solution.fold_scores


calls(
    ridge_of_an_operator=lambda c: answer(ridge(operator(c), c.Y, 2.0)),
    ridge_path_of_an_operator=lambda c: answer(ridge_path(operator(c), c.Y, ALPHAS)),
    ridge_path__cg=lambda c: answer(ridge_path(c.X, c.Y, ALPHAS, solver="cg", tol=1e-13)),
    ridge_cv_of_an_operator=lambda c: answer(ridge_cv(operator(c), c.Y, ALPHAS, cv=4)),
    ridge_cv_of_csr=lambda c: answer(ridge_cv(sparse(c).to_sparse_csr(), c.Y, ALPHAS, cv=4, solver="cg", tol=1e-13)),
)

# ---------------------------------------------------------------- ridge_cv


def splits(c: Case) -> list[tuple[Tensor, Tensor]]:
    return [(c.on((c.ids.cpu() != k).nonzero()[:, 0]), c.on((c.ids.cpu() == k).nonzero()[:, 0])) for k in range(4)]


class Splitter:
    def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        return [(np.flatnonzero(np.arange(N) % 3 != k), np.flatnonzero(np.arange(N) % 3 == k)) for k in range(3)]


CV: dict[str, Callable[[Case], Any]] = {
    "gcv": lambda c: "gcv",
    "loo": lambda c: "loo",
    "evidence": lambda c: "evidence",
    "5 folds": lambda c: 5,
    "ids": lambda c: c.ids,
    "a splitter": lambda c: Splitter(),
    "splits": splits,
}
for name, cv in CV.items():
    call(f"ridge_cv, {name}")(lambda c, cv=cv: ridge_cv(c.X, c.Y, ALPHAS, cv(c)))
    call(f"ridge_cv, {name}, a strength for each target")(
        lambda c, cv=cv: ridge_cv(c.X, c.Y, ALPHAS, cv(c), alpha_per_target=True)
    )
    call(f"ridge_cv, {name}, weights")(lambda c, cv=cv: ridge_cv(c.X, c.y, ALPHAS, cv(c), sample_weight=c.s))
for name in ("gcv", "loo", "evidence", "5 folds"):
    call(f"ridge_cv of few rows, {name}")(
        lambda c, cv=CV[name]: ridge_cv(c.wide, c.Y[:20], ALPHAS, cv(c)),
    )

calls(
    ridge_cv__an_automatic_grid=lambda c: ridge_cv(c.X, c.Y, cv=5),
    ridge_cv__groups=lambda c: ridge_cv(c.X, c.Y, ALPHAS, 3, groups=c.on(torch.arange(N) // 5)),
    ridge_cv__r2=lambda c: ridge_cv(c.X, c.Y, ALPHAS, 5, scoring="r2"),
    ridge_cv__dual_folds=lambda c: ridge_cv(c.wide, c.Y[:20], ALPHAS, 5, solver="dual"),
    ridge_cv__cg=lambda c: answer(ridge_cv(c.X, c.Y, ALPHAS, 4, solver="cg", tol=1e-13)),
    ridge_cv__gcv_by_cg=lambda c: ridge_cv(c.X, c.Y, ALPHAS, "gcv", solver="cg", tol=1e-13).weight,
    nested_ridge_cv=lambda c: nested_ridge_cv(c.X, c.Y, ALPHAS, cv=3, outer=4),
    ridge_cv_of_moments=lambda c: ridge_cv(Moments().update(c.X, c.Y, fold=c.ids), alphas=ALPHAS),
)


# ---------------------------------------------------------------- moments and streams


@call("moments added, taken away and moved")
def _(c: Case) -> Any:
    one = Moments().update(c.X[:40], c.Y[:40], c.s[:40], fold=c.ids[:40])
    two = Moments().update(c.X[40:], c.Y[40:], fold=1)
    both = one + two
    return both, both - two, both.to(dtype=torch.float32), both.without(1)._asdict(), both.mean, both.gram, both.cross


@call("moments of stacked rows")
def _(c: Case) -> Any:
    return Moments().update(c.X.reshape(3, 20, D), c.Y.reshape(3, 20, T), flatten=True)


@call("moments through a file")
def _(c: Case) -> Any:
    file = io.BytesIO()
    torch.save(Moments().update(c.X, c.Y, fold=c.ids).state_dict(), file)
    file.seek(0)
    loaded = Moments()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    return loaded.update(c.X, c.Y, fold=c.ids)


@call("moments that name their device")
def _(c: Case) -> Any:
    named = Moments(device=c.device.type).update(c.X.cpu(), c.Y.cpu())
    return named + Moments().update(c.X, c.Y)


@call("stream of batches")
def _(c: Case) -> Any:
    return stream_moments(c.batches(c.Y), cv=4)


@call("stream of batches from the host")
def _(c: Case) -> Any:
    return stream_moments([(X.cpu(), y.cpu()) for X, y in c.batches(c.Y)], cv=4, device=c.device)


@call("stream of a file")
def _(c: Case) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        np.save(path, torch.cat([c.X, c.Y], 1).cpu().numpy())
        return stream_moments(open_rows(str(path), target=[D, D + 1, D + 2]), cv=4, batch_rows=16, device=c.device)


# ---------------------------------------------------------------- logistic regression

# A gap of ε leaves weights √ε from the minimum.
TIGHT = {torch.float64: 1e-18, torch.float32: 1e-9}


def logistic_(c: Case, y: Tensor, C: Any = 0.3, **options: Any) -> Any:
    solution = logistic(c.X, y, C, tol=TIGHT[c.dtype], **options)
    parts = solution.decision_function(c.X), solution.predict_proba(c.X), solution.predict(c.X)
    return solution, *parts


calls(
    logistic__two_classes=lambda c: logistic_(c, c.signs),
    logistic__three_classes=lambda c: logistic_(c, c.labels),
    logistic__a_path=lambda c: logistic_(c, c.labels, [0.01, 0.1, 1.0]),
    logistic__heads=lambda c: logistic_(c, torch.stack([c.labels, c.labels.flip(0)], 1)),
    logistic__weights=lambda c: logistic_(c, c.labels, sample_weight=c.s),
    logistic__no_intercept=lambda c: logistic_(c, c.signs, fit_intercept=False),
    logistic__strength=lambda c: logistic_(c, c.signs, None, strength=0.02),
    logistic__a_layer=lambda c: logistic(c.X, c.labels, 0.3, tol=TIGHT[c.dtype]).to_linear(),
    logistic__a_member=lambda c: logistic(c.X, c.labels, [0.1, 1.0], tol=TIGHT[c.dtype]).at(0),
)
CS = torch.logspace(-3, 0, 6, dtype=torch.float64)
LOGISTIC_CV: dict[str, Callable[[Case], dict[str, Any]]] = {
    "5 folds": lambda c: {},
    "ids": lambda c: {"cv": c.ids},
    "a splitter": lambda c: {"cv": Splitter()},
    "groups": lambda c: {"cv": 3, "groups": c.on(torch.arange(N) // 5)},
    "accuracy": lambda c: {"scoring": "accuracy"},
    "a callable": lambda c: {"scoring": lambda y, p: -(p - nn.functional.one_hot(y).to(p)).square().mean()},
    "weights": lambda c: {"sample_weight": c.s},
}
for name, options in LOGISTIC_CV.items():
    call(f"logistic_cv, {name}")(
        lambda c, options=options: logistic_cv(c.X, c.labels, CS, tol=TIGHT[c.dtype], **options(c))
    )


# ---------------------------------------------------------------- estimators


def fitted(c: Case, model: Any, y: Tensor, **options: Any) -> Any:
    model.fit(c.X, y, **options)
    more = [getattr(model, n)(c.X) for n in ("decision_function", "predict_proba") if hasattr(model, n)]
    return model.coef_, model.intercept_, model.predict(c.X), model.score(c.X, y), more, model.to_linear()


def kept(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name != "device"}


@call("partial_fit")
def _(c: Case) -> Any:
    regressor, classifier, chosen = models.Ridge(), models.RidgeClassifier(), models.RidgeCV(ALPHAS.numpy())
    for i, (X, y) in enumerate(c.batches(c.Y)):
        regressor.partial_fit(X, y)
        chosen.partial_fit(X, y, fold=i % 2)
    for X, labels in c.batches(c.labels):
        classifier.partial_fit(X, labels, classes=[0, 1, 2])
    fits = regressor, classifier, chosen
    return [(m.coef_, m.intercept_, m.predict(c.X), kept(m.state_dict())) for m in fits]


grid = ALPHAS.numpy()
calls(
    Ridge=lambda c: fitted(c, models.Ridge(2.0), c.Y),
    Ridge__weights=lambda c: fitted(c, models.Ridge(2.0), c.y, sample_weight=c.s),
    Ridge__positive=lambda c: fitted(c, models.Ridge(2.0, positive=True), c.y),
    RidgeClassifier=lambda c: fitted(c, models.RidgeClassifier(2.0), c.labels),
    RidgeClassifier__balanced=lambda c: fitted(c, models.RidgeClassifier(class_weight="balanced"), c.signs),
    RidgeCV=lambda c: fitted(c, models.RidgeCV(grid), c.Y),
    RidgeCV__folds=lambda c: fitted(c, models.RidgeCV(grid, cv=4), c.Y),
    RidgeCV__scoring=lambda c: fitted(c, models.RidgeCV(grid, cv=4, scoring="r2"), c.y),
    RidgeClassifierCV=lambda c: fitted(c, models.RidgeClassifierCV(grid), c.labels),
    RidgeClassifierCV__folds=lambda c: fitted(c, models.RidgeClassifierCV(grid, cv=4), c.labels),
    LogisticRegression=lambda c: fitted(c, models.LogisticRegression(C=0.3, tol=1e-10), c.labels),
    LogisticRegressionCV=lambda c: fitted(c, models.LogisticRegressionCV(Cs=CS.numpy(), cv=3, tol=1e-10), c.labels),
)


# ---------------------------------------------------------------- probes


def probed(c: Case, y: Tensor, **options: Any) -> Any:
    report = probe_layers(c.model(), c.batches(y), **options)
    best = report.best
    rows = torch.tanh(c.tensor(9, best.weight.shape[1], seed=13))
    return [probe_of(p) for p in report], report.table(), report.predict(rows, best.layer), report.to_linear()


def probe_of(p: Any) -> Any:
    """A probe without the interval that the bootstrap draws by the generator of its device."""
    return p.layer, p.readout, p.weight, p.bias, p.strength, p.strength_scores, p.fold_scores, p.classes


CLASSES = {"task": "classification", "metrics": "accuracy"}
calls(
    probe_layers=lambda c: probed(c, c.Y),
    probe_layers__r2_of_rows=lambda c: probed(c, c.Y, metrics={"own": lambda y, z: -(y - z).square().mean()}),
    probe_layers__classes=lambda c: probed(c, c.labels, readout=["ridge", "lda"], **CLASSES),
    probe_layers__balanced=lambda c: probed(c, c.labels, class_weight="balanced", **CLASSES),
    probe_layers__standardize=lambda c: probed(c, c.labels, standardize=True, **CLASSES),
    probe_layers__host_batches=lambda c: probed(c, c.Y.cpu()),
    probe_layers__fold_ids=lambda c: probed(c, c.Y, cv=c.ids),
    probe_layers__groups=lambda c: probed(c, c.Y, groups=c.on(torch.arange(N) // 5)),
    probe_layers__weights=lambda c: probed(c, c.Y, sample_weight=c.s),
)


@call("probe_layers: logistic")
def _(c: Case) -> Any:
    options = {"readout": "logistic", "keep": "memory", "keep_bytes": 2**20, "Cs": [0.1, 1.0], **CLASSES}
    report = probe_layers(c.model(), c.batches(c.labels), ["0", "3"], **options)
    # solved to its own tolerance: what is chosen, and held-out decisions, must agree
    return [(p.layer, p.strength, p.fold_scores["accuracy"]) for p in report], report.best.weight.device == c.X.device


@call("LinearProbe")
def _(c: Case) -> Any:
    report = LinearProbe("classification", ["ridge", "lda"], metrics="accuracy").fit(
        {"a": c.X, "b": c.X[:, :3]}, c.labels
    )
    return [probe_of(p) for p in report], report.best.decision_function(c.X if report.best.layer == "a" else c.X[:, :3])


@call("a report through a file")
def _(c: Case) -> Any:
    report = LinearProbe(metrics=()).fit({"a": c.X}, c.Y)
    with tempfile.TemporaryDirectory() as folder:
        report.save(Path(folder) / "probes.safetensors")
        loaded = ProbeReport.load(Path(folder) / "probes.safetensors")
    return report.predict(c.X, "a"), float((loaded.best.weight.cpu() - report.best.weight.cpu()).abs().max())


@call("OnlineProbe")
def _(c: Case) -> Any:
    probe = OnlineProbe(readout="lda", decay=0.9)
    for X, labels in c.batches(c.labels):
        probe.update(X, labels)
    assert probe.probe is not None
    return probe.probe.weight, probe.probe.bias, probe.score, probe.probe.predict(c.X)


@call("ContinualProbe")
def _(c: Case) -> Any:
    probe = ContinualProbe()
    for k in range(3):
        probe.update(c.X[c.labels == k], c.labels[c.labels == k], name=k)
    probe.forget(2)
    fits = probe.ridge(2.0), probe.lda(0.1)
    return [(p.weight, p.bias, p.predict(c.X)) for p in fits]


@call("fit_head_")
def _(c: Case) -> Any:
    model = c.model()
    probe = fit_head_(model[-1], c.batches(c.labels), model=model)
    return model, probe.weight, probe.strength


# ---------------------------------------------------------------- penalties, steps, decay


def trained(
    c: Case, model: nn.Module, optimizer: torch.optim.Optimizer, also: Callable[[], Tensor] | None = None
) -> Any:
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(c.X) - c.Y).square().mean()
        (loss if also is None else loss + also()).backward()
        optimizer.step()
    return model


def regularized(c: Case, **options: Any) -> nn.Module:
    return regularize(c.model(), **options)


KINDS = {
    "L1": regularizers.L1(0.01),
    "L2": regularizers.L2(0.01),
    "L1L2": regularizers.L1L2(0.01, 0.02),
    "orthogonal": regularizers.OrthogonalRegularizer(0.01),
    "by name": regularizers.get("l2"),
    "a tensor's strength": regularizers.L2(torch.tensor(0.01)),
}
for name, kind in KINDS.items():

    @call(f"penalty, {name}")
    def _(c: Case, kind: Any = kind) -> Any:
        model = regularized(c, weight=kind, bias=regularizers.L2(0.1), activity=regularizers.L2(0.1))
        model(c.X)
        value = penalty(model)
        return value, penalties(model), torch.autograd.grad(value, [model[0].weight, model[0].bias])


@call("penalty in the loss")
def _(c: Case) -> Any:
    model = regularized(c, weight=regularizers.L2(0.01))
    return trained(c, model, torch.optim.Adam(model.parameters(), lr=0.05), lambda: penalty(model))


@call("penalize_step")
def _(c: Case) -> Any:
    model = regularized(c, weight=regularizers.L2(0.01))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    handle = penalize_step(optimizer, model)
    out = trained(c, model, optimizer)
    handle.remove()
    return out


@call("layers with penalties of their own")
def _(c: Case) -> Any:
    torch.manual_seed(7)
    options = {"l2": 0.01, "activity_regularizer": "l2", "device": c.device, "dtype": c.dtype}
    model = nn.Sequential(L2Linear(D, 6, **options), LazyL2Linear(T, **options))
    with torch.no_grad():
        model(c.X)
        for p in model.parameters():  # what a lazy layer draws comes from the generator of its device
            p.copy_(c.tensor(*p.shape, seed=14))
    model(c.X)
    return penalty(model), penalties(model)


@call("regularizers cleared")
def _(c: Case) -> Any:
    return clear_regularizers(regularized(c, weight=regularizers.L2(0.01)))


@call("weight_decay_groups")
def _(c: Case) -> Any:
    model = c.model()
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=0.05)
    check_optimizer(optimizer, model=model)
    return trained(c, model, optimizer), explain_weight_decay(model, 0.1).to_dicts()


@call("muon_groups")
def _(c: Case) -> Any:
    muon, adamw = muon_groups(c.model(), 0.1)
    return [[p for group in groups for p in group["params"]] for groups in (muon, adamw)]


DECAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "initial": {"reference": "initial"},
    "coupled": {"coupled": True},
    "cautious": {"cautious": True},
}
for name, options in DECAYS.items():

    @call(f"DecoupledWeightDecay, {name}")
    def _(c: Case, options: Any = options) -> Any:
        model = c.model()
        optimizer = torch.optim.SGD(weight_decay_groups(model, 0.1), lr=0.05, momentum=0.9)
        decay = DecoupledWeightDecay(optimizer, **options)
        schedule = ConstantWeightDecay(optimizer) if options else CosineWeightDecay(optimizer, 10)
        trained(c, model, optimizer)
        schedule.step()
        return trained(c, model, optimizer), decay.state_dict()


class Writer:
    """Takes what a SummaryWriter would write."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}

    def add_scalar(self, tag: str, value: float, step: int = 0) -> None:
        self.scalars[f"{tag} {step}"] = float(value)

    def add_text(self, tag: str, text: str, step: int = 0) -> None: ...

    def add_hparams(self, hparam_dict: Any, metric_dict: Any, run_name: str = "") -> None:
        self.scalars |= {f"{run_name} {k}": float(v) for k, v in {**hparam_dict, **metric_dict}.items()}

    def add_figure(self, tag: str, figure: Any, step: int = 0) -> None:
        self.scalars |= {f"{tag} {i}": float(np.nansum(y)) for i, y in enumerate(lines(figure.axes[0]))}


def lines(ax: Any) -> list[Any]:
    return [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()]


@call("L2Monitor")
def _(c: Case) -> Any:
    model, writer = regularized(c, weight=regularizers.L2(0.01)), Writer()
    optimizer = torch.optim.SGD(weight_decay_groups(model, 0.1), lr=0.05)
    monitor = L2Monitor(writer, model, optimizer)
    (model(c.X) - c.Y).square().mean().backward()
    monitor.step()
    return writer.scalars


# ---------------------------------------------------------------- pictures


@call("plots")
def _(c: Case) -> Any:
    from matplotlib import pyplot

    solution, path = ridge_cv(c.X, c.Y, ALPHAS, cv=5), ridge_path(c.X, c.Y, ALPHAS)
    report = LinearProbe(metrics=()).fit({"a": c.X, "b": c.X[:, :3]}, c.Y)
    axes = [plots.plot_cv(solution), plots.plot_path(path), plots.plot_layers(report)]
    plots.plot_decay(explain_weight_decay(c.model()))
    bands = [c.X[:, :2], c.X[:, 2:]]
    plots.plot_bands(banded_ridge_cv(bands, c.Y, cv=3).partition(bands, c.Y))
    drawn = [lines(ax) for ax in axes]
    pyplot.close("all")
    return drawn


@call("tensorboard")
def _(c: Case) -> Any:
    writer = Writer()
    solution = ridge_cv(c.X, c.Y, ALPHAS, cv=5)
    tensorboard.log_sweep(writer, solution)
    tensorboard.log_cv(writer, solution)
    tensorboard.log_path(writer, ridge_path(c.X, c.Y, ALPHAS))
    tensorboard.log_layers(writer, LinearProbe(metrics=()).fit({"a": c.X, "b": c.X[:, :3]}, c.Y))
    return writer.scalars


# Public names that no device changes, or that other tests take to devices.
EXEMPT = {
    "convert_strength": "numbers in, numbers out",
    "L2Callback": "moves nothing itself: tests/integrations",
    "L2Regularization": "moves nothing itself: tests/integrations",
    "L2TrainerCallback": "moves nothing itself: tests/integrations",
    "WeightDecayMixin": "moves nothing itself: tests/integrations",
    "decay_parameter_names": "names of parameters",
    "MomentsFolder": "wants ranks: tests/over_ranks",
    "all_reduce": "wants ranks: tests/over_ranks",
    "column_moments": "wants ranks: tests/over_ranks",
    "RankError": "an error",
    "NotFittedError": "an error",
    "DecayRow": "a row of the table that explain_weight_decay returns",
    "DecayTable": "what explain_weight_decay returns",
    "BandedSolution": "what banded_ridge_cv returns",
    "LogisticSolution": "what logistic returns",
    "NestedRidgeCV": "what nested_ridge_cv returns",
    "Probe": "what probes return",
    "RidgeSolution": "what ridge returns",
    "StepPenalty": "what penalize_step returns",
    "RowSource": "what open_rows returns",
    "Regularizer": "the base of those in the table",
    "deserialize": "numbers in, a regularizer out",
    "serialize": "a regularizer in, numbers out",
    "validate_float_arg": "a number in, a number out",
    "l1": "another name of L1",
    "l2": "another name of L2",
    "l1_l2": "another name of L1L2",
    "orthogonal": "another name of OrthogonalRegularizer",
    "orthogonal_regularizer": "another name of OrthogonalRegularizer",
    "main": "the shell: tests/cli",
    "__version__": "a string",
}


def run(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Make the call of that name; its warnings are the business of other tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torchridge.TorchridgeWarning)
        warnings.simplefilter("ignore", UserWarning)
        return CALLS[name](Case(device, dtype))
