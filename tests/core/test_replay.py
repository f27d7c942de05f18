"""A replay says of a file what the worker would have said of the log."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from streamproc.cloudevents import encode_alert
from streamproc.events import FLEET_KEY, Alert, Incident, rfc3339
from streamproc.pipeline import Pipeline
from streamproc.replay import JoinedReplay, Replay
from streamproc.rules import RuleBook
from tests.core.make import BEGIN_US, SECOND, batch, config, feed, pipeline, prediction, quick, story


def replay(lines: list[bytes], extra: str = "", **options: Any) -> tuple[Replay, list[Alert]]:
    run, alerts, _ = replayed(lines, extra, **options)
    return run, alerts


def replayed(lines: list[bytes], extra: str = "", **options: Any) -> tuple[Replay, list[Alert], list[Incident]]:
    run = Replay(RuleBook(config(extra)), kind="predictions")
    found = list(run.run(lines, **options))
    return run, [f for f in found if isinstance(f, Alert)], [f for f in found if isinstance(f, Incident)]


def lines_of(seed: int, **more: Any) -> list[bytes]:
    # As a file has it: the record's time is the event's own.
    return [v for v in story(seed, **more).values if v is not None]


#: Of a story of seconds, incidents that open and end.
SHORT = "incidents: {window: 10s, quiet: 5s, confirm_after: 5s}\n"


def grouped(alerts: list[Alert], extra: str, *, end_us: int) -> list[Incident]:
    """Return what the worker's agent makes of alerts, and of the time up to an end."""
    agent = Pipeline(RuleBook(config(extra)), kind="alerts", topic="feed")
    alerts = sorted(alerts, key=lambda a: (a.lastReceived, a.fingerprint))
    stamps = [int(dt.datetime.fromisoformat(a.lastReceived).timestamp() * 1e6) for a in alerts]
    values = [encode_alert(a, source="here")[0] for a in alerts]
    found = []
    for i, (value, stamp) in enumerate(zip(values, stamps, strict=True)):
        one = batch([value], first=i, stamps_us=[stamp], keys=[FLEET_KEY], topic="feed")
        found += agent.process(one).incidents
    return found + agent.advance(end_us).incidents


def test_a_replay_says_what_the_pipeline_says() -> None:
    whole = story(0)
    times = [orjson.loads(v)["time"] // 1000 for v in whole.values if v is not None]
    expected = feed(
        pipeline(config(quick())),
        [type(whole)("predictions", 0, whole.offsets, times, whole.keys, whole.values, whole.headers)],
    )
    run, alerts = replay(lines_of(0), quick(), batch_lines=10_000)
    assert alerts == expected
    assert run.report.opened() == sum(a.action == "opened" for a in expected) > 0


@pytest.mark.parametrize("batch_lines", [1, 7, 500])
def test_the_size_of_its_batches_changes_no_alert(batch_lines: int) -> None:
    _, whole = replay(lines_of(1), quick())
    _, parts = replay(lines_of(1), quick(), batch_lines=batch_lines)
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))


def test_alerts_come_while_the_file_is_still_being_read() -> None:
    read = 0

    def lines() -> Iterator[bytes]:
        nonlocal read
        for line in lines_of(0):
            read += 1
            yield line

    alerts = Replay(RuleBook(config(quick())), kind="predictions").run(lines(), batch_lines=50)
    next(alerts)
    assert read < 900


def test_offsets_are_the_numbers_of_lines() -> None:
    run, _ = replay([b"", orjson.dumps(prediction(BEGIN_US)), b"  ", b"{bad"])
    assert run.report.lines == 2
    assert run.report.examples["malformed"][0] == 4
    assert run.report.rejected == {"malformed": 1}


