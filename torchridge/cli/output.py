"""Where a command writes: refused before anything is read, if it cannot be written in the end."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

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
