"""Where a model holds its parameters: the name, the module each serves, and what stands in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from torchridge.training.parameters.classes import class_of, exported_classes
from torchridge.training.parameters.names import name_in_container

_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Their child is called `module`, a name that a model may also give to a part of its own: the parent's type decides.
_MODULE_WRAPPERS = frozenset({"DistributedDataParallel", "DataParallel", "AveragedModel", "DeepSpeedEngine"})
_FSDP1_SEGMENT = "_fsdp_wrapped_module"
_CONTAINERS = (nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True, eq=False)
class Site:
    """One place where a model holds a parameter; a tied parameter has several.

    Attributes:
        name: The name in the model's state dict, without what `torch.compile`, DDP, FSDP or an activation-checkpoint
            wrapper put in front.
        full_name: The name in `model.named_parameters()`, wrappers included.
        parameter: The parameter itself.
        owner: The module it serves: for a parametrized weight the parametrized module, not the list of
            parametrizations.
        owner_name: The owner's name, in the manner of `name`.
        leaf: What the owner calls it, e.g. `weight`, also if it is stored as `parametrizations.weight.original`.
        enclosing: The modules around it, from the model down to the owner.
        enclosing_names: Their names, in the manner of `name`.
        classes: Their classes, as they were written.
        parametrizations: What computes the owner's tensor from this parameter, if anything does.
        part: `original`, `original0`, ... under a parametrization, else empty.
        sharded_flat: Whether FSDP1 holds the parameter, which makes its shape meaningless.
    """

    name: str
    full_name: str
    parameter: nn.Parameter
    owner: nn.Module
    owner_name: str
    leaf: str
    enclosing: tuple[nn.Module, ...] = field(repr=False)
    enclosing_names: tuple[str, ...] = field(repr=False)
    classes: tuple[type, ...] = field(repr=False)
    parametrizations: tuple[nn.Module, ...] = ()
    part: str = ""
    sharded_flat: bool = False

    @property
    def short_name(self) -> str:
        """`fc.weight` for `fc.parametrizations.weight.original`; otherwise `name`."""
        return _join(self.owner_name, self.leaf) if self.part else self.name

    @property
    def served(self) -> type:
        """The class of the module that computes with it: not of the list or dictionary it is kept in."""
        return next((cls for cls in reversed(self.classes) if not issubclass(cls, _CONTAINERS)), self.classes[-1])


@dataclass(frozen=True)
class _Place:
    """How far the walk has come: names with and without wrappers, and the modules passed."""

    name: str = ""
    full_name: str = ""
    enclosing: tuple[nn.Module, ...] = ()
    enclosing_names: tuple[str, ...] = ("",)
    classes: tuple[type, ...] = ()
    sharded_flat: bool = False
    exported: Mapping[int, type] = field(default_factory=dict)

    def child(self, parent: nn.Module, segment: str, module: nn.Module) -> _Place:
        wrapped = segment in _WRAPPER_SEGMENTS or (segment == "module" and type(parent).__name__ in _MODULE_WRAPPERS)
        name = self.name if wrapped else _join(self.name, segment)
        return _Place(
            name,
            _join(self.full_name, segment),
            (*self.enclosing, module),
            (*self.enclosing_names, name),
            (*self.classes, self.exported.get(id(module)) or class_of(module)),
            self.sharded_flat or segment == _FSDP1_SEGMENT,
            self.exported,
        )


def sites(model: nn.Module) -> Iterator[Site]:
    """Yield every place of every parameter, in the order of `named_parameters(remove_duplicate=False)`."""
    yield from _walk(model, _Place(enclosing=(model,), classes=(class_of(model),), exported=exported_classes(model)))


def _walk(module: nn.Module, place: _Place) -> Iterator[Site]:
    for leaf, parameter in module._parameters.items():
        if parameter is not None:
            yield _site(module, place, leaf, parameter)
    for segment, child in module._modules.items():
        if child is None:
            continue
        if isinstance(child, parametrize.ParametrizationList):
            yield from _parametrized(child, place.child(module, segment, child), segment)
        else:
            yield from _walk(child, place.child(module, segment, child))


def _site(module: nn.Module, place: _Place, leaf: str, parameter: nn.Parameter) -> Site:
    return Site(
        name=_join(place.name, leaf),
        full_name=_join(place.full_name, leaf),
        parameter=parameter,
        owner=module,
        owner_name=place.name,
        leaf=_spoken_leaf(module, place, leaf),
        enclosing=place.enclosing,
        enclosing_names=place.enclosing_names,
        classes=place.classes,
        sharded_flat=place.sharded_flat,
    )


def _spoken_leaf(module: nn.Module, place: _Place, leaf: str) -> str:
    """What the parameter is called: not `0` in a `ParameterList`, nor `weight_orig` under pruning."""
    if isinstance(module, _CONTAINERS):
        container = next((part for part in reversed(place.name.split(".")) if not part.isdigit()), "")
        if isinstance(module, nn.ParameterList) or _is_adapter(place, container):
            return container or leaf
        return name_in_container(container, leaf)
    if leaf.endswith("_orig") and leaf[:-5] not in module._parameters:
        return leaf[:-5]  # torch.nn.utils.prune and the older spectral_norm
    return leaf


def _is_adapter(place: _Place, container: str) -> bool:
    """Whether PEFT keeps adapters in a container: its keys are what the adapters are called."""
    return any(container in (getattr(m, "adapter_layer_names", None) or ()) for m in place.enclosing[-2:-1])


def _parametrized(plist: parametrize.ParametrizationList, place: _Place, tensor_name: str) -> Iterator[Site]:
    """The originals of one parametrized tensor, then what the parametrizations hold of their own."""
    owner = place.enclosing[-3]  # the list lies in a ModuleDict called `parametrizations`, which lies in the owner
    owner_name = place.enclosing_names[-3]
    for part, parameter in plist._parameters.items():
        if parameter is not None:
            yield Site(
                name=_join(place.name, part),
                full_name=_join(place.full_name, part),
                parameter=parameter,
                owner=owner,
                owner_name=owner_name,
                leaf=tensor_name,
                enclosing=place.enclosing[:-2],
                enclosing_names=place.enclosing_names[:-2],
                classes=place.classes[:-2],
                parametrizations=tuple(plist),
                part=part,
                sharded_flat=place.sharded_flat,
            )
    for segment, child in plist._modules.items():
        if child is not None:
            yield from _walk(child, place.child(plist, segment, child))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
