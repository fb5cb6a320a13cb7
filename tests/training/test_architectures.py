"""Real architectures on the meta device: no norm or bias decayed, no linear or convolution weight skipped.

What is a norm, a bias, a linear or convolution weight is read off independently of the judgement: torch's types, the
class's and the parameter's name.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from torchridge.training.decay import explain_weight_decay, weight_decay_groups

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
PROJECTIONS = (nn.Linear, _ConvNd)

TIMM_BATCHES = 8
TRANSFORMERS_BATCHES = 8


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or type(module).__name__.lower().rstrip("0123456789d").endswith("norm")


def mistakes(model: nn.Module) -> Iterator[str]:
    table = explain_weight_decay(model)
    decayed = {name for row in table if row.decay for name in (row.name, *row.aliases)}
    declared = {name for row in table if "no_weight_decay" in row.reason for name in (row.name, *row.aliases)}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(prefix=prefix, recurse=False):
            last = leaf.rpartition(".")[2]
            if not parameter.requires_grad or leaf in declared:
                continue
            if isinstance(module, PROJECTIONS) and last == "weight":
                if leaf not in decayed:
                    yield f"{leaf} of {type(module).__name__} is skipped"
            elif (is_norm(module) or last.startswith("bias") or last.endswith("bias")) and leaf in decayed:
                yield f"{leaf} of {type(module).__name__} is decayed"


def check(name: str, model: nn.Module) -> None:
    assert [f"{name}: {mistake}" for mistake in mistakes(model)] == []
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    groups = weight_decay_groups(model, 0.1, inert="keep") if trainable else []
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(trainable)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def test_torch_transformer() -> None:
    model = on_meta(nn.Transformer)
    check("torch.nn.Transformer", model)
    table = explain_weight_decay(model)
    assert sum(row.decay for row in table) == 6 * 4 + 6 * 6


def timm_names() -> list[str]:
    """One model of each family and naming."""
    timm = pytest.importorskip("timm", reason="timm, or torchvision that it imports, is not installed")
    seen: dict[tuple[str, str], str] = {}
    for name in timm.list_models():
        seen.setdefault((timm.models.model_entrypoint(name).__module__, name[:6]), name)
    return list(seen.values())


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(TIMM_BATCHES))
def test_timm(batch: int) -> None:
    names = timm_names()[batch::TIMM_BATCHES]
    import timm

    for name in names:
        check(name, on_meta(lambda name=name: timm.create_model(name, pretrained=False)))  # type: ignore[misc]
    assert len(names) > 10


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(TRANSFORMERS_BATCHES))
def test_transformers(batch: int) -> None:
    pytest.importorskip("transformers")
    from transformers import CONFIG_MAPPING, AutoModel

    built = 0
    for name in list(CONFIG_MAPPING.keys())[batch::TRANSFORMERS_BATCHES]:
        model = None
        # Many composite configurations have no defaults to build a model from, or need further packages.
        with contextlib.suppress(Exception):
            model = on_meta(lambda name=name: AutoModel.from_config(CONFIG_MAPPING[name]()))  # type: ignore[misc]
        if model is not None:
            check(name, model)
            built += 1
    assert built > 10
