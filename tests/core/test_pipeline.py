"""The answer depends on the records in the order of the log, and on nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc import reference
from streamproc.errors import SnapshotError
from streamproc.events import Alert, RecordBatch
from streamproc.pipeline import Pipeline
from tests.core.make import (
    BEGIN_US,
    SECOND,
    batch,
    config,
    cut,
    feed,
    pipeline,
    prediction,
    quick,
    state,
    story,
)

QUICK = quick()

@pytest.fixture(autouse=True, scope="module")
def learns_from_few() -> Iterator[None]:
    """Let what is learned from a model's first events be settled early in the story."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "LEARN_EVENTS", 100)
        patch.setattr(reference, "LEARN_WINDOWS", 5)
        patch.setattr(reference, "SAMPLE", 40)
        yield


#: Each example runs a stream of hundreds of events twice.
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def told(seed: int) -> RecordBatch:
    return story(seed)


@functools.cache
def undisturbed(seed: int) -> tuple[tuple[Alert, ...], tuple[tuple[str, bytes], ...]]:
    p = pipeline(config(QUICK))
    alerts = feed(p, [told(seed)])
    return tuple(alerts), tuple(sorted(state(p).items()))


def in_any_order(alerts: Any) -> list[str]:
    """Return alerts as a set would hold them: models are taken one after the other within a batch."""
    return sorted(repr(a) for a in alerts)


def test_the_story_of_these_tests_has_alerts_of_many_signals() -> None:
    signals = {a.signal for seed in range(4) for a in undisturbed(seed)[0]}
    assert {"latency_p95", "error_rate", "missing_features", "silence", "prediction_value"} <= signals
    assert {"confidence", "prediction_entropy", "new_class", "prediction_psi", "prediction_jsd"} <= signals
    assert {"duplicates", "out_of_order", "error_share:timeout", "tokens_out", "cost_per_hour"} <= signals
    assert {"unseen_category", "constant_features", "feature_drift"} <= signals
    assert any(a.action == "resolved" for a in undisturbed(0)[0])


@few
@given(seed=st.integers(0, 3), edges=st.lists(st.integers(1, 899), max_size=40))
def test_cutting_the_stream_differently_changes_no_alert_and_no_bit_of_state(
    seed: int, edges: list[int]
) -> None:
    p = pipeline(config(QUICK))
    alerts = feed(p, cut(told(seed), edges))
    assert in_any_order(alerts) == in_any_order(undisturbed(seed)[0])
    assert tuple(sorted(state(p).items())) == undisturbed(seed)[1]


def test_one_record_at_a_time_changes_no_alert_and_no_bit_of_state() -> None:
    p = pipeline(config(QUICK))
    alerts = feed(p, cut(told(1), range(900)))
    assert in_any_order(alerts) == in_any_order(undisturbed(1)[0])
    assert tuple(sorted(state(p).items())) == undisturbed(1)[1]


@few
@given(seed=st.integers(0, 3), at=st.integers(1, 899), back=st.integers(0, 300))
def test_snapshot_and_restore_at_any_point_go_on_to_the_bit(seed: int, at: int, back: int) -> None:
    whole = told(seed)
    first = pipeline(config(QUICK))
    before = feed(first, cut(whole, [at])[:1])
    second = pipeline(config(QUICK))
    second.restore_manifest(first.manifest())
    for name, data in first.snapshot_models(list(first.models)):
        second.restore_model(name, data)
    second.restored()
    # Read again from further back, as after a crash: the fence passes over what the state has seen.
    again = cut(whole, [max(0, at - back)])[-1]
    outs = [second.process(again)]
    assert outs[0].fenced == (min(at, back) if at > back else at)
    after = [a for o in outs for a in o.alerts]
    assert in_any_order([*before, *after]) == in_any_order(undisturbed(seed)[0])
    assert tuple(sorted(state(second).items())) == undisturbed(seed)[1]


def test_a_snapshot_between_two_batches_changes_nothing() -> None:
    p = pipeline(config(QUICK))
    alerts = []
    for piece in cut(told(2), range(0, 900, 37)):
        alerts += p.process(piece).alerts
        list(p.snapshot_models())
    assert in_any_order(alerts) == in_any_order(undisturbed(2)[0])


