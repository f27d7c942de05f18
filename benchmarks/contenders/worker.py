"""The streamproc worker itself, reporting as the others do. A fourth argument is a config's defaults."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import orjson
import structlog

from streamproc import rules
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

    def ready(app: object) -> None:
        engine = app.engine  # type: ignore[attr-defined]
        stock_take = engine.take
        seen, began = 0, (time.process_time(), time.perf_counter())

        async def watch() -> None:
            nonlocal seen
            while True:
                await asyncio.sleep(0.01)
                seen = sum(int(h.pipeline.next_offset) for h in engine._owned.values())
                if seen >= events:
                    result = {
                        "events": seen,
                        "cpu_s": time.process_time() - began[0],
                        "wall_s": time.perf_counter() - began[1],
                    }
                    print(orjson.dumps(result).decode(), flush=True)
                    os._exit(0)

        assert stock_take is not None
        engine.bench = asyncio.get_running_loop().create_task(watch())

    sys.exit(worker_run.run(config, on_ready=ready, connect_timeout_s=30.0))


if __name__ == "__main__":
    main()
