"""The command `torchridge`: results on standard output, all else on standard error, an exit code that tells."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torchridge import __version__
from torchridge._warnings import TorchridgeWarning
from torchridge.cli import convert, decay, env, fit, path, predict
from torchridge.cli.flags import spoken

_CODES = """\
exit codes:
  0    done
  1    the data, a file or the numbers do not allow it; the reason is on standard error
  2    the command line is wrong
  130  interrupted
  141  the reader of standard output went away
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(
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
        options = parser().parse_args(arguments)
    except SystemExit as end:  # argparse ends the process; whoever calls this function gets a code
        return end.code if isinstance(end.code, int) else 2
    said = f"torchridge {options.command}"
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
        print(f"{said}: error: {error}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, ImportError, OSError, ArithmeticError) as error:
        print(f"{said}: error: {spoken(str(error), options.flags)}", file=sys.stderr)
        return 1
    return 0


def _warn(said: str, flags: Mapping[str, str]) -> Any:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{said}: warning: {spoken(str(message), flags)}", file=sys.stderr)

    return show
