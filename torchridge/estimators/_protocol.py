"""scikit-learn's estimator protocol, kept without scikit-learn: parameters, tags, metadata requests.

If scikit-learn is installed, the estimators are its `BaseEstimator`s, since others ask for that class; it adds their
picture in a notebook. What only its users can ask for (tags, routing, its exceptions) is built when it is asked for.
"""

from __future__ import annotations

import copy
import html
import inspect
import sys
from functools import cache
from typing import Any, ClassVar, TypeVar

from torchridge import exceptions
from torchridge.estimators import _state

try:
    from sklearn.base import BaseEstimator
except ImportError:
    BaseEstimator = object

_Self = TypeVar("_Self", bound="Estimator")


class NotFittedError(ValueError, AttributeError):
    """An estimator was asked for what only `fit` can tell."""


def sklearn_class(module: str, name: str, own: Any) -> Any:
    """Return scikit-learn's class if the program has imported it, so that its users' `except` clauses hold."""
    if sys.modules.get("sklearn") is None:
        return own
    loaded = __import__(f"sklearn.{module}", fromlist=[name])
    return getattr(loaded, name)


def routing_enabled() -> bool:
    """Whether the program has asked scikit-learn to route metadata."""
    if sys.modules.get("sklearn") is None:
        return False
    from sklearn import get_config

    return bool(get_config()["enable_metadata_routing"])


def _both(own: type, name: str, shown: str | None = None) -> Any:
    theirs = sklearn_class("exceptions", name, None)
    return own if theirs is None else _joined(own, theirs, shown or name)


@cache
def _joined(own: type, theirs: type, name: str) -> type:
    return type(name, (own, theirs), {})


def convergence_warning(own: type[Warning] = exceptions.ConvergenceWarning) -> Any:
    """Return a class that is our own, and scikit-learn's `ConvergenceWarning` too if the program has imported it."""
    return _both(own, "ConvergenceWarning", own.__name__)


def not_fitted(message: str) -> Exception:
    """Return an error that is our `NotFittedError`, and scikit-learn's too if the program has imported it."""
    error: Exception = _both(NotFittedError, "NotFittedError")(message)
    return error


class Estimator(BaseEstimator):  # type: ignore[misc]
    """Parameters by name, as scikit-learn's `BaseEstimator` has them, with or without it."""

    _estimator_type: str | None = None
    _requests: ClassVar[dict[str, tuple[str, ...]]] = {"fit": ("sample_weight",), "score": ("sample_weight",)}

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = _state.plain(self.__dict__)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(_state.restored(state))

    @classmethod
    def _get_param_names(cls) -> list[str]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return sorted(p.name for p in parameters if p.name != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; with `deep` also those of parameters that have some, as ``name__inner``."""
        params = {name: getattr(self, name) for name in self._get_param_names()}
        if deep:
            for name, value in list(params.items()):
                if hasattr(value, "get_params") and not isinstance(value, type):
                    params.update({f"{name}__{inner}": v for inner, v in value.get_params().items()})
        return params

    def set_params(self: _Self, **params: Any) -> _Self:
        """Set parameters by name, and return self.

        Raises:
            ValueError: on a name that is not a parameter; nothing is set then.
        """
        known = self._get_param_names()
        for name in params:
            if name.partition("__")[0] not in known:
                raise ValueError(f"Invalid parameter {name!r} for estimator {self!r}. Valid parameters are: {known!r}.")
        for name, value in params.items():
            outer, _, inner = name.partition("__")
            if inner:
                getattr(self, outer).set_params(**{inner: value})
            else:
                setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(type(self).__init__).parameters.items()}
        values = {n: getattr(self, n, defaults[n]) for n in defaults if n != "self"}
        changed = [f"{n}={v!r}" for n, v in values.items() if repr(v) != repr(defaults[n])]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        kind = self._estimator_type
        return Tags(
            estimator_type=kind,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if kind == "classifier" else None,
            regressor_tags=RegressorTags() if kind == "regressor" else None,
            input_tags=InputTags(sparse=True),
        )

    def get_metadata_routing(self) -> Any:
        """Return which metadata each method takes, as scikit-learn's `MetadataRequest`."""
        return self._metadata_requests()

    def _metadata_requests(self) -> Any:
        from sklearn.utils.metadata_routing import MetadataRequest

        if hasattr(self, "_metadata_request"):
            return copy.deepcopy(self._metadata_request)
        requests = MetadataRequest(owner=self)
        for method, names in self._requests.items():
            for name in names:
                getattr(requests, method).add_request(param=name, alias=None)
        return requests

    def _repr_html_(self) -> str:
        """Return what a notebook shows: scikit-learn's diagram if the program has imported it, else the text."""
        diagram = sklearn_class("utils", "estimator_html_repr", None)
        return f"<pre>{html.escape(repr(self))}</pre>" if diagram is None else str(diagram(self))

    def _set_request(self: _Self, method: str, **aliases: Any) -> _Self:
        known = self._requests.get(method, ())
        if unknown := sorted(set(aliases) - set(known)):
            raise TypeError(
                f"Unexpected args: {unknown} in `set_{method}_request`. Accepted arguments are: {list(known)}."
            )
        if not routing_enabled():
            raise RuntimeError(
                "This method is only available when metadata routing is enabled. You can enable it using "
                "`sklearn.set_config(enable_metadata_routing=True)`."
            )
        requests = self._metadata_requests()
        for name, alias in aliases.items():
            getattr(requests, method).add_request(param=name, alias=alias)
        self._metadata_request = requests
        return self

    def set_fit_request(self: _Self, **aliases: bool | str | None) -> _Self:
        """Say which metadata `fit` takes from a meta-estimator: ``set_fit_request(sample_weight=True)``."""
        return self._set_request("fit", **aliases)

    def set_score_request(self: _Self, **aliases: bool | str | None) -> _Self:
        """Say which metadata `score` takes from a meta-estimator."""
        return self._set_request("score", **aliases)

    def set_partial_fit_request(self: _Self, **aliases: bool | str | None) -> _Self:
        """Say which metadata `partial_fit` takes from a meta-estimator."""
        return self._set_request("partial_fit", **aliases)
