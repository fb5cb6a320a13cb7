"""Moments: streamed, merged, forgotten, stored; and refused updates that change nothing."""

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from oracles import relative
from tolerances import CANCELLED_SUMS, SAME_SUMS
from torch import Tensor

from torchridge import Moments, ridge, ridge_cv

FIELDS = ("mean", "target_mean", "gram", "cross")


def data(n: int = 200, d: int = 5, t: int = 2, mean: float = 3.0, device: Any = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64) + mean
    y = X[:, :t] + torch.randn(n, t, generator=generator, dtype=torch.float64)
    return X.to(device), y.to(device), torch.rand(n, generator=generator, dtype=torch.float64).to(device)


def assert_same(a: Moments, b: Moments, tolerance: float = SAME_SUMS) -> None:
    assert a.n_samples == b.n_samples
    assert a.weight_sum == pytest.approx(b.weight_sum, rel=1e-13)
    for name in FIELDS:
        assert relative(getattr(a, name), getattr(b, name)) <= tolerance, name
    assert relative(a.block().yy, b.block().yy) <= tolerance


def bits(moments: Moments) -> list[Any]:
    """Return everything the moments hold, as bytes."""
    state = moments.state_dict()
    blocks = [
        {k: v.numpy(force=True).tobytes() if isinstance(v, Tensor) else v for k, v in b.items()}
        for b in state["blocks"]
    ]
    return [blocks, state["dtype"], state["result_dtype"], state["vector_target"], moments.device, repr(moments)]


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("weighted", [False, True])
def test_they_are_the_centred_sums(mean: float, weighted: bool, device: torch.device) -> None:
    X, y, s = data(mean=mean)
    s = s if weighted else torch.ones_like(s)
    moments = Moments().update(X.to(device), y.to(device), s.to(device) if weighted else None)
    share = s / s.sum()
    x, z = X - X[0], y - y[0]
    x, z = x - share @ x, z - share @ z
    assert relative(moments.gram, (x * s[:, None]).T @ x) <= SAME_SUMS
    assert relative(moments.cross, (x * s[:, None]).T @ z) <= SAME_SUMS
    assert relative(moments.mean, share @ X) <= SAME_SUMS
    assert moments.gram.equal(moments.gram.T)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_a_thousand_ragged_batches_equal_one(mean: float, device: torch.device) -> None:
    X, y, s = data(5000, 6, mean=mean, device=device)
    cuts = torch.randperm(4999, generator=torch.Generator().manual_seed(3))[:999].sort().values + 1
    streamed = Moments()
    for part in torch.arange(5000).tensor_split(cuts):
        streamed.update(X[part], y[part], s[part])
    assert_same(streamed, Moments().update(X, y, s))


