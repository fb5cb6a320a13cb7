"""Moments of data that is spread over the ranks of `torch.distributed`: rows here, or columns here."""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor

from torchridge._ranks import Group, Ranks
from torchridge.distributed import collectives, columns
from torchridge.solvers.moments.moments import Moments


@overload
def all_reduce(moments: Moments, process_group: Group | None = None, *, dst: None = None) -> Moments: ...
@overload
def all_reduce(moments: Moments, process_group: Group | None = None, *, dst: int) -> Moments | None: ...
def all_reduce(moments: Moments, process_group: Group | None = None, *, dst: int | None = None) -> Moments | None:
    """Return the moments of the rows of all ranks, per fold if there are folds.

    In two centred stages: counts and means are gathered, then every rank moves its second moments to the common mean
    and they are added. No digits are lost to a large mean, as they would be in a sum of raw moments. A rank may hold
    no rows, and need not hold rows of every fold. Rows and targets stay where they are.

    Args:
        moments: those of this rank's rows; not changed. A second call with the result would count all rows again.
        process_group: a `torch.distributed.ProcessGroup`, or "world" for the default group, as is None.
        dst: the global rank that alone gets the answer, the others None; by default all get it, bit for bit the same.

    Raises:
        RankError: if another rank died, failed, or holds moments that do not fit: other features, targets or dtype,
            folds on one rank and none on another. It comes within the group's timeout, on every rank.
        ValueError: if there is no process group.

    Cost: K·(d²/2 + d·t) numbers summed over the ranks, for K folds.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torchridge import Moments, ridge
        >>> from torchridge.distributed import all_reduce
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun does it for many
        >>> X = torch.tensor([[0.0], [1.0], [2.0]])
        >>> ridge(all_reduce(Moments().update(X, 2 * X[:, 0] + 1)), alpha=0.0).weight
        tensor([[2.]])
        >>> dist.destroy_process_group()
    """
    ranks = Ranks("world" if process_group is None else process_group)
    if dst is not None and dst not in ranks.members:
        raise ValueError(f"`dst` should be one of the group's ranks {ranks.members}, got {dst!r}.")

    def own() -> Moments:
        if not isinstance(moments, Moments):
            got = type(moments).__name__
            raise TypeError(f"`moments` should be `Moments`, got {got}. Make them, `Moments().update(X, y)`.")
        return moments

    def says(held: Moments) -> dict[str, Any]:
        return {**collectives.says(held), "dst": "all" if dst is None else dst}

    _, told = ranks.together("all_reduce", own, says, agree=(*collectives.AGREE, "dst"))
    whole = collectives.all_reduced(moments, told, ranks, dst)
    return whole if dst is None or ranks.me == dst else None


def column_moments(X: Tensor, y: Tensor, sample_weight: Tensor | None = None, fold: Any = None) -> Moments:
    """Return the moments of features that are sharded by columns, a `DTensor` with placement `Shard(1)`.

    Every rank works out its own rows of the Gram matrix, X_ownᵀ X, from chunks of rows that are gathered on the way,
    so that no rank ever holds X. The result is whole on every rank, d × d numbers: the solve needs it there.

    Args:
        X: (n, d) on a one-dimensional device mesh, `Shard(1)`.
        y: (n,) or (n, t), the same on every rank.
        sample_weight: (n,), the same on every rank.
        fold: an int or (n,) ids, the same on every rank, as in `Moments.update`.

    Raises:
        RankError: as `all_reduce`.
        ValueError: on other placements and shapes, NaN or infinity.
        TypeError: if X is not a DTensor.

    Cost: n·d·d_own multiply-adds on a rank with d_own columns; n·d numbers gathered.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
        >>> from torchridge import ridge
        >>> from torchridge.distributed import column_moments
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> sharded = distribute_tensor(X, init_device_mesh("cpu", (1,)), [Shard(1)])
        >>> ridge(column_moments(sharded, X @ torch.tensor([1.0, 3.0])), alpha=0.0).weight
        tensor([[1., 3.]])
        >>> dist.destroy_process_group()
    """
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(X, DTensor):
        raise TypeError(f"`X` should be a DTensor, got {type(X).__name__}. For whole rows, use `Moments.update`.")
    if X.device_mesh.ndim != 1 or X.ndim != 2 or X.placements != (Shard(1),):
        raise ValueError(
            f"`X` should be (n, d) with placement Shard(1) on a mesh of one dimension, got {tuple(X.shape)} with "
            f"{X.placements} on {X.device_mesh}. For rows, give `Moments` X.to_local(), then call `all_reduce`."
        )
    ranks = Ranks(X.device_mesh.get_group(), "X")
    place = X.device_mesh.get_local_rank()
    return columns.moments_of_columns(X.to_local(), X.shape[1], y, sample_weight, fold, ranks, place)
