"""What a model that cross-validates hands on to its scorer and its splitter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torchridge.estimators._protocol import routing_enabled
from torchridge.estimators._scorers import Scorer, accepts_weight


class Routed(NamedTuple):
    """Metadata by receiver."""

    score: Mapping[str, Any]
    split: Mapping[str, Any]


def route(model: Any, sample_weight: Any, params: dict[str, Any], scorer: Scorer | None, method: str = "fit") -> Routed:
    """Return what scorer and splitter are given: by routing where it is enabled, else at most the weights."""
    if routing_enabled():
        from sklearn.utils.metadata_routing import process_routing

        given = params if sample_weight is None else {**params, "sample_weight": sample_weight}
        routed = process_routing(model, method, **given)
        return Routed(dict(routed.scorer.score), dict(routed.splitter.split) if method == "fit" else {})
    if params:
        raise ValueError(
            f"[{', '.join(params)}] passed to `{method}` is only supported if enable_metadata_routing=True, which "
            f"you can set using `sklearn.set_config(enable_metadata_routing=True)`."
        )
    weighted = sample_weight is not None and accepts_weight(scorer)
    return Routed({"sample_weight": sample_weight} if weighted else {}, {})
