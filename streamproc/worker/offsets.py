"""Where a deployment has got to, partition by partition, and how to have it begin elsewhere.

A worker goes on from its manifest, of which the group's offset is only a copy for others to see. So both are set
together here, under a claim of our own, and only while no worker runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiokafka
import orjson
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from msgspec import Struct

from streamproc import topology
from streamproc.config import Config
from streamproc.errors import ForeignState, UsageError
from streamproc.worker import snapshots
from streamproc.worker.beginnings import inside, outside
from streamproc.worker.connection import connection, for_aiokafka
from streamproc.worker.driver import MARK
from streamproc.worker.topics import Identity, identify

#: Where to begin: a word, the log's offset, or a time in microseconds since the epoch.
To = Literal["earliest", "latest", "saved", "group"]


class Position(Struct, kw_only=True):
    """One partition: its log's first offset and end, what the group has committed, and what the state covers.

    ours: whether a worker has committed it. moved: where it begins after a reset, else None; forgotten: how many
    models it then has no state of any more.
    """

    topic: str
    partition: int
    begin: int
    end: int
    committed: int | None
    ours: bool
    saved: int | None
    models: int
    moved: int | None = None
    forgotten: int = 0


async def positions(config: Config, *, topics: Sequence[str] = ()) -> list[Position]:
    """Return the position of each partition whose records are scored; topics: of these alone. Changes nothing."""
    async with _clients(config) as (consumer, _):
        found, _ = await _positions(config, consumer, await _identities(config, topics), claims=None)
        return found


async def reset(
    config: Config, *, to: To | None = None, offset: int | None = None, time_us: int | None = None,
    topics: Sequence[str] = (), dry_run: bool = False,
) -> list[Position]:  # fmt: skip
    """Have each partition begin elsewhere: at `to`, at an offset, or at the first record of a time.

    Further back, a partition's models are forgotten: they would take what they had for copies, and what comes for late.
    Further on, they keep what they learned. Raises UsageError where workers run.
    """
    identities = await _identities(config, topics)
    await _nobody_runs(config)
    async with _clients(config) as (consumer, producer):
        claims = None if dry_run else await _claim(config, producer, identities)
        found, stored = await _positions(config, consumer, identities, claims=claims)
        commits = {}
        for at in found:
            tp = TopicPartition(at.topic, at.partition)
            wanted = await _wanted(consumer, at, to=to, offset=offset, time_us=time_us)
            if wanted is None:
                continue
            at.moved = min(max(wanted, at.begin), at.end)
            back = at.saved is not None and at.moved < at.saved
            at.forgotten = at.models if back else 0
            commits[tp] = (at.moved, MARK)
            own = stored[at.topic, at.partition]
            if not dry_run and own.manifest is not None:
                await _write(config, producer, at, own, identities[at.topic], back=back)
        if commits and not dry_run:
            await consumer.commit(commits)
        return found


async def _wanted(
    consumer: Any, at: Position, *, to: To | None, offset: int | None, time_us: int | None
) -> int | None:
    if offset is not None:
        return offset
    if time_us is not None:
        tp = TopicPartition(at.topic, at.partition)
        found = (await consumer.offsets_for_times({tp: time_us // 1000}))[tp]
        return at.end if found is None else int(found.offset)
    places: dict[To | None, int | None] = {
        "earliest": at.begin, "latest": at.end, "saved": at.saved, "group": at.committed
    }  # fmt: skip
    return places[to]


async def _write(
    config: Config, producer: Any, at: Position, own: snapshots.Stored, identity: Identity, *, back: bool
) -> None:
    was = own.manifest or {}
    noted = was.get("log", {})
    life = int(noted.get("life", 0))
    if noted.get("topic_id") and identity.id and noted["topic_id"] != identity.id:
        life += 1
    assert at.moved is not None
    manifest = {
        **was,
        "next_offset": inside(at.moved, life),
        "log": {
            **noted, "life": life, "topic_id": identity.id, "app_id": config.kafka.app_id, "marked": True,
        },
    }  # fmt: skip
    if back:
        manifest["clock_us"] = 0
        manifest.pop("fleet", None)

    async def send(partition: int, key: bytes, value: bytes | None) -> asyncio.Future[Any]:
        sent: asyncio.Future[Any] = await producer.send(config.kafka.snapshots, value, key=key, partition=partition)
        return sent

    writer = snapshots.Writer(
        send, topic=at.topic, partition=at.partition, stored=own, snapshot_partition=own.partition
    )
    await writer.write([], list(own.models) if back else [], manifest)


async def _identities(config: Config, topics: Sequence[str]) -> dict[str, Identity]:
    """Return the topics whose records are scored, and the snapshot topic."""
    table = topology.topics(config.kafka)
    scored = [t.name for t in table if t.role == "byModel"] or [t.name for t in table if t.siblings == "sources"]
    if unknown := sorted(set(topics) - set(scored)):
        raise UsageError(f"--topic: {', '.join(unknown)} is not scored by this config; known: {', '.join(scored)}")
    wanted = [t for t in scored if not topics or t in topics]
    found = await asyncio.to_thread(identify, connection(config), [*wanted, config.kafka.snapshots])
    if config.kafka.snapshots not in found:
        raise UsageError(f"there is no topic {config.kafka.snapshots}: no worker of this config has run yet")
    return found


@asynccontextmanager
async def _clients(config: Config) -> AsyncIterator[tuple[Any, Any]]:
    settings = for_aiokafka(connection(config))
    consumer = aiokafka.AIOKafkaConsumer(**settings, group_id=config.kafka.app_id, enable_auto_commit=False)
    producer = aiokafka.AIOKafkaProducer(**settings, acks="all", max_request_size=topology.MAX_RECORD_BYTES)
    await consumer.start()
    try:
        await producer.start()
        try:
            yield consumer, producer
        finally:
            await producer.stop()
    finally:
        await consumer.stop()


async def _nobody_runs(config: Config) -> None:
    admin = AIOKafkaAdminClient(**for_aiokafka(connection(config)))
    await admin.start()
    try:
        answers = await admin.describe_consumer_groups([config.kafka.app_id])
        members = sum(len(group[5]) for answer in answers for group in answer.groups)
    finally:
        await admin.close()
    if members:
        raise UsageError(
            f"{members} worker{'s run' if members > 1 else ' runs'} as {config.kafka.app_id}; stop all of them first, "
            "and wait until their session has ended"
        )


async def _claim(
    config: Config, producer: Any, identities: dict[str, Identity]
) -> dict[tuple[str, int], tuple[int, int]]:
    """Claim every partition, so that whoever has had it before can write no more of it."""
    state = config.kafka.snapshots
    member = orjson.dumps({"claimed_by": config.kafka.app_id})
    claims = {}
    for topic, identity in identities.items():
        for partition in range(identity.partitions if topic != state else 0):
            at = partition % identities[state].partitions
            key = snapshots.claim_key(topic, partition)
            sent = await producer.send_and_wait(state, member, key=key, partition=at)
            claims[topic, partition] = (at, int(sent.offset))
    return claims


async def _positions(
    config: Config,
    consumer: Any,
    identities: dict[str, Identity],
    *,
    claims: dict[tuple[str, int], tuple[int, int]] | None,
) -> tuple[list[Position], dict[tuple[str, int], snapshots.Stored]]:
    state = config.kafka.snapshots
    count = identities[state].partitions
    tps = [TopicPartition(t, p) for t, found in identities.items() if t != state for p in range(found.partitions)]
    if claims is None:  # only to look: up to the end, under no token
        ends = await consumer.end_offsets([TopicPartition(state, p) for p in range(count)])
        last = {p: ends[TopicPartition(state, p)] - 1 for p in range(count)}
        claims = {(tp.topic, tp.partition): (tp.partition % count, last[tp.partition % count]) for tp in tps}
    consumer.assign(tps)
    stored = await snapshots.read(for_aiokafka(connection(config)), topic=state, claims=claims)
    begins, logs = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    committed = await consumer._coordinator.fetch_committed_offsets(tps)
    out = []
    for tp in tps:
        own = stored[tp.topic, tp.partition]
        if others := sorted(own.others(config.kafka.app_id)):
            raise ForeignState(f"{state} holds the state of another deployment, app_id {', '.join(others)}")
        own.partition = tp.partition % count
        at = committed.get(tp)
        known = at is not None and at.offset >= 0
        out.append(
            Position(
                topic=tp.topic,
                partition=tp.partition,
                begin=begins[tp],
                end=logs[tp],
                committed=int(at.offset) if known else None,
                ours=known and at.metadata == MARK,
                saved=None if own.manifest is None else outside(int(own.manifest["next_offset"])),
                models=sum("\x00" not in name for name in own.models),
            )
        )
    return out, stored
