"""The depth of each parameter, for learning rates that shrink from the head down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from torchridge.training.parameters.classify import Judgement

_LEAST_SHARE = 0.1


def layer_indices(
    model: nn.Module, judgements: Sequence[Judgement], layer_of: Callable[[str], int] | None = None
) -> list[int]:
    """Number the layers from the input: 0 before the blocks, 1 ... n for the blocks, n + 1 after them.

    The blocks are the children of the one outermost `ModuleList` or `Sequential` that repeats a module type and
    holds a tenth of the parameters or more.

    Args:
        model: The model.
        judgements: Its parameters, in order.
        layer_of: Name -> layer index, instead of finding the blocks.

    Raises:
        ValueError: If the model has no such container, or several, or if `layer_of` returns a negative index.
    """
    if layer_of is not None:
        return [_checked(layer_of(judgement.name), judgement.name) for judgement in judgements]
    blocks = _only(model, judgements)
    inside = {id(module): index for index, block in enumerate(blocks) for module in block.modules()}
    indices: list[int] = []
    passed = False
    for judgement in judgements:
        block = next((inside[id(m)] for m in judgement.sites[0].enclosing if id(m) in inside), None)
        passed = passed or block is not None
        indices.append(block + 1 if block is not None else (len(blocks) + 1) * passed)
    return indices


def repeated_blocks(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield the children of every outermost container that repeats one module type."""
    children = [child for child in model._modules.values() if child is not None]
    repeats = len(children) > 1 and len({type(child) for child in children}) == 1
    if isinstance(model, (nn.ModuleList, nn.Sequential)) and repeats and any(True for _ in model.parameters()):
        yield children
        return
    for child in children:
        yield from repeated_blocks(child)


def _only(model: nn.Module, judgements: Sequence[Judgement]) -> list[nn.Module]:
    total = sum(_numel(judgement.parameter) for judgement in judgements)
    large = [
        blocks
        for blocks in repeated_blocks(model)
        if sum(_numel(p) for block in blocks for p in block.parameters()) >= _LEAST_SHARE * total
    ]
    if len(large) != 1:
        raise ValueError(
            f"`layer_decay` needs one sequence of repeated blocks to number the layers by, and the model has "
            f"{len(large)}. Pass `layer_of`, a function from a parameter's name to its layer index, 0 at the input."
        )
    return large[0]


def _numel(parameter: nn.Parameter) -> int:
    return 0 if is_lazy(parameter) else parameter.numel()


def _checked(index: int, name: str) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise ValueError(f"`layer_of` should return an integer of at least 0, got {index!r} for `{name}`.")
    return index
