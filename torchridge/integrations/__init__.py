"""torchridge in the trainers of others; each module imports its framework, and only when it is asked for.

With Accelerate nothing is needed: what `accelerator.prepare` returns is taken as it is.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "L2Callback": "lightning",
    "L2TrainerCallback": "transformers",
    "WeightDecayMixin": "transformers",
    "decay_parameter_names": "transformers",
    "L2Regularization": "skorch",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
