"""Estimators, probes and logistic regression over the rows of several gloo ranks: the answer of one process."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from oracles import relative
from tolerances import SOLVERS
from torch import Tensor, nn

from torchridge import logistic, logistic_cv
from torchridge.estimators import Ridge, RidgeClassifier, RidgeCV
from torchridge.exceptions import RankError
from torchridge.probing import LinearProbe, ProbeReport, probe_layers
from torchridge.probing.features.folding import StreamFolds

N, D = 160, 6
SAME = SOLVERS[torch.float64]
LOGISTIC = 1e-6  # stopped at a relative gap of 1e-13 of the objective: its root
SECONDS = 60  # a bound against hanging


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a target, and classes of which the last is met by the last rank alone."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, generator=g, dtype=torch.float64)
    y = X @ torch.randn(D, generator=g, dtype=torch.float64) + torch.randn(N, generator=g, dtype=torch.float64)
    classes = (y * 0.7 + 0.3 * torch.randn(N, generator=g, dtype=torch.float64)).round().clamp(-1, 1).long() + 5
    classes[-40:][classes[-40:] == 6] = 9
    return X, y, classes


def groups() -> list[tuple[Any, slice]]:
    """This rank's part of the rows in groups of 1, 2, 3 and 4 ranks: uneven, one without any."""
    rank, result = dist.get_rank(), []
    for cuts in ([0, N], [0, 50, N], [0, 0, 100, N], [0, 30, 31, 100, N]):
        group = dist.new_group(list(range(len(cuts) - 1)), timeout=timedelta(seconds=SECONDS))
        if rank < len(cuts) - 1:
            result.append((group, slice(cuts[rank], cuts[rank + 1])))
    return result


def batches(*columns: Any) -> list[tuple[Any, ...]]:
    return [tuple(c[i : i + 16] for c in columns) for i in range(0, len(columns[0]), 16)]


def estimators_are_those_of_one_process() -> None:
    X, y, classes = (a.numpy() for a in data())
    names = np.array(["few", "some", "many", "", "", "all"])[classes - 4]
    fold, alphas = np.arange(N) % 5, np.logspace(-2, 4, 20)
    for group, part in groups():
        regressor = Ridge(2.0).fit(batches(X[part], y[part])) if part.stop > part.start else Ridge(2.0)
        regressor.all_reduce(group)
        want = Ridge(2.0).fit(X, y)
        np.testing.assert_allclose(regressor.coef_, want.coef_, rtol=SAME)
        np.testing.assert_allclose(regressor.predict(X), want.predict(X), rtol=SAME)
        again = Ridge(2.0)
        again.load_state_dict(regressor.state_dict())  # this rank's rows, not all of them again
        assert again.moments_.n_samples == part.stop - part.start
        regressor.partial_fit(X[:3], y[:3]).all_reduce(group)
        assert regressor.moments_.n_samples == N + 3 * dist.get_world_size(group)
        chosen, alone = RidgeCV(alphas), RidgeCV(alphas).partial_fit(X, y, fold=torch.from_numpy(fold))
        for bx, by, bf in batches(X[part], y[part], torch.from_numpy(fold)[part]):
            chosen.partial_fit(bx, by, fold=bf)
        chosen.all_reduce(group)
        assert chosen.alpha_ == alone.alpha_
        np.testing.assert_allclose(chosen.coef_, alone.coef_, rtol=SAME)
        np.testing.assert_allclose(chosen.best_score_, alone.best_score_, rtol=SAME)
        classifier = RidgeClassifier()
        for bx, by in batches(X[part], names[part]):
            classifier.partial_fit(bx, by, classes=["some", "few", "many", "all"])
        classifier.all_reduce(group)
        np.testing.assert_array_equal(classifier.predict(X), RidgeClassifier().fit(X, names).predict(X))
        np.testing.assert_allclose(classifier.coef_, RidgeClassifier().fit(X, names).coef_, rtol=1e-8)
    odd = dist.get_rank() == 1
    with pytest.raises(RankError, match=r"`parameters` .*3\.0.* on rank 1"):
        Ridge(2.0 + odd).partial_fit(X, y).all_reduce()
    with pytest.raises(ValueError if odd else RankError, match="fitted to rows at once"):
        (Ridge().fit(X, y) if odd else Ridge().partial_fit(X, y)).all_reduce()
    with pytest.raises(ValueError, match="no rank was given rows"):
        Ridge().all_reduce()


