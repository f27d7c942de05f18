"""The hard cap: so many alerts a day of a model and of all, critical ones beside, the rest in one digest."""

from __future__ import annotations

import datetime as dt
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.state import dumps
from streamproc import rules
from streamproc.alerts import identity
from streamproc.cloudevents import encode_alert, to_json
from streamproc.errors import ConfigError
from streamproc.events import Alert, DetectorRef, RecordBatch, rfc3339
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from tests.core.make import BEGIN_US, batch, cut

HOUR = 3_600_000_000
DAY = 24 * HOUR


def alert(
    k: int, at_us: int, *, action: str = "opened", model: str = "fraud", severity: str = "warning", **more: Any
) -> Alert:
    fields: dict[str, Any] = {
        "id": identity(model, k, action),
        "fingerprint": identity(model, k),
        "episode_id": identity(model, k, "episode"),
        "name": f"{model} s{k}",
        "status": "resolved" if action == "resolved" else "firing",
        "severity": severity,
        "summary": f"{model}: s{k} is odd",
        "action": action,
        "labels": {"model": model, "alertname": f"s{k}"},
        "annotations": {},
        "startsAt": rfc3339(at_us),
        "lastReceived": rfc3339(at_us),
        "signal": f"s{k}",
        "detector": DetectorRef("spike", "x"),
        "score": 2.0,
        "service": model,
        **more,
    }
    return Alert(**fields)


def records(alerts: list[tuple[Alert, int]], *, first: int = 0) -> RecordBatch:
    values = [encode_alert(a, source="here")[0] for a, _ in alerts]
    keys = [a.labels["model"].encode() for a, _ in alerts]
    return batch(list(values), stamps_us=[at for _, at in alerts], keys=keys, topic="alerts", first=first)


def pager(per_model: int = 4, per_fleet: int = 1000) -> Pipeline:
    text = f"""
version: 1
kafka: {{brokers: "b:1", predictions: [predictions], pages: pages, incidents: ""}}
defaults: {{budget: {{per_model_per_day: {per_model}, per_fleet_per_day: {per_fleet}}}}}
"""
    return Pipeline(RuleBook(rules.parse(text, env={})), kind="alerts", topic="alerts")


def said(alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(a.signal, a.action) for a in alerts]


def burst(n: int, *, start: int = BEGIN_US, model: str = "fraud", **more: Any) -> list[tuple[Alert, int]]:
    return [(alert(k, start + k * 1_000_000, model=model, **more), start + k * 1_000_000) for k in range(n)]


def test_what_is_passed_on_is_the_alert_itself() -> None:
    one = alert(1, BEGIN_US, value=3.0, n=7)
    out = pager().process(records([(one, BEGIN_US)]))
    assert [orjson.loads(to_json(a)) for a in out.alerts] == [orjson.loads(to_json(one))]


def test_beyond_the_cap_of_a_day_one_digest_opens_and_says_at_its_end_what_it_held() -> None:
    p = pager()
    assert said(p.process(records(burst(9))).alerts) == [
        ("s0", "opened"),
        ("s1", "opened"),
        ("s2", "opened"),
        ("s3", "opened"),
        ("digest", "opened"),
    ]
    # Room for one more comes after a quarter of a day.
    assert p.advance(BEGIN_US + 6 * HOUR - 1).alerts == []
    (digest,) = p.advance(BEGIN_US + 6 * HOUR + 60_000_000).alerts
    assert (digest.signal, digest.action, digest.n) == ("digest", "resolved", 5)
    assert "5 alerts held back, 5 of them not over: s4, s5, s6, s7, s8" in digest.summary
    assert digest.description.splitlines() == [f"fraud: s{k} is odd" for k in range(4, 9)]
    assert digest.lastReceived == rfc3339(BEGIN_US + 6 * HOUR)


def test_a_critical_alert_always_passes_and_takes_nothing_of_the_cap() -> None:
    alerts = [*burst(3, severity="critical"), *burst(5, start=BEGIN_US + HOUR, model="fraud")]
    alerts = [(a, at) for a, at in alerts]
    renamed = [(alert(10 + i, at, severity=a.severity), at) for i, (a, at) in enumerate(alerts)]
    out = pager().process(records(renamed)).alerts
    assert said(out) == [(f"s{k}", "opened") for k in range(10, 17)] + [("digest", "opened")]
    late = alert(99, BEGIN_US + 2 * HOUR, severity="critical")
    p = pager()
    p.process(records(burst(9)))
    assert said(p.process(records([(late, BEGIN_US + HOUR)], first=100)).alerts) == [("s99", "opened")]


