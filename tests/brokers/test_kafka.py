"""The broker fixture itself: a test that builds on it may trust it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.brokers import kafka as kafka_module
from tests.brokers.kafka import KafkaCluster, KafkaFailed, KafkaUnavailable, jars

REPOSITORY = Path(__file__).resolve().parents[2]


def create(cluster: KafkaCluster, topic: str, *, partitions: int = 1, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    done = admin.create_topics(
        [NewTopic(topic, num_partitions=partitions, replication_factor=cluster.size, config=config)]
    )
    done[topic].result(20)


def produce(cluster: KafkaCluster, topic: str, values: list[bytes], *, key: bytes | None = None) -> int:
    """Send, and return how many the cluster acknowledged to every in-sync replica."""
    acknowledged = 0

    def on_delivery(error: object, _: object) -> None:
        nonlocal acknowledged
        acknowledged += error is None

    producer = Producer({"bootstrap.servers": cluster.bootstrap, "acks": "all"})
    for value in values:
        producer.produce(topic, value, key=key, on_delivery=on_delivery)
    assert producer.flush(30) == 0
    return acknowledged


def consume(cluster: KafkaCluster, topic: str, *, until: Callable[[list[bytes]], bool]) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "none"})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    values: list[bytes] = []
    deadline = time.monotonic() + 30
    while not until(values) and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            values.append(message.value())
    consumer.close()
    return values


@pytest.mark.kafka
def test_what_is_sent_is_read_back(kafka: KafkaCluster) -> None:
    create(kafka, "round-trip")
    sent = [b"%d" % n for n in range(100)]
    assert produce(kafka, "round-trip", sent) == 100
    assert consume(kafka, "round-trip", until=lambda got: len(got) >= 100) == sent


@pytest.mark.kafka
def test_compaction_can_be_provoked_within_seconds(kafka: KafkaCluster) -> None:
    create(
        kafka,
        "compacted",
        **{"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"},
    )
    produce(kafka, "compacted", [b"%d" % n for n in range(50)], key=b"one")
    deadline = time.monotonic() + 20
    left = 50
    while left > 5 and time.monotonic() < deadline:
        # A segment is closed, and so becomes cleanable, only when something is written after segment.ms.
        time.sleep(0.3)
        produce(kafka, "compacted", [b"last"], key=b"other")
        left = sum(value != b"last" for value in consume(kafka, "compacted", until=lambda v: b"last" in v))
    assert left <= 5


@pytest.mark.kafka
@pytest.mark.slow
def test_kill_9_and_start_keep_what_was_acknowledged() -> None:
    with KafkaCluster(1) as cluster:
        create(cluster, "kept")
        assert produce(cluster, "kept", [b"before"]) == 1
        before = cluster.pid(1)
        cluster.kill(1)
        assert cluster.pid(1) is None
        cluster.start(1)
        assert cluster.pid(1) != before
        assert consume(cluster, "kept", until=bool) == [b"before"]


@pytest.mark.kafka
@pytest.mark.slow
def test_three_nodes_lose_nothing_when_one_is_killed(kafka3: KafkaCluster) -> None:
    create(kafka3, "survives")
    for node in (1, 2, 3):
        kafka3.kill(node)
        assert produce(kafka3, "survives", [b"%d" % node]) == 1
        kafka3.start(node)
    assert consume(kafka3, "survives", until=lambda got: len(got) >= 3) == [b"1", b"2", b"3"]


@pytest.mark.kafka
@pytest.mark.slow
def test_a_data_dir_outlives_its_cluster(tmp_path: Path) -> None:
    for round_ in (1, 2):
        with KafkaCluster(3, data_dir=tmp_path) as cluster:
            if round_ == 1:
                create(cluster, "outlives")
                produce(cluster, "outlives", [b"1"])
            else:
                assert consume(cluster, "outlives", until=bool) == [b"1"]


@pytest.mark.kafka
def test_a_node_that_cannot_start_shows_the_end_of_its_log() -> None:
    broken = KafkaCluster(1, config={"num.network.threads": "none"})
    with pytest.raises(KafkaFailed, match=r"num\.network\.threads"):
        broken.__enter__()


@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_nodes_die_with_a_killed_parent() -> None:
    program = (
        "import time; from tests.brokers.kafka import KafkaCluster\n"
        "with KafkaCluster(1) as cluster: print(cluster.pid(1), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        node = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{node}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # dead; nobody has collected it yet
            return
        time.sleep(0.05)
    os.kill(node, 9)
    pytest.fail("the node outlived its parent by 5 s")


def test_a_machine_without_java_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_module.shutil, "which", lambda _: None)
    with pytest.raises(KafkaUnavailable, match="java is not on PATH"):
        jars()
