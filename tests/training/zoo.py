"""Modules with awkward parameters, and by hand which of them are weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


class Holder(nn.Module):
    """A module of a type that tells nothing, with the given parameters."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.ones(shape)))


def named(class_name: str, **shapes: tuple[int, ...]) -> nn.Module:
    """A module whose class is called `class_name`."""
    cls = type(class_name, (Holder,), {"__module__": __name__})
    globals()[class_name] = cls  # so that it can be pickled and copied
    module = cls(**shapes)
    assert isinstance(module, nn.Module)
    return module


class Outer(nn.Module):
    """Modules under the given names."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class Declares(nn.Module):
    """Says itself what is not decayed, as timm's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.ones(3, 4))
        self.mix = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.ones(3, 4))
        self.rel_pos_net = nn.Linear(4, 4)

    def no_weight_decay(self) -> set[str]:
        return {"queries", "mix.weight", "absent"}

    def no_weight_decay_keywords(self) -> set[str]:
        return {"rel_pos"}


def marked() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.weight._no_weight_decay = True  # type: ignore[attr-defined]
    return layer


def tied() -> nn.Module:
    model = Outer(embed=nn.Embedding(5, 4), head=nn.Linear(4, 5, bias=False))
    model.head.weight = model.embed.weight
    return model


def parameter_lists() -> nn.Module:
    model = nn.Module()
    model.biases = nn.ParameterList([torch.ones(2, 3), torch.ones(2, 3)])
    model.weights = nn.ParameterList([torch.ones(2, 3)])
    model.by_key = nn.ParameterDict({"bias": torch.ones(2, 3), "weight": torch.ones(2, 3)})
    return model


