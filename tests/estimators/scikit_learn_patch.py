"""A pytest plugin: scikit-learn's own tests with our estimators in the place of its own, but for those listed here.

python -m pytest -p scikit_learn_patch --pyargs sklearn.linear_model.tests.test_ridge
"""

import re
from typing import Any

import pytest
import sklearn.linear_model
from sklearn.linear_model import _logistic, _ridge

from torchridge import estimators

for _name in estimators.__all__:
    for _module in (sklearn.linear_model, _ridge, _logistic):
        if hasattr(_module, _name):
            setattr(_module, _name, getattr(estimators, _name))

L1 = "an L1 penalty, which is not offered"
STEPS = "how many steps scikit-learn's solver of that name takes; ours is another"
LIBLINEAR = "a limit of scikit-learn's liblinear: two classes, small values, float64, a penalized intercept, or L1"
PRIVATE = "private functions and attributes of scikit-learn"
ANNOUNCED = "scikit-learn announces a change of its own defaults or arguments"
WORDS = "scikit-learn's wording of an error; ours names the argument and the row"
CALLBACKS = "scikit-learn's callbacks at each step of its L-BFGS"
INT32 = "scikit-learn's sag, saga and liblinear refuse 64-bit indices; ours take them"
DIRECT = "a warning of scikit-learn's solver of that name, which ours has no cause for: it is exact"
ARRAYS = "scikit-learn solves other arrays than NumPy's by 'svd' alone; ours takes tensors with any solver"
SILENT = "R² of one held-out row is undefined: scikit-learn takes the first strength by a tie of NaN, ours no such fold"
TARGETS = "scikit-learn refuses a strength for each target with folds; ours chooses it"

# Pattern of a test's name, from its beginning → why it is left out. Each must match a test.
LEFT_OUT: dict[str, dict[str, str]] = {
    "test_ridge": {
        r"test_n_iter$": STEPS,
        r"test_ridge_fit_intercept_sparse_sag": DIRECT,
        r"test_lbfgs_solver_error": DIRECT,
        r"test_ridge_cv_individual_penalties$": TARGETS,
        r"test_ridgecv_sample_weight$": SILENT,
        r"test_array_api_error_and_warnings_for_solver_parameter": ARRAYS,
    },
    "test_logistic": {
        r"test_check_solver_option": L1,
        r"test_elasticnet_l1_ratio_err_helpful": L1,
        r"test_sparsify": L1,
        r"test_logreg_l1\b": L1,
        r"test_logistic_regression_cv_refit\[.*-1\]": L1,
        r"test_sample_and_class_weight_equivalence_liblinear": L1,
        r"test_logisticregression_liblinear_sample_weight\[.*params0\]": L1,
        r"test_elastic_net_coeffs": L1,
        r"test_elastic_net_l1_l2_equivalence": L1,
        r"test_elastic_net_vs_l1_l2": L1,
        r"test_elastic_net_versus_sgd": L1,
        r"test_LogisticRegression_elastic_net_objective": L1,
        r"test_LogisticRegressionCV_GridSearchCV_elastic_net": L1,
        r"test_LogisticRegressionCV_elasticnet_attribute_shapes": L1,
        r"test_LogisticRegressionCV_no_refit\[.*l1_ratios1\]": L1,
        r"test_scores_attribute_layout_elasticnet": L1,
        r"test_l1_ratio_non_elasticnet": L1,
        r"test_lr_penalty_l1ratio_incompatible": L1,
        r"test_saga_vs_liblinear": L1,
        r"test_liblinear_": LIBLINEAR,
        r"test_dtype_match\[.*liblinear\]": LIBLINEAR,
        r"test_large_sparse_matrix\[.*-(liblinear|sag|saga)\]": INT32,
        r"test_logistic_cv_multinomial_score": PRIVATE,
        r"test_logreg_predict_proba_multinomial": PRIVATE,
        r"test_get_default_scorer": PRIVATE,
        r"test_max_iter": STEPS,
        r"test_zero_max_iter": STEPS,
        r"test_warm_start\[.*-False-[a-z]": STEPS,
        r"test_warm_start_newton_solver": STEPS,
        r"test_newton_cholesky_fallback_to_lbfgs": STEPS,
        r"test_nan": WORDS,
        r"test_l1_ratio_None_deprecated": ANNOUNCED,
        r"test_logisticregressioncv_warns_with_use_legacy_attributes": ANNOUNCED,
        r"test_lr_scoring_warns": ANNOUNCED,
        r"test_logistic_regression_callback_": CALLBACKS,
    },
}


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what is listed, and say of what is listed in vain."""
    found: set[tuple[str, str]] = set()
    kept, left = [], []
    for item in items:
        module = item.path.stem
        matching = [part for part in LEFT_OUT.get(module, {}) if re.match(part, item.name)]
        found |= {(module, part) for part in matching}
        (left if matching else kept).append(item)
    modules = {item.path.stem for item in items}
    vain = [part for m in modules for part in LEFT_OUT.get(m, {}) if (m, part) not in found]
    if vain and not config.option.keyword:
        raise pytest.UsageError(f"listed in vain: {vain}")
    config.hook.pytest_deselected(items=left)
    items[:] = kept
