"""Apache Kafka (KRaft), run from its jars as plain processes on loopback.

    with KafkaCluster(3) as kafka:
        kafka.bootstrap          # "127.0.0.1:23001,127.0.0.1:20417,..."
        kafka.kill(2)            # SIGKILL; kafka.start(2) brings it back, same port, same data

Each node is broker and controller at once, with three listeners: CLIENT, with the security asked for,
and two in plaintext for the cluster itself, so that what a test sees of TLS and SASL is the client's.
"""

from __future__ import annotations

import base64
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from streamproc.worker import child
from tests.brokers import certificates

Security = Literal["plaintext", "sasl_plaintext", "ssl", "sasl_ssl"]

HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
LOG4J2 = HERE / "log4j2.properties"

USERNAME = "worker"
PASSWORD = "worker-secret"

# Time to ready of one node, 2 cores: 3.6 s with the JVM's defaults, 2.5 s with these. Compiling with C1
# alone costs throughput once warm: benchmarks pass `jvm=()`.
QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class KafkaUnavailable(RuntimeError):
    """Kafka cannot run on this machine; the message says what is missing."""


class KafkaFailed(RuntimeError):
    """A node did not come up, or went down by itself; the message ends with its log."""


def jars(cache_dir: Path | None = None) -> Path:
    """Return the directory of Kafka's jars, bringing them by Maven the first time.

    Kept in `.cache/kafka-<version>/libs` of the repository. $STREAMPROC_KAFKA_DIR names another place: an
    unpacked Kafka distribution serves as it is.
    """
    if shutil.which("java") is None:
        raise KafkaUnavailable("java is not on PATH; install a JRE, 17 or newer")
    match = re.search(r"<kafka\.version>([^<]+)<", POM.read_text("utf-8"))
    if match is None:
        raise KafkaUnavailable(f"{POM} has no <kafka.version>")
    home = cache_dir or Path(
        os.environ.get("STREAMPROC_KAFKA_DIR") or HERE.parents[1] / ".cache" / f"kafka-{match[1]}"
    )
    libs = home / "libs"
    if libs.is_dir():
        return libs
    if shutil.which("mvn") is None:
        raise KafkaUnavailable(f"mvn is not on PATH and {libs} does not exist; install Maven")

    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second test run waits here, then finds the jars
        if libs.is_dir():
            return libs
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            fresh = Path(scratch) / "libs"
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            command += [f"-DoutputDirectory={fresh}", "-DincludeScope=runtime"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            except subprocess.TimeoutExpired as stuck:
                raise KafkaUnavailable("mvn did not bring Kafka's jars within 600 s") from stuck
            if done.returncode != 0 or not any(fresh.glob("kafka_2.13-*.jar")):
                said = f"{done.stdout[-2000:]}{done.stderr[-500:]}"
                raise KafkaUnavailable(f"mvn could not bring Kafka's jars:\n{said}")
            fresh.rename(libs)
    return libs


@dataclass
class _Node:
    id: int
    home: Path
    client_port: int
    internal_port: int
    controller_port: int
    process: subprocess.Popen[bytes] | None = None
    log_read_from: int = 0

    @property
    def log(self) -> Path:
        return self.home / "kafka.log"

    @property
    def properties(self) -> Path:
        return self.home / "server.properties"


class KafkaCluster:
    """One or three Kafka nodes in KRaft mode, from `__enter__` to `__exit__`; numbered from 1.

    Parameters
    ----------
    security
        of the CLIENT listener. `ssl` demands a client certificate too (mutual TLS); the `sasl_` ones
        offer PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512.
    advertised_host
        what clients are sent on to; one that leads nowhere is a fault worth testing.
    data_dir
        keeps the data of one cluster for the next; without it they go when the cluster goes.
    config
        lines of server.properties, over the ones below.
    jvm
        JVM flags beside the heap; `()` for benchmarks, see QUICK_START.
    """

    def __init__(
        self,
        nodes: int = 1,
        *,
        security: Security = "plaintext",
        advertised_host: str = "127.0.0.1",
        data_dir: Path | None = None,
        config: Mapping[str, str] | None = None,
        heap_mb: int = 384,
        jvm: Sequence[str] = QUICK_START,
        ready_within_s: float = 60.0,
    ) -> None:
        self.size = nodes
        self.security: Security = security
        self.ready_within_s = ready_within_s
        self._advertised_host = advertised_host
        self._config = dict(config or {})
        self._java = [f"-Xmx{heap_mb}m", *jvm, f"-Dlog4j2.configurationFile={LOG4J2}"]
        self._data_dir = data_dir
        self._nodes: dict[int, _Node] = {}

    def __enter__(self) -> Self:
        self._libs = jars()
        self._scratch = tempfile.TemporaryDirectory(prefix="streamproc-kafka-")
        try:
            self._home = self._data_dir or Path(self._scratch.name)
            self._home.mkdir(parents=True, exist_ok=True)
            self._certificates = (
                certificates.issue(self._home) if self.security in ("ssl", "sasl_ssl") else None
            )
            for id_ in range(1, self.size + 1):
                home = self._home / f"node-{id_}"
                home.mkdir(exist_ok=True)
                ports = [child.free_port() for _ in range(3)]
                self._nodes[id_] = _Node(id_, home, *ports)
            for node in self._nodes.values():
                self._write_properties(node)
            self._format()
            for node in self._nodes.values():
                self._launch(node)
            deadline = time.monotonic() + self.ready_within_s
            for node in self._nodes.values():
                self._await_ready(node, deadline)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every node and remove what is temporary."""
        # By SIGKILL, also where the data stay: nodes asked in turn to shut down in good order wait in vain
        # for a quorum once the second is gone (48 s, measured), and what was acknowledged is in the files.
        for node in self._nodes.values():
            if node.process is not None:
                node.process.kill()
                node.process.wait()
                node.process = None
        self._scratch.cleanup()

    @property
    def bootstrap(self) -> str:
        """Every node's client address, comma-separated."""
        return ",".join(f"127.0.0.1:{node.client_port}" for node in self._nodes.values())

    @property
    def client_settings(self) -> dict[str, Any]:
        """What a client must be told beside `bootstrap`, by the names of `worker.connection.Connection`."""
        settings: dict[str, Any] = {"security_protocol": self.security.upper()}
        if self.security.startswith("sasl_"):
            settings |= {"sasl_mechanism": "SCRAM-SHA-512", "username": USERNAME, "password": PASSWORD}
        if self._certificates is not None:
            settings["ssl_cafile"] = str(self._certificates.ca)
        if self._certificates is not None and self.security == "ssl":
            settings["ssl_certfile"] = str(self._certificates.client_cert)
            settings["ssl_keyfile"] = str(self._certificates.client_key)
        return settings

    def pid(self, node: int) -> int | None:
        """Return the process id of a node; None while it is down."""
        process = self._nodes[node].process
        return None if process is None else process.pid

    def log(self, node: int) -> Path:
        """Return the log file of a node."""
        return self._nodes[node].log

    def kill(self, node: int) -> None:
        """End a node as a power cut would (SIGKILL)."""
        process = self._running(node)
        process.kill()
        process.wait()
        self._nodes[node].process = None

    def stop(self, node: int) -> None:
        """End a node in good order (SIGTERM): it hands its leaderships over first."""
        child.stop(self._running(node), grace_s=30)
        self._nodes[node].process = None

    def start(self, node: int) -> None:
        """Bring a stopped node back on the same port with the same data; return when it is ready."""
        if self._nodes[node].process is not None:
            raise KafkaFailed(f"node {node} is running already")
        self._launch(self._nodes[node])
        self._await_ready(self._nodes[node], time.monotonic() + self.ready_within_s)

    def restart(self, node: int) -> None:
        """Stop a node in good order and start it again."""
        self.stop(node)
        self.start(node)

    def _running(self, node: int) -> subprocess.Popen[bytes]:
        process = self._nodes[node].process
        if process is None:
            raise KafkaFailed(f"node {node} is down already")
        return process

    def _launch(self, node: _Node) -> None:
        node.log_read_from = node.log.stat().st_size if node.log.exists() else 0
        argv = ["java", *self._java, "-cp", f"{self._libs}/*", "kafka.Kafka", node.properties]
        node.process = child.spawn(argv, log=node.log, cwd=node.home)

    def _await_ready(self, node: _Node, deadline: float) -> None:
        # The line comes after the broker has registered, caught up with the metadata and been unfenced,
        # and after its listeners have opened: a connection attempt alone would come too early.
        assert node.process is not None
        while time.monotonic() < deadline:
            with node.log.open("rb") as log:
                log.seek(node.log_read_from)
                if b"Kafka Server started" in log.read():
                    return
            if node.process.poll() is not None:
                raise KafkaFailed(
                    f"node {node.id} ended with exit code {node.process.returncode} while starting; "
                    f"the end of its log:\n{child.tail(node.log)}"
                )
            time.sleep(0.05)
        raise KafkaFailed(
            f"node {node.id} was not ready within {self.ready_within_s:.0f} s; "
            f"the end of its log:\n{child.tail(node.log)}"
        )

    def _format(self) -> None:
        """Format the data directories: node 1 by Kafka's own tool, the others after its example.

        A format costs a JVM's start (0.6 s). What differs between nodes is two ids in meta.properties.
        """
        first = self._nodes[1]
        if (first.home / "data" / "meta.properties").exists():
            return
        cluster_id = _kafka_uuid()
        command = ["java", *self._java, "-cp", f"{self._libs}/*", "kafka.tools.StorageTool", "format"]
        command += ["--cluster-id", cluster_id, "--config", str(first.properties)]
        if self.security.startswith("sasl_"):
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name={USERNAME},password={PASSWORD}]"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise KafkaFailed(f"formatting node 1 failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        for node in list(self._nodes.values())[1:]:
            data = node.home / "data"
            data.mkdir()
            shutil.copy(first.home / "data" / "bootstrap.checkpoint", data)
            (data / "meta.properties").write_text(
                f"version=1\ncluster.id={cluster_id}\nnode.id={node.id}\ndirectory.id={_kafka_uuid()}\n",
                "utf-8",
            )

    def _write_properties(self, node: _Node) -> None:
        copies = str(min(3, self.size))
        voters = ",".join(f"{n.id}@127.0.0.1:{n.controller_port}" for n in self._nodes.values())
        client = self.security.upper()
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(node.id),
            "controller.quorum.voters": voters,
            "listeners": f"CLIENT://127.0.0.1:{node.client_port},INTERNAL://127.0.0.1:{node.internal_port},"
            f"CONTROLLER://127.0.0.1:{node.controller_port}",
            "advertised.listeners": f"CLIENT://{self._advertised_host}:{node.client_port},"
            f"INTERNAL://127.0.0.1:{node.internal_port}",
            "listener.security.protocol.map": f"CLIENT:{client},INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(node.home / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "share.coordinator.state.topic.replication.factor": copies,
            "min.insync.replicas": "2" if self.size >= 3 else "1",
            "transaction.state.log.min.isr": "2" if self.size >= 3 else "1",
            "share.coordinator.state.topic.min.isr": "2" if self.size >= 3 else "1",
            # Fifty partitions each by default: most of a node's start and of its file handles.
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            "group.initial.rebalance.delay.ms": "0",  # the first member need not wait 3 s for a second
            "group.min.session.timeout.ms": "1000",
            # A killed node is found out in 3 s, not 9, and fetches that hang on it are given up soon.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # Compaction within seconds for topics that also set min.cleanable.dirty.ratio and segment.ms.
            "log.cleaner.backoff.ms": "500",
            "log.cleaner.dedupe.buffer.size": "8388608",
            "log.initial.task.delay.ms": "1000",
            "log.retention.check.interval.ms": "5000",
            **self._security_settings(),
            **self._config,
        }
        lines = "".join(f"{key}={value}\n" for key, value in settings.items())
        node.properties.write_text(lines, "utf-8")

    def _security_settings(self) -> dict[str, str]:
        settings: dict[str, str] = {}
        if self._certificates is not None:
            settings |= {
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self._certificates.server),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self._certificates.ca),
                "ssl.client.auth": "required" if self.security == "ssl" else "none",
            }
        if self.security.startswith("sasl_"):
            module = "org.apache.kafka.common.security"
            plain = f'{module}.plain.PlainLoginModule required user_{USERNAME}="{PASSWORD}";'
            scram = f"{module}.scram.ScramLoginModule required;"
            settings |= {
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                "listener.name.client.plain.sasl.jaas.config": plain,
                "listener.name.client.scram-sha-256.sasl.jaas.config": scram,
                "listener.name.client.scram-sha-512.sasl.jaas.config": scram,
            }
        return settings


def _kafka_uuid() -> str:
    """Return a random id as Kafka spells it: 16 bytes in URL-safe base64, not starting with a dash."""
    return "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
