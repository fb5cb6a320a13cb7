"""Files of tensors and JSON in safetensors, sealed with a digest. Reading executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchridge._files.replacement import check_place, replacing
from torchridge.exceptions import install

__all__ = ["MISUNDERSTOOD", "check_place", "kind_of", "read", "replacing", "understood", "write"]

# What a file that holds the wrong things makes the code that takes them apart raise.
MISUNDERSTOOD = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def write(
    path: str | Path, kind: str, tensors: dict[str, Tensor], content: dict[str, Any], *, name: str = "path"
) -> None:
    """Write a file whole, or leave what was there; errors call the file `name`."""
    check_place(path, name)
    save = _safetensors("torch").save
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(content)
    data = save(plain, metadata={"kind": kind, "content": text, "digest": _digest(kind, plain, text)})
    with replacing(path, name) as file:
        file.write(data)


def kind_of(path: str | Path, kinds: Collection[str], *, name: str = "path") -> str:
    """Return which of some kinds a file is of, or raise as `read` does."""
    path = Path(path)
    _check_there(path, name)
    kind = _opened(path, name)[1].get("kind")
    if kind not in kinds:
        listed = " or ".join(repr(k) for k in kinds)
        raise ValueError(f"`{name}`: {path.name} should be a file of kind {listed}, got {kind!r}.")
    return str(kind)


def read(path: str | Path, kind: str, *, name: str = "path") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON of a file.

    Raises:
        ValueError: if the file is truncated, altered, or of another kind.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    _check_there(path, name)
    tensors, metadata = _opened(path, name)
    if metadata.get("kind") != kind:
        raise ValueError(f"`{name}`: {path.name} should be a file of kind {kind!r}, got {metadata.get('kind')!r}.")
    text = metadata.get("content", "")
    if metadata.get("digest") != _digest(kind, tensors, text):
        raise ValueError(
            f"`{name}`: {path.name} was altered after it was saved: its digest does not fit. Save it again."
        )
    with understood(path, name):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError(f"its content is a {type(content).__name__}")
    return tensors, content


def _check_there(path: Path, name: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"`{name}`: there is no file {str(path)!r}.")
    path.open("rb").close()  # a file that is not ours to read says so itself


def _opened(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = _safetensors()
    try:
        # One read: `safe_open` opens the path anew for its tensors, and another writer may have replaced it by then.
        data = path.read_bytes()
        tensors = _safetensors("torch").load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, dict(header.get("__metadata__") or {})
    except (safetensors.SafetensorError, OSError, *MISUNDERSTOOD) as error:
        raise ValueError(
            f"`{name}`: {path.name} is truncated or not a safetensors file ({error}). Save it again."
        ) from None


@contextmanager
def understood(path: str | Path, name: str) -> Iterator[None]:
    """Say of what fails within that the file does not hold what its kind holds, though its digest fits."""
    try:
        yield
    except MISUNDERSTOOD as error:
        raise ValueError(
            f"`{name}`: {Path(path).name} does not hold what a file of its kind holds "
            f"({type(error).__name__}: {error}). Save it again."
        ) from error


def _digest(kind: str, tensors: dict[str, Tensor], text: str) -> str:
    total = hashlib.sha256(f"{kind}\n{text}\n".encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _safetensors(part: str = "") -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ImportError(f"files need safetensors. {install('safetensors', 'stream')}") from None
    return safetensors.torch if part else safetensors
