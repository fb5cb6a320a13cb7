"""Files of tensors and JSON in safetensors, sealed with a digest. Reading executes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write(path: str | Path, kind: str, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write a file whole, or leave what was there."""
    check_place(path, "path")
    save = _safetensors("torch").save
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(content)
    data = save(plain, metadata={"kind": kind, "content": text, "digest": _digest(kind, plain, text)})
    path = Path(path)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    os.replace(beside, path)


def check_place(path: str | Path, name: str) -> None:
    """Raise where a file cannot be written: in a folder that is not there or not ours, or in the place of a folder."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`{name}`: there is no folder {str(path.parent)!r}. Make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"`{name}`: {str(path)!r} is a folder; expected the name of a file.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"`{name}`: files cannot be written in the folder {str(path.parent)!r}. Choose another.")


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the JSON of a file.

    Raises:
        ValueError: where the file is truncated, altered, or of another kind.
        FileNotFoundError: where there is none.
    """
    safetensors = _safetensors()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path`: there is no file {str(path)!r}.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, ValueError, OSError, KeyError) as error:
        raise ValueError(f"`path`: {path.name} is truncated or no safetensors file ({error}). Save it again.") from None
    if metadata.get("kind") != kind:
        raise ValueError(f"`path`: {path.name} should be a file of kind {kind!r}, got {metadata.get('kind')!r}.")
    text = metadata.get("content", "")
    if metadata.get("digest") != _digest(kind, tensors, text):
        raise ValueError(f"`path`: {path.name} was altered after it was saved: its digest does not fit. Save it again.")
    content: dict[str, Any] = json.loads(text)
    return tensors, content


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
        raise ImportError(
            "files need safetensors. Install it with `pip install torchridge[stream]` or `[probe]`."
        ) from None
    return safetensors.torch if part else safetensors
