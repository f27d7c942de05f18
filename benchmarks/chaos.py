"""Kill, pause, join and leave workers and restart the broker; compare with an uninterrupted run.

A seeded stream with faults, late, doubled and unreadable records is produced while workers are
killed (-9), stopped (TERM), added, and frozen past their session so that they wake up as zombies;
with --broker kafka the broker is restarted too. Then the same topic is read once more by one worker
that nobody disturbs, and everything the two left behind is compared: each model's state to the bit,
and every alert.

Labels come late, and are joined to their predictions in the order in which both were sent on: a log of each
run's own. So of joins is compared what was sent on (rows lost or conflicting), what that comes to (labels
joined, overdue and repeated, of each model), and the states and alerts of the disturbed run's own log with
what a pipeline that nobody disturbs makes of it.

Incidents are made of the alerts in the order in which they were published, which is each run's own too, and so
is the time at which each was: the time of an incident is that of its alerts, and from there on the clock of their
records. While nobody publishes that clock goes on, so that after an outage an incident may be older than it
would have been without. Hence nothing but the log is compared with: what an undisturbed pipeline makes of the
disturbed run's feed, whose records' times are the only clock there is (`idle_advance: false`), has to be what the
workers published, to the byte, and the state that they left. Besides, whatever the log: each alert is in the feed,
and each incident opens once and ends at most once.

Prints one JSON object: what there must be none of (NONE), what there must be some of, or nothing was compared
(SOME), alerts_duplicated and incidents_duplicated (the same id twice, which consumers drop) and what was done.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer

from benchmarks import workload
from detectors import state as state_codec
from streamproc import rules, signals
from streamproc.cloudevents import encode_alert, encode_incident
from streamproc.events import RecordBatch
from streamproc.joins import JoinDecoder
from streamproc.pipeline import PART, Pipeline
from streamproc.worker import snapshots

PARTITIONS = 4
MODELS = 40
VIRTUAL_RATE = 2_000.0  # events a second of event time
START_S = 1_790_000_000.0
#: What there must be none of.
NONE = (
    "events_lost",
    "states_differing",
    "alerts_missing",
    "alerts_conflicting",
    "joins_lost",
    "joins_conflicting",
    "joins_differing",
    "join_states_differing",
    "join_alerts_missing",
    "join_alerts_conflicting",
    "feed_lost",
    "incidents_missing",
    "incidents_conflicting",
    "incidents_told_twice",
    "incident_states_differing",
)
#: What there must be some of, else too little was compared.
SOME = ("alerts", "joined", "incidents", "incidents_opened", "incidents_resolved")
TOPICS = {"predictions": "predictions", "telemetry": "telemetry", "labels": "labels"}


def stream(seed: int, events: int) -> Iterator[tuple[str, bytes, bytes, int]]:
    """Yield topic, key, value and timestamp of a stream that keeps every part of the worker busy."""
    rng = random.Random(seed)
    more = random.Random(seed + 1)
    span_s = events / VIRTUAL_RATE
    labels: list[tuple[float, int, bytes, bytes]] = []
    for i in range(events):
        at = START_S + i / VIRTUAL_RATE
        while labels and labels[0][0] <= at:
            told, _, key, value = heapq.heappop(labels)
            yield "labels", key, value, int(told * 1000)
        number = rng.randrange(MODELS)
        model = f"model-{number}"
        faulty = number % 4 == 0 and at - START_S > 0.7 * span_s
        regime = int((at - START_S) / 6.0 + number) % 2  # a change of level every six seconds
        if rng.random() < 0.08:
            point = {
                "name": "gpu_utilisation",
                "value": rng.gauss(0.5, 0.05) + (0.6 if faulty else 0.0),
                "unit": "1",
                "model": model,
                "time": at,
            }
            yield "telemetry", model.encode(), orjson.dumps(point), int(at * 1000)
            continue
        event: dict[str, Any] = {
            "id": f"{seed}-{i}",
            "source": "chaos",
            "time": at - (rng.random() * 0.3 if rng.random() < 0.05 else 0.0),  # some late
            "model": {"name": model, "version": "2" if at - START_S > 0.5 * span_s else "1"},
            "prediction": {"value": rng.gauss(regime * (number % 3), 1.0), "label": rng.choice("aab")},
            "duration_s": rng.lognormvariate(-4.0, 0.4) * (4.0 if faulty else 1.0),
            "features": {f"f{k}": rng.gauss(0.0, 1.0) for k in range(6)},
        }
        if faulty:
            event["features"]["f2"] = None
            event["features"]["f3"] *= 100
        if rng.random() < (0.2 if faulty else 0.002):
            event |= {"prediction": None, "error": {"type": "timeout"}}
        if more.random() < 0.5:
            # Late, and now and then before its prediction, twice, or of no prediction at all.
            told = at + (more.expovariate(0.5) if more.random() < 0.98 else -0.1)
            wrong = more.random() < (0.9 if faulty else 0.15)
            label = {
                "prediction_id": event["id"] if more.random() < 0.99 else f"nobody-{i}",
                "model": model,
                "label": "b" if wrong else "a",
                "time": max(told, at),
            }
            for copy in range(1 + (more.random() < 0.01)):
                heapq.heappush(labels, (told + copy * 0.5, 2 * i + copy, model.encode(), orjson.dumps(label)))
        event["prediction"] = event["prediction"] and {**event["prediction"], "score": more.uniform(0.5, 1.0)}
        value = orjson.dumps(event)
        if rng.random() < 0.001:
            value = value[: len(value) // 2]  # unreadable
        yield "predictions", model.encode(), value, int(at * 1000)
        if rng.random() < 0.002:
            yield "predictions", model.encode(), value, int(at * 1000)  # doubled


def config_text(bootstrap: str, app_id: str) -> str:
    """Return a config whose windows, detectors and policies fit a stream a minute long."""
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [predictions]
  telemetry: [telemetry]
  labels: [labels]
  app_id: {app_id}
  alerts: {app_id}-alerts
  incidents: {app_id}-incidents
  dead_letters: {app_id}-dead-letters
  snapshots: {app_id}-snapshots
  partitions: {PARTITIONS}
  session_timeout: 3s
defaults:
  window: 1s
  lateness: 100ms
  min_samples: 10
  resolve_after: 2s
  silence_after: 400ms
  signals:
    accuracy: {{params: {{warm_up: 5, window: 20, limit: 3}}}}
    label_delay: {{params: {{warm_up: 5, window: 20, limit: 3}}, breaches: 1/1}}
    prediction_error: {{params: {{reference: 100, limit: 20}}}}
    prediction_drift: {{detector: page_hinkley, params: {{threshold: 20}}, resolve_after: 1s}}
    latency: {{detector: adwin, upper_limit: 60ms, resolve_after: 500ms}}
    failures: {{detector: ddm}}
models:
  - {{match: {{model: "model-?"}}, depends_on: [host/gpu-1]}}
  - {{match: {{model: "model-1?"}}, depends_on: [host/gpu-2, feed/clicks]}}
incidents: {{window: 2s, quiet: 1s, confirm_after: 2s, escalate_after: 6s}}
worker: {{web_port: 0, snapshot_interval: 700ms, idle_advance: false, shutdown_grace: 15s}}
"""


