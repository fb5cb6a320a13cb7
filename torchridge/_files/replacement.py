"""A file that takes the place of another whole, or not at all, whoever else writes it and whatever ends the process."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NoReturn

try:
    import fcntl
except ImportError:  # Windows: what a killed process has left stays there
    fcntl = None  # type: ignore[assignment]

# Of a disk, not of the rows that are read meanwhile.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def check_place(path: str | Path, name: str) -> None:
    """Raise if a file cannot be written: in a folder that is not there or not ours, or in the place of a folder."""
    path, target = Path(path), _target(path)
    if not target.parent.is_dir():
        shown = path.parent if not path.parent.is_dir() else target.parent
        raise FileNotFoundError(f"`{name}`: there is no folder {str(shown)!r}. Make it first.")
    if target.is_dir():
        raise IsADirectoryError(f"`{name}`: {str(path)!r} is a folder; expected the name of a file.")
    if target.exists() and not target.is_file():
        raise OSError(f"`{name}`: {str(path)!r} is a device or a pipe; expected the name of a file.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"`{name}`: files cannot be written in the folder {str(path.parent)!r}. Choose another.")


@contextmanager
def replacing(path: str | Path, name: str) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` once the block has ended well; else what was there stays.

    It is on the disk before it bears the name, so that a machine that loses its power has one or the other. A link
    keeps pointing where it points. Two writers do not meet: the last to end is the one whose file stays. What a killed
    process has left next to the file is removed.
    """
    target = _target(path)
    remove_leftovers(target.parent, re.escape(_stem(target)))
    try:
        beside, handle = _beside(target)
        try:
            with os.fdopen(handle, "wb") as file:
                if target.exists():
                    os.chmod(beside, stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:  # while it is locked, so that nobody takes it for a leftover
                    os.replace(beside, target)
            if fcntl is None:  # Windows moves no open file
                os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            _refuse(error, path, name)
        raise
    _sync_folder(target.parent)


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove the unfinished files of processes that were killed while they wrote; `names` is a regular expression."""
    if fcntl is None:
        return
    pattern = re.compile(names + r"\.[0-9a-f]{16}\.part")
    for found in os.scandir(folder):
        if pattern.fullmatch(found.name):
            with suppress(OSError):  # it is locked: its writer lives; or another has removed it
                _remove_unlocked(found.path)


def _remove_unlocked(path: str) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(handle)


def _target(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _stem(target: Path) -> str:
    """Return the name, or a short one for it: what is added must not make it longer than a file system takes."""
    raw = os.fsencode(target.name)
    return target.name if len(raw) <= 200 else hashlib.blake2b(raw, digest_size=16).hexdigest()


def _beside(target: Path) -> tuple[Path, int]:
    """Make a file next to the target, locked for as long as this process has it open."""
    while True:
        path = target.with_name(f"{_stem(target)}.{secrets.token_hex(8)}.part")
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            if _locked(handle) and path.exists():
                return path, handle
            os.close(handle)  # taken for a leftover between the two calls above
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _locked(handle: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can take the file for a leftover
        return True
    return True


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system, and no folder on Windows, can be synchronized
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refuse(error: OSError, path: str | Path, name: str) -> NoReturn:
    raise OSError(
        error.errno, f"`{name}`: {str(path)!r} cannot be written: {error.strerror}. What was there is unchanged"
    ) from error
