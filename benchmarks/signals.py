"""What each signal costs an event: `Pipeline.process` over batches in memory, decoding included.

The same records go through a pipeline with the default signals, and through one more for each signal: without
it where it is on by default, with it where it is off. Contenders take turns batch by batch, so that a machine
that slows down slows all of them; a signal's cost is the median of the difference it makes in each turn. Costs of
less than some hundredths are noise.
Predictions have an id, a value, a class, a latency and as many numeric features as told. Those that single signals
are measured on have scores by class, a tenth more features that are categorical, usage and errors as well. Signals of
language models are measured on calls as OpenTelemetry writes them, `feature_age` on predictions with a `feature_time`:
both are decoded whole, which is most of what they cost and no part of the differences shown. What segments cost is
that of the default signals with one segment watched beside the model, decoding whole included. The collector is set as
the worker sets it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import random
import statistics
import time
from collections.abc import Iterator

import msgspec
import orjson

from streamproc import rules
from streamproc.events import RecordBatch
from streamproc.genai import FACTS
from streamproc.pipeline import Pipeline, warm_up
from streamproc.rules import RuleBook
from streamproc.signals import SIGNALS

#: Signals that share their work: without one of them alone, it is still done.
TOGETHER = (
    "feature_range+constant_features+feature_drift",
    "confidence+prediction_entropy",
    "new_class+prediction_psi",
)

BATCH = 1000
START_S = 1_790_000_000.0

#: Signals of few events a second: a window of so many events closes now and then, as it would.
WINDOW = "1m"
RATE = 500.0

_CONFIG = """
version: 1
kafka: {{brokers: "x:1", predictions: [p]}}
defaults: {{window: {window}, signals: {signals}}}
"""

#: What a config must say of a signal that is off by default.
_NAMED: dict[str, dict[str, object]] = {
    "failures": {"detector": "rate"},
    "prediction_drift": {"detector": "drift"},
    "latency": {"detector": "spike"},
    "prediction_jsd": {"detector": "robust_z"},
    "cost_per_day": {"upper_limit": 1e9},
}


def batches(n: int, *, features: int, mixed: bool, seed: int = 1) -> Iterator[RecordBatch]:
    """Yield n batches of one model's predictions; mixed: with scores by class, categories, usage and errors too."""
    rng = random.Random(seed)
    names = [f"feature_{k}" for k in range(features)]
    categories = [f"category_{k}" for k in range(max(1, features // 10))] if mixed else []
    for b in range(n):
        values, stamps = [], []
        for i in range(b * BATCH, (b + 1) * BATCH):
            at = START_S + i / RATE
            share = rng.uniform(0.6, 0.99)
            answer = {"value": rng.random(), "label": "fraud" if rng.random() < 0.1 else "ok"}
            event = {
                "id": f"{seed:04x}-{i:012d}",
                "source": "serving/fraud",
                "time": dt.datetime.fromtimestamp(at, dt.UTC).isoformat(),
                "model": {"name": "fraud", "version": "7"},
                "prediction": answer | ({"scores": {"ok": share, "fraud": 1.0 - share}} if mixed else {}),
                "duration_s": rng.lognormvariate(-4.0, 0.3),
                "features": {name: rng.gauss(0.0, 1.0) for name in names}
                | {name: f"value-{rng.randrange(20)}" for name in categories},
            }
            if mixed:
                event["usage"] = {"input_tokens": rng.randrange(500), "output_tokens": rng.randrange(200), "cost": 0.01}
            if mixed and rng.random() < 0.02:
                event["error"] = {"type": rng.choice(["timeout", "rate_limit"])}
            values.append(orjson.dumps(event))
            stamps.append(int(at * 1000))
        first = b * BATCH
        yield RecordBatch(
            "p", 0, list(range(first, first + BATCH)), stamps, [b"fraud"] * BATCH, values, [()] * BATCH
        )


def calls(n: int, *, seed: int = 1) -> Iterator[RecordBatch]:
    """Yield n batches of calls of a language model, attributes flat."""
    rng = random.Random(seed)
    for b in range(n):
        values, stamps = [], []
        for i in range(b * BATCH, (b + 1) * BATCH):
            at = START_S + i / RATE
            values.append(orjson.dumps({
                "id": f"{seed:04x}-{i:012d}",
                "time": at,
                "duration_s": rng.lognormvariate(0.0, 0.3),
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "gpt",
                "gen_ai.usage.input_tokens": rng.randrange(500),
                "gen_ai.usage.output_tokens": rng.randrange(200),
                "gen_ai.response.finish_reasons": ["stop" if rng.random() < 0.97 else "length"],
                "gen_ai.response.time_to_first_chunk": rng.lognormvariate(-1.0, 0.2),
                "retrieval.documents.0.document.score": rng.gauss(0.8, 0.03),
            }))  # fmt: skip
            stamps.append(int(at * 1000))
        first = b * BATCH
        yield RecordBatch("p", 0, list(range(first, first + BATCH)), stamps, [b"gpt"] * BATCH, values, [()] * BATCH)


def with_more(records: list[RecordBatch], **more: object) -> list[RecordBatch]:
    """Return the same records with one more field."""
    return [
        msgspec.structs.replace(r, values=[orjson.dumps(orjson.loads(v or b"") | more) for v in r.values])
        for r in records
    ]


def pipeline(signals: dict[str, object], more: str = "") -> Pipeline:
    text = _CONFIG.format(window=WINDOW, signals=orjson.dumps(signals).decode()) + more
    return Pipeline(RuleBook(rules.parse(text)), kind="predictions", topic="p")


def measure(records: list[RecordBatch], wanted: list[str]) -> tuple[float, dict[str, float]]:
    """Return microseconds of CPU an event of the default signals, and what each signal, or several by +, adds."""
    # The costliest is left out where others are measured: its own scatter is larger than what they cost.
    base: dict[str, object] = {"feature_outlier": {"mode": "off"}}
    said: dict[str, dict[str, object]] = {"default": {}, "base": base}
    added: dict[str, bool] = {}
    for name in wanted:
        parts = name.split("+")
        added[name] = name == "feature_outlier" or not SIGNALS[parts[0]].on
        if name == "feature_outlier":
            said[name] = {}
        else:
            said[name] = base | {n: _NAMED[n] if added[name] else {"mode": "off"} for n in parts}
    contenders = {name: pipeline(signals) for name, signals in said.items() if wanted or name == "default"}
    us: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for turn, batch in enumerate(records):
        # Each begins once: whoever is first finds the records out of the cache.
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            began = time.process_time()
            contenders[name].process(batch)
            us[name].append(1e6 * (time.process_time() - began) / BATCH)
    warm = len(records) // 4
    marginal = {}
    for name in wanted:
        sign = 1.0 if added[name] else -1.0
        pairs = [sign * (a - b) for a, b in zip(us[name][warm:], us["base"][warm:], strict=True)]
        marginal[name] = statistics.median(pairs)
    return statistics.median(us["default"][warm:]), marginal


def collect_as_the_worker() -> None:
    """Have the collector look at little, and not at what stays: else what is decoded whole costs twice as much."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--only", nargs="*", help="signals to measure")
    args = parser.parse_args()
    warm_up(rules.parse(_CONFIG.format(window=WINDOW, signals=orjson.dumps(
        _NAMED
    ).decode())))  # fmt: skip
    collect_as_the_worker()
    apart = {*FACTS, "feature_age"}
    every = [n for n, s in SIGNALS.items() if "predictions" in s.sources and n in (args.only or SIGNALS)]
    special = [n for n in every if n in apart]
    every = [n for n in every if n not in apart]
    every += [] if args.only else TOGETHER
    default: dict[str, float] = {}
    mixed: dict[str, float] = {}
    found: dict[str, dict[str, float]] = {name: {} for name in every}
    for features, count in ((10, args.batches), (100, max(8, args.batches // 3))):
        plain = list(batches(count, features=features, mixed=False))
        default[str(features)], _ = measure(plain, [])
        mixed[str(features)], marginal = measure(list(batches(count, features=features, mixed=True)), every)
        for name, value in marginal.items():
            found[name][str(features)] = value
    of_calls, _ = measure(list(calls(args.batches)), [])
    if any(n in FACTS for n in special):
        _, marginal = measure(list(calls(args.batches)), [n for n in special if n in FACTS])
        found |= {n: {"10": v, "100": v} for n, v in marginal.items()}
    if "feature_age" in special:
        for features, count in ((10, args.batches), (100, max(8, args.batches // 3))):
            aged = with_more(list(batches(count, features=features, mixed=False)), feature_time=START_S)
            found.setdefault("feature_age", {})[str(features)] = measure(aged, ["feature_age"])[1]["feature_age"]
    segmented = {}
    for features, count in ((10, args.batches), (100, max(8, args.batches // 3))):
        records = with_more(list(batches(count, features=features, mixed=False)), segment={"country": "DE"})
        p, us = pipeline({}, "models: [{match: {model: fraud}, segments: [country]}]\n"), []
        collect_as_the_worker()
        for batch in records:
            began = time.process_time()
            p.process(batch)
            us.append(1e6 * (time.process_time() - began) / BATCH)
        segmented[str(features)] = statistics.median(us[count // 4 :])
    print(f"{'':46s}{'10 features':>14s}{'100 features':>14s}   us an event")
    calls_row = {"10": of_calls, "100": of_calls}
    rows = (
        ("default, as in throughput", default),
        ("default, all at once", mixed),
        ("default, calls of a language model", calls_row),
        ("default, a segment watched too", segmented),
    )
    for title, row in (*rows, *found.items()):
        print(f"{title:48s}{row['10']:12.3f}{row['100']:14.3f}")
    result = {
        "us_per_event_default": {k: round(v, 2) for k, v in default.items()},
        "us_per_event_all_at_once": {k: round(v, 2) for k, v in mixed.items()},
        "us_per_event_of_calls": round(of_calls, 2),
        "us_per_event_with_segments": {k: round(v, 2) for k, v in segmented.items()},
        "us_per_event": {n: {k: round(v, 3) for k, v in row.items()} for n, row in found.items() if "+" not in n},
        "us_per_event_together": {n: {k: round(v, 3) for k, v in row.items()} for n, row in found.items() if "+" in n},
    }
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
