"""Every detector shows itself at work in an example; that these are true is of `tests.core.test_doctests`."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "state",
        "params",
        "registry",
        "limits",
        "silence",
        "robust_z",
        "spike",
        "half_space_trees",
        "calibrate",
        "outlier",
        "drift",
        "rate",
        "river_api",
    ],
)
def test_every_public_module_shows_itself_at_work(name: str) -> None:
    tests = doctest.DocTestFinder().find(importlib.import_module(f"detectors.{name}"))
    assert any(test.examples for test in tests)
