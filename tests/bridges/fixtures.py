"""A real Alertmanager for whichever tests ask for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bridges.alertmanager import AlertmanagerUnavailable, binary

REQUIRED = "STREAMPROC_REQUIRE_KAFKA"


class _Real:
    """How many tests of this session ran with a real Alertmanager, and why none could."""

    ran = 0
    missing = ""


@pytest.fixture
def alertmanager_binary() -> Path:
    """Skip, or fail where CI asks for the real thing, on a machine that cannot have it."""
    try:
        program = binary()
        _Real.ran += 1
        return program
    except AlertmanagerUnavailable as reason:
        _Real.missing = str(reason)
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"no real Alertmanager, and {REQUIRED}=1 asks for it: {reason}", pytrace=False)
        pytest.skip(f"no real Alertmanager: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _Real.ran or _Real.missing:
        why = f" ({_Real.missing})" if _Real.missing else ""
        terminalreporter.write_line(f"{_Real.ran} tests ran with a real Alertmanager{why}")
