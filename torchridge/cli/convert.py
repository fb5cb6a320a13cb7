"""`torchridge convert`: one strength in the terms of another tool."""

from __future__ import annotations

import argparse
from typing import Any

from torchridge.cli import output
from torchridge.cli.flags import flags_of
from torchridge.strength import CONVENTIONS, convert_strength


def add(commands: Any) -> None:
    """Add the command."""
    about = "Print the strength that makes the one tool solve the problem that the other solves."
    parser = commands.add_parser("convert", help="a strength in another tool's terms", description=about)
    parser.add_argument("value", type=float)
    parser.add_argument("--from", dest="origin", metavar="TOOL", required=True, choices=CONVENTIONS)
    parser.add_argument("--to", dest="goal", metavar="TOOL", required=True, choices=CONVENTIONS)
    parser.add_argument("--n-samples", type=float, help="number of rows")
    parser.add_argument("--n-targets", type=int, help="outputs that the loss is averaged over")
    parser.add_argument("--sample-weight-sum", type=float, help="sum of the sample weights")
    parser.add_argument("--target-std", type=float, help="standard deviation of y")
    parser.add_argument("--feature-std", type=_numbers, help="standard deviation of each feature, separated by commas")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.epilog = f"tools: {', '.join(CONVENTIONS)}"
    parser.set_defaults(run=run, flags=flags_of(parser, source="--from", target="--to"))


def run(options: argparse.Namespace) -> None:
    """Convert and print."""
    std = options.feature_std
    facts = {name: getattr(options, name) for name in ("n_samples", "n_targets", "sample_weight_sum", "target_std")}
    many = std if std is not None and len(std) > 1 else None if std is None else std[0]
    result: Any = convert_strength(options.value, source=options.origin, target=options.goal, feature_std=many, **facts)
    if options.json:
        given = {"value": options.value, "from": options.origin, "to": options.goal, "result": result}
        print(output.to_json(given))
    else:
        print(",".join(map(repr, result)) if isinstance(result, list) else repr(result))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"should be numbers separated by commas, got {text!r}") from None
