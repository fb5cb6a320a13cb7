"""Scores are as exact as fits: against refitted parts, in long arithmetic, whatever the units of the columns."""

import random
from decimal import Decimal, localcontext
from typing import Any

import exactness
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import torchridge
from torchridge import (
    Moments,
    nested_ridge_cv,
    probe_layers,
    ridge,
    ridge_cv,
    ridge_path,
)
from torchridge.exceptions import (
    IllConditionedWarning,
    RankDeficientWarning,
    UndefinedScoreWarning,
    UnresolvedChoiceWarning,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning"),
    pytest.mark.filterwarnings("ignore::torchridge.exceptions.RankDeficientWarning"),
]

SCORE = 1e-9


@given(st.data())
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_exact_or_says_that_it_is_not(data: st.DataObject) -> None:
    found = exactness.examine(exactness.make(lambda values: data.draw(st.sampled_from(values))))
    assert not found.faults


def normal(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    return X, X[:, : min(d, 4)].sum(1) + torch.randn(n, generator=g, dtype=torch.float64)


def large_column() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(24, 4)
    X[:, 3] *= 1e8
    return X, y, {}


def timestamps() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(24, 2)
    return X * torch.tensor([15.0, 1e10]) + torch.tensor([40.0, 1.7e12]), y, {}


def one_row_alone() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(24, 4)
    X[:, 3] = 0
    X[4, 3] = 1e7
    return X, y, {}


def interpolating() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(9, 9)
    return X, y, {}


def singletons() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(12, 2)
    X = torch.cat([X, torch.zeros(12, 2, dtype=torch.float64)], 1)
    X[3, 2] = X[7, 3] = 1
    return X, y, {}


def repeated_rows() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(5, 12)
    return torch.cat([X, X]) * 1e7, torch.cat([y, y + 1]), {}


def heavy_row() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(24, 3)
    s = torch.ones(24, dtype=torch.float64)
    s[5] = 1e18
    return X, y, {"sample_weight": s}


def many_free() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(10, 14)
    return X, y, {"penalty_factors": torch.tensor([0.0] * 6 + [1.0] * 8)}


def few_rows_free() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(6, 6)
    return X, y, {"penalty_factors": torch.tensor([0.0] * 4 + [1.0] * 2)}


def near_free() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(20, 4)
    X[:, 1] = X[:, 0] + 1e-5 * X[:, 1]
    return X, y, {"penalty_factors": torch.tensor([0.0, 0.0, 1.0, 1.0])}


def standardized() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(12, 3)
    X[2] *= 5
    return X, y, {"standardize": True}


def standardized_few_rows() -> tuple[Tensor, Tensor, dict[str, Any]]:
    X, y = normal(8, 11)
    return X, y, {"standardize": True}


PROBLEMS = [
    large_column,
    timestamps,
    one_row_alone,
    interpolating,
    singletons,
    repeated_rows,
    heavy_row,
    many_free,
    few_rows_free,
    near_free,
    standardized,
    standardized_few_rows,
]
ALPHAS = [0.01, 1.0, 1000.0]


def case_of(make: Any, alphas: list[float], intercept: bool = True) -> exactness.Case:
    X, y, options = make()
    penalty = options.get("penalty_factors")
    penalty = None if penalty is None else penalty.double()
    s, standardize = options.get("sample_weight"), options.get("standardize", False)
    return exactness.Case(X, y[:, None], alphas, s, penalty, intercept, standardize, 0)


def expected(case: exactness.Case, parts: list[list[int]]) -> Tensor:
    """Return mean squared errors (K, L, 1) of refitted parts, in long arithmetic."""
    values = torch.from_numpy(exactness._expected(case, parts)[0])
    weight = torch.tensor([exactness._weight(case, held) for held in parts], dtype=torch.float64)
    return values / weight[:, None, None]


@pytest.mark.parametrize("cv", [2, 3, "loo"])
@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_scores_are_those_of_refitted_parts(make: Any, cv: Any) -> None:
    case = case_of(make, ALPHAS)
    n = len(case.X)
    want = expected(case, exactness.ids_of(n, n if cv == "loo" else cv))
    got = ridge_cv(case.X, case.y, ALPHAS, cv=cv, **case.options)
    if cv == "loo":
        s = torch.ones(n, dtype=torch.float64) if case.sample_weight is None else case.sample_weight
        want = (want * s[:, None, None]).sum(0, keepdim=True) / s.sum()
    assert got.fold_scores is not None
    torch.testing.assert_close(-got.fold_scores, want, rtol=SCORE, atol=0)
    splits = [([i for i in range(n) if i not in held], held) for held in exactness.ids_of(n, 2)]
    other = ridge_cv(case.X, case.y, ALPHAS, cv=[*splits, splits[0]], **case.options).fold_scores
    assert other is not None
    torch.testing.assert_close(-other[:2], expected(case, exactness.ids_of(n, 2)), rtol=SCORE, atol=0)


def predicted(case: exactness.Case, parts: list[list[int]]) -> Tensor:
    """Return predictions (L, n) of held-out rows by refitted parts, in long arithmetic."""
    n, found = len(case.X), torch.zeros(len(case.alphas), len(case.X), dtype=torch.float64)
    for held in parts:
        train = case.of(torch.tensor([i for i in range(n) if i not in held]))
        known = exactness.sums(train)
        for row, alpha in zip(found, case.alphas, strict=True):
            fit = exactness.exact(train, alpha, known)
            with localcontext() as context:
                context.prec = exactness.DIGITS
                for i in held:
                    x = [Decimal(v) for v in case.X[i].tolist()]
                    row[i] = float(fit.bias[0] + sum(a * w[0] for a, w in zip(x, fit.weight, strict=True)))
    return found


def correlation(y: Tensor, p: Tensor, s: Tensor) -> Tensor:
    """Return Pearson's of y (f,) and p (L, f) under weights, (L,)."""
    y, p = y - (s * y).sum() / s.sum(), p - ((s * p).sum(1) / s.sum())[:, None]
    return (s * y * p).sum(1) / ((s * y * y).sum() * (s * p * p).sum(1)).sqrt()


@pytest.mark.parametrize("cv", [2, "loo"])
@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_correlations_are_those_of_refitted_parts(make: Any, cv: Any) -> None:
    case = case_of(make, ALPHAS)
    n, y = len(case.X), case.y[:, 0]
    s = torch.ones_like(y) if case.sample_weight is None else case.sample_weight
    parts = exactness.ids_of(n, n if cv == "loo" else cv)
    found = predicted(case, parts)
    scored = [list(range(n))] if cv == "loo" else parts
    want = torch.stack([correlation(y[held], found[:, held], s[held]) for held in scored])
    got = ridge_cv(case.X, y, ALPHAS, cv=cv, scoring="correlation", **case.options).fold_scores
    assert got is not None
    torch.testing.assert_close(got[:, :, 0], want, rtol=0, atol=1e-8)
    if cv == 2:
        splits = [([i for i in range(n) if i not in held], held) for held in parts]
        other = ridge_cv(case.X, y, ALPHAS, cv=[*splits, splits[0]], scoring="correlation", **case.options).fold_scores
        assert other is not None
        torch.testing.assert_close(other[:2, :, 0], want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [12, 30])
def test_nested_folds_of_a_large_column_choose_as_their_rows_do(n: int) -> None:
    X, y = normal(n, 20)
    X[:, 5] *= 1e8
    got = nested_ridge_cv(X, y, ALPHAS, cv=3, outer=3, scoring="mse", predictions=True)
    assert got.predictions is not None
    for k, held in enumerate(exactness.ids_of(n, 3)):
        train = [i for i in range(n) if i not in held]
        want = ridge_cv(X[train], y[train], ALPHAS, cv=3)
        assert float(got.alpha[k]) == float(want.alpha)
        torch.testing.assert_close(got.predictions[held], want.predict(X[held]), rtol=1e-9, atol=1e-9)


def test_correlations_of_moments_of_a_large_column() -> None:
    X, y, _ = large_column()
    ids = torch.arange(24) // 8
    want = ridge_cv(X, y, ALPHAS, cv=ids, scoring="correlation").scores
    got = ridge_cv(Moments().update(X, y, fold=ids), alphas=ALPHAS, scoring="correlation").scores
    torch.testing.assert_close(got, want, rtol=SCORE, atol=0)


@pytest.mark.parametrize("make", [interpolating, singletons], ids=lambda make: make.__name__)
def test_leave_one_out_at_leverage_one(make: Any) -> None:
    case = case_of(make, [0.0])
    n = len(case.X)
    want = expected(case, exactness.ids_of(n, n)).mean(0)
    got = ridge_cv(case.X, case.y, [0.0], cv="loo").scores
    torch.testing.assert_close(-got, want, rtol=1e-8, atol=0)


@pytest.mark.parametrize("solver", ["auto", "spectral", "dual"])
def test_gcv_and_evidence_do_not_depend_on_units_that_the_penalty_follows(solver: str) -> None:
    X, y = normal(30, 4)
    size = torch.tensor([1e-6, 1.0, 1e4, 1e9], dtype=torch.float64)
    for cv in ("gcv", "evidence", "loo"):
        want = ridge_cv(X, y, ALPHAS, cv=cv).scores
        got = ridge_cv(X * size, y, ALPHAS, cv=cv, penalty_factors=size**2, solver=solver).scores
        torch.testing.assert_close(got, want, rtol=SCORE, atol=0)


@pytest.mark.parametrize("cv", ["gcv", 3])
def test_moments_of_a_large_column_choose_as_their_rows_do(cv: Any) -> None:
    X, y, _ = large_column()
    ids = torch.arange(24) // 8
    want = ridge_cv(X, y, ALPHAS, cv=ids if cv == 3 else cv)
    got = ridge_cv(Moments().update(X, y, fold=ids), alphas=ALPHAS, cv=cv)
    torch.testing.assert_close(got.scores, want.scores, rtol=SCORE, atol=0)
    assert "at one size" in got.reason


def test_moments_of_dependent_columns_say_that_the_choice_is_unresolved() -> None:
    X, y = normal(30, 3)
    X[:, 2] = X[:, 0] + 1e-9 * X[:, 2]
    moments = Moments().update(X, y, fold=torch.arange(30) % 3)
    with pytest.warns(UnresolvedChoiceWarning, match="unresolved"):
        ridge_cv(moments, alphas=[1e-16, 1e-14], cv=3)
    X[:, 2] = X[:, 0] + 1e-6 * X[:, 1]
    assert "scores from the rows" in ridge_cv(X, y, [1e-16, 1.0], cv=3).reason


@pytest.mark.parametrize("name", ["RidgeCV", "RidgeClassifierCV"])
@pytest.mark.parametrize("cv", [None, 3])
def test_estimators_choose_by_the_same_scores(name: str, cv: Any) -> None:
    import numpy as np

    case = case_of(large_column, ALPHAS)
    target = (case.y > 0).double() * 2 - 1 if "Classifier" in name else case.y
    labels = target[:, 0].long().numpy() if "Classifier" in name else target[:, 0].numpy()
    n = len(case.X)
    ids = torch.arange(n) % 3
    own = exactness.Case(case.X, target, ALPHAS, None, None, True, False, 0)
    parts = [[i] for i in range(n)] if cv is None else [(ids == k).nonzero()[:, 0].tolist() for k in range(3)]
    want = expected(own, parts).mean(0)[:, 0]
    splits = None if cv is None else [((ids != k).nonzero()[:, 0].numpy(), np.array(parts[k])) for k in range(3)]
    scoring = {} if cv is None or "Classifier" in name else {"scoring": "neg_mean_squared_error"}
    model = getattr(torchridge.estimators, name)(ALPHAS, cv=splits, **scoring).fit(case.X.numpy(), labels)
    if cv is None or scoring:
        assert model.best_score_ == pytest.approx(-float(want.min()), rel=SCORE)
        assert model.alpha_ == ALPHAS[int(want.argmin())]


def test_probes_choose_by_the_same_scores() -> None:
    X, y, _ = large_column()
    batches = [(X[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]
    model = torch.nn.Sequential(torch.nn.Identity())
    report = probe_layers(
        model, batches, ["0"], cv=torch.arange(24) // 8, alphas=torch.tensor(ALPHAS, dtype=torch.float64)
    )
    want = ridge_cv(X, y, ALPHAS, cv=3)
    scores = report.best.strength_scores.mean(0).cpu()  # (L,)
    torch.testing.assert_close(scores, want.scores[:, 0], rtol=SCORE, atol=0)


def test_a_constant_target_has_no_say_and_is_reported() -> None:
    X, y = normal(30, 3)
    both = torch.stack([y, torch.full_like(y, 0.1)], 1)
    want = ridge_cv(X, y, ALPHAS, cv=3, scoring="r2")
    with pytest.warns(UndefinedScoreWarning, match=r"target 1 in folds \[0, 1, 2\]"):
        got = ridge_cv(X, both, ALPHAS, cv=3, scoring="r2")
    assert float(got.alpha) == float(want.alpha) and float(got.best_score) == pytest.approx(float(want.best_score))
    y = y.clone()
    y[10:20] = 0.1
    with pytest.warns(UndefinedScoreWarning, match=r"target 0 in folds \[1\]"):
        got = ridge_cv(X, y, ALPHAS, cv=3, scoring="r2")
    assert bool(torch.isfinite(got.scores).all()) and bool(torch.isnan(got.fold_scores[1]).all())
    for more in ({"solver": "cg"}, {"alphas": "auto"}):
        with pytest.warns(UndefinedScoreWarning):
            found = ridge_cv(X, y, **{"alphas": ALPHAS, "cv": 3, "scoring": "r2", **more})
        assert bool(torch.isfinite(found.scores).all())


def test_a_score_that_is_not_a_number_never_wins() -> None:
    from sklearn.model_selection import LeaveOneOut

    from torchridge.estimators import LogisticRegressionCV, RidgeClassifierCV, RidgeCV

    X, y = normal(24, 3)
    with pytest.raises(ValueError, match="no strength has a score: it is NaN in folds"):
        RidgeCV([1e6, 0.1, 0.001], cv=LeaveOneOut()).fit(X.numpy(), y.numpy())
    folds = [(range(1, 24), [0]), (range(12), range(12, 24)), (range(12, 24), range(12))]
    with pytest.warns(UndefinedScoreWarning, match=r"folds \[0\]"):
        model = RidgeCV([1e6, 0.1, 0.001], cv=folds).fit(X.numpy(), y.numpy())
    assert model.alpha_ != 1e6 and model.best_score_ == model.best_score_
    labels = (y > 0).long().numpy()

    def scorer(estimator: Any, rows: Any, truth: Any) -> float:
        strength = getattr(estimator, "alpha", None)
        weights = abs(estimator.coef_).max()
        return float("nan") if strength == 1e6 or weights < 1e-3 else float(estimator.score(rows, truth))

    with pytest.warns(UndefinedScoreWarning):
        classifier = RidgeClassifierCV([1e6, 0.1, 0.001], cv=3, scoring=scorer).fit(X.numpy(), labels)
    assert classifier.alpha_ != 1e6
    with pytest.warns(UndefinedScoreWarning):
        logistic = LogisticRegressionCV(Cs=[1e-8, 1.0], cv=3, scoring=scorer).fit(X.numpy(), labels)
    assert float(logistic.C_[0] if getattr(logistic.C_, "ndim", 0) else logistic.C_) == 1.0


def test_one_score_of_logistic_cv_that_is_not_a_number() -> None:
    X, y = normal(24, 3)
    calls = []

    def score(truth: Any, proba: Any) -> float:
        calls.append(1)
        return float("nan") if len(calls) == 1 else float(-(truth.double() - proba).square().mean())

    with pytest.warns(UndefinedScoreWarning, match=r"folds \[0\]"):
        found = torchridge.logistic_cv(X, (y > 0).long(), [0.1, 1.0], cv=3, scoring=score)
    assert float(found.C) == 1.0


@pytest.mark.parametrize("path", [False, True])
@pytest.mark.parametrize("mean", [1e6, 1e7])
def test_free_features_of_a_large_mean_keep_their_digits(mean: float, path: bool) -> None:
    X, y = normal(40, 2)
    X = torch.cat([torch.ones(40, 1, dtype=torch.float64), X + mean], 1)
    factors = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    case = exactness.Case(X, y[:, None], [1.0], None, factors, False, False, 0)
    want = torch.tensor([float(row[0]) for row in exactness.exact(case, 1.0).weight], dtype=torch.float64)
    options: Any = {"penalty_factors": factors, "fit_intercept": False}
    strengths = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    got = ridge_path(X, y, strengths, **options).weight[0, 0] if path else ridge(X, y, 1.0, **options).weight[0]
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-8, atol=0)


@pytest.mark.parametrize("path", [False, True])
def test_a_copy_of_a_free_column_gets_nothing(path: bool) -> None:
    X, y = normal(40, 3)
    X[:, 2] = X[:, 1]
    factors = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    strengths = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    options: Any = {"penalty_factors": factors}
    got = ridge_path(X, y, strengths, **options).weight[0, 0] if path else ridge(X, y, 1.0, **options).weight[0]
    alone = ridge(X[:, :2], y, 1.0, penalty_factors=factors[:2]).weight[0]
    assert abs(float(got[2])) <= 1e-12
    torch.testing.assert_close(got[:2], alone, rtol=1e-10, atol=0)


def test_nearly_dependent_free_features_keep_their_digits_or_say_so() -> None:
    case = case_of(near_free, [1.0])
    want = torch.tensor([float(row[0]) for row in exactness.exact(case, 1.0).weight], dtype=torch.float64)
    got = ridge(case.X, case.y, 1.0, penalty_factors=case.penalty)
    torch.testing.assert_close(got.weight[0], want, rtol=1e-8, atol=0)
    X = case.X.clone()
    X[:, 1] = X[:, 0] + 1e-6 * X[:, 2]
    with pytest.warns(IllConditionedWarning):
        ridge(Moments().update(X, case.y), alpha=1.0, penalty_factors=case.penalty)


def test_dummies_of_groups_may_be_free() -> None:
    X, y = normal(20, 2)
    groups = torch.arange(20) % 4
    X = torch.cat([torch.nn.functional.one_hot(groups).double(), X], 1)
    factors = torch.tensor([0.0] * 4 + [1.0] * 2, dtype=torch.float64)
    parts = [(groups == k).nonzero()[:, 0].tolist() for k in range(4)]
    case = exactness.Case(X, y[:, None], ALPHAS, None, factors, True, False, 0)
    got = ridge_cv(X, y, ALPHAS, cv=4, groups=groups, penalty_factors=factors).fold_scores
    want = -expected(case, parts)
    assert got is not None
    order = [int(torch.argmin((got - w).abs().flatten(1).sum(1))) for w in want]  # folds are numbered by group size
    torch.testing.assert_close(got[order], want, rtol=SCORE, atol=0)


def test_evidence_without_rows_to_spare_chooses_nothing_silently() -> None:
    X, y = normal(6, 6)
    factors = torch.tensor([0.0] * 5 + [1.0], dtype=torch.float64)
    scores = ridge_cv(X, y, [0.1, 1.0], cv="evidence", penalty_factors=factors).scores
    assert not bool(torch.isnan(scores).any())


def test_integers_beyond_float64_are_refused() -> None:
    X, y = torch.arange(12).reshape(6, 2) + 2**53, torch.arange(6)
    for call in (
        lambda: ridge(X, y, 1.0),
        lambda: ridge(X.double(), y + 2**60, 1.0),
        lambda: ridge_cv(X, y, [1.0]),
        lambda: ridge(X[None], y[None], 1.0),
        lambda: Moments().update(X, y),
    ):
        with pytest.raises(ValueError, match=r"holds integers up to .*, and torch\.float64 is exact"):
            call()
    large = torch.arange(12).reshape(6, 2) ** 3 + 2**25
    want = ridge(large, y, 0.0).weight
    assert torch.equal(ridge(large, y, 0.0, moments_dtype=torch.float32).weight, want)


def test_a_strength_of_true_is_refused() -> None:
    X, y = normal(6, 2)
    for call in (lambda: ridge(X, y, True), lambda: ridge(X, y, torch.tensor(True))):
        with pytest.raises(TypeError, match="`alpha` should be a number"):
            call()


def test_complex_layers_are_refused() -> None:
    class Fourier(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x)

    X, y = normal(16, 3)
    model = torch.nn.Sequential(Fourier())
    with pytest.raises(TypeError, match=r"layer '0' gives torch\.complex128, expected real"):
        probe_layers(model, [(X, y)], ["0"])
    real = probe_layers(model, [(X, y)], ["0"], pool=lambda z, _: torch.view_as_real(z).flatten(1))
    assert real is not None


def test_a_batch_warns_once() -> None:
    X, y = normal(12, 3)
    X[:, 2] = X[:, 1]
    with pytest.warns(RankDeficientWarning, match=r"the first of 5 such problems of 5") as caught:
        ridge(X.expand(5, -1, -1), y.expand(5, -1), 0.0)
    assert len(caught) == 1


def test_leverages_keep_their_digits_whatever_the_units() -> None:
    X, y = normal(6, 4)
    X *= torch.tensor([1.0, 1e-8, 0.1, 3e4], dtype=torch.float64)
    s = torch.tensor([1.5, 0.5, 0.5, 1.5, 1.0, 2.0], dtype=torch.float64)
    case = exactness.Case(X, y[:, None], [1e-3, 1.0], s, None, False, False, 0)
    assert not exactness._left_out(case)[0]
    want = (expected(case, exactness.ids_of(6, 6)) * s[:, None, None]).sum(0) / s.sum()
    got = ridge_cv(X, y, case.alphas, cv="loo", **case.options).scores
    torch.testing.assert_close(-got, want, rtol=1e-11, atol=0)


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.UnresolvedChoiceWarning")
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("standardize", [False, True])
def test_free_features_of_few_rows_keep_their_digits_whatever_the_units(intercept: bool, standardize: bool) -> None:
    X, y = normal(5, 7)
    X = X * torch.tensor([1.0, 1e-8, 1e12, 1.0, 1e7, 0.0, 1e-8], dtype=torch.float64)
    X[:, 3] += 1e3
    s = torch.tensor([5.6e5, 4.5e-6, 2.7e-8, 9e-8, 2.5e-6], dtype=torch.float64)
    factors = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    case = exactness.Case(X, y[:, None], [1e3, 1e6], s, factors, intercept, standardize, 0)
    parts = exactness.ids_of(5, 2)
    got = ridge_cv(X, y, case.alphas, cv=2, **case.options).fold_scores
    assert got is not None
    torch.testing.assert_close(-got, expected(case, parts), rtol=1e-10, atol=0)


@pytest.mark.parametrize("place", [0, 5])
def test_a_free_feature_of_zeros_in_few_rows_gets_nothing(place: int) -> None:
    X, y = normal(4, 6)
    X[:, place] = 0
    factors = torch.ones(6, dtype=torch.float64)
    factors[place] = 0
    others = [j for j in range(6) if j != place]
    for standardize in (False, True):
        options: Any = {"fit_intercept": False, "standardize": standardize}
        for call in (lambda X, p, o=options: ridge(X, y, 1.0, penalty_factors=p, **o),
                     lambda X, p, o=options: ridge_cv(X, y, [1.0], cv="loo", penalty_factors=p, **o)):  # fmt: skip
            got = call(X, factors).weight[0]
            assert float(got[place]) == 0
            torch.testing.assert_close(got[others], call(X[:, others], factors[others]).weight[0], rtol=1e-12, atol=0)


def test_paths_of_few_rows_are_as_exact_as_single_fits() -> None:
    X, y = normal(4, 6)
    X *= torch.tensor([1e-2, 1e-5, 1.0, 100.0, 1e-8, 1.0], dtype=torch.float64)
    strengths = [1e-6, 1e-3, 1.0, 3.0, 30.0, 300.0]
    path = ridge_path(X, y, strengths).weight[:, 0]
    case = exactness.Case(X, y[:, None], strengths, None, None, True, False, 0)
    for w, alpha in zip(path, strengths, strict=True):
        found = exactness.exact(case, alpha)
        want = torch.tensor([float(v[0]) for v in found.weight], dtype=torch.float64)
        size = torch.tensor(found.size, dtype=torch.float64)
        assert float(((w - want) * size).abs().max()) <= 1e-12 * found.scale


@pytest.mark.parametrize("wide", [False, True])
def test_criteria_of_a_nearly_perfect_fit_keep_their_digits(wide: bool) -> None:
    X, _ = normal(8, 12 if wide else 3)
    y = X.sum(1) + 1e-6 * normal(8, 1, seed=3)[1]
    case = exactness.Case(X, y[:, None], [1e-7, 1e-5], None, None, True, False, 0)
    got = ridge_cv(X, y, case.alphas, cv="gcv").scores[:, 0]
    for score, alpha in zip(got.tolist(), case.alphas, strict=True):
        fit = exactness.exact(case, alpha)
        want = float(fit.squares[0]) / 8 / (1 - float(fit.dof + 1) / 8) ** 2
        assert score == pytest.approx(-want, rel=1e-8)


def far_from_its_mean() -> exactness.Case:
    X, y = normal(30, 3)
    X[:, 2] = X[:, 0] + 1e-4 * X[:, 2]
    return exactness.Case(X + 1e8, y[:, None], [1e-3, 1e-6], None, None, True, False, 0)


def one_heavy_row_of_few() -> exactness.Case:
    X, y = normal(4, 6)
    X[2:] = X[:2]
    X[:, 0] += 1e6
    s = torch.tensor([1e8, 3e-2, 1.5, 4.6e-5], dtype=torch.float64)
    return exactness.Case(X, y[:, None], [1.0, 1e-3], s, None, True, True, 0)


@pytest.mark.parametrize("solver", ["auto", "svd"])
@pytest.mark.parametrize("make", [far_from_its_mean, one_heavy_row_of_few], ids=lambda make: make.__name__)
def test_rows_are_centred_to_more_digits_than_one_number_holds(make: Any, solver: str) -> None:
    case = make()
    for alpha in case.alphas:
        found = exactness.exact(case, alpha)
        got = ridge(case.X, case.y, alpha, solver=solver, **case.options).weight[0]
        want = torch.tensor([float(v[0]) for v in found.weight], dtype=torch.float64)
        off = float(((got - want) * torch.tensor(found.size, dtype=torch.float64)).abs().max())
        assert off <= exactness.share(found.condition) * found.scale


def test_copies_of_constants_get_their_share_among_columns_of_other_units() -> None:
    X, y = normal(5, 7)
    X[2:4] = X[:2]
    X[:, 2] = X[:, 4] = 7e9
    X[:, 6] = 1 / 3
    X = X + torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1e6, 0.0]) * torch.ones_like(y)[:, None]
    X[:, 3] = 1e3 + X[:, 3]
    case = exactness.Case(X, y[:, None], [1e-3, 1.0], None, None, False, True, 0)
    for alpha in case.alphas:
        found = exactness.exact(case, alpha)
        got = ridge(X, y, alpha, **case.options).weight[0]
        want = torch.tensor([float(v[0]) for v in found.weight], dtype=torch.float64)
        assert float(((got - want) * torch.tensor(found.size, dtype=torch.float64)).abs().max()) <= 1e-6 * found.scale