def test_a_pass_in_many_chunks_equals_one(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    X, y, s = data(7000, 6, mean=1e4, device=device)
    whole = Moments().update(X, y, s)
    monkeypatch.setattr("torchridge.solvers.moments.one_pass.CHUNK_BYTES", 8 * 8 * 64)
    assert_same(Moments().update(X, y, s), whole)


def test_rows_that_drift_far_from_the_first_are_still_centred(device: torch.device) -> None:
    X, y, _ = data(3000, 4, device=device)
    X = X + torch.linspace(0, 1e5, 3000, dtype=torch.float64, device=device)[:, None] ** 2
    streamed = Moments()
    for i in range(0, 3000, 100):
        streamed.update(X[i : i + 100], y[i : i + 100])
    centred = X - X.mean(0)
    centred = centred - centred.mean(0)
    assert relative(streamed.gram, centred.T @ centred) <= SAME_SUMS


def test_merging_in_any_order_is_the_same(device: torch.device) -> None:
    X, y, s = data(device=device)
    a, b, c = (Moments().update(X[p], y[p], s[p]) for p in (slice(0, 20), slice(20, 150), slice(150, 200)))
    whole = Moments().update(X, y, s)
    for merged in ((a + b) + c, a + (b + c), c + a + b, Moments() + a + b + c + Moments()):
        assert_same(merged, whole)
    before = bits(a)
    assert_same((a + b) - b, a, CANCELLED_SUMS)
    assert bits(a) == before
    assert (a - a).n_samples == 0


def test_sums_share_no_memory_with_their_parts(device: torch.device) -> None:
    X, y, _ = data(device=device)
    a = Moments().update(X, y)
    for copied in (a + Moments(), Moments() + a, a - Moments(), a.clone(), copy.deepcopy(a)):
        before = bits(a)
        copied.update(X, y)
        assert bits(a) == before


def test_folds_are_kept_apart_and_forgotten_apart(device: torch.device) -> None:
    X, y, s = data(device=device)
    ids = torch.arange(200, device=device) * 31 % 4
    moments = Moments().update(X, y, s, fold=ids)
    assert moments.folds == (0, 1, 2, 3)
    one_by_one = Moments()
    for k in (2, 0, 3, 1):
        one_by_one.update(X[ids == k], y[ids == k], s[ids == k], fold=k)
    assert_same(moments, one_by_one)
    assert_same(moments, Moments().update(X, y, s))
    for k in range(4):
        alone, rest = (
            Moments().update(X[ids == k], y[ids == k], s[ids == k]),
            Moments().update(X[ids != k], y[ids != k], s[ids != k]),
        )
        assert relative(moments.block(k).gram, alone.gram) <= SAME_SUMS
        assert relative(moments.without(k).gram, rest.gram) <= SAME_SUMS
    left = moments - Moments().update(X[ids == 1], y[ids == 1], s[ids == 1], fold=1)
    assert left.folds == (0, 2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.uint8, torch.bool])
def test_narrow_dtypes_are_summed_as_the_float64_they_stand_for(dtype: torch.dtype, device: torch.device) -> None:
    X, y, _ = data(device=device)
    X, y = (X > 3, y > 3) if dtype is torch.bool else ((X * 10).to(dtype), (y * 10).to(dtype))
    narrow = Moments().update(X, y)
    assert narrow.gram.dtype is torch.float64
    assert_same(narrow, Moments().update(X.double(), y.double()))
    expected = {torch.float32: torch.float32, torch.bfloat16: torch.float32, torch.float16: torch.float32}
    assert ridge(narrow, alpha=1.0).weight.dtype is expected.get(dtype, torch.float64)


def test_flatten_takes_leading_dimensions_for_rows(device: torch.device) -> None:
    X, y, s = data(device=device)
    ids = torch.arange(200, device=device) % 3
    flat = Moments().update(X, y, s, fold=ids)
    shaped = Moments().update(
        X.reshape(4, 50, 5),
        y.reshape(4, 50, 2),
        s.reshape(4, 50),
        (torch.arange(200, device=device) % 3).reshape(4, 50),
        flatten=True,
    )
    assert bits(flat) == bits(shaped)
    one = Moments().update(X.reshape(10, 20, 5), y[:, 0].reshape(10, 20), flatten=True)
    assert one.vector_target
    assert_same(one, Moments().update(X, y[:, 0]))


@pytest.mark.parametrize("folds", [False, True])
def test_state_travels_through_a_file_that_executes_nothing(folds: bool, device: torch.device) -> None:
    X, y, s = data(device=device)
    moments = Moments(device=device).update(
        X.float(), y, s, fold=torch.arange(200, device=device) % 3 if folds else None
    )
    file = io.BytesIO()
    torch.save(moments.state_dict(), file)
    file.seek(0)
    loaded = Moments()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert bits(loaded) == bits(moments)
    assert_same(loaded + moments, moments + moments)
    options: dict[str, Any] = {} if folds else {"cv": "gcv"}
    assert ridge_cv(loaded, **options).weight.equal(ridge_cv(moments, **options).weight)
    assert bits(loaded.update(X, y, s, fold=1 if folds else None)) == bits(
        moments.update(X, y, s, fold=1 if folds else None)
    )


