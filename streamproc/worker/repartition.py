"""`repartition: true`: send records on under the key of their model.

A producer that keys by request, or not at all, spreads a model over partitions, and no worker sees
it whole. Then a first agent reads the source, finds each record's model and sends the record on,
unchanged, to an internal topic under the model's name; the pipelines read that topic.

Both topics of a model of Seldon's, `….inputs` and `….outputs`, are sent on to one, where a request meets
its response. What such a record means rests on its topic and its key, so it carries them along.

What the internal topic never takes, as too large for it, goes to the dead letters, alone.

A crash may send some records twice. Each copy carries where it came from, and the pipeline drops
what a model has already had from that partition: order within a source partition is kept, so the
greatest offset says all.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from faust.types import TP

from streamproc.config import Config
from streamproc.decoding import Decoder
from streamproc.events import (
    EVENTS,
    KEY_HEADER,
    ORIGIN_HEADER,
    TOPIC_HEADER,
    RecordBatch,
    Rejected,
    model_name,
)
from streamproc.framed import Codec, SchemaName
from streamproc.serving import seldon_topic
from streamproc.signals import SourceKind
from streamproc.topology import internal_topic
from streamproc.unpack import unpack
from streamproc.worker import driver

#: Tells the number of a partition whose records are sent on one by one; above every partition's own.
_ALONE = 1 << 58

#: Records of a pair that wait at most before what is ahead goes on all the same.
_MOST_HELD = 50_000


def _origin(partition: int, topic_id: str, *, apart: bool) -> int:
    """Return the number of a partition that records come from, as no other partition of the same target has it.

    A topic that is deleted and created anew gives its offsets out once more, and the two topics of a pair have
    partitions of the same numbers.
    """
    number = partition + (zlib.crc32(topic_id.encode()) << 24)
    return ~number if apart else number


class Pairs:
    """What is about to be sent on from topics that belong together, in the order of their record times.

    Read apart, one of Seldon's two topics may be minutes ahead of the other after an outage. Sent on so, requests
    would be given up on while their responses are still to be read. What is ahead waits for its other half to be
    read, unless there is nothing more to read of that, or too much waits already.
    """

    def __init__(self, *, step_ms: int) -> None:
        self.step_ms = max(1, step_ms)
        self._waiting: dict[tuple[str, int], dict[TP, deque[RecordBatch]]] = {}

    def add(self, pair: tuple[str, int], tp: TP, batch: RecordBatch) -> None:
        """Add a batch of a topic, cut into stretches of a step of record time."""
        parts = self._waiting.setdefault(pair, {}).setdefault(tp, deque())
        stamps, start = batch.timestamps_ms, 0
        while start < len(batch):
            limit = stamps[start] + self.step_ms
            end = next((i for i in range(start + 1, len(stamps)) if stamps[i] > limit), len(stamps))
            parts.append(batch.rows(start, end))
            start = end

    def due(self, pair: tuple[str, int], behind: Sequence[TP]) -> Iterator[tuple[TP, RecordBatch]]:
        """Yield, and let go of, what may be sent on; behind: the topics of the pair with something left to read."""
        waiting = self._waiting.get(pair, {})
        while heads := [(parts[0].timestamps_ms[0], tp) for tp, parts in waiting.items() if parts]:
            held = sum(len(part) for parts in waiting.values() for part in parts)
            if held <= _MOST_HELD and any(not waiting.get(tp) for tp in behind):
                return
            tp = min(heads)[1]
            yield tp, waiting[tp].popleft()

    def forget(self, tp: TP) -> None:
        """Let go of what waits of a partition that is no longer ours."""
        for waiting in self._waiting.values():
            waiting.pop(tp, None)


class Repartitioner:
    """Sends one source topic's records on, keyed by model."""

    def __init__(
        self,
        app: Any,
        config: Config,
        *,
        topic: str,
        kind: SourceKind,
        codecs: Mapping[SchemaName, Codec] | None = None,
    ) -> None:
        self.app = app
        self._codecs = codecs
        self._traces = kind == "predictions" and seldon_topic(topic) is None
        self.target = internal_topic(config.kafka.app_id, topic)
        self._seldon = seldon_topic(topic)
        self._decoder = Decoder(EVENTS[kind], field_map=config.fields.get(kind))

    async def forward(self, batch: RecordBatch, *, topic_id: str = "") -> list[Rejected]:
        """Send a batch on and await the broker; return the records that their topic never takes.

        topic_id: of the topic they are from. Raises what else a producer may meet: then nothing is known to be sent.

        What cannot be read goes on under its old key: the pipeline behind names the reason and sends
        it to the dead letters.
        """
        unpacked = unpack(batch, self._codecs, traces=self._traces)
        decoded = self._decoder.decode(batch if unpacked is None else unpacked.batch)
        keys: list[bytes | None] = list(batch.keys)
        for row, event in zip(reversed(decoded.rows), reversed(decoded.events), strict=True):
            name = model_name(event)
            if name:  # of the first event, where a record holds several
                keys[row if unpacked is None else unpacked.rows[row]] = name.encode()
        number = _origin(batch.partition, topic_id, apart=self._seldon is not None and not self._seldon.request)
        together = await self._send(batch, keys, range(len(batch)), number)
        # A broker answers for records together, for the good ones too. So each of these is sent by itself, and in a
        # line of its own: behind those that came after it and were taken, it would pass for a copy.
        alone = number ^ _ALONE
        refused: dict[int, Any] = {}
        for row in together:
            refused |= await self._send(batch, keys, [row], alone)
        return [
            Rejected(row, batch.offsets[row], "refused", f"topic {self.target} does not take it: {error.message}")
            for row, error in refused.items()
        ]

    async def _send(
        self, batch: RecordBatch, keys: Sequence[bytes | None], rows: Sequence[int], number: int
    ) -> dict[int, Any]:
        """Send rows on; return the errors of those that are refused. Raise any other."""
        sent: dict[int, asyncio.Future[Any]] = {}
        refused: dict[int, Any] = {}
        for row in rows:
            headers = [*batch.headers[row], (ORIGIN_HEADER, f"{number}:{batch.offsets[row]}".encode())]
            if self._seldon is not None:
                headers += [(TOPIC_HEADER, batch.topic.encode()), (KEY_HEADER, batch.keys[row] or b"")]
            try:
                sent[row] = await self.app.producer.send(
                    self.target,
                    key=keys[row],
                    value=batch.values[row],
                    partition=None,
                    timestamp=batch.timestamps_ms[row] / 1000.0,
                    headers=headers,
                )
            except driver.REFUSALS as e:  # by the client itself
                refused[row] = e
        answers = await asyncio.gather(*sent.values(), return_exceptions=True)
        for row, answer in zip(sent, answers, strict=True):
            if isinstance(answer, driver.REFUSALS):
                refused[row] = answer
            elif isinstance(answer, BaseException):
                raise answer
        return refused
