"""A child process that never outlives us: for brokers started beside the worker, and by tests."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Runs in the child, before the real program takes its place. A `preexec_fn` would do the same, but
# runs Python between fork and exec, which can deadlock in a process that has threads (numba, librdkafka).
# The comparison of getppid covers a parent that died before the signal was asked for.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
if os.getppid() != parent:
    sys.exit("the parent process is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""

# Below Linux' range of ephemeral ports (32768 on): a port kept for a broker that is down for a moment
# must not be taken by some client's outgoing connection.
_PORTS = (20_000, 32_000)


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, its output appended to `log`.

    The kernel kills it when the *thread* that called dies (Linux), so call from a thread that lives as
    long as the child should. Elsewhere only `stop` ends it.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    with log.open("ab") as out:
        return subprocess.Popen(
            [*launcher, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=None if env is None else dict(env),
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on, after our own shutdown
        )


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> int:
    """Ask the process to end (SIGTERM), kill it after `grace_s`; return its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free a moment ago."""
    draw = random.SystemRandom()  # a seeded program would offer the same ports to every process it starts
    for _ in range(200):
        port = draw.randrange(*_PORTS)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    low, high = _PORTS
    raise OSError(f"no free TCP port on {host} in {low}-{high} after 200 tries; close some servers")


def tail(log: Path, *, lines: int = 25) -> str:
    """Return the end of a log for an error message."""
    try:
        text = log.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty log)"
