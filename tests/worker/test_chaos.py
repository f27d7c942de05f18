"""What the chaos benchmark counts of incidents, on logs that are right and on such as are not."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from benchmarks import chaos
from streamproc.cloudevents import encode_alert
from streamproc.events import FLEET_KEY, RecordBatch, rfc3339
from tests.core.test_incidents import alert

#: In minutes, of which `alert` takes its times.
SECOND = 1 / 60

COUNTS = tuple(name for name in chaos.NONE if name.startswith(("incident", "feed")))


def run() -> tuple[RecordBatch, dict[str, list[bytes]], dict[str, list[bytes]], dict[tuple[str, str], bytes]]:
    """Return a feed of alerts, the incidents of it, and the alerts and states beside them."""
    told = []
    for k in range(3):
        begin = 20 * k * SECOND
        told += [
            alert("error_rate", begin, episode=k, severity="critical"),
            alert("error_rate", begin + 2 * SECOND, action="resolved", episode=k, severity="critical"),
        ]
    values = [encode_alert(a, source="")[0] for a in told]
    stamps = [1_000_000 * k for k in range(len(told))]
    keys, headers = [FLEET_KEY] * len(told), [()] * len(told)
    feed = RecordBatch(chaos.feed_of("chaos"), 0, range(len(told)), stamps, keys, values, headers)
    incidents, states = chaos.grouped("localhost:9092", "chaos", feed, clock_us=0)
    alerts = {a.id: [v] for a, v in zip(told, values, strict=True)}
    return feed, {i: [v] for i, v in incidents.items()}, alerts, states


def counts(feed: RecordBatch, incidents: Any, alerts: Any, states: Any) -> dict[str, int]:
    found = chaos.compare_incidents("localhost:9092", feed, incidents, (alerts, states))
    assert (found["incidents"], found["incident_states"]) == (3, 2)
    return {name: found[name] for name in COUNTS if found[name]}


def test_incidents_that_are_as_they_should_be_are_found_so_and_copies_are_allowed() -> None:
    feed, incidents, alerts, states = run()
    assert counts(feed, incidents, alerts, states) == {}
    first = next(iter(incidents))
    assert counts(feed, {**incidents, first: incidents[first] * 2}, alerts, states) == {}


@pytest.mark.parametrize("name", COUNTS)
def test_each_count_finds_its_fault(name: str) -> None:
    feed, incidents, alerts, states = run()
    last = next(i for i, (value,) in incidents.items() if orjson.loads(value)["action"] == "resolved")
    if name == "incidents_missing":
        del incidents[last]
    elif name == "incidents_conflicting":
        incidents[last] = [incidents[last][0], incidents[last][0].replace(b"over after", b"over some")]
    elif name == "incidents_told_twice":
        step = orjson.loads(incidents[last][0])
        incidents["again"] = [orjson.dumps({**step, "id": "again", "lastReceived": rfc3339(0)})]
    elif name == "incident_states_differing":
        states = {k: v if k[1].startswith("(") else v + b" " for k, v in states.items()}
    else:
        alerts["lost"] = alerts[next(iter(alerts))]
    assert name in counts(feed, incidents, alerts, states)