def test_a_resolution_goes_where_its_opening_went() -> None:
    p = pager()
    p.process(records(burst(6)))
    ends = [(alert(k, BEGIN_US + HOUR + k, action="resolved"), BEGIN_US + HOUR + k) for k in range(6)]
    assert said(p.process(records(ends, first=100)).alerts) == [(f"s{k}", "resolved") for k in range(4)]
    (digest,) = p.advance(BEGIN_US + 7 * HOUR).alerts
    assert digest.summary == "fraud: 2 alerts held back: s4, s5"
    # Nor does one pass after the digest that held it has closed.
    p = pager()
    p.process(records(burst(6)))
    p.advance(BEGIN_US + 7 * HOUR)
    end = alert(5, BEGIN_US + 8 * HOUR, action="resolved")
    assert p.process(records([(end, BEGIN_US + 8 * HOUR)], first=100)).alerts == []


def test_the_end_of_what_opened_before_the_first_record_is_passed_on() -> None:
    # Whoever was told of it then, before there was a cap or beyond what the topic keeps, is told of its end.
    end = alert(1, BEGIN_US, action="resolved")
    assert said(pager().process(records([(end, BEGIN_US)])).alerts) == [("s1", "resolved")]


def test_copies_of_an_alert_take_nothing_and_are_dropped() -> None:
    one = alert(1, BEGIN_US)
    out = pager().process(records([(one, BEGIN_US)] * 8 + burst(1))).alerts
    assert said(out) == [("s1", "opened"), ("s0", "opened")]


def test_each_model_has_its_own_cap_and_a_quiet_day_fills_it() -> None:
    p = pager()
    assert len(p.process(records(burst(4))).alerts) == 4
    assert len(p.process(records(burst(4, start=BEGIN_US + HOUR, model="churn"), first=100)).alerts) == 4
    later = [(alert(20 + k, BEGIN_US + 2 * DAY + k), BEGIN_US + 2 * DAY + k) for k in range(5)]
    assert said(p.process(records(later, first=200)).alerts)[-2:] == [("s23", "opened"), ("digest", "opened")]


def test_what_is_no_alert_is_rejected_by_name() -> None:
    out = pager().process(batch([b"{}", b"{", None, b'{"id": 3}'], topic="alerts"))
    assert [r.error_type for r in out.rejected] == ["schema", "malformed", "malformed", "schema"]


def test_a_digest_remembers_a_bounded_number_and_counts_the_rest() -> None:
    p = pager()
    p.process(records(burst(1200)))
    state = p.models["pages"]
    assert len(dumps(state.snapshot())) < 200_000
    (digest,) = p.advance(BEGIN_US + DAY).alerts
    assert digest.n == 1196
    assert digest.description.endswith("and 1176 more")


def fleet(n: int, *, each: int = 1, start: int = BEGIN_US, **more: Any) -> list[tuple[Alert, int]]:
    """Alerts of n models, `each` of them, a second apart."""
    pairs = [(model, k) for k in range(each) for model in range(n)]
    return [
        (alert(k, start + i * 1_000_000, model=f"m{model:02}", **more), start + i * 1_000_000)
        for i, (model, k) in enumerate(pairs)
    ]


def test_all_models_together_have_a_cap_and_what_is_beyond_it_is_one_digest_of_no_model() -> None:
    p = pager(per_fleet=8)
    out = p.process(records(fleet(30, each=2))).alerts
    assert [a.labels.get("model") for a in out] == [f"m{k:02}" for k in range(8)] + [None]
    digest = out[-1]
    assert (digest.signal, digest.action, digest.labels["scope"]) == ("digest", "opened", "fleet")
    assert digest.summary == "fleet: 8 alerts in a day; holding back m08 s0 and what follows"
    # It does not close with room for one, which would make alerts and digests take turns, but for a quarter of a day's.
    assert p.advance(BEGIN_US + 6 * HOUR - 1).alerts == []
    (end,) = p.advance(BEGIN_US + 6 * HOUR + 60_000_000).alerts
    assert (end.action, end.n, end.episode_id) == ("resolved", 52, digest.episode_id)
    assert end.summary.startswith("fleet: 52 alerts held back, 52 of them not over: m08 (2), m09 (2)")
    assert end.summary.endswith("m27 (2) and 10 more models")
    assert end.lastReceived == rfc3339(BEGIN_US + 6 * HOUR)
    later = BEGIN_US + 6 * HOUR + 120_000_000
    again = p.process(records(fleet(4, start=later), first=200)).alerts
    assert again == []  # the very same alerts are copies
    fresh = [(alert(100 + k, later + k, model=f"n{k}"), later + k) for k in range(4)]
    assert said(p.process(records(fresh, first=300)).alerts) == [
        ("s100", "opened"), ("s101", "opened"), ("digest", "opened")
    ]  # fmt: skip


