"""Answers of slow oracles, computed once for both processes: the ordinary one and that of the pretended device.

Both compare with the same numbers. Whichever comes first computes them, under a lock, and the other reads them.
"""

import functools
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # where no device is pretended either
    fcntl = None  # type: ignore[assignment]

FOLDER = "TORCHRIDGE_TEST_ANSWERS"  # the variable that names the folder of a run, if it has one

Answer = TypeVar("Answer")


def shared(oracle: Callable[..., Answer]) -> Callable[..., Answer]:
    """Have `oracle` asked only once for each case; its arguments must say all of it, and print as what they are."""

    @functools.cache
    def answer(*case: object) -> Answer:
        folder = os.environ.get(FOLDER)
        if folder is None or fcntl is None:
            return oracle(*case)
        name = hashlib.sha256(f"{oracle.__module__}.{oracle.__qualname__}{case!r}".encode()).hexdigest()[:24]
        kept = Path(folder) / name
        with open(kept.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                draft = kept.with_suffix(".draft")
                draft.write_bytes(pickle.dumps(oracle(*case)))
                draft.replace(kept)
            found: Answer = pickle.loads(kept.read_bytes())
            return found

    return answer
