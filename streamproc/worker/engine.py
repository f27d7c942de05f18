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
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import orjson
import structlog
from aiokafka.errors import MessageSizeTooLargeError
from faust.types import TP

from streamproc.baseline import Table
from streamproc.cloudevents import encode_alert, encode_incident
from streamproc.config import Config
from streamproc.errors import ForeignState, SnapshotError, StreamprocError
from streamproc.events import FLEET_KEY, Alert, Feedback, RecordBatch, Rejected, Span
from streamproc.rules import RuleBook
from streamproc.unpack import schemas
from streamproc.worker import driver, snapshots
from streamproc.worker.beginnings import Beginning, Log, begin, inside, outside
from streamproc.worker.deadletters import dead_letter
from streamproc.worker.logs import named
from streamproc.worker.metrics import Metrics
from streamproc.worker.moving import Spread
from streamproc.worker.refusals import Refusals
from streamproc.worker.registry import Registry
from streamproc.worker.repartition import Pairs, Repartitioner
from streamproc.worker.said import Said
from streamproc.worker.topics import Identity
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
_WARMING_S = 5.0
_TELL_S = 60.0
_AT_ONCE = 50
#: How often the broker is asked whether our topics are still those they were.
_LOOK_S = 10.0

#: For so long after a topic was given partitions, models come from others of them. Producers learn within minutes.
_GROWN_S = 3600.0

#: An offset no log has: of one that goes back nothing is where it was.
_BEYOND = (1 << 43) - 1

#: A model that came up elsewhere is let go of where nothing came for so long.
_LEFT_US = 60_000_000

#: Nothing read for this long, and nothing left to read: the arrival clock follows the wall clock.
_IDLE_S = 2.0


class Owned:
    """One partition in our hands."""

    def __init__(
        self,
        tp: TP,
        pipeline: Pipeline,
        writer: snapshots.Writer,
        offset: int,
        *,
        generation: int,
        life: int = 0,
        topic_id: str = "",
        marked: bool = False,
        fresh: bool = False,
    ) -> None:
        self.tp = tp
        self.generation = generation  # of the consumer group, in which it is ours
        self.pipeline = pipeline
        self.writer = writer
        self.life = life  # of the log, see `beginnings`
        self.topic_id = topic_id
        self.marked = marked  # the group's offset has no other mark than ours
        self.fresh = fresh  # where it begins is in no manifest yet
        self.unsaved = False  # nothing of it is on the snapshot topic
        self.count = 0  # of partitions its topic had when we last looked
        self.grown_until_s = 0.0  # since there were fewer, models may come from other partitions; by the wall clock
        self.said_life, self.said_id = 0, ""  # of the topic of feedback, whose offsets the models' states hold
        self.expected = offset  # the only offset of the log whose batch is taken next
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


