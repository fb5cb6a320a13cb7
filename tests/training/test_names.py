"""What names say, by hand: containers, tables in embeddings, bare tables, recurrences; and types that were lost."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import Holder, Outer, named

from torchridge.training.parameters.classify import judge
from torchridge.training.penalties.attach import penalty, regularize
from torchridge.training.penalties.regularizers import L2
from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups
from torchridge.training.weight_decay.muon import muon_groups


def kinds(model: nn.Module) -> dict[str, str]:
    return {j.name: j.kind for j in judge(model)}


def kind(leaf: str, *shape: int) -> str:
    (found,) = kinds(Holder(**{leaf: shape or (5, 4)})).values()
    return found


def listed(text: str) -> list[str]:
    return text.split()


TOKENS = listed("""
    pos_embed wpe pos position positions pe rel_pos abs_pos query_pos pos_emb positional_encoding registers register
    register_tokens query query_tokens cls cls_token cls_embedding mask_token dist_token class_embedding embed_positions
""")
TABLES = listed("""
    token_embedding tok_emb wte time_embed level_embed latents queries W_E embed_tokens word_embeddings type_embed
    codebook query_embed prompt soft_prompts label_emb token_embedding_table
""")
EXEMPT = listed("""
    A_log log_A A_logs inv_A_real A_imag log_dt inv_dt theta_log nu_log gamma_log log_step Lambda_re time_faaaa
    time_first time_decay time_mix_key time_maa_x bonus r_k log_std
""")
WEIGHTS = listed("""
    weight w1 W kernel lora_A A B in_proj pos_proj query_proj embed_proj unembed_w time_decay_w1 time_maa_w2 up_proj
    attention_weights factors U V free token_mixing_kernel
""")


@pytest.mark.parametrize(
    ("leaves", "expected"), [(TOKENS, "token"), (TABLES, "embedding"), (EXEMPT, "exempt"), (WEIGHTS, "weight")]
)
def test_bare_parameters(leaves: list[str], expected: str) -> None:
    assert {leaf: kind(leaf) for leaf in leaves} == dict.fromkeys(leaves, expected)


def test_bare_tables_follow_embeddings_and_keep_out_of_muon() -> None:
    model = Outer(body=Holder(**dict.fromkeys(TABLES, (5, 4))), fc=nn.Linear(4, 4), head=nn.Linear(4, 2))
    assert all(row.decay for row in explain_weight_decay(model) if row.name.startswith("body"))
    without = explain_weight_decay(model, embeddings=False)
    assert not any(row.decay for row in without if row.name.startswith("body"))
    muon, _ = muon_groups(model, 0.1)
    assert [group["param_names"] for group in muon] == [["fc.weight"]]
    assert set(penalties_of(regularize(copy.deepcopy(model), L2(0.1), embeddings=False))) == {"fc", "head"}


def penalties_of(model: nn.Module) -> set[str]:
    return {name.partition(".")[0] for name, m in model.named_modules() if getattr(m, "_torchridge_attachment", None)}


def test_the_matrices_of_an_attention_are_no_tokens() -> None:
    attention = Holder(query=(4, 4), key=(4, 4), value=(4, 4))
    assert set(kinds(attention).values()) == {"weight"}


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        matrix = {"rgb": torch.ones(3, 4)}
        adapters = {name: torch.ones(3, 4) for name in ("default", "b", "alpha", "gamma", "norm", "tokens", "query")}
        self.pos_embeds = nn.ParameterDict(matrix)
        self.biases = nn.ParameterDict(matrix)
        self.task_embeddings = nn.ParameterDict(adapters)
        self.factors = nn.ParameterDict({"b": torch.ones(3, 4), "a": torch.ones(3, 4)})
        self.lora_embedding_A = nn.ParameterDict(adapters)
        self.by_key = nn.ParameterDict({"bias": torch.ones(2, 3), "layer_scale": torch.ones(2, 3)})
        self.params = nn.ParameterDict({"gamma": torch.ones(2, 3), "pos": torch.ones(2, 3)})
        self.stages = nn.ModuleList([nn.ParameterDict(matrix), nn.ParameterList([torch.ones(2, 3)])])
        self.gains = nn.ModuleList([nn.ParameterList([torch.ones(2, 3)])])
        self.norms = nn.ModuleDict({"x": named("SplitLayerNorm")})
        self.norms["x"].per_task = nn.ParameterDict(matrix)


def test_the_container_names_a_parameter_before_its_key() -> None:
    found = kinds(Containers())
    assert found["pos_embeds.rgb"] == "token"
    assert found["biases.rgb"] == "bias"
    assert {k for n, k in found.items() if n.startswith("task_embeddings")} == {"embedding"}
    assert {k for n, k in found.items() if n.startswith(("factors", "lora_embedding_A", "stages"))} == {"weight"}
    assert (found["by_key.bias"], found["by_key.layer_scale"]) == ("bias", "scale")
    assert (found["params.gamma"], found["params.pos"]) == ("scale", "token")
    assert found["gains.0.0"] == "scale"
    assert found["norms.x.per_task.rgb"] == "norm"


def test_adapters_of_peft_are_named_by_their_users() -> None:
    peft = pytest.importorskip("peft", reason="peft is not among the test requirements")
    for name in ("default", "b", "alpha", "my_alpha", "norm", "tokens", "task_bias"):
        config = peft.LoraConfig(target_modules=["0", "1"], r=2)
        model = peft.get_peft_model(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4)), config, adapter_name=name)
        adapters = {j.name: j.decay for j in judge(model) if "lora_" in j.name}
        assert len(adapters) == 4 and all(adapters.values()), adapters


class T5Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, 8)
        self.scale = nn.Embedding(5, 8)
        self.shift = nn.Embedding(5, 8)
        self.gamma_embed = nn.Embedding(5, 8)
        self.user_bias = nn.EmbeddingBag(5, 1)
        self.words = nn.Embedding(5, 8)
        self.wpe = nn.Embedding(5, 8)
        self.biases = nn.ModuleList([nn.Embedding(5, 8)])
        self.ada = named("AdaLayerNorm")
        self.ada.emb = nn.Embedding(5, 8)
        self.rel = named("RelativePositionBias")
        self.rel.table = nn.Embedding(5, 8)


def test_biases_and_gains_that_are_looked_up_are_not_decayed() -> None:
    table = explain_weight_decay(T5Attention())
    assert [row.name for row in table if row.decay] == ["words.weight", "wpe.weight"]
    assert not any(row.decay for row in explain_weight_decay(T5Attention(), embeddings=False))
    assert table["relative_attention_bias.weight"].reason == (
        "table of Embedding that is named `relative_attention_bias`, a bias"
    )


class TimeMix(nn.Module):
    """(heads, size of a head) under a name that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.head_size = 3, 4
        self.faa = nn.Parameter(torch.ones(3, 4))
        self.faa_weight = nn.Parameter(torch.ones(3, 4))
        self.other = nn.Parameter(torch.ones(4, 3))


