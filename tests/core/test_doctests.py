"""The examples in docstrings are true, of every module there is."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import detectors
import streamproc

MODULES = sorted(
    module.name
    for package in (streamproc, detectors)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
