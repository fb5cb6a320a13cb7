"""The checks say what is wrong of a value without dimensions, too."""

import math

import pytest
import torch

from torchridge import ridge


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_a_strength_that_is_no_number(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"`alpha` holds (NaN|infinity)"):
        ridge(torch.eye(3), torch.ones(3), alpha)
