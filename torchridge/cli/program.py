"""The command `torchridge`: results on standard output, all else on standard error, an exit code that tells."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torchridge import __version__
from torchridge.cli import convert, decay, env, fit, path, predict
from torchridge.cli.flags import one_line, spoken
from torchridge.exceptions import TorchridgeWarning

_CODES = """\
exit codes:
  0    done
  1    the data, a file or the numbers do not allow it; the reason is on standard error
  2    the command line is wrong
  130  interrupted
  141  the reader of standard output went away
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _Parser(
        prog="torchridge",
        description="L2 regularization: fit and use ridge models on files of any size, convert strengths.",
        epilog=_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"torchridge {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (fit, predict, path, convert, decay, env):
        module.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: of the command line, without the name of the program; by default those of this process.

    Returns:
        0 done; 1 the data, a file or the numbers do not allow it; 2 the command line is wrong; 130 interrupted; 141 the
        reader of standard output went away.

    Cost: that of the function behind the command.

    Example:
        >>> from torchridge.cli import main
        >>> main(["convert", "0.01", "--from", "keras", "--to", "sklearn", "--n-samples", "1000"])
        10.0
        0
    """
    try:
        options, unknown = parser().parse_known_args(arguments)
    except SystemExit as end:  # argparse ends the process; whoever calls this function gets a code
        return end.code if isinstance(end.code, int) else 2
    said = f"torchridge {options.command}"
    if unknown:
        return _failed(said, f"unrecognized arguments: {' '.join(unknown)} (see {said} --help)", 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", TorchridgeWarning)
            warnings.showwarning = _warn(said, options.flags)
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python would flush at exit has nowhere to go, and would end in a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print(f"{said}: interrupted", file=sys.stderr)
        return 130
    except argparse.ArgumentTypeError as error:
        return _failed(said, str(error), 2)
    except MemoryError:
        return _failed(said, "there is not enough memory; try --max-memory, or fewer features", 1)
    except (ValueError, TypeError, ImportError, OSError, ArithmeticError, RuntimeError) as error:
        return _failed(said, spoken(str(error), options.flags), 1)
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        name = type(error).__name__
        return _failed(
            said, f"unexpected {name}: {error}; please report it, with what python -X dev -m torchridge says", 1
        )
    return 0


def _failed(said: str, message: str, code: int) -> int:
    print(f"{said}: error: {one_line(message)}", file=sys.stderr)
    return code


def _warn(said: str, flags: Mapping[str, str]) -> Any:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{said}: warning: {one_line(spoken(str(message), flags))}", file=sys.stderr)

    return show
