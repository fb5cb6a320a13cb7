"""Banded ridge: losses against refits, strengths against brute force and one band's `ridge_cv`, splits of variance."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from oracles import relative
from pretended_cuda import host_waits
from pretended_cuda.marks import on_cuda
from tolerances import FOLD_SCORES, SOLVERS
from torch import Tensor

from torchridge import BandedSolution, banded_ridge_cv, ridge, ridge_cv
from torchridge.solvers.kernels import band_surrogate, bands
from torchridge.solvers.kernels.band_losses import fold_losses
from torchridge.solvers.kernels.band_search import _Search

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
CLOSE = SOLVERS[torch.float64]
BANDS = {"a": slice(0, 12), "b": slice(12, 42), "c": slice(42, 50)}


def data(device: torch.device, t: int = 6, n: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n + 15, 50, generator=g, dtype=torch.float64) + 1
    W = torch.randn(50, t, generator=g, dtype=torch.float64)
    for j in range(t):  # each target listens to bands of its own
        W[list(BANDS.values())[j % 3], j] *= 0.05
    y = X @ W + 2 * torch.randn(n + 15, t, generator=g, dtype=torch.float64)
    X, y = X.to(device), y.to(device)
    return X[:n], y[:n], X[n:], y[n:]


def loss_of_refits(X: Tensor, y: Tensor, alpha: Tensor, k: int = 5) -> Tensor:
    """Return the mean over folds of the mean squared held-out error of one target, each fold refitted."""
    scale = torch.cat([torch.full((s.stop - s.start,), float(a)) for s, a in zip(BANDS.values(), alpha, strict=True)])
    ids, errors = torch.arange(len(X)) * k // len(X), []
    for f in range(k):
        train, test = (ids != f).to(X.device), (ids == f).to(X.device)
        fit = ridge(X[train], y[train], 1.0, penalty_factors=scale.double().to(X.device))
        errors.append(((fit.predict(X[test]) - y[test]) ** 2).mean())
    return torch.stack(errors).mean()


@pytest.mark.parametrize("t", [6, 40])
def test_losses_and_predictions_are_those_of_refits(t: int, device: torch.device) -> None:
    X, y, new, _ = data(device, t)
    found = banded_ridge_cv(X, y, BANDS, cv=5, refined_targets=8, candidates=4)
    assert bool(found.refined.all()) == (t == 6)
    for j in (0, 2, t - 1):
        assert relative(-found.scores[j], loss_of_refits(X, y[:, j], found.alpha[:, j])) < 1e-8
        scale = torch.cat([found.alpha[b, j].expand(s.stop - s.start) for b, s in enumerate(BANDS.values())])
        fit = ridge(X, y[:, j], 1.0, penalty_factors=scale)
        assert relative(found.predict(new)[:, j], fit.predict(new)) < 1e-8
        assert relative(found.weight()[j], fit.weight[0]) < 1e-8
    assert relative(found.predict(new, split=True).sum(0) + y.mean(0), found.predict(new)) < CLOSE
    assert relative(found.to_linear()(new), found.predict(new)) < CLOSE


def test_the_derivatives_are_those_of_differences(device: torch.device) -> None:
    X, y, *_ = data(device, 3)
    kernels = torch.stack([X[:, s] @ X[:, s].T for s in BANDS.values()])
    ids = torch.arange(40, device=device) % 4
    splits = [((ids != k).nonzero()[:, 0], (ids == k).nonzero()[:, 0]) for k in range(4)]
    folds = bands.folds_of(kernels, y, splits, True)
    at = torch.randn(3, 3, dtype=torch.float64).to(device) - 3
    found = bands.local(folds, at)
    for b in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64, device=device)[b]
        ahead, behind = (bands.local(folds, at + s, derivatives=False).loss for s in (step, -step))
        assert float(((ahead - behind) / 4e-5 - found.slope[:, b]).abs().max()) < 1e-7 * float(found.loss.max())


@pytest.mark.parametrize("t", [7, 90])
def test_losses_of_many_strengths_are_those_of_refits(t: int, device: torch.device) -> None:
    X, y, *_ = data(device, t)
    folds_ = [torch.arange(40, device=device) * 5 // 40 == k for k in range(5)]
    splits = [((~f).nonzero()[:, 0], f.nonzero()[:, 0]) for f in folds_]
    kernel = (X - X.mean(0)) @ (X - X.mean(0)).T
    grid = torch.logspace(-2, 4, 24, dtype=torch.float64)
    errors = [[((ridge(X[a], y[a], float(s)).predict(X[b]) - y[b]) ** 2).mean(0) for a, b in splits] for s in grid]
    expected = torch.stack([torch.stack(e).mean(0) for e in errors])
    for dtype, close in ((torch.float64, 1e-8), (torch.float32, 1e-3)):
        scorer = _Search(kernel[None], y, splits, True).candidate(kernel.new_zeros(1), dtype=dtype).scorer
        assert relative(fold_losses(scorer, grid).double(), expected) < close


def test_steps_come_back_from_a_band_that_explains_nothing_yet(device: torch.device) -> None:
    X, y, *_ = data(device, 3)
    kernels = torch.stack([X[:, s] @ X[:, s].T for s in BANDS.values()])
    kernels = kernels / kernels.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    ids = torch.arange(40, device=device) % 4
    folds = bands.folds_of(
        kernels, y, [((ids != k).nonzero()[:, 0], (ids == k).nonzero()[:, 0]) for k in range(4)], True
    )
    bound = torch.full_like(kernels[:, 0, 0], 16)
    equal, alone = torch.zeros_like(y[:3, :3]), 12 * torch.eye(3, dtype=torch.float64).to(device) - 12
    best, least = (bands.descend(folds, start, -bound, bound, 60)[0].loss for start in (equal, alone))
    assert relative(least, best) < 1e-6
    few, _ = bands.descend(folds, alone, -bound, bound, 6)
    assert float((few.loss / best).max()) < 1.1


def test_no_grid_does_better_on_a_tiny_problem() -> None:
    X, y, *_ = data(torch.device("cpu"), 3, n=20)
    found = banded_ridge_cv(X, y, BANDS, cv=4)
    grid = torch.logspace(-2, 5, 8, dtype=torch.float64)
    for j in range(3):
        best = min(float(loss_of_refits(X, y[:, j], torch.stack(a), 4)) for a in itertools.product(grid, repeat=3))
        assert -float(found.scores[j]) <= best * (1 + 1e-6)


def test_the_next_proportions_come_to_where_targets_lose_least() -> None:
    g = torch.Generator().manual_seed(0)
    goals = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]], dtype=torch.float64)
    scale = torch.tensor([1.0, 1e6, 1.0], dtype=torch.float64)  # units, and a constant target

    def loss_at(shares: Tensor) -> Tensor:
        apart = torch.cdist(shares, goals).square()
        return scale * torch.cat([1 + apart, torch.ones(len(shares), 1, dtype=torch.float64)], 1)

    shares = band_surrogate.first_shares(3, 24, 1e-4)
    assert shares.shape == (7, 3) and relative(shares.sum(1), torch.ones(7, dtype=torch.float64)) < CLOSE
    losses = loss_at(shares)
    for _ in range(5):
        picked = band_surrogate.next_shares(shares, losses, 4, 1e-4, g)
        assert not picked.hopeful[:, 2].any()
        shares = torch.cat([shares, picked.shares])
        losses = torch.cat([losses, torch.where(picked.hopeful, loss_at(picked.shares), picked.losses)])
    assert float(torch.cdist(goals, shares).amin(1).max()) < 0.05
    assert bool((losses.amin(0) - scale < 0.0025 * scale).all())


def test_shared_proportions_lose_less_than_a_random_search() -> None:
    solve = pytest.importorskip("himalaya.kernel_ridge").solve_multiple_kernel_ridge_random_search
    pytest.importorskip("himalaya.backend").set_backend("torch")
    X, y, *_ = data(torch.device("cpu"), 80, n=60)
    found = banded_ridge_cv(X, y, BANDS, cv=5, refined_targets=1)
    kernels = torch.stack([(X[:, s] - X[:, s].mean(0)) @ (X[:, s] - X[:, s].mean(0)).T for s in BANDS.values()])
    grid = torch.logspace(-2, 5, 20, dtype=torch.float64)
    options = {"n_iter": 100, "cv": 5, "fit_intercept": True, "return_weights": "dual", "progress_bar": False}
    theirs = solve(kernels, y, alphas=grid, random_state=0, **options)[2].max(0).values
    assert not found.refined.any() and float(found.scores.mean()) >= float(theirs.mean())


@pytest.mark.parametrize("intercept", [True, False])
def test_one_band_is_ridge_cv(intercept: bool, device: torch.device) -> None:
    X, y, new, seen = data(device, t=45)
    one = banded_ridge_cv([X], y, cv=5, fit_intercept=intercept)
    plain = ridge_cv(X, y, "auto", 5, alpha_per_target=True, fit_intercept=intercept)
    assert relative(one.alpha[0], plain.alpha) < 1e-6
    assert relative(one.scores, plain.best_score) < FOLD_SCORES  # type: ignore[arg-type]
    assert relative(one.predict([new]), plain.predict(new)) < 1e-7
    assert relative(one.score([new], seen), plain.score(new, seen)) < 1e-6


def test_bands_by_any_name_are_the_same(device: torch.device) -> None:
    X, y, new, seen = data(device)
    labels = ["a"] * 12 + ["b"] * 30 + ["c"] * 8
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1)).to(device)
    ways: list[tuple[Any, Any, Any]] = [
        (X, BANDS, new),
        (X, list(BANDS.values()), new),
        (X, labels, new),
        ({k: X[:, s] for k, s in BANDS.items()}, None, {k: new[:, s] for k, s in BANDS.items()}),
        ([X[:, s] for s in BANDS.values()], None, [new[:, s] for s in BANDS.values()]),
        (X[:, order], [labels[i] for i in order.tolist()], new[:, order]),
    ]
    first = banded_ridge_cv(X, y, BANDS, cv=4)
    for given, bands_, unseen in ways:
        found = banded_ridge_cv(given, y, bands_, cv=4)
        assert relative(found.predict(unseen), first.predict(new)) < 1e-4
        assert relative(found.score(unseen, seen), first.score(new, seen)) < 1e-4
    kernels = {k: X[:, s] @ X[:, s].T for k, s in BANDS.items()}
    given = banded_ridge_cv(kernels, y, cv=4, kernel="precomputed")
    unseen = {k: new[:, s] @ X[:, s].T for k, s in BANDS.items()}
    assert relative(given.predict(unseen), first.predict(new)) < 1e-4


def test_the_parts_of_scores_are_himalayas_and_sum_to_the_whole() -> None:
    scoring = pytest.importorskip("himalaya.scoring")
    X, y, new, seen = data(torch.device("cpu"))
    y, seen = y - y.mean(0), seen - seen.mean(0)
    found = banded_ridge_cv(X, y, BANDS, cv=4, fit_intercept=False)
    parts = found.predict(new, split=True).numpy()
    for kind, theirs in (("r2", scoring.r2_score_split), ("correlation", scoring.correlation_score_split)):
        own = found.score(new, seen, scoring=kind, split=True)
        expected = torch.from_numpy(np.asarray(theirs(seen.numpy(), parts)))
        assert relative(own, expected) < 1e-9, kind
        assert relative(own.sum(0), found.score(new, seen, scoring=kind)) < 1e-9, kind


def test_parts_sum_to_the_whole_with_an_intercept(device: torch.device) -> None:
    X, y, new, seen = data(device)
    found = banded_ridge_cv(X, y[:, 0], BANDS, cv=4)
    assert isinstance(found, BandedSolution) and found.predict(new).shape == (15,)
    for kind in ("r2", "correlation"):
        parts = found.score(new, seen[:, 0], scoring=kind, split=True)
        assert parts.shape == (3,) and abs(float(parts.sum() - found.score(new, seen[:, 0], scoring=kind))) < 1e-9


def test_a_constant_target_among_many_takes_the_strongest_penalty(device: torch.device) -> None:
    X, y, *_ = data(device, 12)
    y[:, 4] = 3.5
    found = banded_ridge_cv(X, y, BANDS, cv=4, refined_targets=1, candidates=12)
    assert found.dead_targets.nonzero().flatten().tolist() == [4] and float(found.scores[4]) == 0
    strongest = (1 / found.alpha).sum(0)
    assert int(strongest.argmin()) == 4 and bool((found.alpha > 0).all() and found.alpha.isfinite().all())


@pytest.mark.parametrize(("t", "intercept"), [(4, True), (40, False), (1, True)])
def test_unique_variance_is_what_refits_without_a_band_lose(t: int, intercept: bool, device: torch.device) -> None:
    X, y, new, held = data(device, t)
    options: dict[str, Any] = {"refined_targets": 4, "candidates": 4, "fit_intercept": intercept}
    found = banded_ridge_cv(X, y[:, 0] if t == 1 else y, BANDS, cv=5, **options)
    partition = found.partition(new, held[:, 0] if t == 1 else held)
    whole = found.score(new, held[:, 0] if t == 1 else held)
    assert relative((partition.unique + partition.shared).sum(0), whole) < CLOSE
    assert relative(partition.parts, found.score(new, held[:, 0] if t == 1 else held, split=True)) < CLOSE
    for b, name in enumerate(BANDS):
        rest = [c for c in BANDS if c != name]
        for j in {0, t - 1}:
            scaled = [
                torch.cat([x[:, BANDS[c]] / found.alpha[found.names.index(c), j] ** 0.5 for c in rest], 1)
                for x in (X, new)
            ]
            fit = ridge(scaled[0], y[:, j], 1.0, fit_intercept=intercept)
            error = ((held[:, j] - fit.predict(scaled[1])) ** 2).sum()
            r2 = 1 - error / ((held[:, j] - held[:, j].mean()) ** 2).sum()
            lost = (whole if t == 1 else whole[j]) - r2
            unique = partition.unique[b] if t == 1 else partition.unique[b, j]
            assert abs(float(unique) - float(lost)) < 1e-7  # a nearly free band (α of 1e-6) costs digits


def test_a_partition_of_one_band_and_of_given_kernels() -> None:
    X, y, new, held = data(torch.device("cpu"), 2)
    alone = banded_ridge_cv([X], y, cv=5).partition([new], held)
    center = 1 - ((held - y.mean(0)) ** 2).sum(0) / ((held - held.mean(0)) ** 2).sum(0)
    assert relative(alone.unique[0], alone.parts[0] - center) < CLOSE
    kernels = banded_ridge_cv([X @ X.T], y, cv=5, kernel="precomputed")
    with pytest.raises(ValueError, match=r"kernels that were given are not kept\. Fit again without each"):
        kernels.partition([new @ X.T], held)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": [slice(0, 12), slice(10, 50)]}, r"column 10 of `X` belongs to 2 bands \(2 such columns\)"),
        ({"bands": [slice(0, 12), slice(12, 40)]}, "column 40 of `X` belongs to 0 bands"),
        ({"bands": ["a", "b"]}, "a label for each of 50 columns"),
        ({"bands": {"a": slice(0, 50), "b": []}}, r"`bands\['b'\]`"),
        ({"bands": {"a": slice(0, 50), "b": [77]}}, "between 0 and 49"),
        ({"cv": "loo"}, "`cv` should be folds"),
        ({"refined_targets": 0}, "`refined_targets` should be an integer of at least 1"),
        ({"y": torch.full((40, 2), torch.nan)}, "`y` holds NaN"),
        ({"X": torch.full((40, 50), torch.inf)}, "`X` holds infinity"),
    ],
)
def test_bands_that_cannot_be(change: dict[str, Any], message: str) -> None:
    X, y, *_ = data(torch.device("cpu"), 2)
    call: dict[str, Any] = {"X": X, "y": y, "bands": BANDS, **change}
    with pytest.raises(ValueError, match=message):
        banded_ridge_cv(call.pop("X"), call.pop("y"), call.pop("bands"), **call)


@on_cuda
def test_more_targets_wait_no_more(device: torch.device) -> None:
    counts = []
    for t in (40, 40, 200):
        X, y, *_ = data(device, t)
        with host_waits() as waits:
            banded_ridge_cv(X, y, BANDS, cv=4, refined_targets=8, candidates=3)
        counts.append(waits.count)
    assert counts[2] <= counts[1] + 4, str(waits)  # steps until all have settled may differ
