"""Kafka's record batches come out as columns exactly as aiokafka would give them record by record."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from streamproc.worker import driver

_TP = TopicPartition("p", 3)
_STOCK = driver._StockRecords


@pytest.fixture(autouse=True)
def _batched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(driver, "_batched", {"p"})
    monkeypatch.setattr(driver, "BATCH_RECORDS", 5)
    driver._last_read.clear()
    yield
    driver._last_read.clear()


def _kafka_batch(
    base: int, n: int, *, codec: int = 0, producer: int = -1, transactional: bool = False, holes: bool = False
) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=transactional,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    for i in range(n):
        if holes and i in (1, n - 1) and n > 2:
            continue
        at = base + i
        builder.append(
            i, 1000 + at, b"k%d" % at, b"v%d" % at if at % 4 else None, [("h", b"1")] if at % 3 else []
        )
    data = bytearray(builder.build())
    data[0:8] = base.to_bytes(8, "big")
    if holes and n > 2:
        data[23:27] = (n - 1).to_bytes(4, "big")  # last offset delta, kept by compaction
        _sign(data)
    return bytes(data)


def _sign(data: bytearray) -> None:
    from aiokafka.record.util import calc_crc32c_py

    data[17:21] = calc_crc32c_py(bytes(data[21:])).to_bytes(4, "big")


def _control(base: int, producer: int, kind: int) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=True,
        producer_id=producer,
        producer_epoch=0,
        base_sequence=0,
        batch_size=1 << 20,
    )
    builder.append(0, 1000 + base, b"\x00\x00" + kind.to_bytes(2, "big"), b"\x00" * 6, [])
    data = bytearray(builder.build())
    data[0:8] = base.to_bytes(8, "big")
    data[21:23] = (int.from_bytes(data[21:23], "big") | 0x20).to_bytes(2, "big")
    _sign(data)
    return bytes(data)


def _reader(
    cls: Any, data: bytes, *, fetch_offset: int, aborted: list[tuple[int, int]], isolation: int
) -> Any:
    return cls(_TP, MemoryRecords(data), list(aborted), fetch_offset, None, None, True, isolation)


def _expected(data: bytes, **how: Any) -> tuple[list[tuple[Any, ...]], int]:
    reader = _reader(_STOCK, data, **how)
    rows = [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in reader]
    return rows, reader.next_fetch_offset


def test_columns_hold_what_aiokafka_would_have_given() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        data, base, aborted = b"", 100, []
        for _ in range(rng.randrange(1, 7)):
            n, producer = rng.choice([1, 2, 4, 5, 11, 23]), rng.choice([-1, 7, 8])
            transactional = producer >= 0 and rng.random() < 0.7
            if transactional and rng.random() < 0.5:
                aborted.append((producer, base))
            data += _kafka_batch(
                base,
                n,
                codec=rng.choice([0, 1]),
                producer=producer,
                transactional=transactional,
                holes=rng.random() < 0.3,
            )
            base += n
            if transactional:
                data += _control(base, producer, 0 if (producer, base - n) in aborted else 1)
                base += 1
        how: dict[str, Any] = {
            "fetch_offset": rng.choice([100, 101, 107]),
            "aborted": aborted,
            "isolation": rng.choice([fetcher.READ_COMMITTED, fetcher.READ_UNCOMMITTED]),
        }
        expected, end = _expected(data, **how)
        driver._last_read.clear()
        reader = _reader(driver.BatchRecords, data, **how)
        rows: list[tuple[Any, ...]] = []
        position, previous = how["fetch_offset"], -1
        for batch in reader:
            assert 1 <= len(batch) <= driver.BATCH_RECORDS
            assert (batch.topic, batch.partition) == ("p", 3)
            assert (batch.position, batch.previous) == (position, previous)
            assert reader.next_fetch_offset > batch.offsets[-1]
            rows += zip(
                batch.offsets,
                batch.timestamps_ms,
                batch.keys,
                batch.values,
                map(list, batch.headers),
                strict=True,
            )
            position, previous = batch.offsets[-1] + 1, batch.offsets[-1]
            left = [r for r in expected if r[0] >= reader.next_fetch_offset]
            assert rows + left == expected, "a seek to the next fetch offset would lose or repeat records"
        assert rows == expected
        assert reader.next_fetch_offset == end
        sizes = len(rows) // driver.BATCH_RECORDS
        assert len(rows) - sizes * driver.BATCH_RECORDS < driver.BATCH_RECORDS


def test_small_kafka_batches_are_delivered_together() -> None:
    data = b"".join(_kafka_batch(100 + i, 1) for i in range(12))
    reader = _reader(
        driver.BatchRecords, data, fetch_offset=100, aborted=[], isolation=fetcher.READ_UNCOMMITTED
    )
    assert [len(b) for b in reader] == [5, 5, 2]


def test_records_before_a_corrupt_batch_are_delivered_before_it_is_reported() -> None:
    bad = bytearray(_kafka_batch(103, 3))
    bad[-1] ^= 0xFF
    data = _kafka_batch(100, 3) + bytes(bad)
    reader = _reader(
        driver.BatchRecords, data, fetch_offset=100, aborted=[], isolation=fetcher.READ_UNCOMMITTED
    )
    assert next(reader).offsets == [100, 101, 102]
    assert reader.next_fetch_offset == 103
    with pytest.raises(CorruptRecordException):
        next(reader)


def test_other_topics_come_record_by_record() -> None:
    driver._batched.clear()
    data = _kafka_batch(100, 3)
    reader = _reader(
        driver.BatchRecords, data, fetch_offset=100, aborted=[], isolation=fetcher.READ_UNCOMMITTED
    )
    assert [r.offset for r in reader] == [100, 101, 102]
