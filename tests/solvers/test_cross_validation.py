"""K-fold scores in closed form against refits of every fold by scikit-learn, and leave-one-out against n refits."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import least_norm, relative
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    TimeSeriesSplit,
)
from tolerances import EXACT_PER_CONDITION, FOLD_SCORES, LEAVE_ONE_OUT
from torch import Tensor

from torchridge import Moments, RidgeSolution, TorchridgeWarning, ridge, ridge_cv

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")

ALPHAS = torch.tensor([1e-3, 0.1, 1.0, 10.0, 1e3, 1e5], dtype=torch.float64)


def problem(n: int, d: int, t: int, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64) + 3
    y = X @ torch.randn(d, t, generator=generator, dtype=torch.float64)
    return X, y + noise * torch.randn(n, t, generator=generator, dtype=torch.float64)


def scale_of(X: np.ndarray, s: np.ndarray, penalty: np.ndarray | None, standardize: bool) -> np.ndarray:
    """Return what the features are divided by so that a plain penalty is the given one."""
    scale = np.ones(X.shape[1])
    if standardize:
        mean = np.average(X, axis=0, weights=s)
        scale = np.sqrt(np.average((X - mean) ** 2, axis=0, weights=s))
    return scale if penalty is None else scale * np.sqrt(penalty)


def refit(
    X: Tensor,
    y: Tensor,
    parts: list[tuple[Any, Any]],
    alphas: Tensor = ALPHAS,
    *,
    sample_weight: Tensor | None = None,
    penalty_factors: Tensor | None = None,
    prior: Tensor | None = None,
    standardize: bool = False,
    fit_intercept: bool = True,
    scoring: str = "mse",
    solver: str = "auto",
) -> Tensor:
    """Return scores (K, L, t) of scikit-learn's Ridge, refitted in every fold at every strength."""
    x, z = X.numpy(), y.numpy()
    s = np.ones(len(x)) if sample_weight is None else sample_weight.numpy()
    penalty = None if penalty_factors is None else penalty_factors.numpy()
    start = (
        np.zeros((x.shape[1], z.shape[1]))
        if prior is None
        else np.broadcast_to(prior.numpy(), z.T.shape[:1] + x.shape[1:]).T
    )
    scores = []
    for train, test in parts:
        scale = scale_of(x[train], s[train], penalty, standardize)
        for alpha in alphas.tolist():
            model = Ridge(alpha, fit_intercept=fit_intercept, solver=solver)
            model.fit(x[train] / scale, z[train] - x[train] @ start, sample_weight=s[train])
            predicted = model.predict(x[test] / scale).reshape(len(x[test]), -1) + x[test] @ start
            if scoring == "r2":
                scores.append(r2_score(z[test], predicted, sample_weight=s[test], multioutput="raw_values"))
            else:
                scores.append(-np.average((z[test] - predicted) ** 2, axis=0, weights=s[test]))
    return torch.tensor(np.array(scores)).reshape(len(parts), len(alphas), -1)


def tolerance(X: Tensor, alphas: Tensor, *, dual: bool = False) -> float:
    """Return 1e-9, or what a solve of this condition number in double precision may lose where that is more."""
    eigvals = torch.linalg.eigvalsh((X - X.mean(0)).T @ (X - X.mean(0))).clamp_min(0)
    low = 0 if dual or X.shape[0] * 3 // 4 <= X.shape[1] else eigvals[0]
    condition = float((eigvals[-1] + alphas.min()) / (low + alphas.min()))
    return max(FOLD_SCORES, EXACT_PER_CONDITION * condition)


def assert_scores(solution: RidgeSolution, expected: Tensor, tolerance: float = FOLD_SCORES) -> None:
    assert solution.fold_scores is not None
    got = solution.fold_scores.cpu()
    assert got.shape == expected.shape
    assert float(((got - expected) / expected).abs().max()) <= tolerance
    assert solution.scores is not None
    torch.testing.assert_close(solution.scores.cpu(), expected.mean(0), rtol=max(1e-8, tolerance), atol=0)


def weights(n: int) -> Tensor:
    s = torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2
    s[::7] = 0
    return s