def test_only_models_that_changed_are_written() -> None:
    p = pipeline(config(QUICK))
    p.process(batch([prediction(BEGIN_US, "a"), prediction(BEGIN_US, "b")]))
    assert [n for n, _ in p.snapshot_models()] == ["a", "b"]
    p.process(batch([prediction(BEGIN_US, "b")], first=2))
    assert [n for n, _ in p.snapshot_models()] == ["b"]
    assert list(p.snapshot_models()) == []


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty", "other version"])
def test_a_damaged_state_is_refused_by_name(damage: str) -> None:
    p = pipeline(config(QUICK))
    p.process(batch([prediction(BEGIN_US)]))
    data = state(p)["fraud"]
    if damage == "other version":
        from detectors import state as codec

        data = codec.dumps({**codec.loads(data), "version": 99})
    else:
        data = {"cut off": data[:-9], "flipped": data[:20] + bytes([data[20] ^ 1]) + data[21:], "empty": b""}[
            damage
        ]
    with pytest.raises(SnapshotError, match="state of fraud"):
        pipeline(config(QUICK)).restore_model("fraud", data)


# ----------------------------------------------------------------------------- order and lateness


def closed(order: list[int], times: list[int]) -> list[tuple[int, int]]:
    """Return index and count of the windows that close, in order, for events arriving so."""
    p = pipeline(config(QUICK))
    seen: list[tuple[int, int]] = []
    flush = prediction(BEGIN_US + 60 * SECOND)
    p.process(batch([prediction(BEGIN_US)]))
    model = p.models["fraud"]
    close = model.windows.close
    model.windows.close = lambda: [seen.append((w.index, w.count)) or w for w in close()]  # type: ignore[method-assign,func-returns-value]
    p.process(batch([prediction(times[i]) for i in order], first=1))
    p.process(batch([flush], first=1 + len(order)))
    return seen


@few
@given(data=st.data(), n=st.integers(2, 60))
def test_any_order_of_arrival_within_the_lateness_closes_the_same_windows(data: Any, n: int) -> None:
    gaps = data.draw(st.lists(st.integers(0, 400_000), min_size=n, max_size=n))
    times = [int(t) for t in BEGIN_US + np.cumsum(gaps)]
    # Each event is held up by at most the lateness: it then arrives after none that is further ahead.
    delays = data.draw(st.lists(st.integers(0, 499_999), min_size=n, max_size=n))
    order = sorted(range(n), key=lambda i: times[i] + delays[i])
    assert closed(order, times) == closed(list(range(n)), times)


def test_an_event_is_late_once_its_window_has_closed_and_is_counted() -> None:
    p = pipeline(config(QUICK))
    ahead = [BEGIN_US, BEGIN_US + 1_499_999, BEGIN_US + 1, BEGIN_US + 1_500_000, BEGIN_US + 2]
    out = p.process(batch([prediction(t) for t in ahead]))
    assert (out.events, out.late) == (5, 1)  # at 1.5 s the window of the first second is over


def test_a_late_event_is_in_no_window() -> None:
    times = [BEGIN_US + s * SECOND for s in (0, 1, 2, 3)]
    with_late = [*times, BEGIN_US + 100]
    assert closed([0, 1, 2, 3, 4], with_late) == closed([0, 1, 2, 3], times)


# ----------------------------------------------------------------------------- idleness and silence