def same_report(got: ProbeReport, want: ProbeReport) -> None:
    assert (got.n_samples, got.n_folds, got.passes) == (want.n_samples, want.n_folds, want.passes)
    assert [(p.layer, p.readout) for p in got] == [(p.layer, p.readout) for p in want]
    for p, q in zip(got, want, strict=True):
        assert p.strength == pytest.approx(q.strength, rel=SAME)
        assert relative(p.weight, q.weight) < SAME
        assert relative(p.bias, q.bias) < SAME
        assert relative(p.strength_scores, q.strength_scores) < SAME
        assert p.interval == q.interval or p.interval == pytest.approx(q.interval, rel=SAME)
        assert p.scores == pytest.approx(q.scores, rel=SAME)
        assert p.classes is None or p.classes.tolist() == q.classes.tolist()  # type: ignore[union-attr]


def probes_are_those_of_one_process() -> None:
    X, y, classes = data()
    fold = torch.arange(N) % 4
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
    asked: tuple[dict[str, Any], ...] = (
        {"task": "regression", "bootstrap": 50},
        {"task": "classification", "readout": ["ridge", "lda"], "metrics": "accuracy"},
        {"task": "classification", "class_weight": "balanced", "standardize": True},
    )
    targets = [y, classes, classes]
    wanted = [
        probe_layers(model, batches(X, labels), cv=fold, sample_weight=weight, **options)
        for labels, options in zip(targets, asked, strict=True)
    ]
    kept = {"keep": "memory", "keep_bytes": 2**30, "keep_dtype": None, "task": "classification"}
    want_kept = LinearProbe(cv=fold, **kept).fit(X, classes)
    curve = {"readout": "logistic", "class_weight": "balanced", "standardize": True, "Cs": [1e-3, 0.1, 10.0, 1e5]}
    want_curve = LinearProbe(cv=fold, **kept, **curve).fit(X, classes)
    for group, part in groups():
        for labels, options, want in zip(targets, asked, wanted, strict=True):
            own: dict[str, Any] = {"cv": fold[part], "sample_weight": weight[part], "process_group": group}
            same_report(probe_layers(model, batches(X[part], labels[part]), **own, **options), want)
        got = LinearProbe(cv=fold[part], process_group=group, **kept).fit(X[part], classes[part])
        same_report(got, want_kept)
        got = LinearProbe(cv=fold[part], process_group=group, **kept, **curve).fit(X[part], classes[part])
        assert got.best.strength == want_curve.best.strength
        assert relative(got.best.weight, want_curve.best.weight) < LOGISTIC
    probes_are_kept_by_each_rank(X, classes, fold)
    members = torch.arange(N) // 4 % 20  # every group is spread over the ranks
    mine = slice(dist.get_rank(), None, 4)
    report = LinearProbe(cv=3, process_group="world", bootstrap=50).fit(X[mine], y[mine], groups=members[mine])
    held = torch.tensor([StreamFolds(3, by_label=True).assign(y[:1], None, [g])[0] for g in members.tolist()])
    order = torch.cat([torch.arange(N)[r::4] for r in range(4)])  # groups are drawn in the order that ranks met them
    want = LinearProbe(cv=held[order], bootstrap=50).fit(X[order], y[order], groups=members[order])
    same_report(report, want)  # no group on both sides of a fold
    odd = dist.get_rank() == 1
    with pytest.raises(ValueError if odd else RankError, match=r"ValueError: `features`|holds NaN"):
        LinearProbe(process_group="world").fit(X * (torch.nan if odd else 1), y)
    with pytest.raises(RankError, match="`layers`"):
        LinearProbe(process_group="world").fit(X[:, odd:], y)
    with pytest.raises(ValueError, match="would need the predictions of all ranks"):
        LinearProbe(process_group="world", metrics=lambda y, p: 0.0).fit(X, y)


