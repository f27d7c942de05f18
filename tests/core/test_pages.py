"""The hard cap: so many alerts a model and day, critical ones beside, the rest in one digest."""

from __future__ import annotations

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
from tests.core.make import BEGIN_US, batch, config, cut

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
        **more,
    }
    return Alert(**fields)


def records(alerts: list[tuple[Alert, int]], *, first: int = 0) -> RecordBatch:
    values = [encode_alert(a, source="here")[0] for a, _ in alerts]
    keys = [a.labels["model"].encode() for a, _ in alerts]
    return batch(list(values), stamps_us=[at for _, at in alerts], keys=keys, topic="alerts", first=first)


def pager(extra: str = "defaults: {budget: {per_model_per_day: 4}}") -> Pipeline:
    return Pipeline(RuleBook(config(extra)), kind="alerts", topic="alerts")


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
    state = p.models["fraud"]
    assert len(dumps(state.snapshot())) < 200_000
    (digest,) = p.advance(BEGIN_US + DAY).alerts
    assert digest.n == 1196
    assert digest.description.endswith("and 1176 more")


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
            st.sampled_from(["fraud", "churn"]),
        ),
        min_size=1,
        max_size=60,
    ),
    cuts=st.lists(st.integers(1, 59), max_size=5),
    stop=st.integers(0, 59),
)
def test_wherever_the_log_is_cut_or_restored_the_same_is_passed_on_and_never_more_than_the_cap(
    data: list[tuple[int, str, str, int, str]], cuts: list[int], stop: int
) -> None:
    alerts, at = [], BEGIN_US
    for k, action, severity, wait, model in data:
        at += wait
        alerts.append((alert(k, at, action=action, severity=severity, model=model), at))
    whole = records(alerts)
    one = pager()
    expected = one.process(whole).alerts + one.advance(at + 3 * DAY).alerts
    for model in ("fraud", "churn"):
        paid = [
            a for a in expected
            if a.labels["model"] == model and a.action == "opened"
            and a.severity != "critical" and a.signal != "digest"
        ]  # fmt: skip
        for first in paid:
            begin = first.lastReceived
            within = [a for a in paid if begin <= a.lastReceived < _a_day_after(begin)]
            assert len(within) <= 8  # a full bucket, and what flows in during the day
    other, found = pager(), []
    for part in cut(whole, [*cuts, stop]):
        found += other.process(part).alerts
        if part.offsets[-1] + 1 == stop:
            manifest, models = other.manifest(), list(other.snapshot_models(list(other.models)))
            other = pager()
            other.restore_manifest(orjson.loads(orjson.dumps(manifest)))
            for name, saved in models:
                other.restore_model(name, saved)
            other.restored()
    found += other.advance(at + 3 * DAY).alerts
    assert sorted(map(to_json, found)) == sorted(map(to_json, expected))
    for name, model_state in one.models.items():
        assert dumps(other.models[name].snapshot()) == dumps(model_state.snapshot())


def _a_day_after(stamp: str) -> str:
    import datetime as dt

    moment = dt.datetime.fromisoformat(stamp) + dt.timedelta(days=1)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
