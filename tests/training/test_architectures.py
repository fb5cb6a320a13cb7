"""Real architectures on the meta device: no norm, bias or gain decayed, no linear or convolution weight skipped.

What is a norm, a bias, a linear or convolution weight is read off independently of the judgement: torch's types, the
class's and the parameter's name.
"""

import importlib.util
import re
from collections.abc import Iterator

import pytest
from architectures import LIBRARIES, differences, listed, on_meta
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
PROJECTIONS = (nn.Linear, _ConvNd)

BATCHES = 8

BIAS = re.compile("bias.*|.*bias")
GAIN = re.compile(r"(layer_?scale|gamma|gain|logit_scale|temperature|alpha|beta|scale)(_?\d+)?")


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
            elif isinstance(module, nn.Embedding) and re.search("bias", prefix.rpartition(".")[2]):
                if leaf in decayed:
                    yield f"{leaf} of {type(module).__name__}, a table of biases, is decayed"
            elif leaf in decayed and (is_norm(module) or BIAS.fullmatch(last) or GAIN.fullmatch(last)):
                yield f"{leaf} of {type(module).__name__} is decayed"


def check(name: str, model: nn.Module) -> None:
    assert [f"{name}: {mistake}" for mistake in mistakes(model)] == []
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    groups = weight_decay_groups(model, 0.1, inert="keep") if trainable else []
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(trainable)


def test_torch_transformer() -> None:
    model = on_meta(nn.Transformer)
    check("torch.nn.Transformer", model)
    table = explain_weight_decay(model)
    assert sum(row.decay for row in table) == 6 * 4 + 6 * 6


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library(library: str, batch: int) -> None:
    """No mistakes by the second rule above, and no difference from the library's own rule that is not justified."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    names, build, rule = LIBRARIES[library]
    known = {(*kind.split(": "), place) for kind, entry in listed(library).items() for place in entry["parameters"]}
    built = 0
    for name in names()[batch::BATCHES]:
        model = build(name)
        if model is not None:
            check(name, model)
            assert differences(model, rule(model)) - known == set(), name
            built += 1
    assert built > 8


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_difference_is_justified(library: str) -> None:
    for entry in listed(library).values():
        assert len(entry["why"]) > 40 and entry["parameters"] == sorted(set(entry["parameters"]))
