"""Alerts as published, read back by the CloudEvents project's own package."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema
import pytest

from streamproc import cloudevents as ours
from streamproc import schema
from streamproc.events import Alert
from tests.core.make import config, feed, pipeline, quick, story


@functools.cache
def told(seed: int) -> tuple[Alert, ...]:
    extra = quick(latency_p99={"upper_limit": "900ms", "mode": "off"})
    extra += (
        "models:\n- match: {model: m0}\n  owner: risk\n  env: prod\n  runbook: 'https://r/{model}/{signal}'\n"
    )
    return tuple(feed(pipeline(config(extra)), [story(seed)]))


def alerts() -> list[Alert]:
    return [a for seed in range(3) for a in told(seed)]


def published(alert: Alert) -> tuple[dict[str, Any], dict[str, bytes]]:
    value, headers = ours.encode_alert(alert, source="streamproc/test")
    return json.loads(value), dict(headers)


def test_every_alert_is_a_cloudevent_to_the_package_of_the_standard() -> None:
    kafka = pytest.importorskip("cloudevents.core.bindings.kafka")
    for alert in alerts():
        value, headers = ours.encode_alert(alert, source="streamproc/test")
        message = kafka.KafkaMessage(headers=dict(headers), key=None, value=value)
        event = kafka.from_binary_event(message, _json())
        assert event.get_type() == "io.streamproc.alert.v1"
        assert (event.get_id(), event.get_source()) == (alert.id, "streamproc/test")
        assert event.get_time().isoformat() == alert.lastReceived.replace("Z", "+00:00").replace(
            ".000000", ""
        )
        assert event.get_extension("correlationid") == alert.episode_id
        assert event.get_data() == json.loads(value)


def _json() -> Any:
    from cloudevents.core.formats.json import JSONFormat

    return JSONFormat()


def test_every_alert_of_the_pipeline_is_valid_by_its_schema() -> None:
    validator = jsonschema.Draft202012Validator(schema.schemas()["alert.v1"])
    seen = set()
    for alert in alerts():
        validator.validate(published(alert)[0])
        seen.add((alert.signal.partition(":")[0], alert.action))
    assert len(seen) >= 10


def test_an_alert_has_all_that_the_contract_requires() -> None:
    required = {
        "id", "fingerprint", "episode_id", "name", "status", "severity", "summary", "labels", "annotations", "startsAt",
        "lastReceived", "signal", "detector", "score", "threshold", "schema_version", "source", "action",
    }  # fmt: skip
    for alert in alerts():
        data = published(alert)[0]
        assert required <= data.keys()
        assert data["source"] == ["streamproc"]
        assert {"alertname", "severity", "model", "signal"} <= data["labels"].keys()
        assert len(data["summary"]) <= 1024


def test_extension_names_are_ones_cloudevents_allows() -> None:
    for name in published(alerts()[0])[1]:
        if name.startswith("ce_"):
            assert name[3:].isalnum()
            assert name[3:] == name[3:].lower()
            assert len(name) - 3 <= 20


def test_ids_name_steps_and_fingerprints_name_conditions() -> None:
    steps = [a for a in told(0) if a.labels["model"] == "m0"]
    by_episode: dict[str, list[Alert]] = {}
    for a in steps:
        by_episode.setdefault(a.episode_id, []).append(a)
    for episode in by_episode.values():
        assert len({a.fingerprint for a in episode}) == 1
        told_of = [a.action for a in episode if a.action not in ("updated", "escalated")]
        assert told_of in (["opened"], ["opened", "resolved"])
        assert len({a.id for a in episode}) == len(episode)


def test_the_resolution_has_the_labels_of_the_opening() -> None:
    opened = {a.episode_id: a for a in told(0) if a.action == "opened"}
    resolved = [a for a in told(0) if a.action == "resolved"]
    assert resolved
    for a in resolved:
        assert a.labels == opened[a.episode_id].labels
        assert (a.status, a.endsAt is not None) == ("resolved", True)
        assert a.startsAt == opened[a.episode_id].startsAt


def test_owner_environment_and_runbook_reach_the_alert() -> None:
    alert = next(a for a in alerts() if a.labels["model"] == "m0" and a.signal == "latency_p95")
    assert (alert.labels["team"], alert.labels["env"], alert.environment) == ("risk", "prod", "prod")
    assert alert.annotations["runbook_url"] == alert.url == "https://r/m0/latency_p95"


def test_a_summary_says_model_signal_value_and_what_was_expected() -> None:
    alert = next(a for a in alerts() if a.signal == "latency_p95" and a.action == "opened")
    assert alert.summary.startswith(f"{alert.labels['model']}: latency_p95 is ")
    assert " ms, expected " in alert.summary
    assert "-" not in alert.summary.partition("expected")[2]  # no latency is below 0


def test_a_value_far_from_a_constant_past_is_told_the_constant() -> None:
    summaries = [a.summary for a in alerts() if a.signal == "missing_features" and a.action == "opened"]
    assert summaries
    assert all("e-0" not in s for s in summaries)
