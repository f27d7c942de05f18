"""The snapshot topic on a real Kafka: fencing, deletion, compaction."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from streamproc.worker import snapshots
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import read as read_topic
from tests.worker.harness import topic

Source = tuple[str, int]
SOURCE: Source = ("in", 0)


class Owner:
    """A worker as the snapshot topic sees it: it claims, reads, and writes."""

    def __init__(self, producer: AIOKafkaProducer, bootstrap: str, name: str) -> None:
        self.producer, self.bootstrap, self.name = producer, bootstrap, name

    async def send(self, partition: int, key: bytes, value: bytes | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await self.producer.send(self.name, value, key=key, partition=partition)
        return future

    async def take_up(self) -> tuple[snapshots.Stored, snapshots.Writer]:
        claim = await (await self.send(0, snapshots.claim_key(*SOURCE), b"{}"))
        settings = {"bootstrap_servers": self.bootstrap}
        found = await snapshots.read(settings, topic=self.name, claims={SOURCE: (0, claim.offset)})
        stored = found[SOURCE]
        writer = snapshots.Writer(self.send, topic="in", partition=0, stored=stored, snapshot_partition=0)
        return stored, writer


def on_kafka(kafka: KafkaCluster, name: str, scenario: Any, **settings: str) -> None:
    topic(kafka.bootstrap, name, 1, **{"cleanup.policy": "compact", **settings})

    async def run() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap)
        await producer.start()
        try:
            await scenario(Owner(producer, kafka.bootstrap, name))
        finally:
            await producer.stop()

    asyncio.run(run())


@pytest.mark.kafka
def test_the_next_owner_finds_models_and_manifest(kafka: KafkaCluster) -> None:
    async def scenario(owner: Owner) -> None:
        stored, writer = await owner.take_up()
        assert stored.manifest is None
        await writer.write([("a", b"a1"), ("b", b"b1")], [], {"next_offset": 10})
        await writer.write([("a", b"a2")], [], {"next_offset": 20})
        stored, _ = await owner.take_up()
        assert stored.models == {"a": b"a2", "b": b"b1"}
        assert stored.manifest == {"next_offset": 20, "gone": []}

    on_kafka(kafka, "snap-next", scenario)


@pytest.mark.kafka
def test_a_zombie_that_writes_late_changes_nothing_for_its_successors(kafka: KafkaCluster) -> None:
    async def scenario(owner: Owner) -> None:
        _, zombie = await owner.take_up()
        await zombie.write([("a", b"old"), ("b", b"b1")], [], {"next_offset": 10})
        _, successor = await owner.take_up()
        await successor.write([("a", b"new")], [], {"next_offset": 30})
        await zombie.write([("a", b"older still")], [], {"next_offset": 15})
        stored, third = await owner.take_up()
        assert stored.models == {"a": b"new", "b": b"b1"}
        assert stored.manifest == {"next_offset": 30, "gone": []}
        await third.write([("a", b"newest")], [], {"next_offset": 40})
        stored, _ = await owner.take_up()
        assert stored.models["a"] == b"newest"
        # What older tokens left behind has been deleted by now, the zombie's late copies too.
        assert stored.tokens["a"] == [third.token]
        assert stored.manifest_tokens == [third.token]

    on_kafka(kafka, "snap-zombie", scenario)


@pytest.mark.kafka
def test_a_forgotten_model_stays_forgotten_though_its_deletion_was_lost(kafka: KafkaCluster) -> None:
    async def scenario(owner: Owner) -> None:
        _, writer = await owner.take_up()
        await writer.write([("a", b"a1"), ("b", b"b1")], [], {"next_offset": 10})
        # Killed between the manifest and the deletions: only the manifest says that `a` is gone.
        manifest = snapshots.manifest_key("in", 0, writer.token)
        await (await owner.send(0, manifest, b'{"next_offset": 20, "gone": ["a"]}'))
        stored, _ = await owner.take_up()
        assert stored.models == {"b": b"b1"}

    on_kafka(kafka, "snap-gone", scenario)


@pytest.mark.kafka
@pytest.mark.slow
def test_compaction_keeps_what_a_restore_needs(kafka: KafkaCluster) -> None:
    settings = {
        "segment.ms": "200",
        "min.cleanable.dirty.ratio": "0.01",
        "delete.retention.ms": "100",
        "min.compaction.lag.ms": "0",
    }

    async def scenario(owner: Owner) -> None:
        _, zombie = await owner.take_up()
        await zombie.write([("a", b"zombie")], [], {"next_offset": 1})
        _, writer = await owner.take_up()
        for round_ in range(60):
            await writer.write([("a", str(round_).encode() * 100)], [], {"next_offset": round_})
            if round_ % 10 == 0:
                await zombie.write([("a", b"zombie")], [], {"next_offset": 2})
            await asyncio.sleep(0.05)
        deadline = time.monotonic() + 60
        while len(await asyncio.to_thread(read_topic, owner.bootstrap, owner.name, 1)) > 60:
            assert time.monotonic() < deadline, "the broker did not compact"
            await asyncio.sleep(1)
        stored, _ = await owner.take_up()
        assert stored.models == {"a": b"59" * 100}
        assert stored.manifest == {"next_offset": 59, "gone": []}

    on_kafka(kafka, "snap-compact", scenario, **settings)


def keys_of(bootstrap: str, name: str, kind: str) -> set[bytes]:
    """Return the keys of a kind whose latest record is none that deletes."""
    latest = {m.key(): m.value() for m in read_topic(bootstrap, name, 1)}
    return {k for k, v in latest.items() if v is not None and orjson.loads(k)[0] == kind}


@pytest.mark.kafka
def test_a_state_its_topic_does_not_take_whole_is_kept_in_parts_and_found_again(kafka: KafkaCluster) -> None:
    large = [random.Random(i).randbytes(3_000_000) for i in range(4)]

    async def scenario(owner: Owner) -> None:
        _, writer = await owner.take_up()
        await writer.write([("a", large[0]), ("b", b"small")], [], {"next_offset": 10})
        stored, _ = await owner.take_up()
        assert stored.models == {"a": large[0], "b": b"small"}
        for state in (large[1], large[2]):
            await writer.write([("a", state)], [], {"next_offset": 20})
        stored, successor = await owner.take_up()
        assert stored.models == {"a": large[2], "b": b"small"}
        # What an older token, and an older state, left behind is deleted.
        await successor.write([("a", large[3])], [], {"next_offset": 30})
        stored, _ = await owner.take_up()
        assert stored.models == {"a": large[3], "b": b"small"}
        parts = await asyncio.to_thread(keys_of, owner.bootstrap, owner.name, "part")
        assert {orjson.loads(k)[4] for k in parts} == {successor.token}
        await successor.write([("a", b"small again")], [], {"next_offset": 40})
        assert await asyncio.to_thread(keys_of, owner.bootstrap, owner.name, "part") == set()
        stored, third = await owner.take_up()
        assert stored.models == {"a": b"small again", "b": b"small"}
        await third.write([("a", large[0])], ["b"], {"next_offset": 50})
        await third.write([], ["a"], {"next_offset": 60})
        assert await asyncio.to_thread(keys_of, owner.bootstrap, owner.name, "part") == set()

    on_kafka(kafka, "snap-narrow", scenario, **{"max.message.bytes": "1048588"})


@pytest.mark.kafka
def test_a_writer_killed_between_parts_leaves_the_state_before_whole(kafka: KafkaCluster) -> None:
    large = [random.Random(i).randbytes(3_000_000) for i in range(2)]

    async def scenario(owner: Owner) -> None:
        _, writer = await owner.take_up()
        await writer.write([("a", large[0])], [], {"next_offset": 10})
        sent = 0
        through = writer._send

        async def dies(partition: int, key: bytes, value: bytes | None) -> asyncio.Future[Any]:
            nonlocal sent
            sent += 1
            if sent == 3:
                raise OSError("killed")
            return await through(partition, key, value)

        writer._send = dies
        with pytest.raises(OSError, match="killed"):
            await writer.write([("a", large[1])], [], {"next_offset": 20})
        stored, _ = await owner.take_up()
        assert stored.models == {"a": large[0]}
        assert stored.manifest == {"next_offset": 10, "gone": []}

    on_kafka(kafka, "snap-killed", scenario, **{"max.message.bytes": "1048588"})
