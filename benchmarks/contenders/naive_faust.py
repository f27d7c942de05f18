"""A plain Faust agent, as the tutorial has it, with river's detectors an event."""

from __future__ import annotations

import os
import sys
import tempfile

import faust
import orjson

from benchmarks.contenders.river_work import Meter, RiverWork


def main() -> None:
    bootstrap, topic, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = faust.App(
        f"naive-{topic}",
        broker=f"kafka://{bootstrap}",
        store="memory://",
        datadir=tempfile.mkdtemp(),
        web_enabled=False,
        topic_disable_leader=True,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
    )
    source = app.topic(topic, value_serializer="raw", key_serializer="raw")
    work, meter = RiverWork(), Meter(events)

    @app.agent(source)
    async def detect(stream: faust.StreamT[bytes]) -> None:
        async for value in stream:
            done = meter.tick()
            work(orjson.loads(value))
            if done:
                os.write(1, f"{meter.report()}\n".encode())
                os._exit(0)

    sys.argv = [sys.argv[0], "worker", "-l", "error", "--without-web"]
    app.main()


if __name__ == "__main__":
    main()
