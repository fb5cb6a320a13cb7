"""Run a function on several gloo ranks, each a process of its own."""

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 300  # a bound against hanging, far above the 20 s that a run takes

# Ranks are forked from a server that holds torch and what their bodies import, so that these are imported once.
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    CONTEXT.set_forkserver_preload(
        ["pytest", "torch.distributed.fsdp", "torchridge.estimators", "torchridge.distributed", "torchridge.probing"]
    )


def join(rank: int, size: int, store: str, seconds: float = SECONDS) -> None:
    """Join a group of `size` ranks that meet in a file."""
    timeout = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)


def run_rank(
    body: Callable[[], None], rank: int, size: int, store: str, seconds: float, variables: dict[str, str], results: Any
) -> None:
    os.environ.update(variables)  # the server's is that of the first test
    torch.set_num_threads(1)
    try:
        join(rank, size, store, seconds)
        body()
        results.put((rank, None))
    except BaseException as error:
        results.put((rank, repr(error)))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def outcomes(
    body: Callable[[], None], folder: Path, size: int = 2, *, seconds: float = SECONDS, killed: int = 0
) -> list[tuple[int, str | None]]:
    """Return what became of each rank that lives on: None, or the error it met.

    `seconds` is the group's timeout; so many ranks as `killed` end without a word.
    """
    results = CONTEXT.Queue()
    arguments = [(body, r, size, str(folder / "store"), seconds, dict(os.environ), results) for r in range(size)]
    ranks = [CONTEXT.Process(target=run_rank, args=a) for a in arguments]
    for process in ranks:
        process.start()
    try:
        return sorted(results.get(timeout=SECONDS) for _ in range(size - killed))
    finally:
        for process in ranks:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
