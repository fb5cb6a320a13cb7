"""Makes this process believe in a CUDA device. Must come before torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from typing import Any

from pretended_cuda.build import library, torch_folder

CAPABILITY = tuple(int(v) for v in os.environ.get("PRETEND_CAPABILITY", "9.0").split("."))

# Operations that device.cpp registers by hand.
_OWN = {"record_stream", "_efficientzerotensor"}

_library: ctypes.CDLL | None = None


def installed() -> bool:
    return _library is not None


def install() -> None:
    """Load the device, then torch, and have `torch.cuda` speak of it."""
    global _library
    if _library is not None:
        return
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already, and looks for CUDA only once: pretend a device before that")
    _library = ctypes.CDLL(str(library()), ctypes.RTLD_GLOBAL)
    import torch  # the library's own names must come first

    assert torch.__version__
    _take_over(_library)
    _torch_cuda()
    _storages()
    from pretended_cuda.waits import listen

    listen(_library)


def kernels() -> dict[str, set[str]]:
    """Read torch's own table: for each operation, the dispatch keys that have a kernel of it."""
    table = torch_folder().parent / "torchgen" / "packaged" / "ATen" / "native" / "native_functions.yaml"
    keys, delegates = {}, {}
    for block in re.split(r"^- func: ", table.read_text(), flags=re.MULTILINE)[1:]:
        name = block.split("(")[0]
        delegate = re.search(r"^  structured_delegate: (\S+)", block, flags=re.MULTILINE)
        dispatch = re.search(r"^  dispatch:\n((?:    .*\n?)+)", block, flags=re.MULTILINE)
        lines = [line.split(":")[0] for line in dispatch[1].splitlines()] if dispatch else []
        keys[name] = {key.strip() for line in lines for key in line.split(",")}
        if delegate:
            delegates[name] = delegate[1]
    return keys | {name: keys[name] | keys[to] for name, to in delegates.items()}


def _take_over(device: ctypes.CDLL) -> None:
    """Give the device every operation that CUDA has, and have it refuse those that only the CPU has."""
    table = kernels()
    for key in ("CUDA", "SparseCUDA", "SparseCsrCUDA"):
        names = [name for name, keys in table.items() if key in keys and name not in _OWN]
        names += (
            ["copy_"] if key == "CUDA" else []
        )  # one kernel for all devices, which looks up a part of its own for each
        device.pretend_register(key.encode(), " ".join(names).encode())
    only = [
        n for n, keys in table.items() if "CPU" in keys and not any(k == "CUDA" or k[:9] == "Composite" for k in keys)
    ]
    device.pretend_refuse(" ".join(only).encode())


class Event:
    """Done as soon as it is recorded."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _synchronize("synchronize an event")


class Stream:
    """Runs everything at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _synchronize("synchronize a stream")


def _synchronize(what: str) -> None:
    from pretended_cuda.waits import note

    note(0, what)


def _torch_cuda() -> None:
    import torch

    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = cuda.is_initialized = lambda: True
    cuda._is_in_bad_fork = lambda: False
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.set_device = lambda *_: None
    cuda.get_device_capability = lambda *_: CAPABILITY
    cuda.get_device_name = lambda *_: "pretended"
    cuda.mem_get_info = lambda *_: (70 << 30, 80 << 30)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *_: 0)
    cuda.reset_peak_memory_stats = cuda.empty_cache = lambda *_: None
    cuda.synchronize = lambda *_: _synchronize("synchronize the device")
    cuda.Event, cuda.Stream = Event, Stream
    cuda.current_stream = cuda.default_stream = lambda *_: Stream()
    cuda.stream = lambda *_: contextlib.nullcontext()
    cuda.set_stream = lambda *_: None
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign]
    cuda.is_bf16_supported = lambda *_, **__: True
    for name in ("device_count", "current_device", "_lazy_init"):  # which it took by name
        setattr(cuda.random, name, getattr(cuda, name))
    cuda.default_generators = (torch.Generator(device="cuda"),)


def _storages() -> None:
    """Copy storages by tensors: torch's own way asks an allocator that only CUDA's build registers."""
    import torch

    storage: Any = torch.UntypedStorage
    plain, plain_to = storage.clone, storage.to

    def clone(self: Any) -> Any:
        if self.device.type != "cuda":
            return plain(self)
        source = torch.empty(0, dtype=torch.uint8, device=self.device).set_(self)
        return source.clone().untyped_storage()

    def cuda(self: Any, *_: Any, **__: Any) -> Any:
        return torch.empty(0, dtype=torch.uint8).set_(self).cuda().untyped_storage()

    def to(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        if torch.device(device).type == "cuda":
            return self if self.device.type == "cuda" else cuda(self)
        return plain_to(self, device=device, non_blocking=non_blocking)

    storage.clone, storage.cuda, storage.to = clone, cuda, to
