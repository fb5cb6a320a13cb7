"""Few rows and thousands of targets: dual solutions, scores for each target, folds in batches, kernels, nesting."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import relative
from pretended_cuda import host_waits
from pretended_cuda.marks import on_cuda
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, ShuffleSplit, TimeSeriesSplit
from tolerances import FOLD_SCORES, ROUNDED_ONCE, SOLVERS
from torch import Tensor

from torchridge import RidgeSolution, estimators, nested_ridge_cv, ridge, ridge_cv, ridge_path
from torchridge.solvers.kernels import series
from torchridge.solvers.kernels.own_scales import OwnScales
from torchridge.solvers.kernels.shared_strengths import shared

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
ALPHAS = torch.logspace(-1, 4, 9, dtype=torch.float64)
CLOSE = SOLVERS[torch.float64]


def data(device: torch.device, n: int = 30, d: int = 80, t: int = 40, dtype: torch.dtype = torch.float64) -> Any:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n + 9, d, generator=g, dtype=torch.float64) + 2
    y = X @ torch.randn(d, t, generator=g, dtype=torch.float64) + 5 * torch.randn(n + 9, t, generator=g).double()
    X, y = X.to(device, dtype), y.to(device, dtype)
    return X[:n], y[:n], X[n:], y[n:]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"sample_weight": torch.linspace(0.1, 3, 30, dtype=torch.float64)},
    "standardize": {"standardize": True},
    "no intercept": {"fit_intercept": False},
    "free features": {"penalty_factors": torch.cat([torch.zeros(2), torch.linspace(0.5, 2, 78)]).double()},
}


def on(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("each", [False, True], ids=["one strength", "a strength each"])
def test_a_dual_solution_is_that_of_each_target_by_itself(way: str, each: bool, device: torch.device) -> None:
    X, y, new, _ = data(device)
    alpha = torch.logspace(0, 3, 40, dtype=torch.float64, device=device) if each else 20.0
    options = on(device, WAYS[way])
    many = ridge(X, y, alpha, **options)
    single = [ridge(X, y[:, j], float(alpha[j]) if isinstance(alpha, Tensor) else alpha, **options) for j in range(40)]
    assert many.dual is not None and single[0].dual is None
    assert many.dual_coef.shape == (30, 40) and many.shape == (40, 80)
    expected = torch.stack([s.predict(new) for s in single], 1)
    assert relative(many.predict(new), expected) < CLOSE
    assert relative(many.predict(new, max_bytes=10_000), expected) < CLOSE
    assert callable(many.__dict__["weight"])  # none of that made the weights
    assert relative(many.weight, torch.cat([s.weight for s in single])) < CLOSE
    assert relative(many.predict(new[0]), expected[0]) < CLOSE
    assert relative(many.to_linear()(new), expected) < CLOSE
    assert float((many.bias - torch.cat([s.bias for s in single])).abs().max()) < 1e-9
    assert relative(many.of_targets(slice(3, 5)).weight, many.weight[3:5]) < CLOSE


def test_a_path_in_its_dual_form(device: torch.device) -> None:
    X, y, new, _ = data(device)
    path = ridge_path(X, y, ALPHAS.to(device))
    assert path.dual is not None and path.dual_coef.shape == (9, 30, 40)
    for i in (0, -1):
        assert relative(path.at(i).predict(new), ridge(X, y, float(ALPHAS[i])).predict(new)) < CLOSE
    assert path.predict(new.reshape(3, 3, -1)).shape == (3, 9, 3, 40)
    assert "made when read" in repr(path)


def test_weights_are_not_made_of_rows_that_have_changed(device: torch.device) -> None:
    X, y, new, _ = data(device)
    solution = ridge(X, y, 1.0)
    X += 1
    for call in (lambda: solution.weight, lambda: solution.predict(new), lambda: pickle.dumps(solution)):
        with pytest.raises(ValueError, match="`X` was changed in place"):
            call()


def test_scores_of_a_batch_and_of_a_path_know_the_constant_targets_of_each_problem(device: torch.device) -> None:
    X, y = torch.randn(4, 4, 3, device=device).double(), torch.randn(4, 4, 2, device=device).double()
    y[2, :, 1] = 1.0
    batch = ridge(X, y, 1.0)
    each = torch.stack([ridge(X[b], y[b], 1.0).score(X[b], y[b]) for b in range(4)])
    assert each.isnan().nonzero().tolist() == [[2, 1]]
    torch.testing.assert_close(batch.score(X, y), each, equal_nan=True)
    path = ridge_path(X[2], y[2], [1.0, 2.0])
    expected = torch.stack([path.at(i).score(X[2], y[2]) for i in range(2)])
    torch.testing.assert_close(path.score(X[2].to_sparse(), y[2]), expected, equal_nan=True)


def test_weights_beyond_the_memory_are_refused_before_they_are_taken() -> None:
    X = torch.zeros(2, 10_000_000).expand(2, -1)
    y = torch.randn(2, 3)
    solution = ridge(X + torch.randn(2, 1), y, 1.0)
    object.__setattr__(solution, "dual", solution.dual.of_targets(torch.zeros(10_000_000, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"`weight` would take 3\.\d+e\+05 GiB"):
        solution.dual.weight()  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["dual", "weight"])
def test_either_form_is_saved_and_said(form: str, tmp_path: Path) -> None:
    X, y, new, _ = data(torch.device("cpu"))
    solution = ridge_cv(X, y, ALPHAS, 3, alpha_per_target=True)
    solution.save(tmp_path / "a.safetensors", form=form)
    read = RidgeSolution.load(tmp_path / "a.safetensors")
    assert (read.dual is not None) == (form == "dual")
    assert relative(read.predict(new), solution.predict(new)) < CLOSE
    assert relative(read.weight, solution.weight) < CLOSE
    with pytest.raises(ValueError, match="`form`='dual': this solution holds weights"):
        ridge(X, y[:, :2], 1.0).save(tmp_path / "b.safetensors", form="dual")


SPLITS: dict[str, Any] = {
    "runs": 5,
    "shuffled": KFold(4, shuffle=True, random_state=0),
    "parts": ShuffleSplit(3, train_size=0.5, test_size=0.3, random_state=0),
    "in time": TimeSeriesSplit(3),
}


@pytest.mark.parametrize("cv", SPLITS)
@pytest.mark.parametrize("way", WAYS)
def test_scores_of_folds_are_those_of_refits(way: str, cv: str, device: torch.device) -> None:
    X, y, *_ = data(device, t=35)
    options = on(device, WAYS[way])
    mse = ridge_cv(X, y, ALPHAS, SPLITS[cv], **options)
    r2 = ridge_cv(X, y, ALPHAS, SPLITS[cv], scoring="r2", **options)
    r = ridge_cv(X, y, ALPHAS, SPLITS[cv], scoring="correlation", **options)
    parts = list((KFold(5) if cv == "runs" else SPLITS[cv]).split(np.zeros(30)))
    k, i = len(parts) - 1, 4
    train, test = (torch.as_tensor(a, device=device) for a in parts[k])
    s = options.get("sample_weight")
    own = {**options, **({} if s is None else {"sample_weight": s[train]})}
    fit = ridge(X[train], y[train], float(ALPHAS[i]), **own)
    held = None if s is None else s[test]
    for found, kind in ((mse, "mse"), (r2, "r2"), (r, "correlation")):
        expected = fit.score(X[test], y[test], scoring=kind, sample_weight=held)
        assert found.fold_scores is not None
        assert relative(found.fold_scores[k, i], -expected if kind == "mse" else expected) < FOLD_SCORES


WIDE: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"sample_weight": torch.linspace(0.5, 2, 60)},
    "factors": {"penalty_factors": torch.linspace(0.5, 2, 4500)},
    "prior": {"prior": torch.linspace(-0.1, 0.1, 4500)},
    "far means": {},
    "correlated": {},
    "units": {},
    "constant parts": {},
    "outliers": {},
}


def wide(way: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(60, 4500, generator=g)
    y = X[:, :9] @ torch.randn(9, 5, generator=g) + 3 * torch.randn(60, 5, generator=g)
    if way == "far means":
        X += 50 * torch.randn(4500, generator=g)
    if way == "correlated":
        X += torch.randn(60, 1, generator=g)
    if way == "units":
        X *= torch.exp2(torch.randint(-60, 60, (4500,), generator=g).float())
    if way == "constant parts":
        X[12:, ::50] = 3.0  # constant in the training part of the first run
        X[:12, 1::50] += 1000.0
        X[:, 2::50] = 7.0
        X[5, 2::100] = 8.0
    if way == "outliers":
        X[:, ::10] = 1 / X[:, ::10]
    return X, y


def swift_scores(
    monkeypatch: pytest.MonkeyPatch, X: Tensor, y: Tensor, alphas: Tensor, cv: Any, **options: Any
) -> tuple[Tensor, int]:
    """Return scores of standardized folds, and how many kernels came from the one of all rows."""
    changed, count = OwnScales.changed, []
    monkeypatch.setattr(OwnScales, "changed", lambda self, k: (count.append(k), changed(self, k))[1])
    found = ridge_cv(X, y, alphas, cv, standardize=True, **options).fold_scores
    assert found is not None
    return found, len(count)


def refits(X: Tensor, y: Tensor, alphas: Tensor, cv: Any, **options: Any) -> Tensor:
    """Return scores of float64 fits of every training part, (K, L, t)."""
    scores, s = [], options.pop("sample_weight", None)
    for train, test in (KFold(cv) if isinstance(cv, int) else cv).split(np.zeros(len(X))):
        own = options if s is None else {**options, "sample_weight": s[train].double()}
        path = ridge_path(X[train].double(), y[train].double(), alphas, standardize=True, **own)
        held = None if s is None else s[test].double()
        scores.append(-path.score(X[test].double(), y[test].double(), scoring="mse", sample_weight=held))
    return torch.stack(scores)


@pytest.mark.parametrize("weakest", [1e-3, 1.0, 1e3])
def test_a_series_solves_at_every_strength(weakest: float) -> None:
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=g, dtype=torch.float64)).Q
    alpha = weakest * torch.logspace(0, 3, 5, dtype=torch.float64)
    right = torch.randn(3, 20, generator=g, dtype=torch.float64)
    for eigvals in (torch.linspace(1, 4, 20), torch.full((20,), 2.0)):  # both ends, and no width at all
        matrix = (basis * eigvals.double()) @ basis.T
        low, top = float(eigvals.min()), float(eigvals.max())
        expected = torch.stack([torch.linalg.solve(matrix + a * torch.eye(20).double(), right.T).T for a in alpha])
        assert relative(series.solved(matrix, right, alpha, low, top), expected) < FOLD_SCORES


STRONG = torch.logspace(2, 5, 7, dtype=torch.float64)


@pytest.mark.parametrize("cv", [2, 5, 20, ShuffleSplit(3, train_size=0.7, test_size=0.2, random_state=0)], ids=str)
@pytest.mark.parametrize("way", WIDE)
def test_float32_sums_of_what_scales_change_are_told_from_no_refit(
    way: str, cv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = wide(way)
    found, swift = swift_scores(monkeypatch, X, y, STRONG, cv, **WIDE[way])
    assert swift == len(found)
    exact = refits(X, y, STRONG, cv, **WIDE[way])
    typical = exact.abs().mean(-1, keepdim=True)  # the few rows of a small fold may be predicted all but exactly
    assert float(((found - exact) / typical).abs().max()) < ROUNDED_ONCE


@pytest.mark.parametrize("why", ["weak", "float64", "perfect", "no intercept", "free", "rounds"])
def test_scores_that_float32_sums_would_spoil_come_from_float64(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = wide("plain")
    options: dict[str, Any] = {}
    alphas = STRONG
    if why == "weak":
        X, alphas = X + 30 * torch.randn(60, 1), torch.logspace(-2, 5, 7, dtype=torch.float64)
    if why == "float64":
        X, y = X.double(), y.double()
    if why == "perfect":
        X[:, :4000] = X[:, :1] + 0.01 * X[:, :4000]
        y, alphas = X[:, :1] + 1e-3 * y, torch.logspace(3.2, 5, 7, dtype=torch.float64)
    if why == "no intercept":
        X, options = X + 10, {"fit_intercept": False}
    if why == "free":
        options = {"penalty_factors": torch.cat([torch.zeros(2), torch.ones(4498)])}
    if why == "rounds":
        torch.set_float32_matmul_precision("medium")
    try:
        found, swift = swift_scores(monkeypatch, X, y, alphas, 4, **options)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (swift > 0) == (why == "perfect")
    assert relative(found, refits(X, y, alphas, 4, **options)) < FOLD_SCORES


def test_scores_are_those_of_scikit_learn_and_numpy() -> None:
    X, y, new, seen = data(torch.device("cpu"))
    s = torch.linspace(0.1, 2, 9, dtype=torch.float64)
    for t in (40, 3):
        solution, model = ridge(X, y[:, :t], 5.0), Ridge(5.0).fit(X.numpy(), y[:, :t].numpy())
        from sklearn.metrics import mean_squared_error, r2_score

        p, truth = model.predict(new.numpy()), seen[:, :t].numpy()
        options: dict[str, Any] = {"multioutput": "raw_values", "sample_weight": s.numpy()}
        assert (
            relative(solution.score(new, seen[:, :t], sample_weight=s), torch.from_numpy(r2_score(truth, p, **options)))
            < 1e-9
        )
        mse = torch.from_numpy(mean_squared_error(truth, p, **options))
        assert relative(solution.score(new, seen[:, :t], scoring="mse", sample_weight=s, max_bytes=2000), mse) < 1e-9
        r = torch.tensor([np.corrcoef(truth[:, j], p[:, j])[0, 1] for j in range(t)])
        assert relative(solution.score(new, seen[:, :t], scoring="correlation"), r) < 1e-9
    path = ridge_path(X, y, ALPHAS)
    assert relative(path.score(new, seen)[4], path.at(4).score(new, seen)) < 1e-9


@pytest.mark.parametrize("shape", [(60, 8), (30, 80)], ids=["tall", "wide"])
@pytest.mark.parametrize("cv", [4, "loo"])
def test_correlation_chooses_from_moments_as_from_kernels(
    shape: tuple[int, int], cv: Any, device: torch.device
) -> None:
    X, y, *_ = data(device, *shape, t=6)
    found = ridge_cv(X, y, ALPHAS, cv, scoring="correlation", prior=torch.ones(shape[1], device=device))
    n, expected = len(X), []
    parts = KFold(n if cv == "loo" else 4).split(np.zeros(n))
    held = torch.empty_like(y)
    for train, test in parts:
        fit = ridge(X[train], y[train], float(ALPHAS[3]), prior=torch.ones(shape[1], device=device))
        held[test] = fit.predict(X[test])
        expected.append(fit.score(X[test], y[test], scoring="correlation"))
    whole = torch.stack([torch.corrcoef(torch.stack([held[:, j], y[:, j]]))[0, 1] for j in range(6)])
    assert found.scores is not None
    assert relative(found.scores[3], whole if cv == "loo" else torch.stack(expected).mean(0)) < FOLD_SCORES


@pytest.mark.parametrize("scoring", ["mse", "r2", "correlation"])
@pytest.mark.parametrize("shape", [(60, 8), (30, 80)], ids=["tall", "wide"])
def test_dead_targets_are_reported_and_have_no_say(scoring: str, shape: tuple[int, int], device: torch.device) -> None:
    X, y, *_ = data(device, *shape, t=5)
    dead = torch.cat([y, torch.full_like(y[:, :3], 0.1)], 1)
    alone, found = (ridge_cv(X, a, ALPHAS, 5, scoring=scoring) for a in (y, dead))
    assert found.dead_targets is not None and found.dead_targets.tolist() == [False] * 5 + [True] * 3
    assert float(found.alpha) == float(alone.alpha)
    assert abs(float(found.best_score) - float(alone.best_score)) < 1e-9  # type: ignore[arg-type]
    if scoring != "mse":
        assert found.scores is not None and bool(torch.isnan(found.scores[:, 5:]).all())
    silent = y.clone()
    silent[: shape[0] // 5, 0] = 0.1  # constant in one fold
    assert bool(torch.isfinite(ridge_cv(X, silent, ALPHAS, 5, scoring=scoring).scores).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("cv", [5, "loo", "gcv", "evidence", TimeSeriesSplit(3)])
@pytest.mark.parametrize("way", ["plain", "weights", "no intercept"])
def test_a_given_kernel_is_that_of_its_rows(way: str, cv: Any, device: torch.device) -> None:
    X, y, new, seen = data(device)
    K, options = X @ X.T, on(device, WAYS[way])
    given = ridge_cv(K, y, ALPHAS, cv, kernel="precomputed", alpha_per_target=True, **options)
    own = ridge_cv(X, y, ALPHAS, cv, alpha_per_target=True, **options)
    assert given.alpha.equal(own.alpha)
    assert relative(given.predict(new @ X.T), own.predict(new)) < 1e-9
    assert relative(given.score(new @ X.T, seen), own.score(new, seen)) < 1e-9
    with pytest.raises(ValueError, match="a kernel that was given has no features"):
        _ = given.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.ones(3, 4)}, r"a kernel of shape \(n, n\)"),
        ({"X": torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 1]])}, "symmetric kernel"),
        ({"standardize": True}, "`standardize` belongs to features"),
        ({"prior": torch.ones(3)}, "`prior` belongs to features"),
        ({"solver": "cholesky"}, "`solver` should be one of"),
        ({"kernel": "rbf"}, "`kernel` should be one of"),
    ],
)
def test_what_a_kernel_cannot_be(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"X": torch.eye(3), "y": torch.ones(3), "alpha": 1.0, "kernel": "precomputed", **change}
    with pytest.raises(ValueError, match=message):
        ridge(call.pop("X"), call.pop("y"), **call)


def test_the_memory_that_is_stated_is_kept_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    X, y, *_ = data(torch.device("cpu"))
    whole = ridge_cv(X, y, ALPHAS, 5, alpha_per_target=True)
    with caplog.at_level("INFO", "torchridge"):
        bounded = ridge_cv(X, y, ALPHAS, 5, alpha_per_target=True, max_bytes=51 * 2**20)
    assert "at most" in caplog.text and "MiB above the data" in caplog.text
    assert relative(bounded.scores, whole.scores) < CLOSE  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`max_bytes`=1000 is too small"):
        ridge_cv(X, y, ALPHAS, 5, max_bytes=1000)
    with pytest.raises(ValueError, match="`max_bytes` bounds folds of fewer"):
        ridge_cv(X[:, :3], y, ALPHAS, 5, max_bytes=2**30)


def test_float32_where_it_is_asked_for(device: torch.device) -> None:
    X, y, new, _ = data(device, dtype=torch.float32)
    single, double = (
        ridge_cv(X, y, ALPHAS[4:], 5, alpha_per_target=True, moments_dtype=m) for m in (torch.float32, torch.float64)
    )
    assert single.dual_coef.dtype is torch.float32 and double.dual_coef.dtype is torch.float64
    exact = ridge_cv(X.double(), y.double(), ALPHAS[4:], 5, alpha_per_target=True)
    assert relative(double.predict(new), exact.predict(new.double())) < 1e-6
    assert relative(single.predict(new), exact.predict(new.double())) < 1e-3


@pytest.mark.parametrize(("count", "top"), [(15, 3.0), (100, 1e4)])
def test_few_strengths_give_all_others(count: int, top: float) -> None:
    alpha = torch.logspace(-3, 6, count, dtype=torch.float64)
    found = shared(alpha, 1.0, top, 1e-11)
    assert found.mix is not None and len(found.alpha) < 0.8 * count and len(found.alpha) < 40
    s, weakest = torch.linspace(1, top, 777, dtype=torch.float64)[:, None], alpha.min()
    missed = ((s + weakest) / (s + found.alpha)) @ found.mix - (s + weakest) / (s + alpha)
    assert float(missed.abs().max()) < 1e-9
    assert float((found.mix.sum(0) - 1).abs().max()) < 1e-9


@pytest.mark.parametrize("shape", [(60, 8), (40, 80)], ids=["tall", "wide"])
@pytest.mark.parametrize("each", [False, True])
def test_nested_folds_are_folds_of_folds(shape: tuple[int, int], each: bool, device: torch.device) -> None:
    X, y, *_ = data(device, *shape, t=4)
    groups = torch.arange(len(X)) // 4
    found = nested_ridge_cv(
        X, y, ALPHAS, 3, outer=4, groups=groups, scoring="correlation", alpha_per_target=each, predictions=True
    )
    ids = torch.empty(len(X), dtype=torch.long)
    from sklearn.model_selection import GroupKFold

    for k, (train, test) in enumerate(GroupKFold(4).split(X.cpu().numpy(), groups=groups.numpy())):
        own = ridge_cv(
            X[train], y[train], ALPHAS, 3, groups=groups[train], scoring="correlation", alpha_per_target=each
        )
        assert found.alpha[k].equal(own.alpha)
        assert relative(found.scores[k], own.score(X[test], y[test], scoring="correlation")) < FOLD_SCORES
        assert found.predictions is not None and relative(found.predictions[test], own.predict(X[test])) < CLOSE
        ids[test] = k
    plain = nested_ridge_cv(X, y[:, 0], [3.0], outer=ids, predictions=True)
    assert plain.predictions is not None and plain.predictions.shape == (len(X),)
    fit = ridge(X[(ids != 2).to(device)], y[(ids != 2).to(device), 0], 3.0)
    assert relative(plain.predictions[(ids == 2).to(device)], fit.predict(X[(ids == 2).to(device)])) < CLOSE


def test_the_estimator_takes_a_strength_each_by_folds() -> None:
    X, y, *_ = data(torch.device("cpu"), t=4)
    alphas = [1.0, 10.0, 100.0, 1000.0]
    model = estimators.RidgeCV(alphas, cv=5, alpha_per_target=True).fit(X.numpy(), y.numpy())
    alone = [estimators.RidgeCV(alphas, cv=5).fit(X.numpy(), y[:, j].numpy()) for j in range(4)]
    assert model.alpha_.tolist() == [m.alpha_ for m in alone]
    np.testing.assert_allclose(model.coef_, np.stack([m.coef_ for m in alone]), rtol=1e-8)
    with pytest.raises(ValueError, match="`alpha_per_target`=True with folds needs a score that moments tell"):
        estimators.RidgeCV(alphas, cv=5, alpha_per_target=True, scoring="neg_max_error").fit(X.numpy(), y.numpy())


@on_cuda
@pytest.mark.parametrize("what", ["folds", "standardize", "score", "nested"])
def test_more_targets_wait_no_more(what: str, device: torch.device) -> None:
    def call(t: int) -> Any:
        X, y, new, seen = data(device, t=t)
        if what == "score":
            return ridge(X, y, 1.0).score(new, seen)
        if what == "nested":
            return nested_ridge_cv(X, y, ALPHAS, 3, outer=3)
        return ridge_cv(X, y, ALPHAS, 3, standardize=what == "standardize", alpha_per_target=True)

    counts = []
    for t in (40, 40, 400):
        with host_waits() as waits:
            call(t)
        counts.append(waits.count)
    assert counts[2] <= counts[1], str(waits)
