"""Ridge over the rows, or columns, of several gloo ranks: the answer of one process, or an error that names ranks."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from oracles import relative
from ranks import join
from tolerances import SAME_SUMS, SOLVERS
from torch import Tensor

from torchridge import Moments, RidgeSolution, ridge, ridge_cv, ridge_path
from torchridge._ranks import Ranks
from torchridge.distributed import MomentsFolder, all_reduce, column_moments
from torchridge.exceptions import RankError

N, D, T = 203, 7, 2
SECONDS = 60  # a bound against hanging
SAME = SOLVERS[torch.float64]


def data(mean: float = 30.0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, generator=g, dtype=torch.float64) + mean
    y = X @ torch.randn(D, T, generator=g, dtype=torch.float64) + 3 * torch.randn(
        N, T, generator=g, dtype=torch.float64
    )
    weight = torch.randint(0, 3, (N,), generator=g).double()
    return X, y, weight


def groups() -> list[tuple[Any, slice, int]]:
    """This rank's part of the rows in groups of 1, 2, 3 and 4 ranks: uneven, one without any."""
    rank, result = dist.get_rank(), []
    for cuts in ([0, N], [0, 60, N], [0, 20, 20, N], [0, 1, 90, 90, N]):
        group = dist.new_group(list(range(len(cuts) - 1)), timeout=timedelta(seconds=SECONDS))
        if rank < len(cuts) - 1:
            result.append((group, slice(cuts[rank], cuts[rank + 1]), len(cuts) - 1))
    return result


def agree(got: RidgeSolution, want: RidgeSolution, group: Any) -> None:
    assert torch.equal(got.alpha, want.alpha) or relative(got.alpha, want.alpha) < SAME
    assert got.n_samples == want.n_samples
    for name in ("weight", "bias", "scores", "fold_scores", "dof", "residual_variance"):
        theirs = getattr(want, name)
        if theirs is not None:
            assert relative(getattr(got, name), theirs) < SAME, name
    everywhere = [torch.empty_like(got.weight) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everywhere, got.weight.contiguous(), group=group)
    assert all(torch.equal(w, got.weight) for w in everywhere)


def moments_add_up() -> None:
    X, y, weight = data(1e3)
    fold = torch.arange(N) // 30  # no rank holds rows of every fold
    for group, part, size in groups():
        for ids, s in ((None, None), (fold, weight)):
            own, whole = Moments(), Moments().update(X, y, s, ids)
            if part.stop > part.start and (s is None or bool(s[part].any())):
                own.update(X[part], y[part], None if s is None else s[part], None if ids is None else ids[part])
            before = own.state_dict()
            got = all_reduce(own, group)
            assert got.folds == whole.folds
            for k in whole.folds or (None,):
                for name, a, b in zip(("rows", "weight"), got.block(k)[:2], whole.block(k)[:2], strict=False):
                    assert a == b, name
                for a, b in zip(got.block(k)[2:], whole.block(k)[2:], strict=True):
                    assert relative(a, b) < SAME_SUMS
            alone = all_reduce(own, group, dst=size - 1)
            assert (alone is None) == (dist.get_rank() != size - 1)
            assert alone is None or relative(alone.gram, whole.gram) < SAME_SUMS
            assert str(own.state_dict()) == str(before)
    assert all_reduce(Moments()).n_samples == 0


