"""Every event that came is scored, rejected, paired, late, fenced or ignored, by name, and these sum to what came."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc import rules
from streamproc.events import ORIGIN_HEADER, RecordBatch
from streamproc.models import MAX_METRICS
from streamproc.pipeline import IGNORED, OUTCOMES, Output, Pipeline
from streamproc.replay import Replay
from streamproc.rules import RuleBook
from streamproc.worker.engine import Owned
from tests.core.make import MINIMUM, batch, config, cut, pipeline
from tests.oracles.codecs import CODECS
from tests.oracles.records import BEGIN_S, MET, Recipe, Record, recipes, stream
from tests.worker.test_engine import Bench

#: Few models, short windows, and names that are not watched: something for every outcome.
NARROW = """\
defaults:
  window: 5s
  lateness: 1s
  max_future: 2s
  discover: {max_series: 3, models: ["m*", "gpt", "prod/*", "shop"]}
"""


def records(found: Sequence[Record], *, seed: int, first: int = 0) -> RecordBatch:
    """Return records as a batch of the log, some of them long after their time: late events."""
    rng = random.Random(seed)
    clock = BEGIN_S
    stamps = []
    for record in found:
        clock = max(clock, record.stamp_s) + (30 if rng.random() < 0.1 else 0)
        stamps.append(round(clock * 1000))
    headers = [r.headers for r in found]
    return RecordBatch(
        "predictions", 0, list(range(first, first + len(found))), stamps, [r.key for r in found],
        [r.value for r in found], headers,
    )  # fmt: skip


def reading(text: str = NARROW, **more: Any) -> Pipeline:
    book = RuleBook(rules.parse(MINIMUM + text))
    return Pipeline(book, kind="predictions", topic="predictions", codecs=CODECS, **more)


def restored(p: Pipeline, **more: Any) -> Pipeline:
    other = reading(**more)
    other.restore_manifest(p.manifest())
    for name, data in p.snapshot_models(list(p.models)):
        other.restore_model(name, data)
    other.restored()
    return other


def summed(outs: Sequence[Output]) -> Counter[str]:
    """Return what became of all events; fail where one batch's numbers do not sum to what came in it."""
    total: Counter[str] = Counter()
    for out in outs:
        accounts = out.accounts()
        assert tuple(accounts) == OUTCOMES
        assert min(accounts.values()) >= 0
        assert sum(accounts.values()) == out.came, accounts
        total.update(accounts)
    return +total


@settings(max_examples=150, deadline=None, derandomize=True)
@given(recipe=recipes, edges=st.sets(st.integers(0, 60)), seed=st.integers(0, 99))
def test_what_became_of_events_sums_to_what_came_however_they_are_cut(
    recipe: Recipe, edges: set[int], seed: int
) -> None:
    whole = records(stream(recipe), seed=seed)
    if not len(whole):
        return
    one, many = reading(), reading()
    expected = summed([one.process(whole)])
    assert summed([many.process(b) for b in cut(whole, edges)]) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(recipe=recipes, at=st.integers(1, 40), back=st.integers(0, 40), seed=st.integers(0, 99))
def test_what_is_in_the_state_already_is_fenced_and_sums_too(recipe: Recipe, at: int, back: int, seed: int) -> None:
    whole = records([*MET[:20], *stream(recipe)], seed=seed)
    at = min(at, len(whole))
    first = reading()
    before = first.process(whole.rows(0, at))
    after = restored(first).process(whole.rows(max(0, at - back), len(whole)))
    once = reading().process(whole)
    together = summed([before, after])
    # What comes again is fenced, or was never in a state: nothing is scored twice.
    for outcome in ("scored", "paired", "late"):
        assert together[outcome] == once.accounts()[outcome]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(recipe=recipes, seed=st.integers(0, 99))
def test_copies_of_what_was_sent_on_under_another_key_are_fenced_and_sum_too(recipe: Recipe, seed: int) -> None:
    found = [
        Record(r.value, r.stamp_s, [*r.headers, (ORIGIN_HEADER, b"0:%d" % (i - i % 2))], r.key)
        for i, r in enumerate(stream(recipe, twice=False))
    ]
    if found:
        summed([reading(deduplicate=True).process(records(found, seed=seed))])


def test_the_streams_bring_about_every_outcome_and_what_is_ignored_is_named() -> None:
    rng = random.Random(5)
    names = ("native", "otlp_json", "kserve", "garbage", "genai_flat", "other_frame", "open_inference", "no_model")
    recipe = [(rng.choice(names), rng.randrange(1 << 32)) for _ in range(400)]
    whole = records(stream(recipe), seed=3)
    first = reading()
    outs = [first.process(whole.rows(0, 200)), restored(first).process(whole.rows(150, len(whole)))]
    assert set(summed(outs)) == set(OUTCOMES)
    ignored = outs[0].ignored + outs[1].ignored
    assert {"model not to be watched", "model beyond max_series", "span: not of a language model"} <= set(ignored)
    assert any(reason.startswith("part of a record: ") for reason in ignored)


@pytest.mark.parametrize("kind", ["telemetry", "labels"])
def test_telemetry_and_labels_sum_too_the_late_and_the_unread_among_them(kind: str) -> None:
    made: dict[str, Any] = {
        "telemetry": lambda i: {"name": f"metric-{i % (MAX_METRICS + 9)}", "value": i, "model": "m"},
        "labels": lambda i: {"prediction_id": f"{i}", "label": "yes", "model": "m"},
    }
    events: list[Any] = []
    for i in range(600):
        at = BEGIN_S + i - (300 if i > 300 and i % 5 == 0 else 0)
        events.append(b"{" if i % 7 == 0 else {**made[kind](i), "time": at})
    whole = batch(events, stamps_us=[(BEGIN_S + i) * 1_000_000 for i in range(600)], topic=kind)
    p = pipeline(config("defaults: {window: 5s, lateness: 1s}\n"), kind)
    found = summed([p.process(b) for b in cut(whole, range(0, 600, 53))])
    assert found["late"] > 0
    assert found["rejected"] == len([e for e in events if e == b"{"])