def steady(n: int, *, model: str = "fraud", first: int = 0, rate: int = 10) -> RecordBatch:
    rng = np.random.default_rng(5)
    times = BEGIN_US + np.cumsum(rng.integers(SECOND // rate // 2, 3 * SECOND // rate // 2, n))
    return batch(
        [prediction(int(t), model, duration_s=0.1) for t in times],
        first=first,
        stamps_us=[int(t) for t in times],
    )


def test_a_model_that_falls_silent_has_its_last_window_closed_by_the_clock() -> None:
    p = pipeline(config(QUICK))
    p.process(steady(100))
    windows = p.models["fraud"].windows
    assert windows.open
    p.advance(p.clock_us + 60 * SECOND)
    assert not windows.open


def test_the_clock_of_another_model_closes_an_idle_models_windows() -> None:
    p = pipeline(config(QUICK))
    p.process(steady(100))
    at = p.clock_us + 61 * SECOND
    p.process(batch([prediction(at, "other")], first=100, stamps_us=[at]))
    assert p.models["fraud"].windows.open  # one record may be of a host whose clock is ahead
    p.process(batch([prediction(at, "other")] * 2, first=101, stamps_us=[at, at]))
    assert not p.models["fraud"].windows.open


def silence_story(how: str) -> list[Alert]:
    p = pipeline(config(QUICK))
    whole = steady(200)
    alerts = feed(p, [whole])
    pause = 60 * SECOND
    if how == "clock":
        for second in range(1, 60):
            alerts += p.advance(whole.timestamps_ms[-1] * 1000 + second * SECOND).alerts
    elif how == "other model":
        for i in range(1, 60):
            at = whole.timestamps_ms[-1] * 1000 + i * SECOND
            alerts += p.process(batch([prediction(at, "other")], first=200 + i, stamps_us=[at])).alerts
    back = whole.timestamps_ms[-1] * 1000 + pause
    alerts += p.process(batch([prediction(back, duration_s=0.1)], first=300, stamps_us=[back])).alerts
    return [a for a in alerts if a.signal == "silence" and a.labels["model"] == "fraud"]


@pytest.mark.parametrize("how", ["clock", "other model"])
def test_silence_shown_by_the_clock_or_by_the_next_event_gives_the_same_alerts(how: str) -> None:
    alerts = silence_story("next event")
    assert [a.action for a in alerts] == ["opened", "resolved"]
    assert silence_story(how) == alerts


def test_a_drop_to_nothing_is_seen_without_waiting_for_the_recovery() -> None:
    p = pipeline(config(QUICK))
    p.process(steady(200))
    opened = p.advance(p.clock_us + 60 * SECOND).alerts
    assert {"silence", "throughput"} <= {a.signal for a in opened}


# ----------------------------------------------------------------------------- bounds


def test_series_are_bounded_and_the_live_are_not_pushed_out() -> None:
    p = pipeline(config(QUICK), max_series=3)
    out = p.process(batch([prediction(BEGIN_US, f"m{i}") for i in range(10)]))
    assert (len(p.models), out.refused, out.events) == (3, 7, 3)


def test_a_quiet_model_makes_room_for_a_newcomer() -> None:
    p = pipeline(config(QUICK), max_series=2)
    p.process(batch([prediction(BEGIN_US, "old"), prediction(BEGIN_US, "young")]))
    later = BEGIN_US + 601 * SECOND
    p.process(batch([prediction(later, "young")], first=2, stamps_us=[later]))
    out = p.process(batch([prediction(later, "new")], first=3, stamps_us=[later]))
    assert out.evicted == ["old"]
    assert set(p.models) == {"young", "new"}
    assert p.gone == {"old"}


def test_an_idle_model_is_forgotten_after_its_time() -> None:
    p = pipeline(config(QUICK.replace("defaults:\n", "defaults:\n  discover: {idle_ttl: 1h}\n")))
    p.process(steady(100))
    assert p.advance(p.clock_us + 3_599 * SECOND).evicted == []
    assert p.advance(p.clock_us + 2 * SECOND).evicted == ["fraud"]
    assert not p.models


def test_a_forgotten_models_alerts_are_resolved() -> None:
    p = pipeline(config(QUICK.replace("defaults:\n", "defaults:\n  discover: {idle_ttl: 30s}\n")))
    p.process(steady(200))
    alerts = p.advance(p.clock_us + 3600 * SECOND).alerts
    open_ = {a.fingerprint for a in alerts if a.action == "opened"}
    assert open_ == {a.fingerprint for a in alerts if a.action == "resolved"}


def test_class_names_are_bounded() -> None:
    p = pipeline(config(QUICK.replace("defaults:\n", "defaults:\n  max_classes: 5\n")))
    p.process(batch([prediction(BEGIN_US, prediction=f"c{i}") for i in range(50)]))
    (window,) = p.models["fraud"].windows.open.values()
    assert len(window.classes) == 6
    assert window.classes["(other)"] == 45


def test_a_model_nobody_wants_watched_is_refused() -> None:
    p = pipeline(config("defaults: {discover: {models: 'fraud-*'}}"))
    out = p.process(batch([prediction(BEGIN_US, "fraud-eu"), prediction(BEGIN_US, "churn")]))
    assert (out.events, out.refused, out.ignored) == (1, 0, {"model not to be watched": 1})


# ----------------------------------------------------------------------------- another config


def learned(p: Pipeline) -> dict[tuple[str, str, str], Any]:
    """Return what each detector knows, by model, signal and detector."""
    from detectors import state as codec

    return {
        (name, signal, detector): codec.dumps(watch.detector.snapshot())
        for name, model in p.models.items()
        for (signal, detector), watch in model.watches.items()
    }


def after_reconfigure(extra: str) -> tuple[dict[tuple[str, str, str], Any], dict[tuple[str, str, str], Any]]:
    from streamproc.rules import RuleBook

    p = pipeline(config(QUICK))
    feed(p, [told(0)])
    before = learned(p)
    p.reconfigure(RuleBook(config(extra)))
    return before, learned(p)


@pytest.mark.parametrize(
    "said", ["sensitivity: high", "sensitivity: low", "severity: info", "direction: down", "min_effect: 1s", "for: 1h",
             "breaches: 4/5", "mode: shadow"]
)  # fmt: skip
def test_a_change_of_judgement_keeps_all_that_was_learned(said: str) -> None:
    key, _, value = said.partition(": ")
    before, after = after_reconfigure(quick(latency_p95={"params": {"warm_up": 5, "window": 20}, key: value}))
    assert after == before


@pytest.mark.parametrize("level", ["low", "high"])
def test_a_change_of_sensitivity_never_changes_learned_state(level: str) -> None:
    """Not at the change, and not by what is learned after it."""
    states = {}
    for name in ("medium", level):
        p = pipeline(config(QUICK.replace("defaults:\n", f"defaults:\n  sensitivity: {name}\n")))
        feed(p, [told(0)])
        states[name] = learned(p)
    assert states["medium"] == states[level]


def test_a_change_of_structure_warms_that_detector_anew_and_no_other() -> None:
    before, after = after_reconfigure(quick(latency_p95={"params": {"warm_up": 5, "window": 33}}))
    gone = {k for k in before if k not in after}
    assert gone == {("m0", "latency_p95", "robust_z"), ("m1", "latency_p95", "robust_z")}
    assert all(after[k] == before[k] for k in after)


def test_a_restore_under_a_changed_structure_warms_anew_and_keeps_the_rest() -> None:
    p = pipeline(config(QUICK))
    feed(p, [told(0)])
    before = learned(p)
    q = pipeline(config(quick(latency_p95={"params": {"warm_up": 5, "window": 33}})))
    for name, data in state(p).items():
        q.restore_model(name, data)
    after = learned(q)
    changed = {k for k in before if after[k] != before[k]}
    assert {k[1] for k in changed} == {"latency_p95"}


def test_a_change_of_the_window_begins_anew() -> None:
    from streamproc.rules import RuleBook

    p = pipeline(config(QUICK))
    feed(p, [told(0)])
    p.reconfigure(RuleBook(config(QUICK.replace("window: 1s", "window: 2s", 1))))
    assert {signal for _, signal, _ in learned(p)} <= {"feature_outlier"}
    later = steady(200, model="m0", first=900)
    assert p.process(later).events == 200


# ----------------------------------------------------------------------------- other kinds


def test_telemetry_is_watched_metric_by_metric() -> None:
    rng = np.random.default_rng(1)
    events = [
        {"name": name, "value": float(rng.normal(10 if name == "depth" and i > 250 else 0)), "model": "m",
         "time": BEGIN_US + i * SECOND // 10}
        for i in range(300)
        for name in ("depth", "age")
    ]  # fmt: skip
    p = pipeline(config(QUICK), "telemetry")
    alerts = feed(p, [batch(events, topic="telemetry")])
    assert {a.signal for a in alerts if a.action == "opened"} == {"metric:depth"}


def test_labels_are_watched_by_their_share() -> None:
    rng = np.random.default_rng(1)
    events = [
        {"prediction_id": str(i), "label": "a" if rng.random() < (0.1 if i > 1500 else 0.9) else "b", "model": "m",
         "time": BEGIN_US + i * SECOND // 30}
        for i in range(2000)
    ]  # fmt: skip
    p = pipeline(config(quick(label_share={"params": {"warm_up": 5, "window": 20}})), "labels")
    alerts = feed(p, [batch(events, stamps_us=[e["time"] for e in events], topic="labels")])
    assert {"label_share:a", "label_share:b"} <= {a.signal for a in alerts if a.action == "opened"}


def test_copies_of_a_rekeyed_record_count_once() -> None:
    headers = [[("streamproc.origin", f"3:{o}".encode())] for o in (5, 6, 5, 6, 7)]
    p = pipeline(config(QUICK), deduplicate=True)
    out = p.process(batch([prediction(BEGIN_US)] * 5, headers=headers))
    assert (out.events, out.fenced) == (3, 2)
