"""The life of a bridge: read what was, then tell what is, one record of a partition after the other."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import structlog
from aiohttp import web
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from streamproc.bridges import sinks, steps
from streamproc.bridges.metrics import Metrics
from streamproc.config import Bridge, Config
from streamproc.errors import CRASHED, BrokerUnreachable, PortTaken, StreamprocError, UsageError
from streamproc.events import RecordBatch, Rejected
from streamproc.topology import bridge_dead_letters
from streamproc.worker import topics
from streamproc.worker import web as web_pages
from streamproc.worker.connection import connection, for_aiokafka
from streamproc.worker.deadletters import dead_letter
from streamproc.worker.logs import named
from streamproc.worker.reloading import Reloader

log = structlog.get_logger("streamproc.bridge")

_FIRST_BACKOFF_S = 0.5

#: A delivery that waits for its receiver is no reason to be turned out of the group.
_NEVER_MS = 2**31 - 1

_MAX_BYTES = 8_000_000

#: What needs a restart: of the config, and of the bridge's own block, since its position and its topics rest on it.
_FIXED = ("kafka", "worker")
_FIXED_OF_BRIDGE = ("topic", "start", "history", "requests")

#: Beside a position: what fires at it is still to be told.
_BEGINNING = "beginning"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One bridge to run.

    topic: what it reads; grace_s: how long a delivery on its way may take at the end.
    """

    kind: str
    name: str
    bridge: Bridge
    topic: str
    web_host: str = "127.0.0.1"
    web_port: int = 0
    grace_s: float = 8.0

    def group(self, config: Config) -> str:
        """Return the consumer group: what a bridge is known by, whichever process runs it."""
        return f"{config.kafka.app_id}-bridge-{self.kind}-{self.name}"


def choose(config: Config, kind: str, *, name: str | None = None, topic: str | None = None, **more: Any) -> Settings:
    """Return the settings of the bridge of a kind (and a name, where there are several)."""
    blocks: dict[str, Bridge] = getattr(config.bridges, kind)
    if not blocks:
        raise UsageError(f"the config has no `bridges: {{{kind}: ...}}`; docs/bridges.md has an example of each")
    if name is None:
        if len(blocks) > 1:
            raise UsageError(f"--name: which of {', '.join(sorted(blocks))}?")
        name = next(iter(blocks))
    if name not in blocks:
        raise UsageError(f"--name: there is no {kind} bridge `{name}`; known: {', '.join(sorted(blocks))}")
    wanted = topic or blocks[name].topic
    if wanted == "pages" and not config.kafka.pages:
        raise UsageError("--topic: there are no pages; name their topic in `kafka: {pages: ...}`")
    # `incidents` is its own name where the config does not give it another.
    known = getattr(config.kafka, wanted, "") if wanted in ("alerts", "pages", "incidents") else ""
    return Settings(kind=kind, name=name, bridge=blocks[name], topic=known or wanted, **more)


def topic_specs(config: Config, settings: Settings) -> list[topics.TopicSpec]:
    """Return every topic a bridge reads or writes, as it should be."""
    k = config.kafka
    names = [settings.topic, bridge_dead_letters(config.kafka), *sinks.output_topics(settings.bridge)]
    sized = {bridge_dead_letters(config.kafka): {"max.message.bytes": str(_MAX_BYTES)}}
    return [
        topics.TopicSpec(
            name=name, partitions=k.partitions, replication_factor=k.replication_factor, config=sized.get(name, {})
        )
        for name in names
    ]


