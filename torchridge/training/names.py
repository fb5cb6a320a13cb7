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
    "linear|dense|conv|mlp|ffn|embedding|attention|attn|block|head|proj|projection|experts?|moe|"
    "encoder|decoder|model|net|network|former|transformer"
)

_MATRIX_NOUN = re.compile("proj|projection|kernel|matrix|linear|mlp|net|w")
_SUFFIX = re.compile("weights?|param|params|parameters?|table")
_BIAS = re.compile("bias|biases")
_POSITION = re.compile("pos|position|positional")
_ENCODING = re.compile("emb|embeds?|embeddings?|enc|encodings?")
_NOUNS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile("norm|layernorm|rmsnorm|ln|bn"), "norm"),
    (re.compile("alphas?|gammas?|betas?|gains?|scales?|layerscale|shift|temperature"), "scale"),
    (re.compile("tokens?"), "token"),
)
_LEAVES: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"b\d*|b_.+"), "bias"),
    (re.compile(r"(layer|logit|skip|res)_scale.*|scale_shift_table|gamma_.+|lambda_.+"), "scale"),
    (re.compile(r"rel(ative)?_pos_.+|class_embedding"), "token"),
    # State-space models exponentiate these: https://github.com/state-spaces/mamba marks them by hand.
    (re.compile(r"A_logs?|A_(real|imag)|log_A(_real|_imag)?|(inv|log)_dt|dt_log"), "exempt"),
)


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
    """What a parameter is called as, or None where its name leaves it open.

    The last word is the noun: `bias_proj` is a projection, `proj_bias` a bias, `debiased_weight` neither.

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
    return next((kind for pattern, kind in _NOUNS if pattern.fullmatch(spoken[-1])), None)
