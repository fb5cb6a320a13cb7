"""Rows that need not fit in memory: readers of files, arrays and iterables, and their moments in one pass."""

from torchridge.streams.fit import stream_moments
from torchridge.streams.opening import open_rows
from torchridge.streams.source import Batch, RowSource

__all__ = ["Batch", "RowSource", "open_rows", "stream_moments"]
