"""The engine: batches in, alerts out, and never an offset ahead of what is durable.

It owns the pipelines of the partitions this worker holds. One lock orders everything that touches
them, so a snapshot is always of a moment between two batches. The order of a snapshot is the
guarantee: alerts and dead letters awaited, then models, then the manifest, then the commit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from aiokafka.errors import MessageSizeTooLargeError
from faust.types import TP

from streamproc.baseline import Table
from streamproc.cloudevents import encode_alert, encode_incident
from streamproc.config import Config
from streamproc.errors import SnapshotError
from streamproc.events import FLEET_KEY, Alert, Feedback, RecordBatch
from streamproc.rules import RuleBook
from streamproc.unpack import schema_ids
from streamproc.worker import driver, snapshots
from streamproc.worker.deadletters import dead_letter
from streamproc.worker.logs import named
from streamproc.worker.metrics import Metrics
from streamproc.worker.refusals import Refusals
from streamproc.worker.registry import Registry
from streamproc.worker.repartition import Pairs, Repartitioner
from streamproc.worker.said import Said
from streamproc.worker.warming import Warming

if TYPE_CHECKING:
    # With it comes numba, whose loading a start hides behind the waiting for brokers (`run`).
    from streamproc.pipeline import Output, Pipeline

log = structlog.get_logger("streamproc.engine")

#: Kinds of what others send; the rest is what we send ourselves, read again.
SOURCES = frozenset(("predictions", "telemetry", "labels"))

#: A snapshot may take this share of a worker's time; where it takes longer, it comes less often.
_SNAPSHOT_SHARE = 0.1

#: A partition with lag that has not moved for this long is stuck.
_STUCK_S = 60.0

#: A dead letter that large may meet a topic's limit, which by Kafka's default is a million bytes.
_LARGE = 500_000

#: How often models are looked at for what warms up, and how often the log says so at most.
_LOOK_S = 5.0
_TELL_S = 60.0
_AT_ONCE = 50

#: Nothing read for this long, and nothing left to read: the arrival clock follows the wall clock.
_IDLE_S = 2.0


class Owned:
    """One partition in our hands."""

    def __init__(
        self, tp: TP, pipeline: Pipeline, writer: snapshots.Writer, offset: int, *, generation: int
    ) -> None:
        self.tp = tp
        self.generation = generation  # of the consumer group, in which it is ours
        self.pipeline = pipeline
        self.writer = writer
        self.expected = offset  # the only offset whose batch is taken next
        self.durable = offset  # covered by a manifest
        self.saved_at = time.monotonic()
        self.moved_at = time.monotonic()
        self.unawaited: list[asyncio.Future[Any]] = []
        # False once scoring, publishing or saving was cut short: what is in memory is then ahead of what
        # was sent, and no manifest may ever be written of it. The last one stands, and is begun at again.
        self.sound = True

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Do a step wholly, or never save this partition again; cancellation cuts short too."""
        try:
            yield
        except BaseException:
            self.sound = False
            raise