def probes_are_kept_by_each_rank(X: Tensor, classes: Tensor, fold: Tensor) -> None:
    """Files of features and of interrupted passes, one for each rank, beside one another."""
    folder, mine = Path(os.environ["TORCHRIDGE_TEST_FOLDER"]), slice(dist.get_rank(), None, 4)
    options: dict[str, Any] = {"task": "classification", "metrics": "accuracy"}
    want = LinearProbe(cv=fold, **options).fit(X, classes)
    options |= {"cv": fold[mine], "process_group": "world"}
    kept = {"keep": folder / "features", "keep_bytes": 2**30, "keep_dtype": None}
    same_scores(LinearProbe(**kept, **options).fit(X[mine], classes[mine]), want)
    options |= {"checkpoint": folder / "pass", "checkpoint_every": 1}
    for _ in range(2):  # the second goes on from the end of the first
        same_scores(LinearProbe(**options).fit(X[mine], classes[mine], batch_rows=16), want)
    assert len(list(folder.glob("pass.*-of-4"))) == 4
    dist.barrier()
    if dist.get_rank() == 0:
        (folder / "pass.0-of-9").touch()
    dist.barrier()
    with pytest.raises((ValueError, RankError), match="written by another number of ranks"):
        LinearProbe(**options).fit(X[mine], classes[mine])


def same_scores(got: ProbeReport, want: ProbeReport) -> None:
    assert got.best.scores == pytest.approx(want.best.scores, rel=SAME)
    assert relative(got.best.weight, want.best.weight) < SAME


CHOICES: tuple[dict[str, Any], ...] = (
    {"cv": 3},
    {"cv": torch.arange(N) % 4, "scoring": "accuracy"},
    {"cv": 4, "groups": torch.arange(N) % 11},
)


def logistic_is_that_of_one_process() -> None:
    X, _, classes = data()
    weight, Cs = torch.linspace(0.5, 2, N, dtype=torch.float64), [1e-3, 0.1, 10.0]
    two = torch.stack([classes > 5, classes > 4], 1)
    exact: dict[str, Any] = {"tol": 1e-13}
    want = logistic(X, classes, [0.1, 1.0, 10.0], sample_weight=weight, **exact)
    want_heads = logistic(X, two, strength=0.01, **exact)
    want_single = logistic(X.float(), two[:, 0], fit_intercept=False)
    want_chosen = [logistic_cv(X, classes, Cs, **options, **exact) for options in CHOICES]
    for group, part in groups():
        mine, over = (X[part], classes[part]), {"process_group": group}
        got = logistic(*mine, [0.1, 1.0, 10.0], sample_weight=weight[part], **over, **exact)
        assert got.classes.tolist() == [4, 5, 6, 9]
        for name in ("weight", "bias", "objective"):
            assert relative(getattr(got, name), getattr(want, name)) < LOGISTIC, name
        assert torch.equal(got.separated, want.separated)
        heads = logistic(X[part], two[part], strength=0.01, **over, **exact)
        assert relative(heads.weight, want_heads.weight) < LOGISTIC
        single = logistic(X.float()[part], two[part, 0], fit_intercept=False, **over)
        assert single.weight.dtype is torch.float32
        assert relative(single.objective, want_single.objective) < 1e-6  # its tolerance
        for options, alone in zip(CHOICES, want_chosen, strict=True):
            own = {k: v[part] if isinstance(v, Tensor) else v for k, v in options.items()}
            chosen = logistic_cv(*mine, Cs, **own, **over, **exact)
            assert chosen.C == alone.C
            assert relative(chosen.scores, alone.scores) < LOGISTIC
            assert relative(chosen.weight, alone.weight) < LOGISTIC
    odd = dist.get_rank() == 1
    with pytest.raises(TypeError if odd else RankError, match="`y` should hold class labels"):
        logistic(X, classes.double() if odd else classes, process_group="world")
    with pytest.raises(ValueError, match="`y` holds one class only"):
        logistic(X, torch.zeros(N).long(), process_group="world")
    with pytest.raises(RankError, match=r"`tol` is .* 0.1 on rank 1"):
        logistic(X, classes, tol=0.1 if odd else None, process_group="world")
