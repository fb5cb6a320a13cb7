"""Run a function on two gloo ranks, each a process of its own."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 300  # a bound against hanging, far above the 20 s that a run takes


def run_rank(body: Callable[[], None], rank: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        timeout = timedelta(seconds=SECONDS)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
        body()
        results.put((rank, None))
    except BaseException as error:
        results.put((rank, repr(error)))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def outcomes(body: Callable[[], None], folder: Path) -> list[tuple[int, str | None]]:
    """Return what became of each rank: None, or the error it met."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    ranks = [context.Process(target=run_rank, args=(body, r, str(folder / "store"), results)) for r in range(2)]
    for process in ranks:
        process.start()
    try:
        return sorted(results.get(timeout=SECONDS) for _ in ranks)
    finally:
        for process in ranks:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