class LoraParametrization(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.ones(2, 4))
        self.up = nn.Parameter(torch.ones(4, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def lora() -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", LoraParametrization())
    return layer


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.l1_unstructured(layer, "bias", 0.5)
    return layer


def state_space() -> nn.Module:
    return named("MambaMixer", A_log=(8, 16), D=(8, 2), dt_bias=(8,), x_weight=(4, 8))


Case = tuple[Callable[[], nn.Module], set[str], set[str]]

# name -> how to build it, the names that are decayed, the names that are not. Written by hand.
ZOO: dict[str, Case] = {
    "linear": (lambda: nn.Linear(4, 3), {"weight"}, {"bias"}),
    "linear to one output": (lambda: nn.Linear(4, 1), {"weight"}, {"bias"}),
    "linear from one input": (lambda: nn.Linear(1, 1), {"weight"}, {"bias"}),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), {"weight"}, {"bias"}),
    "depthwise convolution": (lambda: nn.Conv1d(1, 4, 1), {"weight"}, {"bias"}),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 4, 2), {"weight"}, {"bias"}),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {"in_proj_weight", "out_proj.weight"},
        {"in_proj_bias", "bias_k", "bias_v", "out_proj.bias"},
    ),
    "attention with other widths": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
        {"in_proj_bias", "out_proj.bias"},
    ),
    "lstm": (
        lambda: nn.LSTM(2, 4, bidirectional=True, proj_size=3),
        {f"weight_{k}_l0{r}" for k in ("ih", "hh", "hr") for r in ("", "_reverse")},
        {f"bias_{k}_l0{r}" for k in ("ih", "hh") for r in ("", "_reverse")},
    ),
    "gru of width one": (lambda: nn.GRU(1, 1), {"weight_ih_l0", "weight_hh_l0"}, {"bias_ih_l0", "bias_hh_l0"}),
    "lstm cell": (lambda: nn.LSTMCell(2, 3), {"weight_ih", "weight_hh"}, {"bias_ih", "bias_hh"}),
    "embedding": (lambda: nn.Embedding(5, 3), {"weight"}, set()),
    "embedding bag": (lambda: nn.EmbeddingBag(5, 3), {"weight"}, set()),
    "layer norm over two axes": (lambda: nn.LayerNorm((4, 5)), set(), {"weight", "bias"}),
    "batch norm": (lambda: nn.BatchNorm2d(3), set(), {"weight", "bias"}),
    "sync batch norm": (lambda: nn.SyncBatchNorm(3), set(), {"weight", "bias"}),
    "instance norm": (lambda: nn.InstanceNorm1d(3, affine=True), set(), {"weight", "bias"}),
    "group norm": (lambda: nn.GroupNorm(1, 3), set(), {"weight", "bias"}),
    "rms norm": (lambda: nn.RMSNorm((4, 5)), set(), {"weight"}),
    "prelu": (lambda: nn.PReLU(3), set(), {"weight"}),
    "custom rms norm": (lambda: named("LlamaRMSNorm", weight=(4,)), set(), {"weight"}),
    "custom rms norm over two axes": (lambda: named("GatedRMSNormFp32", weight=(4, 5)), set(), {"weight"}),
    "custom layer norm": (lambda: named("LayerNorm2d", weight=(4, 1), bias=(4, 1)), set(), {"weight", "bias"}),
    "rms norm by no such name": (lambda: named("Rescale", weight=(1, 1, 4)), set(), {"weight"}),
    "rms norm with a gain": (lambda: named("Unit", g=(4,), gain=(2, 4)), set(), {"g", "gain"}),
    "attention with its norm inside": (
        lambda: named("QKNormAttention", weight=(4, 4), q_norm=(2, 4), q_norm_weight=(2, 4)),
        {"weight"},
        {"q_norm", "q_norm_weight"},
    ),
    "layer scale": (lambda: named("Block", layer_scale=(1, 4, 1, 1)), set(), {"layer_scale"}),
    "layer scale by no such name": (lambda: named("Block", mixing=(1, 4, 1, 1)), set(), {"mixing"}),
    "layer scale per branch": (lambda: named("Block", gamma_1=(2, 4), ls=(4,)), set(), {"gamma_1", "ls"}),
    "global response norm": (
        lambda: named("ConvNextV2GRN", gamma=(1, 1, 1, 4), beta=(1, 1, 1, 4)),
        set(),
        {"gamma", "beta"},
    ),
    "names that only sound like bias or norm": (
        lambda: Outer(debiased_proj=nn.Linear(3, 3), normalizer_proj=nn.Linear(3, 1), norm_head=nn.Linear(3, 3)),
        {"debiased_proj.weight", "normalizer_proj.weight", "norm_head.weight"},
        {"debiased_proj.bias", "normalizer_proj.bias", "norm_head.bias"},
    ),
    "the same as leaves": (
        lambda: named("Head", debiased_proj=(3, 3), normalizer_weight=(3, 3), bias_proj=(3, 3)),
        {"debiased_proj", "normalizer_weight", "bias_proj"},
        set(),
    ),
    "transposed linear of transformers": (lambda: named("Conv1D", weight=(4, 1), bias=(1,)), {"weight"}, {"bias"}),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
        {"parametrizations.weight.original1"},
        {"parametrizations.weight.original0", "bias"},
    ),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
        {"parametrizations.weight.original"},
        {"bias"},
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(4, 3)),
        {"parametrizations.weight.original"},
        {"bias"},
    ),
    "a parametrization with parameters": (
        lora,
        {f"parametrizations.weight.{p}" for p in ("original", "0.down", "0.up")},
        {"bias"},
    ),
    "pruned": (pruned, {"weight_orig"}, {"bias_orig"}),
    "spectral norm, by hooks": (lambda: nn.utils.spectral_norm(nn.Linear(4, 3)), {"weight_orig"}, {"bias"}),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyConv2d(3, 2)),
        {"0.weight", "2.weight"},
        {"0.bias", "1.weight", "1.bias", "2.bias"},
    ),
    "state space": (state_space, {"x_weight"}, {"A_log", "D", "dt_bias"}),
    "a dictionary called D": (lambda: named("SparseCoder", D=(8, 4)), {"D"}, set()),
    "mixture of experts": (
        lambda: named(
            "Experts",
            w1=(2, 3, 4),
            b1=(2, 4),
            gate_up_proj=(2, 3, 8),
            gate_up_proj_bias=(2, 8),
            bias=(2, 4),
            b_out=(2, 3),
        ),
        {"w1", "gate_up_proj"},
        {"b1", "gate_up_proj_bias", "bias", "b_out"},
    ),
    "tokens and positions": (
        lambda: named(
            "ViT",
            cls_token=(1, 1, 4),
            register_tokens=(1, 4, 4),
            pos_embed1=(1, 9, 4),
            position_embedding_table=(9, 4),
            positional_encoding=(9, 4),
            rel_pos_h=(7, 4),
            pos_proj=(4, 4),
        ),
        {"pos_proj"},
        {"cls_token", "register_tokens", "pos_embed1", "position_embedding_table", "positional_encoding", "rel_pos_h"},
    ),
    "relative position bias": (
        lambda: named("WindowAttention", relative_position_bias_table=(9, 2), logit_scale=(2, 1, 1)),
        set(),
        {"relative_position_bias_table", "logit_scale"},
    ),
    "lists of parameters": (
        parameter_lists,
        {"weights.0", "by_key.weight"},
        {"biases.0", "biases.1", "by_key.bias"},
    ),
    "complex": (
        lambda: nn.Linear(3, 2, dtype=torch.complex64),
        {"weight"},
        {"bias"},
    ),
    "tied": (tied, {"embed.weight"}, set()),
    "marked on the parameter": (marked, set(), {"weight", "bias"}),
    "declared by the model, deep inside": (
        lambda: Outer(backbone=Outer(stem=Declares())),
        {"backbone.stem.table"},
        {f"backbone.stem.{n}" for n in ("queries", "mix.weight", "mix.bias", "rel_pos_net.weight", "rel_pos_net.bias")},
    ),
}
