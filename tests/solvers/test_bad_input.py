"""One table of bad inputs: what is raised, what the message says, and that nothing changed."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.model_selection import KFold

from torchridge import Moments, ridge, ridge_cv, ridge_path

N, D = 12, 3
NAN, INF = float("nan"), float("inf")


def rows(n: int = N, d: int = D) -> torch.Tensor:
    return torch.arange(n * d, dtype=torch.float64).reshape(n, d).sin()


X, Y = rows(), rows(N, 2)
ONES = torch.ones(N)


def spoiled(value: float, row: int, of: torch.Tensor = X) -> torch.Tensor:
    result = of.clone()
    result[row, 0] = value
    return result


class Bad(NamedTuple):
    error: type[Exception]
    match: str
    X: Any = X
    y: Any = Y
    alpha: Any = 1.0
    options: Mapping[str, Any] = MappingProxyType({})


def weights(value: Any) -> dict[str, Any]:
    return {"sample_weight": value}


def with_value(value: float, row: int) -> torch.Tensor:
    result = ONES.clone()
    result[row] = value
    return result


# Refused by all: ridge, ridge_path, ridge_cv and, where it takes the argument, Moments.update.
DATA = {
    "X a list": Bad(TypeError, r"`X` should be a torch.Tensor, got list", X=X.tolist()),
    "X an array": Bad(TypeError, r"`X` should be a torch.Tensor, got ndarray", X=X.numpy()),
    "y a list": Bad(TypeError, r"`y` should be a torch.Tensor, got list", y=Y.tolist()),
    "y missing": Bad(TypeError, r"`y`", y=None),
    "X a vector": Bad(ValueError, r"`X` .*shape.*\(12,\).*`X\[:, None\]` for rows of one feature", X=X[:, 0]),
    "X a scalar": Bad(ValueError, r"`X` .*shape.*\(\)", X=torch.tensor(1.0)),
    "y of three dimensions": Bad(ValueError, r"`y`.* shape .*\(12, 2, 1\)", y=Y[..., None]),
    "y a scalar": Bad(ValueError, r"`y`.* shape .*\(\)", y=torch.tensor(1.0)),
    "y shorter": Bad(ValueError, r"`y` has 11 rows, but `X` has 12", y=Y[:-1]),
    "y longer": Bad(ValueError, r"`y` has 12 rows, but `X` has 11", X=X[:-1]),
    "no rows": Bad(ValueError, r"`X` is empty, got shape \(0, 3\)", X=X[:0], y=Y[:0]),
    "no features": Bad(ValueError, r"`X` is empty, got shape \(12, 0\)", X=X[:, :0]),
    "no targets": Bad(ValueError, r"`y` is empty, got shape \(12, 0\)", y=Y[:, :0]),
    "X NaN": Bad(ValueError, r"`X` holds NaN, first in row 4 \(\d such", X=spoiled(NAN, 4)),
    "X inf": Bad(ValueError, r"`X` holds infinity, first in row 5", X=spoiled(INF, 5)),
    "X -inf": Bad(ValueError, r"`X` holds infinity, first in row 0", X=spoiled(-INF, 0)),
    "X inf and -inf": Bad(ValueError, r"`X` holds infinity, first in row 2", X=spoiled(-INF, 2, spoiled(INF, 3))),
    "y NaN": Bad(ValueError, r"`y` holds NaN, first in row 11", y=spoiled(NAN, 11, Y)),
    "y inf": Bad(ValueError, r"`y` holds infinity, first in row 1", y=spoiled(INF, 1, Y)),
    "float16 X inf": Bad(ValueError, r"`X` holds infinity, first in row 5", X=spoiled(INF, 5).half()),
    "bfloat16 X NaN": Bad(ValueError, r"`X` holds NaN, first in row 5", X=spoiled(NAN, 5).bfloat16()),
    "X complex": Bad(TypeError, r"`X` should be real, got torch.complex128", X=X + 1j),
    "y complex": Bad(TypeError, r"`y` should be real", y=Y + 1j),
    "y sparse": Bad(TypeError, r"`y` should be a dense tensor", y=Y.to_sparse()),
    "X on another device": Bad(ValueError, r"one device, got `X` on meta, `y` on cpu", X=X.to("meta")),
    "y on another device": Bad(ValueError, r"one device, got `X` on cpu, `y` on meta", y=Y.to("meta")),
    "too large to square": Bad(ValueError, r"`X` or `y` is too large to square", X=X * 1e200),
    "weights a list": Bad(TypeError, r"`sample_weight` should be a torch.Tensor, got list", options=weights([1.0] * N)),
    "weights short": Bad(ValueError, r"`sample_weight` should have shape \(12,\)", options=weights(ONES[:-1])),
    "weights a column": Bad(ValueError, r"`sample_weight` should have shape", options=weights(ONES[:, None])),
    "weights a scalar": Bad(ValueError, r"`sample_weight` should have shape", options=weights(torch.tensor(2.0))),
    "weights negative": Bad(
        ValueError, r"`sample_weight` .*negative, got -1.0 at position 3", options=weights(with_value(-1.0, 3))
    ),
    "weights NaN": Bad(ValueError, r"`sample_weight` holds NaN, first in row 2", options=weights(with_value(NAN, 2))),
    "weights inf": Bad(
        ValueError, r"`sample_weight` holds infinity, first in row 2", options=weights(with_value(INF, 2))
    ),
    "weights zero": Bad(ValueError, r"`sample_weight` is zero in every row", options=weights(ONES * 0)),
    "weights complex": Bad(TypeError, r"`sample_weight` should be real", options=weights(ONES + 0j)),
    "weights sparse": Bad(TypeError, r"`sample_weight` should be a dense tensor", options=weights(ONES.to_sparse())),
    "weights elsewhere": Bad(ValueError, r"one device, .*`sample_weight` on meta", options=weights(ONES.to("meta"))),
    "NaN in a row of no weight": Bad(
        ValueError, r"`X` holds NaN, first in row 4", X=spoiled(NAN, 4), options=weights(with_value(0.0, 4))
    ),
}

# Refused by ridge, ridge_path and ridge_cv.
OPTIONS = {
    "solver": Bad(ValueError, r"`solver` should be one of 'auto', .*got 'qr'", options={"solver": "qr"}),
    "solver None": Bad(ValueError, r"`solver` should be one of", options={"solver": None}),
    "intercept": Bad(
        ValueError, r"`fit_intercept` should be one of True, False, got 'no'", options={"fit_intercept": "no"}
    ),
    "standardize": Bad(ValueError, r"`standardize` should be one of", options={"standardize": None}),
    "moments in half": Bad(ValueError, r"`moments_dtype` should be one of", options={"moments_dtype": torch.float16}),
    "factors short": Bad(
        ValueError, r"`penalty_factors` should have shape \(3,\)", options={"penalty_factors": torch.ones(2)}
    ),
    "factors negative": Bad(
        ValueError, r"`penalty_factors` .*negative, got -1.0", options={"penalty_factors": [1.0, -1.0, 1.0]}
    ),
    "factors NaN": Bad(ValueError, r"`penalty_factors` holds NaN", options={"penalty_factors": [1.0, NAN, 1.0]}),
    "factors inf": Bad(ValueError, r"`penalty_factors` holds infinity", options={"penalty_factors": [1.0, INF, 1.0]}),
    "factors a string": Bad(TypeError, r"`penalty_factors` should be", options={"penalty_factors": "equal"}),
    "factors complex": Bad(
        TypeError, r"`penalty_factors` should be real", options={"penalty_factors": torch.ones(D) + 0j}
    ),
    "factors elsewhere": Bad(
        ValueError, r"`penalty_factors` on meta", options={"penalty_factors": torch.ones(D, device="meta")}
    ),
    "prior of wrong shape": Bad(
        ValueError, r"`prior` should have shape \(3,\) or \(2, 3\)", options={"prior": torch.ones(3, 2)}
    ),
    "prior NaN": Bad(ValueError, r"`prior` holds NaN", options={"prior": torch.full((3,), NAN)}),
    "prior a string": Bad(TypeError, r"`prior` should be", options={"prior": "zero"}),
    "prior complex": Bad(TypeError, r"`prior` should be real", options={"prior": torch.ones(D) + 0j}),
    "prior elsewhere": Bad(ValueError, r"`prior` on meta", options={"prior": torch.ones(D, device="meta")}),
}

STRENGTHS = {
    "negative": (ValueError, r"`{}` should not be negative, got -1.0", -1.0),
    "NaN": (ValueError, r"`{}` holds NaN", NAN),
    "inf": (ValueError, r"`{}` holds infinity", INF),
    "NaN tensor": (ValueError, r"`{}` holds NaN", torch.tensor(NAN)),
    "negative among others": (ValueError, r"`{}` should not be negative", [1.0, -2.0]),
    "NaN among others": (ValueError, r"`{}` holds NaN", torch.tensor([1.0, NAN])),
    "missing": (TypeError, r"`{}` is missing", None),
    "empty": (ValueError, r"`{}` is empty", []),
    "a matrix": (ValueError, r"`{}` should .*shape", torch.ones(2, 2)),
    "complex": (TypeError, r"`{}` should be", 1j),
    "complex tensor": (TypeError, r"`{}` should be real", torch.ones(2) + 0j),
    "an object": (TypeError, r"`{}` should be a number", object()),
    "sparse": (TypeError, r"`{}` should be a dense tensor", torch.ones(2).to_sparse()),
}

CV: dict[str, tuple[type[Exception], str, Any, dict[str, Any]]] = {
    "unknown name": (ValueError, r"`cv` should be one of 'gcv', 'loo', 'evidence', got 'kfold'", "kfold", {}),
    "one fold": (ValueError, r"`cv` should be an integer of at least 2, got 1", 1, {}),
    "no folds": (ValueError, r"`cv` should be an integer of at least 2, got 0", 0, {}),
    "negative": (ValueError, r"`cv` should be an integer of at least 2, got -3", -3, {}),
    "more folds than rows": (ValueError, r"`cv`=13 folds cannot be made of 12 rows", 13, {}),
    "a bool": (ValueError, r"`cv` should be", True, {}),
    "a float": (ValueError, r"`cv` should be", 2.5, {}),
    "a dict": (ValueError, r"`cv` should be", {}, {}),
    "numbers in place of pairs": (ValueError, r"`cv`", [1, 2, 3], {}),
    "triples": (ValueError, r"`cv` should give pairs", [([0], [1], [2])], {}),
    "no splits": (ValueError, r"`cv` gave no split", [], {}),
    "empty held-out part": (ValueError, r"`cv` gave .*empty part", [(range(12), [])], {}),
    "row out of range": (ValueError, r"`cv`: row numbers should lie between 0 and 11", [([0, 1], [12])], {}),
    "negative row": (ValueError, r"`cv`: row numbers should lie between 0 and 11", [([0, 1], [-1])], {}),
    "fractional rows": (ValueError, r"`cv`: row numbers", [([0.5, 1.5], [2.0])], {}),
    "short mask": (ValueError, r"`cv`: .*mask", [(torch.ones(5) > 0, torch.ones(12) > 0)], {}),
    "fold ids short": (ValueError, r"`cv`: fold ids should be integers of shape \(12,\)", torch.arange(11), {}),
    "fold ids in float": (ValueError, r"`cv`: fold ids should be integers", torch.arange(12.0), {}),
    "fold ids in bool matrix": (ValueError, r"`cv`: fold ids should be integers", torch.ones(12, 2) > 0, {}),
    "fold ids negative": (ValueError, r"`cv`: fold ids should not be negative, got -1", torch.arange(12) - 1, {}),
    "a single fold": (ValueError, r"`cv`: fold ids name a single fold", torch.zeros(12, dtype=torch.int64), {}),
    "a fold of no weight": (
        ValueError,
        r"`cv`: a fold has no row of positive weight",
        torch.arange(12) // 6,
        weights((torch.arange(12) < 6).float()),
    ),
    "groups short": (ValueError, r"`groups` should hold one label for each row", 3, {"groups": torch.arange(11)}),
    "groups too few": (ValueError, r"`cv`=3 folds need at least 3 groups, got 2", 3, {"groups": torch.arange(12) % 2}),
    "groups beside gcv": (ValueError, r"`groups` has no use with `cv`='gcv'", "gcv", {"groups": torch.arange(12)}),
    "groups beside ids": (ValueError, r"`groups` has no use", torch.arange(12), {"groups": torch.arange(12)}),
    "groups beside pairs": (
        ValueError,
        r"`groups` has no use",
        [(range(6), range(6, 12))],
        {"groups": torch.arange(12)},
    ),
    "groups of no order": (TypeError, r"`groups`", 3, {"groups": [None] * 12}),
    "scoring": (
        ValueError,
        r"`scoring` should be one of 'mse', 'r2', 'correlation', or the name of a scorer of scikit-learn, got 'mae'",
        3,
        {"scoring": "mae"},
    ),
    "r2 of gcv": (ValueError, r"`scoring`='r2' needs held-out targets", "gcv", {"scoring": "r2"}),
    "per target": (ValueError, r"`alpha_per_target` should be one of True, False", 3, {"alpha_per_target": 3}),
    "cholesky": (ValueError, r"`solver` should be one of 'auto', 'spectral', 'dual'", 3, {"solver": "cholesky"}),
    "dict of splits": (ValueError, r"`cv` should be", {"a": 1}, {}),
}

ENTRIES: dict[str, Callable[[Bad], Any]] = {
    "ridge": lambda bad: ridge(bad.X, bad.y, bad.alpha, **bad.options),
    "ridge_path": lambda bad: ridge_path(bad.X, bad.y, [bad.alpha, 2.0], **bad.options),
    "ridge_cv gcv": lambda bad: ridge_cv(bad.X, bad.y, [bad.alpha, 2.0], **bad.options),
    "ridge_cv folds": lambda bad: ridge_cv(bad.X, bad.y, [bad.alpha, 2.0], cv=3, **bad.options),
    "ridge_cv splitter": lambda bad: ridge_cv(
        bad.X, bad.y, "auto", cv=KFold(3, shuffle=True, random_state=0), **bad.options
    ),
    "ridge_cv loo": lambda bad: ridge_cv(bad.X, bad.y, "auto", cv="loo", **bad.options),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", [*DATA, *OPTIONS])
def test_refused(name: str, entry: str) -> None:
    bad = (DATA | OPTIONS)[name]
    with pytest.raises(bad.error, match=bad.match):
        ENTRIES[entry](bad)


@pytest.mark.parametrize("name", ["X NaN", "y inf", "weights negative", "too large to square", "X complex"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_refused_on_more_features_than_rows(name: str, entry: str) -> None:
    bad = DATA[name]
    wide = torch.cat([bad.X] * 5, 1)
    with pytest.raises(bad.error, match=bad.match):
        ENTRIES[entry](bad._replace(X=wide))


@pytest.mark.parametrize("name", ["X NaN", "y NaN", "weights negative", "X complex", "y shorter", "weights NaN"])
def test_refused_under_autograd(name: str) -> None:
    bad = DATA[name]
    with pytest.raises(bad.error, match=bad.match.replace("has 11 rows, but `X` has 12", "")):
        ridge(bad.X.clone().requires_grad_(), bad.y, 1.0, **bad.options)


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("entry", ["ridge", "ridge_path", "ridge_cv", "ridge moments", "ridge autograd"])
def test_refused_strengths(name: str, entry: str) -> None:
    error, match, value = STRENGTHS[name]
    calls: dict[str, Callable[[], Any]] = {
        "ridge": lambda: ridge(X, Y, value),
        "ridge_path": lambda: ridge_path(X, Y, value),
        "ridge_cv": lambda: ridge_cv(X, Y, value, cv=3),
        "ridge moments": lambda: ridge(Moments().update(X, Y), alpha=value),
        "ridge autograd": lambda: ridge(X.clone().requires_grad_(), Y, value),
    }
    with pytest.raises(error, match=match.format("alphas" if entry in ("ridge_path", "ridge_cv") else "alpha")):
        calls[entry]()


@pytest.mark.parametrize("alpha", [[1.0, 2.0, 3.0], torch.ones(1, 2)])
def test_refused_strengths_of_another_number_of_targets(alpha: Any) -> None:
    with pytest.raises(ValueError, match=r"`alpha` should have shape \(\) or \(1,\) or \(2,\)"):
        ridge(X, Y, alpha)


@pytest.mark.parametrize("name", CV)
def test_refused_cross_validation(name: str) -> None:
    error, match, cv, options = CV[name]
    with pytest.raises(error, match=match):
        ridge_cv(X, Y, [0.1, 1.0, 10.0], cv=cv, **options)


def test_refused_names_of_strengths() -> None:
    with pytest.raises(ValueError, match=r"`alphas` should be 'auto' or strengths, got 'best'"):
        ridge_cv(X, Y, "best", cv=3)
    with pytest.raises(TypeError, match=r"`alpha` should be a number .*got 'auto'"):
        ridge(X, Y, "auto")
