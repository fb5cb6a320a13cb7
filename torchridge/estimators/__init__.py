"""Ridge regression and classification with scikit-learn's names, on any device; scikit-learn need not be installed."""

from torchridge.estimators._protocol import NotFittedError
from torchridge.estimators.ridge import Ridge, RidgeClassifier
from torchridge.estimators.ridge_cv import RidgeClassifierCV, RidgeCV

__all__ = ["NotFittedError", "Ridge", "RidgeCV", "RidgeClassifier", "RidgeClassifierCV"]
