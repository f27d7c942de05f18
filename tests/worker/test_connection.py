"""Each client reaches each kind of listener with what `connection` tells it, and says why when it cannot."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka
import faust
import msgspec
import pytest

from streamproc.errors import BrokerAuthFailed, BrokerUnreachable, InvalidConnection
from streamproc.worker.connection import Connection, for_aiokafka, for_faust, reach
from streamproc.worker.topics import TopicSpec, describe, ensure
from tests.brokers.kafka import KafkaCluster

PASSWORD = "never-shown-7d1f"


@pytest.fixture(scope="module")
def kafka_ssl() -> Iterator[KafkaCluster]:
    """Mutual TLS."""
    with KafkaCluster(1, security="ssl") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def kafka_sasl_plaintext() -> Iterator[KafkaCluster]:
    with KafkaCluster(1, security="sasl_plaintext") as cluster:
        yield cluster


def settings(cluster: KafkaCluster, **changes: Any) -> Connection:
    return Connection(**{"brokers": cluster.bootstrap, **cluster.client_settings, **changes})


LISTENERS = [
    ("kafka", {}),
    ("kafka_ssl", {}),
    ("kafka_sasl_plaintext", {"sasl_mechanism": "SCRAM-SHA-512"}),
    ("kafka_sasl_ssl", {"sasl_mechanism": "PLAIN"}),
    ("kafka_sasl_ssl", {"sasl_mechanism": "SCRAM-SHA-256"}),
    ("kafka_sasl_ssl", {"sasl_mechanism": "SCRAM-SHA-512"}),
]


@pytest.fixture(params=LISTENERS, ids=lambda p: "-".join([p[0], *p[1].values()]))
def conn(request: pytest.FixtureRequest) -> Connection:
    fixture, changes = request.param
    return settings(request.getfixturevalue(fixture), **changes)


@pytest.mark.kafka
def test_kafka_python_administers(conn: Connection) -> None:
    name = f"by-admin-{uuid.uuid4().hex[:8]}"
    ensure(conn, [TopicSpec(name=name, partitions=1)], create=True)
    assert describe(conn, [name]) == {name: 1}


@pytest.mark.kafka
def test_aiokafka_produces_and_consumes(conn: Connection) -> None:
    name = f"by-aiokafka-{uuid.uuid4().hex[:8]}"
    ensure(conn, [TopicSpec(name=name, partitions=1)], create=True)

    async def round_trip() -> bytes:
        async with aiokafka.AIOKafkaProducer(**for_aiokafka(conn)) as producer:
            await producer.send_and_wait(name, b"hello")
        consumer = aiokafka.AIOKafkaConsumer(name, auto_offset_reset="earliest", **for_aiokafka(conn))
        async with consumer:
            return bytes((await asyncio.wait_for(consumer.getone(), 15)).value)

    assert asyncio.run(round_trip()) == b"hello"


@pytest.mark.kafka
def test_faust_creates_topics_produces_consumes_and_keeps_a_table(conn: Connection, tmp_path: Path) -> None:
    """Each client that Faust makes for itself: consumer, producer, and by the consumer's the topics."""
    name = f"faust-{uuid.uuid4().hex[:8]}"

    async def run() -> tuple[str, int]:
        app = faust.App(
            name,
            **for_faust(conn),
            datadir=tmp_path,
            store="memory://",
            topic_partitions=1,
            topic_replication_factor=1,
            web_enabled=False,
            loop=asyncio.get_running_loop(),
        )
        # Faust creates none but internal topics, and waits for ever for the others.
        topic = app.topic(f"{name}-in", partitions=1, internal=True, value_type=bytes, value_serializer="raw")
        counts = app.Table("counts", default=int, partitions=1, value_type=int)
        seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        @app.agent(topic)
        async def count(stream: Any) -> None:
            async for value in stream:
                counts["all"] += 1
                if not seen.done():
                    seen.set_result(value.decode())

        await app.start()
        try:
            await topic.send(value=b"hello")
            return await asyncio.wait_for(seen, 20), counts["all"]
        finally:
            await asyncio.wait_for(app.stop(), 10)

    assert asyncio.run(asyncio.wait_for(run(), 40)) == ("hello", 1)
    made = describe(conn, [f"{name}-in", f"{name}-counts-changelog"])
    assert made == {f"{name}-in": 1, f"{name}-counts-changelog": 1}


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_fails_at_once_and_is_not_shown(
    kafka_sasl_ssl: KafkaCluster, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = settings(kafka_sasl_ssl, sasl_mechanism=mechanism, password=PASSWORD)
    with pytest.raises(BrokerAuthFailed, match="turned away user 'worker'") as raised:
        describe(wrong, ["any"], timeout_s=20, on_retry=lambda *_: pytest.fail("tried again"))
    assert PASSWORD not in str(raised.value) + repr(raised.value.__cause__) + caplog.text


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_debug_logs_of_the_clients_do_not_show_the_password(
    kafka_sasl_ssl: KafkaCluster, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    right = settings(kafka_sasl_ssl, sasl_mechanism=mechanism)
    describe(right, ["any"])
    assert "sasl_plain_password" in caplog.text, "kafka-python has stopped logging its settings: drop Secret?"
    assert str(right.password) not in caplog.text


@pytest.mark.kafka
def test_a_certificate_nobody_vouches_for_is_refused(kafka_sasl_ssl: KafkaCluster) -> None:
    with pytest.raises(BrokerAuthFailed, match=r"kafka\.ssl_cafile"):
        describe(settings(kafka_sasl_ssl, ssl_cafile=None), ["any"])


@pytest.mark.kafka
def test_mutual_tls_without_our_certificate_is_explained(kafka_ssl: KafkaCluster) -> None:
    with pytest.raises(BrokerAuthFailed, match=r"kafka\.ssl_certfile"):
        describe(settings(kafka_ssl, ssl_certfile=None, ssl_keyfile=None), ["any"])


@pytest.mark.kafka
@pytest.mark.parametrize("fixture", ["kafka_ssl", "kafka_sasl_plaintext", "kafka_sasl_ssl"])
def test_plaintext_to_a_guarded_listener_asks_for_the_protocol(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    cluster: KafkaCluster = request.getfixturevalue(fixture)
    with pytest.raises(BrokerUnreachable, match=r"another kafka\.security_protocol"):
        describe(Connection(brokers=cluster.bootstrap), ["any"], timeout_s=0.5)


@pytest.mark.kafka
def test_guarded_protocols_to_a_plaintext_listener_are_explained(kafka: KafkaCluster) -> None:
    with pytest.raises(BrokerUnreachable, match=r"another kafka\.security_protocol"):
        describe(Connection(brokers=kafka.bootstrap, security_protocol="SSL"), ["any"], timeout_s=0.5)
    with pytest.raises(BrokerAuthFailed, match="does not ask for SASL"):
        describe(
            Connection(
                brokers=kafka.bootstrap, security_protocol="SASL_PLAINTEXT", username="u", password="p"
            ),
            ["any"],
        )


@pytest.mark.kafka
def test_one_broker_that_answers_is_enough(kafka: KafkaCluster) -> None:
    conn = Connection(brokers=f"127.0.0.1:9,{kafka.bootstrap}")
    asyncio.run(reach(conn, timeout_s=5, on_retry=lambda *_: pytest.fail("tried again")))


@pytest.mark.kafka
def test_an_advertised_address_that_leads_nowhere_is_named() -> None:
    """As with a compose file whose broker advertises its container's name to the host."""
    said = pytest.raises(BrokerUnreachable, match=r"kafka\.invalid:\d+ .*advertised\.listeners")
    with KafkaCluster(1, advertised_host="kafka.invalid") as elsewhere, said:
        describe(Connection(brokers=elsewhere.bootstrap), ["any"], timeout_s=1)


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BrokerUnreachable, match="no answer within"):
            asyncio.run(reach(Connection(brokers=address), timeout_s=0.5))


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(BrokerUnreachable, match=r"nowhere\.invalid:9092"):
        asyncio.run(reach(Connection(brokers="nowhere.invalid"), timeout_s=0.3))


@pytest.mark.parametrize("written", ["a:1,b", "a:1; kafka://b:9092", ("a:1", "b")])
def test_brokers_are_read_as_people_write_them(written: str | tuple[str, ...]) -> None:
    assert Connection(brokers=written).brokers == ("a:1", "b:9092")


@pytest.mark.parametrize("written", ["", " , ", "a:x", "http://a:1", "a:99999", "a/b"])
def test_brokers_that_are_no_addresses_are_refused(written: str) -> None:
    with pytest.raises(InvalidConnection, match="brokers"):
        Connection(brokers=written)


def test_a_password_written_into_the_address_is_not_repeated() -> None:
    with pytest.raises(InvalidConnection) as raised:
        Connection(brokers=f"user:{PASSWORD}@host:9092")
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs username and password"),
        ({"username": "u", "password": "p"}, "did you mean SASL_SSL"),
        ({"ssl_cafile": "ca.pem"}, "did you mean SSL"),
        ({"security_protocol": "SSL", "ssl_keyfile": "key"}, "without ssl_certfile"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidConnection, match=said):
        Connection(brokers="a", **given)  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({"brokers": ["a"], **given}, Connection)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    conn = Connection(brokers="a", security_protocol="SSL", ssl_cafile=str(tmp_path / "absent.pem"))
    with pytest.raises(InvalidConnection, match=r"ssl_cafile.*absent\.pem"):
        for_aiokafka(conn)


def test_no_repr_shows_the_password() -> None:
    conn = Connection(brokers="a", security_protocol="SASL_SSL", username="u", password=PASSWORD)
    assert PASSWORD not in f"{conn!r} {conn} {for_faust(conn)!r} {for_aiokafka(conn)!r}"
    with pytest.raises(TypeError):
        msgspec.json.encode(conn)
    assert for_aiokafka(conn)["sasl_plain_password"] == PASSWORD