class Fleet:
    """The worker processes of one app."""

    def __init__(self, directory: Path, bootstrap: str, app_id: str) -> None:
        self.config = directory / f"{app_id}.yaml"
        self.config.write_text(config_text(bootstrap, app_id))
        self.log = directory / f"{app_id}.log"
        self.alive: list[subprocess.Popen[bytes]] = []
        self.unexpected: list[int] = []

    def add(self) -> None:
        """Start one more worker."""
        with self.log.open("ab") as log:
            self.alive.append(
                subprocess.Popen(
                    [sys.executable, "-m", "streamproc.cli", "worker", "--config", str(self.config)],
                    stdout=log,
                    stderr=log,
                    env=workload.plain_environment(),
                )
            )

    def reap(self) -> None:
        """Replace workers that ended by themselves, as a supervisor would."""
        for worker in list(self.alive):
            if worker.poll() is not None:
                self.alive.remove(worker)
                self.unexpected.append(worker.returncode)
                self.add()

    def kill(self, rng: random.Random) -> None:
        """Kill one with -9 and start another."""
        worker = self.alive.pop(rng.randrange(len(self.alive)))
        worker.kill()
        worker.wait()
        self.add()

    def leave(self, rng: random.Random) -> None:
        """Stop one in good order."""
        worker = self.alive.pop(rng.randrange(len(self.alive)))
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(20)
        worker.kill()

    def freeze(self, rng: random.Random, seconds: float) -> None:
        """Freeze one past its session, so that it wakes as a zombie."""
        worker = self.alive[rng.randrange(len(self.alive))]
        worker.send_signal(signal.SIGSTOP)
        timer = threading.Timer(seconds, lambda: worker.poll() is None and worker.send_signal(signal.SIGCONT))
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """Stop all in good order."""
        for worker in self.alive:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self.alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(30)
            worker.kill()
            worker.wait()
        self.alive = []


