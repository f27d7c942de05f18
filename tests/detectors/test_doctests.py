"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import detectors

MODULES = sorted(module.name for module in pkgutil.iter_modules(detectors.__path__, "detectors."))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


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
