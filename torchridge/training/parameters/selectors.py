"""Ordered rules over the parameters of a model: selector -> value, the first match wins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from torchridge.training.parameters.classify import Judgement
from torchridge.training.parameters.sites import Site

Predicate: TypeAlias = Callable[[str, nn.Parameter, nn.Module], bool]
Selector: TypeAlias = "str | re.Pattern[str] | type[nn.Module] | tuple[type[nn.Module], ...] | Predicate"
V = TypeVar("V")
Rules: TypeAlias = "Mapping[Selector, V] | Sequence[tuple[Selector, V]]"


def match_rules(judgements: Sequence[Judgement], rules: Rules[V], *, argument: str = "rules") -> list[V | None]:
    """Find, for each parameter, the value of the first rule that matches it.

    A selector is one of:

    * a glob for the name of the parameter or of a module around it (`"head.weight"`, `"head"`, `"blocks.*.attn"`;
      `*` spans dots),
    * a compiled regular expression, searched in the parameter's name,
    * a module type or a tuple of them, met by the module that the parameter serves or by one around it,
    * a predicate `(name, parameter, module) -> bool`.

    Names are those of the bare model, without the prefixes of wrappers; those with the prefixes match too.

    Args:
        judgements: What :func:`~torchridge.training.parameters.classify.judge` returned.
        rules: A mapping, or pairs, from selector to value, in order.
        argument: What the caller calls `rules`, for the errors.

    Returns:
        One value a judgement, None if no rule matches.

    Raises:
        TypeError: If `rules` or a selector is of another type.
        ValueError: If a rule matches no parameter, is never reached because earlier rules take all it matches, or if
            two rules give different values to the names of one tied parameter.

    Cost: O(parameters × rules).
    """
    pairs = rule_pairs(rules, argument)
    matched, reached = [False] * len(pairs), [False] * len(pairs)
    values = [_value(judgement, pairs, matched, reached, argument) for judgement in judgements]
    for index, (selector, _) in enumerate(pairs):
        if not matched[index]:
            raise ValueError(
                f"`{argument}` has {spell(selector)}, which matches no parameter; expected every rule to match one. "
                f"{_examples(judgements)}"
            )
        if not reached[index]:
            raise ValueError(
                f"`{argument}` has {spell(selector)}, which is never reached: earlier rules take every parameter it "
                f"matches, and the first match wins. Move it up, or drop it."
            )
    return values


def rule_pairs(rules: Rules[V], argument: str = "rules") -> list[tuple[Selector, V]]:
    """Return `rules` as pairs, raising unless every selector is of a known type."""
    if isinstance(rules, Mapping):
        pairs = list(rules.items())
    elif isinstance(rules, Sequence) and all(isinstance(rule, tuple) and len(rule) == 2 for rule in rules):
        pairs = list(rules)
    else:
        raise TypeError(
            f"`{argument}` should be a mapping or a list of (selector, value) pairs, got {rules!r}. "
            f'Write e.g. `{argument}=[("encoder.*", 0.1), (nn.Embedding, 0.0)]`.'
        )
    for selector, _ in pairs:
        if not _is_selector(selector):
            raise TypeError(
                f"`{argument}` has the selector {selector!r} of type {type(selector).__name__}; expected a glob, a "
                f"compiled regular expression, a module type, or a predicate (name, parameter, module) -> bool."
            )
    return pairs


def matches(selector: Selector, site: Site) -> bool:
    """Whether a selector holds for one place of a parameter."""
    if isinstance(selector, str):
        return any(fnmatchcase(name, selector) for name in (*_names(site), *site.enclosing_names[1:]))
    if isinstance(selector, re.Pattern):
        return any(selector.search(name) for name in _names(site))
    if isinstance(selector, (type, tuple)):
        return any(isinstance(module, selector) for module in site.enclosing)
    return bool(selector(site.name, site.parameter, site.owner))


def _value(
    judgement: Judgement, pairs: list[tuple[Selector, V]], matched: list[bool], reached: list[bool], argument: str
) -> V | None:
    """The value for one parameter, noting which rules matched it and which one won."""
    winners: dict[str, int] = {}
    for site in judgement.sites:
        hits = [index for index, (selector, _) in enumerate(pairs) if matches(selector, site)]
        for index in hits:
            matched[index] = True
        if hits:
            winners[site.name] = hits[0]
            reached[hits[0]] = True
    chosen = list(winners.items())
    for name, index in chosen[1:]:
        first_name, first = chosen[0]
        if not _same(pairs[index][1], pairs[first][1]):
            raise ValueError(
                f"`{argument}` disagrees on one tied parameter: {spell(pairs[first][0])} gives `{first_name}` "
                f"{pairs[first][1]!r}, {spell(pairs[index][0])} gives `{name}` {pairs[index][1]!r}; expected one "
                f"value. Put a rule that matches both names in front of them."
            )
    return pairs[chosen[0][1]][1] if chosen else None


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or torch.equal(a, b)
    return a is b or bool(a == b)


def _names(site: Site) -> tuple[str, ...]:
    return tuple(dict.fromkeys((site.name, site.short_name, site.full_name)))


def _is_selector(selector: object) -> bool:
    if isinstance(selector, type):
        return issubclass(selector, nn.Module)
    if isinstance(selector, tuple):
        return bool(selector) and all(isinstance(t, type) and issubclass(t, nn.Module) for t in selector)
    return isinstance(selector, (str, re.Pattern)) or callable(selector)


def spell(selector: Selector) -> str:
    """Name a selector in an error or a report."""
    if isinstance(selector, re.Pattern):
        return f"the regular expression {selector.pattern!r}"
    if isinstance(selector, str):
        return f"the pattern {selector!r}"
    if isinstance(selector, tuple):
        return f"the types ({', '.join(t.__name__ for t in selector)})"
    return f"{'the type' if isinstance(selector, type) else 'the predicate'} {getattr(selector, '__name__', selector)}"


def _examples(judgements: Sequence[Judgement]) -> str:
    names = [f"`{judgement.name}`" for judgement in judgements[:3]]
    return f"The names here are {', '.join(names)}, ..." if names else "The model has no parameters."
