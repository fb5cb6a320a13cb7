"""Weight-decay groups: strengths, learning rates, order, resuming, the report, and what is refused."""

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from zoo import ZOO, Holder, Outer, named, tied

from torchridge.exceptions import InertPenaltyWarning
from torchridge.training.parameters.classify import judge
from torchridge.training.parameters.layerwise import layer_indices
from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups
from torchridge.training.weight_decay.muon import muon_groups


class Transformer(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 8) for _ in range(depth))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)


def names_by_strength(groups: list[dict[str, Any]]) -> dict[float, set[str]]:
    found: dict[float, set[str]] = {}
    for group in groups:
        found.setdefault(group["weight_decay"], set()).update(group["param_names"])
    return found


def covers_exactly(model: nn.Module, groups: list[dict[str, Any]]) -> bool:
    grouped = [id(p) for group in groups for p in group["params"]]
    return sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("build", "decayed", "not_decayed"), [pytest.param(*c, id=n) for n, c in ZOO.items()])
def test_zoo_in_groups(build: Callable[[], nn.Module], decayed: set[str], not_decayed: set[str]) -> None:
    model = build()
    groups = weight_decay_groups(model, 0.1, inert="keep")
    assert names_by_strength(groups) == {s: n for s, n in ((0.1, decayed), (0.0, not_decayed)) if n}
    assert covers_exactly(model, groups)
    assert {row.name for row in explain_weight_decay(model) if row.decay} == decayed
    assert all(row.reason for row in explain_weight_decay(model))


LEAVES = st.sampled_from(
    [
        lambda: nn.Linear(2, 2),
        lambda: nn.Linear(2, 1, bias=False),
        lambda: nn.Conv1d(2, 3, 1),
        lambda: nn.LayerNorm((2, 2)),
        lambda: nn.BatchNorm1d(2),
        lambda: nn.Embedding(3, 2),
        lambda: nn.LSTM(2, 2),
        lambda: nn.MultiheadAttention(2, 1),
        lambda: Holder(free=(2, 2), bias=(3, 2)),
        lambda: named("OddRMSNorm", scale=(2, 2)),
        lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.Identity,
    ]
)
TREES = st.recursive(
    LEAVES.map(lambda make: make()),
    lambda children: st.dictionaries(st.sampled_from("abcde"), children, min_size=1, max_size=4).map(
        lambda named_children: Outer(**named_children)
    ),
    max_leaves=12,
)


@given(model=TREES, data=st.data())
@settings(max_examples=80, deadline=None)
def test_every_trainable_parameter_is_in_exactly_one_group(model: nn.Module, data: st.DataObject) -> None:
    parameters = list(model.parameters())
    for p in parameters:
        p.requires_grad_(data.draw(st.booleans()))
    holders = [m for m in model.modules() if isinstance(m, nn.Linear) and "weight" in m._parameters]
    for a, b in pairwise(holders):
        if a.weight.shape == b.weight.shape and data.draw(st.booleans()):
            b.weight = a.weight
    flags = [p.requires_grad for p in model.parameters()]
    if not any(flags):
        with pytest.raises(ValueError, match="no trainable parameter"):
            weight_decay_groups(model, 0.1, inert="keep")
        return
    groups = weight_decay_groups(model, 0.1, inert="keep")
    assert covers_exactly(model, groups)
    assert flags == [p.requires_grad for p in model.parameters()]
    table = explain_weight_decay(model)
    listed = {row.name: row.group for row in table}
    assert len(listed) == len(table) == len(list(model.parameters()))
    for group in groups:
        assert all(listed[name] == group["name"] for name in group["param_names"])


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad, torch.optim.NAdam])
def test_torch_optimizers_take_the_groups_and_resume(cls: type[torch.optim.Optimizer], device: torch.device) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Transformer().to(device)
        return model, cls(weight_decay_groups(model, 0.1, optimizer=cls), lr=0.1)  # type: ignore[call-arg]

    model, optimizer = build()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    other_model, other = build()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_model.load_state_dict(model.state_dict())
    for net, opt in ((model, optimizer), (other_model, other)):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
    for p, q in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_groups_are_the_same_whatever_the_wrapper() -> None:
    model = Transformer()
    plain = weight_decay_groups(model, 0.1)
    compiled = weight_decay_groups(torch.compile(model), 0.1)  # type: ignore[arg-type]
    assert [g["param_names"] for g in plain] == [g["param_names"] for g in compiled]
    assert [g["name"] for g in plain] == [g["name"] for g in compiled] == ["decay", "no_decay"]


