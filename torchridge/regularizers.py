"""Keras 3's regularizers for PyTorch; see `torchridge.training.penalties.regularizers`."""

from torchridge.training.penalties.identifiers import deserialize, get, serialize
from torchridge.training.penalties.regularizers import (
    L1,
    L1L2,
    L2,
    OrthogonalRegularizer,
    Regularizer,
    l1,
    l1_l2,
    l2,
    orthogonal,
    orthogonal_regularizer,
)
from torchridge.training.penalties.strengths import validate_float_arg

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "OrthogonalRegularizer",
    "Regularizer",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal",
    "orthogonal_regularizer",
    "serialize",
    "validate_float_arg",
]
