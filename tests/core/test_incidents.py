"""Incidents: alerts of one cause told once, whichever models raised them and however the log is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.state import dumps
from streamproc import causes, schema
from streamproc.alerts import identity
from streamproc.cloudevents import encode_alert, encode_incident, incident_json
from streamproc.config import Config
from streamproc.events import (
    FLEET_KEY,
    Alert,
    Changed,
    DetectorRef,
    Expected,
    Impact,
    Incident,
    RecordBatch,
    Share,
    rfc3339,
)
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from streamproc.signals import SIGNALS as SIGNALS_KNOWN
from tests.core.make import BEGIN_US, batch, config, cut

MINUTE = 60_000_000
HOUR = 60 * MINUTE

CONFIG = """
models:
  - {match: {model: "a*"}, depends_on: [host/gpu-1, feed/clicks], owner: ranking}
  - {match: {model: "b*"}, depends_on: [host/gpu-2, feed/clicks]}
  - {match: {model: "l*"}, depends_on: [provider/acme]}
"""


def alert(signal: str, minute: float, *, model: str = "a1", action: str = "opened", **more: Any) -> Alert:
    at_us = BEGIN_US + round(minute * MINUTE)
    fields: dict[str, Any] = {
        "id": identity(model, signal, more.get("episode", 0), action),
        "fingerprint": identity(model, signal),
        "episode_id": identity(model, signal, more.pop("episode", 0), "episode"),
        "name": f"{model} {signal}",
        "status": "resolved" if action == "resolved" else "firing",
        "severity": "warning",
        "summary": f"{model}: {signal} is odd",
        "action": action,
        "labels": {"model": model, "alertname": signal, "team": "ranking"},
        "annotations": {},
        "startsAt": rfc3339(at_us),
        "lastReceived": rfc3339(at_us),
        "signal": signal,
        "detector": DetectorRef("robust_z", "x"),
        "score": 2.0,
        **more,
    }
    return Alert(**fields)


def records(alerts: list[Alert], *, first: int = 0, lag_us: int = 0) -> RecordBatch:
    import datetime as dt

    values = [encode_alert(a, source="here")[0] for a in alerts]
    stamps = [round(dt.datetime.fromisoformat(a.lastReceived).timestamp() * 1e6) + lag_us for a in alerts]
    return batch(list(values), stamps_us=stamps, keys=[FLEET_KEY] * len(values), topic="alert-feed", first=first)


def agent(extra: str = CONFIG) -> Pipeline:
    return grouping(config(extra))


def grouping(cfg: Config) -> Pipeline:
    return Pipeline(RuleBook(cfg), kind="alerts", topic="alert-feed")


def story(*alerts: Alert, extra: str = CONFIG) -> list[Incident]:
    """Return what comes of alerts, and of a day after them."""
    p = agent(extra)
    found = p.process(records(list(alerts))).incidents
    return found + p.advance(BEGIN_US + 10 * 24 * HOUR).incidents


def said(incidents: list[Incident]) -> list[tuple[str, str]]:
    return [(i.action, i.cause.category) for i in incidents]


def test_two_alerts_of_one_model_are_one_incident_which_ends_when_both_are_over_and_it_is_quiet() -> None:
    opened, resolved = story(
        alert("latency_p95", 0),
        alert("error_rate", 3, severity="critical"),
        alert("latency_p95", 40, action="resolved"),
        alert("error_rate", 50, action="resolved"),
    )
    assert said([opened, resolved]) == [("opened", "infra"), ("resolved", "infra")]
    assert opened.incident_id == resolved.incident_id
    assert opened.id != resolved.id
    assert (opened.severity, opened.models, opened.alerts) == ("critical", ["a1"], 2)
    assert opened.startsAt == rfc3339(BEGIN_US)
    assert opened.lastReceived == rfc3339(BEGIN_US + 3 * MINUTE)
    assert resolved.endsAt == rfc3339(BEGIN_US + 50 * MINUTE)
    assert resolved.lastReceived == rfc3339(BEGIN_US + 65 * MINUTE)
    assert opened.labels == {"alertname": "incident", "model": "a1", "team": "ranking"} == resolved.labels


def test_a_lone_warning_is_an_incident_only_once_it_has_lasted() -> None:
    assert story(alert("latency_p95", 0), alert("latency_p95", 10, action="resolved")) == []
    opened, _ = story(alert("latency_p95", 0), alert("latency_p95", 20, action="resolved"))
    assert opened.lastReceived == rfc3339(BEGIN_US + 15 * MINUTE)


def test_models_slow_on_one_host_are_one_incident_of_infrastructure() -> None:
    found = story(*(alert("latency_p95", k, model=f"a{k}") for k in range(4)), alert("latency_p95", 4, model="b1"))
    assert [i.models[0] for i in found if i.action == "opened"] == ["a0", "b1"]
    last = [i for i in found if i.models[0] == "a0"][-1]
    assert (last.models, last.cause.category, last.cause.rule) == (["a0", "a1", "a2", "a3"], "infra", "host_saturated")
    assert last.upstreams == ["host/gpu-1"]
    assert last.suggested_action == "scale"
    assert "host/gpu-1" in last.summary


def test_what_does_not_travel_along_a_dependency_does_not_link() -> None:
    found = story(alert("latency_p95", 0, model="a1"), alert("refusal_rate", 1, model="a2"))
    assert [i.models for i in found if i.action == "opened"] == [["a1"], ["a2"]]


def test_models_of_a_feed_that_stops_are_silent_together_and_not_with_those_whose_answers_move() -> None:
    found = story(
        alert("silence", 0, model="a1", severity="critical"),
        alert("silence", 1, model="b1", severity="critical"),
        alert("prediction_psi", 2, model="b2", severity="critical"),
    )
    assert [i.models for i in found if i.action == "resolved"] in ([["a1", "b1"], ["b2"]], [["b2"], ["a1", "b1"]])


def test_a_host_with_telemetry_of_its_own_is_what_its_models_depend_on() -> None:
    found = story(alert("metric:cpu", 0, model="gpu-1"), alert("latency_p95", 2, model="a1"))
    assert {tuple(i.models) for i in found} == {("gpu-1", "a1")}
    assert found[-1].cause.category == "infra"


def test_models_that_fail_on_one_feature_are_one_incident_of_data_without_any_word_of_dependencies() -> None:
    on = {"attribution": [Share("clicks_7d", 0.9)]}
    found = story(
        alert("missing_features", 0, model="x", **on), alert("missing_features", 1, model="y", **on), extra=""
    )
    assert {tuple(i.models) for i in found} == {("x", "y")}
    assert (found[-1].cause.rule, found[-1].features) == ("shared_feature", ["clicks_7d"])
    assert found[-1].suggested_action == "fix_feed"


def test_what_came_first_is_the_cause_and_the_rest_are_symptoms() -> None:
    found = story(alert("missing_features", 0), alert("prediction_value", 8), alert("latency_p95", 12))
    assert found[-1].cause.category == "data"
    assert found[-1].root == identity("a1", "missing_features")
    assert [s.signal for s in found[-1].symptoms] == ["prediction_value", "latency_p95"]


def test_answers_that_changed_after_a_deploy_are_the_models_and_are_rolled_back() -> None:
    change = [Changed("version", "8", "7", rfc3339(BEGIN_US - 5 * MINUTE))]
    found = story(alert("prediction_value", 0, changes=change), alert("confidence", 1, changes=change))
    assert (found[0].cause.category, found[0].suggested_action) == ("model", "roll_back")
    assert "version 8" in found[0].summary
    assert found[0].changes == change


@pytest.mark.parametrize(
    ("signals", "cause", "action"),
    [
        (("accuracy", "log_loss"), "model", "retrain"),
        (("feature_drift", "prediction_psi"), "data", "retrain"),
        (("feature_range", "feature_drift"), "data", "fix_feed"),
        (("throughput", "latency_p95"), "traffic", "scale"),
        (("tokens_out", "cost_per_request"), "model", "investigate"),
        (("refusal_rate", "tokens_out"), "model", "contact_provider"),
        (("silence",), "infra", "investigate"),
        (("something_new", "another"), "unknown", "investigate"),
    ],
)
def test_each_fault_has_its_cause_and_what_to_do(signals: tuple[str, ...], cause: str, action: str) -> None:
    found = story(*(alert(s, k, effect=1.0, severity="critical") for k, s in enumerate(signals)))
    assert (found[-1].cause.category, found[-1].suggested_action) == (cause, action)
    assert found[-1].cause.evidence
    assert 0 <= found[-1].cause.confidence <= 1


def test_two_incidents_that_turn_out_to_be_one_are_merged_into_the_older() -> None:
    on = {"attribution": [Share("clicks_7d", 0.9)]}
    found = story(
        alert("missing_features", 0, model="x", severity="critical", **on),
        alert("prediction_value", 2, model="y", severity="critical"),
        alert("missing_features", 4, model="y", **on),
        extra="",
    )
    first, second, *rest = found
    assert [i.action for i in (first, second)] == ["opened", "opened"]
    merged = next(i for i in rest if i.incident_id == second.incident_id)
    assert (merged.action, merged.annotations["merged_into"]) == ("resolved", first.incident_id)
    assert merged.post_mortem is None
    assert rest[-1].incident_id == first.incident_id
    assert (rest[-1].models, rest[-1].alerts) == (["x", "y"], 3)
    assert sum(i.action == "resolved" for i in found) == 2


def test_two_faults_of_one_model_at_once_stay_two_where_an_upstream_tells_them_apart() -> None:
    found = story(
        alert("latency_p95", 0, model="a1", severity="critical"),
        alert("missing_features", 1, model="b1", severity="critical"),
        alert("missing_features", 2, model="a1", attribution=[Share("f", 1.0)]),
    )
    assert sum(i.action == "opened" for i in found) == 2
    assert all("merged_into" not in i.annotations for i in found)


def test_many_models_hit_and_lasting_long_are_a_step_more_severe() -> None:
    found = story(*(alert("latency_p95", k, model=f"a{k}") for k in range(5)))
    assert [(i.action, i.severity) for i in found][:2] == [("opened", "warning"), ("escalated", "critical")]
    found = story(alert("latency_p95", 0), alert("error_rate", 1))
    assert [(i.action, i.severity) for i in found][:2] == [("opened", "warning"), ("escalated", "critical")]
    assert found[1].lastReceived == rfc3339(BEGIN_US + 6 * HOUR)


def test_what_is_over_has_a_post_mortem() -> None:
    change = [Changed("version", "8", "7", rfc3339(BEGIN_US - 5 * MINUTE))]
    found = story(
        alert("silence", 0, severity="critical", changes=change),
        alert("accuracy", 10, value=0.6, expected=Expected(0.8)),
        alert("cost_per_hour", 11, value=12.0, expected=Expected(2.0), effect=10.0),
        alert("silence", 60, action="resolved"),
        alert("accuracy", 120, action="resolved", impact=Impact(500, 6600.0)),
        alert("cost_per_hour", 71, action="resolved"),
    )
    last = found[-1]
    assert last.post_mortem is not None
    told = [m.what for m in last.post_mortem.timeline]
    assert told[0] == "a1: version 8, before it 7"
    assert told[1] == "began: a1: silence is odd"
    assert told[-1] == "over: a1 accuracy"
    assert [m.at for m in last.post_mortem.timeline] == sorted(m.at for m in last.post_mortem.timeline)
    assert last.post_mortem.duration_s == 7200
    assert last.post_mortem.kpis.uptime == 0.5
    assert last.post_mortem.kpis.accuracy_stability == 0.75
    assert last.post_mortem.kpis.cost == pytest.approx(10.0)
    assert (last.impact.models, last.impact.predictions, last.impact.duration_s) == (1, 500, 7200)


def test_a_failure_or_two_in_a_window_are_a_symptom_at_most() -> None:
    few = {"severity": "critical", "value": 0.04, "n": 50}
    lone = [alert("error_rate", 0, **few), alert("error_share:timeout", 1, **few), alert("error_rate", 300, model="a2")]
    assert [i.models for i in story(*lone) if i.action == "opened"] == [["a2"]]
    (opened, *_) = story(alert("error_rate", 0, **few), alert("latency_p95", 2), alert("refusal_rate", 3))
    assert (opened.alerts, len(opened.symptoms)) == (3, 2)
    (opened, *_) = story(alert("error_rate", 0, severity="critical", value=0.5, n=50))
    assert opened.lastReceived == rfc3339(BEGIN_US)


def test_a_lone_silence_is_an_incident_once_it_has_lasted_twice_what_was_waited_for() -> None:
    first = alert("silence", 0, severity="critical", value=480.0)
    assert story(first, alert("silence", 7, action="resolved")) == []
    opened, _ = story(first, alert("silence", 20, action="resolved"))
    assert (opened.severity, opened.lastReceived) == ("critical", rfc3339(BEGIN_US + 8 * MINUTE))
    both = story(first, alert("silence", 2, model="a2", severity="critical", value=480.0))
    assert (both[0].severity, both[0].lastReceived) == ("critical", rfc3339(BEGIN_US + 2 * MINUTE))


def test_a_silence_beside_another_alert_is_critical_once_it_has_lasted_as_long() -> None:
    def steps(*more: Alert) -> list[tuple[str, str, str]]:
        silent = alert("silence", 3, severity="critical", value=480.0)
        found = story(alert("latency_p95", 0), silent, *more)
        return [(i.action, i.severity, i.lastReceived) for i in found if i.action != "updated"][:2]

    at = [rfc3339(BEGIN_US + k * MINUTE) for k in range(60)]
    opened = ("opened", "warning", at[3])
    # A gap a little longer than any before, which ends: nobody is woken for it.
    chance = steps(alert("silence", 9, action="resolved"), alert("latency_p95", 30, action="resolved"))
    assert chance[0] == opened
    assert chance[1][0] == "resolved"
    assert steps(alert("silence", 40, action="resolved"), alert("latency_p95", 41, action="resolved")) == [
        opened, ("escalated", "critical", at[11])
    ]  # fmt: skip
    # Of two silences of one model, of its predictions and of its labels, each has its own time.
    labels = alert("silence", 5, episode=7, severity="critical", value=3600.0)
    both = steps(labels, alert("silence", 9, episode=7, action="resolved"), alert("latency_p95", 40, action="resolved"))
    assert both == [opened, ("escalated", "critical", at[11])]
    # That of a second model is no chance, if the first still lasts.
    over = alert("silence", 4, action="resolved")
    assert steps(over, alert("silence", 9, model="a2", severity="critical", value=480.0))[:2] != [
        opened, ("escalated", "critical", at[9])
    ]  # fmt: skip
    other = alert("silence", 5, model="a2", severity="critical", value=480.0)
    assert steps(other) == [opened, ("escalated", "critical", at[5])]


def test_an_alert_that_became_critical_makes_its_incident_so_at_once() -> None:
    # Alone it stays what it is: one signal is no outage for lasting.
    opened, *_ = story(alert("latency_p95", 0), alert("latency_p95", 6, action="escalated", severity="critical"))
    assert (opened.action, opened.severity) == ("opened", "warning")
    assert opened.lastReceived == rfc3339(BEGIN_US + 15 * MINUTE)
    found = story(
        alert("latency_p95", 0),
        alert("error_rate", 1),
        alert("latency_p95", 6, action="escalated", severity="critical"),
    )
    assert [(i.action, i.severity) for i in found][:2] == [("opened", "warning"), ("escalated", "critical")]


def test_another_config_keeps_what_is_open() -> None:
    p = agent()
    (opened,) = p.process(records([alert("error_rate", 0, severity="critical")])).incidents
    p.reconfigure(RuleBook(config(CONFIG + "incidents: {quiet: 1h}")))
    end = records([alert("error_rate", 5, action="resolved")], first=1)
    (resolved,) = p.process(end).incidents + p.advance(BEGIN_US + 5 * HOUR).incidents
    assert resolved.incident_id == opened.incident_id
    assert resolved.lastReceived == rfc3339(BEGIN_US + 65 * MINUTE)


def test_the_documented_table_is_the_one_in_force() -> None:
    text = (Path(__file__).parents[2] / "docs" / "incidents.md").read_text()
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    told = {r[0].strip(" `"): [c.strip() for c in r[1:]] for r in lines}
    for rule in causes.RULES:
        cause, any_of, also, without, weight, action = told[rule.name]
        assert (cause, weight, action) == (rule.cause, f"{rule.weight:g}", rule.action)
        assert any_of == ", ".join(rule.any_of)
        assert without == (", ".join(rule.without) or "-")
        assert all(word in also for word in (*rule.with_, *rule.shared))
        assert ("version" in also) == rule.version


def test_every_signal_is_a_symptom_of_something() -> None:
    unknown = {s for s in SIGNALS_KNOWN if causes.group_of(s, up=True) == "other"}
    assert unknown == {"label_share", "label_delay", "unlabelled"}


def test_what_is_silenced_opens_no_incident_and_yet_ends_one() -> None:
    assert story(alert("error_rate", 0, severity="critical", suppressed_by="maintenance")) == []
    found = story(
        alert("error_rate", 0, severity="critical"),
        alert("error_rate", 9, action="resolved", suppressed_by="maintenance"),
    )
    assert [(i.action, i.endsAt) for i in found] == [("opened", None), ("resolved", rfc3339(BEGIN_US + 9 * MINUTE))]
    # Told of once more when the silence is over, it counts once.
    again = alert("error_rate", 5, severity="critical")
    opened, resolved = story(again, alert("error_rate", 6, severity="critical", id="once more"))
    assert (opened.alerts, resolved.alerts) == (1, 1)


def test_what_joins_long_after_is_told_of_then() -> None:
    found = story(
        alert("error_rate", 0, severity="critical"),
        alert("missing_features", 300, model="a2", severity="critical"),
        alert("latency_p95", 300, model="a1"),
        alert("error_rate", 310, episode=1, severity="critical"),
        alert("silence", 312, model="a3", severity="critical"),
    )
    assert [i.lastReceived for i in found] == sorted(i.lastReceived for i in found)


def test_copies_of_an_alert_open_nothing_anew() -> None:
    one = [alert("silence", 0, severity="critical"), alert("silence", 30, action="resolved")]
    p = agent()
    found = p.process(records([one[0], one[0], one[1], one[0], one[1]])).incidents
    found += p.advance(BEGIN_US + 5 * HOUR).incidents
    assert said(found) == [("opened", "infra"), ("resolved", "infra")]


def test_a_storm_of_alerts_is_one_incident_of_bounded_size_and_few_words() -> None:
    p = agent()
    found = p.process(records([alert("silence", k / 600, model=f"a{k}", severity="critical") for k in range(3000)]))
    found.incidents += p.advance(BEGIN_US + 2 * HOUR).incidents
    assert len({i.incident_id for i in found.incidents}) == 1
    assert len(found.incidents) <= 4
    last = found.incidents[-1]
    assert (last.alerts, len(last.models), last.more_models) == (3000, 50, 2950)
    assert len(last.symptoms) == 50
    assert last.more_symptoms == 3000 - 50 - 1
    assert max(len(incident_json(i)) for i in found.incidents) < 100_000
    ends = [alert("silence", 200, model=f"a{k}", action="resolved") for k in range(3000)]
    rest = p.process(records(ends, first=3000)).incidents + p.advance(BEGIN_US + 9 * HOUR).incidents
    assert [i.action for i in rest] == ["resolved"]
    assert p.models["fleet"].open == p.models["fleet"].of == {}  # type: ignore[attr-defined]


def test_what_comes_out_validates_and_the_cloudevents_package_reads_it() -> None:
    kafka = pytest.importorskip("cloudevents.core.bindings.kafka")
    from cloudevents.core.formats.json import JSONFormat

    validator = jsonschema.Draft202012Validator(schema.schemas()["incident.v1"])
    change = [Changed("version", "8", "7", rfc3339(BEGIN_US - 5 * MINUTE))]
    for incident in story(
        alert("missing_features", 0, attribution=[Share("x", 1.0)], changes=change, n=60),
        alert("error_rate", 1, severity="critical"),
        *(alert(s, 60, action="resolved") for s in ("missing_features", "error_rate")),
    ):
        value, headers = encode_incident(incident, source="here")
        validator.validate(orjson.loads(value))
        event = kafka.from_binary_event(kafka.KafkaMessage(headers=dict(headers), key=None, value=value), JSONFormat())
        assert event.get_type() == "io.streamproc.incident.v1"
        assert event.get_id() == incident.id
        assert event.get_extension("correlationid") == incident.incident_id
        assert event.get_data() == orjson.loads(value)


SIGNALS = ["latency_p95", "silence", "missing_features", "feature_drift", "prediction_value", "throughput"]


@settings(max_examples=80, deadline=None)
@given(
    data=st.lists(
        st.tuples(
            st.sampled_from(["a1", "a2", "b1", "x"]),
            st.sampled_from(SIGNALS),
            st.sampled_from(["opened", "opened", "resolved"]),
            st.sampled_from(["warning", "warning", "critical"]),
            st.floats(0, 40),
            st.booleans(),
        ),
        min_size=1,
        max_size=50,
    ),
    cuts=st.lists(st.integers(1, 49), max_size=5),
    stop=st.integers(0, 49),
    lag=st.sampled_from([0, 3 * HOUR]),
)
def test_wherever_the_log_is_cut_or_restored_the_same_incidents_come_and_each_ends_once(
    data: list[tuple[str, str, str, str, float, bool]], cuts: list[int], stop: int, lag: int
) -> None:
    alerts, minute = [], 0.0
    for model, signal, action, severity, wait, carried in data:
        minute += wait
        more: dict[str, Any] = {"attribution": [Share("f", 1.0)]} if carried else {}
        alerts.append(alert(signal, minute, model=model, action=action, severity=severity, **more))
    whole = records(alerts, lag_us=lag)
    end = BEGIN_US + round(minute * MINUTE) + 20 * 24 * HOUR
    one = agent()
    expected = one.process(whole).incidents + one.advance(end).incidents
    other, found = agent(), []
    for part in cut(whole, [*cuts, stop]):
        found += other.process(part).incidents
        if part.offsets[-1] + 1 == stop:
            manifest, models = other.manifest(), list(other.snapshot_models(list(other.models)))
            other = agent()
            other.restore_manifest(orjson.loads(orjson.dumps(manifest)))
            for name, saved in models:
                other.restore_model(name, saved)
            other.restored()
    found += other.advance(end).incidents
    assert list(map(incident_json, found)) == list(map(incident_json, expected))
    for name, state in one.models.items():
        assert dumps(other.models[name].snapshot()) == dumps(state.snapshot())
    # Each is opened once, and resolved once, and nothing is said of it before or after.
    for incident_id in {i.incident_id for i in found}:
        actions = [i.action for i in found if i.incident_id == incident_id]
        assert (actions[0], actions[-1]) == ("opened", "resolved")
        assert set(actions[1:-1]) <= {"updated", "escalated"}
        told = [i.lastReceived for i in found if i.incident_id == incident_id]
        assert told == sorted(told)
    assert len({i.id for i in found}) == len(found)


def test_what_is_kept_is_bounded_however_many_alerts_and_incidents_there_are() -> None:
    p = agent(extra="")
    many = [
        alert(f"metric:m{k}", k / 1000, model=f"x{i}", attribution=[Share(f"f{i}-{k}", 1.0)], summary="long " * 200)
        for k in range(12)
        for i in range(700)
    ]
    p.process(records(many))
    (state,) = (dumps(s.snapshot()) for s in p.models.values())
    assert len(state) < 8_000_000