def test_frozen_parameters_are_in_no_group_but_in_the_report() -> None:
    model = Transformer()
    model.blocks.requires_grad_(False)
    groups = weight_decay_groups(model, 0.1)
    assert covers_exactly(model, groups)
    row = explain_weight_decay(model)["blocks.0.linear1.weight"]
    assert (row.group, row.decay, row.weight_decay) == ("frozen", False, 0.0)
    assert row.reason.startswith("frozen; weight of Linear")


def test_lazy_parameters_keep_their_group_when_they_get_a_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.5, inert="keep"), lr=0.1)
    model(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    decayed, not_decayed = optimizer.param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 2)]
    assert [p.shape for p in not_decayed["params"]] == [(3,), (3,), (3,)]


def test_rules_set_strengths_on_weights_alone() -> None:
    groups = weight_decay_groups(Transformer(), 0.1, rules={"blocks.0": 0.2, nn.Embedding: 0.0})
    by_strength = names_by_strength(groups)
    assert by_strength[0.2] == {f"blocks.0.{n}.weight" for n in ("self_attn.out_proj", "linear1", "linear2")} | {
        "blocks.0.self_attn.in_proj_weight"
    }
    assert {"embed.weight", "blocks.0.linear1.bias", "blocks.0.norm1.weight"} <= by_strength[0.0]
    assert {"blocks.1.linear1.weight", "head.weight"} <= by_strength[0.1]


def test_a_rule_can_overrule_the_judgement_both_ways() -> None:
    rules = {"head.bias": {"weight_decay": 0.3, "decay": True}, "head.weight": {"decay": False}}
    table = explain_weight_decay(Transformer(), 0.1, rules=rules)
    assert (table["head.bias"].decay, table["head.bias"].weight_decay) == (True, 0.3)
    assert (table["head.weight"].decay, table["head.weight"].weight_decay) == (False, 0.0)
    assert "by the pattern 'head.bias'" in table["head.bias"].reason


def test_embeddings_can_be_left_out_unless_they_are_a_linear_layers_weight_too() -> None:
    assert not explain_weight_decay(Transformer(), embeddings=False)["embed.weight"].decay
    assert explain_weight_decay(Transformer(), embeddings=True)["embed.weight"].decay
    row = explain_weight_decay(tied(), embeddings=False)["head.weight"]
    assert row.decay and row.name == "embed.weight" and row.aliases == ("head.weight",)


def test_layerwise_learning_rates() -> None:
    groups = weight_decay_groups(Transformer(depth=3), 0.1, lr=1.0, layer_decay=0.5)
    lr = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert lr["embed.weight"] == 0.5**4
    assert [lr[f"blocks.{i}.linear1.bias"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert lr["norm.weight"] == lr["head.weight"] == 1.0
    assert [g["name"] for g in groups[:3]] == ["layer_0/decay", "layer_1/decay", "layer_1/no_decay"]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in groups]


def test_layer_of_numbers_the_layers_by_hand_and_rules_scale_on_top() -> None:
    model = Outer(encoder=nn.Linear(2, 2), decoder=nn.Linear(2, 2))
    groups = weight_decay_groups(
        model,
        0.1,
        lr=0.1,
        layer_decay=0.5,
        layer_of=lambda name: int(name.startswith("decoder")),
        rules={"decoder.bias": {"lr_scale": 3.0}},
    )
    lr = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert lr == pytest.approx(
        {"encoder.weight": 0.05, "encoder.bias": 0.05, "decoder.weight": 0.1, "decoder.bias": 0.3}
    )


def test_blocks_inside_blocks_count_as_one_layer() -> None:
    stages = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)])
    model = Outer(stem=nn.Linear(2, 2), stages=stages)
    assert sorted(set(layer_indices(model, judge(model)))) == [0, 1, 2]


