"""Faust's Kafka driver, made to deliver a partition's records a batch at a time.

Everything here hangs on private parts of faust-streaming 0.15 and aiokafka; nothing outside this
file does, and `tests/worker/test_driver.py` holds each part to the installed versions.

Stock Faust makes two asyncio tasks and several objects of every record. Here an agent receives one
event whose value is a `RecordBatch`, for the topics named in `app.conf.batched_topics`:

- aiokafka's `PartitionRecords` yields batches of columns instead of a `ConsumerRecord` each;
- `Consumer._to_message` wraps a batch as one message, `BatchSchema` passes it through undecoded;
- offsets are the engine's affair: Faust's acks commit nothing for these topics, `_new_offset`
  answers with the engine's watermark, `perform_seek` seeks to where the engine has got to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import aiokafka.consumer.fetcher as fetcher
import faust
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    BrokerResponseError,
    CorruptRecordException,
    InvalidTimestampError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    kafka_errors,
)
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as stock
from faust.types import TP, ConsumerMessage

from streamproc.events import RecordBatch

#: Noted beside each offset we commit. Whoever else sets one, as Kafka's own tools do, does not note this.
MARK = "streamproc"

#: Records of one partition an agent gets at once: enough to spread the cost of a batch thin, few
#: enough that a batch takes some milliseconds and the event loop stays responsive.
BATCH_RECORDS = 2000

#: The broker answers a fetch once it has so much, or after so long. Batches of some hundred records
#: cost a third of what the same records cost one by one, and nobody misses the milliseconds.
FETCH_MIN_BYTES = 250_000
FETCH_WAIT_MS = 30

#: Where `faust.App(broker="batched://…")` finds this driver.
SCHEME = "batched"

_batched: set[str] = set()
_last_read: dict[Any, int] = {}
_passed: dict[Any, int] = {}  # by partition: before which offset nothing more is to be read; markers of transactions
_asked: dict[Any, int] = {}  # by partition: where the next fetch should begin
_wanted: dict[Any, int] = {}  # by partition: what was asked for in vain, until a batch tells of it

_StockRecords = fetcher.PartitionRecords


class BatchRecords(_StockRecords):  # type: ignore[misc, valid-type]
    """A partition's share of one fetch response, unpacked to batches of columns."""

    def _unpack_records(self) -> Iterator[Any]:
        """Yield batches of at most BATCH_RECORDS, of one Kafka record batch or of several small ones.

        The control flow is that of the method overridden, which steps through Python once a record;
        here only aiokafka's compiled iterator does.
        """
        if self._tp.topic not in _batched:
            yield from super()._unpack_records()
            return
        position: int = self.next_fetch_offset  # type: ignore[has-type]
        if (asked := _asked.get(self._tp, position)) != position:
            _wanted.setdefault(self._tp, asked)  # out of range: the client went to where the log begins
        records: list[Any] = []
        broken: Exception | None = None
        while self._records.has_next():
            kafka_batch = self._records.next_batch()
            if self._check_crcs and not kafka_batch.validate_crc():
                # What came before it is sound, and its offsets are passed already.
                broken = CorruptRecordException(f"Invalid CRC - {self._tp}")
                break
            if not self._is_to_be_read(kafka_batch):
                self.next_fetch_offset = kafka_batch.next_offset
                continue
            found = [*kafka_batch]
            if found and found[0].offset < self.next_fetch_offset:
                found = [r for r in found if r.offset >= self.next_fetch_offset]
            records += found
            # Kept by a batch even where compaction removed its last record: the next fetch begins there.
            self.next_fetch_offset = following = kafka_batch.next_offset
            start = 0
            while len(records) - start >= BATCH_RECORDS:
                chunk = records[start : start + BATCH_RECORDS]
                start += BATCH_RECORDS
                self.next_fetch_offset = chunk[-1].offset + 1
                yield self._columns(chunk, position)
                position = chunk[-1].offset + 1
            if start:
                records = records[start:]
                self.next_fetch_offset = following
        if records:
            yield self._columns(records, position)
        _passed[self._tp] = _asked[self._tp] = self.next_fetch_offset
        if broken is not None:
            raise broken

    def _is_to_be_read(self, kafka_batch: Any) -> bool:
        """Whether a Kafka batch holds records for us: no markers, and nothing of an aborted transaction."""
        if self._isolation_level == fetcher.READ_COMMITTED and kafka_batch.producer_id is not None:
            self._consume_aborted_up_to(kafka_batch.base_offset)
            if kafka_batch.is_control_batch and self._contains_abort_marker(kafka_batch):
                self._aborted_producers.discard(kafka_batch.producer_id)
            if kafka_batch.is_transactional and kafka_batch.producer_id in self._aborted_producers:
                return False
        return not kafka_batch.is_control_batch

    def _columns(self, records: list[Any], position: int) -> RecordBatch:
        tp = self._tp
        previous = _last_read.get(tp, -1)
        _last_read[tp] = records[-1].offset
        return RecordBatch(
            tp.topic,
            tp.partition,
            [r.offset for r in records],
            [r.timestamp if r.timestamp is not None else -1 for r in records],
            [r.key for r in records],
            [r.value for r in records],
            [r.headers for r in records],
            position,
            previous,
            _wanted.pop(tp, -1),
        )


