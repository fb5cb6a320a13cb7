"""The ranks of a process group: what each says of its part, what they add up, and which of them failed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from torchridge.exceptions import RankError

_T = TypeVar("_T")

# What a `process_group` argument takes.
Group: TypeAlias = "dist.ProcessGroup | Literal['world']"


class Ranks:
    """The ranks of one process group.

    What they exchange before any tensor travels goes through the group's key-value store: a rank that never comes is
    then named on every other rank, whatever the backend, once the group's timeout is over.

    Args:
        group: a `torch.distributed.ProcessGroup`, or "world" for the default group.
        name: of the argument it came in, for errors.
    """

    def __init__(self, group: Group, name: str = "process_group") -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise ValueError(
                f"`{name}`={group!r}: no process group is initialized. Start with torchrun, and call "
                f"torch.distributed.init_process_group('gloo') ('nccl' on GPUs) first."
            )
        if isinstance(group, str) and group == "world":
            group = dist.distributed_c10d._get_default_group()
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"`{name}` should be 'world' or a torch.distributed.ProcessGroup of which this process is a member, "
                f"got {group!r}. For a DeviceMesh, pass `mesh.get_group()`."
            )
        self.group = group
        self.members: list[int] = dist.get_process_group_ranks(group)
        self.me = dist.get_rank()
        self.index = self.members.index(self.me)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.members)

    def exchange(
        self, operation: str, says: Mapping[str, Any], error: Exception | None = None, *, agree: Any = ()
    ) -> list[dict[str, Any]]:
        """Return what every rank says, by place in the group.

        Args:
            operation: what all ranks should be about to do.
            says: what JSON holds; values named in `agree` must be the same on all ranks that have one.
            error: what went wrong here. It is raised here, and told to the others, on which `RankError` is raised.
            agree: names of values.
        """
        told = self._told({"operation": operation, "error": _text(error), "says": dict(says)}, error)
        failed = {r: t["error"] for r, t in zip(self.members, told, strict=True) if t["error"] is not None}
        if failed:
            listed = "; ".join(f"rank {r}: {text}" for r, text in failed.items())
            raise RankError(f"{operation} failed on {_ranks(list(failed))}, so on all of them. {listed}")
        _check_same(self.members, [t["operation"] for t in told], operation, "the call")
        for name in agree:
            _check_same(self.members, [t["says"].get(name) for t in told], operation, f"`{name}`")
        return [t["says"] for t in told]

    def together(
        self, operation: str, work: Callable[[], _T], says: Callable[[_T], Mapping[str, Any]], agree: Any = ()
    ) -> tuple[_T, list[dict[str, Any]]]:
        """Return `work()` and what every rank has to say; if it fails on one rank, it fails on all."""
        try:
            done = work()
            mine = json.loads(json.dumps(says(done)))
        except Exception as error:
            self.exchange(operation, {}, error)
            raise
        return done, self.exchange(operation, mine, agree=agree)

    def _told(self, mine: dict[str, Any], error: Exception | None) -> list[dict[str, Any]]:
        """Leave what this rank says in the store, wait for the others, and return what all say."""
        late, told = list[int](), list[dict[str, Any]]()
        try:
            store: Any = dist.distributed_c10d._get_default_store()
            base = f"torchridge/{self.group.group_name}"
            count = store.add(f"{base}/{self.me}/calls", 1)
            keys = [f"{base}/{r}/{count}" for r in self.members]
            store.set(keys[self.index], json.dumps(mine))
            if error is None:
                late = self._late(store, keys)
                told = [] if late else [json.loads(text) for text in store.multi_get(keys)]
            store.set(f"{base}/{self.me}/read", str(count))
            farewell = _Farewell(store, [f"{base}/{r}/read" for r in self.members if r not in late], count)
        except RuntimeError as lost:
            raise error or RankError(
                f"{mine['operation']}: on rank {self.me} the store of the process group does not answer; the rank that "
                f"keeps it, mostly rank 0, may have died. {lost}"
            ) from lost
        if _keeps_store(store) and self.size > 1:
            seconds = self._timeout(store).total_seconds()
            if error is None and not late:
                farewell.wait(seconds)
            else:  # the others may be long in coming: this rank says what went wrong, and ends when they have read
                threading.Thread(target=farewell.wait, args=(seconds,), name="torchridge-store").start()
        if error is not None:
            raise error
        if late:
            seconds = self._timeout(store).total_seconds()
            raise RankError(
                f"{mine['operation']}: {_ranks(late)} did not reach it within {seconds:g} s, "
                f"seen from rank {self.me}: dead, stuck, or gone another way. Moments that were saved can be loaded by "
                f"any number of ranks."
            )
        with suppress(RuntimeError):  # every rank has read the last round, or it would not have come to this one
            store.delete_key(f"{base}/{self.me}/{count - 1}")
        return told

    def _late(self, store: Any, keys: list[str]) -> list[int]:
        """Wait for the keys of all ranks, and return the ranks that left none."""
        try:
            store.wait(keys, self._timeout(store))
            return []
        except RuntimeError:
            late = [r for r, key in zip(self.members, keys, strict=True) if not store.check([key])]
            if not late:
                raise
            return late

    def _timeout(self, store: Any) -> timedelta:
        for device in ("cpu", "cuda"):
            with suppress(RuntimeError, AttributeError):
                limit: timedelta = self.group._get_backend(torch.device(device)).options._timeout
                return limit
        limit = store.timeout
        return limit

    def all_gather(self, name: str, value: Tensor) -> Tensor:
        """Return the tensors of all ranks, (ranks, *shape)."""
        mine = self._travelling(value)
        parts = [torch.empty_like(mine) for _ in self.members]
        self._collective(f"all_gather of {name}", lambda: dist.all_gather(parts, mine, group=self.group))
        return torch.stack(parts).to(value.device)

    def all_sum(self, name: str, value: Tensor, dst: int | None = None) -> Tensor:
        """Return the sum over ranks, the same bits on each; with `dst` on that rank alone. `value` is used up."""
        total = self._travelling(value)
        if dst is None:
            self._collective(f"all_reduce of {name}", lambda: dist.all_reduce(total, group=self.group))
        else:
            self._collective(f"reduce of {name}", lambda: dist.reduce(total, dst, group=self.group))
        return total.to(value.device)

    def broadcast(self, name: str, value: Tensor, place: int = 0) -> Tensor:
        """Return the tensor of the rank at one place of the group; all give one of its shape and dtype, used up."""
        sent = self._travelling(value)
        source = self.members[place]
        self._collective(f"broadcast of {name}", lambda: dist.broadcast(sent, source, group=self.group))
        return sent.to(value.device)

    def _travelling(self, value: Tensor) -> Tensor:
        backend = dist.get_backend(self.group)
        device = {"gloo": "cpu", "nccl": f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cuda"}
        return value.detach().to(device.get(backend, value.device)).contiguous()

    def _collective(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise RankError(
                f"the {name} over ranks {self.members} broke off on rank {self.me}: another rank died, or fell behind "
                f"by more than the group's timeout. {error}"
            ) from error


class _Farewell:
    """Keeps the store until the ranks that came have read a round: it ends with the process that keeps it."""

    def __init__(self, store: Any, keys: list[str], count: int) -> None:
        self._store, self._keys, self._count = store, keys, count

    def wait(self, seconds: float) -> None:
        """Wait at most so long, and never hold the store against who asks it meanwhile."""
        end, pause = time.monotonic() + seconds, 1e-4
        with suppress(RuntimeError):
            while not self._read() and time.monotonic() < end:
                time.sleep(pause)
                pause = min(2 * pause, 0.05)

    def _read(self) -> bool:
        return bool(self._store.check(self._keys)) and all(
            int(text) >= self._count for text in self._store.multi_get(self._keys)
        )


def _keeps_store(store: Any) -> bool:
    """Whether the store may end with this process: a TCP store that rank 0 keeps, and no agent of torchrun."""
    while isinstance(store, dist.PrefixStore):  # type: ignore[attr-defined]
        store = store.underlying_store
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True"
    return isinstance(store, dist.TCPStore) and dist.get_rank() == 0 and not agent  # type: ignore[attr-defined]


def _text(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def _ranks(numbers: list[int]) -> str:
    return f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers}"


def _check_same(members: list[int], values: list[Any], operation: str, what: str) -> None:
    """Raise unless the ranks that say anything say the same."""
    by_value: dict[str, list[int]] = {}
    for rank, value in zip(members, values, strict=True):
        if value is not None:
            by_value.setdefault(str(value), []).append(rank)
    if len(by_value) > 1:
        listed = ", ".join(f"{value} on {_ranks(ranks)}" for value, ranks in by_value.items())
        _disagree(operation, what, listed)


def _disagree(operation: str, what: str, listed: str) -> NoReturn:
    raise RankError(f"the ranks disagree in {operation}: {what} is {listed}. Give all ranks the same.")


def brief(value: Any) -> str:
    """Return what two ranks can compare an argument by: its text, or a digest if it is long."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double().numpy()
    array = hasattr(value, "tobytes") and hasattr(value, "shape")
    if array and value.size > 8:
        return f"an array {value.shape} of digest {_digest(value.tobytes())}"
    text = repr(value.tolist() if array else value)
    return text if len(text) <= 80 else f"a {type(value).__name__} of digest {_digest(text.encode())}"


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=4).hexdigest()