def test_a_vector_for_each_head() -> None:
    assert kinds(TimeMix()) == {"faa": "vector", "faa_weight": "weight", "other": "weight"}


def test_state_space_kernels() -> None:
    kernel = Holder(
        C=(1, 4, 8, 2), log_dt=(4,), B=(1, 8, 2), P=(1, 2, 8, 2), inv_A_real=(2, 8), A_imag=(2, 8), D=(1, 4)
    )
    assert {name for name, k in kinds(kernel).items() if k == "weight"} == {"C"}
    assert kinds(Holder(A=(4, 2), B=(2, 4), D=(4, 4))) == {"A": "weight", "B": "weight", "D": "weight"}


def test_what_a_parameter_asks_for_itself() -> None:
    layer = nn.Linear(4, 4)
    layer.weight._optim = {"weight_decay": 0.0, "lr": 0.001}  # type: ignore[attr-defined]
    (row, _) = explain_weight_decay(layer, 0.1)
    assert (row.decay, row.reason) == (False, "`_optim` on the parameter has weight_decay 0")
    layer.weight._optim = {"weight_decay": 0.03}  # type: ignore[attr-defined]
    assert [g["weight_decay"] for g in weight_decay_groups(layer, 0.1)] == [0.03, 0.0]
    assert [g["weight_decay"] for g in weight_decay_groups(layer, 0.1, rules={"weight": 0.2})] == [0.2, 0.0]
    layer.weight._optim = {"lr": 0.001}  # type: ignore[attr-defined]
    assert [g["weight_decay"] for g in weight_decay_groups(layer, 0.1)] == [0.1, 0.0]


class Typed(nn.Module):
    """Only its types tell what is a weight here."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.LayerNorm((2, 3))
        self.l = nn.Linear(3, 1)
        self.act = nn.PReLU(3)
        self.inner = Outer(g=nn.GroupNorm(1, 2), e=nn.Linear(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.e(self.l(self.n(x)))


LOST: dict[str, Callable[[nn.Module], Any]] = {
    "script": torch.jit.script,
    "trace": lambda m: torch.jit.trace(m, torch.randn(5, 2, 3)),
    "export": lambda m: torch.export.export(m, (torch.randn(5, 2, 3),)).module(),
    "unflatten": lambda m: torch.export.unflatten(torch.export.export(m, (torch.randn(5, 2, 3),))),
    "fx": torch.fx.symbolic_trace,
}


@pytest.mark.parametrize("convert", LOST.values(), ids=LOST)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_types_that_were_replaced_are_found_again(convert: Callable[[nn.Module], Any]) -> None:
    bare = Typed()
    bare.inner.g = nn.Identity()
    bare.act = nn.Identity()
    try:
        converted = convert(bare)
    except RuntimeError as error:
        pytest.skip(f"torch itself cannot convert it: {error}")
    got = {j.name: j.kind for j in judge(converted)}
    assert got == {
        "n.weight": "norm",
        "n.bias": "norm",
        "l.weight": "weight",
        "l.bias": "bias",
        "inner.e.weight": "weight",
        "inner.e.bias": "bias",
    }


def test_a_tie_that_breaks_leaves_no_copy_unpenalized() -> None:
    with torch.device("meta"):
        model = Outer(embed=nn.Embedding(4, 1), head=nn.Linear(1, 4, bias=False))
        model.head.weight = model.embed.weight
    regularize(model, L2(0.5))
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.ones_(p)
    assert len(list(model.parameters())) == 2
    assert penalty(model).item() == 4.0
    model.head.weight = model.embed.weight
    assert penalty(model).item() == 2.0


def test_a_tie_of_parametrized_weights_counts_once() -> None:
    model = Outer(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.b.weight = model.a.weight
    for layer in (model.a, model.b):
        nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity(), unsafe=True)
    original = model.a.parametrizations.weight.original
    model.b.parametrizations.weight.original = original
    regularize(model, L2(0.5))
    torch.testing.assert_close(penalty(model), 0.5 * original.square().sum())