SHAPES = {
    "tall": (90, 8, 2),
    "square": (40, 40, 2),
    "wide": (30, 60, 2),
    "very wide": (23, 200, 1),
    "many targets": (60, 5, 70),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no intercept": {"fit_intercept": False},
    "weights": {"weights": True},
    "standardize": {"standardize": True},
    "penalty factors": {"factors": True},
    "prior": {"prior": True},
    "all": {"weights": True, "standardize": True, "factors": True, "prior": True},
    "r2": {"scoring": "r2", "weights": True},
}


def arguments(name: str, n: int, d: int, t: int) -> dict[str, Any]:
    options = dict(OPTIONS[name])
    if options.pop("weights", False):
        options["sample_weight"] = weights(n)
    if options.pop("factors", False):
        options["penalty_factors"] = (
            torch.rand(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.2
        )
    if options.pop("prior", False):
        options["prior"] = torch.randn(t, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return options


def on(device: torch.device, options: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}


@pytest.mark.parametrize("solver", ["auto", "spectral", "dual"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fold_scores_equal_refits(shape: str, name: str, solver: str, device: torch.device) -> None:
    n, d, t = SHAPES[shape]
    X, y = problem(n, d, t)
    options = arguments(name, n, d, t)
    solution = ridge_cv(X.to(device), y.to(device), ALPHAS, cv=4, solver=solver, **on(device, options))
    raw = X if options.get("fit_intercept", True) else torch.cat([X, -X])
    assert_scores(
        solution, refit(X, y, list(KFold(4).split(X)), **options), tolerance(raw, ALPHAS, dual=solver == "dual")
    )


GROUPS = torch.tensor([i % 11 if i < 50 else 3 for i in range(90)])
LABELS = (torch.arange(90) * 7919 % 3).double()
MASKS = [(torch.arange(90) % 3 != k, torch.arange(90) % 3 == k) for k in range(3)]
SPLITTERS: dict[str, tuple[Any, Any]] = {
    "shuffled": (KFold(5, shuffle=True, random_state=1), None),
    "unequal": (KFold(7), None),
    "shuffle split": (ShuffleSplit(4, test_size=0.3, random_state=1), None),
    "repeated": (RepeatedKFold(n_splits=3, n_repeats=2, random_state=1), None),
    "time series": (TimeSeriesSplit(4), None),
    "groups": (GroupKFold(4), GROUPS),
    "one group out": (LeaveOneGroupOut(), GROUPS),
    "pairs": ([(np.arange(40), np.arange(60, 90)), (np.arange(20, 90), np.arange(20))], None),
    "masks": (MASKS, None),
    "overlapping rows": ([([*list(range(60)), 0, 0, 1], list(range(60, 90)))], None),
}


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_splitters(splitter: str, name: str, device: torch.device) -> None:
    X, y = problem(90, 6, 2)
    cv, groups = SPLITTERS[splitter]
    options = arguments(name, 90, 6, 2)
    parts = list(cv.split(X.numpy(), y.numpy(), groups)) if hasattr(cv, "split") else cv
    parts = [tuple(np.asarray(p) for p in pair) for pair in parts]
    solution = ridge_cv(X.to(device), y.to(device), ALPHAS[:5], cv=cv, groups=groups, **on(device, options))
    assert_scores(solution, refit(X, y, parts, ALPHAS[:5], **options))


def test_stratified_folds_follow_the_labels(device: torch.device) -> None:
    X, _ = problem(90, 6, 1)
    cv = StratifiedKFold(4, shuffle=True, random_state=0)
    for y in (LABELS, LABELS.long(), LABELS.bfloat16()):
        solution = ridge_cv(X.to(device), y.to(device), ALPHAS, cv=cv)
        assert_scores(solution, refit(X, LABELS[:, None], list(cv.split(X.numpy(), LABELS.numpy()))))


@pytest.mark.parametrize("labels", ["ints", "strings", "tensor"])
def test_groups_make_the_folds_of_group_k_fold(labels: str, device: torch.device) -> None:
    X, y = problem(90, 6, 2)
    names = {"ints": GROUPS.tolist(), "strings": [f"g{int(g):02}" for g in GROUPS], "tensor": GROUPS.to(device)}
    solution = ridge_cv(X.to(device), y.to(device), ALPHAS[:5], cv=4, groups=names[labels])
    assert_scores(solution, refit(X, y, list(GroupKFold(4).split(X, y, GROUPS)), ALPHAS[:5]))


@pytest.mark.parametrize("ids", ["tensor", "array", "gaps"])
def test_fold_ids(ids: str, device: torch.device) -> None:
    X, y = problem(90, 6, 2)
    cv = torch.arange(90) * 37 % 5
    given: Any = {"tensor": cv.to(device), "array": cv.numpy(), "gaps": cv * 10 + 3}[ids]
    parts = [((cv != k).numpy(), (cv == k).numpy()) for k in range(5)]
    assert_scores(ridge_cv(X.to(device), y.to(device), ALPHAS[:5], cv=given), refit(X, y, parts, ALPHAS[:5]))


@pytest.mark.parametrize("name", ["plain", "weights", "standardize", "all", "no intercept", "r2"])
def test_scores_of_streamed_folds_equal_refits(name: str, device: torch.device) -> None:
    X, y = problem(90, 6, 2)
    options = arguments(name, 90, 6, 2)
    s = options.pop("sample_weight", None)
    ids = torch.arange(90) * 37 % 5
    moments = Moments()
    for start in range(0, 90, 13):
        some = slice(start, start + 13)
        moments.update(
            X[some].to(device), y[some].to(device), None if s is None else s[some].to(device), fold=ids[some]
        )
    solution = ridge_cv(moments, alphas=ALPHAS[:5], **on(device, options))
    parts = [((ids != k).numpy(), (ids == k).numpy()) for k in range(5)]
    assert_scores(solution, refit(X, y, parts, ALPHAS[:5], sample_weight=s, **options))


@pytest.mark.parametrize("solver", ["spectral", "dual"])
@pytest.mark.parametrize("shape", [(80, 5, 40), (80, 60, 30), (40, 80, 30)])
def test_many_strengths_and_targets_at_low_rank(shape: tuple[int, int, int], solver: str, device: torch.device) -> None:
    X, y = problem(*shape)
    alphas = torch.logspace(-6, 8, 25, dtype=torch.float64)
    solution = ridge_cv(X.to(device), y.to(device), alphas, cv=4, solver=solver, alpha_per_target=False)
    assert_scores(
        solution,
        refit(X, y, list(KFold(4).split(X)), alphas, solver="svd"),
        tolerance(X, alphas, dual=solver == "dual"),
    )


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 2e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("targets", [1, 60])
def test_nearly_perfect_fits_keep_their_digits(noise: float, targets: int, device: torch.device) -> None:
    X, y = problem(90, 6, targets, noise=noise)
    alphas = torch.logspace(-12, 2, 8, dtype=torch.float64)
    solution = ridge_cv(X.to(device), y.to(device), alphas, cv=4)
    # The refit itself is good to eps of the targets: 1e-15 / noise of the residuals.
    expected = refit(X, y, list(KFold(4).split(X)), alphas, solver="svd")
    assert_scores(solution, expected, max(FOLD_SCORES, 3e-14 / noise))


@pytest.mark.parametrize("collinear", [1e-2, 1e-3, 1e-4])
def test_scores_of_ill_conditioned_features(collinear: float, device: torch.device) -> None:
    X, y = problem(90, 6, 2)
    X[:, 1] = X[:, 0] + collinear * X[:, 1]
    alphas = torch.logspace(-8, 2, 6, dtype=torch.float64)
    solution = ridge_cv(X.to(device), y.to(device), alphas, cv=4)
    assert_scores(solution, refit(X, y, list(KFold(4).split(X)), alphas, solver="svd"), tolerance(X, alphas))


@pytest.mark.parametrize("shape", [(40, 6), (20, 20), (15, 30)])
@pytest.mark.parametrize("name", ["plain", "no intercept", "weights", "factors", "free", "all"])
def test_leave_one_out_equals_n_refits(name: str, shape: tuple[int, int], device: torch.device) -> None:
    n, d = shape
    X, y = problem(n, d, 2)
    options: dict[str, Any] = {}
    if name in ("weights", "all"):
        options["sample_weight"] = weights(n)
    if name == "no intercept":
        options["fit_intercept"] = False
    if name in ("factors", "free", "all"):
        options["penalty_factors"] = torch.linspace(0.3, 2, d, dtype=torch.float64)
    if name in ("free", "all"):
        options["penalty_factors"][[1, 4]] = 0.0
    if name == "all":
        options["prior"] = torch.ones(2, d, dtype=torch.float64)
    alphas = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    errors = torch.zeros(3, 2, dtype=torch.float64)
    s = options.get("sample_weight", torch.ones(n, dtype=torch.float64))
    for i in range(n):
        keep = torch.arange(n) != i
        rest = {k: v[keep] if k == "sample_weight" else v for k, v in options.items()}
        for j, alpha in enumerate(alphas.tolist()):
            held = y[i] - ridge(X[keep], y[keep], alpha, solver="auto", **rest).predict(X[i])
            errors[j] += s[i] * held**2 / s.sum()
    solution = ridge_cv(X.to(device), y.to(device), alphas, cv="loo", **on(device, options))
    assert solution.scores is not None
    assert relative(-solution.scores, errors) <= LEAVE_ONE_OUT


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.RankDeficientWarning")
@pytest.mark.parametrize("solver", ["auto", "spectral", "dual"])
@pytest.mark.parametrize("shape", [(8, 12), (8, 40), (20, 5)])
def test_zero_strength_on_dependent_rows_is_scored_as_it_is_fitted(
    shape: tuple[int, int], solver: str, device: torch.device
) -> None:
    X, y = problem(*shape, 2)
    X, y = torch.cat([X, X]), torch.cat([y, y + 1])
    solution = ridge_cv(X.to(device), y.to(device), [0.0, 1.0], cv=4, solver=solver)
    expected = refit(X, y, list(KFold(4).split(X)), torch.ones(2, dtype=torch.float64))
    for k, (train, test) in enumerate(KFold(4).split(X)):
        weight = least_norm(X[train], y[train])
        error = y[test] - y[train].mean(0) - (X[test] - X[train].mean(0)) @ weight.T
        expected[k, 0] = -(error**2).mean(0)
    assert_scores(solution, expected, 1e-8)


@pytest.mark.parametrize("moments", [False, True])
def test_gcv_does_not_choose_a_fit_that_spends_every_row(device: torch.device, moments: bool) -> None:
    """There it divides one rounding error by another, which may come out as 0."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(20, 50, generator=g, dtype=torch.float64)
    y = X[:, 0] + torch.randn(20, generator=g, dtype=torch.float64)
    alphas = [1e-10, 1e-8, 1e-4, 1.0, 100.0] if moments else [0.0, 1e-15, 1e-4, 1.0, 100.0]
    rows = (Moments().update(X.to(device), y.to(device)),) if moments else (X.to(device), y.to(device))
    with pytest.warns(TorchridgeWarning):
        found = ridge_cv(*rows, alphas=alphas, cv="gcv")
    centred = X - X.mean(0)
    kernel, residual = centred @ centred.T, y - y.mean()
    want = []
    for alpha in (1e-4, 1.0, 100.0):
        hat = kernel @ torch.linalg.inv(kernel + alpha * torch.eye(20, dtype=torch.float64))
        left = 1 - (hat.trace() + 1) / 20
        want.append(float((residual - hat @ residual).square().mean() / left**2))
    assert float(found.alpha) == alphas[2 + min(range(3), key=want.__getitem__)]
    torch.testing.assert_close(-found.scores[2:, 0].cpu(), torch.tensor(want).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_few_targets_of_many_even_features_need_no_eigendecomposition(
    standardize: bool, prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an eigendecomposition of all directions")

    X, y = problem(4000, 400, 2, noise=30)
    options: dict[str, Any] = {"prior": torch.randn(2, 400, dtype=X.dtype)} if prior else {}
    alphas = torch.logspace(-2, 4, 100, dtype=X.dtype)
    with monkeypatch.context() as patch:
        patch.setattr("torchridge.solvers.least_squares.spectral.spectra", never)
        got = ridge_cv(X, y, alphas, cv=4, standardize=standardize, **options)
    held = torch.arange(1000, 2000)
    kept = torch.cat([torch.arange(1000), torch.arange(2000, 4000)])
    for i in (0, 50, 99):
        fit = ridge(X[kept], y[kept], float(alphas[i]), standardize=standardize, **options)
        want = ((fit.predict(X[held]) - y[held]) ** 2).mean(0)
        torch.testing.assert_close(-got.fold_scores[1, i], want, rtol=1e-10, atol=0)
