"""What operators say while a worker runs: silences and feedback, each from a topic of one partition.

Silences are compacted, by id; one without a value is over. Feedback is kept for ever, and its offsets say what a
model has taken. Both are read from the beginning at every start, so that a worker that takes a partition up knows
all that was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiokafka
import msgspec
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from streamproc.decoding import Decoder
from streamproc.events import Feedback, time_us
from streamproc.silences import Silence

log = structlog.get_logger("streamproc.said")

#: Verdicts kept, the latest: a partition that is restored takes those that its models have not taken yet.
_MOST_VERDICTS = 10_000


class SaidSilence(msgspec.Struct):
    """A silence as the topic has it; its key is its id."""

    to: dt.datetime | float
    from_: dt.datetime | float = msgspec.field(name="from")
    model: str = "*"
    signal: str = "*"
    segment: str = "*"
    learn: bool = True
    reason: str = ""
    author: str = ""


_decode_silence = msgspec.json.Decoder(SaidSilence).decode


def silence_of(key: bytes | None, value: bytes | None) -> Silence | None:
    """Return the silence of a record, None for one that is over. Raise ValueError where it is none."""
    if not key:
        raise ValueError("no key, which is its id")
    if not value:
        return None
    try:
        said = _decode_silence(value)
    except msgspec.MsgspecError as e:
        raise ValueError(str(e)) from None
    return Silence(
        key.decode("utf-8", "replace"),
        time_us(said.from_),
        time_us(said.to),
        said.model,
        said.signal,
        said.segment,
        said.learn,
        said.reason,
        said.author,
    )


class Said:
    """All that operators have said so far."""

    def __init__(self, settings: Mapping[str, Any], *, silences: str, feedback: str) -> None:
        self._settings = dict(settings)
        self._silences_topic, self._feedback_topic = silences, feedback
        self._silences: dict[str, Silence] = {}
        self.verdicts: list[tuple[int, Feedback]] = []
        self._decoder = Decoder(Feedback)
        self._renewed = False

    @property
    def topics(self) -> list[str]:
        """Return the topics that are read."""
        return [t for t in (self._silences_topic, self._feedback_topic) if t]

    def silences(self) -> list[Silence]:
        """Return every silence that was said and not taken back."""
        return [s for _, s in sorted(self._silences.items())]

    def renew(self, topic: str) -> None:
        """Forget what was said on a topic that was deleted, and read the one that has its name now."""
        lost = self._silences if topic == self._silences_topic else self.verdicts
        log.error("what was said on a topic that was deleted is over", topic=topic, records=len(lost))
        lost.clear()
        self._renewed = True

    async def follow(self) -> AsyncIterator[list[tuple[int, Feedback]]]:
        """Read for ever; yield the verdicts of each batch, also where it had silences alone."""
        while True:
            try:
                async with _reading(self._settings, self.topics) as consumer:
                    if self._renewed:
                        self._renewed = False
                        yield []  # what was said before is over
                    while not self._renewed:
                        found = await consumer.getmany(timeout_ms=1000)
                        if found:
                            yield [v for tp, records in found.items() for v in self._take(tp.topic, records)]
            except (KafkaError, OSError) as e:
                log.warning("silences and feedback cannot be read; trying again", error=repr(e))
                await asyncio.sleep(1.0)

    def _take(self, topic: str, records: list[Any]) -> list[tuple[int, Feedback]]:
        fresh: list[tuple[int, Feedback]] = []
        last = self.verdicts[-1][0] if self.verdicts else -1
        for record in records:
            try:
                if topic == self._silences_topic:
                    silence = silence_of(record.key, record.value)
                    if silence is None:
                        self._silences.pop(record.key.decode("utf-8", "replace"), None)
                    else:
                        self._silences[silence.id] = silence
                elif record.offset > last:
                    fresh.append((record.offset, self._decoder.decode_one(record.value, record.headers or ())))
            except ValueError as e:
                log.warning("what was said cannot be read", topic=topic, offset=record.offset, why=str(e))
        self.verdicts = [*self.verdicts, *fresh][-_MOST_VERDICTS:]
        return fresh


async def say(settings: Mapping[str, Any], topic: str, key: bytes | None, value: bytes | None) -> int:
    """Publish one record and return its offset. settings: of aiokafka."""
    producer = aiokafka.AIOKafkaProducer(**settings, acks="all")
    await producer.start()
    try:
        sent = await producer.send_and_wait(topic, value=value, key=key, partition=0)
        return int(sent.offset)
    finally:
        await producer.stop()


async def silences_now(settings: Mapping[str, Any], topic: str) -> list[Silence]:
    """Return the silences that were said and not taken back, up to now."""
    said = Said(settings, silences=topic, feedback="")
    tp = TopicPartition(topic, 0)
    async with _reading(settings, [topic]) as consumer:
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                said._take(topic, records)
    return said.silences()


@contextlib.asynccontextmanager
async def _reading(settings: Mapping[str, Any], topics: Sequence[str]) -> AsyncIterator[aiokafka.AIOKafkaConsumer]:
    """Read topics of one partition from their beginning."""
    consumer = aiokafka.AIOKafkaConsumer(**settings, enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        await consumer.start()
        consumer.assign([TopicPartition(t, 0) for t in topics])
        await consumer.seek_to_beginning()
        yield consumer
    finally:
        await consumer.stop()