def test_a_metric_beyond_the_bound_that_comes_late_is_counted_once() -> None:
    events = [{"name": f"metric-{i}", "value": 1.0, "model": "m", "time": BEGIN_S} for i in range(MAX_METRICS)]
    events += [{"name": "metric-0", "value": 1.0, "model": "m", "time": BEGIN_S + 100 + i} for i in range(400)]
    events += [{"name": "one-more", "value": 1.0, "model": "m", "time": BEGIN_S} for _ in range(5)]
    stamps = [BEGIN_S] * MAX_METRICS + [BEGIN_S + 100 + i for i in range(400)] + [BEGIN_S + 500] * 5
    p = pipeline(config("defaults: {window: 5s, lateness: 1s}\n"), "telemetry")
    whole = batch(events, stamps_us=[s * 1_000_000 for s in stamps], topic="telemetry")
    outs = [p.process(b) for b in cut(whole, [MAX_METRICS, MAX_METRICS + 400])]
    assert summed(outs) == {"scored": MAX_METRICS + 400, "late": 5}


# ------------------------------------------------------------------------------ where operators see it

BENCH = f"version: 1\nkafka: {{brokers: 'b:1', predictions: [in]}}\n{NARROW}"


def told(text: str, name: str, label: str) -> dict[str, float]:
    """Return a metric's values by one label."""
    found = {}
    for line in text.splitlines():
        if line.startswith(f"streamproc_{name}{{{label}="):
            found[line.split('"')[1]] = float(line.rpartition(" ")[2])
    return found


@settings(max_examples=50, deadline=None, derandomize=True)
@given(recipe=recipes, edges=st.sets(st.integers(0, 60)), seed=st.integers(0, 99))
def test_the_metrics_say_what_became_of_events_as_the_batches_do(recipe: Recipe, edges: set[int], seed: int) -> None:
    whole = records(stream(recipe), seed=seed)
    if not len(whole):
        return
    whole = RecordBatch("in", 0, *[getattr(whole, n) for n in whole.__struct_fields__[2:7]])
    p = Pipeline(RuleBook(rules.parse(BENCH)), kind="predictions", topic="in")
    outs = [p.process(b) for b in cut(whole, edges)]
    bench = Bench(rules.parse(BENCH))

    async def main() -> None:
        position = 0
        for b in cut(whole, edges):
            last = b.offsets[-1]
            await bench.engine.take(
                RecordBatch("in", 0, b.offsets, b.timestamps_ms, b.keys, b.values, b.headers, position, position - 1)
            )
            position = last + 1

    asyncio.run(main())
    text = bench.engine.metrics.text().decode()
    outcomes = told(text, "records_total", "outcome")
    assert +Counter(outcomes) == summed(outs)
    assert set(outcomes) == set(OUTCOMES)  # at 0 from the start
    assert sum(outcomes.values()) == sum(o.came for o in outs)
    ignored = sum((o.ignored for o in outs), Counter[str]())
    assert sum(told(text, "ignored_total", "reason").values()) == ignored.total() == outcomes["ignored"]


def test_every_outcome_stands_at_nothing_before_the_first_record_comes() -> None:
    bench = Bench(rules.parse(BENCH))
    bench.engine.metrics.begin(["in"])
    text = bench.engine.metrics.text().decode()
    assert told(text, "records_total", "outcome") == dict.fromkeys(OUTCOMES, 0.0)
    assert told(text, "ignored_total", "reason") == dict.fromkeys(IGNORED, 0.0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(recipe=recipes, lines_at_once=st.integers(1, 30))
def test_a_replays_report_says_what_became_of_events_as_the_pipeline_does(recipe: Recipe, lines_at_once: int) -> None:
    text = [r.value.replace(b"\n", b" ") for r in stream(recipe) if r.value and r.value[:1] == b"{"]
    one = Replay(RuleBook(rules.parse(MINIMUM + NARROW)), kind="predictions")
    list(one.run(text, batch_lines=lines_at_once))
    assert sum(one.report.accounts.values()) == one.report.came
    assert one.report.accounts["rejected"] == one.report.rejected.total()
    assert one.report.accounts["ignored"] == one.report.ignored.total()
    other = Replay(RuleBook(rules.parse(MINIMUM + NARROW)), kind="predictions")
    list(other.run(text))
    assert +other.report.accounts == +one.report.accounts


def test_what_is_joined_and_what_alerts_come_to_are_no_events_that_came() -> None:
    text = 'version: 1\nkafka: {brokers: "b:1", predictions: [in], labels: [truth]}\n'
    bench = Bench(rules.parse(text))
    event = {"id": "1", "model": {"name": "m"}, "prediction": 1.0, "time": BEGIN_S}
    out = bench.held.pipeline.process(batch([orjson.dumps(event)], stamps_us=[BEGIN_S * 1_000_000], topic="in"))
    joins = Pipeline(RuleBook(rules.parse(text)), kind="quality", topic="joins")
    sent_on = batch([record for _, record in out.forwarded], stamps_us=[BEGIN_S * 1_000_000], topic="joins")
    joined = joins.process(sent_on)
    assert joined.came == 1
    held = Owned(TP("joins", 0), joins, bench.held.writer, 0, generation=1)
    asyncio.run(bench.engine._publish(held, joined, sent_on))
    assert sum(told(bench.engine.metrics.text().decode(), "records_total", "outcome").values()) == 0