def produce(bootstrap: str, seed: int, events: int, seconds: float, done: threading.Event) -> None:
    """Put the stream on its topics over about `seconds`."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 20, "message.timeout.ms": 0}
    )
    began = time.monotonic()
    for count, (topic, key, value, at) in enumerate(stream(seed, events)):
        while True:
            try:
                producer.produce(topic, key=key, value=value, timestamp=at)
                break
            except BufferError:
                producer.poll(0.1)
        if count % 200 == 199:
            producer.poll(0)
            ahead = began + seconds * count / events - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
    producer.flush()
    done.set()


async def drained(
    bootstrap: str, app_id: str, timeout_s: float, fleet: Fleet, *, topics: Sequence[str] | None = None
) -> None:
    """Wait until an app's committed offsets have reached the end of what it reads."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=app_id, enable_auto_commit=False)
    await consumer.start()
    try:
        named = None if topics is None else [(t, p) for t in topics for p in range(PARTITIONS)]
        tps = [TopicPartition(*source) for source in named or sources(app_id)]
        consumer.assign(tps)
        deadline = time.monotonic() + timeout_s
        left: dict[str, int] = {}
        while time.monotonic() < deadline:
            fleet.reap()
            ends = await consumer.end_offsets(tps)
            left = {}
            for tp in tps:
                committed = await consumer.committed(tp)
                if (committed or 0) < ends[tp]:
                    left[f"{tp.topic}-{tp.partition}"] = ends[tp] - (committed or 0)
            # What the last records of one source came to may have been published to another since.
            if not left and ends == await consumer.end_offsets(tps):
                return
            await asyncio.sleep(0.5)
        raise SystemExit(f"{app_id} did not finish in {timeout_s:.0f} s; left: {left}; log: {fleet.log}")
    finally:
        await consumer.stop()


def sources(app_id: str) -> list[tuple[str, int]]:
    """Return the partitions an app reads: what is produced, and what it sends itself."""
    many = [(t, p) for t in [*TOPICS, f"{app_id}-joins"] for p in range(PARTITIONS)]
    return [*many, (feed_of(app_id), 0)]


def feed_of(app_id: str) -> str:
    """Return the topic on which all alerts of an app are in one order."""
    return f"{app_id}-alert-feed"


async def read_alerts(bootstrap: str, topic: str) -> dict[str, list[bytes]]:
    """Return every alert, or step of an incident, published, by id."""
    found: dict[str, list[bytes]] = {}
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    found.setdefault(orjson.loads(record.value)["id"], []).append(record.value)
    finally:
        await consumer.stop()
    return found


