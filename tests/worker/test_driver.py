"""The private parts of Faust and aiokafka that the driver hangs on, held to the installed versions."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import aiokafka
import aiokafka.consumer.fetcher as fetcher
import faust
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust import types
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.drivers import aiokafka as stock

from streamproc.events import RecordBatch
from streamproc.worker import driver

TP = aiokafka.TopicPartition("batched", 0)


def records(base: int, n: int) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1_000_000)
    for i in range(n):
        builder.append(i, 1_000 + i, b"k", str(base + i).encode(), [("h", b"1")])
    raw = bytearray(builder.build())
    raw[0:8] = base.to_bytes(8, "big")
    return bytes(raw)


def unpack(raw: bytes, *, fetch_offset: int = 0, topic: str = "batched") -> fetcher.PartitionRecords:
    tp = aiokafka.TopicPartition(topic, 0)
    return driver.BatchRecords(tp, MemoryRecords(raw), [], fetch_offset, None, None, False, 0)


@pytest.fixture(autouse=True)
def _installed() -> None:
    driver.install(["batched"])
    driver._last_read.clear()
    driver._passed.clear()
    driver._asked.clear()
    driver._wanted.clear()


def test_the_versions_are_those_the_hooks_were_written_for() -> None:
    assert faust.__version__.startswith("0.15.")
    assert aiokafka.__version__.startswith(("0.12.", "0.13.", "0.14."))


def test_one_fetch_comes_as_one_batch_of_columns() -> None:
    unpacked = unpack(records(10, 5), fetch_offset=10)
    (batch,) = list(unpacked)
    assert isinstance(batch, RecordBatch)
    assert list(batch.offsets) == [10, 11, 12, 13, 14]
    assert list(batch.values) == [b"10", b"11", b"12", b"13", b"14"]
    assert list(batch.timestamps_ms) == [1_000, 1_001, 1_002, 1_003, 1_004]
    assert list(batch.headers[0]) == [("h", b"1")]
    assert batch.position == 10
    assert unpacked.next_fetch_offset == 15


def test_records_below_the_fetch_offset_are_left_out() -> None:
    (batch,) = list(unpack(records(10, 5), fetch_offset=13))
    assert list(batch.offsets) == [13, 14]


def test_batches_are_bounded_and_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BATCH_RECORDS", 4)
    batches = list(unpack(records(0, 6) + records(6, 4)))
    assert [o for b in batches for o in b.offsets] == list(range(10))
    assert all(len(b) <= 4 for b in batches)
    assert [b.previous for b in batches] == [-1, *(b.offsets[-1] for b in batches[:-1])]


def test_small_batches_of_the_broker_are_delivered_together() -> None:
    (batch,) = list(unpack(b"".join(records(i, 1) for i in range(20))))
    assert list(batch.offsets) == list(range(20))


def test_what_lies_beyond_the_last_record_is_passed_once_that_is_dealt_with() -> None:
    # A marker is a batch of its own that holds no record for us: here one whose record is below what was asked for.
    tp = faust.types.TP("batched", 0)
    unpacked = unpack(records(10, 5), fetch_offset=10)
    assert driver.reached(tp, 10) == 10
    first = next(iter(unpacked))
    assert list(first.offsets) == [10, 11, 12, 13, 14]
    assert driver.reached(tp, 10) == 10
    list(unpacked)
    unpacked.next_fetch_offset = 16
    driver._passed[unpacked._tp] = 16
    assert driver.reached(tp, 13) == 13  # what was read is not dealt with yet
    assert driver.reached(tp, 15) == 16


def test_other_topics_are_unpacked_as_ever() -> None:
    found = list(unpack(records(0, 3), topic="elsewhere"))
    assert [type(r).__name__ for r in found] == ["ConsumerRecord"] * 3


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (fetcher.PartitionRecords, "_unpack_records"),
        (fetcher.PartitionRecords, "_consumer_record"),
        (stock.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (stock.AIOKafkaConsumerThread, "_commit"),
        (stock.Consumer, "_to_message"),
        (stock.Consumer, "_new_consumer_thread"),
        (BaseConsumer, "ack"),
        (BaseConsumer, "_add_gap"),
        (BaseConsumer, "_filter_tps_with_pending_acks"),
        (BaseConsumer, "_new_offset"),
        (BaseConsumer, "on_partitions_revoked"),
        (BaseConsumer, "perform_seek"),
        (Recovery, "_resume_streams"),
    ],
)
def test_the_hook_is_still_there(owner: type, name: str) -> None:
    assert callable(getattr(owner, name))


def test_streams_resume_by_asking_us_where_to() -> None:
    assert "perform_seek()" in inspect.getsource(Recovery._resume_streams)
    assert "_partition_assignment_strategy" in inspect.getsource(aiokafka.AIOKafkaConsumer.__init__)


def test_a_batch_from_elsewhere_than_was_asked_for_says_so_once() -> None:
    driver._asked[TP] = 5
    (batch,) = list(unpack(records(10, 5), fetch_offset=10))  # out of range: the client went to where the log begins
    assert (batch.position, batch.wanted) == (10, 5)
    (batch,) = list(unpack(records(15, 5), fetch_offset=15))
    assert batch.wanted == -1


def test_a_batch_of_markers_alone_leaves_it_to_the_next_to_say_so() -> None:
    driver._asked[TP] = 5
    assert list(unpack(b"", fetch_offset=10)) == []
    (batch,) = list(unpack(records(10, 5), fetch_offset=10))
    assert batch.wanted == 5


def test_what_was_committed_is_asked_of_the_groups_coordinator_with_its_mark() -> None:
    """A private part of aiokafka: offset and metadata of many partitions in one request."""
    from aiokafka.consumer.group_coordinator import GroupCoordinator
    from aiokafka.structs import OffsetAndMetadata

    assert "partitions" in inspect.signature(GroupCoordinator.fetch_committed_offsets).parameters
    assert OffsetAndMetadata._fields == ("offset", "metadata")


def test_a_commit_is_due_where_it_is_not_the_one_we_made_last() -> None:
    consumer: Any = driver.Consumer.__new__(driver.Consumer)
    consumer._thread = SimpleNamespace(saved={types.TP("batched", 0): 5})
    offered = ((0, 5), (0, 6), (0, 0), (1, 0))
    due = [driver.Consumer._should_commit(consumer, types.TP("batched", p), o) for p, o in offered]
    assert due == [False, True, True, True]
