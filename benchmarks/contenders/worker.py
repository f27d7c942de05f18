"""The streamproc worker itself, reporting as the others do. A fourth argument is a config's defaults."""

from __future__ import annotations

import os
import sys

import structlog

from benchmarks.contenders.river_work import Meter
from streamproc import rules
from streamproc.events import RecordBatch
from streamproc.worker import run as worker_run


def main() -> None:
    bootstrap, topic, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    defaults = sys.argv[4] if len(sys.argv) > 4 else "{}"
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    app_id = f"bench-{os.getpid()}"
    config = rules.parse(
        f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [{topic}]
  app_id: {app_id}
  alerts: {app_id}-alerts
  snapshots: {app_id}-snapshots
  dead_letters: {app_id}-dead-letters
  session_timeout: 6s
defaults: {defaults}
worker: {{web_host: 127.0.0.1, web_port: 0}}
"""
    )

    def measure(app: object) -> None:
        engine = app.engine  # type: ignore[attr-defined]
        take, meter = engine.take, Meter(events)

        async def counted(batch: RecordBatch) -> None:
            before = engine.metrics.events.labels(topic=topic)._value.get()
            if meter.seen == 0:
                meter.tick(0)
            await take(batch)
            if meter.tick(int(engine.metrics.events.labels(topic=topic)._value.get() - before)):
                print(meter.report(), flush=True)
                os._exit(0)

        engine.take = counted

    sys.exit(worker_run.run(config, on_built=measure, connect_timeout_s=30.0))


if __name__ == "__main__":
    main()