def test_under_the_cap_of_the_fleet_too_what_is_critical_passes_and_what_becomes_so() -> None:
    p = pager(per_fleet=2)
    p.process(records(fleet(5)))
    at = BEGIN_US + HOUR
    critical = alert(50, at, model="x", severity="critical")
    worse = alert(0, at, model="m04", action="escalated", severity="critical")
    over = [(alert(0, at + 1, model=f"m{k:02}", action="resolved"), at + 1) for k in range(5)]
    out = p.process(records([(critical, at), (worse, at), *over], first=100)).alerts
    assert [(a.labels["model"], a.action) for a in out] == [
        ("x", "opened"), ("m04", "escalated"), ("m00", "resolved"), ("m01", "resolved"), ("m04", "resolved")
    ]  # fmt: skip
    (digest,) = p.advance(BEGIN_US + DAY).alerts
    assert digest.summary == "fleet: 2 alerts held back: m02 (1), m03 (1)"


def test_digests_of_models_are_under_the_cap_of_the_fleet() -> None:
    p = pager(per_model=1, per_fleet=6)
    # Each of four models has an alert and a digest in its place: the third digest is one too many.
    out = p.process(records(fleet(4, each=3))).alerts
    assert [(a.labels.get("model"), a.signal) for a in out] == [
        ("m00", "s0"), ("m01", "s0"), ("m02", "s0"), ("m03", "s0"), ("m00", "digest"), ("m01", "digest"),
        (None, "digest"),
    ]  # fmt: skip
    ends = p.advance(BEGIN_US + 3 * DAY).alerts
    assert [(a.labels.get("model"), a.n) for a in ends] == [(None, 4), ("m00", 2), ("m01", 2)]


def test_a_flood_of_models_keeps_the_state_bounded() -> None:
    p = pager(per_fleet=1000)
    p.process(records(fleet(3000, each=3)))
    state = p.models["pages"]
    assert len(dumps(state.snapshot())) < 2_500_000
    (digest,) = [a for a in p.advance(BEGIN_US + 2 * DAY).alerts if "scope" in a.labels]
    assert digest.n == 9000 - 1000 - 11  # which flowed in while the first thousand were spent


def test_what_a_full_digest_does_not_keep_is_held_back_all_the_same() -> None:
    p = pager(per_fleet=20)
    p.process(records(fleet(700)))
    at = BEGIN_US + HOUR
    later = [(alert(0, at + k, model=f"m{k:02}", action="updated"), at + k) for k in range(20, 700)]
    later += [(alert(0, at + 1000 + k, model=f"m{k:02}", action="resolved"), at + 1000 + k) for k in range(20, 700)]
    assert p.process(records(later, first=1000)).alerts == []


def test_what_was_shown_and_is_expected_since_then_still_ends_and_what_was_hidden_does_not() -> None:
    p = pager()
    hidden = alert(2, BEGIN_US + 1, suppressed_by="migration")
    shown = p.process(records([(alert(1, BEGIN_US), BEGIN_US), (hidden, BEGIN_US + 1)]))
    ends = [
        (alert(1, BEGIN_US + HOUR, action="resolved", suppressed_by="ANOMALY_EXPECTED"), BEGIN_US + HOUR),
        (alert(2, BEGIN_US + HOUR, action="resolved", suppressed_by="migration"), BEGIN_US + HOUR),
    ]
    assert said(shown.alerts) == [("s1", "opened")]
    assert said(p.process(records(ends, first=10)).alerts) == [("s1", "resolved")]


def test_an_episode_that_opens_anew_after_its_digest_has_closed_ends_too() -> None:
    p = pager()
    p.process(records(burst(6)))
    p.advance(BEGIN_US + 7 * HOUR)
    at = BEGIN_US + 13 * HOUR
    anew = alert(5, at, id="anew")
    end = alert(5, at + HOUR, action="resolved")
    out = p.process(records([(anew, at), (end, at + HOUR)], first=100)).alerts
    assert said(out) == [("s5", "opened"), ("s5", "resolved")]


