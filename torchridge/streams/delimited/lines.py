"""Bytes of CSV cut into rows in one pass: quotes enclose a cell only if they stand at its start, as in Python's csv."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_BLOCK_BYTES = 2**23

# A row longer than this is no row: the file has other line ends, or none, or a quote that nothing closes.
_LONGEST_ROW = 2**28

_QUOTE, _NEWLINE, _RETURN = b'"\n\r'

Positions = np.ndarray[Any, np.dtype[np.intp]]


class _State(NamedTuple):
    """What has to be known of the bytes before: whether a quoted cell is open, and what the last of them was."""

    inside: bool = False
    last: int = _NEWLINE
    closed: bool = False  # the last byte is a quote that closed a cell: another one reopens it


class Quoted(NamedTuple):
    """The quoted parts of some bytes: quotes that open and that close, in order; others are letters like any."""

    opens: Positions
    closes: Positions
    inside: bool  # at the start

    def depth(self, at: Positions) -> Positions:
        """Return 1 for positions within quotes, else 0."""
        opened = np.searchsorted(self.opens, at) + self.inside
        found: Positions = opened - np.searchsorted(self.closes, at)
        return found


def blocks(file: BinaryIO, delimiter: str, name: str) -> Iterator[bytes]:
    """Yield blocks of whole rows; each byte is looked at once, however long a row is."""
    state, mark = _State(), ord(delimiter)
    waiting: list[bytes] = []
    while data := file.read(_BLOCK_BYTES):
        cut, state = _last_end(data, mark, state)
        if cut:
            yield b"".join([*waiting, data[:cut]])
            waiting = []
        waiting.append(data[cut:])
        if (size := sum(map(len, waiting))) > _LONGEST_ROW:
            raise ValueError(
                f"`source`: {name} has no end of line in {size} bytes. Is it CSV, do its lines end in a line feed, and "
                f"is every quote that opens a cell closed?"
            )
    rest = b"".join(waiting)
    if rest.strip():
        yield rest


def _last_end(data: bytes, delimiter: int, state: _State) -> tuple[int, _State]:
    """Return where the last row that ends in the data does, and the state after the data."""
    if not state.inside and _QUOTE not in data:
        return data.rfind(b"\n") + 1, _State(False, data[-1], False)
    quoted, after = _quoted(data, delimiter, state)
    end = len(data)
    while (end := data.rfind(b"\n", 0, end)) >= 0:
        before = int(np.searchsorted(quoted.opens, end))
        if before + quoted.inside == np.searchsorted(quoted.closes, end):
            break
        end = int(quoted.opens[before - 1]) if before else 0
    return end + 1, after


def quoted(block: bytes, delimiter: str) -> Quoted | None:
    """Return the quoted parts of a block of whole rows; None if it holds no quote."""
    return _quoted(block, ord(delimiter), _State())[0] if _QUOTE in block else None


def _quoted(data: bytes, delimiter: int, state: _State) -> tuple[Quoted, _State]:
    """Find the quotes that open and close. In most files they alternate, which is checked for all at once."""
    letters = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(letters == _QUOTE)
    before = letters[at - 1]
    before[:1] = state.last if len(at) and at[0] == 0 else before[:1]
    starts = (before == delimiter) | (before == _NEWLINE)
    follows = np.diff(at, prepend=-2) == 1
    follows[:1] |= state.closed and len(at) > 0 and at[0] == 0
    opening = (np.arange(len(at)) + state.inside) % 2 == 0
    if bool((opening & ~starts & ~follows).any()):
        opening, closing = _walk(starts, follows.tolist(), state.inside)
    else:
        closing = ~opening
    again = opening & follows  # two quotes within a cell stand for one: the cell goes on
    opens, closes = at[opening & ~again], at[closing & ~np.append(again[1:], False)]
    started = state.inside or bool(again[:1].any())
    inside = len(opens) + started > len(closes)
    closed = len(closes) > 0 and int(closes[-1]) == len(data) - 1
    return Quoted(opens, closes, started), _State(inside, data[-1], closed)


def _walk(starts: Any, follows: list[bool], inside: bool) -> tuple[Any, Any]:
    """Go from quote to quote, past those that stand within a cell that has none at its start."""
    opening, closing = np.zeros(len(follows), bool), np.zeros(len(follows), bool)
    starts[0] |= follows[0]
    may_open = np.flatnonzero(starts).tolist()
    at, n, first = 0, len(follows), 0
    while at < n:
        if not inside:
            first = bisect_left(may_open, at, first)
            if first == len(may_open):
                break
            opening[may_open[first]], at = True, may_open[first] + 1
            if at == n:
                break
        closing[at], at = True, at + 1
        inside = at < n and follows[at]
        if inside:
            opening[at], at = True, at + 1
    return opening, closing


def row_ends(block: bytes, found: Quoted | None) -> Positions:
    """Return where the rows of a block end: at its line feeds outside quotes, and at its end."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE)
    ends = ends if found is None else ends[found.depth(ends) == 0]
    return ends if block.endswith(b"\n") and len(ends) and ends[-1] == len(block) - 1 else np.append(ends, len(block))


def count(block: bytes, delimiter: str) -> int:
    """Count the rows of a block that are not empty."""
    if not block:
        return 0
    ends = row_ends(block, quoted(block, delimiter))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    returns = sum(block[int(i)] == _RETURN for i in starts[lengths == 1])
    return int(np.count_nonzero(lengths > 0)) - returns


def stray_return(block: bytes, found: Quoted | None) -> int:
    """Return the position of a carriage return outside quotes that no line feed follows, or -1."""
    if _RETURN not in block:
        return -1
    letters = np.frombuffer(block, np.uint8)
    at = np.flatnonzero(letters == _RETURN)
    last = at == len(letters) - 1
    at = at[~last & (letters[np.where(last, 0, at + 1)] != _NEWLINE)]
    at = at if found is None else at[found.depth(at) == 0]
    return int(at[0]) if len(at) else -1


def rows(block: bytes, delimiter: str) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the cells of each row, after the number of line feeds before it; empty rows are left out."""
    mark, start, lines = delimiter.encode(), 0, 0
    for end in row_ends(block, quoted(block, delimiter)).tolist():
        row = block[start:end]
        bare = row.removesuffix(b"\r")
        if bare:
            yield lines, bare.split(mark) if _QUOTE not in bare else _cells(bare, mark)
        lines, start = lines + row.count(b"\n") + 1, end + 1


def _cells(row: bytes, mark: bytes) -> list[bytes]:
    cells, at = [], 0
    while True:
        inner, after = _enclosed(row, at) if row[at : at + 1] == b'"' else (b"", at)
        stop = row.find(mark, after)
        cells.append(inner + row[after : len(row) if stop < 0 else stop])
        if stop < 0:
            return cells
        at = stop + len(mark)


def _enclosed(row: bytes, at: int) -> tuple[bytes, int]:
    """Return what the quote at a position encloses, and where it ends."""
    end = row.find(b'"', at + 1)
    while end >= 0 and row[end + 1 : end + 2] == b'"':
        end = row.find(b'"', end + 2)
    end = len(row) if end < 0 else end
    return row[at + 1 : end].replace(b'""', b'"'), end + 1
