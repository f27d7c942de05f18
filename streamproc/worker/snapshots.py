"""The snapshot topic: state that survives a crash, and cannot be spoilt by a zombie.

The topic is compacted. Its records are

    ["claim", topic, partition]                  someone takes this partition up
    ["model", topic, partition, model, token]    one model's state, or which parts it is in
    ["part", topic, partition, model, token, side, number]  a part of a state that is too large for one record
    ["manifest", topic, partition, token]        the offset from which to go on

A worker that takes a partition up writes a claim; the offset the broker gives it is the worker's
token. Tokens only grow, so whoever took the partition up last has the greatest. Every key ends in
its writer's token: a zombie's late write can neither overwrite nor, after compaction, displace the
state of the worker that followed it. Readers take the greatest token of each model; whatever is
older is deleted once its successor is durable.

A state that its topic does not take whole is written in parts, and after them the record that names them. Each time
the parts go to the other of two sides, so that until that record is durable those it replaces are whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Set
from typing import Any

import aiokafka
import orjson
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError
from msgspec import Struct, field

from streamproc.topology import MAX_RECORD_BYTES

#: Sends key and value to a partition of the snapshot topic; awaits the broker; returns the offset.
Send = Callable[[int, bytes, bytes | None], Awaitable["asyncio.Future[Any]"]]

log = structlog.get_logger("streamproc.snapshots")

#: In the place of a state that is in parts; no state begins so.
_IN_PARTS = b"\x00in parts\x00"

#: What a record has beside its value: a key, and the frame of a batch.
_OVERHEAD = 10_000

#: Below what a topic takes that nobody has configured, a megabyte and a little.
_BY_DEFAULT = 950_000
_SMALLEST = 20_000

#: A topic that takes less cannot hold states, not even in parts: clients put that much into one batch.
LEAST_MESSAGE_BYTES = 2 * _SMALLEST


class Stored(Struct):
    """What the snapshot topic holds for one source partition."""

    token: int
    manifest: dict[str, Any] | None = None
    models: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)  # older ones, by model, to be deleted
    manifest_tokens: list[int] = field(default_factory=list)
    parts: dict[tuple[str, int], dict[tuple[int, int], bytes]] = field(default_factory=dict)  # by model and token
    partition: int = 0  # of the snapshot topic
    claims: dict[int, str] = field(default_factory=dict)  # app_id of who claimed it, by token

    def others(self, app_id: str) -> set[str]:
        """Return whose state it is, where not of this deployment: the app_ids."""
        if self.manifest is not None:
            by_claim = self.claims.get(max(self.manifest_tokens, default=-1), app_id)  # for manifests of before
            return {self.manifest.get("log", {}).get("app_id") or by_claim} - {app_id}
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


def part_key(topic: str, partition: int, model: str, token: int, side: int, number: int) -> bytes:
    """Return the key of one part of one model's state."""
    return orjson.dumps(["part", topic, partition, model, token, side, number])