def reached(tp: TP, taken: int) -> int:
    """Return the offset from which there may be something to read, where all before `taken` was dealt with.

    It is beyond `taken` where only markers of transactions, or what was taken back, come after the last record read.
    """
    own = stock.ensure_aiokafka_TP(tp)
    return max(taken, _passed.get(own, 0)) if _last_read.get(own, -1) < taken else taken


class InvalidRecordError(BrokerResponseError):  # type: ignore[misc]
    """A record its topic does not take: without a key, where the topic is compacted. aiokafka has no name for it."""

    errno = 87
    message = "INVALID_RECORD"
    description = "This record has failed the validation on the broker and hence has been rejected."


#: What a broker says of a record that it will never take, whoever sends it.
REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidTimestampError, InvalidRecordError)


class Committed(NamedTuple):
    """An offset that is committed, and whether we did it."""

    offset: int
    ours: bool


class BatchSchema(faust.Schema):  # type: ignore[misc]
    """Pass a message's value through: it is a `RecordBatch` already."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:  # noqa: ARG002
        """Return no key: a batch has many."""
        return None

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:  # noqa: ARG002
        """Return the batch."""
        return message.value


class ConsumerThread(stock.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The thread that owns the aiokafka consumer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.saved: dict[TP, int] = {}  # what we have committed of the partitions we hold

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Range gives partition n of every topic to one worker, where topics have equally many.
        consumer._partition_assignment_strategy = (RangePartitionAssignor,)
        # What a producer took back was never said.
        consumer._isolation_level = "read_committed"
        consumer._fetch_min_bytes = FETCH_MIN_BYTES
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        # A commit only shows others how far we are; the manifest is what we restart from. So a
        # broker that is away for a moment is no reason to end the process, as stock Faust does.
        try:
            known = {tp: o for tp, o in offsets.items() if tp in self.assignment()}
            if known:
                marked = {stock.ensure_aiokafka_TP(t): (o, MARK) for t, o in known.items()}
                await self._ensure_consumer().commit(marked)
                self.saved.update(known)
        except Exception as e:
            self.log.warning("offsets were not committed, will be with the next snapshot: %s", e)
            return False
        return True


class Consumer(stock.Consumer):  # type: ignore[misc]
    """A Faust consumer whose batched topics are steered by an engine.

    The engine is `app.engine`: it has `positions(tps)`, `watermark(tp)` and `on_revoked(tps)`.
    """

    def _new_consumer_thread(self) -> Any:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: Any, record: Any) -> ConsumerMessage:
        if not isinstance(record, RecordBatch):
            return super()._to_message(tp, record)
        return ConsumerMessage(
            record.topic,
            record.partition,
            record.offsets[-1],
            record.timestamps_ms[-1] / 1000.0,
            0,
            None,
            None,
            record,
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    def ack(self, message: Any) -> bool:
        """Note that a message is done with. For a batch this says nothing about its offset."""
        if message.topic not in _batched:
            return bool(super().ack(message))
        message.acked = True
        self._unacked_messages.discard(message)
        return True

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        if tp.topic not in _batched:
            await super()._add_gap(tp, offset_from, offset_to)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp in self.app.engine.owned():
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: Any) -> int | None:
        if tp.topic in _batched:
            offset: int | None = self.app.engine.watermark(tp)
            return offset
        return super()._new_offset(tp)  # type: ignore[no-any-return]

    def _should_commit(self, tp: Any, offset: int) -> bool:
        # Stock Faust takes a commit for done that failed, and never goes back, as a topic made anew does.
        if tp.topic in _batched:
            return self.own_commit(tp) != offset
        return bool(super()._should_commit(tp, offset))

    def own_commit(self, tp: TP) -> int | None:
        """Return the offset we last committed of a partition that is ours."""
        found: int | None = self._thread.saved.get(ensure_TP(tp))
        return found

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Let the engine make its state durable while the partitions are still ours."""
        await self.app.engine.on_revoked({ensure_TP(tp) for tp in revoked if tp.topic in _batched})
        for tp in revoked:
            _asked.pop(stock.ensure_aiokafka_TP(tp), None)
            self._thread.saved.pop(ensure_TP(tp), None)
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Seek to where the engine goes on, having restored what it needs.

        Stock Faust seeks to committed offsets and leaves a partition without one where it happens
        to be, which loses what was fetched early.
        """
        own = {ensure_TP(tp) for tp in self.assignment() if tp.topic in _batched}
        positions = await self.app.engine.positions(own)
        await self.seek_to(positions)

    async def seek_to(self, positions: Mapping[TP, int]) -> None:
        """Seek partitions that are still ours."""
        current = {ensure_TP(tp) for tp in self.assignment()}
        wanted = {tp: offset for tp, offset in positions.items() if tp in current}
        for tp in wanted:
            self._read_offset[tp] = None
            for known in (_last_read, _passed):
                known.pop(stock.ensure_aiokafka_TP(tp), None)
        if wanted:
            await self._thread.call_thread(self._seek_all, wanted)

    def readable(self, tp: TP) -> int | None:
        """Return the offset before which records may be read, as of the last fetch: open transactions are beyond."""
        consumer, own = self._thread._ensure_consumer(), stock.ensure_aiokafka_TP(tp)
        end: int | None = consumer.highwater(own)
        stable: int | None = consumer.last_stable_offset(own)
        return end if end is None or stable is None or stable < 0 else min(end, stable)

    async def committed(self, tps: Iterable[TP]) -> dict[TP, Committed]:
        """Return the committed offset of each partition that has one."""
        return dict(await self._thread.call_thread(self._committed, list(tps)))

    async def _committed(self, tps: list[TP]) -> dict[TP, Committed]:
        coordinator = self._thread._ensure_consumer()._coordinator
        found = await coordinator.fetch_committed_offsets([stock.ensure_aiokafka_TP(tp) for tp in tps])
        return {
            ensure_TP(tp): Committed(int(at.offset), at.metadata == MARK) for tp, at in found.items() if at.offset >= 0
        }

    async def _seek_all(self, positions: Mapping[TP, int]) -> None:
        consumer = self._thread._ensure_consumer()
        for tp, offset in positions.items():
            own = stock.ensure_aiokafka_TP(tp)
            consumer.seek(own, offset)
            _asked[own] = offset
            _wanted.pop(own, None)


class Transport(stock.Transport):  # type: ignore[misc]
    """The driver behind `batched://`."""

    Consumer: ClassVar[type] = Consumer


def install(topics: Iterable[str]) -> None:
    """Make `batched://` known to Faust, delivering these topics in batches."""
    _batched.clear()
    _batched.update(topics)
    fetcher.PartitionRecords = BatchRecords
    kafka_errors[InvalidRecordError.errno] = InvalidRecordError
    TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"