class Cluster(Protocol):
    """What the engine asks of topic administration."""

    async def identify(self, names: Sequence[str]) -> dict[str, Identity]:
        """Return what each topic that exists is, by name."""

    async def restore(self) -> bool:
        """Create those of our own topics that are missing, if we may; return whether there were any."""


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
        cluster: Cluster | None = None,
    ) -> None:
        self.app = app
        self._cluster = cluster
        self._ids: dict[str, str] = {}  # of each topic, as far as brokers tell
        self._absent: set[str] = set()
        self._doubted: set[TP] = set()  # partitions whose log ends before what we have had of it
        self._foreign_marks: set[TP] = set()  # partitions whose offset somebody else has set
        self._look_now = asyncio.Event()
        self._spread: dict[str, Spread] = {}
        self._adopted: set[TP] = set()  # partitions that have taken models from others since the last snapshot
        self._elsewhere: dict[str, tuple[float, dict[str, bytes]]] = {}
        self.config = config
        self.book = RuleBook(config, tables)
        self.metrics = metrics
        self._settings = dict(settings)
        self._kinds = dict(sources)
        self._raw_topics = frozenset(raw)
        self._raw: dict[TP, int] = {}  # partitions that are only sent on, and where each has got to
        self._raw_ids: dict[TP, str] = {}  # of the topic of each
        self._taken: dict[TP, int] = {}  # what of them was handed to us, if not sent on yet
        self._pairs = Pairs(step_ms=config.serving.response_timeout.us // 4000)
        self._sending = asyncio.Lock()
        self.forwarders: dict[str, Repartitioner] = {}
        self._said = Said(settings, silences=config.kafka.silences, feedback=config.kafka.feedback)
        self.registry = None if config.schema_registry is None else Registry(config.schema_registry)
        self._partitions = dict(partitions)
        self._snapshot_partitions = snapshot_partitions
        self._snapshot_limit = snapshots.Limit()
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
        await self._learn_ids()
        if unknown := [tp for tp in raw if tp not in self._raw]:
            begins = await self._begin(unknown, {})
            for tp, at in begins.items():
                self._raw[tp] = self._taken[tp] = at.offset
                self._raw_ids[tp] = self._ids.get(tp.topic, "")
        async with self._lock:
            if generation == self._revoked_in:
                return {}
            fresh = []
            for tp in tps:
                held = self._owned.get(tp)
                parked = self._parked.pop(tp, None)
                if (held is not None and held.sound and held.generation == generation) or tp in self._restoring:
                    continue
                self._owned.pop(tp, None)
                same = parked is not None and self._ids.get(tp.topic, "") in ("", parked.topic_id)
                if parked is not None and same and parked.generation + 1 == generation:
                    # Ours in the generation before this one: nobody else can have had it between.
                    parked.generation = generation
                    parked.moved_at = time.monotonic()
                    self._owned[tp] = parked
                    self._note_growth(parked)
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
            log.warning("state was not saved at revocation; the next owner repeats", error=named(e))
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
            self._raw_ids.pop(tp, None)
            self._pairs.forget(tp)
        log.info("partitions revoked", partitions=_names(tps), saved=kept)

    # ---------------------------------------------------------------------- records in

    async def receive(self, batch: RecordBatch) -> None:
        """Take one batch from Kafka: to score it, or to send it on under its models' keys."""
        if self.registry is not None:
            await self.registry.learn(schemas(batch))
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
            if not await self._follows(tp, held.expected, batch):
                return
            started = time.perf_counter()
            fresh = batch.since(held.expected)
            try:
                with held.whole():
                    if held.grown_until_s:
                        await self._adopt(held, fresh)
                    out = held.pipeline.process(_inside(fresh, held.life))
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
        if expected is None or not await self._follows(tp, expected, batch):
            return
        fresh = batch.since(expected)
        self._taken[tp] = batch.offsets[-1] + 1
        self._pairs.add(self._pair(tp), tp, fresh)
        try:
            await self._send_on(self._pair(tp))
        except Exception as e:
            # What came after it would move the offset past what was not sent.
            log.exception("cannot go on", topic=tp.topic, partition=tp.partition, offset=fresh.offsets[0])
            self._on_fatal(e)
            raise

    def _pair(self, tp: TP) -> tuple[str, int]:
        """Return what a partition that is sent on is sent on together with: its target, and its number."""
        return self.forwarders[tp.topic].target, tp.partition

    async def _send_on(self, pair: tuple[str, int]) -> None:
        """Send on what need not wait for the other topic of a pair."""
        others = [TP(t, pair[1]) for t, f in self.forwarders.items() if f.target == pair[0]]
        async with self._sending:
            behind = [tp for tp in others if tp in self._raw and self._lags(tp)]
            for tp, part in self._pairs.due(pair, behind):
                refused = await self.forwarders[tp.topic].forward(part, topic_id=self._raw_ids.get(tp, ""))
                await asyncio.gather(*[await self._set_aside(part, each) for each in refused])
                self.metrics.repartitioned.inc(len(part) - len(refused))
                if tp in self._raw:  # else whoever has it now repeats what came after its commit
                    self._raw[tp] = part.offsets[-1] + 1

    def _lags(self, tp: TP) -> bool:
        """Whether there is, or may be, something to read that was not handed to us yet."""
        end = self.app.consumer.highwater(tp)
        return end is None or driver.reached(tp, self._taken.get(tp, 0)) < end

    async def _follows(self, tp: TP, expected: int, batch: RecordBatch) -> bool:
        """Whether a batch has what is expected next; what went missing before it is read again."""
        if batch.offsets[-1] < expected:
            self._doubt(tp, expected, batch)
            return False
        self._note_gone(tp, expected, batch)
        if batch.offsets[0] > expected and not self._contiguous(tp, expected, batch):
            await self._rewind(tp, expected, batch)
            return False
        return True

    def _contiguous(self, tp: TP, expected: int, batch: RecordBatch) -> bool:
        """Whether nothing was read between what we expect and this batch: a hole in the log itself.

        Compaction, transaction markers and retention leave such holes; of the last the batch says so itself.
        """
        if batch.previous == expected - 1 or batch.position <= expected or expected <= batch.wanted < batch.position:
            return True
        return self._rewound.get(tp) == (expected, batch.offsets[0])  # read anew, and it is still so

    def _note_gone(self, tp: TP, expected: int, batch: RecordBatch) -> None:
        """Count what the log no longer had when we asked for it."""
        if expected <= batch.wanted < batch.position:
            self._gone(tp, batch.position - max(expected, batch.wanted), "retention", at=batch.position)

    def _gone(self, tp: TP, count: int, reason: str, *, at: int) -> None:
        self.metrics.gone.labels(topic=tp.topic, reason=reason).inc(count)
        said = {
            "retention": "records were deleted before they were read; is the worker too slow, or was it away?",
            "reset": "the group's offset was set forward by another program; what is before it is not read",
        }
        log.error(said[reason], topic=tp.topic, partition=tp.partition, records=count, goes_on_at=at)

    def _doubt(self, tp: TP, expected: int, batch: RecordBatch) -> None:
        """Have the topic looked at, where the log begins before what we have had of it."""
        if batch.wanted > batch.position and batch.wanted >= expected:
            log.warning("the log goes back", topic=tp.topic, partition=tp.partition, expected=expected)
            self._doubted.add(tp)
            self._look_now.set()

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
            value, headers = encode_alert(_outside(alert), source=self._source)
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
                rejected = msgspec.structs.replace(rejected, offset=outside(rejected.offset))
                held.unawaited.append(await self._set_aside(batch, rejected))
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
        if pipeline.kind in SOURCES:  # what we send ourselves has been counted where it came from
            self._count(out)
        for model, note in out.notes:
            log.info("a model", model=model, what=note)
        if out.evicted:
            m.evicted.inc(len(out.evicted))
        if len(held.unawaited) > 5000:
            await asyncio.gather(*held.unawaited)
            held.unawaited.clear()

    def _count(self, out: Output) -> None:
        for outcome, n in out.accounts().items():
            self.metrics.outcomes.labels(outcome=outcome).inc(n)
        for reason, n in out.ignored.items():
            # A word that nobody knows is a producer's own: as a label of a metric there would be no end of them.
            self.metrics.ignored.labels(reason=reason.partition(" of an unknown kind")[0]).inc(n)

    async def _send(
        self, held: Owned, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        future = await self.app.producer.send(
            topic, key=key, value=value, partition=None, timestamp=None, headers=headers
        )
        held.unawaited.append(future)

    async def _set_aside(self, batch: RecordBatch, rejected: Rejected) -> asyncio.Future[Any]:
        """Send a record to the dead letters; return what is to be awaited."""
        topic = self.config.kafka.dead_letters
        key, whole, headers = dead_letter(batch, rejected, redact=self.config.worker.redact)
        self.metrics.dead_letters.labels(reason=rejected.error_type).inc()
        sent: asyncio.Future[Any] = await self.app.producer.send(
            topic, key=key, value=whole, partition=None, timestamp=None, headers=headers
        )
        if whole is None or len(whole) <= _LARGE:
            return sent
        return asyncio.ensure_future(self._or_without_value(sent, key, whole, headers))

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
            wanted = list(self._owned) if tps is None else tps
            # Who has adopted a model is first: one that is in two places is let go of, one in none is lost.
            for tp in sorted(wanted, key=lambda tp: tp not in self._adopted):
                held = self._owned.get(tp)
                if held is not None and held.sound:
                    with held.whole():
                        size += await self._save(held)
            self._adopted.difference_update(wanted)
            took = time.perf_counter() - started
            self.metrics.snapshot_seconds.observe(took)
            self.metrics.snapshot_bytes.inc(size)
            base = self.config.worker.snapshot_interval.us / 1e6
            self._interval_s = max(base, took / _SNAPSHOT_SHARE)
        await self.app.consumer.commit()
        for held in self._owned.values():
            if not held.marked and self.app.consumer.own_commit(held.tp) is not None:
                held.marked = held.fresh = True  # from the next manifest on, an offset without our mark is another's

    async def _save(self, held: Owned) -> int:
        sent, held.unawaited = held.unawaited, []
        await asyncio.gather(*sent)
        pipeline, size = held.pipeline, 0
        if held.expected != held.durable or pipeline.dirty or pipeline.gone or held.fresh:
            pipeline.next_offset = inside(held.expected, held.life)
            gone = sorted(pipeline.gone)
            models = pipeline.snapshot_models(sorted(pipeline.models) if held.unsaved else None)
            size = await held.writer.write(models, gone, self._manifest(held))
            held.unsaved = False
            pipeline.gone.difference_update(gone)
            held.durable, held.fresh = held.expected, False
        held.saved_at = time.monotonic()
        return size

    def _manifest(self, held: Owned) -> dict[str, Any]:
        """Return what belongs to a partition: of its pipeline, and of the log and the topics it was read from."""
        return {
            **held.pipeline.manifest(),
            "log": {
                "app_id": self.config.kafka.app_id,
                "topic_id": held.topic_id,
                "life": held.life,
                "marked": held.marked,
                "feedback": [held.said_id, held.said_life],
                "partitions": [held.count, held.grown_until_s],
                "movers": sorted(held.pipeline.movers),
            },
        }

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
                    own = [(inside(offset, held.said_life), verdict) for offset, verdict in verdicts]
                    with held.whole():
                        await self._publish(held, held.pipeline.feedback(own), None)

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
                if time.monotonic() - self._looked_at >= _WARMING_S:
                    await self._look_at_warming()
        finally:
            if passing is not None:
                passing.cancel()

    async def run_look(self) -> None:
        """Ask again and again whether our topics are still those they were, for ever."""
        if self._cluster is None:
            return
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), _LOOK_S)
            self._look_now.clear()
            if not self.app.rebalancing:
                await self.look()
                await self._settle()

    async def look(self) -> None:
        """Take note of topics that were deleted, created, or created anew since the last look."""
        if (found := await self._identify()) is None:
            return
        names = self._topics()
        gone = {name for name in names if name not in found}
        for name in sorted(gone - self._absent):
            log.error("a topic is gone; nothing can be read from it or written to it", topic=name)
        self._absent = gone
        self.metrics.absent.set(len(gone))
        if gone and self._cluster is not None:
            try:
                if await self._cluster.restore():
                    self._look_now.set()
            except StreamprocError as e:
                log.warning("our own topics could not be created again yet", reason=str(e))
        for name, identity in found.items():
            was, self._ids[name] = self._ids.get(name, ""), identity.id
            if not was or not identity.id or was == identity.id:
                continue
            log.error("a topic was deleted and created anew", topic=name, id=identity.id, before=was)
            if name == self.config.kafka.snapshots:
                await self._save_anew()
            elif name in self._said.topics:
                await self._said_anew(name)
        doubted, self._doubted = self._doubted, set()
        for tp, held in list(self._owned.items()):
            if not held.topic_id and (topic_id := self._ids.get(tp.topic)):
                held.topic_id = topic_id
            if tp in doubted or self._renewed(tp, held.topic_id):
                await self._begin_anew(tp)
        for tp, topic_id in list(self._raw_ids.items()):
            if tp in doubted or self._renewed(tp, topic_id):
                await self._send_on_anew(tp)

    def _renewed(self, tp: TP, topic_id: str) -> bool:
        now = self._ids.get(tp.topic, "")
        return bool(topic_id and now and now != topic_id)

    def _topics(self) -> list[str]:
        """Return the topics whose identity matters: all that are read, and what is written to be read again."""
        return sorted({*self._kinds, *self._raw_topics, *self._said.topics, self.config.kafka.snapshots})

    async def _identify(self) -> dict[str, Identity] | None:
        if self._cluster is None:
            return None
        try:
            return await self._cluster.identify(self._topics())
        except StreamprocError as e:
            log.warning("brokers do not say which topics there are; asked again soon", reason=str(e))
            return None

    async def _learn_ids(self) -> None:
        """Learn what the topics are that we are about to begin; what has changed of others is `look`'s affair."""
        found = await self._identify() or {}
        for name, identity in found.items():
            if name in self._kinds or name in self._raw_topics or name not in self._ids:
                self._ids[name] = identity.id
            if name in self._partitions:
                self._partitions[name] = identity.partitions

    async def _begin_anew(self, tp: TP) -> None:
        """Begin a partition whose log is not the one it was, under us."""
        async with self._lock:
            held = self._owned.get(tp)
            if held is None or not held.sound:
                return
            was = {"next_offset": _BEYOND, "log": {"topic_id": held.topic_id, "life": held.life}}
            at = (await self._begin([tp], {tp: was}))[tp]
            held.topic_id, held.life = self._ids.get(tp.topic, ""), at.life
            held.expected = held.durable = at.offset
            held.fresh, held.moved_at = True, time.monotonic()
            await self.app.consumer.seek_to({tp: at.offset})

    async def _send_on_anew(self, tp: TP) -> None:
        """Begin a partition that is only sent on, and whose log is not the one it was."""
        async with self._sending:
            was = {"next_offset": _BEYOND, "log": {"topic_id": self._raw_ids[tp]}}
            at = (await self._begin([tp], {tp: was}))[tp]
            self._pairs.forget(tp)
            self._raw[tp] = self._taken[tp] = at.offset
            self._raw_ids[tp] = self._ids.get(tp.topic, "")
            await self.app.consumer.seek_to({tp: at.offset})

    async def _save_anew(self) -> None:
        """Write all we know to the snapshot topic, which was deleted under us."""
        async with self._lock:
            tps = [tp for tp, held in self._owned.items() if held.sound]
            stored = await self._read(tps) if tps else {}
            for tp in tps:
                held = self._owned[tp]
                held.writer = self._writer(tp, stored[tp.topic, tp.partition])
                held.fresh = held.unsaved = True
        await self.snapshot()
        log.warning("all state was written again", partitions=_names(tps))

    async def _said_anew(self, topic: str) -> None:
        """Follow a topic of operators' words that was deleted under us from its beginning."""
        async with self._lock:
            if topic == self.config.kafka.feedback:
                for held in self._owned.values():
                    held.said_id, held.said_life, held.fresh = self._ids[topic], held.said_life + 1, True
            self._said.renew(topic)

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
            begins = await self._begin(tps, {tp: stored[tp.topic, tp.partition].manifest for tp in tps})
            models = 0
            for tp in tps:
                found = stored[tp.topic, tp.partition]
                pipeline = self._pipeline(tp)
                at = begins[tp]
                if found.manifest is not None:
                    pipeline.restore_manifest(found.manifest)
                pipeline.next_offset = inside(at.offset, at.life)
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
                writer = self._writer(tp, found)
                if self._restoring.get(tp) is asyncio.current_task():
                    self._owned[tp] = self._take_up(tp, pipeline, writer, at, found.manifest, generation)
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
        app_id = self.config.kafka.app_id
        member = orjson.dumps({"claimed_by": app_id, "at_ms": int(self._wall() * 1000)})
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

        topic = self.config.kafka.snapshots
        found = await snapshots.read(self._settings, topic=topic, claims=claims, progress=progress)
        for (source, partition), stored in found.items():
            if others := sorted(stored.others(app_id)):
                raise ForeignState(
                    f"{topic} holds the state of {source}-{partition} of another deployment, app_id "
                    f"{', '.join(others)}; ours is {app_id}. Give each its own topic in `kafka.snapshots` (the "
                    f"default carries the app_id), or delete {topic} where the other is no more"
                )
        return found

    async def _begin(self, tps: list[TP], manifests: Mapping[TP, dict[str, Any] | None]) -> dict[TP, Beginning]:
        """Return where each partition begins, and say and count what will not be read."""
        if not tps:
            return {}
        consumer, policy = self.app.consumer, self.config.kafka.auto_offset_reset
        begins, ends = await consumer.earliest_offsets(*tps), await consumer.highwaters(*tps)
        # Of all partitions of these topics: one without an offset among others that have some is new.
        counts = {tp.topic: max(self._partitions.get(tp.topic, 1), tp.partition + 1) for tp in tps}
        committed = await consumer.committed([TP(t, p) for t, n in counts.items() for p in range(n)])
        found = {}
        self._foreign_marks.difference_update(tps)
        self._foreign_marks.update(tp for tp in tps if tp in committed and not committed[tp].ours)
        for tp in tps:
            log_ = Log(topic_id=self._ids.get(tp.topic, ""), begin=begins[tp], end=ends[tp])
            at = found[tp] = begin(
                f"{tp.topic}-{tp.partition}",
                manifests.get(tp),
                log_,
                committed=committed.get(tp),
                policy=policy,
                known=any(other.topic == tp.topic for other in committed),
            )
            self._tell_of(tp, at)
            held = committed.get(tp)
            if tp.topic in self._raw_topics and held is not None and not held.ours:
                log.warning(
                    "the group's offset was set by another program; what was sent on before is not scored again",
                    topic=tp.topic,
                    partition=tp.partition,
                    offset=at.offset,
                )
        return found

    def _tell_of(self, tp: TP, at: Beginning) -> None:
        """Say what is out of the ordinary in where a partition begins."""
        where = {"topic": tp.topic, "partition": tp.partition, "goes_on_at": at.offset}
        if at.why in ("recreated", "truncated"):
            self.metrics.renewed.labels(topic=tp.topic, reason=at.why).inc()
            if at.why == "recreated":
                log.error(
                    "the topic was deleted and created anew; what was on it and not read yet is lost, how much is not "
                    "known. Models keep what they learned",
                    begins_at=self.config.kafka.auto_offset_reset,
                    **where,
                )
            else:
                log.error("the log is shorter than what was read of it; what is lost is not known", **where)
        elif at.gone:
            self._gone(tp, at.gone, "reset" if at.why == "reset" else "retention", at=at.offset)
        elif at.why == "new":
            log.info("a partition that was added is read from its beginning", **where)
        elif at.why == "group" and tp.topic not in self._raw_topics:
            log.warning("no state is stored; goes on at the group's offset, and models warm up", **where)

    def _take_up(
        self,
        tp: TP,
        pipeline: Pipeline,
        writer: snapshots.Writer,
        at: Beginning,
        manifest: dict[str, Any] | None,
        generation: int,
    ) -> Owned:
        """Return a partition that is ours from now on."""
        held = Owned(
            tp,
            pipeline,
            writer,
            at.offset,
            generation=generation,
            life=at.life,
            topic_id=self._ids.get(tp.topic, ""),
            # Without an offset of the group, whoever sets one before we do is not us.
            marked=tp not in self._foreign_marks,
            fresh=manifest is None or at.why != "manifest",
        )
        noted = (manifest or {}).get("log", {})
        told = noted.get("feedback") or ["", 0]
        held.said_id, held.said_life = self._ids.get(self.config.kafka.feedback, "") or told[0], int(told[1])
        if told[0] and held.said_id != told[0]:
            held.said_life += 1  # its offsets are those of another topic
        held.count, held.grown_until_s = noted.get("partitions") or [0, 0.0]
        pipeline.movers.update(noted.get("movers") or ())
        if at.why == "new":
            held.grown_until_s = self._wall() + _GROWN_S
        self._note_growth(held)
        return held

    # ---------------------------------------------------------------------- partitions that are added

    def _note_growth(self, held: Owned) -> None:
        """Take note of how many partitions the topic of one has by now, and of the models that leave it by that."""
        tp, pipeline = held.tp, held.pipeline
        was, held.count = held.count, self._partitions.get(held.tp.topic, 1)
        if pipeline.kind not in SOURCES or not was or was >= held.count:
            return
        held.grown_until_s, held.fresh = self._wall() + _GROWN_S, True
        spread = self._spread.setdefault(tp.topic, Spread())
        spread.note(pipeline.models, tp.partition, of=was)
        movers = {m for m in pipeline.models if spread.homes(m, of=held.count) != {tp.partition}}
        pipeline.movers |= movers
        log.warning(
            "the topic has more partitions; models whose key moves take what they learned along",
            topic=tp.topic,
            partition=tp.partition,
            before=was,
            now=held.count,
            models=len(movers),
        )

    async def _adopt(self, held: Owned, batch: RecordBatch) -> None:
        """Bring the models whose records have begun to come here from the partitions that had them."""
        tp, pipeline = held.tp, held.pipeline
        keys = {key for key in batch.keys if key}
        for name in sorted({key.decode("utf-8", "replace") for key in keys} - set(pipeline.models)):
            spread = self._spread.get(tp.topic)
            if spread is not None and tp.partition not in spread.homes(name, of=held.count):
                pipeline.movers.add(name)  # of a producer that does not know of the partitions yet
                continue
            donor = next((o for o in self._siblings(tp) if name in o.pipeline.models and o.sound), None)
            if donor is not None:
                data: bytes | None = donor.pipeline.leave(name)
            else:
                data = (await self._stored_elsewhere(tp.topic, max_age_s=10.0)).get(name)
            if data is None:
                continue
            try:
                pipeline.adopt(name, data)
            except SnapshotError as e:
                log.error("a model's key has moved here, and its state cannot be used", model=name, error=str(e))
                self.metrics.unusable_states.inc()
                self.metrics.moved.labels(outcome="anew").inc()
                continue
            self._adopted.add(tp)
            self.metrics.moved.labels(outcome="kept").inc()
            log.info("a model's key has moved here, and what it learned with it", model=name, topic=tp.topic,
                     partition=tp.partition)  # fmt: skip

    def _siblings(self, tp: TP) -> list[Owned]:
        return [o for other, o in self._owned.items() if other.topic == tp.topic and other != tp]

    async def _stored_elsewhere(self, topic: str, *, max_age_s: float) -> dict[str, bytes]:
        """Return the states of a topic's models that other workers have stored, as of so long ago at most."""
        at, found = self._elsewhere.get(topic, (-math.inf, {}))
        if time.monotonic() - at < max_age_s:
            return found
        others = [TP(topic, p) for p in range(self._partitions.get(topic, 1)) if TP(topic, p) not in self._owned]
        snapshot_topic = self.config.kafka.snapshots
        places = {self._snapshot_partition(tp) for tp in others}
        ends = await self.app.consumer.highwaters(*(TP(snapshot_topic, p) for p in places)) if places else {}
        last = {tp.partition: end - 1 for tp, end in ends.items()}
        claims = {(tp.topic, tp.partition): (at := self._snapshot_partition(tp), last[at]) for tp in others}
        stored = await snapshots.read(self._settings, topic=snapshot_topic, claims=claims) if claims else {}
        found = {name: data for one in stored.values() for name, data in one.models.items()}
        self._elsewhere[topic] = (time.monotonic(), found)
        return found

    async def _settle(self) -> None:
        """Let go of models that have come up elsewhere; those that have not, long after, are watched again."""
        async with self._lock:
            for held in self._owned.values():
                if not held.sound or not (held.pipeline.movers or held.grown_until_s):
                    continue
                pipeline, over = held.pipeline, self._wall() > held.grown_until_s
                # A record may come here yet, of a producer that learns late; then the model is here once more.
                quiet = sorted(
                    name for name in pipeline.movers & pipeline.models.keys()
                    if pipeline.clock_us - pipeline.models[name].last_arrival_us > _LEFT_US
                )  # fmt: skip
                here = {name for other in self._siblings(held.tp) for name in other.pipeline.models}
                if not here.issuperset(quiet):
                    here |= set(await self._stored_elsewhere(held.tp.topic, max_age_s=120.0))
                for name in quiet:
                    if name in here:
                        pipeline.leave(name)
                if over:
                    for name in sorted(pipeline.movers):
                        pipeline.stays(name)
                    held.grown_until_s = 0.0
                held.fresh = held.fresh or bool(quiet) or over

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

    def _writer(self, tp: TP, stored: snapshots.Stored) -> snapshots.Writer:
        return snapshots.Writer(
            self._send_snapshot,
            topic=tp.topic,
            partition=tp.partition,
            stored=stored,
            snapshot_partition=self._snapshot_partition(tp),
            limit=self._snapshot_limit,
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


def _inside(batch: RecordBatch, life: int) -> RecordBatch:
    """Return a batch with offsets as the worker knows them."""
    if not life:
        return batch
    shifted: RecordBatch = msgspec.structs.replace(batch, offsets=[inside(o, life) for o in batch.offsets])
    return shifted


def _outside(alert: Alert) -> Alert:
    """Return an alert whose evidence is told by the log's own offsets."""
    span = alert.evidence
    if span is None or span.offset_last == outside(span.offset_last):
        return alert
    told = Span(span.topic, span.partition, outside(span.offset_first), outside(span.offset_last))
    shown: Alert = msgspec.structs.replace(alert, evidence=told)
    return shown
