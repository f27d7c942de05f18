"""What is told is a function of the topic: copies, late steps, silences, restarts."""

from __future__ import annotations

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc import cloudevents
from streamproc.bridges.steps import Event, Step, Track, decode
from streamproc.events import Alert, DetectorRef
from tests.bridges.harness import alert, incident


def event(*args: object, **more: object) -> Event:
    return decode(orjson.dumps(alert(*args, **more)))  # type: ignore[arg-type]


def take(track: Track, made: Event, at_ms: int = 0) -> Step | None:
    return track.take(made, b"{}", [], at_ms)


def test_an_alert_as_the_worker_encodes_it_is_read() -> None:
    made = Alert(
        id="1", fingerprint="f", episode_id="e", name="n", status="firing", severity="critical", summary="s",
        action="opened", labels={"model": "m"}, annotations={}, startsAt="2026-01-01T00:00:00Z",
        lastReceived="2026-01-01T00:00:00Z", signal="latency", detector=DetectorRef("spike", "0"), score=1.5,
    )  # fmt: skip
    value, _ = cloudevents.encode_alert(made, source="s")
    read = decode(value)
    assert (read.id, read.episode, read.severity, read.score) == ("1", "e", "critical", 1.5)
    assert read.all_labels == {"alertname": "n", "model": "m", "severity": "critical"}


def test_an_incident_goes_by_its_own_id_and_unknown_fields_are_no_trouble() -> None:
    read = decode(orjson.dumps(incident(whatever=[1, {"a": None}])))
    assert read.episode == "fraud-incident"
    assert read.cause is not None
    assert read.cause.category == "data"


def test_null_is_as_good_as_nothing() -> None:
    nothing = {"description": None, "signal": None, "category": None, "endsAt": None, "post_mortem": None}
    made = incident(**nothing, labels={"model": "m", "team": None}) | {"cause": {"category": None}}
    read = decode(orjson.dumps(made))
    assert read.description == ""
    assert read.all_labels["model"] == "m"
    assert "team" not in read.all_labels


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[]", b'{"id": 1}', orjson.dumps({**alert(), "status": "ok"})])
def test_what_is_neither_is_an_error_and_nothing_else(value: bytes | None) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode(value)


def test_a_copy_is_told_once_even_after_its_episode_has_ended() -> None:
    track = Track()
    opened, resolved = event(), event(action="resolved")
    assert [take(track, e) is not None for e in (opened, opened, resolved, opened, resolved)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert track.open() == []


def test_a_late_step_of_what_has_ended_is_not_told_and_a_newer_one_opens_it_anew() -> None:
    track = Track()
    late = event(action="updated")
    take(track, event())
    take(track, event(action="resolved"))
    assert take(track, late) is None
    assert track.skipped == "over"
    again = take(track, event(action="escalated", severity="critical"))
    assert again is not None
    assert again.episode.open


def test_what_is_silenced_is_not_told_nor_is_its_end() -> None:
    track = Track()
    assert take(track, event(suppressed_by=["s"])) is None
    assert take(track, event(action="resolved")) is None
    assert track.skipped == "untold"


def test_what_outlasts_its_silence_is_told_from_then_on() -> None:
    track = Track()
    assert take(track, event(suppressed_by=["s"])) is None
    step = take(track, event(action="updated"))
    assert step is not None
    assert step.first
    assert take(track, event(action="resolved")) is not None


def test_a_silence_that_begins_later_does_not_swallow_the_end() -> None:
    track = Track()
    take(track, event())
    assert take(track, event(action="updated", suppressed_by=["s"])) is None
    assert take(track, event(action="resolved", suppressed_by=["s"])) is not None


def test_a_condition_is_over_when_its_last_episode_is() -> None:
    track = Track()
    take(track, event(episode="one"))
    take(track, event(episode="two"))
    first = take(track, event(action="resolved", episode="one"))
    second = take(track, event(action="resolved", episode="two"))
    assert first is not None
    assert second is not None
    assert (first.last, second.last) == (False, True)


def test_an_end_whose_beginning_is_gone_from_the_topic_is_told() -> None:
    step = take(Track(), event(action="resolved"))
    assert step is not None
    assert step.last


def test_an_escalation_leaves_the_labels_before_it_worn_and_a_resolution_changes_none() -> None:
    track = Track()
    take(track, event(), 1)
    take(track, event(action="escalated", severity="critical"), 2)
    step = take(track, event(action="resolved", severity="critical", labels={"model_version": "2"}), 3)
    assert step is not None
    assert step.episode.labels["severity"] == "critical"
    assert "model_version" not in step.episode.labels
    assert [(w.labels["severity"], w.until_ms) for w in step.episode.worn] == [("warning", 2)]


_ACTIONS = st.tuples(
    st.sampled_from("abc"), st.integers(1, 3), st.sampled_from(["opened", "updated", "escalated", "resolved"])
)


@given(st.lists(_ACTIONS, max_size=30), st.integers(0, 30))
def test_wherever_a_restart_cuts_the_topic_what_is_told_after_it_is_the_same(
    log: list[tuple[str, int, str]], cut: int
) -> None:
    events = [
        msgspec.structs.replace(event(model, action, episode=f"{model}{n}"), lastReceived=f"2026-01-01T00:00:{i:02d}Z")
        for i, (model, n, action) in enumerate(log)
    ]

    def told(track: Track, part: list[Event]) -> list[tuple[str, bool, bool]]:
        steps = [take(track, e) for e in part]
        return [(s.event.id, s.first, s.last) for s in steps if s is not None]

    whole = Track()
    before = told(whole, events[:cut])
    after = told(whole, events[cut:])
    restarted = Track()
    assert told(restarted, events[:cut]) == before
    assert told(restarted, events[cut:]) == after
    assert len({i for i, *_ in before + after}) == len(before + after)  # no step twice


@given(st.lists(_ACTIONS, max_size=30), st.data())
def test_copies_anywhere_change_nothing(log: list[tuple[str, int, str]], data: st.DataObject) -> None:
    events = [
        msgspec.structs.replace(event(model, action, episode=f"{model}{n}"), lastReceived=f"2026-01-01T00:00:{i:02d}Z")
        for i, (model, n, action) in enumerate(log)
    ]
    with_copies: list[Event] = []
    for made in events:
        with_copies.append(made)
        if data.draw(st.booleans()):
            with_copies.append(data.draw(st.sampled_from(with_copies)))
    one, other = Track(), Track()
    told = [s.event.id for e in events if (s := take(one, e)) is not None]
    told_with_copies = [s.event.id for e in with_copies if (s := take(other, e)) is not None]
    assert told_with_copies == told
    assert [e.id for e in one.open()] == [e.id for e in other.open()]


def test_an_incident_as_it_is_published_is_read_and_says_what_to_do() -> None:
    from tests.core import test_incidents as grouping

    told = grouping.story(
        grouping.alert("missing_features", 0.0),
        grouping.alert("feature_drift", 1.0),
        grouping.alert("missing_features", 30.0, action="resolved"),
        grouping.alert("feature_drift", 31.0, action="resolved"),
    )
    events = [decode(cloudevents.incident_json(i)) for i in told]
    assert (events[0].action, events[-1].action) == ("opened", "resolved")
    assert len({e.episode for e in events}) == 1
    assert events[-1].action_suggested == "fix_feed"
