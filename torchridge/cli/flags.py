"""Errors and warnings of the library in the words of the command line: flags in place of Python's arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

# `alphas`, `cv`='gcv' and cv='gcv'.
_NAMED = re.compile(r"(?:`(\w+)`|(?<![\w.])(\w+)(?==))(?:=('[^']*'|[\w.+-]*\w))?")


def flags_of(parser: argparse.ArgumentParser, **others: str) -> dict[str, str]:
    """Return what each argument is called on the command line; `others` are those that bear another name there."""
    named = {a.dest: a.option_strings[0] if a.option_strings else str(a.metavar or a.dest) for a in parser._actions}
    return named | others


def spoken(message: str, flags: Mapping[str, str]) -> str:
    """Return a message with its arguments as flags: "pass alphas='auto'" becomes "pass --alphas auto"."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1] or found[2], found[3]
        if name not in flags:
            return found[0]
        return flags[name] if value is None else f"{flags[name]} {value.strip(chr(39))}"

    return _NAMED.sub(flag, message)


def one_line(message: str) -> str:
    """Return a message without its line breaks, cut if it would fill a screen."""
    line = " ".join(message.split())
    return line if len(line) <= 2000 else f"{line[:1997]}..."
