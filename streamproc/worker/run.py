"""The life of a worker process: check, connect, run, reload, stop in time."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import structlog
from aiokafka.errors import KafkaError

from streamproc import __version__, tables, topology
from streamproc.baseline import Table
from streamproc.config import Config
from streamproc.errors import CRASHED, BrokerUnreachable, StreamprocError, TopicRejected
from streamproc.worker import app as app_module
from streamproc.worker import snapshots, topics, web
from streamproc.worker.connection import connection
from streamproc.worker.logs import named
from streamproc.worker.metrics import Metrics
from streamproc.worker.reloading import Reloader
from streamproc.worker.warming import first_alerts

log = structlog.get_logger("streamproc.worker")

#: What needs a restart: a reload that changes it is refused with this said.
_FIXED = ("kafka", "worker", "fields", "schema_registry")


def topic_specs(config: Config) -> list[topics.TopicSpec]:
    """Return every topic a worker reads or writes, as it should be."""
    k = config.kafka
    return [
        topics.TopicSpec(
            name=topic.name,
            partitions=k.partitions if topic.partitions is None else topic.partitions,
            replication_factor=k.replication_factor,
            config=topic.settings,
            siblings=topic.siblings,
        )
        for topic in topology.topics(k)
    ]


def prepare_topics(config: Config, *, timeout_s: float, create: bool | None = None) -> dict[str, int]:
    """Make sure every topic is there; return partitions by topic. Blocks; says when it waits.

    Raises BrokerUnreachable after `timeout_s`, TopicMissing where creating is not allowed.
    """

    def on_retry(attempt: int, wait_s: float, reason: str) -> None:
        log.warning("no broker yet", attempt=attempt, retry_in_s=round(wait_s, 1), reason=reason)

    report = topics.ensure(
        connection(config),
        topic_specs(config),
        create=config.kafka.create_topics if create is None else create,
        timeout_s=timeout_s,
        on_retry=on_retry,
    )
    for name in report.created:
        log.info("topic created", topic=name, partitions=report.partitions[name])
    for mismatch in report.mismatched:
        log.warning("a topic is not as wanted", problem=str(mismatch))
        narrow = mismatch.topic == config.kafka.snapshots and mismatch.what == "max.message.bytes"
        if narrow and int(mismatch.found) < snapshots.LEAST_MESSAGE_BYTES:
            raise TopicRejected(
                f"{mismatch}. From {snapshots.LEAST_MESSAGE_BYTES} on states are kept in parts, below not at all"
            )
    ours = config.kafka.snapshots
    began = ours in report.created and ours != _SNAPSHOTS_ONCE
    if began and topics.describe(connection(config), [_SNAPSHOTS_ONCE], timeout_s=timeout_s):
        log.warning(
            "state begins anew in a topic of this app_id; what was learned before may be in the one that all "
            "shared once, which `kafka.snapshots` can name",
            topic=ours,
            once=_SNAPSHOTS_ONCE,
        )
    return dict(report.partitions)


#: Where state was kept while its topic did not carry the app_id.
_SNAPSHOTS_ONCE = "streamproc-snapshots"


class _Topics:
    """Topic administration for the engine, in threads: its client blocks."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._connection = connection(config)

    async def identify(self, names: Sequence[str]) -> dict[str, topics.Identity]:
        return await asyncio.to_thread(topics.identify, self._connection, names)

    async def restore(self) -> bool:
        if not self._config.kafka.create_topics:
            return False
        sources = self._config.kafka.sources()  # of these we do not know how they were
        ours = [spec for spec in topic_specs(self._config) if spec.name not in sources]
        report = await asyncio.to_thread(topics.ensure, self._connection, ours, create=True, timeout_s=10.0)
        for name in report.created:
            log.warning("a topic of ours was created again", topic=name)
        return bool(report.created)


def run(
    config: Config,
    *,
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    connect_timeout_s: float = 60.0,
    data_dir: str | None = None,
    on_built: Callable[[app_module.WorkerApp], None] | None = None,
    adjust: Callable[[Config], Config] = lambda config: config,
) -> int:
    """Run a worker until a signal ends it; return the exit code.

    adjust: what the command line changes in the file's config, now and at each reload.
    """
    started = time.monotonic()
    # Loading compiled loops is work, reaching a broker is waiting: side by side, each hides the other.
    kernels: Future[None] = Future()
    compiling = _into(kernels, functools.partial(compile_kernels, config))
    threading.Thread(target=compiling, name="kernels", daemon=True).start()
    try:
        web.free("worker.web_port", config.worker.web_host, config.worker.web_port)
        told = tables.read(config, path=path)
        partitions = prepare_topics(config, timeout_s=connect_timeout_s)
    except StreamprocError as e:
        log.error("cannot start", problem=str(e))
        return e.exit_code
    reloader = Reloader(path, env if env is not None else {}, config, fixed=_FIXED, adjust=adjust)
    with tempfile.TemporaryDirectory(prefix="streamproc-") as scratch:
        main = _serve(
            config,
            reloader,
            kernels=kernels,
            partitions=partitions,
            told=told,
            data_dir=data_dir or scratch,
            started=started,
            on_built=on_built,
        )
        try:
            import uvloop
        except ImportError:
            return asyncio.run(main)
        return uvloop.run(main)


