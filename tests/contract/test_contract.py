"""Every registered detector keeps the contract."""

from __future__ import annotations

from typing import Any

import pytest

from detectors import registry
from detectors.checks import CHECKS, Subject

# What a detector needs to be made at all, or to be quick enough to be put through twenty thousand values.
PARAMS: dict[str, dict[str, Any]] = {
    "limits": {"lower": -1e6, "upper": 40.0},
    "loda": {"n_random_cuts": 10},
}
SLOW: dict[str, dict[str, int]] = {
    "loda": {"length": 500, "long": 4_000},
}


def subject(name: str) -> Subject:
    kind = registry.spec(name).kind
    columns = 5 if kind == "vector" else 1
    return Subject(
        factory=lambda: registry.create(name, PARAMS.get(name), columns=columns, seed=3),
        kind=kind,
        columns=columns,
        **SLOW.get(name, {}),
    )


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("check", CHECKS)
def test_every_detector_keeps_the_contract(name: str, check: str) -> None:
    CHECKS[check](subject(name))
