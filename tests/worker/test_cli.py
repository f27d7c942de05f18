"""The worker's command and the demo's, as processes, on the embedded broker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streamproc.worker.child import free_port

ROOT = Path(__file__).parents[2]


def started(*args: str | Path, scratch: Path, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "streamproc.cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), **env},
        cwd=ROOT,
        # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def children(pid: int) -> list[int]:
    text = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, check=False).stdout
    own = [int(p) for p in text.split()]
    return own + [c for p in own for c in children(p)]


def test_the_worker_on_its_own_broker_says_what_matters_and_ends_with_0(tmp_path: Path) -> None:
    config = tmp_path / "worker.yaml"
    config.write_text(
        "version: 1\nkafka: {brokers: '${KAFKA_BROKERS}', predictions: [predictions], session_timeout: 6s}\n"
        f"worker: {{web_host: 127.0.0.1, web_port: {free_port()}}}\n"
    )
    worker = started("worker", "--embedded-broker", "-c", config, "--log-format", "json", scratch=tmp_path)
    lines: list[dict[str, object]] = []
    try:
        assert worker.stderr is not None
        for line in worker.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "worker started":
                break
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=30)
    finally:
        worker.kill()
    lines += [json.loads(line) for line in err.splitlines()]
    assert worker.returncode == 0
    assert out == b""  # no banner
    assert lines[-1]["event"] == "stopped"
    assert [line for line in lines if line["level"] in ("warning", "error")] == []
    assert not [line for line in lines if "Starting..." in str(line["event"])]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_interrupted_demo_ends_cleanly_with_its_children_and_its_files(tmp_path: Path) -> None:
    demo = started("demo", scratch=tmp_path, DEMO_SECONDS="30")
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if b"it learns what is normal" in line:
                break
        family = children(demo.pid)
        assert len(family) >= 3  # broker, worker, feeder
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=30)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert b"Traceback" not in err
    until = time.monotonic() + 5
    while time.monotonic() < until and any(map(alive, family)):
        time.sleep(0.1)
    assert not [pid for pid in family if alive(pid)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_demo_catches_its_fault_without_a_false_alarm(tmp_path: Path, seed: int) -> None:
    demo = started("demo", "--seed", str(seed), scratch=tmp_path, DEMO_SECONDS="30")
    out, _ = demo.communicate(timeout=150)
    text = out.decode()
    assert demo.returncode == 0, text
    assert "0 false before the fault" in text
    delay = re.search(r"caught\s+([0-9.]+) s after the fault", text)
    assert delay is not None
    assert float(delay[1]) < 5.0
