"""Each fault makes its own signal fire, with plausible neighbours and nothing else."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import state as codec
from streamproc.events import Alert
from streamproc.pipeline import Pipeline
from streamproc.reference import (
    BINS,
    LEARN_EVENTS,
    LEARN_WINDOWS,
    MAX_WORDS,
    Bins,
    Lately,
    Period,
    Reference,
    Vocabulary,
    jsd,
    psi,
)
from streamproc.signals import SIGNALS
from streamproc.windows import Accumulator
from tests.core.make import BEGIN_US, SECOND, batch, config, cut, feed, pipeline, prediction

RATE = 20  # a second
WINDOWS = 60  # of ten seconds; the last ten are faulty
EACH = 10 * RATE
FROM = 50 * EACH

Fault = Callable[[dict[str, Any], int, np.random.Generator], None]


def calm(i: int, rng: np.random.Generator) -> dict[str, Any]:
    share = float(rng.beta(8, 1))
    label = "no" if rng.random() < 0.7 else "yes" if rng.random() < 0.8 else "maybe"
    scores = dict.fromkeys(("no", "yes", "maybe"), (1 - share) / 2) | {label: share}
    event = prediction(
        BEGIN_US + i * SECOND // RATE,
        prediction={"value": float(rng.normal(10, 2)), "label": label, "scores": scores},
        duration_s=float(rng.lognormal(-3, 0.3)),
        id=f"id-{i}",
        features={
            "amount": float(rng.lognormal(3, 0.5)),
            "age": float(rng.normal(40, 10)),
            "flag": bool(rng.random() < 0.3),
            "fixed": 3.0,
            "rare": float(rng.random() < 0.01),
            "country": str(rng.choice(["de", "fr", "us"])),
            "user": f"u{rng.integers(10**9)}",
            "note": None if rng.random() < 0.2 else "x",
        },
    )
    event["usage"] = {
        "input_tokens": int(rng.integers(400, 600)), "output_tokens": int(rng.integers(100, 300)), "cost": 0.002
    }  # fmt: skip
    if rng.random() < 0.02:
        event["error"] = {"type": str(rng.choice(["timeout", "quota"]))}
    return event


def null_feed(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["features"]["age"] = None


def wrong_type(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["features"]["age"] = "forty"


def other_unit(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["features"]["amount"] *= 1000


def unseen_category(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    if rng.random() < 0.3:
        event["features"]["country"] = "DE"


def stuck(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["features"]["age"] = 41.5


def drifted(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["features"]["age"] += 12


def class_collapse(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["prediction"]["label"] = "no"


def new_class(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    if rng.random() < 0.03:
        event["prediction"]["label"] = "unheard-of"


def confidence_drop(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["prediction"]["scores"] = {"no": 0.4, "yes": 0.3, "maybe": 0.3}


def shifted_answers(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["prediction"]["value"] += 4


def duplicate_feed(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        back = int(rng.integers(1, 50))
        event["id"], event["time"] = f"id-{i - back}", event["time"] - back * SECOND // RATE


def out_of_order_feed(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        event["time"] -= 20 * SECOND


def latency_step(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["duration_s"] *= 3


def one_error_type(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        event["error"] = {"type": "rate_limit"}


def long_answers(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["usage"] = {"input_tokens": 500, "output_tokens": 400, "cost": 0.004}


def other_logic(event: dict[str, Any], i: int, rng: np.random.Generator) -> None:
    event["prediction"]["value"] = 10 + 0.2 * (event["features"]["age"] - 40)


LATENCIES = {"latency_p50", "latency_p95", "latency_p99"}

#: The fault, the signals that must fire, and those that may.
FAULTS: dict[Fault, tuple[set[str], set[str]]] = {
    null_feed: ({"missing_features"}, set()),
    wrong_type: ({"invalid_features"}, set()),
    other_unit: ({"feature_range", "feature_drift"}, {"feature_outlier"}),
    unseen_category: ({"unseen_category"}, set()),
    stuck: ({"constant_features", "feature_drift"}, {"feature_outlier"}),
    drifted: ({"feature_drift"}, {"feature_outlier", "feature_range"}),
    class_collapse: ({"class_share:no", "class_share:yes", "prediction_psi"}, {"class_share:maybe"}),
    new_class: ({"new_class"}, {"class_share:unheard-of"}),
    confidence_drop: ({"confidence", "prediction_entropy"}, set()),
    shifted_answers: ({"prediction_psi", "prediction_value"}, set()),
    other_logic: ({"prediction_correlation"}, set()),
    duplicate_feed: ({"duplicates"}, set()),
    out_of_order_feed: ({"out_of_order"}, {"throughput"}),
    latency_step: (LATENCIES, set()),
    one_error_type: ({"error_rate", "error_share:rate_limit"}, set()),
    long_answers: ({"tokens_out", "cost_per_request", "cost_per_hour"}, set()),
}

#: What an alert says carries it.
CARRIED = {
    null_feed: "age",
    wrong_type: "age",
    other_unit: "amount",
    unseen_category: "country",
    stuck: "age",
    drifted: "age",
    other_logic: "age",
}

CONFIG = "defaults: {window: 10s, lateness: 5s, resolve_after: 1m, min_samples: 20}\n"


@functools.cache
def run(fault: Fault | None, seed: int = 1, extra: str = "") -> tuple[Alert, ...]:
    rng, odd = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    events = []
    for i in range(WINDOWS * EACH):
        event = calm(i, rng)
        if fault is not None and i >= FROM:
            fault(event, i, odd)
        events.append(event)
    stamps = [BEGIN_US + i * SECOND // RATE for i in range(len(events))]
    whole = batch(events, stamps_us=stamps, keys=[b"fraud"] * len(events))
    return tuple(feed(pipeline(config(CONFIG + extra)), cut(whole, range(0, len(events), 1000))))


@pytest.mark.parametrize("seed", range(4))
def test_nothing_fires_on_a_calm_stream(seed: int) -> None:
    assert [a.summary for a in run(None, seed)] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_fires_its_signal_and_only_plausible_neighbours(fault: Fault) -> None:
    must, may = FAULTS[fault]
    opened = [a for a in run(fault) if a.action == "opened"]
    found = {a.signal for a in opened}
    assert must <= found
    assert found <= must | may
    assert len(opened) == len({a.fingerprint for a in opened})


@pytest.mark.parametrize("fault", CARRIED, ids=lambda f: f.__name__)
def test_an_alert_on_features_names_the_ones_that_carry_it(fault: Fault) -> None:
    for alert in run(fault):
        if alert.action == "opened" and alert.signal in FAULTS[fault][0]:
            assert alert.attribution[0].feature == CARRIED[fault]
            assert alert.attribution[0].share > 0.8
            assert f"{CARRIED[fault]} " in alert.summary
            assert sum(s.share for s in alert.attribution) <= 1.0001


def test_an_alert_on_errors_names_their_types() -> None:
    (alert,) = [a for a in run(one_error_type) if a.signal == "error_rate" and a.action == "opened"]
    assert alert.attribution[0].feature == "error.type=rate_limit"
    assert 0.8 < alert.attribution[0].share <= sum(s.share for s in alert.attribution) <= 1.0001
    assert "; error.type=rate_limit " in alert.summary


def test_an_alert_says_what_it_has_cost() -> None:
    def of(alerts: tuple[Alert, ...], signal: str) -> Alert:
        return [a for a in alerts if a.signal == signal and a.impact is not None and a.action == "opened"][-1]

    untold, told = run(one_error_type), run(one_error_type, extra="models: [{match: {}, cost_per_affected: 0.25}]\n")
    for alerts, each in ((untold, None), (told, 0.25)):
        impact = of(alerts, "error_rate").impact
        assert impact is not None
        assert impact.events > 0
        assert impact.cost == (None if each is None else each * impact.events)
    # Of what is spent the unusual part, whatever the config says.
    hourly = of(run(long_answers), "cost_per_hour")
    assert hourly.impact is not None
    assert hourly.effect is not None
    assert hourly.impact.cost == pytest.approx(hourly.effect * hourly.impact.duration_s / 3600)
    each_one = of(run(long_answers), "cost_per_request")
    assert each_one.impact is not None
    assert each_one.effect == pytest.approx(0.002, rel=0.1)
    assert each_one.impact.cost == pytest.approx(each_one.effect * each_one.impact.events, abs=1e-6)


# ----------------------------------------------------------------------------- what is off, or not there


def test_a_signal_that_is_off_or_has_nothing_to_go_by_keeps_nothing() -> None:
    def kept(extra: str, **fields: Any) -> tuple[Pipeline, dict[str, Any]]:
        p = pipeline(config(extra))
        times = [BEGIN_US + i * SECOND for i in range(700)]
        p.process(batch([{**prediction(t), "id": "", **fields} for t in times], stamps_us=times))
        return p, p.models["fraud"].snapshot()["own"]

    p, own = kept("")
    signals = {signal for signal, _ in p.models["fraud"].watches}
    assert not signals & {
        "confidence", "prediction_entropy", "new_class", "duplicates", "feature_range", "unseen_category",
        "constant_features", "feature_drift", "missing_features",
    }  # fmt: skip
    assert own["baseline"]["numbers"] is own["baseline"]["words"] is None
    everything = {"features": {"x": 1.0, "c": "a"}, "id": "7", "prediction": {"label": "a", "scores": [0.5, 0.5]}}
    said = ", ".join(
        f"{name}: {{mode: 'off'}}"
        for name in ("confidence", "prediction_entropy", "new_class", "prediction_psi", "error_share", "duplicates",
                     "out_of_order", "feature_range", "unseen_category", "constant_features", "feature_drift")
    )  # fmt: skip
    _, off = kept(f"defaults: {{signals: {{{said}}}}}", **everything)
    assert off["baseline"]["numbers"] is off["baseline"]["words"] is None
    assert off["lately"] == Lately().snapshot()[:2] + off["lately"][2:]
    assert off["arrived"] == []
    assert off["baseline"]["classes"] == {}
    _, on = kept("", **everything)
    assert on["baseline"]["numbers"] is not None
    assert on["baseline"]["classes"] == {"a": LEARN_EVENTS + 100}


def test_a_score_alone_is_the_answer_and_beside_a_label_its_confidence() -> None:
    def signals(answer: dict[str, Any]) -> set[str]:
        p = pipeline(config("defaults: {window: 10s}"))
        times = [BEGIN_US + i * SECOND // 10 for i in range(1200)]
        p.process(batch([prediction(t, prediction=answer) for t in times], stamps_us=times))
        return {signal for signal, _ in p.models["fraud"].watches} & {"confidence", "prediction_entropy"}

    assert signals({"score": 0.3}) == set()
    assert signals({"score": 0.3, "label": "a"}) == {"confidence"}
    assert signals({"scores": {"a": 0.3, "b": 0.7}}) == {"confidence", "prediction_entropy"}
    assert signals({"scores": [3.0, -1.0]}) == set()  # no shares: logits


def test_a_first_error_of_a_type_is_measured_by_its_absence_before() -> None:
    (alert,) = [a for a in run(one_error_type) if a.signal == "error_share:rate_limit" and a.action == "opened"]
    assert alert.expected is not None
    assert alert.expected.value == 0.0


# ----------------------------------------------------------------------------- the parts


@given(cuts=st.lists(st.integers(0, 30), max_size=40), spacing=st.integers(1, 4_000_000))
@settings(max_examples=60, deadline=None)
def test_a_period_ends_at_the_same_event_however_it_is_cut(cuts: list[int], spacing: int) -> None:
    progress = BEGIN_US + spacing * np.arange(sum(cuts) + 800, dtype=np.int64)
    whole, parts, taken, at = Period(), Period(), 0, 0
    expected = whole.take(progress, SECOND)
    for n in [*cuts, 800]:
        if n:
            taken += parts.take(progress[at : at + n], SECOND)
            at += n
    assert taken == expected
    assert parts.snapshot() == whole.snapshot()
    assert expected == min(len(progress), max(LEARN_EVENTS, -(-LEARN_WINDOWS * SECOND // spacing)))


def test_psi_is_its_textbook_value_less_chance_and_nothing_by_chance() -> None:
    assert psi(np.array([[50_000, 50_000]]), np.array([[90_000, 10_000]]))[0] == pytest.approx(0.8789, abs=1e-3)
    assert jsd(np.array([[50_000, 50_000]]), np.array([[50_000, 50_000]]))[0] == pytest.approx(0.0, abs=1e-9)
    assert jsd(np.array([[10**9, 0]]), np.array([[0, 10**9]]))[0] == pytest.approx(1.0, abs=1e-6)
    rng = np.random.default_rng(1)
    for columns in (1, 10, 100):
        by_size = {}
        for n in (60, 600):
            drawn = [
                psi(rng.multinomial(600, [0.1] * 10, columns), rng.multinomial(n, [0.1] * 10, columns)).max()
                for _ in range(200)
            ]
            by_size[n] = np.quantile(drawn, 0.5)
        # Windows of any size have the same middle: a night with few events is no drift.
        assert abs(by_size[60] - by_size[600]) < 0.08


def test_a_reference_tells_a_rare_value_of_few_from_the_common_one() -> None:
    reference = Reference(1)
    reference.learn(np.array([[0.0]] * 600 + [[1.0]] * 0 + [[2.0]] * 10)[np.random.default_rng(1).permutation(610)])
    reference.settle()
    same, more = Bins.empty(1), Bins.empty(1)
    everything = np.ones(1000, bool)
    reference.count(same, np.array([[0.0]] * 984 + [[2.0]] * 16), everything)
    reference.count(more, np.array([[0.0]] * 700 + [[2.0]] * 300), everything)
    assert reference.psi(same)[0] < 0.05
    assert reference.psi(more)[0] > 0.5
    assert same.counts.shape == (1, BINS)


def test_values_are_counted_to_the_bin_as_searching_would() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(2000, 3)).round(1)
    values[rng.random(values.shape) < 0.1] = np.nan
    reference, own = Reference(3), rng.random(2000) < 0.5
    reference.learn(values[:1000])
    reference.settle()
    bins = Bins.empty(3)
    reference.count(bins, values, own)
    for j in range(3):
        x = values[own, j]
        x = x[~np.isnan(x)]
        found = np.bincount(np.searchsorted(reference.edges[j], x, side="right"), minlength=BINS)
        assert bins.counts[j].tolist() == found.tolist()
        assert bins.outside[j] == ((x < reference.low[j]) | (x > reference.high[j])).sum()
        assert (bins.lows[j], bins.highs[j]) == (x.min(), x.max())


def test_a_vocabulary_is_bounded_and_gives_up_what_has_no_end() -> None:
    words = Vocabulary(3)
    rng = np.random.default_rng(1)
    learned = np.column_stack((rng.integers(0, 5, 800), np.arange(800), rng.integers(0, MAX_WORDS, 800))).astype(float)
    words.learn(learned)
    assert words.known.tolist() == [5, MAX_WORDS + 1, MAX_WORDS]
    seen, unseen = np.zeros((2, 3), np.int64)
    shown = np.array([[1.0, -1.0, 3.0], [7.0, 5.0, np.nan], [-0.0, 5.0, 99.0]])
    words.count(shown, np.array([True, True, True]), seen, unseen)
    assert (seen.tolist(), unseen.tolist()) == ([3, 0, 2], [1, 0, 1])
    many = Vocabulary(1000)
    many.learn(rng.integers(0, 40, (500, 1000)).astype(float))
    assert many.table.nbytes <= 32_768
    assert many.room == 0


@given(seed=st.integers(0, 100), cuts=st.lists(st.integers(0, 400), max_size=12))
@settings(max_examples=30, deadline=None)
def test_ids_seen_lately_are_told_however_the_stream_is_cut(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    fresh = rng.integers(1, 2**63, 5000).astype(np.uint64)
    ids = fresh.copy()
    back = np.nonzero(rng.random(5000) < 0.1)[0]
    ids[back] = ids[np.maximum(back - rng.integers(1, 40, len(back)), 0)]
    ids[rng.random(5000) < 0.05] = 0
    before: set[int] = set()
    expected = []
    for i in ids.tolist():
        expected.append(i != 0 and i in before)
        before.add(i)
    whole, parts = Lately(), Lately()
    found = whole.recall(ids)
    assert (found != np.array(expected)).sum() <= 12  # sixteen bits are not all
    edges = [0, *sorted(cuts), len(ids)]
    pieces = [parts.recall(ids[a:b]) for a, b in itertools.pairwise(edges)]
    assert np.concatenate(pieces).tolist() == found.tolist()
    assert codec.dumps({"s": parts.snapshot()}) == codec.dumps({"s": whole.snapshot()})
    assert whole.young.nbytes + whole.old.nbytes <= 8192


def test_no_window_keeps_more_for_more_events() -> None:
    sizes = []
    for n in (600, 6000):
        p = pipeline(config("defaults: {window: 1h}"))
        rng = np.random.default_rng(1)
        p.process(batch([{**calm(i, rng), "time": BEGIN_US} for i in range(n)]))
        (window,) = p.models["fraud"].windows.open.values()
        assert isinstance(window, Accumulator)
        sizes.append(len(codec.dumps(p.models["fraud"].snapshot())))
    assert sizes[1] - sizes[0] < 15_000


def test_every_new_signal_is_documented() -> None:
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "signals.md").read_text()
    assert [n for n in SIGNALS if f"`{n}" not in text] == []


def test_every_signal_that_says_it_is_a_share_is_one() -> None:
    shares = {name for name, spec in SIGNALS.items() if spec.share}
    assert {name for name, spec in SIGNALS.items() if spec.summary.startswith("share of")} <= shares
    assert {"accuracy", "confidence", "estimated_accuracy", "calibration_error"} <= shares
    assert not shares & {"throughput", "latency_p95", "mae", "log_loss", "metric", "cost_per_day", "evaluation"}