def run(
    config: Config,
    settings: Settings,
    *,
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    connect_timeout_s: float = 60.0,
) -> int:
    """Run a bridge until a signal ends it; return the exit code.

    path, env: of the config, for when it is read again.
    """

    def on_retry(attempt: int, wait_s: float, reason: str) -> None:
        log.warning("no broker yet", attempt=attempt, retry_in_s=round(wait_s, 1), reason=reason)

    try:
        report = topics.ensure(
            connection(config),
            topic_specs(config, settings),
            create=config.kafka.create_topics,
            timeout_s=connect_timeout_s,
            on_retry=on_retry,
        )
    except StreamprocError as e:
        log.error("cannot start", problem=str(e))
        return e.exit_code
    for name in report.created:
        log.info("topic created", topic=name, partitions=report.partitions[name])
    return asyncio.run(_serve(config, settings, path, env or {}))


async def _serve(config: Config, settings: Settings, path: Path | None, env: Mapping[str, str]) -> int:
    reloader = Reloader(path, env, config, fixed=_FIXED)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        async with BridgeProcess(config, settings, reload=reloader.reload) as process:
            reloader.take, reloader.ok = process.reload, process.metrics.reload_ok
            reloader.start()
            log.info(
                "bridge started",
                bridge=f"{settings.kind}/{settings.name}",
                topic=settings.topic,
                group=settings.group(config),
                web=f"http://{settings.web_host}:{process.port}" if process.port else None,
            )
            stopping = loop.create_task(stop.wait())
            ends: list[asyncio.Future[Any]] = [stopping, process.failure]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            reloader.stop()
            if process.failure.done():
                log.error("bridge failed; it ends rather than lose records", reason=named(process.failure.result()))
                return CRASHED
            log.info("stopping", grace_s=settings.grace_s)
            await process.finish()
    except StreamprocError as e:
        log.error("cannot start", problem=str(e))
        return e.exit_code
    except KafkaError as e:
        log.error("cannot start", problem=repr(e))
        return BrokerUnreachable.exit_code
    log.info("stopped")
    return 0


