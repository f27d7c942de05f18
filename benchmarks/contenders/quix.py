"""The same river work on Quix Streams, as its documentation has it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from typing import Any

from quixstreams import Application

from benchmarks.contenders.river_work import Meter, RiverWork


def main() -> None:
    bootstrap, topic, events = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.WARNING)
    app = Application(
        broker_address=bootstrap,
        consumer_group=f"quix-{topic}",
        auto_offset_reset="earliest",
        state_dir=tempfile.mkdtemp(),
        loglevel=None,
    )
    work, meter = RiverWork(), Meter(events)

    def detect(event: dict[str, Any]) -> None:
        done = meter.tick()
        work(event)
        if done:
            print(meter.report(), flush=True)
            os._exit(0)

    app.dataframe(app.topic(topic, value_deserializer="json")).update(detect)
    app.run()


if __name__ == "__main__":
    main()
