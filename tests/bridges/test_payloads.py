"""What each receiver is sent, without any."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.bridges import payloads
from streamproc.bridges.sinks import Answer, Refused, Unavailable
from streamproc.bridges.steps import Step, Track, decode
from streamproc.config import AlertmanagerBridge, PagerdutyBridge
from tests.bridges.harness import alert, incident
from tests.bridges.servers import CLOUDEVENT, PAGERDUTY_EVENT, SLACK_MESSAGE, wrong

KEY = "e93facc04764012d7bfb002500d5d1a6"
AM = AlertmanagerBridge(urls=["http://x"])
SECOND = 1_000_000


def steps(*records: dict[str, Any], at_ms: int = 1_000_000) -> list[Step]:
    track = Track()
    made = [track.take(decode(orjson.dumps(r)), orjson.dumps(r), [], at_ms + i) for i, r in enumerate(records)]
    return [s for s in made if s is not None]


def test_labels_carry_identity_and_annotations_what_changes() -> None:
    (step,) = steps(alert())
    (sent,) = payloads.alertmanager_alerts([step.episode], now_us=2_000 * SECOND, config=AM)
    assert set(sent["labels"]) == {"alertname", "model", "severity", "signal", "detector"}
    assert {"score", "value", "summary", "runbook_url"} <= set(sent["annotations"])
    assert sent["endsAt"] == "1970-01-01T00:37:20.000000Z"  # four resends from now


def test_an_escalation_ends_the_old_set_of_labels_and_fires_the_new_one() -> None:
    *_, step = steps(alert(), alert(action="escalated", severity="critical"))
    sent = payloads.alertmanager_alerts([step.episode], now_us=1_010 * SECOND, config=AM)
    ends = {a["labels"]["severity"]: a["endsAt"] for a in sent}
    assert ends["critical"] > "1970-01-01T00:20"
    assert ends["warning"] < "1970-01-01T00:17"


def test_what_is_resolved_is_resent_for_five_minutes_and_no_longer() -> None:
    *_, step = steps(alert(), alert(action="resolved"))
    for after_s, count in ((1, 1), (299, 1), (301, 0)):
        sent = payloads.alertmanager_alerts([step.episode], now_us=(1_000 + after_s) * SECOND, config=AM)
        assert len(sent) == count, after_s


def test_labels_that_fire_again_in_another_episode_are_not_resolved_by_the_first() -> None:
    made = steps(alert(episode="one"), alert(action="resolved", episode="one"), alert(episode="two"))
    sent = payloads.alertmanager_alerts(
        {s.episode.id: s.episode for s in made}.values(), now_us=1_001 * SECOND, config=AM
    )
    assert [a["annotations"]["episode"] for a in sent] == ["two"]


def test_times_that_alertmanager_refuses_are_never_sent() -> None:
    record = alert(action="resolved") | {"startsAt": "2999-01-01T00:00:00Z", "endsAt": "1970-01-01T00:00:01Z"}
    (step,) = steps(record)
    (sent,) = payloads.alertmanager_alerts([step.episode], now_us=1_001 * SECOND, config=AM)
    assert sent["startsAt"] <= sent["endsAt"] <= "1970-01-01T00:16:41.000000Z"


def test_two_incidents_of_equal_labels_are_two_alerts() -> None:
    one, other = steps(incident(episode="a"), incident(episode="b", fingerprint="other"))
    sent = payloads.alertmanager_alerts([one.episode, other.episode], now_us=1_001 * SECOND, config=AM)
    assert len({tuple(sorted(a["labels"].items())) for a in sent}) == 2


@pytest.mark.parametrize(
    ("severity", "chosen", "expected"),
    [("critical", {}, "critical"), ("warning", {}, "warning"), ("info", {}, "info"), ("odd", {}, "warning"),
     ("warning", {"warning": "error"}, "error")],
)  # fmt: skip
def test_severities_are_pagerdutys(severity: str, chosen: Any, expected: str) -> None:
    (step,) = steps(alert(severity=severity))
    sent = payloads.pagerduty_event(step, PagerdutyBridge(routing_key=KEY, severities=chosen))
    assert sent is not None
    assert sent["payload"]["severity"] == expected
    assert wrong(sent, PAGERDUTY_EVENT) is None


def test_a_condition_that_fires_elsewhere_still_is_not_resolved_at_pagerduty() -> None:
    opened = [alert(episode="1"), alert(episode="2")]
    *_, first, second = steps(*opened, alert(action="resolved", episode="1"), alert(action="resolved", episode="2"))
    assert payloads.pagerduty_event(first, PagerdutyBridge(routing_key=KEY)) is None
    resolved = payloads.pagerduty_event(second, PagerdutyBridge(routing_key=KEY))
    assert resolved == {"routing_key": KEY, "event_action": "resolve", "dedup_key": "fp-fraud"}


def test_an_update_can_acknowledge_or_be_left_out() -> None:
    _, step = steps(alert(), alert(action="updated"))
    event = payloads.pagerduty_event(step, PagerdutyBridge(routing_key=KEY, actions={"updated": "acknowledge"}))
    assert event is not None
    assert event["event_action"] == "acknowledge"
    assert wrong(event, PAGERDUTY_EVENT) is None
    assert payloads.pagerduty_event(step, PagerdutyBridge(routing_key=KEY, actions={"updated": "none"})) is None


_TEXTS = st.text(max_size=4000)


@given(_TEXTS, _TEXTS, st.dictionaries(st.text(max_size=40), st.text(max_size=4000), max_size=4), st.text(min_size=1))
def test_whatever_an_alert_says_its_receivers_schemas_hold(
    summary: str, name: str, labels: dict[str, str], fingerprint: str
) -> None:
    record = alert(severity="critical") | {"summary": summary, "name": name, "labels": labels, "description": summary,
                                           "fingerprint": fingerprint * 200, "id": "i"}  # fmt: skip
    (step,) = steps(record)
    assert wrong(payloads.pagerduty_event(step, PagerdutyBridge(routing_key=KEY)), PAGERDUTY_EVENT) is None
    assert wrong(payloads.slack_message(step, "https://dash/{model}"), SLACK_MESSAGE) is None
    for sent in payloads.alertmanager_alerts([step.episode], now_us=2_000 * SECOND, config=AM):
        assert all(k.isascii() and k.replace("_", "a").isalnum() and not k[0].isdigit() for k in sent["labels"])
        assert all(sent["labels"].values())
    body, _ = payloads.webhook(payloads.cloudevent(step, source="s"), step.value)
    assert wrong(orjson.loads(body), CLOUDEVENT) is None


def test_a_header_of_a_binary_cloudevent_is_ascii() -> None:
    (step,) = steps(alert())
    attributes = payloads.cloudevent(step, source="größe %") | {"subject": "a\nb"}
    _, headers = payloads.webhook(attributes, b"{}", mode="binary")
    assert headers["ce-source"] == "gr%C3%B6%C3%9Fe %25"
    assert headers["ce-subject"] == "a%0Ab"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_a_record_is_refused(status: int) -> None:
    with pytest.raises(Refused, match="said why"):
        Answer("host", status, {}, b"said why").check()


@pytest.mark.parametrize("status", [301, 401, 403, 404, 408, 410, 429, 500, 502, 503])
def test_what_an_operator_or_time_mends_is_waited_for(status: int) -> None:
    with pytest.raises(Unavailable) as raised:
        Answer("host", status, {"Retry-After": "30"}, b"").check()
    assert raised.value.after_s == 30
