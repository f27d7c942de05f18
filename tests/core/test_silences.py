"""Silences hide alerts and lose none; feedback changes what it says it changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.protocol import Damped
from detectors.state import dumps
from streamproc.errors import ConfigError
from streamproc.events import Alert, Feedback, RecordBatch, rfc3339
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from streamproc.silences import Silence
from tests.core.make import (
    BEGIN_US,
    SECOND,
    batch,
    check_cut_and_restored,
    config,
    cut,
    feed,
    pipeline,
    prediction,
    quick,
    state,
)

N = 1500


def story(bad: tuple[int, int] = (60, 90), n: int = N, *, by: float = 6.0) -> RecordBatch:
    """Return ten predictions a second whose values are shifted between two seconds."""
    rng = np.random.default_rng(8)
    stamps = [BEGIN_US + i * SECOND // 10 for i in range(n)]
    return batch(
        [
            prediction(at, id=str(i), prediction=float(rng.normal() + (by if bad[0] <= i / 10 < bad[1] else 0.0)))
            for i, at in enumerate(stamps)
        ],
        stamps_us=stamps,
    )


def silenced(start: float, end: float, more: str = "", *, match: str = "model: fraud") -> str:
    first, last = (rfc3339(BEGIN_US + int(s * SECOND)) for s in (start, end))
    return quick() + f"silences:\n  - {{match: {{{match}}}, from: {first}, to: {last}, reason: migration{more}}}\n"


def of(alerts: list[Alert], signal: str = "prediction_value", detector: str = "robust_z") -> list[Alert]:
    return [a for a in alerts if a.signal == signal and a.detector.name == detector]


def told(alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(a.action, a.suppressed_by) for a in alerts if a.action != "updated"]


def test_without_a_silence_the_story_has_one_alert() -> None:
    assert told(of(feed(pipeline(config(quick())), [story()]))) == [("opened", ""), ("resolved", "")]


def test_an_alert_within_a_silence_is_published_and_says_why_nobody_is_told() -> None:
    found = of(feed(pipeline(config(silenced(50, 140))), [story()]))
    assert told(found) == [("opened", "migration"), ("resolved", "migration")]


def test_what_still_fires_when_a_silence_ends_opens_for_all_to_see() -> None:
    found = of(feed(pipeline(config(silenced(50, 65))), [story((60, 150))]))
    assert told(found)[:2] == [("opened", "migration"), ("opened", "")]
    hidden, shown = [a for a in found if a.action == "opened"]
    assert hidden.episode_id == shown.episode_id
    assert hidden.id != shown.id
    assert shown.annotations["silenced"] == "migration"
    assert shown.lastReceived == rfc3339(BEGIN_US + 65 * SECOND)


def test_what_opened_before_a_silence_is_resolved_for_all_to_see() -> None:
    found = of(feed(pipeline(config(silenced(70, 140))), [story()]))
    assert told(found) == [("opened", ""), ("resolved", "")]


def test_a_silence_is_for_what_it_matches_alone() -> None:
    for match in ("model: other", "signal: latency_p95", "segment: country=DE"):
        found = of(feed(pipeline(config(silenced(50, 140, match=match))), [story()]))
        assert told(found) == [("opened", ""), ("resolved", "")]


def test_of_a_silence_that_lets_nothing_be_learned_nothing_is() -> None:
    learnt, not_learnt = (pipeline(config(silenced(59, 92, more))) for more in ("", ", learn: false"))
    before = pipeline(config(quick()))
    feed(learnt, [story((60, 90), n=915)])
    feed(not_learnt, [story((60, 90), n=915)])
    feed(before, [story((60, 60), n=590)])
    key = ("prediction_value", "robust_z")
    states = [repr(p.models["fraud"].watches[key].detector.snapshot()) for p in (learnt, not_learnt, before)]
    assert states[1] == states[2]
    assert states[0] != states[2]


def test_a_silent_model_within_a_silence_is_told_of_when_that_ends() -> None:
    p = pipeline(config(silenced(50, 200)))
    alerts = feed(p, [story((0, 0), n=600)])
    for second in range(60, 300, 5):
        alerts += p.advance(BEGIN_US + second * SECOND).alerts
    found = [(a.action, a.suppressed_by, a.lastReceived) for a in alerts if a.signal == "silence"]
    assert [f[:2] for f in found] == [("opened", "migration"), ("opened", "")]
    assert found[1][2] == rfc3339(BEGIN_US + 200 * SECOND)


def test_a_silence_of_run_time_holds_at_once_and_can_be_taken_back() -> None:
    p = pipeline(config(quick()))
    whole = story()
    alerts = feed(p, cut(whole, [500])[:1])
    p.book.silences.add([Silence("1", BEGIN_US, BEGIN_US + 1000 * SECOND, model="fr*", reason="deploy")])
    alerts += feed(p, [whole.rows(500, 700)])
    p.book.silences.add([])
    alerts += feed(p, [whole.rows(700, N)])
    assert told(of(alerts))[:2] == [("opened", "deploy"), ("opened", "")]


@pytest.mark.parametrize(
    "written", ["2026-10-01T22:00Z", "2026-10-01 22:00", "2026-10-02T00:00:00+02:00", "'2026-10-01T22'"]
)
def test_a_time_may_be_written_as_people_write_it(written: str) -> None:
    book = config(f"silences: [{{match: {{}}, from: {written}, to: 2026-10-03T00:00Z}}]\n")
    assert rfc3339(book.silences[0].from_.us) == "2026-10-01T22:00:00.000000Z"


def test_what_is_no_time_is_named() -> None:
    with pytest.raises(ConfigError, match="is no time; write one such as"):
        config("silences: [{match: {}, from: tomorrow, to: 2026-10-03T00:00Z}]\n")


def test_a_silence_that_ends_before_it_begins_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="is not after `from`"):
        config(silenced(20, 10))


@settings(max_examples=15, deadline=None)
@given(edges=st.lists(st.integers(1, N - 1), max_size=20), at=st.integers(1, N - 1))
def test_cutting_and_restoring_anywhere_changes_nothing_of_what_is_hidden(edges: list[int], at: int) -> None:
    second, third = rfc3339(BEGIN_US + 70 * SECOND), rfc3339(BEGIN_US + 74 * SECOND)
    more = f"  - {{match: {{}}, from: {second}, to: {third}, learn: false}}\n"
    check_cut_and_restored(config(silenced(55, 63) + more), story((60, 90)), at=at, edges=edges)



# ------------------------------------------------------------------------------------ feedback


def opened(p: Pipeline, whole: RecordBatch, until: int) -> Alert:
    return next(a for a in of(feed(p, [whole.rows(0, until)])) if a.action == "opened")


def verdict(alert: Alert, word: Any, **more: Any) -> Feedback:
    return Feedback(alert.fingerprint, word, **more)


def test_not_an_anomaly_ends_it_and_the_same_again_is_none() -> None:
    p, whole = pipeline(config(quick())), story((60, 70))
    alert = opened(p, whole, 680)
    out = p.feedback([(3, verdict(alert, "NOT_ANOMALY", author="ada", comment="month end"))])
    (noted,) = out.alerts
    assert (noted.action, noted.episode_id) == ("resolved", alert.episode_id)
    assert noted.annotations["feedback"] == "NOT_ANOMALY"
    assert noted.annotations["feedback_author"] == "ada"
    assert noted.summary == "fraud prediction_value: NOT_ANOMALY: month end"
    feed(p, [whole.rows(680, N)])
    again = story((60, 70))
    later = [s + 300 * SECOND for s in range(BEGIN_US, BEGIN_US + N * SECOND // 10, SECOND // 10)]
    events = [prediction(at, id=f"b{i}", prediction=float(i % 7) / 7) for i, at in enumerate(later)]
    assert again
    assert not of([a for a in feed(p, [batch(events, first=N, stamps_us=later)]) if a.action == "opened"])


def test_a_new_trend_is_normal_from_then_on() -> None:
    whole = story((60, 150))
    p, untold = pipeline(config(quick())), pipeline(config(quick()))
    alert = opened(p, whole, 680)
    assert [a.action for a in p.feedback([(0, verdict(alert, "ANOMALY_NEW_TREND"))]).alerts] == ["resolved"]
    rest = of(feed(p, [whole.rows(680, N)]))
    assert not [a for a in rest if a.action == "opened"]
    feed(untold, [whole])
    watch = p.models["fraud"].watches["prediction_value", "robust_z"]
    assert float(watch.detector.explain(-1).expected or 0.0) == pytest.approx(6.0, abs=0.5)


def test_of_an_expected_anomaly_nobody_is_told_any_more() -> None:
    p, whole = pipeline(config(quick())), story()
    alert = opened(p, whole, 650)
    (noted,) = p.feedback([(0, verdict(alert, "ANOMALY_EXPECTED", comment="campaign"))]).alerts
    assert (noted.action, noted.suppressed_by) == ("updated", "")
    rest = of(feed(p, [whole.rows(650, N)]))
    assert told(rest) == [("resolved", "ANOMALY_EXPECTED: campaign")]


def test_a_verdict_is_taken_once_whoever_restores_the_model() -> None:
    p, whole = pipeline(config(quick())), story()
    alert = opened(p, whole, 650)
    said = [(0, verdict(alert, "NOT_ANOMALY"))]
    assert len(p.feedback(said).alerts) == 1
    assert p.feedback(said).alerts == []
    second = pipeline(config(quick()))
    second.restore_manifest(p.manifest())
    for name, data in state(p).items():
        second.restore_model(name, data)
    assert second.feedback(said).alerts == []
    assert state(second) == state(p)


def test_a_verdict_of_another_alert_changes_nothing_but_that_it_was_seen() -> None:
    p = pipeline(config(quick()))
    feed(p, [story(n=600)])
    before = dict(p.models["fraud"].snapshot())
    assert p.feedback([(7, Feedback("0" * 32, "NOT_ANOMALY"))]).alerts == []
    after = dict(p.models["fraud"].snapshot())
    assert after.pop("feedback") == 7
    before.pop("feedback")
    assert repr(after) == repr(before)


def test_not_an_anomaly_takes_the_damping_back() -> None:
    p, whole = pipeline(config(quick())), story((60, 70))
    alert = opened(p, whole, 680)
    damped = p.models["fraud"].watches["prediction_value", "robust_z"]
    over = [value for value, at in damped.over if at >= damped.life.since_us]
    assert len(over) >= 5
    before = damped.detector.snapshot()
    p.feedback([(3, verdict(alert, "NOT_ANOMALY"))])
    taught = damped.rule.build(columns=1, seed=0)
    taught.restore(before)
    assert isinstance(taught, Damped)
    taught.learn_undamped(np.array(over), np.arange(len(over)))
    assert dumps(damped.detector.snapshot()) == dumps(taught.snapshot()) != dumps(before)
    # Once: a second word of the same finds nothing left to learn.
    p.feedback([(4, verdict(alert, "NOT_ANOMALY"))])
    assert dumps(damped.detector.snapshot()) == dumps(taught.snapshot())


def test_a_word_said_after_it_was_over_takes_the_damping_of_that_episode_back() -> None:
    p, whole = pipeline(config(quick())), story((60, 70))
    alert = opened(p, whole, N)
    watch = p.models["fraud"].watches["prediction_value", "robust_z"]
    assert watch.life.state == "inactive"
    before = dumps(watch.detector.snapshot())
    p.feedback([(3, verdict(alert, "NOT_ANOMALY"))])
    assert watch.tolerance > 1.0
    assert dumps(watch.detector.snapshot()) != before


def silent(p: Pipeline, until: float, *, start: float = 60.0) -> list[Alert]:
    """Let the clock go from one second to another without an event."""
    alerts = []
    for second in np.arange(start, until + 0.5, 0.5):
        alerts += p.advance(BEGIN_US + int(second * SECOND)).alerts
    return of(alerts, "silence", "silence")


def after_silence(start: float) -> RecordBatch:
    stamps = [BEGIN_US + int(start * SECOND) + i * SECOND // 10 for i in range(50)]
    return batch([prediction(at, id=f"s{at}") for at in stamps], stamps_us=stamps, first=10_000 + int(start))


def test_a_silence_that_was_none_ends_and_the_next_may_last_as_long() -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 80)
    (noted,) = p.feedback([(0, verdict(alert, "NOT_ANOMALY", author="ada"))]).alerts
    assert (noted.action, noted.episode_id, noted.annotations["feedback_author"]) == (
        "resolved", alert.episode_id, "ada"
    )  # fmt: skip
    # It has lasted 20 s; a tenth more passes before it is told of anew, in the same episode.
    assert silent(p, 81.9, start=80.0) == []
    (again,) = silent(p, 90, start=82.0)
    assert (again.action, again.episode_id) == ("opened", alert.episode_id)
    assert again.id != alert.id
    (end,) = of(feed(p, [after_silence(90)]), "silence", "silence")
    assert (end.action, end.episode_id) == ("resolved", alert.episode_id)
    # Later: 20 s are none, and nothing is told at their end either.
    assert silent(p, 115, start=95.0) == []
    assert of(feed(p, [after_silence(115)]), "silence", "silence") == []


def test_a_word_on_a_silence_after_its_end_is_for_the_next() -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 600)
    (end,) = of(feed(p, [after_silence(600)]), "silence", "silence")
    assert end.action == "resolved"
    (noted,) = p.feedback([(0, verdict(alert, "NOT_ANOMALY"))]).alerts
    assert (noted.action, noted.fingerprint) == ("resolved", alert.fingerprint)
    assert silent(p, 1140, start=605.0) == []  # however many timeouts that is


def test_of_an_expected_silence_nobody_is_told_any_more() -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 80)
    (noted,) = p.feedback([(0, verdict(alert, "ANOMALY_EXPECTED", comment="deploy"))]).alerts
    assert (noted.action, noted.suppressed_by) == ("updated", "")
    found = of(feed(p, [after_silence(100)]), "silence", "silence")
    assert told(found) == [("resolved", "ANOMALY_EXPECTED: deploy")]
    assert told(silent(p, 160, start=105.0)) == [("opened", "")]


def test_a_new_pace_is_learned_anew() -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 80)
    assert [a.action for a in p.feedback([(0, verdict(alert, "ANOMALY_NEW_TREND"))]).alerts] == ["resolved"]
    assert silent(p, 200, start=80.0) == []
    stamps = [BEGIN_US + (200 + 30 * i) * SECOND for i in range(40)]  # every half a minute from now on
    slow = batch([prediction(at, id=f"n{at}") for at in stamps], stamps_us=stamps, first=5000)
    assert of(feed(p, [slow]), "silence", "silence") == []
    assert told(silent(p, 1600, start=1370.0)) == [("opened", "")]


@pytest.mark.parametrize("word", ["NOT_ANOMALY", "ANOMALY_NEW_TREND", "ANOMALY_EXPECTED", "ANOMALY"])
def test_a_word_on_a_silence_survives_a_restore(word: str) -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 80)
    p.feedback([(0, verdict(alert, word))])
    other = pipeline(config(quick()))
    other.restore_manifest(p.manifest())
    for name, data in p.snapshot_models(list(p.models)):
        other.restore_model(name, data)
    other.restored()
    ends = []
    for each in (p, other):
        early = [*silent(each, 120, start=80.5), *feed(each, [after_silence(120)])]
        ends.append([*early, *silent(each, 300, start=130.0)])
    assert [a.id for a in ends[0]] == [a.id for a in ends[1]]
    assert state(p) == state(other)


def test_the_same_word_said_twice_is_said_once() -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 120)
    p.feedback([(0, verdict(alert, "NOT_ANOMALY"))])
    (watch,) = p.models["fraud"].silence
    timeout = watch.detector.timeout_s()  # type: ignore[attr-defined]
    assert timeout == pytest.approx(66.0, rel=0.02)  # it had lasted 60 s
    for k in range(1, 4):
        p.feedback([(k, verdict(alert, "NOT_ANOMALY"))])
    assert watch.detector.timeout_s() == pytest.approx(timeout)  # type: ignore[attr-defined]
    q, whole = pipeline(config(quick())), story((60, 70))
    shift = opened(q, whole, 680)
    q.feedback([(0, verdict(shift, "NOT_ANOMALY"))])
    level = q.models["fraud"].watches["prediction_value", "robust_z"].tolerance
    q.feedback([(1, verdict(shift, "NOT_ANOMALY"))])
    assert q.models["fraud"].watches["prediction_value", "robust_z"].tolerance == level > 1.0


def test_after_a_word_on_a_silence_no_cut_decides_how_the_next_is_told() -> None:
    ids = []
    for edges in ([], [1]):
        p = pipeline(config(quick()))
        feed(p, [story((0, 0), n=600)])
        (alert,) = silent(p, 80)
        p.feedback([(0, verdict(alert, "NOT_ANOMALY"))])
        stamps = [BEGIN_US + s * SECOND for s in (81, 900, 900, 900)]  # a gap of 21 s has made the timeout minutes
        two = batch([prediction(at, id=f"t{at}") for at in stamps], stamps_us=stamps, first=5000)
        ids.append([a.id for a in of(feed(p, cut(two, edges)), "silence", "silence")])
    assert ids[0] == ids[1]
    assert len(ids[0]) == 2


def test_a_silence_that_a_longer_timeout_would_not_tell_of_still_ends() -> None:
    p = pipeline(config(quick()))
    feed(p, [story((0, 0), n=600)])
    (alert,) = silent(p, 80)
    longer = quick(silence={"params": {"warm_up": 20, "min_timeout_s": 500.0}})
    p.reconfigure(RuleBook(config(longer)))
    (end,) = of(feed(p, [after_silence(90)]), "silence", "silence")
    assert (end.action, end.episode_id) == ("resolved", alert.episode_id)


# ------------------------------------------------------------------------- what is watched no more

OTHER = {"prediction_value": {"detector": "robust_z", "params": {"warm_up": 5, "window": 30}}}


def fires(p: Pipeline) -> Alert:
    return next(a for a in of(feed(p, [story((60, 90)).rows(0, 700)])) if a.action == "opened")


@pytest.mark.parametrize("change", [OTHER, {"prediction_value": {"detector": "spike"}}])
def test_an_alert_whose_watch_a_config_replaces_is_over(change: dict[str, Any]) -> None:
    p = pipeline(config(quick()))
    alert = fires(p)
    p.reconfigure(RuleBook(config(quick(**change))))
    ended = [a for a in p.advance(p.clock_us).alerts if a.signal == "prediction_value"]
    mine = [a for a in ended if a.fingerprint == alert.fingerprint]
    assert [(a.action, a.episode_id) for a in mine] == [("resolved", alert.episode_id)]
    assert mine[0].summary == "fraud prediction_value is no longer watched by robust_z"
    assert p.advance(p.clock_us).alerts == []


def test_so_it_is_where_a_start_finds_another_detector_than_was_saved() -> None:
    p = pipeline(config(quick()))
    alert = fires(p)
    other = pipeline(config(quick(prediction_value={"detector": "spike"})))
    other.restore_manifest(p.manifest())
    for name, data in p.snapshot_models(list(p.models)):
        other.restore_model(name, data)
    other.restored()
    rest = feed(other, [story((60, 90)).rows(700, 800)])
    assert [(a.action, a.episode_id) for a in rest if a.fingerprint == alert.fingerprint] == [
        ("resolved", alert.episode_id)
    ]


def test_so_it_is_where_a_segment_is_watched_no_more() -> None:
    def segmented(*dimensions: str) -> Any:
        return config(quick() + f"models: [{{match: {{model: fraud}}, segments: [{', '.join(dimensions)}]}}]\n")

    p, whole = pipeline(segmented("country")), story((60, 90))
    events = [orjson.loads(v or b"") | {"segment": {"country": "DE"}} for v in whole.values]
    records = batch(events, stamps_us=[1000 * t for t in whole.timestamps_ms])
    opened_in = [a for a in feed(p, [records.rows(0, 700)]) if a.action == "opened" and "segment" in a.labels]
    assert opened_in
    p.reconfigure(RuleBook(segmented("model.version")))
    ended = {a.episode_id for a in p.advance(p.clock_us).alerts if a.action == "resolved"}
    assert {a.episode_id for a in opened_in} <= ended
