"""A single row, centred, says nothing: the weights are zero and the intercept is its target."""

import pytest
import torch

from torchridge import ridge


@pytest.mark.parametrize("d", [1, 3])
def test_single_row_gives_its_target(d: int, device: torch.device) -> None:
    X, y = torch.ones(1, d, dtype=torch.float64, device=device), torch.tensor([2.0], dtype=torch.float64, device=device)
    solution = ridge(X, y, 1.0)
    assert not solution.weight.any()
    torch.testing.assert_close(solution.bias, y)


def test_single_row_of_positive_weight() -> None:
    X = torch.randn(4, 6, dtype=torch.float64)
    solution = ridge(X, X[:, 0], 1.0, sample_weight=torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert not solution.weight.any()
    torch.testing.assert_close(solution.bias, X[2:3, 0])
