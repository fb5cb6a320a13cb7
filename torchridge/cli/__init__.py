"""The command line: `torchridge fit`, `predict`, `path`, `convert`, `decay`, `env`."""

from torchridge.cli.program import main

__all__ = ["main"]