@pytest.mark.parametrize(
    "seed",
    [
        "20:123",
        "1:260",
        "1:494",
        "1:508",
        "1:528",
        "1:841",
        "1:3385",
        "3:2556",
        "3:4821",
        "3:5399",
        "4:780",
        "5:3830",
        "3:1209",
        "5:1693",
        "5:5551",
        "7:1933",
        "9:3790",
        "9:6929",
        "5:4736",
        "8:10355",
        "12:3352",
    ],
)
def test_problems_that_were_once_wrong(seed: str) -> None:
    run, i = map(int, seed.split(":"))
    case = exactness.make(random.Random(run * 10**9 + i).choice)
    assert not exactness.examine(case, exactness.CHECKS[i % 4 :][:1]).faults


@pytest.mark.parametrize("make", [one_row_alone, interpolating, normal], ids=lambda make: make.__name__)
def test_leave_one_out_over_ranks_says_when_moments_cannot_leave_a_row_out(make: Any) -> None:
    from torchridge import _check
    from torchridge.distributed.collectives import LeaveOneOut
    from torchridge.linear.arguments import Options
    from torchridge.linear.ridge.over_ranks import leave_one_out
    from torchridge.solvers.moments.rows import Rows

    class One:
        def all_sum(self, _: str, total: Tensor) -> Tensor:
            return total

    X, y = make(24, 4) if make is normal else make()[:2]
    alphas = torch.tensor([0.0 if make is interpolating else 0.01, 1.0], dtype=torch.float64)
    prepared = leave_one_out(Moments().update(X, y), Rows(*_check.rows(X, y)), Options(), One())  # type: ignore[arg-type]
    assert isinstance(prepared.scorer, LeaveOneOut)
    got = prepared.scorer.squares(alphas)[0]
    told = prepared.scorer.precision.lost > 1e-8
    assert told == (make is not normal)
    want = -ridge_cv(X, y, alphas, cv="loo").scores
    assert told or torch.allclose(got, want, rtol=1e-10, atol=0)


def test_conditions_of_a_batch_have_the_digits_of_single_fits() -> None:
    X = torch.stack([normal(12, 3, seed=k)[0] for k in range(2)])
    X[1, :, 2] = X[1, :, 0] + 1e-4 * X[1, :, 2]
    y = X.sum(2)
    got = ridge(X, y, 1e-10).condition
    for k in range(2):
        assert float(got[k]) == pytest.approx(float(ridge(X[k], y[k], 1e-10).condition), rel=1e-12)