async def read_states(bootstrap: str, app_id: str) -> dict[tuple[str, str], bytes]:
    """Return every model's durable state, as a restarting worker would find it."""
    topic = f"{app_id}-snapshots"
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, p) for p in range(PARTITIONS)])
    finally:
        await consumer.stop()
    claims = {
        (source, p): (p, ends[TopicPartition(topic, p)] - 1)
        for source, p in sources(app_id)
        if ends[TopicPartition(topic, p)] > 0
    }
    stored = await snapshots.read({"bootstrap_servers": bootstrap}, topic=topic, claims=claims)
    states = {(source, model): data for (source, _), s in stored.items() for model, data in s.models.items()}
    for (source, partition), s in stored.items():
        # What a manifest notes of the log itself is each run's own, but that it is the log it was.
        states[source, f"(partition {partition})"] = orjson.dumps({**s.manifest, "log": s.manifest["log"]["life"]})
    return states


async def read_log(bootstrap: str, topic: str, *, partitions: int = PARTITIONS) -> list[RecordBatch]:
    """Return a topic of what workers sent on, by partition."""
    found: dict[int, list[Any]] = {p: [] for p in range(partitions)}
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                found[tp.partition] += records
    finally:
        await consumer.stop()
    return [
        RecordBatch(
            topic,
            p,
            [r.offset for r in records],
            [r.timestamp for r in records],
            [r.key for r in records],
            [r.value for r in records],
            [()] * len(records),
        )
        for p, records in found.items()
    ]


Rows = dict[tuple[Any, ...], set[tuple[Any, ...]]]


def rows_of(log: list[RecordBatch]) -> Rows:
    """Return every row that was sent on, by where it came from."""
    found: Rows = {}
    for batch in log:
        for event in JoinDecoder().decode(batch).events:
            rows = event.rows
            columns = [c.tolist() for c in (rows.keys, rows.times, rows.values, rows.classes, rows.scores)]
            versions = [rows.names[v] for v in rows.versions.tolist()]
            for offset, *row in zip(rows.offsets.tolist(), *columns, versions, strict=True):
                key = (event.model.name, rows.topic, rows.partition, offset)
                found.setdefault(key, set()).add(tuple(map(repr, row)))
    return found


def joined(bootstrap: str, app_id: str, log: list[RecordBatch]) -> tuple[dict[str, bytes], dict[Any, bytes], Any]:
    """Return what a pipeline that nobody disturbs makes of a log: alerts, states, and outcomes by model."""
    config = rules.parse(config_text(bootstrap, app_id))
    alerts: dict[str, bytes] = {}
    states: dict[Any, bytes] = {}
    outcomes: dict[str, Counter[str]] = {}
    for batch in log:
        pipeline = Pipeline(
            rules.RuleBook(config),
            kind="quality",
            topic=batch.topic,
            partition=batch.partition,
            max_series=math.ceil(config.defaults.discover.max_series / PARTITIONS),
            budget_share=1.0 / (PARTITIONS * (len(TOPICS) + 1)),
        )
        for start in range(0, len(batch), 97):
            for alert in pipeline.process(batch.rows(start, min(start + 97, len(batch)))).alerts:
                alerts[alert.id] = encode_alert(alert, source="")[0]
        names = list(pipeline.models)
        states |= {(batch.topic, name): data for name, data in pipeline.snapshot_models(names)}
        manifest = orjson.dumps({**pipeline.manifest(), "log": 0, "gone": []})
        states[batch.topic, f"(partition {batch.partition})"] = manifest
        for name in names:
            counts: Counter[str] = pipeline.models[name].counts  # type: ignore[attr-defined]
            outcomes[name] = Counter({k: counts[k] for k in ("joined", "overdue", "repeated")})
    return alerts, states, outcomes


