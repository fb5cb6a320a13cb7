"""A tensor over the memory of an array, which may be read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Writable:
    """A view of a read-only array that does not say so: torch warns of arrays that it must not write to."""

    def __init__(self, values: Any) -> None:
        self.values = values
        address = values.__array_interface__["data"][0]
        self.__array_interface__ = {**values.__array_interface__, "data": (address, False)}


def shared(values: Any) -> Tensor:
    """Return a tensor of the memory of an array, which may be read-only: it is to be read and not written."""
    plain = values.flags.writeable or not values.size
    whole: Tensor = torch.from_numpy(np.asarray(values if plain else _Writable(values)))
    return whole
