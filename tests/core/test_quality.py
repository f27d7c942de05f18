"""Labels that come late, joined to predictions, and what they say of a model."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import metrics

from detectors.state import dumps
from streamproc.cloudevents import to_json
from streamproc.errors import ConfigError
from streamproc.events import Alert, RecordBatch
from streamproc.joins import MAX_ROWS, class_hash
from streamproc.outstanding import CHUNK, LABEL, Outstanding, enter
from streamproc.pipeline import PART, Output, Pipeline
from streamproc.quality import QualityState
from streamproc.rules import RuleBook
from tests.core.make import BEGIN_US, SECOND, batch, config, cut, feed, pipeline, prediction

DAY = 86_400 * SECOND

QUICK = """defaults:
  window: 1s
  lateness: 500ms
  min_samples: 3
  resolve_after: 3s
  labels: {max_delay: 20s, max_outstanding: 3000}
  signals:
    accuracy: {params: {warm_up: 5, window: 20}}
    label_delay: {params: {warm_up: 5, window: 20}}
    unlabelled: {params: {warm_up: 5, window: 20}}
    estimated_accuracy: {params: {warm_up: 5, window: 20}}
    prediction_error: {params: {reference: 100}}
"""


def label(k: int, at_us: int, truth: Any = "a", *, model: str = "fraud", **more: Any) -> dict[str, Any]:
    said = {"value": truth} if type(truth) is float else {"label": truth}
    return {
        "prediction_id": f"i{k}",
        "model": {"name": model},
        "time": at_us,
        "id": f"l{k}",
        "source": "t",
        **said,
        **more,
    }


def answer(k: int, at_us: int, said: Any = None, **more: Any) -> dict[str, Any]:
    return prediction(
        at_us, prediction={"label": "a", "score": 0.9} if said is None else said, **{"id": f"i{k}", **more}
    )


class Chain:
    """Predictions and labels, what is sent on of them, and the pipeline that joins it."""

    def __init__(self, extra: str = QUICK) -> None:
        cfg = config(extra)
        self.predictions, self.labels = pipeline(cfg), pipeline(cfg, "labels")
        self.quality = pipeline(cfg, "quality")
        self.ends = Counter[str]()
        self.records: list[bytes] = []
        self.stamps: list[int] = []
        self.alerts: list[Alert] = []
        self.outcomes = Counter[str]()

    def predict(self, events: list[dict[str, Any]], *, now: int | None = None) -> list[bytes]:
        return self._send(self.predictions, "predictions", events, now)

    def label(self, events: list[dict[str, Any]], *, now: int | None = None) -> list[bytes]:
        return self._send(self.labels, "labels", events, now)

    def _send(self, source: Pipeline, topic: str, events: list[dict[str, Any]], now: int | None) -> list[bytes]:
        stamp = max(e["time"] for e in events) if now is None else now
        out = source.process(batch(list(events), first=self.ends[topic], stamps_us=[stamp] * len(events), topic=topic))
        assert out.rejected == []
        self.ends[topic] += len(events)
        sent = [record for _, record in out.forwarded]
        self.join(sent, stamp)
        return sent

    def join(self, records: list[bytes], stamp: int) -> Output:
        out = self.quality.process(
            batch(list(records), first=len(self.records), stamps_us=[stamp] * len(records), topic="quality")
        )
        self.records += records
        self.stamps += [stamp] * len(records)
        self.alerts += out.alerts
        self.outcomes += out.outcomes
        return out

    @property
    def model(self) -> QualityState:
        model = self.quality.models["fraud"]
        assert isinstance(model, QualityState)
        return model

    def log(self) -> RecordBatch:
        return batch(list(self.records), stamps_us=self.stamps, topic="quality")


def windows(p: Pipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int, int]]:
    """Return, as they close, the values of every window signal."""
    found: list[tuple[str, float, int, int]] = []
    original = QualityState._observe_window

    def observe(self: QualityState, aggregate: Any, end_us: int, window: Any) -> list[Alert]:
        found.append((aggregate.signal, aggregate.value, aggregate.n, end_us))
        return original(self, aggregate, end_us, window)

    monkeypatch.setattr(QualityState, "_observe_window", observe)
    return found


# ------------------------------------------------------------------------------------- joins


def test_a_label_finds_its_prediction_whichever_of_them_comes_first() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US), answer(2, BEGIN_US + 1)])
    chain.label([label(1, BEGIN_US + SECOND), label(3, BEGIN_US + SECOND)])
    chain.predict([answer(3, BEGIN_US + 2)])
    assert chain.outcomes == {"joined": 2}
    assert list(chain.model.waiting.waiting(LABEL)) == []
    assert len(chain.model.waiting.waiting(0)) == 1


def test_a_second_label_and_a_copy_of_a_prediction_are_counted_and_change_nothing() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US), answer(1, BEGIN_US + 1, {"label": "b"})])
    chain.label([label(1, BEGIN_US + SECOND, "a"), label(1, BEGIN_US + SECOND, "b")])
    chain.predict([answer(1, BEGIN_US + 1)])
    assert chain.outcomes == {"joined": 1, "repeated": 3}
    assert next(iter(chain.model.windows.open.values())).right == 1  # type: ignore[attr-defined]


def test_a_label_beyond_max_delay_is_overdue_and_one_without_a_prediction_is_unmatched() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US), answer(2, BEGIN_US)])
    chain.label([label(1, BEGIN_US + 20 * SECOND), label(2, BEGIN_US + 20 * SECOND + 1)])
    chain.label([label(9, BEGIN_US + 21 * SECOND)])
    assert chain.outcomes == {"joined": 1, "overdue": 1}
    chain.predict([answer(3, BEGIN_US + 30 * SECOND)])  # predictions are now well past the time of label 9
    chain.predict([answer(9, BEGIN_US + 31 * SECOND)])
    assert chain.outcomes == {"joined": 1, "overdue": 1, "unmatched": 1, "repeated": 1}


def test_of_too_many_predictions_the_oldest_go_and_are_counted() -> None:
    chain = Chain()  # at most 3,000: three chunks
    for start in range(0, 5000, 500):
        chain.predict([answer(k, BEGIN_US + k) for k in range(start, start + 500)])
    assert chain.outcomes["crowded_out"] == 2 * CHUNK
    chain.label([label(0, BEGIN_US + SECOND), label(4999, BEGIN_US + SECOND)])
    assert chain.outcomes["joined"] == 1


def test_predictions_that_waited_for_max_delay_are_unlabelled_and_leave() -> None:
    chain = Chain()
    chain.predict([answer(k, BEGIN_US + k) for k in range(CHUNK + 10)])
    chain.label([label(5, BEGIN_US + SECOND)])
    chain.label([label(CHUNK + 5, BEGIN_US + 30 * SECOND)])
    chain.label([label(CHUNK + 6, BEGIN_US + 31 * SECOND)])
    assert chain.outcomes["unlabelled"] == CHUNK - 1
    assert len(chain.model.waiting) == 10


def test_failures_and_predictions_without_an_id_or_an_answer_are_not_sent_on() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US, {}, error={"type": "timeout"}), answer(2, BEGIN_US)])
    assert len(chain.model.waiting) == 1


def test_where_no_labels_are_named_or_no_quality_is_watched_nothing_is_sent_on() -> None:
    off = "".join(
        f"    {name}: {{mode: 'off'}}\n"
        for name in (
            "accuracy", "log_loss", "brier", "calibration_error", "mae", "label_delay", "unlabelled",
            "prediction_error", "absolute_error", "estimated_accuracy", "unjudged",
        )
    )  # fmt: skip
    whole = batch([answer(1, BEGIN_US)], stamps_us=[BEGIN_US])
    assert len(pipeline(config()).process(whole).forwarded) == 1
    assert pipeline(config("defaults:\n  signals:\n" + off)).process(whole).forwarded == []
    from streamproc import rules

    nobody = rules.parse("version: 1\nkafka: {brokers: 'x:1', predictions: [p]}\n")
    assert Pipeline(RuleBook(nobody), kind="predictions", topic="p").process(whole).forwarded == []
    assert nobody.kafka.joins_topic() == ""


def test_an_observed_at_is_the_labels_time_but_for_one_in_the_far_future() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US), answer(2, BEGIN_US)])
    chain.label(
        [
            label(1, BEGIN_US + 5 * SECOND, observed_at=(BEGIN_US + 2 * SECOND) / 1e6),
            label(2, BEGIN_US + 5 * SECOND, observed_at=(BEGIN_US + 2 * DAY) / 1e6),
        ]
    )
    assert sorted(chain.model.windows.open) == [(BEGIN_US + t * SECOND) // SECOND for t in (2, 5)]


def test_many_rows_are_sent_on_in_records_well_below_what_brokers_take() -> None:
    chain = Chain()
    versions = [{"name": "fraud", "version": f"{k}-" + "☃" * 90} for k in range(MAX_ROWS)]
    (record,) = chain.predict([answer(k, BEGIN_US, model_=0) | {"model": v} for k, v in enumerate(versions)])
    assert len(record) < 600_000
    (plain,) = chain.predict([answer(k, BEGIN_US + 1) for k in range(MAX_ROWS, 2 * MAX_ROWS)])
    assert len(plain) / MAX_ROWS < 45


def test_kserves_halves_are_joined_once_both_are_there() -> None:
    chain = Chain()

    def half(side: str, body: dict[str, Any], offset: int, at_us: int) -> RecordBatch:
        attributes = {
            "specversion": "1.0", "id": "i7", "source": "http://here", "inferenceservicename": "fraud",
            "type": f"org.kubeflow.serving.inference.{side}", "time": "2026-01-05T09:00:00Z",
        }  # fmt: skip
        headers = [(f"ce_{k}", v.encode()) for k, v in attributes.items()]
        return batch([body], first=offset, stamps_us=[at_us], headers=[headers])

    assert chain.predictions.process(half("request", {"instances": [[1.0]]}, 0, BEGIN_US)).forwarded == []
    out = chain.predictions.process(half("response", {"predictions": [0.8]}, 1, BEGIN_US))
    chain.join([r for _, r in out.forwarded], BEGIN_US)
    chain.label([label(7, BEGIN_US + SECOND, True)])
    assert chain.outcomes == {"joined": 1}


# ----------------------------------------------------------------------- copies, gaps, restarts


def test_rows_sent_on_twice_however_they_were_cut_then_are_taken_once() -> None:
    chain = Chain()
    events = [answer(k, BEGIN_US + k) for k in range(40)]
    chain.predict(events)
    chain.label([label(k, BEGIN_US + SECOND) for k in range(30)])
    again = Chain()
    for start in (0, 7, 23):  # a crash before the manifest: the same log, in other batches
        again.predict(events[start : {0: 7, 7: 23, 23: 40}[start]])
    again.label([label(k, BEGIN_US + SECOND) for k in range(30)])
    before = Counter(chain.model.counts)
    chain.join(again.records, BEGIN_US + 2 * SECOND)
    assert chain.model.counts == before
    assert before["joined"] == 30
    assert before["repeated"] == 0


def test_a_record_that_was_lost_on_the_way_is_taken_when_its_copy_comes_after_later_ones() -> None:
    whole = Chain()
    for start in range(0, 40, 10):
        whole.predict([answer(k, BEGIN_US + k) for k in range(start, start + 10)])
    chain = Chain()
    first, lost, *rest = whole.records
    chain.join([first, *rest], BEGIN_US)
    assert len(chain.model.waiting) == 30
    chain.join([first, lost, *rest], BEGIN_US)
    assert len(chain.model.waiting) == 40
    assert chain.model.counts["repeated"] == 0
    assert chain.model.had == {"predictions\x1f0": [[-1, 39]]}


#: Two chunks, which the story's predictions now and then do not fit in.
STORY = QUICK.replace("max_outstanding: 3000", "max_outstanding: 1000")


def story(seed: int, n: int = 600) -> Chain:
    """Return a chain that has been through everything: drift, silence, labels late, early, doubled and strange."""
    rng = np.random.default_rng(seed)
    chain = Chain(STORY)
    waiting: list[tuple[int, dict[str, Any]]] = []
    now = BEGIN_US
    for start in range(0, n * 10, 40):
        events = []
        for k in range(start, start + 40):
            now += int(rng.exponential(0.02 if seed else 0.01) * SECOND)
            bad = 0.6 < k / n / 10 < 0.8
            score = float(rng.uniform(0.5, 1.0))
            events.append(answer(k, now, {"label": str(rng.choice(["a", "b"])), "score": score}))
            events[-1]["model"] = {"name": "fraud", "version": "2" if k > n * 5 else "1"}
            if rng.random() < 0.9:
                right = rng.random() < (0.5 if bad else score)
                truth = events[-1]["prediction"]["label"] if right else "c"
                late = 40.0 if rng.random() < 0.01 else -0.2 if rng.random() < 0.05 else rng.exponential(2.0)
                waiting.append((now + int(late * SECOND), label(k, now + int(max(late, 0) * SECOND), truth)))
            if rng.random() < 0.02:
                waiting.append((now, label(k + 10**6, now)))
            if rng.random() < 0.02:
                events.append(dict(events[-1]))
        if not 0.4 < start / n / 10 < 0.45:
            due = [e for at, e in waiting if at <= now]
            waiting = [(at, e) for at, e in waiting if at > now]
            early = rng.random() < 0.5
            if due and early:
                chain.label(due, now=now)
            chain.predict(events, now=now)
            if due and not early:
                chain.label(due, now=now)
        else:
            chain.predict(events, now=now)
        if rng.random() < 0.05:  # a worker that sends again what it had sent
            chain.join(chain.records[-3:], now)
        if rng.random() < 0.01:
            now += 6 * SECOND
    return chain


STORIES: dict[int, Chain] = {}


def told(seed: int) -> Chain:
    if seed not in STORIES:
        STORIES[seed] = story(seed)
    return STORIES[seed]


def test_the_story_has_everything_in_it() -> None:
    outcomes, alerts = told(0).outcomes + told(1).outcomes, told(0).alerts + told(1).alerts
    assert set(outcomes) == {"joined", "overdue", "unmatched", "unlabelled", "crowded_out", "repeated"}
    assert {a.signal for a in alerts} >= {"prediction_error", "label_delay", "unlabelled"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.lists(st.integers(0, 400), max_size=20), st.integers(0, 400))
def test_joins_windows_and_alerts_are_the_same_bytes_however_cut_and_wherever_restored(
    seed: int, cuts: list[int], stop: int
) -> None:
    whole, end = told(seed).log(), told(seed).stamps[-1] + 60 * SECOND
    one = pipeline(config(STORY), "quality")
    expected = feed(one, [whole]) + one.advance(end).alerts
    other, found = pipeline(config(STORY), "quality"), []
    stored: dict[str, bytes] = {}  # as the snapshot topic would have it
    for part in cut(whole, [*cuts, stop]):
        found += other.process(part).alerts
        gone = set(other.gone)
        stored |= dict(other.snapshot_models())
        for name in gone:
            stored.pop(name, None)
            other.gone.discard(name)
        if part.offsets[-1] + 1 == stop:
            manifest = other.manifest()
            other = pipeline(config(STORY), "quality")
            other.restore_manifest(orjson.loads(orjson.dumps(manifest)))
            for name, saved in stored.items():
                other.restore_model(name, saved)
            other.restored()
            assert other.gone == set()
    found += other.advance(end).alerts
    assert sorted(map(to_json, found)) == sorted(map(to_json, expected))
    assert dict(other.snapshot_models(list(other.models))) == dict(one.snapshot_models(list(one.models)))
    assert {n.partition(PART)[0] for n in stored} <= set(other.models)


def pauses(seed: int) -> Chain:
    """Return a chain in which predictions and labels stop and go on, each by itself, for longer than windows wait."""
    rng = np.random.default_rng(seed)
    chain = Chain(STORY)
    now, k = BEGIN_US, 0
    unlabelled: list[dict[str, Any]] = []
    for _ in range(60):
        events = []
        for _ in range(40):
            now += int(rng.exponential(0.05) * SECOND)
            bad = k > 1500
            events.append(answer(k, now, {"label": "a", "score": float(rng.uniform(0.5, 1.0))}))
            truth = "a" if rng.random() < (0.3 if bad else 0.9) else "c"
            unlabelled.append(label(k, now + int(rng.exponential(1.0) * SECOND), truth))
            k += 1
        chain.predict(events, now=now)
        if rng.random() < 0.8:  # else labels come later, of several at once
            now = max(now, *(e["time"] for e in unlabelled))
            chain.label(unlabelled, now=now)
            unlabelled = []
        if rng.random() < 0.2:
            now += int(rng.uniform(1, 30) * SECOND)
    return chain


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_joins_windows_and_alerts_are_the_same_bytes_whether_a_pause_is_looked_into_or_seen_by_its_end(
    seed: int, share: float
) -> None:
    # How far the clock went in a pause has to be known to both, so it is in the log, by records of another model. One
    # pipeline is given all at once: it sees of a pause no more than its end, when the next record of its own comes. The
    # other has its own records only, and looks at each of those moments.
    chain = pauses(seed)
    own, end = chain.log(), chain.stamps[-1] + 60 * SECOND
    rng = np.random.default_rng(seed)
    arrivals = [*own.timestamps_ms, end // 1000]
    looks = [
        np.sort(rng.integers(now, after, 5)).tolist() if after > now and rng.random() < share else []
        for now, after in itertools.pairwise(arrivals)  # before the next of its own comes
    ]
    (other,) = Chain(STORY).predict([answer(0, BEGIN_US, model="other")])
    values, stamps, offsets = [], [], []
    for value, now, seen in zip(own.values, own.timestamps_ms, looks, strict=True):
        offsets.append(len(values))
        values += [value, *[other] * len(seen)]
        stamps += [1000 * now, *(1000 * at for at in seen)]
    never = pipeline(config(STORY), "quality")
    whole = batch(values, stamps_us=stamps, topic="quality")
    expected = [a for a in feed(never, [whole]) + never.advance(end).alerts if a.labels["model"] == "fraud"]
    looking, found = pipeline(config(STORY), "quality"), []
    for offset, seen in zip(offsets, looks, strict=True):
        found += looking.process(whole.rows(offset, offset + 1)).alerts
        for at in seen:
            found += looking.advance(1000 * at).alerts
    found += looking.advance(end).alerts
    assert [to_json(a) for a in found] == [to_json(a) for a in expected]
    assert dict(looking.snapshot_models(["fraud"])) == dict(never.snapshot_models(["fraud"]))
    assert any(a.action == "opened" for a in found)


def test_a_full_chunk_is_stored_once_and_deleted_when_it_is_over() -> None:
    chain = Chain()
    chain.predict([answer(k, BEGIN_US + k) for k in range(CHUNK + 500)])
    names = [n for n, _ in chain.quality.snapshot_models()]
    assert names == [f"fraud{PART}0.0", "fraud"]
    chain.predict([answer(k, BEGIN_US + k) for k in range(CHUNK + 500, 2 * CHUNK - 1)])
    assert [n for n, _ in chain.quality.snapshot_models()] == ["fraud"]
    chain.label([label(k, BEGIN_US + SECOND) for k in range(CHUNK + 500)])
    chain.predict([answer(2 * CHUNK, BEGIN_US + SECOND)])
    assert chain.quality.gone == {f"fraud{PART}0.0"}
    assert [n for n, _ in chain.quality.snapshot_models()] == [f"fraud{PART}0.1", "fraud"]


def test_a_chunk_that_cannot_be_read_costs_its_predictions_and_nothing_else() -> None:
    chain = Chain()
    chain.predict([answer(k, BEGIN_US + k) for k in range(2 * CHUNK + 5)])
    stored = dict(chain.quality.snapshot_models())
    again = Chain()
    for name, data in stored.items():
        if name != f"fraud{PART}0.1":
            again.quality.restore_model(name, data)
    again.quality.restored()
    again.records, again.stamps = list(chain.records), list(chain.stamps)
    again.label([label(k, BEGIN_US + SECOND) for k in (1, CHUNK + 1, 2 * CHUNK + 1)])
    assert again.model.counts["joined"] == 2
    assert again.model.counts["crowded_out"] == CHUNK


def test_chunks_left_behind_by_an_earlier_life_of_a_model_are_deleted() -> None:
    chain = Chain()
    chain.predict([answer(k, BEGIN_US + k) for k in range(5)])
    stored = dict(chain.quality.snapshot_models())
    again = Chain()
    for name, data in {**stored, f"fraud{PART}77.3": b"x", f"other{PART}0.0": b"x", f"fraud{PART}0.9": b"sd"}.items():
        again.quality.restore_model(name, data)
    again.quality.restored()
    assert again.quality.gone == {f"fraud{PART}77.3", f"other{PART}0.0", f"fraud{PART}0.9"}


# -------------------------------------------------------------------------------- any order


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_order_of_arrival_within_the_lateness_gives_the_same_joins_and_the_same_closed_windows(
    data: Any,
) -> None:
    n = 60
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sent: list[tuple[int, str, dict[str, Any]]] = []
    for k in range(n):
        at = BEGIN_US + k * SECOND // 10
        said = {"label": "a", "score": float(rng.uniform(0.5, 1.0))}
        sent.append((at, "predictions", answer(k, at, said)))
        told_at = at + int(rng.uniform(0, 3) * SECOND)
        sent.append((told_at, "labels", label(k, told_at, "a" if rng.random() < 0.7 else "b")))
    # Each comes up to the lateness after its time; predictions and labels by topics of their own.
    delays = data.draw(st.lists(st.integers(0, 499_999), min_size=2 * n, max_size=2 * n))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=30))

    def run(order: list[tuple[int, str, dict[str, Any]]], sizes: list[int]) -> tuple[Any, ...]:
        monkeypatch = pytest.MonkeyPatch()
        chain = Chain()
        # Which classes there are is known: until it is, the order of the log decides what can be compared.
        chain.predict([answer(1000 + k, BEGIN_US - 5 * SECOND, {"label": c}) for k, c in enumerate("ab")], now=BEGIN_US)
        with monkeypatch.context() as patch:
            found = windows(chain.quality, patch)
            k = 0
            while order:
                part, order = order[: sizes[k % len(sizes)]], order[sizes[k % len(sizes)] :]
                k += 1
                for topic in ("predictions", "labels"):
                    if events := [e for _, t, e in part if t == topic]:
                        (chain.predict if topic == "predictions" else chain.label)(events, now=BEGIN_US)
            chain.quality.advance(BEGIN_US + 60 * SECOND)
        # The estimate rests on what labels have taught by then; that is the log's order, and not the window's own.
        judged = sorted(w for w in found if w[0] in ("accuracy", "log_loss", "brier", "calibration_error", "mae"))
        return chain.outcomes, [(s, round(v, 9), n, at) for s, v, n, at in judged]

    in_order = run(sorted(sent, key=lambda s: s[0]), [1])
    assert in_order[0]["joined"] == n
    shuffled = [s for _, s in sorted(zip(delays, sent, strict=True), key=lambda d: d[0] + d[1][0])]
    assert run(shuffled, sizes) == in_order


# --------------------------------------------------------------------------- against river


def test_window_values_are_those_of_rivers_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    found = windows(chain.quality, monkeypatch)
    rng = np.random.default_rng(3)
    n = 800
    accuracy: dict[int, metrics.Accuracy] = {}
    log_loss: dict[int, metrics.LogLoss] = {}
    mae: dict[int, metrics.MAE] = {}
    events, labels = [], []
    for k in range(n):
        at = BEGIN_US + k * SECOND // 100
        p = float(np.float32(rng.uniform(0, 1)))
        truth = bool(rng.random() < p)
        index = (at + SECOND) // SECOND
        if k % 2:
            said: Any = {"value": p}
            events.append(answer(k, at, said))
            labels.append(label(k, at + SECOND, truth))
            accuracy.setdefault(index, metrics.Accuracy()).update(truth, p >= 0.5)
            log_loss.setdefault(index, metrics.LogLoss()).update(truth, p)
        else:
            events.append(answer(k, at, {"value": 10 * p}))
            labels.append(label(k, at + SECOND, float(rng.uniform(0, 10))))
            mae.setdefault(index, metrics.MAE()).update(labels[-1]["value"], 10 * p)
    for start in range(0, n, 50):
        chain.predict(events[start : start + 50])
        chain.label(labels[start : start + 50])
    by_signal: dict[str, dict[int, float]] = {}
    for signal, value, _, end_us in found:
        by_signal.setdefault(signal, {})[end_us // SECOND - 1] = value
    assert len(by_signal["accuracy"]) >= 6
    for signal, oracle in (("accuracy", accuracy), ("log_loss", log_loss), ("mae", mae)):
        for index, value in by_signal[signal].items():
            assert value == pytest.approx(oracle[index].get(), rel=1e-6), signal


def test_brier_and_calibration_are_what_their_definitions_say(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    found = windows(chain.quality, monkeypatch)
    rng = np.random.default_rng(5)
    sure = rng.uniform(0.34, 1.0, 400).astype(np.float32).astype(np.float64)
    right = rng.random(400) < 0.6
    chain.predict([answer(k, BEGIN_US + k, {"label": "a", "score": float(s)}) for k, s in enumerate(sure)])
    chain.label([label(k, BEGIN_US + k, "a" if r else "b") for k, r in enumerate(right)])
    chain.predict([answer(1000, BEGIN_US + 9 * SECOND)])
    chain.label([label(1000, BEGIN_US + 9 * SECOND)])
    values = {s: v for s, v, *_ in found}
    assert values["brier"] == pytest.approx(float(((sure - right) ** 2).mean()))
    bins = np.minimum((sure * 10).astype(int), 9)
    error = sum(abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(10)) / 400
    assert values["calibration_error"] == pytest.approx(error)


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ({"label": "a"}, "a", True),
        ({"label": "a"}, "b", None),  # nothing yet says that these are of one vocabulary
        ({"label": True}, "true", True),
        ({"label": 1}, True, True),
        ({"scores": {"x": 0.2, "y": 0.8}}, "y", True),
        ({"value": 0.7}, True, True),
        ({"value": 0.7}, 0, False),
        ({"value": 0.2}, False, True),
        (0.5, 1, True),
        ({"value": 3.0}, True, None),  # no probability
        ({"value": 0.7}, 1.0, True),  # of 0 and 1, however told
        ({"value": 0.7}, 0.4, None),  # a number, for numbers
        ({"label": "a"}, 1.0, None),
    ],
)
def test_what_counts_as_right(said: Any, truth: Any, right: bool | None) -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US, said)])
    chain.label([label(1, BEGIN_US + SECOND, truth)])
    (window,) = chain.model.windows.open.values()
    assert chain.outcomes["joined"] == 1
    assert (window.answered, window.right) == ((0, 0) if right is None else (1, int(right)))  # type: ignore[attr-defined]


def test_a_wrong_answer_is_one_once_its_class_was_met_among_labels() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US, {"label": "b"}), answer(2, BEGIN_US, {"label": "a"})])
    chain.label([label(2, BEGIN_US + SECOND, "b")])
    (window,) = chain.model.windows.open.values()
    assert (window.answered, window.right) == (1, 0)  # type: ignore[attr-defined]


def test_classes_are_told_apart_and_booleans_are_one_however_written() -> None:
    assert class_hash("True") == class_hash("true") == class_hash("1") != class_hash("0")
    assert class_hash("") != 0


# ------------------------------------------------------------------------------------ signals


def steady(
    chain: Chain,
    start: int,
    n: int,
    *,
    wrong: float = 0.1,
    sure: float = 0.9,
    seed: int = 0,
    labels: bool = True,
    delay_s: float = 1.0,
) -> int:
    rng = np.random.default_rng(seed + start)
    for first in range(start, start + n, 20):
        rows = range(first, first + 20)
        chain.predict(
            [
                answer(
                    k,
                    BEGIN_US + k * SECOND // 20,
                    {"label": "a", "score": float(np.clip(rng.normal(sure, 0.02), 0, 1))},
                )
                for k in rows
            ]
        )
        if labels:
            back = int(delay_s * 20)
            chain.label(
                [label(k - back, BEGIN_US + k * SECOND // 20, "b" if rng.random() < wrong else "a") for k in rows]
            )
    return start + n


def opened(chain: Chain, since: int = 0) -> set[str]:
    return {a.signal for a in chain.alerts[since:] if a.action == "opened"}


def test_a_fall_of_accuracy_is_found_from_labels_and_says_which_predictions_it_is_of() -> None:
    chain = Chain()
    at = steady(chain, 0, 1200)
    assert opened(chain) == set()
    steady(chain, at, 400, wrong=0.6)
    assert {"prediction_error", "accuracy"} <= opened(chain)
    alert = next(a for a in chain.alerts if a.signal == "accuracy")
    begin, end = alert.annotations["predictions"].split("/")
    assert begin < end < alert.startsAt
    assert alert.evidence is not None
    assert 0 <= alert.evidence.offset_first <= alert.evidence.offset_last < len(chain.records)
    # Answers are always `a`: what is wrong would have been `b`.
    assert [(s.feature, s.share) for s in alert.attribution] == [("class=b", 1.0)]
    assert alert.summary.endswith("; class=b 100%")


def test_a_rate_of_errors_that_falls_is_no_alert_and_one_that_rises_says_from_where() -> None:
    chain = Chain()
    at = steady(chain, 0, 1200, wrong=0.5)
    at = steady(chain, at, 1200, wrong=0.05)
    assert "prediction_error" not in opened(chain)
    steady(chain, at, 1200, wrong=0.9)
    alert = next(a for a in chain.alerts if a.signal == "prediction_error" and a.action == "opened")
    assert re.search(r"prediction_error went up: it is about 0\.\d+ of late and was 0\.\d+ \(", alert.summary)
    now, was = (float(x) for x in re.findall(r"(?:about|was) (0\.\d+)", alert.summary))
    assert now > was


def test_a_fall_of_confidence_moves_the_estimate_before_any_label() -> None:
    chain = Chain()
    at = steady(chain, 0, 1200)
    steady(chain, at, 200, sure=0.6, labels=False)
    assert "estimated_accuracy" in opened(chain)
    assert "accuracy" not in opened(chain)


def test_a_model_too_sure_of_itself_is_estimated_by_how_often_it_was_right() -> None:
    chain = Chain()
    steady(chain, 0, 2000, wrong=0.3, sure=0.95)
    model = chain.model
    bins = np.zeros((2, 10))
    bins[0, 9], bins[1, 9] = 100, 95.0
    assert model._estimate(bins) == pytest.approx(0.7, abs=0.03)


def test_labels_that_stay_away_are_news_and_not_good_news() -> None:
    chain = Chain()
    at = steady(chain, 0, 1200)
    said = len(chain.alerts)
    chain.stamps = []
    for first in range(at, at + 600, 20):
        rows = range(first, first + 20)
        chain.predict([answer(k, BEGIN_US + k * SECOND // 20) for k in rows])
    assert "label_delay" in opened(chain, said)
    alert = next(a for a in chain.alerts[said:] if a.signal == "label_delay")
    assert alert.value is not None
    assert alert.value > 1.5


def test_a_share_of_labels_that_no_longer_comes_is_told() -> None:
    chain = Chain(
        QUICK.replace("max_delay: 20s", "max_delay: 100s").replace("max_outstanding: 3000", "max_outstanding: 9000")
    )
    at = steady(chain, 0, 1200)
    for first in range(at, at + 600, 20):
        rows = range(first, first + 20)
        chain.predict([answer(k, BEGIN_US + k * SECOND // 20) for k in rows])
        chain.label([label(k - 20, BEGIN_US + k * SECOND // 20) for k in rows if k % 2])
    assert "unlabelled" in opened(chain)


def test_labels_read_behind_predictions_close_no_window_before_its_time() -> None:
    """A backlog: all predictions first, then all labels; or the other way round."""
    events = [answer(k, BEGIN_US + k * SECOND // 20, {"label": "a", "score": 0.9}) for k in range(1000)]
    labels = [label(k, BEGIN_US + k * SECOND // 20 + SECOND) for k in range(1000)]
    for first, second in ((0, 1), (1, 0)):
        chain = Chain()
        steps = [(chain.predict, events), (chain.label, labels)]
        for send, rows in (steps[first], steps[second]):
            for start in range(0, 1000, 100):
                send(rows[start : start + 100], now=BEGIN_US)
        assert chain.outcomes["joined"] == 1000
        assert chain.model.windows.late == 0
        assert "label_delay" not in opened(chain)


def test_a_model_whose_predictions_ended_is_kept_until_its_labels_can_have_come() -> None:
    chain = Chain("defaults: {discover: {idle_ttl: 1d}, labels: {max_delay: 30d}}\n")
    chain.predict([answer(1, BEGIN_US)])
    chain.quality.advance(BEGIN_US + 29 * DAY)
    chain.label([label(1, BEGIN_US + 29 * DAY)])
    assert chain.outcomes == {"joined": 1}
    assert chain.quality.advance(BEGIN_US + 60 * DAY).evicted == ["fraud"]


def test_another_config_keeps_what_waits() -> None:
    chain = Chain()
    chain.predict([answer(1, BEGIN_US)])
    chain.quality.reconfigure(RuleBook(config(QUICK.replace("window: 1s", "window: 2s"))))
    chain.label([label(1, BEGIN_US + SECOND)])
    assert chain.outcomes == {"joined": 1}


def test_a_models_own_delay_and_limit_win_over_the_defaults_and_a_part_leaves_the_rest() -> None:
    book = RuleBook(
        config(
            "defaults: {labels: {max_delay: 3d, max_outstanding: 5000}}\n"
            "models:\n  - {match: {model: slow}, labels: {max_delay: 30d}}\n"
        )
    )
    slow, other = book.for_model("quality", "slow"), book.for_model("quality", "other")
    assert (slow.max_delay_us, slow.max_outstanding) == (30 * DAY, 5000)
    assert (other.max_delay_us, other.max_outstanding) == (3 * DAY, 5000)


def test_the_topic_of_joins_may_not_be_a_source() -> None:
    from streamproc import rules

    with pytest.raises(ConfigError, match="both read and written"):
        rules.parse("version: 1\nkafka: {brokers: 'x:1', predictions: [p], labels: [l], joins: p}\n")


def test_what_is_no_record_of_rows_is_a_dead_letter() -> None:
    chain = Chain()
    (good,) = chain.predict([answer(1, BEGIN_US)])
    out = chain.quality.process(
        batch(
            [b"{}", None, good[:40], bytes([good[0], 9]) + good[2:]], first=9, topic="quality", stamps_us=[BEGIN_US] * 4
        )
    )
    assert [r.error_type for r in out.rejected] == ["schema"] * 4


# ------------------------------------------------------------------------------------- memory


def test_a_million_outstanding_predictions_and_labels_thirty_days_late_fit_in_64_bytes_each() -> None:
    n = 1_000_000
    waiting = Outstanding(n + CHUNK)  # and room for a batch of labels
    rng = np.random.default_rng(1)
    keys = rng.integers(1, 1 << 63, n).astype(np.uint64)
    times = BEGIN_US + np.arange(n) * 1000
    saved = 0
    for start in range(0, n, 1000):
        own = slice(start, start + 1000)
        columns = {
            "values": np.zeros(1000), "classes": np.ones(1000, np.uint32),
            "scores": np.full(1000, 0.9, np.float32), "versions": np.zeros(1000, np.uint16),
        }  # fmt: skip
        assert not waiting.crowded(1000)
        assert (waiting.enter(0, keys=keys[own], times=times[own], **columns) == -1).all()
        saved += sum(len(dumps(tree)) for _, tree in waiting.sealed(unsaved=True))
    assert waiting.nbytes / n <= 64
    assert len(waiting) == n
    # What every snapshot writes is far from all of it, which was written once.
    assert len(dumps(waiting.snapshot())) < 300_000
    assert saved < 64 * n
    order = rng.permutation(n)  # 30 days later, in any order
    for start in range(0, n, 1000):
        some = order[start : start + 1000]
        columns["values"] = np.zeros(1000)
        found = waiting.enter(LABEL, keys=keys[some], times=times[some] + 30 * DAY, **columns)
        assert (waiting.columns["times"][found] == times[some]).all()
    assert waiting.nbytes / n <= 64
    assert math.isclose(len(waiting.waiting(0)), 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 60), min_size=1, max_size=50)), max_size=30),
    st.integers(0, 2**64 - 1),
)
def test_the_ring_finds_what_a_dict_finds(steps: list[tuple[bool, list[int]]], spread: int) -> None:
    ring = Outstanding(2 * CHUNK)
    rows: dict[int, list[Any]] = {}  # by key: side, done, place
    for label_, keys in steps:
        side = LABEL if label_ else 0
        hashes = np.array([(k * spread or k) % 2**64 or 1 for k in keys], np.uint64)
        blank = {
            n: np.zeros(len(keys), t)
            for n, t in zip(
                ("times", "values", "classes", "scores", "versions"), ("i8", "f8", "u4", "f4", "u2"), strict=True
            )
        }
        number = ring.following
        expected = []
        for key in hashes.tolist():
            row = rows.get(key)
            if row is None:
                rows[key] = [side, False, number]
                number += 1
                expected.append(-1)
            elif row[1] or row[0] == side:
                expected.append(-2)
            else:
                row[1] = True
                expected.append(row[2])
        found = ring.enter(side, keys=hashes, **blank)
        assert found.tolist() == [e if e < 0 else e % len(ring.flags) for e in expected]
        assert len(ring.waiting(0)) == sum(r[0] == 0 and not r[1] for r in rows.values())


def test_the_compiled_loop_does_what_its_python_does() -> None:
    rng = np.random.default_rng(2)
    states = []
    for run in (enter, enter.py_func):  # type: ignore[attr-defined]
        rng = np.random.default_rng(2)
        index, own, flags = np.zeros(512, np.uint32), np.zeros(256, np.uint64), np.zeros(256, np.uint8)
        first = following = 0
        out = []
        with np.errstate(over="ignore"):
            for k in range(12):
                keys = rng.integers(1, 90, 20).astype(np.uint64)
                found = np.empty(20, np.int64)
                following, taken = run(keys, LABEL * (k % 2), index, own, flags, first, following, found)
                first = max(first, following - 60)
                out.append((found.tolist(), following, taken))
        states.append((out, index.tolist(), own.tolist(), flags.tolist()))
    assert states[0] == states[1]
