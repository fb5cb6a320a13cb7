"""Which devices a test runs on."""

import pytest
import torch

from pretended_cuda.outer import PARAMETER

# On the pretended device and on real CUDA: not on the CPU, nor on a device that someone else pretends.
no_cuda = pytest.mark.skipif(torch.version.cuda is None, reason="no CUDA device on this machine")
on_cuda = pytest.mark.parametrize("device", [PARAMETER, pytest.param("cuda", marks=no_cuda)], indirect=True)
