"""The store of a group ends with rank 0: it stays until the others have read what went wrong."""

import socket
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import CONTEXT

from torchridge import ridge
from torchridge._ranks import _Farewell

SECONDS = 60  # a bound against hanging


def rank(me: int, port: int, disagree: bool, come: Any, results: Any) -> None:
    torch.set_num_threads(1)
    address, timeout = f"tcp://127.0.0.1:{port}", timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=address, rank=me, world_size=2, timeout=timeout)
    X, y = torch.ones(5, 2), torch.arange(5.0)
    if me == 1:
        come.wait(SECONDS)
    elif not disagree:
        X[0, 0] = torch.nan
    try:
        ridge(X, y, 1.0 + me * disagree, process_group="world")
    except Exception as error:
        dist.destroy_process_group()
        results.put((me, f"{type(error).__name__}: {error}"))


@pytest.mark.slow
@pytest.mark.parametrize("disagree", [True, False])
def test_the_other_rank_hears_what_went_wrong_though_rank_0_ends_at_once(disagree: bool) -> None:
    come, results = CONTEXT.Event(), CONTEXT.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [CONTEXT.Process(target=rank, args=(me, port, disagree, come, results)) for me in (0, 1)]
    for process in ranks:
        process.start()
    if disagree:
        come.set()
        told = dict(results.get(timeout=SECONDS) for _ in ranks)
        assert all(text.startswith("RankError: the ranks disagree in ridge: `alpha`") for text in told.values()), told
    else:
        assert results.get(timeout=SECONDS)[1].startswith("ValueError: `X` holds NaN")
        come.set()  # rank 0 has raised, and has left the group
        assert results.get(timeout=SECONDS)[1].startswith("RankError: ridge failed on rank 0, so on all of them")
    for process in ranks:
        process.join(SECONDS)
        assert process.exitcode == 0


def test_a_farewell_ends_with_the_last_reader_or_with_its_time() -> None:
    store = dist.HashStore()
    farewell = _Farewell(store, ["0/read", "1/read"], 3)
    store.set("0/read", "3")
    farewell.wait(0.0)
    assert not farewell._read()
    store.set("1/read", "2")
    assert not farewell._read()
    store.set("1/read", "4")
    farewell.wait(SECONDS)
    assert farewell._read()
