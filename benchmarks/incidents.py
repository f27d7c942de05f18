"""Incidents on injected faults: 50 models over 14 days, some 60 faults of twelve kinds, through real pipelines.

    python -m benchmarks.incidents --seed 11                    14 days, some five minutes
    python -m benchmarks.incidents --seed 11 --quiet            no faults: what is left is false
    python -m benchmarks.incidents --days 2 --models 12         short, for CI

The fleet: tabular classifiers, whose answers get labels an hour later, and language models; hosts that some six models
share, and that report a metric of their own; feeds that give features to several models; two providers.
Traffic has a rhythm of the day and of the week, and everything wanders: latencies, features and traffic are
autocorrelated and heavy-tailed. Every model is deployed every few days, which by itself changes nothing.

Sizes of what is injected: 70 % of a feed's two features null; one of them times 100; one as text; two features of a
model moved by 1.6 of their deviations; 40 % of labels inverted; scores that hardly follow the features and 4 % errors
after a deploy; latencies times 3 on a host; traffic times 6 with latencies times 1.8; tokens times 4; 30 % refusals.
Features wander by .08 of their deviation, latencies and traffic by 8 to 14 %.

The config is the default with what an operator says of such a fleet: windows of half an hour for models that get a few
requests a minute, a reference of a day, and what depends on what. Nothing in it knows of faults.

A fault is found by the first incident that shares a model with it and opens between its beginning and its end and two
hours, in which what was learned meanwhile swings back, or that was open and takes most of its alerts then; the delay is
from its beginning to the first step of that incident. An incident that is of no fault in this sense is false.
The cause is that last told of the first incident; incidents merged into another are counted as opened. Printed
are a row a kind and then one JSON object.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from streamproc import rules
from streamproc.cloudevents import to_json
from streamproc.events import FLEET_KEY, Alert, Incident, RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook

F64 = npt.NDArray[np.float64]

BEGIN_US: Final = 1_767_571_200_000_000  # Monday, 5 January 2026, 00:00 UTC
SLICE_S: Final = 900
WARM_UP_H: Final = 36
#: After its end what a fault has taught swings back; what is found until then is still of it.
GRACE_S: Final = 7200
LABEL_AFTER_S: Final = 3600
LABELLED: Final = 1.0
SPIKE: Final = 6.0

#: Kind of fault → its cause, what it is of, hours it lasts.
KINDS: Final[dict[str, tuple[str, str, float, float]]] = {
    "feed_nulls": ("data", "feed", 2, 5),
    "unit_change": ("data", "feed", 2, 5),
    "schema_change": ("data", "feed", 2, 5),
    "covariate_drift": ("data", "tabular", 4, 10),
    "concept_drift": ("model", "tabular", 8, 14),
    "bad_deploy": ("model", "tabular", 2, 5),
    "host_saturated": ("infra", "host", 2, 5),
    "host_lost": ("infra", "host", 1.5, 4),
    "traffic_spike": ("traffic", "any", 2, 4),
    "silence": ("infra", "any", 2, 5),
    "cost_runaway": ("model", "llm", 2, 6),
    "refusals": ("model", "provider", 2, 5),
}


@dataclass
class Model:
    name: str
    host: str
    feed: str = ""
    provider: str = ""

    @property
    def upstreams(self) -> list[str]:
        return [u for u in (self.host, self.feed, self.provider) if u]


@dataclass
class Fault:
    kind: str
    what: str  # a model or an upstream
    begin_s: float
    end_s: float
    models: list[str] = field(default_factory=list)

    @property
    def cause(self) -> str:
        return KINDS[self.kind][0]


@dataclass
class Told:
    """One incident as its steps told of it; times in seconds since the start."""

    opened_s: float
    started_s: float
    models: set[str]
    cause: str
    rule: str
    severity: str
    alerts: int
    summary: str
    root: str = ""
    ended_s: float | None = None
    merged: bool = False
    confidence: float = 0.0
    steps: int = 0
    symptoms: list[str] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)


def fleet(n: int) -> list[Model]:
    """Return n models, of which some seven in ten are tabular."""
    hosts, feeds = max(2, n // 6), max(2, n // 9)
    found = []
    for i in range(n):
        host = f"host/node-{i % hosts}"
        if i % 10 < 7:
            found.append(Model(f"m{i:02d}", host, feed=f"feed/f{(i // 10 + i) % feeds}"))
        else:
            found.append(Model(f"llm{i:02d}", host, provider=f"provider/p{i % 2}"))
    return found


def config(models: list[Model], *, labels: bool) -> str:
    blocks = "\n".join(
        f"  - {{match: {{model: {m.name}}}, depends_on: [{', '.join(m.upstreams)}]}}" for m in models
    )
    more = ", labels: [labels]" if labels else ""
    return f"""
