"""Topic administration; the only place that uses kafka-python."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import kafka.errors
import msgspec
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic

from streamproc.errors import BrokerError, BrokerUnreachable, TopicMissing, TopicRejected
from streamproc.worker.connection import Connection, OnRetry, for_kafka_python, reach

#: Once `reach` has had an answer, what follows is one request or two.
_REQUEST_TIMEOUT_S = 15.0

_UNKNOWN_TOPIC = 3
_INVALID_TOPIC = 17
_ALREADY_EXISTS = 36


class TopicSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A topic as we want it.

    Parameters
    ----------
    replication_factor
        -1: the broker's default.
    config
        topic configuration, such as ``{"cleanup.policy": "compact"}``.
    siblings
        topics of one such name are assigned together, so must have equally many partitions.
    """

    name: str
    partitions: int
    replication_factor: int = -1
    config: dict[str, str] = msgspec.field(default_factory=dict)
    siblings: str | None = None


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What tells a topic from another of the same name that was there before it.

    id: in hexadecimal; "" where the broker gives topics none, as those before 2.8 do.
    """

    id: str
    partitions: int


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in which a topic is not as wanted, and cannot be made so without the operator."""

    topic: str
    what: str
    wanted: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.found}, wanted {self.wanted}; {self.advice}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `ensure` found and did. `partitions` holds every topic of it."""

    created: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    partitions: dict[str, int] = msgspec.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every topic is as wanted."""
        return not self.mismatched


def describe(
    conn: Connection, names: Iterable[str], *, timeout_s: float = 30.0, on_retry: OnRetry | None = None
) -> dict[str, int]:
    """Return the number of partitions of each topic that exists, by name.

    Blocks, and runs an event loop of its own: call it from a thread where one is running.
    Raises BrokerUnreachable and BrokerAuthFailed.
    """
    with _admin(conn, timeout_s=timeout_s, on_retry=on_retry) as admin:
        return _partitions(admin, list(names))


def identify(conn: Connection, names: Iterable[str], *, timeout_s: float = 10.0) -> dict[str, Identity]:
    """Return what each topic that exists is, by name: the answer to a metadata request of version 10 or later.

    Blocks as `describe` does, and raises what it raises.
    """
    try:
        with _admin(conn, timeout_s=timeout_s, on_retry=None) as admin:
            return {
                topic["name"]: Identity(id=_topic_id(topic), partitions=len(topic["partitions"]))
                for topic in _described(admin, list(names))
            }
    except kafka.errors.KafkaError as error:
        raise BrokerError(f"{conn.bootstrap} does not tell of its topics: {_plain(error)}") from error


def ensure(
    conn: Connection,
    specs: Sequence[TopicSpec],
    *,
    create: bool,
    timeout_s: float = 30.0,
    on_retry: OnRetry | None = None,
) -> Report:
    """Create the topics that are missing, if we may; report those that are not as wanted.

    An existing topic is never altered: more partitions would send a model's events to another one, and
    a change of `cleanup.policy` can delete. Blocks as `describe` does.

    Raises
    ------
    TopicMissing
        when a topic is not there and `create` is False.
    TopicRejected
        when the broker refuses one; those before it may have been created.
    BrokerUnreachable, BrokerAuthFailed
        see `connection.reach`.
    """
    with _admin(conn, timeout_s=timeout_s, on_retry=on_retry) as admin:
        found = _partitions(admin, [spec.name for spec in specs])
        missing = [spec for spec in specs if spec.name not in found]
        if missing and not create:
            names = ", ".join(spec.name for spec in missing)
            raise TopicMissing(
                f"{conn.bootstrap} has no topic {names}; create it with `streamproc topics create`"
            )
        created = _create(admin, conn, missing)
        existing = [spec for spec in specs if spec.name not in created]
        configs = _configs(admin, [spec.name for spec in existing if spec.config])
        # Somebody else's create may have won the race since we looked, with partitions of his own.
        raced = [spec.name for spec in existing if spec.name not in found]
        partitions = {
            **found,
            **_partitions(admin, raced),
            **{spec.name: spec.partitions for spec in missing if spec.name in created},
        }
        return Report(
            created=tuple(created),
            existing=tuple(spec.name for spec in existing),
            mismatched=(*_compare(existing, partitions, configs), *_compare_siblings(specs, partitions)),
            partitions={spec.name: partitions[spec.name] for spec in specs if spec.name in partitions},
        )


