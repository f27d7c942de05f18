"""The Faust app: agents on the source topics, the web pages, and the engine behind both."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import faust
import structlog
from faust.web import Request, Response, View

from streamproc.baseline import Table
from streamproc.config import Config
from streamproc.topology import MAX_RECORD_BYTES, internal_topic
from streamproc.worker import driver, web
from streamproc.worker.connection import METADATA_MAX_AGE_MS, connection, for_aiokafka, for_faust
from streamproc.worker.engine import Cluster, Engine
from streamproc.worker.metrics import Metrics
from streamproc.worker.repartition import Repartitioner

log = structlog.get_logger("streamproc.app")

#: How much of a partition is fetched at once: some thousand predictions.
_FETCH_BYTES = 2_000_000

#: Batches waiting for the agent, per topic. More only costs memory: a batch is thousands of records.
_BUFFERED_BATCHES = 8


class WorkerApp(faust.App):  # type: ignore[misc]
    """A Faust app that carries its engine, for the driver to ask."""

    engine: Engine
    metrics: Metrics
    failure: asyncio.Future[BaseException]

    def fail(self, error: BaseException | None) -> None:
        """End the worker for an error it cannot go on from; the first one is the reason."""
        if error is not None and not self.failure.done():
            self.failure.set_result(error)


def build(
    config: Config,
    *,
    partitions: Mapping[str, int],
    snapshot_partitions: int,
    reload: Callable[[], Awaitable[str]],
    data_dir: str,
    tables: Mapping[str, Table] | None = None,
    cluster: Cluster | None = None,
) -> WorkerApp:
    """Return the app for a config whose topics exist; partitions: of each source topic; tables: see `RuleBook`."""
    conn = connection(config)
    settings = for_faust(conn)
    settings["broker"] = [url.with_scheme(driver.SCHEME) for url in settings["broker"]]
    kafka = config.kafka
    session_s = kafka.session_timeout.us / 1e6
    app = WorkerApp(
        kafka.app_id,
        **settings,
        store="memory://",
        datadir=data_dir,
        topic_disable_leader=True,
        topic_allow_declare=False,
        stream_wait_empty=False,
        stream_buffer_maxsize=_BUFFERED_BATCHES,
        stream_recovery_delay=0.0,
        # The broker holds a join for the others' session; a short one makes starts and moves quick.
        broker_session_timeout=session_s,
        broker_heartbeat_interval=max(0.3, session_s / 6),
        broker_rebalance_timeout=max(20.0, 2 * session_s),
        broker_commit_interval=3600.0,  # the engine commits, after each manifest
        consumer_max_fetch_size=_FETCH_BYTES,
        # Where to begin is the engine's to say. What is asked for and no longer there begins where the log does.
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
        producer_max_request_size=MAX_RECORD_BYTES,
        producer_request_timeout=120.0,
        web_host=config.worker.web_host,
        web_bind=config.worker.web_host,
        web_port=config.worker.web_port or 6066,
        web_enabled=config.worker.web_port != 0,
        web_in_thread=False,
        loghandlers=[],
    )
    app.metrics = Metrics()
    app.failure = asyncio.get_event_loop().create_future()

    sources = kafka.sources()
    read = {internal_topic(kafka.app_id, t): kind for t, kind in sources.items()} if kafka.repartition else sources
    if kafka.alert_feed:  # never keyed anew: its producer is ours
        read = {**read, kafka.alert_feed: "alerts"}
    if joined := kafka.joins_topic():
        read = {**read, joined: "quality"}
    driver.install([*read, *sources])
    app.engine = Engine(
        app,
        config,
        settings=for_aiokafka(conn),
        sources=read,
        raw=list(sources) if kafka.repartition else [],
        partitions=partitions,
        snapshot_partitions=snapshot_partitions,
        metrics=app.metrics,
        source=f"streamproc/{kafka.app_id}/{socket.gethostname()}",
        on_fatal=app.fail,
        tables=tables,
        cluster=cluster,
    )
    for topic in read:
        _agent(app, topic)
    if kafka.repartition:
        for topic, kind in sources.items():
            registry = app.engine.registry
            app.engine.forwarders[topic] = Repartitioner(
                app,
                config,
                topic=topic,
                kind=kind,  # type: ignore[arg-type]
                codecs=None if registry is None else registry.codecs,
            )
            _agent(app, topic)
    _pages(app, reload)

    @app.task(on_leader=False)
    async def snapshots() -> None:
        await _guarded(app.engine.run_snapshots(), app.fail)

    @app.task(on_leader=False)
    async def said() -> None:
        await _guarded(app.engine.run_said(), app.fail)

    @app.task(on_leader=False)
    async def look() -> None:
        await _guarded(app.engine.run_look(), app.fail)

    @app.task(on_leader=False)
    async def clock() -> None:
        await _guarded(app.engine.run_clock(), app.fail)

    return app


async def _guarded(work: Awaitable[None], fatal: Callable[[BaseException], None]) -> None:
    """Run to the end of the app; whatever goes wrong ends the process rather than the task."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception as e:
        log.exception("cannot go on")
        fatal(e)
        raise


def _agent(app: WorkerApp, name: str) -> None:
    """Register the agent of one source topic: each event is a batch of one partition."""
    topic = app.topic(name, schema=driver.BatchSchema(), internal=False)

    async def agent(stream: Any) -> None:
        async for batch in stream:
            await app.engine.receive(batch)

    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    agent.__name__ = f"agent_{digest}"
    app.agent(topic, name=f"streamproc.{name}", concurrency=1)(agent)


def _pages(app: WorkerApp, reload: Callable[[], Awaitable[str]]) -> None:
    def text(view: View, body: str, status: int = 200) -> Response:
        return view.text(body + "\n", status=status)

    @app.page("/metrics")
    async def metrics(view: View, request: Request) -> Response:  # noqa: ARG001
        body = app.metrics.text()
        return view.bytes(body, content_type="text/plain")

    @app.page("/-/healthy")
    async def healthy(view: View, request: Request) -> Response:  # noqa: ARG001
        stuck = app.engine.stuck()
        return text(view, f"stuck: {', '.join(stuck)}", 503) if stuck else text(view, "ok")

    @app.page("/-/ready")
    async def ready(view: View, request: Request) -> Response:  # noqa: ARG001
        return text(view, f"ready\n{app.engine.warming}") if app.engine.ready else text(view, "restoring", 503)

    @app.page("/-/reload")
    class Reload(View):  # type: ignore[misc]
        async def post(self, request: Request) -> Response:
            token = app.engine.config.worker.reload_token
            if why := web.refusal(request.remote, request.headers.get("Authorization"), token):
                return self.text(why + "\n", status=403)
            problem = await reload()
            return self.text((problem or "reloaded") + "\n", status=400 if problem else 200)
