"""Configs, events and batches for the tests of the pure core."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson

from streamproc import rules
from streamproc.config import Config
from streamproc.events import Alert, RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook

MINIMUM = """\
version: 1
kafka: {brokers: "localhost:9092", predictions: [predictions], telemetry: [telemetry], labels: [labels]}
"""

#: Monday, 5 January 2026, 09:00 UTC.
BEGIN_US = 1_767_603_600_000_000
SECOND = 1_000_000


def config(extra: str = "", **env: str) -> Config:
    return rules.parse(MINIMUM + extra, name="worker.yaml", env=env)


def quick(**signals: dict[str, Any]) -> str:
    """Windows of a second and detectors that warm up in few values."""
    said = {
        **{
            name: {"params": {"warm_up": 5, "window": 20}}
            for name in (
                "confidence", "prediction_entropy", "new_class", "prediction_psi", "error_share",
                "duplicates", "out_of_order", "tokens_out", "cost_per_hour",
                "feature_range", "unseen_category", "constant_features", "feature_drift",
            )
        },
        "prediction_jsd": {"detector": "robust_z", "params": {"warm_up": 5, "window": 20}},
        "throughput": {"params": {"warm_up": 5, "window": 20}},
        "error_rate": {"params": {"warm_up": 5, "window": 20}},
        "latency_p95": {"params": {"warm_up": 5, "window": 20}},
        "class_share": {"params": {"warm_up": 5, "window": 20}},
        "prediction_value": {"params": {"warm_up": 5, "window": 20}},
        "missing_features": {"params": {"warm_up": 5, "window": 20}},
        "silence": {"params": {"warm_up": 20, "min_timeout_s": 5.0}},
        "metric": {"detector": "robust_z", "breaches": "2/3", "params": {"warm_up": 5, "window": 20}},
    }
    lines = "".join(f"    {n}: {orjson.dumps(v).decode()}\n" for n, v in {**said, **signals}.items())
    return f"defaults:\n  window: 1s\n  lateness: 500ms\n  min_samples: 3\n  resolve_after: 3s\n  signals:\n{lines}"


def prediction(at_us: int | None, model: str = "fraud", **fields: Any) -> dict[str, Any]:
    event: dict[str, Any] = {"id": "1", "source": "t", "model": {"name": model}, "prediction": 0.5, **fields}
    if at_us is not None:
        event["time"] = at_us
    return event


def batch(
    events: Sequence[dict[str, Any] | bytes | None],
    *,
    first: int = 0,
    stamps_us: Sequence[int] | None = None,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Sequence[tuple[str, bytes | None]]] | None = None,
    topic: str = "predictions",
) -> RecordBatch:
    n = len(events)
    values = [e if e is None or isinstance(e, bytes) else orjson.dumps(e) for e in events]
    stamps = [BEGIN_US] * n if stamps_us is None else stamps_us
    return RecordBatch(
        topic,
        0,
        list(range(first, first + n)),
        [s // 1000 for s in stamps],
        [None] * n if keys is None else list(keys),
        values,
        [()] * n if headers is None else headers,
    )


def cut(whole: RecordBatch, at: Iterable[int]) -> list[RecordBatch]:
    """Return the batch in pieces that begin at the rows `at`."""
    edges = [0, *sorted({i for i in at if 0 < i < len(whole)}), len(whole)]
    return [whole.rows(a, b) for a, b in itertools.pairwise(edges) if a < b]


def pipeline(cfg: Config, kind: str = "predictions", **more: Any) -> Pipeline:
    return Pipeline(RuleBook(cfg), kind=kind, topic=kind, **more)  # type: ignore[arg-type]


def feed(p: Pipeline, batches: Iterable[RecordBatch]) -> list[Alert]:
    return [a for b in batches for a in p.process(b).alerts]


def state(p: Pipeline) -> dict[str, bytes]:
    """Return every model's state as it would be stored."""
    return dict(p.snapshot_models(list(p.models)))


def story(seed: int, *, n: int = 900, models: int = 2, rate: float = 20.0) -> RecordBatch:
    """Return a stream in which everything happens: latency steps, errors, nulls, a pause, late events."""
    rng, more = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    events, stamps = [], []
    latest: dict[str, dict[str, Any]] = {}  # by model
    now = BEGIN_US
    for i in range(n):
        now += int(rng.exponential(1 / rate) * SECOND)
        if i == int(0.8 * n):
            now += 30 * SECOND
        bad = 0.5 * n < i < 0.65 * n
        at = now - (int(rng.uniform(0, 0.4) * SECOND) if rng.random() < 0.2 else 0)
        if rng.random() < 0.01:
            at -= 5 * SECOND
        event = prediction(
            at,
            model=f"m{rng.integers(models)}",
            prediction={"value": float(rng.normal(5 if bad else 0)), "label": str(rng.choice(["a", "b"]))},
            duration_s=float(rng.lognormal(-1 if bad else -3, 0.3)),
            features={
                "x": float(rng.normal()),
                "y": None if bad and rng.random() < 0.5 else float(rng.normal()),
            },
        )
        if bad and rng.random() < 0.3:
            event["error"] = {"type": "timeout"}
        share = float(more.uniform(0.4, 0.6) if bad else more.uniform(0.9, 1.0))
        event["prediction"]["scores"] = {"a": share, "b": 1.0 - share}
        event["id"] = f"{i}"
        if bad and more.random() < 0.5 and (earlier := latest.get(event["model"]["name"])) is not None:
            event["id"], event["time"] = earlier["id"], earlier["time"]  # it comes again
        latest[event["model"]["name"]] = event
        tokens = int(more.integers(50, 60) * (3 if bad else 1))
        event["usage"] = {"input_tokens": 100, "output_tokens": tokens, "cost": tokens * 1e-5}
        event["features"]["z"] = 7.0 if bad else float(more.lognormal())
        if more.random() < 0.9:  # else it has only numbers, in the order they were learned
            event["features"]["c"] = f"{'new' if bad and more.random() < 0.5 else 'old'}-{more.integers(3)}"
        if bad and more.random() < 0.2:
            event["prediction"]["label"] = "c"
        events.append(event)
        stamps.append(now)
    return batch(events, stamps_us=stamps)


def check_cut_and_restored(cfg: Config, whole: RecordBatch, *, at: int, edges: Iterable[int] = ()) -> None:
    """Fail unless a stream cut at `edges`, its state stored and restored at `at`, comes to what it does undisturbed."""
    edges = list(edges)
    one, first, second = pipeline(cfg), pipeline(cfg), pipeline(cfg)
    expected = feed(one, [whole])
    alerts = feed(first, cut(whole.rows(0, at), edges))
    second.restore_manifest(first.manifest())
    for name, data in state(first).items():
        second.restore_model(name, data)
    second.restored()
    alerts += feed(second, cut(whole.rows(at, len(whole)), [e - at for e in edges if e > at]))
    assert sorted(map(repr, alerts)) == sorted(map(repr, expected))
    assert state(second) == state(one)