@contextmanager
def _admin(conn: Connection, *, timeout_s: float, on_retry: OnRetry | None) -> Iterator[KafkaAdminClient]:
    # kafka-python's own start-up waits out its timeout whatever is wrong, says nothing of the reason, and
    # leaves its I/O thread running (3.0.12): it is only started once the brokers are known to answer.
    asyncio.run(reach(conn, timeout_s=timeout_s, on_retry=on_retry))
    limit_ms = int(_REQUEST_TIMEOUT_S * 1000)
    try:
        admin = KafkaAdminClient(
            **for_kafka_python(conn), bootstrap_timeout_ms=limit_ms, request_timeout_ms=limit_ms
        )
        try:
            yield admin
        finally:
            admin.close()
    except (kafka.errors.KafkaConnectionError, kafka.errors.RetriableError) as error:
        raise BrokerUnreachable(
            f"lost the connection to {conn.bootstrap}: {_plain(error)}; try again"
        ) from error


def _partitions(admin: KafkaAdminClient, names: list[str]) -> dict[str, int]:
    return {topic["name"]: len(topic["partitions"]) for topic in _described(admin, names)}


def _described(admin: KafkaAdminClient, names: list[str]) -> Iterator[dict[str, Any]]:
    if not names:
        return  # to kafka-python, none means all
    for topic in admin.describe_topics(names):
        if topic["error_code"] in (_UNKNOWN_TOPIC, _INVALID_TOPIC):
            continue  # of an invalid name the refusal to create says more
        if topic["error_code"] != 0:
            error = kafka.errors.for_code(topic["error_code"])
            raise TopicRejected(f"{topic['name']}: the broker does not describe it ({error.__name__})")
        yield topic


def _topic_id(topic: Mapping[str, Any]) -> str:
    """Return a topic's id (KIP-516) in hexadecimal, "" where the broker is too old to give it any."""
    found = topic.get("topic_id")
    number = 0 if found is None else uuid.UUID(str(found)).int
    return f"{number:032x}" if number else ""


def _create(admin: KafkaAdminClient, conn: Connection, specs: Sequence[TopicSpec]) -> list[str]:
    if not specs:
        return []
    wanted = [
        NewTopic(spec.name, spec.partitions, spec.replication_factor, topic_configs=dict(spec.config))
        for spec in specs
    ]
    answer = admin.create_topics(wanted, raise_errors=False)
    created = []
    for topic in answer["topics"]:
        if topic["error_code"] == 0:
            created.append(topic["name"])
        elif topic["error_code"] != _ALREADY_EXISTS:
            error = kafka.errors.for_code(topic["error_code"])
            raise TopicRejected(
                f"{conn.bootstrap} refuses to create topic {topic['name']}: "
                f"{topic['error_message'] or error.__name__}"
            )
    # The controller knows them now; the brokers that clients ask learn of them a moment later.
    if created:
        admin.wait_for_topics(created)
    return created


def _configs(admin: KafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    # Whole, not by key: Tansu 0.6 hangs up when asked for one.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    answer: Mapping[str, Mapping[str, Any]] = admin.describe_configs(resources, config_filter="all")["topic"]
    return {
        name: {key: str(entry["value"]) for key, entry in entries.items()} for name, entries in answer.items()
    }


def _compare(
    specs: Sequence[TopicSpec], partitions: Mapping[str, int], configs: Mapping[str, Mapping[str, str]]
) -> Iterator[Mismatch]:
    for spec in specs:
        found = partitions.get(spec.name)
        if found is not None and found < spec.partitions:
            yield Mismatch(
                topic=spec.name,
                what="the number of partitions",
                wanted=str(spec.partitions),
                found=str(found),
                advice="add some when no worker runs, keys move between partitions; or ask for fewer",
            )
        for key, wanted in spec.config.items():
            value = configs.get(spec.name, {}).get(key)
            # None where a broker does not tell, as Tansu does for what was never set.
            if value is None or _same(key, value, wanted):
                continue
            yield Mismatch(
                topic=spec.name,
                what=key,
                wanted=wanted,
                found=value,
                advice=f"set it with kafka-configs.sh --alter --add-config {key}={wanted}",
            )


def _compare_siblings(specs: Sequence[TopicSpec], partitions: Mapping[str, int]) -> Iterator[Mismatch]:
    families: dict[str, list[str]] = defaultdict(list)
    for spec in specs:
        if spec.siblings is not None and spec.name in partitions:
            families[spec.siblings].append(spec.name)
    for names in families.values():
        most = max(names, key=lambda name: partitions[name])
        for name in names:
            if partitions[name] != partitions[most]:
                yield Mismatch(
                    topic=name,
                    what="the number of partitions",
                    wanted=f"{partitions[most]} as {most} has",
                    found=str(partitions[name]),
                    advice="one model's events are then read by different workers; make them equal",
                )


def _same(key: str, found: str, wanted: str) -> bool:
    if key == "cleanup.policy":  # a list, its order of no meaning
        return {word.strip() for word in found.split(",")} == {word.strip() for word in wanted.split(",")}
    return found == wanted


def _plain(error: Exception) -> str:
    """Name an error without its message, which quotes whole requests."""
    return type(error).__name__