def ridge_is_that_of_one_process() -> None:
    X, y, weight = data()
    ids, labels = torch.arange(N) % 4, torch.arange(N) * 7 % 13
    alphas = torch.logspace(-3, 5, 30, dtype=torch.float64)

    @cache
    def alone(cv: Any, weighted: bool) -> RidgeSolution:
        return ridge_cv(X, y, cv=cv, sample_weight=weight if weighted else None, standardize=True)

    for group, part, _ in groups():
        mine, over = (X[part], y[part]), {"process_group": group}
        agree(ridge(*mine, 2.0, **over), ridge(X, y, 2.0), group)
        agree(ridge(*mine, torch.tensor([1.0, 9.0]), **over), ridge(X, y, torch.tensor([1.0, 9.0])), group)
        agree(ridge(mine[0], mine[1][:, 0], 2.0, **over), ridge(X, y[:, 0], 2.0), group)
        agree(
            ridge_path(*mine, alphas, sample_weight=weight[part], **over),
            ridge_path(X, y, alphas, sample_weight=weight),
            group,
        )
        for cv in ("gcv", "evidence", "loo", 5):
            for s in (None, weight):
                own = None if s is None else s[part]
                options: dict[str, Any] = {"cv": cv, "standardize": True}
                agree(ridge_cv(*mine, sample_weight=own, **options, **over), alone(cv, s is not None), group)
        want = ridge_cv(X, y, alphas, ids, scoring="r2", alpha_per_target=True)
        for given in (ids, ids[part]):  # by the rows of all ranks, or of this one
            agree(ridge_cv(*mine, alphas, given, scoring="r2", alpha_per_target=True, **over), want, group)
        agree(ridge_cv(*mine, alphas, 3, groups=labels[part], **over), ridge_cv(X, y, alphas, 3, groups=labels), group)
        floats = ridge_cv(mine[0].float(), mine[1].float(), alphas, 5, **over)
        assert floats.weight.dtype is torch.float32
        assert relative(floats.weight, ridge_cv(X.float(), y.float(), alphas, 5).weight) < 1e-6


def columns_make_the_whole_gram_matrix() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    X, y, weight = data(1e3)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for d in (7, 3):  # uneven parts; fewer columns than ranks
        X_own = distribute_tensor(X[:, :d], mesh, [Shard(1)])
        for s, fold in ((None, None), (weight, torch.arange(N) % 3)):
            got, want = column_moments(X_own, y, s, fold), Moments().update(X[:, :d], y, s, fold)
            for k in want.folds or (None,):
                assert got.block(k).rows == want.block(k).rows
                for a, b in zip(got.block(k)[1:], want.block(k)[1:], strict=True):
                    assert relative(a, b) < SAME_SUMS
    with pytest.raises(ValueError, match=r"placement Shard\(1\)"):
        column_moments(distribute_tensor(X, mesh, [Shard(0)]), y)
    with pytest.raises(TypeError, match="`X` is a DTensor"):
        Moments().update(distribute_tensor(X, mesh, [Shard(0)]), y)
    with pytest.raises(RankError, match=r"`y` is .* on rank 0, .* on ranks \[1, 2, 3\]"):
        column_moments(distribute_tensor(X, mesh, [Shard(1)]), y + (dist.get_rank() == 0))


Case = tuple[Callable[[], Any], type[Exception], str]


def cases(odd: bool, X: Tensor, y: Tensor) -> list[Case]:
    """What rank 1 does wrong, the error it meets, and what the others are told."""
    over = {"process_group": "world"}
    spoilt, ids = X.clone(), torch.arange(len(X)) % 5
    spoilt[3, 2] = torch.nan if odd else 1.0
    one = [
        (lambda: ridge(spoilt, y, 1.0, **over), "`X` holds NaN, first in row 3"),
        (lambda: ridge_cv(X, y, cv=ids[:7] if odd else ids, **over), "`cv`: fold ids should be integers of shape"),
        (lambda: ridge_cv(X, y, cv="aic" if odd else "gcv", **over), "`cv` should be one of 'gcv', 'loo', 'evidence'"),
        (lambda: ridge(X, y, 1.0, solver="best" if odd else "auto", **over), "`solver` should be one of"),
        (lambda: ridge(X, y, 1.0, sample_weight=-y[:, 0] if odd else None, **over), "`sample_weight` should not be"),
    ]
    other = [
        (lambda: ridge_cv(X, y, cv=ids if odd else 5, **over), "`cv` is 5 on ranks .*, fold ids on rank 1"),
        (lambda: ridge(X[:, odd:], y, 1.0, **over), r"`features` is 7 on ranks \[0, 2, 3\], 6 on rank 1"),
        (lambda: ridge(X.float() if odd else X, y, 1.0, **over), "`result_dtype` .*float32 on rank 1"),
        (lambda: ridge(X, y, 1.0 + odd, **over), "`alpha` is 1.0 on ranks .*, 2.0 on rank 1"),
        (lambda: ridge(X, y, 1.0, standardize=odd, **over), "`standardize` .* True on rank 1"),
        (lambda: all_reduce(Moments().update(X, y, fold=0 if odd else None)), "`fold` .* True on rank 1"),
        (lambda: (ridge_path if odd else ridge)(X, y, 1.0, **over), "ridge_path on rank 1"),
    ]
    wrong: Any = 7
    kind = (lambda: all_reduce(wrong if odd else Moments()), TypeError, "`moments` should be `Moments`, got int")
    return [(f, ValueError, m) for f, m in one] + [(f, RankError, m) for f, m in other] + [kind]