def test_incidents_and_pages_are_made_of_the_same_alerts_side_by_side() -> None:
    text = 'version: 1\nkafka: {brokers: "b:1", predictions: [p], pages: pages}\n'
    p = Pipeline(RuleBook(rules.parse(text, env={})), kind="alerts", topic="alerts")
    one = p.process(records(burst(9, severity="critical")))
    assert len(one.alerts) == 9
    assert [i.action for i in one.incidents][:1] == ["opened"]
    assert sorted(p.models) == ["fleet", "pages"]
    text = text.replace("pages: pages", "pages: ''")
    p = Pipeline(RuleBook(rules.parse(text, env={})), kind="alerts", topic="alerts")
    assert p.process(records(burst(9, severity="critical"))).alerts == []


def test_what_a_config_no_longer_wants_is_forgotten_at_the_next_start() -> None:
    p = pager(per_fleet=2)
    p.process(records(fleet(5)))
    (saved,) = p.snapshot_models(list(p.models))
    text = 'version: 1\nkafka: {brokers: "b:1", predictions: [p]}\n'
    other = Pipeline(RuleBook(rules.parse(text, env={})), kind="alerts", topic="alerts")
    other.restore_model(*saved)
    other.restored()
    assert (other.models, other.gone) == ({}, {"pages"})
    assert other.advance(BEGIN_US + 2 * DAY).alerts == []


def test_pages_without_a_budget_are_refused() -> None:
    text = 'version: 1\nkafka: {brokers: "b:1", predictions: [p], pages: pages}\ndefaults: {budget: null}\n'
    with pytest.raises(ConfigError, match="per_model_per_day"):
        rules.parse(text, env={})


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from(["opened", "opened", "resolved"]),
            st.sampled_from(["warning", "warning", "info", "critical"]),
            st.integers(0, 4 * HOUR),
            st.sampled_from(["fraud", "churn", "ads"]),
        ),
        min_size=1,
        max_size=60,
    ),
    per_fleet=st.integers(1, 12),
    cuts=st.lists(st.integers(1, 59), max_size=5),
    stop=st.integers(0, 59),
)
def test_wherever_the_log_is_cut_or_restored_the_same_is_passed_on_and_never_more_than_the_cap(
    data: list[tuple[int, str, str, int, str]], per_fleet: int, cuts: list[int], stop: int
) -> None:
    alerts, at = [], BEGIN_US
    began: set[tuple[str, int]] = set()
    for k, action, severity, wait, model in data:
        at += wait
        # No episode ends before it has begun: its own watch publishes both, in this order.
        action = action if (model, k) in began else "opened"
        began.add((model, k))
        alerts.append((alert(k, at, action=action, severity=severity, model=model), at))
    whole = records(alerts)
    one = pager(per_fleet=per_fleet)
    expected = one.process(whole).alerts + one.advance(at + 3 * DAY).alerts
    passed = [a for a in expected if a.action == "opened" and a.severity != "critical"]
    # A full bucket, and what flows in during the day.
    for model in ("fraud", "churn", "ads"):
        assert _most_in_a_day([a for a in passed if a.service == model and a.signal != "digest"]) <= 8
    assert _most_in_a_day([a for a in passed if "scope" not in a.labels]) <= 2 * per_fleet
    # Digests of the fleet last a quarter of a day, or what one alert takes.
    assert _most_in_a_day([a for a in passed if "scope" in a.labels]) <= 4
    # Whatever opens for a person ends for him, and nothing else does.
    shown = {a.episode_id for a in expected if a.action in ("opened", "escalated")}
    hidden = {a.episode_id for a, _ in alerts if a.action == "opened"} - shown
    assert not [a for a in expected if a.action == "resolved" and a.episode_id in hidden]
    other, found = pager(per_fleet=per_fleet), []
    for part in cut(whole, [*cuts, stop]):
        found += other.process(part).alerts
        if part.offsets[-1] + 1 == stop:
            manifest, models = other.manifest(), list(other.snapshot_models(list(other.models)))
            other = pager(per_fleet=per_fleet)
            other.restore_manifest(orjson.loads(orjson.dumps(manifest)))
            for name, saved in models:
                other.restore_model(name, saved)
            other.restored()
    found += other.advance(at + 3 * DAY).alerts
    assert sorted(map(to_json, found)) == sorted(map(to_json, expected))
    for name, model_state in one.models.items():
        assert dumps(other.models[name].snapshot()) == dumps(model_state.snapshot())


def _most_in_a_day(alerts: list[Alert]) -> int:
    times = sorted(dt.datetime.fromisoformat(a.lastReceived) for a in alerts)
    day = dt.timedelta(days=1)
    return max((sum(first <= at < first + day for at in times) for first in times), default=0)