def test_copies_and_pickles(device: torch.device) -> None:
    X, y, s = data(device=device)
    moments = Moments().update(X, y, s)
    assert bits(copy.deepcopy(moments)) == bits(moments)
    assert bits(pickle.loads(pickle.dumps(moments))) == bits(moments)
    single = moments.to(dtype=torch.float32)
    assert single.gram.dtype is torch.float32 and moments.gram.dtype is torch.float64
    assert relative(single.gram, moments.gram) <= 1e-6
    assert "n_samples=200, n_features=5, n_targets=2" in repr(moments)
    assert repr(Moments()).startswith("Moments(n_samples=0")


def test_rows_of_no_weight_are_left_out(device: torch.device) -> None:
    X, y, s = data(device=device)
    s = s * (torch.arange(200, device=device) % 3 > 0)
    ids = torch.arange(200, device=device) % 5
    weighted, without = Moments().update(X, y, s, fold=ids), Moments()
    without.update(X[s > 0], y[s > 0], s[s > 0], fold=ids[s > 0])
    assert_same(weighted, without)
    for cv in ("gcv", "evidence", None):
        a, b = ridge_cv(weighted, cv=cv), ridge_cv(without, cv=cv)
        assert a.scores is not None and b.scores is not None
        assert relative(a.scores, b.scores) <= 1e-10
        assert a.n_samples == b.n_samples
    assert relative(ridge(weighted, 1.0).standard_errors, ridge(X, y, 1.0, sample_weight=s).standard_errors) <= 1e-10


def test_a_weight_of_two_is_the_row_twice(device: torch.device) -> None:
    X, y, _ = data(device=device)
    twice = Moments().update(X, y, torch.full((200,), 2.0, device=device))
    both = Moments().update(torch.cat([X, X]), torch.cat([y, y]))
    assert relative(twice.gram, both.gram) <= SAME_SUMS
    assert twice.weight_sum == both.weight_sum == 400