class Limit:
    """How large a record of the snapshot topic may be, as far as brokers have told."""

    def __init__(self) -> None:
        self.bytes = MAX_RECORD_BYTES - _OVERHEAD

    def narrow(self, topic: str) -> None:
        """Take note that a record was too large. Raise `MessageSizeTooLargeError` where even small ones are."""
        if self.bytes <= _SMALLEST:
            raise MessageSizeTooLargeError
        self.bytes = min(_BY_DEFAULT, self.bytes // 2)
        log.warning(
            "the snapshot topic takes no record this large, so states are written in parts; "
            f"raise its max.message.bytes to {MAX_RECORD_BYTES}",
            topic=topic,
            part_bytes=self.bytes,
        )


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
        max_partition_fetch_bytes=MAX_RECORD_BYTES,
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
    for source, into in stored.items():
        for model, value in into.models.items():
            into.models[model] = _whole(value, into.parts.get((model, newest[source].get(model, -1)), {}))
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
    if kind == "part":
        token, side, number = rest[1:]
        parts = into.parts.setdefault((model, token), {})
        if record.value is None:
            parts.pop((side, number), None)
        else:
            parts[side, number] = record.value
        return
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


def _whole(value: bytes, parts: dict[tuple[int, int], bytes]) -> bytes:
    """Return a state put together from its parts; where they are not all there, what named them: no state."""
    if not value.startswith(_IN_PARTS):
        return value
    told = orjson.loads(value[len(_IN_PARTS) :])
    data = b"".join(parts.get((told["side"], i), b"") for i in range(told["parts"]))
    return data if hashlib.sha256(data).hexdigest() == told["sha256"] else value


class Writer:
    """Writes the state of one source partition under one token."""

    def __init__(
        self,
        send: Send,
        *,
        topic: str,
        partition: int,
        stored: Stored,
        snapshot_partition: int,
        limit: Limit | None = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.token = stored.token
        self._send = send
        self._at = snapshot_partition
        self._older = {m: t for m, t in stored.tokens.items() if t}
        self._older_manifests = list(stored.manifest_tokens)
        self._written: set[str] = set()
        self._limit = Limit() if limit is None else limit
        self._parts: dict[str, set[tuple[int, int, int]]] = {}  # token, side and number of each, by model
        for (model, token), parts in stored.parts.items():
            self._parts.setdefault(model, set()).update((token, *part) for part in parts)

    async def write(self, models: Iterable[tuple[str, bytes]], gone: Iterable[str], manifest: dict[str, Any]) -> int:
        """Make models, then the manifest, durable; then delete what they replace. Return bytes sent.

        The manifest names the models forgotten since the last one: should we die before their state
        is deleted, a reader still leaves them out.
        """
        gone = list(gone)
        sent: list[tuple[str, bytes, asyncio.Future[Any] | None]] = []  # until the broker has taken it
        deletions: list[bytes] = []
        size = 0
        for count, (model, data) in enumerate(models):
            sent.append((model, data, await self._try(model, data)))
            size += len(data)
            self._written.add(model)
            deletions += self._replaced(model)
            if count % 50 == 49:
                await asyncio.sleep(0)  # encoding a state is work; let the rest of the loop live
                deletions += self._taken(sent)
        # All are awaited, whatever becomes of some of them: what is on its way must not be written to after us.
        answers = await asyncio.gather(*(f for *_, f in sent if f is not None), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, MessageSizeTooLargeError):
                raise answer
        deletions += self._taken(sent)
        for model, data, future in sent:
            if future is not None and len(data) <= self._limit.bytes:
                self._limit.narrow(self.topic)
            deletions += await self._write_in_parts(model, data)
        told = orjson.dumps({**manifest, "gone": gone})
        for model in gone:
            if model in self._written:
                self._written.discard(model)
                deletions.append(model_key(self.topic, self.partition, model, self.token))
            deletions += self._replaced(model) + self._parts_gone(model)
        if len(told) > self._limit.bytes:
            # Too many for one record. Deleted before it, they are gone as well.
            await self._delete(deletions)
            deletions, told = [], orjson.dumps({**manifest, "gone": []})
        await (await self._send(self._at, manifest_key(self.topic, self.partition, self.token), told))
        deletions += [manifest_key(self.topic, self.partition, t) for t in self._older_manifests]
        self._older_manifests = []
        # Deletions may be lost without harm: the next owner finds the greater token all the same.
        await self._delete(deletions)
        return size

    def _taken(self, sent: list[tuple[str, bytes, asyncio.Future[Any] | None]]) -> list[bytes]:
        """Take those that are durable off the list; return the keys of the parts they were in before."""
        taken = [model for model, _, f in sent if f is not None and f.done() and f.exception() is None]
        sent[:] = [s for s in sent if s[2] is None or not s[2].done() or s[2].exception() is not None]
        return [key for model in taken for key in self._parts_gone(model)]

    async def _delete(self, keys: list[bytes]) -> None:
        await asyncio.gather(*[await self._send(self._at, key, None) for key in keys])

    async def _try(self, model: str, data: bytes) -> asyncio.Future[Any] | None:
        """Send a state whole; return None where it is larger than anything the topic takes."""
        if len(data) > self._limit.bytes:
            return None
        try:
            return await self._send(self._at, model_key(self.topic, self.partition, model, self.token), data)
        except MessageSizeTooLargeError:  # the client itself refuses it
            self._limit.narrow(self.topic)
            return None

    async def _write_in_parts(self, model: str, data: bytes) -> list[bytes]:
        """Make a state durable in parts that the topic takes; return the keys of those it replaces."""
        known = self._parts.setdefault(model, set())
        # Never the side that the last record of ours names.
        side = 1 - min((s for token, s, _ in known if token == self.token), default=1)
        while True:
            step = self._limit.bytes
            pieces = [data[i : i + step] for i in range(0, len(data), step)]
            try:
                sent = [
                    await self._send(self._at, part_key(self.topic, self.partition, model, self.token, side, i), piece)
                    for i, piece in enumerate(pieces)
                ]
                await asyncio.gather(*sent)
                break
            except MessageSizeTooLargeError:
                self._limit.narrow(self.topic)
        told = {"parts": len(pieces), "side": side, "sha256": hashlib.sha256(data).hexdigest()}
        head = _IN_PARTS + orjson.dumps(told)
        await (await self._send(self._at, model_key(self.topic, self.partition, model, self.token), head))
        mine = {(self.token, side, i) for i in range(len(pieces))}
        keys = self._parts_gone(model, but=mine)
        self._parts[model] = mine
        return keys

    def _parts_gone(self, model: str, *, but: Set[tuple[int, int, int]] = frozenset()) -> list[bytes]:
        """Return the keys of the parts of a state that are none of it any more."""
        old = self._parts.pop(model, set()) - but
        return [part_key(self.topic, self.partition, model, *part) for part in sorted(old)]

    def _replaced(self, model: str) -> list[bytes]:
        tokens = self._older.pop(model, ())
        return [model_key(self.topic, self.partition, model, t) for t in tokens if t != self.token]