def grouped(
    bootstrap: str, app_id: str, feed: RecordBatch, *, clock_us: int
) -> tuple[dict[str, bytes], dict[Any, bytes]]:
    """Return the incidents that a pipeline which nobody disturbs makes of a feed of alerts, and its states.

    clock_us: the arrival clock in the end. Between two records nobody has to look at it.
    """
    pipeline = Pipeline(
        rules.RuleBook(rules.parse(config_text(bootstrap, app_id))),
        kind="alerts",
        topic=feed.topic,
        budget_share=1.0 / (PARTITIONS * (len(TOPICS) + 1)),
    )
    found = []
    for start in range(0, len(feed), 97):
        found += pipeline.process(feed.rows(start, min(start + 97, len(feed)))).incidents
    found += pipeline.advance(clock_us).incidents
    incidents = {incident.id: encode_incident(incident, source="")[0] for incident in found}
    states: dict[Any, bytes] = {
        (feed.topic, name): data for name, data in pipeline.snapshot_models(list(pipeline.models))
    }
    states[feed.topic, "(partition 0)"] = orjson.dumps({**pipeline.manifest(), "log": 0, "gone": []})
    return incidents, states


def without_gone(states: dict[tuple[str, str], bytes]) -> dict[tuple[str, str], bytes]:
    """Return states whose manifests name nothing forgotten since the one before: when that was is chance."""
    return {
        k: orjson.dumps({**orjson.loads(s), "gone": []}) if k[1].startswith("(") else s for k, s in states.items()
    }


def of_joins(alert: bytes) -> bool:
    """Whether an alert rests on joined labels, or on what waits for them."""
    signal = signals.find(orjson.loads(alert)["signal"])
    return signal is not None and "quality" in signal.sources


def events_of(state: bytes) -> int:
    """Return how many events a model's state has taken in, whatever became of them."""
    tree = state_codec.loads(state)
    return max((watch["life"][1] for _, _, watch in tree["watches"]), default=0)


async def undisturbed(directory: Path, bootstrap: str) -> Fleet:
    """Run one worker over the whole input, alone."""
    fleet = Fleet(directory, bootstrap, "reference")
    fleet.add()
    try:
        await drained(bootstrap, "reference", 180.0, fleet)
    finally:
        fleet.stop()
    return fleet


def disturb(cluster: Any, fleet: Fleet, kills: int, rng: random.Random, *, nodes: int) -> dict[str, int]:
    """Do the damage; return what was done. nodes: of the broker, 0 to leave it alone."""
    done: dict[str, int] = {}
    for number in range(kills):
        time.sleep(rng.uniform(1.0, 4.5))
        fleet.reap()
        choices = ["kill"] * 5 + ["join_or_leave"] * 2 + ["freeze"] * 2 + (["broker"] if nodes else [])
        action = rng.choice(choices)
        if action == "join_or_leave":
            action = "join" if len(fleet.alive) < 2 else "leave"
        if action == "kill":
            fleet.kill(rng)
        elif action == "join":
            fleet.add()
        elif action == "leave":
            fleet.leave(rng)
        elif action == "freeze":
            fleet.freeze(rng, rng.uniform(3.5, 6.0))
        else:
            node = rng.randrange(nodes) + 1
            cluster.kill(node)
            time.sleep(rng.uniform(0.0, 2.0))
            cluster.start(node)
        done[action] = done.get(action, 0) + 1
        print(f"{number + 1}/{kills} {action:8s} workers {len(fleet.alive)}", flush=True)
    return done