def test_a_record_written_out_is_read_with_key_headers_and_time() -> None:
    record = {"key": "churn", "timestamp": BEGIN_US // 1000, "headers": {"ce_id": "7"}, "value": {"prediction": 1.0}}
    run, _ = replay([orjson.dumps(record)])
    assert (run.report.events, run.report.models, run.report.untimed) == (1, {"churn"}, 0)


@pytest.mark.parametrize("time", [BEGIN_US, BEGIN_US / 1e6, dt.datetime(2026, 1, 5, 9, tzinfo=dt.UTC).isoformat()])
def test_the_record_time_is_the_events_own(time: Any) -> None:
    run, _ = replay([orjson.dumps({**prediction(None), "time": time})])
    assert (run.report.first_us, run.report.untimed) == (BEGIN_US, 0)


def test_a_time_by_the_field_map_is_taken() -> None:
    run, _ = replay(
        [b'{"m": "x", "p": 1, "meta": {"at": 1767603600}}'],
        "fields: {predictions: {model: m, prediction: p, time: meta.at}}",
    )
    assert (run.report.events, run.report.first_us) == (1, BEGIN_US)


def test_events_without_a_time_keep_their_order_and_are_counted() -> None:
    run, _ = replay([orjson.dumps(prediction(None))] * 3)
    assert (run.report.events, run.report.untimed) == (3, 3)
    assert run.pipeline.models["fraud"].windows.max_event_us == 3000


def test_alerts_in_shadow_are_counted_and_not_said() -> None:
    loud, alerts = replay(lines_of(0), quick())
    quiet, fewer = replay(lines_of(0), quick(latency_p95={"params": {"warm_up": 5, "window": 20}, "mode": "shadow"}))
    told = {a.signal for a in alerts} - {a.signal for a in fewer}
    assert told == {"latency_p95"}
    assert quiet.report.shadow["latency_p95", "opened"] == loud.report.alerts["latency_p95", "opened"] > 0


def test_a_family_is_found_under_both_its_names() -> None:
    run = Replay(RuleBook(config()), kind="predictions")
    run.report.alerts["class_share:yes", "opened"] = 1
    run.report.alerts["silence", "resolved"] = 1
    assert run.report.opened_signals() == {"class_share:yes", "class_share"}


def test_predictions_and_a_file_of_their_labels_are_joined_as_the_worker_would_whatever_is_read_at_once() -> None:
    rng = np.random.default_rng(4)
    asked, told = [], []
    for k in range(3000):
        at = BEGIN_US + k * SECOND // 10
        said = {"label": "a", "score": float(rng.uniform(0.8, 1.0))}
        asked.append(orjson.dumps(prediction(at, prediction=said) | {"id": f"i{k}"}))
        wrong = rng.random() < (0.1 if k < 2000 else 0.7)
        label = {"prediction_id": f"i{k}", "model": "fraud", "time": at + 3 * SECOND, "label": "b" if wrong else "a"}
        told.append(orjson.dumps(label))
    found = []
    for lines in (2000, 7):
        run = JoinedReplay(RuleBook(config(quick(accuracy={"params": {"warm_up": 5, "window": 20}}))))
        found.append([a.id for a in run.run_both(asked, told, batch_lines=lines)])
        assert run.report.outcomes == {"joined": 3000}
        assert "prediction_error" in run.report.opened_signals()
        assert run.joins.models["fraud"].windows.late == 0
    assert len(found[0]) > 0


@pytest.mark.parametrize("seed", range(4))
def test_incidents_are_those_that_the_workers_agent_makes_of_the_same_alerts(seed: int) -> None:
    run, alerts, incidents = replayed(lines_of(seed), quick() + SHORT)
    assert run.report.last_us is not None
    assert incidents == grouped(alerts, quick() + SHORT, end_us=run.report.last_us)
    steps = Counter(i.action for i in incidents)
    assert steps == run.report.incidents
    assert steps["opened"] >= steps["resolved"] > 0
    assert sum(run.report.causes.values()) == steps["opened"]
    assert len(run.report.lasting) == steps["opened"] - steps["resolved"]


@pytest.mark.parametrize("models", [1, 7])
def test_the_size_of_its_batches_changes_no_incident_and_not_their_order(models: int) -> None:
    lines = lines_of(2, n=5000, models=models, rate=50.0)
    _, _, whole = replayed(lines, quick() + SHORT)
    for size in (1, 7, 333, 2001, 10_000):
        _, _, parts = replayed(lines, quick() + SHORT, batch_lines=size)
        assert parts == whole
    assert len({i.incident_id for i in whole}) > 1


def slow(begin_s: int, end_s: int, *, bad: bool) -> list[bytes]:
    return [
        orjson.dumps(prediction(BEGIN_US + k * SECOND // 4, duration_s=5.0 if bad else 0.1))
        for k in range(begin_s * 4, end_s * 4)
    ]


#: One critical alert on one signal, at once.
SLOW = """defaults:
  window: 1s
  lateness: 100ms
  resolve_after: 2s
  signals:
    latency: {detector: limits, params: {upper: 1.0}, severity: critical}
    silence: {mode: "off"}
incidents: {window: 10s, quiet: 5s}
"""


def test_an_incident_ends_by_the_time_of_the_file_and_what_is_open_at_its_end_stays_open() -> None:
    lines = [*slow(0, 20, bad=False), *slow(20, 25, bad=True)]
    run, _, incidents = replayed(lines, SLOW)
    assert [i.action for i in incidents] == ["opened"]
    assert list(run.report.lasting.values()) == ["infra"]
    # No alert comes after it: that it is over is seen by the lines alone.
    run, alerts, incidents = replayed([*lines, *slow(25, 60, bad=False)], SLOW)
    assert [i.action for i in incidents] == ["opened", "resolved"]
    assert run.report.lasting == {}
    over = dt.datetime.fromisoformat(alerts[-1].lastReceived).timestamp()
    assert incidents[-1].lastReceived == rfc3339(round((over + 5.0) * 1e6))
    assert run.report.listed == {incidents[0].incident_id: incidents[-1]}


def test_there_are_no_incidents_where_the_config_wants_none_and_none_of_what_is_in_shadow() -> None:
    lines = [*slow(0, 20, bad=False), *slow(20, 25, bad=True)]
    said = config(SLOW)
    without = msgspec.structs.replace(said, kafka=msgspec.structs.replace(said.kafka, incidents=""))
    found = list(Replay(RuleBook(without), kind="predictions").run(lines))
    assert [type(f) for f in found] == [Alert]
    run, alerts, incidents = replayed(lines, SLOW.replace("severity: critical", "mode: shadow"))
    assert (alerts, incidents) == ([], [])
    assert sum(run.report.shadow.values()) > 0


def test_a_report_lists_so_many_incidents_and_counts_the_rest() -> None:
    lines = []
    for k in range(30):
        lines += [*slow(100 * k, 100 * k + 20, bad=False), *slow(100 * k + 20, 100 * k + 25, bad=True)]
    run, _, incidents = replayed(lines, SLOW)
    opened = [i.incident_id for i in incidents if i.action == "opened"]
    assert len(opened) == 30
    assert list(run.report.listed) == opened[:20]
    assert (run.report.causes, len(run.report.lasting)) == ({"infra": 30}, 1)
