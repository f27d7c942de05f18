"""The snapshot topic: state that survives a crash, and cannot be spoilt by a zombie.

The topic is compacted. Its records are

    ["claim", topic, partition]                  someone takes this partition up
    ["model", topic, partition, model, token]    one model's state
    ["manifest", topic, partition, token]        the offset from which to go on

A worker that takes a partition up writes a claim; the offset the broker gives it is the worker's
token. Tokens only grow, so whoever took the partition up last has the greatest. Every key ends in
its writer's token: a zombie's late write can neither overwrite nor, after compaction, displace the
state of the worker that followed it. Readers take the greatest token of each model; whatever is
older is deleted once its successor is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import aiokafka
import orjson
from aiokafka import TopicPartition
from msgspec import Struct, field

from streamproc.topology import MAX_RECORD_BYTES

#: Sends key and value to a partition of the snapshot topic; awaits the broker; returns the offset.
Send = Callable[[int, bytes, bytes | None], Awaitable["asyncio.Future[Any]"]]

#: Largest record of a snapshot; the topic is created for it.
MAX_SNAPSHOT_BYTES = MAX_RECORD_BYTES


class Stored(Struct):
    """What the snapshot topic holds for one source partition."""

    token: int
    manifest: dict[str, Any] | None = None
    models: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)  # older ones, by model, to be deleted
    manifest_tokens: list[int] = field(default_factory=list)
    claims: dict[int, str] = field(default_factory=dict)  # app_id of who claimed it, by token

    def others(self, app_id: str) -> set[str]:
        """Return whose state it is, where not of this deployment: the app_ids."""
        if self.manifest is not None:
            told = self.manifest.get("app_id") or self.claims.get(max(self.manifest_tokens, default=-1), app_id)
            return {told} - {app_id}
        return set(self.claims.values()) - {app_id}


def claim_key(topic: str, partition: int) -> bytes:
    """Return the key under which a partition is claimed."""
    return orjson.dumps(["claim", topic, partition])


def model_key(topic: str, partition: int, model: str, token: int) -> bytes:
    """Return the key of one model's state."""
    return orjson.dumps(["model", topic, partition, model, token])


def manifest_key(topic: str, partition: int, token: int) -> bytes:
    """Return the key of a partition's manifest."""
    return orjson.dumps(["manifest", topic, partition, token])


async def read(
    settings: dict[str, Any],
    *,
    topic: str,
    claims: dict[tuple[str, int], tuple[int, int]],
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, int], Stored]:
    """Read the state of source partitions up to their claims.

    settings: of aiokafka. claims: source (topic, partition) → (snapshot partition, claim's offset).
    progress is told records read and records to read.
    """
    stored = {source: Stored(token) for source, (_, token) in claims.items()}
    newest: dict[tuple[str, int], dict[str, int]] = {source: {} for source in claims}
    newest_manifest = dict.fromkeys(claims, -1)
    ends: dict[int, int] = {}
    for partition, token in claims.values():
        ends[partition] = max(ends.get(partition, 0), token)
    consumer = aiokafka.AIOKafkaConsumer(
        **settings,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=MAX_SNAPSHOT_BYTES,
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in ends]
        consumer.assign(tps)
        begins = await consumer.beginning_offsets(tps)
        total = sum(ends[tp.partition] - begins[tp] for tp in tps)
        for tp in tps:
            consumer.seek(tp, begins[tp])
        done = 0
        left = {tp.partition for tp in tps}
        while left:
            fetched = await consumer.getmany(timeout_ms=200)
            for tp, records in fetched.items():
                for record in records:
                    if record.offset > ends[tp.partition]:
                        break
                    done += 1
                    _take(record, stored, newest, newest_manifest)
            if progress is not None:
                progress(done, total)
            for tp in tps:
                if tp.partition in left and await consumer.position(tp) > ends[tp.partition]:
                    left.discard(tp.partition)
                    consumer.pause(tp)
    finally:
        await consumer.stop()
    for into in stored.values():
        for model in (into.manifest or {}).get("gone", ()):
            into.models.pop(model, None)
    return stored


def _take(
    record: Any,
    stored: dict[tuple[str, int], Stored],
    newest: dict[tuple[str, int], dict[str, int]],
    newest_manifest: dict[tuple[str, int], int],
) -> None:
    kind, topic, partition, *rest = orjson.loads(record.key)
    source = (topic, partition)
    into = stored.get(source)
    if into is None:
        return
    if kind == "claim":
        if record.value is not None:
            into.claims[record.offset] = orjson.loads(record.value).get("claimed_by", "")
        return
    token = rest[-1]
    if kind == "manifest":
        if record.value is None:
            if token in into.manifest_tokens:
                into.manifest_tokens.remove(token)
            return
        if token not in into.manifest_tokens:
            into.manifest_tokens.append(token)
        if token >= newest_manifest[source]:
            newest_manifest[source] = token
            into.manifest = orjson.loads(record.value)
        return
    model = rest[0]
    tokens = into.tokens.setdefault(model, [])
    if record.value is None:
        if token in tokens:
            tokens.remove(token)
        if newest[source].get(model) == token:
            # Deleted by its own writer: the model was forgotten. (A successor deletes only after it
            # has written its own, which then is the newest.)
            del newest[source][model]
            into.models.pop(model, None)
        return
    if token not in tokens:
        tokens.append(token)
    if token >= newest[source].get(model, -1):
        newest[source][model] = token
        into.models[model] = record.value


class Writer:
    """Writes the state of one source partition under one token."""

    def __init__(self, send: Send, *, topic: str, partition: int, stored: Stored, snapshot_partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.token = stored.token
        self._send = send
        self._at = snapshot_partition
        self._older = {m: t for m, t in stored.tokens.items() if t}
        self._older_manifests = list(stored.manifest_tokens)
        self._written: set[str] = set()

    async def write(self, models: Iterable[tuple[str, bytes]], gone: Iterable[str], manifest: dict[str, Any]) -> int:
        """Make models, then the manifest, durable; then delete what they replace. Return bytes sent.

        The manifest names the models forgotten since the last one: should we die before their state
        is deleted, a reader still leaves them out.
        """
        gone = list(gone)
        sent: list[asyncio.Future[Any]] = []
        deletions: list[bytes] = []
        size = 0
        for count, (model, data) in enumerate(models):
            key = model_key(self.topic, self.partition, model, self.token)
            sent.append(await self._send(self._at, key, data))
            size += len(data)
            self._written.add(model)
            deletions += self._replaced(model)
            if count % 50 == 49:
                await asyncio.sleep(0)  # encoding a state is work; let the rest of the loop live
        await asyncio.gather(*sent)
        await (
            await self._send(
                self._at,
                manifest_key(self.topic, self.partition, self.token),
                orjson.dumps({**manifest, "gone": gone}),
            )
        )
        for model in gone:
            if model in self._written:
                self._written.discard(model)
                deletions.append(model_key(self.topic, self.partition, model, self.token))
            deletions += self._replaced(model)
        deletions += [manifest_key(self.topic, self.partition, t) for t in self._older_manifests]
        self._older_manifests = []
        # Deletions may be lost without harm: the next owner finds the greater token all the same.
        await asyncio.gather(*[await self._send(self._at, key, None) for key in deletions])
        return size

    def _replaced(self, model: str) -> list[bytes]:
        tokens = self._older.pop(model, ())
        return [model_key(self.topic, self.partition, model, t) for t in tokens if t != self.token]


