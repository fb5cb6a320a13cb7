"""Moments of data that is spread over the ranks of `torch.distributed`."""

from torchridge.distributed.moments import all_reduce, column_moments
from torchridge.distributed.moments_folder import MomentsFolder

__all__ = ["MomentsFolder", "all_reduce", "column_moments"]