class Engine:
    """Everything between Faust and the pipelines."""

    def __init__(
        self,
        app: Any,
        config: Config,
        *,
        settings: Mapping[str, Any],
        sources: Mapping[str, str],
        raw: Sequence[str] = (),
        partitions: Mapping[str, int],
        snapshot_partitions: int,
        metrics: Metrics,
        source: str,
        on_fatal: Callable[[BaseException], None],
        tables: Mapping[str, Table] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.app = app
        self.config = config
        self.book = RuleBook(config, tables)
        self.metrics = metrics
        self._settings = dict(settings)
        self._kinds = dict(sources)
        self._raw_topics = frozenset(raw)
        self._raw: dict[TP, int] = {}  # partitions that are only sent on, and where each has got to
        self._taken: dict[TP, int] = {}  # what of them was handed to us, if not sent on yet
        self._pairs = Pairs(step_ms=config.serving.response_timeout.us // 4000)
        self._sending = asyncio.Lock()
        self.forwarders: dict[str, Repartitioner] = {}
        self._said = Said(settings, silences=config.kafka.silences, feedback=config.kafka.feedback)
        self.registry = None if config.schema_registry is None else Registry(config.schema_registry)
        self._partitions = dict(partitions)
        self._snapshot_partitions = snapshot_partitions
        self._source = source
        self._on_fatal = on_fatal
        self._wall = wall
        self._owned: dict[TP, Owned] = {}
        self._parked: dict[TP, Owned] = {}
        self._revoked_in: int | None = None
        self._restoring: dict[TP, asyncio.Task[None]] = {}
        self._rewound: dict[TP, tuple[int, int]] = {}
        self._homes: dict[tuple[str, str], int] = {}
        self._lock = asyncio.Lock()
        self._interval_s = config.worker.snapshot_interval.us / 1e6
        self._show_budget()
        metrics.begin(t for t, kind in sources.items() if kind in SOURCES)
        self._refusals = Refusals()
        self.warming = Warming()
        self._looked_at = -math.inf
        self._told_at = -math.inf
        self._signals_told: set[str] = set()
        self._mismatched: set[tuple[str, str]] = set()  # kind and model, of those named
        self._told = (0, 0)  # models that warm up, of how many, as the log has it
        self.compiled: asyncio.Future[None] | None = None  # done once the detectors' loops are ready
        self.restored_once = False

    # ---------------------------------------------------------------------- what the driver asks

    def owned(self) -> list[TP]:
        """Return the partitions we hold, and can save."""
        return [*(tp for tp, held in self._owned.items() if held.sound), *self._raw]

    def watermark(self, tp: TP) -> int | None:
        """Return the offset that may be committed: all before it is durable."""
        if tp in self._raw:
            return self._raw[tp]
        held = self._owned.get(tp)
        return None if held is None else held.durable

    async def positions(self, tps: set[TP]) -> dict[TP, int]:
        """Return where to read each partition from, restoring those that are new to us.

        A restore goes on even where the caller gives up waiting; the next call finds it done. Between a
        revocation and the next assignment nothing is ours, whatever the client still lists.
        """
        generation = self.app.consumer_generation_id
        if generation == self._revoked_in:
            return {}
        raw = {tp for tp in tps if tp.topic in self._raw_topics}
        tps = tps - raw
        if unknown := [tp for tp in raw if tp not in self._raw]:
            committed = await self.app.consumer.committed(unknown)
            begins = await self._starting_offsets([tp for tp in unknown if committed.get(tp) is None])
            self._raw.update({tp: begins[tp] if committed.get(tp) is None else committed[tp] for tp in unknown})
            self._taken.update({tp: self._raw[tp] for tp in unknown})
        async with self._lock:
            fresh = []
            for tp in tps:
                held = self._owned.get(tp)
                parked = self._parked.pop(tp, None)
                if (held is not None and held.sound and held.generation == generation) or tp in self._restoring:
                    continue
                self._owned.pop(tp, None)
                if parked is not None and parked.generation + 1 == generation:
                    # Ours in the generation before this one: nobody else can have had it between.
                    parked.generation = generation
                    parked.moved_at = time.monotonic()
                    self._owned[tp] = parked
                else:
                    fresh.append(tp)
            self._parked.clear()
            if fresh:
                task = asyncio.ensure_future(self._restore(fresh, generation))
                for tp in fresh:
                    self._restoring[tp] = task
        waiting = {self._restoring[tp] for tp in tps if tp in self._restoring}
        for task in waiting:
            await asyncio.shield(task)
        found = {tp: self._owned[tp].expected for tp in tps if tp in self._owned}
        return found | {tp: self._taken[tp] for tp in raw if tp in self._taken}

    async def on_revoked(self, tps: set[TP]) -> None:
        """Make the state of partitions that leave us durable, and let go of them."""
        if not tps:
            return
        own = [tp for tp in tps if tp in self._owned]
        self._revoked_in = self.app.consumer_generation_id
        try:
            async with asyncio.timeout(max(1.0, self.config.kafka.session_timeout.us / 1e6 * 0.6)):
                await self.snapshot(own)
            kept = True
        except Exception as e:
            log.warning("state was not saved at revocation; the next owner repeats", error=str(e))
            kept = False
        for tp in tps:
            held = self._owned.pop(tp, None)
            if held is not None:
                self.metrics.forget_partition(tp.topic, tp.partition)
                if kept and held.sound:
                    self._parked[tp] = held
            self._restoring.pop(tp, None)  # a restore that ends later finds itself unwanted
            self._raw.pop(tp, None)
            self._taken.pop(tp, None)
            self._pairs.forget(tp)
        log.info("partitions revoked", partitions=_names(tps), saved=kept)

    # ---------------------------------------------------------------------- records in

    async def receive(self, batch: RecordBatch) -> None:
        """Take one batch from Kafka: to score it, or to send it on under its models' keys."""
        if self.registry is not None:
            await self.registry.learn(schema_ids(batch.values))
        if batch.topic in self.forwarders:
            await self.forward(batch)
        else:
            await self.take(batch)

    async def take(self, batch: RecordBatch) -> None:
        """Process one batch, exactly if it is the one expected next."""
        tp = TP(batch.topic, batch.partition)
        async with self._lock:
            held = self._owned.get(tp)
            if held is None or not held.sound:
                return  # delivered before its state was restored, or after it left us: read again later
            if batch.offsets[-1] < held.expected:
                return
            if batch.offsets[0] > held.expected and not self._contiguous(tp, held.expected, batch):
                await self._rewind(tp, held.expected, batch)
                return
            started = time.perf_counter()
            fresh = batch.since(held.expected)
            try:
                with held.whole():
                    out = held.pipeline.process(fresh)
                    self.metrics.batch_seconds.observe(time.perf_counter() - started)
                    held.expected = batch.offsets[-1] + 1
                    held.moved_at = time.monotonic()
                    await self._publish(held, out, fresh)
            except Exception as e:
                # Not a record's fault: bad records are values. Going on would lose these in silence.
                log.exception("cannot go on", topic=tp.topic, partition=tp.partition, offset=fresh.offsets[0])
                self._on_fatal(e)
                raise

    async def forward(self, batch: RecordBatch) -> None:
        """Send a batch of a source that is not keyed by model on under its models' keys."""
        tp = TP(batch.topic, batch.partition)
        expected = self._taken.get(tp)
        if expected is None or batch.offsets[-1] < expected:
            return
        if batch.offsets[0] > expected and not self._contiguous(tp, expected, batch):
            await self._rewind(tp, expected, batch)
            return
        fresh = batch.since(expected)
        self._taken[tp] = batch.offsets[-1] + 1
        self._pairs.add(self._pair(tp), tp, fresh)
        await self._send_on(self._pair(tp))

    def _pair(self, tp: TP) -> tuple[str, int]:
        """Return what a partition that is sent on is sent on together with: its target, and its number."""
        return self.forwarders[tp.topic].target, tp.partition

    async def _send_on(self, pair: tuple[str, int]) -> None:
        """Send on what need not wait for the other topic of a pair."""
        others = [TP(t, pair[1]) for t, f in self.forwarders.items() if f.target == pair[0]]
        async with self._sending:
            behind = [tp for tp in others if tp in self._raw and self._lags(tp)]
            for tp, part in self._pairs.due(pair, behind):
                count = await self.forwarders[tp.topic].forward(part)
                self.metrics.repartitioned.inc(count)
                if tp in self._raw:  # else whoever has it now repeats what came after its commit
                    self._raw[tp] = part.offsets[-1] + 1

    def _lags(self, tp: TP) -> bool:
        """Whether there is, or may be, something to read that was not handed to us yet."""
        end = self.app.consumer.highwater(tp)
        return end is None or driver.reached(tp, self._taken.get(tp, 0)) < end

    def _contiguous(self, tp: TP, expected: int, batch: RecordBatch) -> bool:
        """Whether nothing was read between what we expect and this batch: a hole in the log itself.

        Compaction, transaction markers and retention leave such holes.
        """
        if batch.previous == expected - 1 or batch.position <= expected:
            return True
        return self._rewound.get(tp) == (expected, batch.offsets[0])  # read anew, and it is still so

    async def _rewind(self, tp: TP, expected: int, batch: RecordBatch) -> None:
        log.warning(
            "a batch went missing between Kafka and us; reading again",
            topic=batch.topic,
            partition=batch.partition,
            expected=expected,
            got=batch.offsets[0],
        )
        self._rewound[tp] = (expected, batch.offsets[0])
        self.metrics.rewinds.inc()
        await self.app.consumer.seek_to({tp: expected})

    async def _publish(self, held: Owned, out: Output, batch: RecordBatch | None) -> None:
        """Send what came of a batch. What is sent is awaited before the next manifest."""
        pipeline, kafka, m = held.pipeline, self.config.kafka, self.metrics
        for alert in out.alerts:
            paged = pipeline.kind == "alerts"
            if not paged and self._is_shadow(pipeline, alert):
                m.shadow_alerts.inc()
                continue
            value, headers = encode_alert(alert, source=self._source)
            to = kafka.pages if paged else kafka.alerts
            model = alert.labels.get("model")  # of the digest of all models there is none
            await self._send(held, to, FLEET_KEY if model is None else model.encode(), value, headers)
            if kafka.alert_feed and not paged:
                await self._send(held, kafka.alert_feed, FLEET_KEY, value, headers)
            (m.pages if paged else m.alerts).labels(action=alert.action, severity=alert.severity).inc()
        for incident in out.incidents:
            value, headers = encode_incident(incident, source=self._source)
            await self._send(held, kafka.incidents, incident.incident_id.encode(), value, headers)
            m.incidents.labels(action=incident.action, severity=incident.severity, cause=incident.cause.category).inc()
        for model, record in out.forwarded:
            await self._send(held, kafka.joins_topic(), model.encode(), record, [])
        for outcome, count in out.outcomes.items():
            m.joins.labels(outcome=outcome).inc(count)
        if batch is not None:
            for rejected in out.rejected:
                key, whole, headers = dead_letter(batch, rejected, redact=self.config.worker.redact)
                await self._send(held, kafka.dead_letters, key, whole, headers)
                if whole is not None and len(whole) > _LARGE:
                    again = self._or_without_value(held.unawaited.pop(), key, whole, headers)
                    held.unawaited.append(asyncio.ensure_future(again))
                m.dead_letters.labels(reason=rejected.error_type).inc()
            self._refusals.note(batch, out.rejected, redact=self.config.worker.redact)
            if pipeline.kind != "alerts":  # our own alerts once more are no events
                m.records.labels(topic=batch.topic).inc(len(batch))
                m.events.labels(topic=batch.topic).inc(out.events)
                m.bytes.labels(topic=batch.topic).inc(sum(len(v) for v in batch.values if v is not None))
            if out.misplaced:
                self._check_homes(held)
        m.late.inc(out.late)
        m.fenced.inc(out.fenced)
        m.refused.inc(out.refused)
        m.unanswered.inc(out.unanswered)
        m.outnumbered.inc(out.outnumbered)
        m.repeated.inc(out.repeated)
        m.passed_over.inc(out.passed_over)
        if out.evicted:
            m.evicted.inc(len(out.evicted))
        if len(held.unawaited) > 5000:
            await asyncio.gather(*held.unawaited)
            held.unawaited.clear()

    async def _send(
        self, held: Owned, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        future = await self.app.producer.send(
            topic, key=key, value=value, partition=None, timestamp=None, headers=headers
        )
        held.unawaited.append(future)

    async def _or_without_value(
        self, sent: asyncio.Future[Any], key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]
    ) -> None:
        """Await a large dead letter; where its topic does not take it whole, send all but the value.

        The topic is created with room for any record and its reason. One that was there before may have less,
        and then a large record must not end the worker, again at every start.
        """
        try:
            await sent
        except MessageSizeTooLargeError:
            topic = self.config.kafka.dead_letters
            log.warning(
                "a dead letter is larger than its topic takes, and is kept without its value; "
                "raise max.message.bytes of the topic",
                topic=topic,
                bytes=len(value),
            )
            headers = [*headers, ("streamproc.value.left.out.bytes", str(len(value)).encode())]
            await (
                await self.app.producer.send(
                    topic, key=key, value=None, partition=None, timestamp=None, headers=headers
                )
            )

    def _is_shadow(self, pipeline: Pipeline, alert: Alert) -> bool:
        rules = self.book.for_model(pipeline.kind, alert.labels["model"]).of(alert.signal)
        return any(r.shadow for r in rules if r.detector == alert.detector.name)

    def _check_homes(self, held: Owned) -> None:
        """Warn, once a model, where records of one model are spread over partitions."""
        for model in held.pipeline.models:
            home = self._homes.setdefault((held.tp.topic, model), held.tp.partition)
            if home not in (held.tp.partition, -1):
                self._homes[held.tp.topic, model] = -1
                self.metrics.spread_models.inc()
                log.warning(
                    "a model's records are in several partitions, so it is seen in parts; "
                    "key them by model, or set kafka.repartition: true",
                    model=model,
                    topic=held.tp.topic,
                    partitions=[home, held.tp.partition],
                )

    # ---------------------------------------------------------------------- state out

    async def snapshot(self, tps: list[TP] | None = None) -> None:
        """Make everything up to now durable, then move the watermark, then commit."""
        async with self._lock:
            started = time.perf_counter()
            size = 0
            for tp in list(self._owned) if tps is None else tps:
                held = self._owned.get(tp)
                if held is not None and held.sound:
                    with held.whole():
                        size += await self._save(held)
            took = time.perf_counter() - started
            self.metrics.snapshot_seconds.observe(took)
            self.metrics.snapshot_bytes.inc(size)
            base = self.config.worker.snapshot_interval.us / 1e6
            self._interval_s = max(base, took / _SNAPSHOT_SHARE)
        await self.app.consumer.commit()

    async def _save(self, held: Owned) -> int:
        sent, held.unawaited = held.unawaited, []
        await asyncio.gather(*sent)
        pipeline, size = held.pipeline, 0
        if held.expected != held.durable or pipeline.dirty or pipeline.gone:
            pipeline.next_offset = held.expected
            gone = sorted(pipeline.gone)
            size = await held.writer.write(pipeline.snapshot_models(), gone, pipeline.manifest())
            pipeline.gone.difference_update(gone)
            held.durable = held.expected
        held.saved_at = time.monotonic()
        return size

    async def run_snapshots(self) -> None:
        """Snapshot for ever, at the configured interval or as often as its share of time allows."""
        while True:
            await asyncio.sleep(self._interval_s)
            if (self._owned or self._raw) and not self.app.rebalancing:
                await self.snapshot()

    async def run_said(self) -> None:
        """Follow the topics of silences and feedback, from their beginning on, for ever."""
        if not self._said.topics:
            return
        async for fresh in self._said.follow():
            self.book.silences.add(found := self._said.silences())
            self.metrics.silences.set(len(found))
            await self._take_said(list(self._owned.values()), fresh)

    async def _take_said(self, partitions: Sequence[Owned], verdicts: Sequence[tuple[int, Feedback]]) -> None:
        if not verdicts:
            return
        async with self._lock:
            for held in partitions:
                ours = self._owned.get(held.tp) is held and held.sound
                if ours and held.pipeline.kind != "alerts":
                    with held.whole():
                        await self._publish(held, held.pipeline.feedback(verdicts), None)

    async def run_clock(self) -> None:
        """Move the arrival clock of partitions that have nothing left to read; keep the gauges."""
        passing: asyncio.Task[None] | None = None
        try:
            while True:
                await asyncio.sleep(0.5)
                idle = self._gauge()
                if passing is not None and passing.done():
                    passing.result()
                    passing = None
                # Beside the loop, which must not wait for a broker that does not answer.
                if passing is None and idle and self.config.worker.idle_advance:
                    passing = asyncio.create_task(self._pass_time(idle))
                for pair in {self._pair(tp) for tp in self._raw}:
                    await self._send_on(pair)
                self._refusals.tell(time.monotonic())
                if time.monotonic() - self._looked_at >= _LOOK_S:
                    await self._look_at_warming()
        finally:
            if passing is not None:
                passing.cancel()

    def _gauge(self) -> list[Owned]:
        """Set the gauges; return the partitions that nothing has come of for a while, as far as we know."""
        now = time.monotonic()
        idle = []
        for held in self._owned.values():
            labels = {"topic": held.tp.topic, "partition": str(held.tp.partition)}
            lag = self.lag(held)
            if lag is not None:
                self.metrics.lag.labels(**labels).set(lag)
            self.metrics.snapshot_age.labels(**labels).set(now - held.saved_at)
            if lag == 0 and now - held.moved_at >= _IDLE_S and held.pipeline.clock_us:
                idle.append(held)
        self.metrics.series.set(sum(len(h.pipeline.models) for h in self._owned.values()))
        self.metrics.partitions.set(len(self._owned))
        return idle

    async def _look_at_labels(self) -> None:
        """Name the models whose labels can agree with no prediction of theirs, once each."""
        from streamproc.matching import mismatches

        told: dict[str, int] = {"unknown_model": 0, "other_classes": 0}
        sides: dict[str, dict[str, Any]] = {"predictions": {}, "labels": {}}
        # A model's predictions may be still to read, or another worker's where topics are not partitioned alike.
        whole = len({self._partitions.get(t) for t, kind in self._kinds.items() if kind in sides}) == 1
        for held in self._owned.values():
            if held.pipeline.kind in sides:
                sides[held.pipeline.kind].update(held.pipeline.models)
                whole = whole and (held.pipeline.kind == "labels" or self.lag(held) == 0)
        labels = list(sides["labels"].items())
        for start in range(0, len(labels), _AT_ONCE):
            for found in mismatches(sides["predictions"], dict(labels[start : start + _AT_ONCE])):
                if found.kind == "unknown_model" and not whole:
                    continue
                told[found.kind] += 1
                if (found.kind, found.model) not in self._mismatched:
                    self._mismatched.add((found.kind, found.model))
                    log.warning("labels do not fit", model=found.model, problem=found.message)
            await asyncio.sleep(0)
        for kind, count in told.items():
            self.metrics.mismatched.labels(kind=kind).set(count)

    def _show_budget(self) -> None:
        budget = self.config.defaults.budget
        self.metrics.allowed.set(0.0 if budget is None else budget.false_alerts_per_day)

    async def _look_at_warming(self) -> None:
        """Find the models that cannot alert on all signals yet, and say so where it has changed."""
        found = Warming()
        for _ in found.look([held.pipeline for held in self._owned.values()]):
            await asyncio.sleep(0)
        self.warming, self._looked_at = found, time.monotonic()
        self.metrics.warming.set(found.models)
        for name in self._signals_told - found.signals.keys():
            self.metrics.signals_warming.remove(name)
        for name, (n, _, _) in found.signals.items():
            self.metrics.signals_warming.labels(signal=name).set(n)
        self._signals_told = set(found.signals)
        await self._look_at_labels()
        said = (found.models, found.of)
        # Each step of a fleet that comes up is no news; that it is up is.
        if said != self._told and (not found.models or self._looked_at - self._told_at >= _TELL_S):
            self._told, self._told_at = said, self._looked_at
            log.info("warming up" if found.models else "warmed up", models=found.models, of=found.of, what=str(found))

    async def _pass_time(self, idle: Sequence[Owned]) -> None:
        """Let the arrival clock of partitions follow the wall clock, up to when the broker said that nothing came.

        It has to be asked: what is known of a partition's end is of the last fetch. After a pause of ours, in a
        rebalance or while the broker is away that is old, and what was written since would come too late.
        """
        clock_us = int(self._wall() * 1e6)
        try:
            ends = await self.app.consumer.highwaters(*(held.tp for held in idle))
        except Exception as e:
            log.debug("the broker does not say whether there is more; the clock stands", error=str(e))
            return
        for held in idle:
            async with self._lock:
                at_rest = driver.reached(held.tp, held.expected) >= ends.get(held.tp, math.inf)
                if at_rest and self._owned.get(held.tp) is held and held.sound:
                    with held.whole():
                        await self._publish(held, held.pipeline.advance(clock_us), None)

    # ---------------------------------------------------------------------- state in

    async def _restore(self, tps: list[TP], generation: int) -> None:
        started = time.perf_counter()
        try:
            stored = await self._read(tps)
            if self.compiled is not None:
                await asyncio.shield(self.compiled)
            without = [tp for tp in tps if stored[tp.topic, tp.partition].manifest is None]
            begins = await self._starting_offsets(without)
            models = 0
            for tp in tps:
                found = stored[tp.topic, tp.partition]
                pipeline = self._pipeline(tp)
                if found.manifest is not None:
                    pipeline.restore_manifest(found.manifest)
                else:
                    pipeline.next_offset = begins[tp]
                for count, (name, data) in enumerate(found.models.items()):
                    try:
                        pipeline.restore_model(name, data)
                    except SnapshotError as e:
                        # A newer program, or a damaged record: this model begins again, the others go on.
                        log.error("a model's state cannot be used; it warms up again", model=name, error=str(e))
                        self.metrics.unusable_states.inc()
                    if count % 100 == 99:
                        await asyncio.sleep(0)
                pipeline.restored()
                models += len(found.models)
                writer = snapshots.Writer(
                    self._send_snapshot,
                    topic=tp.topic,
                    partition=tp.partition,
                    stored=found,
                    snapshot_partition=self._snapshot_partition(tp),
                )
                if self._restoring.get(tp) is asyncio.current_task():
                    self._owned[tp] = Owned(tp, pipeline, writer, pipeline.next_offset, generation=generation)
            # What of it these models have not taken yet: it was said while nobody had them.
            await self._take_said([self._owned[tp] for tp in tps if tp in self._owned], self._said.verdicts)
            took = time.perf_counter() - started
            self.metrics.restore_seconds.observe(took)
            self.restored_once = True
            log.info("partitions restored", partitions=_names(tps), models=models, seconds=round(took, 2))
        except Exception as e:
            log.error("state could not be restored", partitions=_names(tps), error=named(e))
            self._on_fatal(e)
            raise
        finally:
            for tp in tps:
                if self._restoring.get(tp) is asyncio.current_task():
                    del self._restoring[tp]

    async def _read(self, tps: list[TP]) -> dict[tuple[str, int], snapshots.Stored]:
        claims: dict[tuple[str, int], tuple[int, int]] = {}
        member = orjson.dumps({"claimed_by": self.app.conf.id, "at_ms": int(self._wall() * 1000)})
        for tp in tps:
            at = self._snapshot_partition(tp)
            sent = await self._send_snapshot(at, snapshots.claim_key(tp.topic, tp.partition), member)
            claims[tp.topic, tp.partition] = (at, (await sent).offset)
        last = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 1.0:
                last = time.monotonic()
                log.info("restoring", records=done, of=total)

        return await snapshots.read(
            self._settings, topic=self.config.kafka.snapshots, claims=claims, progress=progress
        )

    async def _starting_offsets(self, tps: list[TP]) -> dict[TP, int]:
        """Return where to begin partitions that have no manifest: the policy's end of the log."""
        if not tps:
            return {}
        consumer = self.app.consumer
        if self.config.kafka.auto_offset_reset == "latest":
            found = await consumer.highwaters(*tps)
        else:
            found = await consumer.earliest_offsets(*tps)
        return {TP(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def _pipeline(self, tp: TP) -> Pipeline:
        from streamproc.pipeline import Pipeline

        share = self.config.defaults.discover.max_series / max(1, self._partitions.get(tp.topic, 1))
        watched = sum(self._partitions.get(topic, 1) for topic, kind in self._kinds.items() if kind != "alerts")
        return Pipeline(
            self.book,
            kind=self._kinds[tp.topic],  # type: ignore[arg-type]
            topic=tp.topic,
            partition=tp.partition,
            max_series=math.ceil(share),
            budget_share=1.0 / max(1, watched),
            codecs=None if self.registry is None else self.registry.codecs,
            deduplicate=bool(self._raw_topics) and self._kinds[tp.topic] in SOURCES,
        )

    def _snapshot_partition(self, tp: TP) -> int:
        return int(tp.partition) % self._snapshot_partitions

    async def _send_snapshot(self, partition: int, key: bytes, value: bytes | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await self.app.producer.send(
            self.config.kafka.snapshots, key=key, value=value, partition=partition, timestamp=None, headers=None
        )
        return future

    # ---------------------------------------------------------------------- for the operator

    def lag(self, held: Owned) -> int | None:
        """Return how many records of a partition are still to be read, None where not known yet."""
        return self._behind(held, self.app.consumer.highwater)

    def _behind(self, held: Owned, end_of: Callable[[TP], int | None]) -> int | None:
        try:
            end = end_of(held.tp)
        except Exception:
            return None
        return None if end is None else max(0, end - driver.reached(held.tp, held.expected))

    def stuck(self) -> list[str]:
        """Return the partitions that have something to read and do not move.

        What a producer has not committed is lag, since it will be to read, but nobody can be blamed for not reading it.
        """
        now = time.monotonic()
        readable = self.app.consumer.readable
        late = [h.tp for h in self._owned.values() if now - h.moved_at > _STUCK_S and self._behind(h, readable)]
        return [f"{tp.topic}-{tp.partition}" for tp in late]

    @property
    def ready(self) -> bool:
        """Whether everything assigned to us is restored."""
        return self.restored_once and not self._restoring and not self.app.rebalancing

    async def reload(self, config: Config, tables: Mapping[str, Table] | None = None) -> None:
        """Swap to another config between two batches."""
        async with self._lock:
            book = RuleBook(config, tables)
            self.config, self.book = config, book
            self._show_budget()
            book.silences.add(self._said.silences())
            for held in self._owned.values():
                held.pipeline.reconfigure(book)
                if held.sound:
                    with held.whole():  # what ends with the old config is told before anything is saved
                        await self._publish(held, held.pipeline.advance(held.pipeline.clock_us), None)
            for held in self._parked.values():
                held.pipeline.reconfigure(book)


def _names(tps: Any) -> list[str]:
    return sorted(f"{tp.topic}-{tp.partition}" for tp in tps)
