"""Real Kafka for tests: one cluster of each kind a session, started when first asked for.

A test marked `kafka` is skipped, with the reason, on a machine that cannot run Kafka. With
STREAMPROC_REQUIRE_KAFKA=1, as CI sets it, it fails instead, and so does a session in which none ran.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest

from tests.brokers.kafka import KafkaCluster, KafkaUnavailable, jars

REQUIRED = "STREAMPROC_REQUIRE_KAFKA"


class _Count:
    """How many tests of this session ran on real Kafka."""

    ran = 0


@functools.cache
def missing() -> str | None:
    """Return why Kafka cannot run here; None where it can."""
    try:
        jars()
    except KafkaUnavailable as reason:
        return str(reason)
    return None


def required() -> bool:
    return os.environ.get(REQUIRED) == "1"


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """One node in plaintext."""
    with KafkaCluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka3() -> Iterator[KafkaCluster]:
    """Three nodes, for faults. A test that ends one brings it back."""
    with KafkaCluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka_sasl_ssl() -> Iterator[KafkaCluster]:
    """One node with SCRAM over TLS, as hosted Kafka mostly is."""
    with KafkaCluster(1, security="sasl_ssl") as cluster:
        yield cluster


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kafka") is None:
        return
    reason = missing()
    if reason is None:
        return
    if required():
        pytest.fail(f"no real Kafka, and {REQUIRED}=1 asks for it: {reason}", pytrace=False)
    pytest.skip(f"no real Kafka: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.outcome != "skipped" and "kafka" in report.keywords:
        _Count.ran += 1


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if required() and _Count.ran == 0 and exitstatus == 0 and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    line = f"{_Count.ran} test{'' if _Count.ran == 1 else 's'} ran on real Apache Kafka"
    if _Count.ran == 0 and required():
        line += f": {REQUIRED}=1 asks for some, so the session fails"
    elif missing.cache_info().currsize and missing() is not None:
        line += f" ({missing()})"
    terminalreporter.write_line(line)