def compare(
    reference: tuple[dict[str, list[bytes]], dict[tuple[str, str], bytes]],
    chaos: tuple[dict[str, list[bytes]], dict[tuple[str, str], bytes]],
) -> dict[str, int]:
    """Return the differences between the two runs."""
    (alerts, states), (got_alerts, got_states) = reference, chaos
    alerts = {i: copies for i, copies in alerts.items() if not of_joins(copies[0])}
    got_alerts = {i: copies for i, copies in got_alerts.items() if not of_joins(copies[0])}
    states = {k: s for k, s in states.items() if k[0] in TOPICS}
    got_states = {k: s for k, s in got_states.items() if k[0] in TOPICS}
    lost = 0
    for key, state in states.items():
        if not key[1].startswith("("):
            lost += max(0, events_of(state) - (events_of(got_states[key]) if key in got_states else 0))
    conflicting = sum(
        1 for i, copies in got_alerts.items() if i not in alerts or any(c != alerts[i][0] for c in copies)
    )
    keys = {*states, *got_states}
    return {
        "events_lost": lost,
        "states_differing": sum(states.get(k) != got_states.get(k) for k in keys),
        "alerts_missing": len(alerts.keys() - got_alerts.keys()),
        "alerts_conflicting": conflicting,
        "alerts_duplicated": sum(len(copies) - 1 for copies in got_alerts.values()),
        "alerts": len(alerts),
        "states": len(states),
    }


def compare_joins(
    bootstrap: str,
    logs: tuple[list[RecordBatch], list[RecordBatch]],
    got: tuple[dict[str, list[bytes]], dict[tuple[str, str], bytes]],
) -> dict[str, Any]:
    """Return the differences in what was joined: the reference's log and the disturbed run's, and what it left."""
    rows, got_rows = map(rows_of, logs)
    alerts, states, outcomes = joined(bootstrap, "chaos", logs[1])
    *_, expected = joined(bootstrap, "reference", logs[0])
    got_alerts = {i: copies for i, copies in got[0].items() if of_joins(copies[0])}
    got_states = without_gone({k: s for k, s in got[1].items() if k[0] == "chaos-joins"})
    differing = sorted(k for k in {*states, *got_states} if states.get(k) != got_states.get(k))
    return {
        "joins_lost": len(rows.keys() - got_rows.keys()),
        "joins_conflicting": len(got_rows.keys() - rows.keys())
        + sum(len(found) > 1 or found != rows.get(key, found) for key, found in got_rows.items()),
        "joins_differing": sum(expected.get(m) != outcomes.get(m) for m in {*expected, *outcomes}),
        "join_states_differing": len(differing),
        "join_alerts_missing": len(alerts.keys() - got_alerts.keys()),
        "join_alerts_conflicting": sum(
            i not in alerts or any(c != alerts[i] for c in copies) for i, copies in got_alerts.items()
        ),
        "joined": sum(c["joined"] for c in outcomes.values()),
        "join_alerts": len(alerts),
        "join_states": len(states),
        "join_parts": sum(PART in name for _, name in states),
        "join_records_repeated": sum(map(len, logs[1])) - sum(map(len, logs[0])),
    }


def compare_incidents(
    bootstrap: str,
    feed: RecordBatch,
    incidents: dict[str, list[bytes]],
    got: tuple[dict[str, list[bytes]], dict[tuple[str, str], bytes]],
) -> dict[str, Any]:
    """Return the differences between the incidents published and those that the disturbed run's own feed comes to.

    got: the alerts and states that it left.
    """
    got_states = without_gone({k: s for k, s in got[1].items() if k[0] == feed.topic})
    clock_us = orjson.loads(got_states.get((feed.topic, "(partition 0)"), b'{"clock_us":0}'))["clock_us"]
    expected, states = grouped(bootstrap, "chaos", feed, clock_us=clock_us)
    fed = Counter(orjson.loads(value)["id"] for value in feed.values if value is not None)
    told: dict[str, list[str]] = {}
    for copies in incidents.values():
        step = orjson.loads(copies[0])
        told.setdefault(step["incident_id"], []).append(step["action"])
    steps = [action for actions in told.values() for action in actions]
    return {
        "feed_lost": len(got[0].keys() - fed.keys()),
        "incidents_missing": len(expected.keys() - incidents.keys()),
        "incidents_conflicting": sum(
            i not in expected or any(c != expected[i] for c in copies) for i, copies in incidents.items()
        ),
        "incidents_told_twice": sum(
            actions[0] != "opened" or actions.count("opened") > 1 or "resolved" in actions[:-1]
            for actions in told.values()
        ),
        "incident_states_differing": sum(states.get(k) != got_states.get(k) for k in {*states, *got_states}),
        "incidents_duplicated": sum(len(copies) - 1 for copies in incidents.values()),
        "incidents": len(told),
        "incidents_opened": steps.count("opened"),
        "incidents_resolved": steps.count("resolved"),
        "incident_steps": len(steps),
        "incident_states": len(states),
        "feed_repeated": sum(fed.values()) - len(fed),
    }


