"""What a name says: the vocabulary by which classes and parameters are called."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Kind = Literal["weight", "embedding", "bias", "norm", "scale", "token", "vector", "exempt"]

_NUMBER = re.compile(r"\d+[dD]?")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_NORM_CLASS = re.compile("norm|normalization|rmsnorm|layernorm|batchnorm|groupnorm|ln|bn|grn")
_PROJECTION_CLASS = re.compile("linear|dense|conv")
_WEIGHTED_CLASS = re.compile(
    "linear|dense|conv|mlp|ffn|embeddings?|attention|attn|blocks?|heads?|proj|projection|experts?|moe|"
    "encoder|decoder|model|net|network|former|transformer"
)

_MATRIX_NOUN = re.compile("proj|projection|kernel|matrix|linear|mlp|net|w")
_SUFFIX = re.compile("weights?|param|params|parameters?|table")
_BIAS = re.compile("bias|biases")
_POSITION = re.compile("pos|positions?|positional|wpe|pe")
_ENCODING = re.compile("embs?|embeds?|embeddings?|enc|encodings?")
_TABLE = re.compile("embs?|embeds?|embeddings?|wte|latents?|queries|codebooks?|prompts?")
_NOUNS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile("norm|layernorm|rmsnorm|ln|bn"), "norm"),
    (re.compile("alphas?|gammas?|betas?|gains?|scales?|layerscale|shift|temperature"), "scale"),
    (re.compile("tokens?|registers?|cls|query"), "token"),
    (_POSITION, "token"),
    (_TABLE, "embedding"),
)
_LEAVES: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"b\d*|b_.+"), "bias"),
    (re.compile(r"(layer|logit|skip|res)_scale.*|scale_shift_table|gamma_(?!log).+|lambda_.+"), "scale"),
    (re.compile(r"rel(ative)?_pos_.+|class_embedding|(cls|mask|dist)_(emb|embed|embedding)"), "token"),
    (re.compile(r"W_E|embed(ding)?s?_tokens?"), "embedding"),
    # State-space models exponentiate these: https://github.com/state-spaces/mamba and /s4 mark them by hand.
    (re.compile(r"(inv_|log_)?(A|[Ll]ambda|nu|theta)_(real|imag|re|im)|inv_dt"), "exempt"),
    # RWKV's bonus, decay and shift for each head or channel, but not its low-rank matrices `time_decay_w1`.
    (re.compile(r"time_(f[a-z]+|first|decay|mix|mix_[a-z]+|maa|maa_[a-z]+|shift)|bonus|r_k"), "exempt"),
)
# What generic containers are called: there the key of a parameter is its name.
_GENERIC = re.compile("params?|parameters?|dict|values?|extras?|learned|learnable|trainable|tensors?|others?|misc")


def words(name: str) -> list[str]:
    """The lower-case words of a snake_case or CamelCase name, without numbers: `LayerNorm2d` is layer, norm."""
    return [word.lower() for word in _WORD.findall(_NUMBER.sub("_", name))]


@lru_cache(maxsize=4096)
def is_norm_class(name: str) -> bool:
    """Whether a class is called a normalization: `ConvNextV2GRN` is one, `NormAttention` is an attention.

    Example:
        >>> is_norm_class("LlamaRMSNorm"), is_norm_class("NormAttention")
        (True, False)
    """
    for word in reversed(words(name)):
        if _NORM_CLASS.fullmatch(word) or _WEIGHTED_CLASS.fullmatch(word):
            return _NORM_CLASS.fullmatch(word) is not None
    return False


def is_projection_class(name: str) -> bool:
    """Whether a class is called a linear map or a convolution, such as `Conv1D` of transformers."""
    return any(_PROJECTION_CLASS.fullmatch(word) for word in words(name)[-1:])


def is_embedding_class(name: str) -> bool:
    """Whether a class is called an embedding, such as `VocabParallelEmbedding`."""
    return any(word in ("embedding", "embeddings") for word in words(name)[-1:])


@lru_cache(maxsize=4096)
def kind_of_leaf(leaf: str) -> Kind | None:
    """What a parameter is called as, or None if its name leaves it open.

    The last word is the noun: `bias_proj` is a projection, `proj_bias` a bias, `debiased_weight` neither. Learned
    tokens and positions are those whose noun is token, register, cls, query, pos, position, positional, pe or wpe, or
    that speak of a position and an embedding or encoding (`pos_embed`); tables of embeddings those whose noun is emb,
    embed, embedding, wte, latents, queries, codebook or prompt. Of `log_dt` and `theta_log` the logarithm is kept.

    Example:
        >>> kind_of_leaf("in_proj_bias"), kind_of_leaf("layer_scale_1"), kind_of_leaf("debiased_weight")
        ('bias', 'scale', None)
    """
    for pattern, kind in _LEAVES:
        if pattern.fullmatch(leaf):
            return kind
    spoken = words(leaf)
    while len(spoken) > 1 and _SUFFIX.fullmatch(spoken[-1]):
        spoken.pop()
    if not spoken or _MATRIX_NOUN.fullmatch(spoken[-1]):
        return None
    if any(_BIAS.fullmatch(word) for word in spoken):
        return "bias"
    if any(_POSITION.fullmatch(word) for word in spoken) and any(_ENCODING.fullmatch(word) for word in spoken):
        return "token"
    if len(spoken) > 1 and {"log", "logs"} & {spoken[0], spoken[-1]}:
        return "exempt"
    return next((kind for pattern, kind in _NOUNS if pattern.fullmatch(spoken[-1])), None)


def kind_of_table(name: str) -> Kind | None:
    """What an embedding holds if not embeddings, by what it is called: `relative_attention_bias`, `scale`, `beta_emb`.

    Example:
        >>> kind_of_table("relative_attention_bias"), kind_of_table("gamma_embed"), kind_of_table("tokens")
        ('bias', 'scale', None)
    """
    stem = re.sub("_(embs?|embeds?|embeddings?)$", "", name)
    kind = kind_of_leaf(stem)
    return kind if kind in ("bias", "scale", "norm") else None


def is_weight_name(leaf: str) -> bool:
    """Whether a parameter is called a weight or a projection."""
    return any(_SUFFIX.fullmatch(word) or _MATRIX_NOUN.fullmatch(word) for word in words(leaf)[-1:])


def is_bias_class(name: str) -> bool:
    """Whether a class is called a bias, such as `RelativePositionBias`."""
    return any(_BIAS.fullmatch(word) for word in words(name)[-1:])


def name_in_container(container: str, key: str) -> str:
    """What a parameter of a `ParameterDict` is called: as its container, unless that says nothing and the key does.

    A key of one word is the name of a task or an adapter as likely as that of a parameter: it counts only in a
    container whose own name is generic, or if it says bias.

    Example:
        >>> name_in_container("pos_embeds", "rgb"), name_in_container("lora_A", "gamma")
        ('pos_embeds', 'lora_A')
        >>> name_in_container("params", "gamma")
        'gamma'
    """
    if not container or all(_GENERIC.fullmatch(word) for word in words(container)):
        return key
    if kind_of_leaf(container) is not None:
        return container
    spoken = words(key)
    clear = any(_BIAS.fullmatch(word) for word in spoken) or len(spoken) > 1
    return key if clear and kind_of_leaf(key) is not None else container
