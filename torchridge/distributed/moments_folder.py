"""`MomentsFolder`: what the ranks of a job have gathered, kept in files that any number of ranks can go on from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError

import torch

from torchridge import _check
from torchridge._files import MISUNDERSTOOD, replacing
from torchridge._files.replacement import remove_leftovers
from torchridge._ranks import Group, Ranks
from torchridge.solvers.moments.moments import Moments


class MomentsFolder:
    """Files in which every rank keeps its moments as a stream runs, and from which another run goes on.

    Each rank of each run writes one file of its own, whole or not at all, and none is changed later: a run that is
    killed leaves what it kept, and nothing is counted twice. The next run may have another number of ranks.

    Args:
        folder: that all ranks see. It is made if it is not there.
        process_group: a `torch.distributed.ProcessGroup`, or "world" for the default group, as is None.

    Attributes:
        done: the numbers of the batches that earlier runs have kept, over all ranks.
        earlier: this rank's share of their moments, to be added to those of this run.

    Raises:
        RankError: if another rank died, or could not read its files.
        ValueError: on a damaged file.

    Cost: a file of K·(d² + d·t) numbers a rank and run, for K folds; each `keep` writes it anew.

    Example:
        >>> import tempfile, torch, torch.distributed as dist
        >>> from torchridge import Moments
        >>> from torchridge.distributed import MomentsFolder, all_reduce
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> folder = tempfile.TemporaryDirectory()
        >>> for run in range(2):  # the first stops after batch 1
        ...     kept, moments, done = MomentsFolder(folder.name), Moments(), []
        ...     for i in range(2 if run == 0 else 3):
        ...         if i not in kept.done:
        ...             done.append(i)
        ...             kept.keep(moments.update(torch.eye(3), torch.ones(3) * i), done)
        >>> done, all_reduce(kept.earlier + moments).n_samples
        ([2], 9)
        >>> dist.destroy_process_group()
    """

    def __init__(self, folder: str | Path, process_group: Group | None = None) -> None:
        self.folder = Path(folder)
        ranks = Ranks("world" if process_group is None else process_group)
        _, told = ranks.together("MomentsFolder", self._names, lambda names: {"names": names})
        names = told[0]["names"]  # those that the first rank sees, so that all speak of the same files
        self.earlier, self.done = Moments(), set[int]()
        ranks.together("MomentsFolder (its files)", lambda: self._read(names, ranks), lambda _: {})
        run = 1 + max((int(name.split("-")[1]) for name in names), default=-1)
        self._file = self.folder / f"run-{run}-rank-{ranks.index}.pt"

    def _names(self) -> list[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder, r"run-\d+-rank-\d+\.pt")
        return sorted(file.name for file in self.folder.glob("run-*-rank-*.pt"))

    def _read(self, names: list[str], ranks: Ranks) -> None:
        for i, name in enumerate(names):
            try:
                state = torch.load(self.folder / name, weights_only=True, mmap=True, map_location="cpu")
                self.done |= {_check.integer(batch, "done", minimum=0) for batch in state["done"]}
                if i % ranks.size == ranks.index:
                    part = Moments()
                    part.load_state_dict(state["moments"])
                    self.earlier = self.earlier + part
            except (EOFError, OSError, UnpicklingError, *MISUNDERSTOOD) as error:
                raise ValueError(f"`folder`: {name} is damaged, {error!r}. Delete it; its batches run again.") from None

    def keep(self, moments: Moments, done: Iterable[int]) -> None:
        """Write the moments of this run's batches on this rank, in place of what it kept before. No rank waits.

        Args:
            moments: without `earlier`.
            done: the numbers of the batches in them.

        Raises:
            TypeError: if `moments` are not `Moments`, or a number in `done` is not an integer.
            ValueError: if a number in `done` is negative.
        """
        if not isinstance(moments, Moments):
            raise TypeError(f"`moments` should be `Moments`, got {type(moments).__name__}.")
        numbers = [_check.integer(i, "done", minimum=0) for i in done]
        with replacing(self._file, "folder") as file:
            torch.save({"moments": moments.state_dict(), "done": numbers}, file)