async def run(bootstrap: str, cluster: Any, args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run both and compare."""
    for topic in [*TOPICS, "chaos-joins", "reference-joins"]:
        workload.create_topic(bootstrap, topic, PARTITIONS, replication=args.nodes)
    for app_id in ("chaos", "reference"):
        workload.create_topic(bootstrap, feed_of(app_id), 1, replication=args.nodes)
    rng = random.Random(args.seed)
    fleet = Fleet(directory, bootstrap, "chaos")
    produced = threading.Event()
    seconds = max(20.0, args.kills * 4.0)
    feeder = threading.Thread(
        target=produce, args=(bootstrap, args.seed, args.events, seconds, produced), daemon=True
    )
    began = time.monotonic()
    try:
        fleet.add()
        feeder.start()
        done = await asyncio.to_thread(
            disturb, cluster, fleet, args.kills, rng, nodes=args.nodes if args.broker == "kafka" else 0
        )
        while not produced.is_set():
            fleet.reap()
            await asyncio.sleep(0.5)
        await drained(bootstrap, "chaos", 180.0, fleet)
    finally:
        fleet.stop()
    print("undisturbed run", flush=True)
    await undisturbed(directory, bootstrap)
    got = (await read_alerts(bootstrap, "chaos-alerts"), await read_states(bootstrap, "chaos"))
    result: dict[str, Any] = compare(
        (await read_alerts(bootstrap, "reference-alerts"), await read_states(bootstrap, "reference")), got
    )
    logs = (await read_log(bootstrap, "reference-joins"), await read_log(bootstrap, "chaos-joins"))
    result |= compare_joins(bootstrap, logs, got)
    (feed,) = await read_log(bootstrap, feed_of("chaos"), partitions=1)
    result |= compare_incidents(bootstrap, feed, await read_alerts(bootstrap, "chaos-incidents"), got)
    return result | {
        "actions": done,
        "events": args.events,
        "seed": args.seed,
        "broker": args.broker,
        "nodes": args.nodes,
        "unexpected_exits": len(fleet.unexpected),
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="disturbances of all kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=120_000)
    parser.add_argument("--broker", choices=["kafka", "embedded"], default="kafka")
    parser.add_argument("--nodes", type=int, choices=[1, 3], default=1, help="of Apache Kafka")
    parser.add_argument("--keep", type=Path, help="directory for logs and configs; a temporary one without it")
    args = parser.parse_args()
    if args.broker == "embedded" and args.nodes != 1:
        parser.error("the embedded broker is one node")
    with contextlib.ExitStack() as stack:
        if args.broker == "kafka":
            from tests.brokers.kafka import KafkaCluster

            cluster: Any = stack.enter_context(
                KafkaCluster(nodes=args.nodes, config={"group.min.session.timeout.ms": "1000"})
            )
        else:
            from streamproc.worker.embedded import EmbeddedBroker

            cluster = stack.enter_context(EmbeddedBroker())
        directory = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        result = asyncio.run(run(cluster.bootstrap, cluster, args, directory))
    print(orjson.dumps(result).decode(), flush=True)
    failed = [*(k for k in NONE if result[k]), *(k for k in SOME if not result[k])]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1 if failed else 0)


if __name__ == "__main__":
    main()