version: 1
kafka: {{brokers: "localhost:9092", predictions: [predictions], telemetry: [telemetry]{more}}}
defaults: {{window: 30m, lateness: 1m}}
models:
  - {{match: {{model: "m*"}}, reference: {{first: 4000}}}}
{blocks}
"""


def draw_faults(rng: np.random.Generator, models: list[Model], *, days: float) -> list[Fault]:
    """Return faults, twelve kinds in turn, none of which meets another of the same model within half a day."""
    warm_up = min(WARM_UP_H, days * 10)
    hours = days * 24 - warm_up - 6
    count = max(len(KINDS), round(60 * hours / (14 * 24 - WARM_UP_H - 6) * min(1.0, len(models) / 50)))
    kinds = list(itertools.islice(itertools.cycle(KINDS), count))
    faults: list[Fault] = []
    for kind in kinds:
        _, of, least, most = KINDS[kind]
        for _ in range(3000):
            begin = (warm_up + rng.uniform(0, hours - least)) * 3600
            end = begin + min(rng.uniform(least, most), hours + warm_up - begin / 3600 + 4) * 3600
            fits = {
                "any": models,
                "tabular": [m for m in models if m.feed],
                "llm": [m for m in models if m.provider],
            }.get(of)
            if fits is not None:
                hit = [fits[rng.integers(len(fits))]]
                what = hit[0].name
            else:
                names = sorted({u for m in models for u in m.upstreams if u.startswith(f"{of}/")})
                what = names[rng.integers(len(names))]
                hit = [m for m in models if what in m.upstreams]
            own = [m.name for m in hit] + ([what.partition("/")[2]] if of == "host" else [])
            apart = 12 * 3600 if days > 7 else 3 * 3600
            if not any(
                set(own) & set(f.models) and begin < f.end_s + apart and f.begin_s < end + apart for f in faults
            ):
                faults.append(Fault(kind, what, begin, end, own))
                break
    return sorted(faults, key=lambda f: f.begin_s)


class World:
    """Makes the records of each slice of time."""

    def __init__(self, rng: np.random.Generator, models: list[Model], faults: list[Fault], *, days: float) -> None:
        self.rng, self.models, self.faults = rng, models, faults
        self.slices = int(days * 86_400 / SLICE_S)
        self.feeds = sorted({m.feed for m in models if m.feed})
        self.hosts = sorted({m.host for m in models})
        n = len(models)
        self.rate = rng.uniform(4.0, 6.0, n)  # requests a minute
        self.phase = rng.uniform(-0.15, 0.15, n)
        self.busy = self._wander(n, 0.08)
        self.slow = self._wander(n, 0.10)
        self.base_latency = rng.lognormal(-2.5, 0.5, n)
        self.load = self._wander(len(self.hosts), 0.10)
        self.feed_drift = self._wander(2 * len(self.feeds), 0.08)
        self.own_drift = self._wander(2 * n, 0.08)
        self.weights = rng.normal(0.0, 1.0, (n, 4)) + 0.5
        self.tokens = rng.uniform(120, 600, n)
        self.deploys = [np.sort(rng.uniform(0, days * 86_400, max(1, int(days / 4)))) for _ in models]
        self.serial = 0
        self.waiting: list[tuple[float, bytes, bytes]] = []
        self.by_model = {
            m.name: [f for f in faults if m.name in f.models] for m in models
        }  # fmt: skip

    def _wander(self, n: int, scale: float) -> F64:
        """Return (slices, n) of an AR(1) with a half-life of an hour, of standard deviation `scale`."""
        phi = 0.5 ** (SLICE_S / 3600)
        steps = self.rng.standard_t(5, (self.slices, n)) / np.sqrt(5 / 3) * np.sqrt(1 - phi**2)
        found = np.empty_like(steps)
        level = self.rng.normal(0.0, 1.0, n)
        for i in range(self.slices):
            level = phi * level + steps[i]
            found[i] = level
        return found * scale

    def _version(self, k: int, at_s: float, bad: list[Fault]) -> str:
        number = 1 + int(np.searchsorted(self.deploys[k], at_s))
        rolled = [f for f in self.by_model[self.models[k].name] if f.kind == "bad_deploy" and f.begin_s <= at_s]
        return f"{number}" + "".join(".1" if f in bad else ".2" for f in rolled[-1:]) + f"-{len(rolled)}"

    def slice(self, i: int) -> tuple[list[tuple[float, bytes, bytes]], ...]:
        """Return predictions, telemetry and labels of a slice, each as (time, key, value) in order of time."""
        begin = i * SLICE_S
        predictions: list[tuple[float, bytes, bytes]] = []
        day, week = begin / 86_400 % 1.0, begin / 86_400 % 7.0
        rhythm = (1.0 + 0.45 * np.sin(2 * np.pi * (day - 0.35 + self.phase))) * (0.75 if week >= 5 else 1.0)
        lull = np.sin(2 * np.pi * (day - 0.35))
        for k, model in enumerate(self.models):
            active = [f for f in self.by_model[model.name] if f.begin_s < begin + SLICE_S and begin < f.end_s]
            kinds = {f.kind for f in active}
            rate = self.rate[k] * rhythm[k] * np.exp(self.busy[i, k]) * (SPIKE if "traffic_spike" in kinds else 1.0)
            n = int(self.rng.poisson(rate * SLICE_S / 60))
            if n == 0:
                continue
            times = begin + np.sort(self.rng.uniform(0, SLICE_S, n))
            hit = {f.kind: (times >= f.begin_s) & (times < f.end_s) for f in active}
            none = np.zeros(n, bool)
            gone = hit.get("silence", none) | hit.get("host_lost", none)
            latency = self.base_latency[k] * np.exp(
                self.slow[i, k] + 0.5 * max(0.0, self.load[i, self.hosts.index(model.host)])
                + 0.05 * lull + 0.35 * self.rng.standard_t(6, n)
            )  # fmt: skip
            latency = latency * np.where(hit.get("host_saturated", none), 3.0, 1.0)
            latency = np.minimum(latency * np.where(hit.get("traffic_spike", none), 1.8, 1.0), 60.0)
            failed = self.rng.random(n) < np.where(hit.get("bad_deploy", none), 0.04, 0.0005)
            make = self._tabular if model.feed else self._llm
            rows = make(i, k, model, times, hit, active, lull, latency, failed)
            key = model.name.encode()
            predictions += [
                (t, key, v) for t, v, away in zip(times.tolist(), rows, gone.tolist(), strict=True) if not away
            ]
        predictions.sort(key=lambda r: r[0])
        due = [w for w in self.waiting if w[0] < begin + SLICE_S]
        self.waiting = [w for w in self.waiting if w[0] >= begin + SLICE_S]
        return predictions, self._telemetry(i, begin, lull), sorted(due)

    def _tabular(
        self, i: int, k: int, model: Model, times: F64, hit: dict[str, Any], active: list[Fault], lull: float,
        latency: F64, failed: Any,
    ) -> Iterator[bytes]:  # fmt: skip
        rng, n = self.rng, len(times)
        none = np.zeros(n, bool)
        f = self.feeds.index(model.feed)
        means = np.concatenate((self.feed_drift[i, 2 * f : 2 * f + 2], self.own_drift[i, 2 * k : 2 * k + 2]))
        x = means + 0.1 * lull + rng.standard_t(6, (n, 4)) / np.sqrt(1.5)
        x[:, 2:] += np.where(hit.get("covariate_drift", none), 1.6, 0.0)[:, None]
        z = x @ self.weights[k]
        odds = np.where(hit.get("bad_deploy", none), 0.2 * z + 2.0, 2.0 * z)
        score = 1.0 / (1.0 + np.exp(-odds))
        truth = rng.random(n) < 1.0 / (1.0 + np.exp(-2.5 * z))
        truth ^= hit.get("concept_drift", none) & (rng.random(n) < 0.4)
        shown = 50.0 + 10.0 * x
        unit, nulls, text = (hit.get(q, none) for q in ("unit_change", "feed_nulls", "schema_change"))
        shown[:, 0] = np.where(unit, shown[:, 0] * 100.0, shown[:, 0])
        # What the model makes of broken features is not what it makes of good ones.
        score = np.where(unit, 1.0, np.where(nulls | text, 0.5 + 0.3 * (score - 0.5), score))
        nulls = nulls & (rng.random(n) < 0.7)
        category = rng.integers(0, 5, n)
        labelled = rng.random(n) < LABELLED
        feed, own = model.feed.partition("/")[2], model.name
        names = (f"{feed}_a", f"{feed}_b", f"{own}_c", f"{own}_d")
        version = {b: self._version(k, b, active) for b in {float(times[0]), *times.tolist()}} if active else None
        constant = self._version(k, float(times[0]), active)
        late = times + LABEL_AFTER_S * rng.uniform(0.8, 1.2, n)
        for j in range(n):
            self.serial += 1
            features: dict[str, Any] = dict(zip(names, shown[j].round(4).tolist(), strict=True))
            features[f"{feed}_kind"] = f"k{category[j]}"
            if nulls[j]:
                features[names[0]] = features[names[1]] = None
            if text[j]:
                features[names[1]] = f"{features[names[1]]} EUR"
            event = {
                "id": f"{self.serial}",
                "source": "sim",
                "time": BEGIN_US + round(times[j] * 1e6),
                "model": {"name": model.name, "version": constant if version is None else version[float(times[j])]},
                "prediction": {
                    "label": "1" if score[j] >= 0.5 else "0",
                    "scores": {"0": round(1.0 - float(score[j]), 4), "1": round(float(score[j]), 4)},
                },
                "features": features,
                "duration_s": round(float(latency[j]), 5),
            }
            if failed[j]:
                event["error"] = "internal"
                del event["prediction"]
            elif labelled[j]:
                label = {
                    "prediction_id": event["id"],
                    "label": "1" if truth[j] else "0",
                    "model": model.name,
                    "source": "sim",
                    "time": BEGIN_US + round(late[j] * 1e6),
                }
                self.waiting.append((float(late[j]), model.name.encode(), orjson.dumps(label)))
            yield orjson.dumps(event, option=orjson.OPT_SERIALIZE_NUMPY)

    def _llm(
        self, i: int, k: int, model: Model, times: F64, hit: dict[str, Any], active: list[Fault], _lull: float,
        latency: F64, failed: Any,
    ) -> Iterator[bytes]:  # fmt: skip
        rng, n = self.rng, len(times)
        none = np.zeros(n, bool)
        runaway = np.where(hit.get("cost_runaway", none), 4.0, 1.0)
        given = np.maximum(1, self.tokens[k] * 2 * np.exp(self.own_drift[i, 2 * k] + 0.4 * rng.normal(size=n)))
        made = np.maximum(1, self.tokens[k] * runaway * np.exp(0.5 * rng.normal(size=n) + self.own_drift[i, 2 * k + 1]))
        refused = rng.random(n) < np.where(hit.get("refusals", none), 0.3, 0.002)
        made = np.where(refused, 12, made)
        constant = self._version(k, float(times[0]), active)
        for j in range(n):
            self.serial += 1
            event = {
                "id": f"{self.serial}",
                "source": "sim",
                "time": BEGIN_US + round(times[j] * 1e6),
                "model": {"name": model.name, "version": constant},
                "duration_s": round(float(latency[j]) * 10, 5),
                "prediction": {"label": "text"},
                "usage": {
                    "input_tokens": int(given[j]),
                    "output_tokens": int(made[j]),
                    "cost": round(float(given[j] * 1e-6 + made[j] * 4e-6), 8),
                },
                "llm": {
                    "provider": model.provider,
                    "output_tokens": int(made[j]),
                    "finish_reasons": ["content_filter" if refused[j] else "stop"],
                },
            }
            if failed[j]:
                event["error"] = "timeout"
                del event["prediction"]
            yield orjson.dumps(event, option=orjson.OPT_SERIALIZE_NUMPY)

    def _telemetry(self, i: int, begin: float, lull: float) -> list[tuple[float, bytes, bytes]]:
        found = []
        for h, host in enumerate(self.hosts):
            name = host.partition("/")[2]
            for minute in range(SLICE_S // 60):
                at = begin + 60 * minute + 1.0
                own = [f for f in self.faults if f.what == host and f.begin_s <= at < f.end_s]
                if any(f.kind == "host_lost" for f in own):
                    continue
                used = 0.45 + 0.12 * lull + 0.6 * self.load[i, h] + 0.03 * self.rng.standard_t(5)
                if any(f.kind == "host_saturated" for f in own):
                    used = 0.97 + 0.01 * self.rng.normal()
                point = {"name": "cpu.utilization", "value": round(min(max(used, 0.02), 1.0), 4), "model": name,
                         "time": BEGIN_US + round(at * 1e6), "source": "sim", "id": f"{name}-{i}-{minute}"}  # fmt: skip
                found.append((at, name.encode(), orjson.dumps(point, option=orjson.OPT_SERIALIZE_NUMPY)))
        return sorted(found)


class Worker:
    """The pipelines of a worker, one partition each, and what they come to."""

    def __init__(self, text: str, *, labels: bool) -> None:
        book = RuleBook(rules.parse(text, name="benchmark", env={}))
        kinds = ["predictions", "telemetry", *(["labels", "quality"] if labels else []), "alerts"]
        self.pipelines = {k: Pipeline(book, kind=k, topic=k) for k in kinds}  # type: ignore[arg-type]
        self.alerts: list[tuple[float, Alert]] = []  # with when each was published
        self.incidents: list[Incident] = []
        self.events = 0
        self.waiting: list[Alert] = []  # to be published

    def take(self, kind: str, rows: list[tuple[float, bytes, bytes]], end_s: float) -> None:
        pipeline = self.pipelines[kind]
        alerts, forwarded = [], []
        if rows:
            out = self._process(pipeline, [BEGIN_US + round(t * 1e6) for t, _, _ in rows], rows)
            alerts += out.alerts
            forwarded += getattr(out, "forwarded", [])
            self.incidents += out.incidents
            self.events += out.events
            if out.rejected:
                raise SystemExit(f"{kind}: {out.rejected[0]}")
        out = pipeline.advance(BEGIN_US + round(end_s * 1e6))
        self.incidents += out.incidents
        forwarded += getattr(out, "forwarded", [])
        self.report(alerts + out.alerts)
        if forwarded:
            self.take("quality", [(end_s, m.encode(), v) for m, v in forwarded], end_s)

    def report(self, alerts: list[Alert]) -> None:
        self.waiting += alerts

    def flush(self, begin_s: float, end_s: float) -> None:
        """Publish the alerts of a slice in the order of their times, a minute after what they tell of."""
        stamped = [(min(max(seconds(a.lastReceived) + 60.0, begin_s), end_s), a) for a in self.waiting]
        stamped.sort(key=lambda s: s[0])
        self.waiting = []
        self.alerts += stamped
        self.take("alerts", [(at, FLEET_KEY, to_json(a)) for at, a in stamped], end_s)

    def _process(self, pipeline: Pipeline, stamps: list[int], rows: list[tuple[float, bytes, bytes]]) -> Any:
        first, n = pipeline.next_offset, len(rows)
        return pipeline.process(
            RecordBatch(
                pipeline.topic, 0, range(first, first + n), [s // 1000 for s in stamps], [k for _, k, _ in rows],
                [v for _, _, v in rows], [()] * n,
            )
        )  # fmt: skip


def simulate(
    seed: int, *, models: int, days: float, quiet: bool, labels: bool = True, progress: bool = True
) -> tuple[list[Fault], Worker]:
    """Return the faults that were injected and the worker that saw them."""
    rng = np.random.default_rng(seed)
    those = fleet(models)
    faults = [] if quiet else draw_faults(rng, those, days=days)
    world = World(rng, those, faults, days=days)
    worker = Worker(config(those, labels=labels), labels=labels)
    began = time.monotonic()
    for i in range(world.slices):
        predictions, telemetry, told = world.slice(i)
        end = (i + 1) * SLICE_S
        worker.take("predictions", predictions, end)
        worker.take("telemetry", telemetry, end)
        if labels:
            worker.take("labels", told, end)
        worker.flush(end - SLICE_S, end)
        if progress and (i + 1) * SLICE_S % 86_400 == 0:
            took = time.monotonic() - began
            print(
                f"day {(i + 1) * SLICE_S // 86_400}: {worker.events} events, {len(worker.alerts)} alerts, {took:.0f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip
    return faults, worker


def regroup(path: str, seed: int, *, models: int, days: float, quiet: bool) -> tuple[list[Fault], Worker]:
    """Return what the incidents pipeline makes of alerts that were saved."""
    those = fleet(models)
    faults = [] if quiet else draw_faults(np.random.default_rng(seed), those, days=days)
    worker = Worker(config(those, labels=True), labels=True)
    with open(path, "rb") as f:
        saved = [(line["at"], msgspec.convert(line["alert"], Alert)) for line in map(orjson.loads, f)]
    for i in range(int(days * 86_400 / SLICE_S)):
        end = (i + 1) * SLICE_S
        now = list(itertools.takewhile(lambda s: s[0] <= end, saved))  # noqa: B023
        saved = saved[len(now) :]
        worker.report([a for _, a in now])
        worker.flush(end - SLICE_S, end)
    return faults, worker


def seconds(stamp: str) -> float:
    return dt.datetime.fromisoformat(stamp).timestamp() - BEGIN_US / 1e6


def gather(incidents: list[Incident]) -> list[Told]:
    """Return each incident as its last step told of it."""
    found: dict[str, Told] = {}
    for i in incidents:
        t = found.get(i.incident_id)
        if t is None:
            t = found[i.incident_id] = Told(
                seconds(i.lastReceived), 0.0, set(), "", "", "", 0, i.summary
            )  # fmt: skip
        t.started_s = seconds(i.startsAt)
        t.models |= set(i.models)
        t.steps += 1
        t.steps_s.append(seconds(i.lastReceived))
        merged = "merged_into" in i.annotations
        if not merged:
            t.cause, t.rule, t.confidence = i.cause.category, i.cause.rule, i.cause.confidence
        t.severity, t.alerts, t.summary = i.severity, i.alerts, i.summary
        t.symptoms = [f"{s.model} {s.signal}" for s in i.symptoms]
        t.starts_s = [seconds(s.startsAt) for s in i.symptoms] or [t.started_s]
        t.root = i.description.partition("\n")[0]
        if i.action == "resolved":
            t.ended_s, t.merged = seconds(i.lastReceived), merged
    return list(found.values())


def _grew_by(t: Told, f: Fault) -> bool:
    """Whether an incident that was open when a fault began took most of its alerts while it lasted."""
    during = sum(f.begin_s <= s <= f.end_s + GRACE_S for s in t.starts_s)
    return t.opened_s < f.begin_s and 2 * during > len(t.starts_s)


def _delay(t: Told, f: Fault) -> float:
    return min((s for s in t.steps_s if s >= f.begin_s), default=t.opened_s) - f.begin_s


def score(faults: list[Fault], worker: Worker, *, days: float, verbose: bool = False) -> dict[str, Any]:
    """Return the figures, having printed a row a kind."""
    told = gather(worker.incidents)
    of: dict[int, list[Told]] = {
        n: [
            t
            for t in told
            if t.models & set(f.models)
            and (f.begin_s <= t.opened_s <= f.end_s + GRACE_S or _grew_by(t, f))
        ]
        for n, f in enumerate(faults)
    }  # fmt: skip
    true = {id(t) for own in of.values() for t in own}
    false = [t for t in told if id(t) not in true]
    found = {n: own for n, own in of.items() if own}
    right = [n for n, own in found.items() if own[0].cause == faults[n].cause]
    # What had begun by chance and then took the fault in told of it when it first said something new.
    delays: dict[str, list[float]] = {k: [] for k in KINDS}
    print(f"{'fault':16s} {'n':>3s} {'found':>5s} {'cause':>5s} {'delay min':>9s} {'incidents':>9s} {'alerts':>6s}")
    for kind in KINDS:
        own = [n for n, f in enumerate(faults) if f.kind == kind]
        if not own:
            continue
        got = [n for n in own if n in found]
        delays[kind] = [_delay(found[n][0], faults[n]) for n in got]
        delay = f"{statistics.median(delays[kind]) / 60:.0f}" if got else "-"
        each = sum(len(of[n]) for n in got) / max(1, len(got))
        alerts = statistics.median(t.alerts for n in got for t in found[n]) if got else 0
        causes = sum(n in right for n in got)
        print(f"{kind:16s} {len(own):3d} {len(got):5d} {causes:5d} {delay:>9s} {each:9.2f} {alerts:6.0f}")
    if verbose:
        for n, f in enumerate(faults):
            for t in of[n] or [None]:
                what = "MISSED" if t is None else (
                    f"{_delay(t, f) / 60:.0f} min {t.cause}/{t.rule} {t.confidence} {t.alerts} alerts "
                    f"{len(t.models)} models {t.severity} | {t.summary[:150]} | {', '.join(t.symptoms[:12])}"
                )  # fmt: skip
                print(f"  {f.kind} {f.what} h{f.begin_s / 3600:.1f}: {what}")
        for t in false:
            what = f"{t.severity} {t.cause} {t.alerts}: {t.summary[:150]} | {t.root[:120]} | {t.symptoms[:6]}"
            print(f"  FALSE h{t.opened_s / 3600:.1f} {what}")
    return {
        "faults": len(faults),
        "incidents": len(told),
        "incident_recall": round(len(found) / len(faults), 3) if faults else None,
        "incident_precision": round(1 - len(false) / len(told), 3) if told and faults else None,
        "cause_accuracy": round(len(right) / len(found), 3) if found else None,
        "incidents_per_fault": round(sum(len(o) for o in found.values()) / len(found), 3) if found else None,
        "median_delay_s": {k: round(statistics.median(d)) for k, d in delays.items() if d},
        "false_incidents_per_day": round(len(false) / days, 2),
        "false_critical": sum(t.severity == "critical" for t in false),
        "alerts": sum(a.action == "opened" for _, a in worker.alerts),
        "alerts_per_incident": round(statistics.fmean(t.alerts for t in told), 2) if told else None,
        "steps_per_incident": round(statistics.fmean(t.steps for t in told), 2) if told else None,
        "unresolved": sum(t.ended_s is None for t in told),
        "events": worker.events,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--days", type=float, default=14)
    parser.add_argument("--quiet", action="store_true", help="inject nothing")
    parser.add_argument("--verbose", action="store_true", help="print each fault and each false incident")
    parser.add_argument("--save", help="write the alerts there, one a line")
    parser.add_argument("--saved", help="group these alerts, saved by a run with the same seed, instead of simulating")
    args = parser.parse_args()
    began = time.monotonic()
    if args.saved:
        faults, worker = regroup(args.saved, args.seed, models=args.models, days=args.days, quiet=args.quiet)
    else:
        faults, worker = simulate(args.seed, models=args.models, days=args.days, quiet=args.quiet)
    if args.save:
        with open(args.save, "wb") as f:
            f.writelines(orjson.dumps({"at": at, "alert": orjson.loads(to_json(a))}) + b"\n" for at, a in worker.alerts)
    figures = {"seed": args.seed, **score(faults, worker, days=args.days, verbose=args.verbose)}
    print(orjson.dumps({**figures, "seconds": round(time.monotonic() - began)}).decode())


if __name__ == "__main__":
    main()
