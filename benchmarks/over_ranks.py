"""How cost grows with ranks: gloo processes on this machine, each held to one thread of its own.

Seconds on the wall, those of the slowest rank, as waiting for each other is what ranks cost. On a machine of c cores P
ranks compute on m = min(P, c) of them at once, which the predictions count with: the rows, which ranks share, take 1/m;
what every rank does again for itself takes P/m.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from torchridge import Moments, ridge
from torchridge.distributed import all_reduce

SIZES = (1, 2, 4)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ROWS = 120_000


class Axis(NamedTuple):
    """What ranks do together."""

    what: str
    law: str
    curve: Callable[[int], float]  # seconds of so many ranks, in any unit
    prepare: Callable[[int, int], Callable[[], Any]]  # rank, ranks → what is timed


def own_rows(n: int, d: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    X = torch.randn(n, d, generator=g)
    return X, X[:, 0] + torch.randn(n, generator=g)


def of_fit(rank: int, ranks: int) -> Callable[[], Any]:
    X, y = own_rows(ROWS // ranks, 512, rank)
    return lambda: ridge(X, y, 1.0, process_group="world")


def of_sum(rank: int, ranks: int) -> Callable[[], Any]:
    moments = Moments().update(*own_rows(4096, 2048, rank))
    return lambda: all_reduce(moments)


AXES = {
    "ranks": Axis(
        f"ridge on {ROWS:,} rows over P ranks, d = 512",
        "n d²/2m",
        lambda ranks: 1 / min(ranks, CORES),
        of_fit,
    ),
    "ranks_sum": Axis(
        "moments added up over P ranks, d = 2048",
        "P d²/m",
        lambda ranks: ranks / min(ranks, CORES),
        of_sum,
    ),
}


def rank_of(name: str, rank: int, ranks: int, rounds: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
        call = AXES[name].prepare(rank, ranks)
        call()  # warm
        for _ in range(rounds):
            dist.barrier()
            start = time.perf_counter()
            call()
            results.put(time.perf_counter() - start)
            dist.barrier()  # nobody starts anew while another still works
        dist.destroy_process_group()


def seconds(name: str, ranks: int, rounds: int) -> float:
    """Return the fastest of some rounds, each as slow as its slowest rank."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results: Any = context.Queue()
        arguments = [(name, rank, ranks, rounds, str(Path(folder) / "store"), results) for rank in range(ranks)]
        processes = [context.Process(target=rank_of, args=a) for a in arguments]
        for process in processes:
            process.start()
        # The barriers keep the rounds apart, so that results come in their order.
        times = [max(results.get(timeout=300) for _ in range(ranks)) for _ in range(rounds)]
        for process in processes:
            process.join()
    return min(times)


def measured(name: str, rounds: int = 5) -> list[float]:
    """Return the seconds of every number of ranks."""
    return [seconds(name, ranks, rounds) for ranks in SIZES]