def refusals_reach_every_rank() -> None:
    """Rank 1 meets its own error, the others one that names it; and the group goes on working."""
    X, y, _ = data()
    rank, everything = dist.get_rank(), ridge(X, y, 2.0)
    mine = (X[rank::4], y[rank::4])
    for call, kind, message in cases(rank == 1, *mine):
        told = (
            message if kind is RankError else f"failed on rank 1, so on all of them. rank 1: {kind.__name__}: {message}"
        )
        with pytest.raises(kind if rank == 1 else RankError, match=message if rank == 1 else told):
            call()
        agree(ridge(*mine, 2.0, process_group="world"), everything, dist.group.WORLD)
    for refused in (
        lambda: ridge(X[:0], y[:0], 1.0, process_group="world"),
        lambda: ridge_cv(X[:0], y[:0], process_group="world"),
    ):
        with pytest.raises(ValueError, match="no rank holds a row"):
            refused()


BATCHES = 24


def batch(i: int) -> tuple[Tensor, Tensor, Tensor]:
    X, y, _ = data()
    rows = torch.arange(i, N, BATCHES)
    return X[rows], y[rows], rows % 4


def stream(kept: MomentsFolder, own: list[int], dies_after: int | None = None) -> Moments:
    """Take batches, and keep the moments after every third."""
    moments, done = Moments(), []
    for i in own:
        X, y, fold = batch(i)
        moments.update(X, y, fold=fold)
        done.append(i)
        if len(done) % 3 == 0:
            kept.keep(moments, done)
        if len(done) == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
    return kept.earlier + moments


def one_is_killed_and_two_go_on() -> None:
    folder, rank = Path(os.environ["TORCHRIDGE_TEST_FOLDER"]), dist.get_rank()
    own = list(range(rank, BATCHES, 3))
    hasty = dist.new_group([0, 1, 2], timeout=timedelta(seconds=5))
    kept = MomentsFolder(folder / "kept")  # all have come this far
    moments = stream(kept, own, dies_after=7 if rank == 1 else None)
    with pytest.raises(RankError, match=r"ridge_cv: rank 1 did not reach it within 5 s, seen from rank [02]"):
        ridge_cv(moments, cv=4, process_group=hasty)
    dist.destroy_process_group()
    join(rank // 2, 2, str(folder / "again"), SECONDS)
    kept = MomentsFolder(folder / "kept")
    assert len(kept.done) == 18
    left = sorted(set(range(BATCHES)) - kept.done)
    moments, unbroken = stream(kept, left[rank // 2 :: 2]), Moments()
    for i in range(BATCHES):
        X, y, fold = batch(i)
        unbroken.update(X, y, fold=fold)
    got, want = ridge_cv(moments, cv=4, process_group="world"), ridge_cv(unbroken, cv=4)
    assert got.n_samples == N
    for name in ("weight", "bias", "alpha", "fold_scores"):
        assert relative(getattr(got, name), getattr(want, name)) < SAME_SUMS, name
    if rank == 2:  # dies inside a collective

        def die(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        dist.all_reduce = die
    with pytest.raises(
        RankError, match=r"the all_reduce of the moments of fold 0 over ranks \[0, 1\] broke off on rank 0"
    ):
        all_reduce(moments)
    (folder / "kept" / "run-9-rank-0.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"`folder`: run-9-rank-0.pt is damaged"):
        kept._read(["run-9-rank-0.pt"], Ranks("world"))
