"""Ordered rules: what each kind of selector matches, that the first wins, and what is refused."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from zoo import Outer, tied

from torchridge.training.parameters.classify import judge
from torchridge.training.parameters.selectors import match_rules


def model() -> nn.Module:
    return Outer(stem=nn.Linear(2, 2), blocks=nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8), nn.LayerNorm(4)))


def matched(net: nn.Module, selector: Any) -> set[str]:
    judgements = judge(net)
    values = match_rules(judgements, [(selector, 1)])
    return {j.name for j, value in zip(judgements, values, strict=True) if value == 1}


ATTENTION = {f"blocks.0.self_attn.{n}" for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("stem.weight", {"stem.weight"}),
        ("stem", {"stem.weight", "stem.bias"}),
        ("*.self_attn", ATTENTION),
        ("blocks.0.self_attn.*", ATTENTION),
        ("blocks.?", {n for n, _ in model().named_parameters() if n.startswith("blocks.")}),
        (re.compile(r"self_attn"), ATTENTION),
        (re.compile(r"^stem\.bias$"), {"stem.bias"}),
        (nn.MultiheadAttention, ATTENTION),
        (
            (nn.MultiheadAttention, nn.LayerNorm),
            ATTENTION
            | {f"blocks.{n}" for n in ("1.weight", "1.bias")}
            | {f"blocks.0.norm{i}.{n}" for i in (1, 2) for n in ("weight", "bias")},
        ),
        (lambda name, parameter, module: module.__class__ is nn.Linear and parameter.shape == (2, 2), {"stem.weight"}),
    ],
    ids=repr,
)
def test_selectors(selector: Any, expected: set[str]) -> None:
    assert matched(model(), selector) == expected


@pytest.mark.parametrize("selector", ["stem.weight", "_orig_mod.stem.weight", "stem"])
def test_names_match_with_and_without_the_prefixes_of_wrappers(selector: str) -> None:
    assert "stem.weight" in matched(torch.compile(model()), selector)  # type: ignore[arg-type]


def test_a_parametrized_weight_goes_by_its_plain_name_too() -> None:
    net = Outer(fc=nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)))
    assert matched(net, "fc.weight") == matched(net, "fc.parametrizations.weight.original")


def test_the_first_match_wins() -> None:
    judgements = judge(model())
    values = match_rules(judgements, {"*.self_attn": "a", nn.TransformerEncoderLayer: "b", "*": "c"})
    by_name = {j.name: v for j, v in zip(judgements, values, strict=True)}
    assert by_name["blocks.0.self_attn.in_proj_weight"] == "a"
    assert by_name["blocks.0.linear1.weight"] == "b"
    assert by_name["stem.weight"] == "c"


def test_no_rule_gives_none() -> None:
    assert match_rules(judge(nn.Linear(2, 2)), ()) == [None, None]


def test_rules_that_agree_on_a_tied_parameter_are_fine_also_as_tensors() -> None:
    strength = torch.tensor(0.5)
    assert match_rules(judge(tied()), {"embed": 1.0, "head": 1.0}) == [1.0]
    assert match_rules(judge(tied()), {"embed": strength, "head": strength.clone()})[0] is strength
    assert match_rules(judge(tied()), {"head.weight": 2.0}) == [2.0]


@pytest.mark.parametrize(
    ("net", "rules", "error", "pattern"),
    [
        (model(), {"encoder.*": 1}, ValueError, r"pattern 'encoder.\*', which matches no parameter.*`stem.weight`"),
        (model(), {nn.Conv2d: 1}, ValueError, r"the type Conv2d, which matches no parameter"),
        (model(), {re.compile("absent"): 1}, ValueError, r"the regular expression 'absent', which matches no"),
        (model(), [("*", 1), ("stem", 2)], ValueError, r"'stem', which is never reached.* Move it up, or drop it"),
        (
            tied(),
            {"embed.weight": 1, "head.weight": 2},
            ValueError,
            r"disagrees on one tied parameter: the pattern 'embed.weight' gives `embed.weight` 1, "
            r"the pattern 'head.weight' gives `head.weight` 2",
        ),
        (model(), 3, TypeError, r"`rules` should be a mapping or a list of \(selector, value\) pairs, got 3"),
        (model(), ["stem"], TypeError, r"should be a mapping or a list"),
        (model(), {3: 1}, TypeError, r"selector 3 of type int; expected a glob"),
        (model(), {int: 1}, TypeError, r"selector <class 'int'> of type type; expected a glob"),
    ],
)
def test_bad_input(net: nn.Module, rules: Any, error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        match_rules(judge(net), rules)