def test_the_report_reads_as_text_and_json() -> None:
    table = explain_weight_decay(Outer(fc=nn.Linear(3, 2), norm=nn.LayerNorm(2)), 0.1)
    lines = str(table).splitlines()
    assert lines[0].split() == ["name", "shape", "group", "weight_decay", "lr_scale", "reason"]
    assert lines[1].split(maxsplit=5) == ["fc.weight", "2×3", "decay", "0.1", "1", "weight of Linear"]
    assert lines[-1] == "1 decayed, 3 not decayed, 0 frozen"
    rows = json.loads(table.to_json())
    assert [row["name"] for row in rows] == ["fc.weight", "fc.bias", "norm.weight", "norm.bias"]
    assert rows[0] == {
        "name": "fc.weight",
        "shape": [2, 3],
        "group": "decay",
        "decay": True,
        "weight_decay": 0.1,
        "lr_scale": 1.0,
        "reason": "weight of Linear",
        "aliases": [],
    }
    with pytest.raises(KeyError, match="no parameter `fc`"):
        table["fc"]


INERT = {
    "before batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "followed by BatchNorm2d"),
    "before instance norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.InstanceNorm1d(4)),
        "followed by InstanceNorm1d",
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 4)), "under spectral_norm"),
    "spectral norm, by hooks": (lambda: nn.utils.spectral_norm(nn.Linear(3, 4)), "under spectral_norm"),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(3, 4)), "under orthogonal"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 4)), "the direction of weight_norm"),
}


@pytest.mark.parametrize(("build", "cause"), INERT.values(), ids=INERT)
def test_decay_without_effect_warns(build: Callable[[], nn.Module], cause: str) -> None:
    with pytest.warns(InertPenaltyWarning, match=rf"\({cause}\) does not change what the model computes") as caught:
        weight_decay_groups(build(), 0.1)
    assert caught[-1].filename == __file__
    assert any(cause in row.reason for row in explain_weight_decay(build()))
    skipped = explain_weight_decay(build(), inert="skip")
    assert not any(row.decay for row in skipped)
    weight_decay_groups(build(), 0.0)


def test_scale_before_batch_norm_really_does_not_matter(device: torch.device) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-30)).to(device, torch.float64)
    x = torch.randn(8, 3, dtype=torch.float64, device=device)
    before = model(x)
    with torch.no_grad():
        model[0].weight *= 0.1
    torch.testing.assert_close(model(x), before)


def test_a_linear_layer_beside_a_norm_of_another_width_is_not_inert() -> None:
    weight_decay_groups(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(3)), 0.1)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_muon_gets_hidden_matrices_and_adamw_the_rest() -> None:
    model = Transformer()
    muon, adamw = muon_groups(model, 0.1, lr=0.02, adamw_lr=1e-3)
    hidden = {name for group in muon for name in group["param_names"]}
    assert hidden == {
        f"blocks.{i}.{n}"
        for i in (0, 1)
        for n in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    }
    assert covers_exactly(model, muon + adamw)
    optimizers = torch.optim.Muon(muon), torch.optim.AdamW(adamw)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for optimizer in optimizers:
        optimizer.step()
    assert {g["lr"] for g in muon} == {0.02} and {g["lr"] for g in adamw} == {1e-3}


def test_muon_head_by_selector_and_tied_embeddings_stay_with_adamw() -> None:
    model = Outer(a=nn.Linear(2, 2), b=nn.Linear(2, 2), c=nn.Linear(2, 2), conv=nn.Conv1d(2, 2, 3), t=tied())
    muon, _ = muon_groups(model, 0.1, head="a")
    assert [group["param_names"] for group in muon] == [["b.weight", "c.weight"]]


