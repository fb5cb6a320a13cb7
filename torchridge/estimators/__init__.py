"""Ridge regression and classification with scikit-learn's names, on any device; scikit-learn need not be installed."""

from torchridge.estimators._protocol import NotFittedError
from torchridge.estimators.ridge import Ridge, RidgeClassifier

__all__ = ["NotFittedError", "Ridge", "RidgeClassifier"]
