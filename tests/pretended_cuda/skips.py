"""What the pretended device cannot judge: tests by name, each with the reason why only a real one could."""

from fnmatch import fnmatch

import pytest

COMPILED = "torch.compile makes code for a GPU, which the pretended device has no use for"

SKIPS: dict[str, str] = {}


def skip_what_it_cannot_judge(items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("device") == "pretended":
            for pattern, reason in SKIPS.items():
                if fnmatch(item.nodeid.partition("/")[2], pattern):
                    item.add_marker(pytest.mark.skip(reason=f"the pretended device cannot judge it: {reason}"))
