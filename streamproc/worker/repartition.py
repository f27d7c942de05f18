"""`repartition: true`: send records on under the key of their model.

A producer that keys by request, or not at all, spreads a model over partitions, and no worker sees
it whole. Then a first agent reads the source, finds each record's model and sends the record on,
unchanged, to an internal topic under the model's name; the pipelines read that topic.

Both topics of a model of Seldon's, `….inputs` and `….outputs`, are sent on to one, where a request meets
its response. What such a record means rests on its topic and its key, so it carries them along.

A crash may send some records twice. Each copy carries where it came from, and the pipeline drops
what a model has already had from that partition: order within a source partition is kept, so the
greatest offset says all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from streamproc.config import Config
from streamproc.decoding import Decoder
from streamproc.events import (
    KEY_HEADER,
    ORIGIN_HEADER,
    TOPIC_HEADER,
    Label,
    Prediction,
    RecordBatch,
    Telemetry,
    model_name,
)
from streamproc.framed import Codec
from streamproc.serving import seldon_topic
from streamproc.signals import SourceKind
from streamproc.unpack import unpack

_KINDS: dict[SourceKind, Any] = {"predictions": Prediction, "telemetry": Telemetry, "labels": Label}

def internal_topic(app_id: str, topic: str) -> str:
    """Return the name of the topic that holds a source's records keyed by model."""
    seldon = seldon_topic(topic)
    return f"{app_id}-{topic if seldon is None else seldon.pair}-by-model"


class Repartitioner:
    """Sends one source topic's records on, keyed by model."""

    def __init__(
        self, app: Any, config: Config, *, topic: str, kind: SourceKind, codecs: Mapping[int, Codec] | None = None
    ) -> None:
        self.app = app
        self._codecs = codecs
        self._traces = kind == "predictions" and seldon_topic(topic) is None
        self.target = internal_topic(config.kafka.app_id, topic)
        self._seldon = seldon_topic(topic)
        self._decoder = Decoder(_KINDS[kind], field_map=config.fields.get(kind))

    async def forward(self, batch: RecordBatch) -> int:
        """Send a batch on and await the broker; return how many records.

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
        sent = []
        for row in range(len(batch)):
            # The two topics of a pair have partitions of the same numbers, and offsets of their own.
            apart = self._seldon is not None and not self._seldon.request
            origin = f"{~batch.partition if apart else batch.partition}:{batch.offsets[row]}".encode()
            headers = [*batch.headers[row], (ORIGIN_HEADER, origin)]
            if self._seldon is not None:
                headers += [(TOPIC_HEADER, batch.topic.encode()), (KEY_HEADER, batch.keys[row] or b"")]
            sent.append(
                await self.app.producer.send(
                    self.target,
                    key=keys[row],
                    value=batch.values[row],
                    partition=None,
                    timestamp=batch.timestamps_ms[row] / 1000.0,
                    headers=headers,
                )
            )
        await asyncio.gather(*sent)
        return len(sent)
