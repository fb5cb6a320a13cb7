"""What streamed estimators hold on every rank, added up."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchridge._ranks import Group, Ranks, brief
from torchridge.distributed import collectives
from torchridge.estimators._input import Container
from torchridge.solvers.moments.moments import Moments

_AGREE = (*collectives.AGREE, "estimator", "parameters", "names", "container", "classes", "multilabel")


def own_moments(model: Any) -> Moments:
    """Return the moments of this rank's rows."""
    held: Moments = model.__dict__.get("_own_moments", model.__dict__.get("moments_", Moments()))
    return held


def add_ranks(model: Any, process_group: Group | None) -> None:
    """Replace the moments of this rank's rows by those of all ranks', and keep them beside."""
    ranks = Ranks("world" if process_group is None else process_group)

    def check() -> Moments:
        if "moments_" not in model.__dict__ and {"coef_", "solution_"} & model.__dict__.keys():
            raise ValueError("the model was fitted to rows at once. Stream them: `partial_fit`, or `fit([(X, y)])`.")
        return own_moments(model)

    own, told = ranks.together("all_reduce", check, lambda moments: _says(model, moments), agree=_AGREE)
    first = next((t for t in told if t["container"] is not None), None)
    whole = collectives.all_reduced(own, told, ranks)
    if first is None or not whole.n_samples:
        raise ValueError("no rank was given rows; expected `partial_fit` on at least one of them.")
    if "_container" not in model.__dict__:
        _take_over(model, first, whole)
    container = model._container
    model._forget()
    model.moments_, model._own_moments, model._container = whole, own, container


def _says(model: Any, moments: Moments) -> dict[str, Any]:
    container, names = model.__dict__.get("_container"), model.__dict__.get("feature_names_in_")
    known = container is not None
    parameters = {k: brief(v) for k, v in model.get_params().items() if k != "device"}
    return {
        **collectives.says(moments),
        "estimator": type(model).__name__,
        "parameters": str(parameters),
        "names": None if names is None else [str(n) for n in names],
        "container": [container.tensor, str(container.dtype).removeprefix("torch.")] if known else None,
        "classes": _listed(model.__dict__.get("classes_")) if known else None,
        "multilabel": model.__dict__.get("multilabel_") if known else None,
    }


def _listed(classes: Any) -> list[Any] | None:
    if classes is None:
        return None
    tensor = isinstance(classes, Tensor)
    return ["tensor" if tensor else "array", str(classes.dtype).removeprefix("torch."), classes.tolist()]


def _take_over(model: Any, first: dict[str, Any], whole: Moments) -> None:
    """Learn from another rank what rows look like, if this one had none."""
    tensor, dtype = first["container"]
    model._container = Container(tensor, torch.device(model.device or "cpu"), getattr(torch, dtype))
    model.n_features_in_ = whole.n_features
    if first["names"] is not None:
        model.feature_names_in_ = np.asarray(first["names"], dtype=object)
    if first["classes"] is not None:
        kind, dtype, values = first["classes"]
        model.multilabel_ = first["multilabel"]
        model.classes_ = (
            torch.tensor(values, dtype=getattr(torch, dtype)) if kind == "tensor" else np.asarray(values, dtype=dtype)
        )
