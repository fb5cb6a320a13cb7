"""Runs the ```python blocks of a Markdown file, and holds what they print against the comments below each print.

Blocks run in order, in one namespace. What a reader would have and the page does not show stands in a comment of the
page, and runs where it stands:

    <!-- setup
    model = nn.Linear(3, 1)
    -->

A block after `<!-- needs: optuna -->` runs if that package is installed.
"""

import ast
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDS = r"(?:^<!-- needs: (?P<needs>[\w ]+) -->\n+)?"
BLOCK = re.compile(NEEDS + r"^```python\n(?P<shown>.*?)^```|^<!-- setup\n(?P<hidden>.*?)^-->", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line each block begins at, and its code."""
    for match in BLOCK.finditer(text):
        if any(find_spec(package) is None for package in (match["needs"] or "").split()):
            continue
        name = "shown" if match["shown"] is not None else "hidden"
        yield text.count("\n", 0, match.start(name)) + 1, match[name]


def run_file(path: Path, before: str = "") -> list[str]:
    """Run all blocks, `before` each some other code, and return where what is printed is not what is stated."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    wrong: list[str] = []
    for line, code in blocks(path.read_text()):
        exec(before, namespace)
        wrong += run_block(code, namespace, f"{path.name}:{line}")
    return wrong


def run_block(code: str, namespace: dict[str, Any], place: str) -> list[str]:
    """Run one block, statement by statement."""
    lines, wrong = code.splitlines(), []
    for statement in ast.parse(code).body:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(ast.Module([statement], []), place, "exec"), namespace)
        stated = list(comments(lines, statement.end_lineno or 0))
        if printed.getvalue() and stated and words(stated) != words(printed.getvalue().splitlines()):
            wrong.append(f"{place}, `{lines[statement.lineno - 1]}` states {stated}, prints {printed.getvalue()!r}")
    return wrong


def comments(lines: list[str], start: int) -> Iterator[str]:
    """Yield the comment lines that follow at once."""
    for line in lines[start:]:
        if not line.startswith("#"):
            return
        yield line.removeprefix("#")


def words(lines: list[str]) -> list[str]:
    return " ".join(lines).split()
