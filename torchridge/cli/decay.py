"""`torchridge decay`: which parameters of a model are decayed, and why."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import Any

from torch import nn

from torchridge.cli import output
from torchridge.cli.flags import flags_of
from torchridge.training.weight_decay.groups import explain_weight_decay

_ABOUT = """\
Print for every parameter of a model the group that `weight_decay_groups` puts it in, and why. MODULE:NAME is a model,
or a function without arguments that makes one; the module is imported, so its code runs.
"""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("decay", help="the weight-decay table of a model", description=_ABOUT)
    parser.add_argument("model", metavar="MODULE:NAME", help="e.g. torchvision.models:resnet18")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="strength of the weights (default: 0.01)")
    parser.add_argument("--layer-decay", type=float, help="scale learning rates by this, layer by layer")
    parser.add_argument("--no-embeddings", dest="embeddings", action="store_false", help="do not decay embeddings")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, flags=flags_of(parser))


def run(options: argparse.Namespace) -> None:
    """Explain and print."""
    table = explain_weight_decay(
        _model(options.model),
        options.weight_decay,
        embeddings=options.embeddings,
        layer_decay=options.layer_decay,
    )
    print(output.to_json(json.loads(table.to_json())) if options.json else table)


def _model(name: str) -> nn.Module:
    place, colon, path = name.partition(":")
    if not (place and colon and path):
        raise argparse.ArgumentTypeError(f"MODULE:NAME should name a model or what makes one, got {name!r}")
    here = os.getcwd()
    sys.path.insert(0, here)  # as `python -m` does
    try:
        found = _found(place, path)
    finally:
        sys.path.remove(here)
    model = found if isinstance(found, nn.Module) else _made(found, name)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} should be or make an nn.Module, got {type(model).__name__}.")
    return model


def _found(place: str, path: str) -> Any:
    try:
        found: Any = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(f"module {place!r} cannot be imported: {error}.") from None
    except (Exception, SystemExit) as error:  # somebody else's code runs
        raise ValueError(f"module {place!r} cannot be imported, {type(error).__name__}: {error}") from error
    try:
        for part in path.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise ValueError(f"module {place!r} has no {path!r}.") from None
    return found


def _made(factory: Any, name: str) -> Any:
    if not callable(factory):
        return factory
    try:
        return factory()
    except (Exception, SystemExit) as error:  # somebody else's code: whatever it raises, the reader needs its name
        raise ValueError(f"{name}() raised {type(error).__name__}: {error}") from error
