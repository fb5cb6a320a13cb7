"""Models of transformers and timm on the meta device, and what the rules of those libraries decide on them.

    PYTHONPATH=. python tests/training/architectures.py transformers timm

writes, into `differences_*.json` beside this file, every parameter on which the judgement and the library's own rule
differ, with the kind that decided; `test_architectures.py` holds them to it, and to a justification for each kind.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchridge.training.parameters.classify import judge

HERE = Path(__file__).parent
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")

Difference = tuple[str, str, str]  # whether we decay it, the kind that decided, Class.leaf


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def transformers_names() -> list[str]:
    from transformers import CONFIG_MAPPING

    return list(CONFIG_MAPPING.keys())


def transformers_model(name: str) -> nn.Module | None:
    """The default model of an architecture at two layers, or as many as it insists on; None if it cannot be built."""
    import transformers
    from transformers import CONFIG_MAPPING, AutoModel

    transformers.logging.set_verbosity_error()
    for shrink in (True, False):
        # Many composite configurations have no defaults to build a model from, or need further packages.
        with contextlib.suppress(Exception):
            config = CONFIG_MAPPING[name]()
            if shrink:
                shallow(config)
            return on_meta(lambda config=config: AutoModel.from_config(config))  # type: ignore[misc]
    return None


def shallow(config: Any) -> None:
    for key, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shallow(value)
        elif key in DEPTHS and isinstance(value, int) and value > 2:
            setattr(config, key, 2)
        elif key in ("layer_types", "layers_block_type") and isinstance(value, list):
            setattr(config, key, value[:2])


def transformers_rule(model: nn.Module) -> set[str]:
    """The names that `Trainer` decays."""
    from transformers import Trainer

    return set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]


class _Names(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {"__init__": lambda self, *args, **kwargs: None})


class StubbedTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, which timm imports for its transforms of images and no model needs."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        ours = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextlib.contextmanager
def timm_without_torchvision() -> Iterator[Any]:
    finder = StubbedTorchvision()
    sys.meta_path.insert(0, finder)
    try:
        import timm

        yield timm
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            if isinstance(sys.modules[name], _Stub):
                del sys.modules[name]


def timm_names() -> list[str]:
    """One model of each family."""
    with timm_without_torchvision() as timm:
        seen: dict[str, str] = {}
        for name in timm.list_models():
            seen.setdefault(timm.models.model_entrypoint(name).__module__, name)
        return list(seen.values())


def timm_model(name: str) -> nn.Module:
    with timm_without_torchvision() as timm:
        return on_meta(lambda: timm.create_model(name, pretrained=False))


def timm_rule(model: nn.Module) -> set[str]:
    """The names that timm's `param_groups_weight_decay` decays."""
    with timm_without_torchvision():
        from timm.optim import param_groups_weight_decay
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, 0.1, no_weight_decay_list=exempt)
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in decayed}


def differences(model: nn.Module, theirs: set[str]) -> set[Difference]:
    found: set[Difference] = set()
    for j in judge(model):
        if j.trainable and j.decay != (j.name in theirs):
            found.add(("decayed" if j.decay else "not decayed", j.kind, f"{type(j.owner).__name__}.{j.leaf}"))
    return found


LIBRARIES: dict[str, tuple[Any, Any, Any]] = {
    "transformers": (transformers_names, transformers_model, transformers_rule),
    "timm": (timm_names, timm_model, timm_rule),
}


def listed(library: str) -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads((HERE / f"differences_{library}.json").read_text())
    return content


def main() -> None:
    for library in sys.argv[1:]:
        names, build, rule = LIBRARIES[library]
        kinds: dict[str, set[str]] = {}
        for name in names():
            model = build(name)
            for decision, kind, place in differences(model, rule(model)) if model is not None else ():
                kinds.setdefault(f"{decision}: {kind}", set()).add(place)
        path = HERE / f"differences_{library}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        whys = {kind: before.get(kind, {}).get("why", "") for kind in kinds}
        content = {kind: {"why": whys[kind], "parameters": sorted(kinds[kind])} for kind in sorted(kinds)}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