def _show_info(metrics: Metrics, digest: str) -> None:
    """Have `build_info` name the config in force, and no other."""
    metrics.info.clear()
    metrics.info.labels(version=__version__, config=digest).set(1)


def _into(future: Future[None], work: Callable[[], None]) -> Callable[[], None]:
    """Return work that leaves its end, good or bad, in a future."""

    def run() -> None:
        try:
            work()
        except BaseException as e:
            future.set_exception(e)
        else:
            future.set_result(None)

    return run


def compile_kernels(config: Config) -> None:
    """Compile every loop a config needs, or load it compiled, before the first event needs it."""
    from streamproc.pipeline import warm_up

    began = time.monotonic()

    def progress(name: str, done: int, total: int) -> None:
        if time.monotonic() - began > 1.0 and sys.stderr.isatty():
            print(f"\rcompiling {done}/{total} {name:30s}", end="", file=sys.stderr)  # noqa: T201

    warm_up(config, progress)
    took = time.monotonic() - began
    if took > 1.0:
        log.info("detectors ready; a later start finds them compiled", seconds=round(took, 1))


async def _serve(
    config: Config,
    reloader: Reloader,
    *,
    kernels: Future[None],
    partitions: Mapping[str, int],
    told: Mapping[str, Table],
    data_dir: str,
    started: float,
    on_built: Callable[[app_module.WorkerApp], None] | None,
) -> int:
    app = app_module.build(
        config,
        partitions=partitions,
        snapshot_partitions=partitions[config.kafka.snapshots],
        reload=reloader.reload,
        data_dir=data_dir,
        tables=told,
        cluster=_Topics(config),
    )
    app.engine.compiled = asyncio.wrap_future(kernels)
    app.engine.compiled.add_done_callback(lambda f: None if f.cancelled() else app.fail(f.exception()))

    async def take(config: Config) -> None:
        # A detector named anew is compiled while the old config still serves.
        await asyncio.to_thread(compile_kernels, config)
        await app.engine.reload(config, await asyncio.to_thread(tables.read, config, path=reloader.path))

    reloader.take, reloader.ok = take, app.metrics.reload_ok
    reloader.stamps = functools.partial(tables.stamps, path=reloader.path)
    if on_built is not None:
        on_built(app)
    reloader.taken = functools.partial(_show_info, app.metrics)
    reloader.taken(reloader.digest)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reloader.start()
    # What lives from the start lives to the end: the collector need never look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    # The thread that talks to Kafka waits for the interpreter each time it wakes; with the usual 5 ms
    # a fetch that takes ten turns stands for 50 ms behind a busy batch.
    sys.setswitchinterval(0.0005)
    code = 0
    # A start waits for brokers and for state, as long as it takes; what cannot be gone on from ends that too.
    starting = loop.create_task(app.start())
    starting.add_done_callback(lambda done: done.cancelled() or done.exception())  # told of as what ends us
    stopping = loop.create_task(stop.wait())
    crashed = loop.create_task(app._crashed.wait())
    ends: list[asyncio.Future[Any]] = [stopping, crashed, app.failure]
    try:
        await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            log.info(
                "worker started",
                seconds=round(time.monotonic() - started, 2),
                topics=sorted(config.kafka.sources()),
                web=f"http://{config.worker.web_host}:{config.worker.web_port}",
            )
            log.info(
                "a new model warms up: its first alerts come after", first_alert=first_alerts(app.engine.book)
            )
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            reason = app.failure.result() if app.failure.done() else app.crash_reason
            log.error("worker failed; it ends rather than lose records", reason=named(reason))
            code = reason.exit_code if isinstance(reason, StreamprocError) else CRASHED
    except StreamprocError as e:
        log.error("worker failed to start", reason=str(e))
        code = e.exit_code
    except Exception as e:
        log.error("worker failed to start", reason=named(e))
        code = BrokerUnreachable.exit_code if isinstance(e, ConnectionError | KafkaError) else CRASHED
    for task in (starting, stopping, crashed):
        task.cancel()
    await _stop(app, config, code)
    reloader.stop()
    return code


async def _stop(app: app_module.WorkerApp, config: Config, code: int) -> None:
    """Save, leave the group and end, within the grace; with the broker gone too."""
    grace_s = config.worker.shutdown_grace.us / 1e6
    log.info("stopping", grace_s=grace_s)

    def end() -> None:
        # Faust waits for the broker for ever. What is not durable by now is read again at the next
        # start, so ending here loses nothing.
        log.warning("stopped at the end of the grace period; the next start repeats what was not saved")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    watchdog = threading.Timer(grace_s, end)
    watchdog.daemon = True
    watchdog.start()
    if code == 0:
        try:
            async with asyncio.timeout(grace_s * 0.6):
                await app.engine.snapshot()
        except Exception as e:
            log.warning("state was not saved at the end; the next start repeats", error=named(e))
    try:
        await app.stop()
    except Exception as e:
        log.warning("did not stop cleanly", error=named(e))
    if app.engine.registry is not None:
        await app.engine.registry.close()
    watchdog.cancel()
    log.info("stopped")


