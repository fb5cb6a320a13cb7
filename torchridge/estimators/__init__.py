"""Ridge and logistic regression with scikit-learn's names, on any device; scikit-learn need not be installed."""

from torchridge.estimators._protocol import NotFittedError
from torchridge.estimators.logistic import LogisticRegression, LogisticRegressionCV
from torchridge.estimators.ridge import Ridge, RidgeClassifier
from torchridge.estimators.ridge_cv import RidgeClassifierCV, RidgeCV

__all__ = [
    "LogisticRegression",
    "LogisticRegressionCV",
    "NotFittedError",
    "Ridge",
    "RidgeCV",
    "RidgeClassifier",
    "RidgeClassifierCV",
]