class BridgeProcess(aiokafka.ConsumerRebalanceListener):  # type: ignore[misc]
    """One bridge: its consumer, its receiver, a task for each partition it holds."""

    def __init__(self, config: Config, settings: Settings, *, reload: Callable[[], Awaitable[str]]) -> None:
        self.config = config
        self.settings = settings
        self._reload = reload
        self.metrics = Metrics()
        self.port = 0
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._partitions: dict[Any, asyncio.Task[None]] = {}
        self._tracks: dict[TopicPartition, steps.Track] = {}  # those being restored too
        self._ready: set[TopicPartition] = set()
        self._reached: dict[TopicPartition, int] = {}  # kept while others have them
        self._assigned = False
        self._blocked_since: dict[TopicPartition, float] = {}
        self._stack = contextlib.AsyncExitStack()
        self._changed = asyncio.Event()  # of the config in force: set, and replaced, when another is taken
        self._busy: Counter[sinks.Sink] = Counter()  # deliveries on their way
        self._resending: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.metrics.blocked.set_function(self._blocked_s)

    async def __aenter__(self) -> BridgeProcess:
        """Connect and begin."""
        settings = for_aiokafka(connection(self.config))
        settings["client_id"] = self.settings.group(self.config)
        session_ms = self.config.kafka.session_timeout.us // 1000
        self._consumer = aiokafka.AIOKafkaConsumer(
            **settings,
            group_id=self.settings.group(self.config),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(300, session_ms // 6),
            max_poll_interval_ms=_NEVER_MS,
            rebalance_timeout_ms=max(20_000, 2 * session_ms),
            isolation_level="read_committed",
        )
        # Not idempotent, which is more than an embedded broker can: what it writes has keys of its own for that.
        self._producer = aiokafka.AIOKafkaProducer(**settings, acks="all", max_request_size=_MAX_BYTES)
        try:
            self.sink = self._make(self.settings.bridge)
            self._stack.push_async_callback(self._close)
            await self._web()
            self._stack.push_async_callback(self._producer.stop)
            await self._producer.start()
            self._consumer.subscribe([self.settings.topic], listener=self)
            self._stack.push_async_callback(self._consumer.stop)
            await self._consumer.start()
            self._resending = asyncio.create_task(self._guarded(self.sink.run()))
            watching = asyncio.create_task(self._guarded(self._watch()))
            self._stack.push_async_callback(_cancelled, watching)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave the group and close, whatever is left; what was not committed is told again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, self.settings.grace_s / 2)):
                for task in self._partitions.values():
                    await _cancelled(task)
                await self._stack.aclose()

    def _make(self, bridge: Bridge) -> sinks.Sink:
        source = f"streamproc/{self.config.kafka.app_id}/bridge/{self.settings.kind}/{self.settings.name}"
        sink = sinks.make(bridge, sinks.Http(bridge), source=source, publish=self._publish)
        sink.set_aside = self._set_episode_aside
        return sink

    async def _close(self) -> None:
        tasks = [*self._leaving, *([] if self._resending is None else [self._resending])]
        for task in tasks:
            await _cancelled(task)
        await self.sink.http.close()

    async def reload(self, config: Config) -> None:
        """Tell from now on as another config says; what waits for its receiver is tried again at once.

        Raises `StreamprocError` where it is not to be had without a restart.
        """
        was = self.settings
        blocks: dict[str, Bridge] = getattr(config.bridges, was.kind)
        if was.name not in blocks:
            raise StreamprocError(f"`bridges.{was.kind}.{was.name}` is gone, which needs a restart")
        bridge = blocks[was.name]
        for name in _FIXED_OF_BRIDGE:
            if getattr(bridge, name, None) != getattr(was.bridge, name, None):
                raise StreamprocError(f"`bridges.{was.kind}.{was.name}.{name}` has changed, which needs a restart")
        old, self.sink = self.sink, self._make(bridge)
        self.config, self.settings = config, msgspec.structs.replace(was, bridge=bridge)
        for track in self._tracks.values():
            track.rematch(bridge.match, asks=self.sink.asks)
        self.sink.succeed(old)
        if self._resending is not None:
            await _cancelled(self._resending)
            self._resending = asyncio.create_task(self._guarded(self.sink.run()))
        leaving = asyncio.create_task(self._leave(old))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _leave(self, sink: sinks.Sink) -> None:
        """Close a receiver's connections once nothing is on its way to it."""
        try:
            while self._busy[sink]:
                await asyncio.sleep(0.05)
        finally:
            await sink.http.close()
            del self._busy[sink]

    async def finish(self) -> None:
        """Let deliveries on their way come to their end, within the grace."""
        self._stopping.set()
        if self._partitions:
            await asyncio.wait(list(self._partitions.values()), timeout=self.settings.grace_s * 0.6)

    # ----------------------------------------------------------------------------- partitions

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Let go of partitions: what is on its way is told again by whoever has them next."""
        for partition in revoked:
            task = self._partitions.pop(partition, None)
            if task is not None:
                await _cancelled(task)
            self.sink.forgotten(partition)
            self._tracks.pop(partition, None)
            self._ready.discard(partition)
            self._blocked_since.pop(partition, None)
            with contextlib.suppress(KeyError):
                self.metrics.lag.remove(partition.topic, str(partition.partition))

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Begin with partitions."""
        self._assigned = True
        for partition in assigned:
            if partition not in self._partitions:
                self._partitions[partition] = asyncio.create_task(self._guarded(self._partition(partition)))

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception as e:
            log.exception("cannot go on")
            if not self.failure.done():
                self.failure.set_result(e)

    async def _partition(self, partition: TopicPartition) -> None:
        track = self._tracks[partition] = steps.Track(self.settings.bridge.match, asks=self.sink.asks)
        until, fresh = await self._rewind(partition)
        empty = 0
        while not self._stopping.is_set() and await self._consumer.position(partition) < until:
            records = await self._read(partition, until)
            for record in records:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    track.take(steps.decode(record.value), record.value, _headers(record), record.timestamp)
            # The last offsets before `until` may hold no record: markers of transactions, compaction.
            empty = 0 if records else empty + 1
            if empty >= 3:
                break
        if self._stopping.is_set():
            return  # half a past is none: what it makes of the rest would be wrong
        self.sink.restored(partition, track)
        self._ready.add(partition)
        log.info("partition restored", partition=partition.partition, position=until, firing=len(track.open()))
        if fresh:
            for firing in track.again():
                if not await self._tell(partition, firing, None):
                    return
            await self._commit(partition, until)
        again = True  # what comes first may have been on its way when we last ended
        reached = await self._consumer.position(partition)
        while not self._stopping.is_set():
            done = None
            for record in await self._read(partition, None):
                if record.offset < reached:
                    self._say_renewed(partition, reached=reached, goes_on=record.offset)
                    until = 0
                reached = self._reached[partition] = record.offset + 1
                if record.offset < until:
                    continue
                step = await self._take(track, record)
                done = record.offset + 1
                if step is not None:
                    if not await self._tell(partition, msgspec.structs.replace(step, again=again), record):
                        return  # at the end of the process; told again at the next start
                    again = False
                    # Before the next is told, so that no crash can tell more than this one twice: a trigger told
                    # again after its resolution would page again.
                    await self._commit(partition, done)
                    done = None
                if self._stopping.is_set():
                    break
            if done is not None:
                await self._commit(partition, done)

    async def _rewind(self, partition: TopicPartition) -> tuple[int, bool]:
        """Go back to where the past begins; return the offset before which nothing is told, and whether we are new."""
        consumer = self._consumer
        committed = await consumer.committed(partition)
        begin = (await consumer.beginning_offsets([partition]))[partition]
        end = (await consumer.end_offsets([partition]))[partition]
        if committed is None:
            had = self._reached.get(partition, 0)
            if had:  # with a topic go the offsets of all groups
                self._say_renewed(partition, reached=had, goes_on=begin)
            until = end if self.settings.bridge.start == "firing" and not had else begin
            fresh = True
            # Before anything is told: a crash must not lead to another beginning, past what has come since.
            await self._commit(partition, until, _BEGINNING)
        else:
            until = committed
            fresh = await self._note(partition) == _BEGINNING
            if committed > end:
                self._say_renewed(partition, reached=committed, goes_on=begin)
                until = begin
            if committed < begin:
                log.error("records were deleted before they were told", partition=partition.partition,
                          lost=begin - committed)  # fmt: skip
        since_ms = max(0, time.time_ns() - self.settings.bridge.history.us * 1000) // 1_000_000
        try:
            found = (await consumer.offsets_for_times({partition: since_ms}))[partition]
            past = end if found is None else found.offset
        except KafkaError as e:  # a broker without an index of times
            log.warning("reads the topic from its beginning", reason=repr(e))
            past = begin
        consumer.seek(partition, max(begin, min(past, until)))
        return until, fresh

    def _say_renewed(self, partition: TopicPartition, *, reached: int, goes_on: int) -> None:
        self.metrics.renewed.inc()
        log.error(
            "the topic was deleted and created anew, or lost records; it is told from its beginning on",
            partition=partition.partition,
            reached=reached,
            goes_on_at=goes_on,
        )

    async def _read(self, partition: TopicPartition, until: int | None) -> list[Any]:
        try:
            batch = await self._consumer.getmany(partition, timeout_ms=500, max_records=200)
        except IllegalStateError:  # it is no longer ours; the listener will end us
            await asyncio.sleep(0.1)
            return []
        records = batch.get(partition, [])
        if until is not None and records and records[-1].offset >= until:
            self._consumer.seek(partition, until)  # what is not the past is read again, and told
            records = [r for r in records if r.offset < until]
        return list(records)

    async def _note(self, partition: TopicPartition) -> str:
        """Return what was noted beside the position."""
        admin = AIOKafkaAdminClient(**for_aiokafka(connection(self.config)))
        await admin.start()
        try:
            group = self.settings.group(self.config)
            found = await admin.list_consumer_group_offsets(group, partitions=[partition])
        finally:
            await admin.close()
        return found[partition].metadata or "" if partition in found else ""

    async def _commit(self, partition: TopicPartition, offset: int, note: str = "") -> None:
        wait_s = 0.1
        while True:
            try:
                await self._consumer.commit({partition: (offset, note)})
                return
            except (CommitFailedError, IllegalStateError):
                return  # ours no longer: whoever has it tells this again
            except KafkaError as e:
                log.warning("not committed yet", reason=repr(e))
                await asyncio.sleep(wait_s)
                wait_s = min(5.0, wait_s * 2)

    # ------------------------------------------------------------------------------- records

    async def _take(self, track: steps.Track, record: Any) -> steps.Step | None:
        try:
            event = steps.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as e:
            kind = "schema" if isinstance(e, msgspec.ValidationError) else "malformed"
            await self._set_aside(record, kind, f"neither an alert nor an incident: {e}")
            return None
        step = track.take(event, record.value, _headers(record), record.timestamp)
        if step is None:
            self.metrics.skipped.labels(reason=track.skipped).inc()
            log.debug("not told", reason=track.skipped, id=event.id, action=event.action)
        return step

    async def _tell(self, partition: TopicPartition, step: steps.Step, record: Any | None) -> bool:
        """Deliver a step, for as long as it takes; return False where the process ended first."""
        about = {"action": step.event.action, "id": step.event.id, "summary": step.event.summary[:120]}
        started = time.monotonic()
        attempt = 0
        while True:
            sink, changed = self.sink, self._changed
            self._busy[sink] += 1
            try:
                await sink.deliver(step)
            except sinks.Unavailable as e:
                self._blocked_since.setdefault(partition, started)
                wait_s = self._backoff(attempt, e.after_s)
                level = log.warning if attempt in (0, 3) or attempt % 10 == 0 else log.debug
                level("not delivered yet", reason=str(e), attempt=attempt + 1, retry_in_s=round(wait_s, 1), **about)
                attempt += 1
                self.metrics.retries.inc()
                if await self._stopped_within(wait_s, unless=changed):
                    return False
                if changed.is_set():
                    attempt = 0
            except sinks.Refused as e:
                step.episode.refused = True
                await self._set_aside(record or _as_record(partition, step), e.error_type, str(e))
                break
            except sinks.Skipped as e:
                self.metrics.skipped.labels(reason="nothing_to_tell").inc()
                log.info("nothing to tell", reason=str(e), **about)
                break
            else:
                step.episode.refused = False
                self.metrics.delivered.labels(action=step.event.action).inc()
                self.metrics.seconds.observe(time.monotonic() - started)
                log.info("delivered", attempts=attempt + 1, **about)
                break
            finally:
                self._busy[sink] -= 1
        self._blocked_since.pop(partition, None)
        return True

    def _backoff(self, attempt: int, asked_s: float | None) -> float:
        """Return a wait drawn up to one that doubles, never shorter than the receiver asked for."""
        longest = min(self.settings.bridge.max_backoff.us / 1e6, _FIRST_BACKOFF_S * 2 ** min(attempt, 20))
        drawn = random.uniform(longest / 2, longest)
        return drawn if asked_s is None else asked_s + random.uniform(0, min(1.0, longest))

    async def _stopped_within(self, seconds: float, *, unless: asyncio.Event) -> bool:
        """Wait for the end of the process, for so long or until something else happens; return whether it came."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._stopping, unless)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        return self._stopping.is_set()

    async def _set_aside(self, record: Any, error_type: str, message: str) -> None:
        batch = RecordBatch(
            record.topic, record.partition, [record.offset], [record.timestamp], [record.key], [record.value],
            [record.headers],
        )  # fmt: skip
        rejected = Rejected(0, record.offset, error_type, message)
        key, value, headers = dead_letter(batch, rejected, redact=self.config.worker.redact)
        headers.append(("streamproc.bridge", f"{self.settings.kind}/{self.settings.name}".encode()))
        await self._publish(bridge_dead_letters(self.config.kafka), key, value, headers)
        self.metrics.dead_letters.labels(reason=error_type).inc()
        log.error("set aside as a dead letter", partition=record.partition, offset=record.offset, reason=message)

    async def _set_episode_aside(self, partition: TopicPartition, episode: steps.Episode, why: sinks.Refused) -> None:
        told = _Told(partition.topic, partition.partition, episode.latest_ms, episode.raw, episode.headers)
        await self._set_aside(told, why.error_type, str(why))

    async def _publish(
        self, topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> None:
        wait_s = 0.2
        while True:
            try:
                await self._producer.send_and_wait(topic, value, key=key, headers=headers)
                return
            except KafkaError as e:
                if not e.retriable:
                    raise
                log.warning("not published yet", topic=topic, reason=repr(e))
                await asyncio.sleep(wait_s)
                wait_s = min(5.0, wait_s * 2)

    # -------------------------------------------------------------------------------- the web

    def _blocked_s(self) -> float:
        now = time.monotonic()
        return max((now - since for since in self._blocked_since.values()), default=0.0)

    async def _watch(self) -> None:
        """Keep the gauges."""
        while True:
            self.metrics.open.set(sum(len(t.open()) for t in self.sink.tracks.values()))
            for partition in list(self._partitions):
                with contextlib.suppress(IllegalStateError, KafkaError):
                    high = self._consumer.highwater(partition)
                    if high is not None:
                        done = await self._consumer.committed(partition) or 0
                        lag = max(0, high - done)
                        self.metrics.lag.labels(partition.topic, str(partition.partition)).set(lag)
            await asyncio.sleep(1.0)

    async def _web(self) -> None:
        if self.settings.web_port == 0:
            return

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=self.metrics.text(), content_type="text/plain")

        async def healthy(_: web.Request) -> web.Response:
            # A receiver that is down is no reason to be started anew: that is what `ready` and the gauges tell.
            return web.Response(text="ok\n")

        async def ready(_: web.Request) -> web.Response:
            if not self._assigned or any(p not in self._ready for p in self._partitions):
                return web.Response(text="restoring\n", status=503)
            if self._blocked_since:
                text = f"the receiver has taken nothing for {self._blocked_s():.0f} s\n"
                return web.Response(text=text, status=503)
            return web.Response(text="ready\n")

        async def reload(request: web.Request) -> web.Response:
            token = self.config.worker.reload_token
            if why := web_pages.refusal(request.remote, request.headers.get("Authorization"), token):
                return web.Response(text=why + "\n", status=403)
            problem = await self._reload()
            return web.Response(text=(problem or "reloaded") + "\n", status=400 if problem else 200)

        app = web.Application()
        pages: dict[str, Callable[[web.Request], Any]] = {
            "/metrics": metrics, "/-/healthy": healthy, "/-/ready": ready
        }  # fmt: skip
        app.add_routes([*(web.get(path, page) for path, page in pages.items()), web.post("/-/reload", reload)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self.settings.web_host, self.settings.web_port).start()
        except OSError as e:
            address = f"{self.settings.web_host}:{self.settings.web_port}"
            raise PortTaken(f"--web-port: {address} cannot be had ({e.strerror or e}); name another port") from e
        self.port = self.settings.web_port


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


class _Told(msgspec.Struct):
    """A record as it was when it was read back."""

    topic: str
    partition: int
    timestamp: int
    value: bytes
    headers: list[tuple[str, bytes]]
    offset: int = -1  # not kept
    key: bytes | None = None


def _as_record(partition: TopicPartition, step: steps.Step) -> _Told:
    return _Told(partition.topic, partition.partition, step.at_ms, step.value, step.headers)


def _headers(record: Any) -> list[tuple[str, bytes]]:
    return [(k, v if v is not None else b"") for k, v in record.headers]