GOOD = data(12, 3)[:2]
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "NaN": ((torch.full((2, 3), float("nan")), torch.zeros(2, 2)), {}, "`X` holds NaN"),
    "inf in y": ((torch.zeros(2, 3), torch.full((2, 2), float("inf"))), {}, "`y` holds infinity"),
    "overflow": ((torch.rand(2, 3, dtype=torch.float64) * 1e200, torch.ones(2, 2)), {}, "too large to square"),
    "overflow beside the others": (
        (torch.full((2, 3), 1e200, dtype=torch.float64), torch.ones(2, 2)),
        {},
        "too large to square",
    ),
    "other d": ((torch.zeros(2, 4), torch.zeros(2, 2)), {}, "4 features and 2 targets"),
    "other t": ((torch.zeros(2, 3), torch.zeros(2, 1)), {}, "3 features and 1 targets"),
    "length": ((torch.zeros(2, 3), torch.zeros(3, 2)), {}, "`y` has 3 rows, but `X` has 2"),
    "fold after none": ((torch.zeros(2, 3), torch.zeros(2, 2)), {"fold": 1}, "`fold`: earlier rows came with no fold"),
    "weights": ((torch.zeros(2, 3), torch.zeros(2, 2), torch.tensor([1.0, -1.0])), {}, "`sample_weight` should not be"),
    "no weight": ((torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2)), {}, "`sample_weight` is zero"),
    "empty": ((torch.zeros(0, 3), torch.zeros(0, 2)), {}, "`X` is empty"),
    "leading dimensions": ((torch.zeros(2, 2, 3), torch.zeros(2, 2, 2)), {}, "`X` should have shape"),
    "flatten of a mismatch": ((torch.zeros(2, 2, 3), torch.zeros(2, 3, 2)), {"flatten": True}, "`y` has shape"),
    "no tensor": (([[1.0]], torch.zeros(1, 2)), {}, "`X` should be a torch.Tensor"),
    "complex": ((torch.zeros(2, 3) + 0j, torch.zeros(2, 2)), {}, "`X` should be real"),
    "sparse": ((torch.zeros(2, 3).to_sparse(), torch.zeros(2, 2)), {}, "`X` should be a dense tensor"),
    "devices": ((torch.zeros(2, 3, device="meta"), torch.zeros(2, 2)), {}, "one device"),
    "without values": ((torch.zeros(2, 3, device="meta"), torch.zeros(2, 2, device="meta")), {}, "`X` .*meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_update_changes_nothing(name: str) -> None:
    arguments, options, match = REFUSED[name]
    for moments in (Moments().update(*GOOD), Moments()):
        if not moments.n_samples and name in ("other d", "other t", "fold after none", "overflow beside the others"):
            continue
        before = bits(moments)
        with pytest.raises((ValueError, TypeError), match=match):
            moments.update(*arguments, **options)
        assert bits(moments) == before


@pytest.mark.parametrize(
    "fold", ["a", -1, 1.5, float("nan"), [1], True, torch.zeros(11), torch.arange(12) - 1, torch.arange(11)]
)
def test_refused_folds(fold: Any) -> None:
    moments = Moments().update(*GOOD, fold=0)
    before = bits(moments)
    with pytest.raises(ValueError, match="`fold`"):
        moments.update(*GOOD, fold=fold)
    with pytest.raises(ValueError, match="`fold`: earlier rows came with folds, these with none"):
        moments.update(*GOOD)
    assert bits(moments) == before


def spoil(change: str) -> Any:
    state: dict[str, Any] = Moments().update(*GOOD, fold=torch.arange(12) % 2).state_dict()
    block = state["blocks"][0]
    if change == "not a state":
        return [1, 2]
    if change == "no blocks":
        del state["blocks"]
    elif change == "dtype of no number":
        state["dtype"] = "torch.load"
    elif change == "integer dtype":
        state["dtype"] = "torch.int32"
    elif change == "gram of wrong shape":
        block["gram"] = torch.zeros(2, 2)
    elif change == "means not a tensor":
        block["mean_x"] = [0.0, 0.0, 0.0]
    elif change == "blocks of different sizes":
        state["blocks"][1] = Moments().update(*data(9, 4)[:2], fold=1).state_dict()["blocks"][0]
    elif change == "folds and none":
        state["blocks"][1]["fold"] = None
    elif change == "negative rows":
        block["rows"] = -1
    return state


@pytest.mark.parametrize(
    "change",
    ["not a state", "no blocks", "dtype of no number", "integer dtype", "gram of wrong shape", "means not a tensor",
     "blocks of different sizes", "folds and none", "negative rows"],
)  # fmt: skip
def test_a_refused_state_changes_nothing(change: str) -> None:
    moments = Moments().update(*GOOD)
    before = bits(moments)
    with pytest.raises(ValueError, match=r"`state`|`gram`"):
        moments.load_state_dict(spoil(change))
    assert bits(moments) == before


def test_moments_that_do_not_fit_together() -> None:
    a = Moments().update(*GOOD)
    for other in (
        Moments().update(*data(9, 4)[:2]),
        Moments().update(*GOOD, fold=1),
        Moments(dtype=torch.float32).update(*GOOD),
    ):
        with pytest.raises(ValueError, match="moments do not fit together"):
            a + other
    with pytest.raises(ValueError, match="cannot take away rows that are not held"):
        a - (a + a)
    with pytest.raises(ValueError, match="hold no rows yet"):
        ridge(Moments(), 1.0)
    with pytest.raises(ValueError, match="`dtype` should be one of"):
        Moments(dtype=torch.float16)
    with pytest.raises(TypeError):
        a + 1


MEMORY = """
import sys, torch
from torchridge import Moments

def memory(name):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name)) * 1024

kind, d, n = sys.argv[1], 1024, 20000
X, y = torch.zeros(n, d, dtype=getattr(torch, kind)).uniform_(), torch.randn(n, 10)
s, moments = torch.rand(n), Moments()
moments.update(X[:2000], y[:2000], s[:2000])
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the peak starts anew
before = memory("VmRSS")
moments.update(X, y, s)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
def test_working_memory_stays_within_three_matrices_and_64_mib(kind: str) -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY, kind], check=True, capture_output=True, text=True)
    assert int(run.stdout) <= 3 * 1024**2 * 8 + 64 * 2**20
