"""If a command writes: refused before anything is read if it could not be written in the end."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchridge import _files


def check(path: Path | None, endings: Iterable[str]) -> None:
    """Raise unless the file has one of the endings and can be written."""
    if path is None:
        return
    allowed = list(endings)
    if path.suffix not in allowed:
        listed = ", ".join(allowed[:-1]) + " or " * (len(allowed) > 1) + allowed[-1]
        raise argparse.ArgumentTypeError(f"-o should end in {listed}, got {str(path)!r}")
    _files.check_place(path, "output")


def to_json(content: Any) -> str:
    """Return JSON that every reader takes: anything but a finite number is null."""
    return json.dumps(_finite(content), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, (list, tuple)) else value