BAD_INPUT: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: weight_decay_groups(Transformer(), -0.1), ValueError, r"`weight_decay` should be .* at least 0, got -0.1"),
    (lambda: weight_decay_groups(Transformer(), float("nan")), ValueError, r"`weight_decay` should be .* got nan"),
    (lambda: weight_decay_groups(Transformer(), "0.1x"), TypeError, r"`weight_decay` should be a number, got str"),  # type: ignore[arg-type]
    (lambda: weight_decay_groups(Transformer(), "0.1"), TypeError, r"`weight_decay` should be a number, got str '0.1'"),  # type: ignore[arg-type]
    (lambda: weight_decay_groups(Transformer(), True), TypeError, r"`weight_decay` should be a number, got bool True"),
    (lambda: weight_decay_groups(Transformer(), torch.tensor(True)), TypeError, r"should be a number, got Tensor"),  # type: ignore[arg-type]
    (
        lambda: weight_decay_groups(Transformer(), 0.1, rules={"fc1.*": "0.1"}),
        TypeError,
        r"should be a number, got str",
    ),
    (lambda: weight_decay_groups(Transformer().parameters(), 0.1), TypeError, r"`model` should be a torch.nn.Module"),  # type: ignore[arg-type]
    (lambda: weight_decay_groups(nn.Identity(), 0.1), ValueError, r"`model` has no trainable parameter"),
    (lambda: weight_decay_groups(Transformer(), 0.1, inert="drop"), ValueError, r"`inert` should be one of 'warn'"),  # type: ignore[arg-type]
    (lambda: weight_decay_groups(Transformer(), 0.1, rules={"fc.*": 0.1}), ValueError, r"'fc.\*', which matches no"),
    (lambda: weight_decay_groups(Transformer(), 0.1, rules={"head": -1.0}), ValueError, r"rules\['head'\]` should be"),
    (
        lambda: weight_decay_groups(Transformer(), 0.1, rules={"head": {"wd": 1.0}}),
        ValueError,
        r"`rules\['head'\]` should be one of 'decay', 'lr_scale', 'weight_decay', got 'wd'",
    ),
    (
        lambda: weight_decay_groups(Transformer(), 0.1, rules={"head": {"decay": 1.0}}),
        TypeError,
        r"`rules\['head'\]\['decay'\]` should be a bool, got 1.0",
    ),
    (
        lambda: weight_decay_groups(Transformer(), 0.1, rules={"*.bias": 0.2}),
        ValueError,
        r"nothing it applies to is a weight: .*To decay it all the same, write .*\"decay\": True",
    ),
    (
        lambda: weight_decay_groups(tied(), 0.1, rules={"embed.weight": 0.1, "head.weight": 0.2}),
        ValueError,
        r"disagrees on one tied parameter: .*`embed.weight`.*`head.weight`",
    ),
    (lambda: weight_decay_groups(Transformer(), 0.1, layer_decay=0.5), ValueError, r"`lr` is needed to scale"),
    (
        lambda: weight_decay_groups(Transformer(), 0.1, layer_decay=2.0),
        ValueError,
        r"`layer_decay` should be at most 1",
    ),
    (
        lambda: weight_decay_groups(nn.Linear(2, 2), 0.1, lr=1.0, layer_decay=0.5),
        ValueError,
        r"`layer_decay` needs one sequence of repeated blocks .* the model has 0. Pass `layer_of`",
    ),
    (
        lambda: weight_decay_groups(nn.Linear(2, 2), 0.1, lr=1.0, layer_decay=0.5, layer_of=lambda name: -1),
        ValueError,
        r"`layer_of` should return an integer of at least 0, got -1 for `weight`",
    ),
    (lambda: muon_groups(nn.Linear(2, 2), 0.1), ValueError, r"no hidden matrix for Muon"),
    (
        lambda: muon_groups(nn.Sequential(nn.LazyLinear(2), nn.LazyLinear(2)), 0.1),
        ValueError,
        r"`0.weight` is a lazy parameter .* Run one forward pass first",
    ),
]


@pytest.mark.parametrize(("call", "error", "pattern"), BAD_INPUT)
def test_bad_input(call: Callable[[], object], error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        call()
