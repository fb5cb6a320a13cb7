"""Sparse rows in a stream: hashed batches and whole matrices have the moments of dense rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.feature_extraction.text import HashingVectorizer

from torchridge import Moments, open_rows, ridge_cv, stream_moments

KINDS: dict[str, Any] = {
    "csr": scipy.sparse.csr_matrix,
    "csc": scipy.sparse.csc_array,
    "coo": scipy.sparse.coo_matrix,
    "torch coo": lambda X: torch.from_numpy(X).to_sparse(),
    "torch csr": lambda X: torch.from_numpy(X).to_sparse_csr(),
}


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchridge.streams.sparse._RUN_BYTES", 8 * 6 * 7)


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.poisson(0.4, (50, 6)).astype(float)
    return X, X @ rng.standard_normal((6, 2)) + rng.standard_normal((50, 2)), rng.uniform(0.1, 2, 50)


def same(found: Moments, expected: Moments) -> None:
    assert found.n_samples == expected.n_samples and found.folds == expected.folds
    torch.testing.assert_close(found.gram, expected.gram)
    torch.testing.assert_close(found.cross, expected.cross)
    torch.testing.assert_close(found.mean, expected.mean)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [False, True])
def test_batches_equal_dense_rows(kind: str, named: bool) -> None:
    X, y, s = rows()
    parts = [slice(0, 20), slice(20, 21), slice(21, 50)]
    batches: list[Any] = [(KINDS[kind](X[p]), y[p], s[p]) for p in parts]
    batches = [dict(zip(("X", "y", "sample_weight"), batch, strict=True)) for batch in batches] if named else batches
    expected = stream_moments([(X, y, s)], cv=3)
    same(stream_moments(batches, cv=3), expected)
    same(
        stream_moments(open_rows(iter(batches)), cv=3, fold_rows=17),
        stream_moments([(X, y, s)], cv=3, fold_rows=17),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_matrix_is_opened(kind: str, tmp_path: Path) -> None:
    X, y, s = rows()
    opened = open_rows(KINDS[kind](X), target=y, sample_weight=s)
    assert (opened.n_rows, opened.n_features, opened.n_targets) == (50, 6, 2)
    assert torch.equal(next(iter(open_rows(KINDS[kind](X)))).X, torch.from_numpy(X[:7]))
    ids = np.arange(50) % 4
    same(stream_moments(opened, cv=5), stream_moments(open_rows(X, target=y, sample_weight=s), cv=5))
    same(
        stream_moments(open_rows(KINDS[kind](X), target=y, fold=ids)), stream_moments(open_rows(X, target=y, fold=ids))
    )
    file = tmp_path / "pass.safetensors"
    first = stream_moments(opened, cv=5, checkpoint=file)
    again = stream_moments(open_rows(KINDS[kind](X), target=y, sample_weight=s), cv=5, checkpoint=file)
    assert torch.equal(first.gram, again.gram)
    X[3, 2] += 1
    with pytest.raises(ValueError, match="checkpoint"):
        stream_moments(open_rows(KINDS[kind](X), target=y, sample_weight=s), cv=5, checkpoint=file)


def test_hashed_text() -> None:
    texts = [f"word{i % 7} word{i % 5} other{i}" for i in range(60)]
    hashing = HashingVectorizer(n_features=64)
    y = torch.arange(60.0, dtype=torch.float64) % 7
    batches = ((hashing.transform(texts[i : i + 20]), y[i : i + 20]) for i in range(0, 60, 20))
    grid = [0.01, 0.1, 1.0, 10.0, 100.0]
    chosen = ridge_cv(stream_moments(batches, cv=3, fold_rows=20), alphas=grid)
    expected = ridge_cv(torch.from_numpy(hashing.transform(texts).toarray()), y, grid, cv=3)
    torch.testing.assert_close(chosen.weight, expected.weight)


def test_refusals_say_what_to_do() -> None:
    X, y, _ = rows()
    wide = scipy.sparse.csr_matrix((4, 2**20))
    for call in (lambda: open_rows(wide, target=y[:4]), lambda: stream_moments([(wide, y[:4])])):
        with pytest.raises(ValueError, match=r"1048576 sparse columns.*at most 8192.*HashingVectorizer"):
            call()
    with pytest.raises(ValueError, match="`features` has no use for a sparse matrix"):
        open_rows(scipy.sparse.csr_matrix(X), target=y, features=[0, 1])
    with pytest.raises(ValueError, match="50 rows"):
        open_rows(scipy.sparse.csr_matrix(X), target=y[:4])
    with pytest.raises(ValueError, match="has 50 rows, `y` 4"):
        stream_moments([(scipy.sparse.csr_matrix(X), y[:4])])
    with pytest.raises(TypeError, match="real numbers, got complex"):
        open_rows(scipy.sparse.csr_matrix(X * 1j), target=y)
    X[30, 1] = np.inf
    with pytest.raises(ValueError, match="row"):
        stream_moments(open_rows(scipy.sparse.csr_matrix(X), target=y))
