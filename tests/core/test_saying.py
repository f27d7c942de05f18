"""What alerts and incidents say of lengths of time and of records is so."""

from __future__ import annotations

from streamproc.events import Alert, Incident, RecordBatch, lasted
from streamproc.replay import Replay
from streamproc.rules import RuleBook
from tests.core.make import BEGIN_US, SECOND, batch, config, cut, feed, pipeline, prediction, state

CONFIG = """
defaults:
  window: 1s
  lateness: 0s
  min_samples: 3
  resolve_after: 20s
  signals:
    error_rate: {params: {warm_up: 5, window: 20}}
    throughput: {detector: robust_z, params: {warm_up: 5, window: 20}, breaches: 1/1, direction: down}
    silence: {mode: "off"}
incidents: {window: 10s, quiet: 10s}
"""


def a_fault(*, seconds: int = 200, begins: int = 60, ends: int = 70) -> RecordBatch:
    """Ten requests a second; between two seconds all of them fail."""
    events, stamps = [], []
    for i in range(seconds * 10):
        at = BEGIN_US + i * SECOND // 10
        bad = begins * 10 <= i < ends * 10
        events.append(prediction(at, error={"type": "timeout"}) if bad else prediction(at))
        stamps.append(at)
    return batch(events, stamps_us=stamps)


def test_what_is_over_says_how_long_the_fault_was_and_not_how_long_it_was_waited_for() -> None:
    alerts = [a for a in feed(pipeline(config(CONFIG)), [a_fault()]) if a.signal == "error_rate"]
    assert [a.action for a in alerts] == ["opened", "resolved"]
    over = alerts[-1]
    assert over.summary == "fraud: error_rate is back to normal after 10 s"
    assert over.impact is not None
    assert over.impact.duration_s == 10.0


def test_a_fault_of_one_window_lasted_for_a_window() -> None:
    alerts = [a for a in feed(pipeline(config(CONFIG)), [a_fault(ends=61)]) if a.signal == "error_rate"]
    assert alerts[-1].summary == "fraud: error_rate is back to normal after 1 s"


def test_an_incident_that_is_over_lasted_as_long_as_its_fault() -> None:
    run = Replay(RuleBook(config(CONFIG)), kind="predictions")
    lines = [v for v in a_fault().values if v is not None]
    found = [i for i in run.run(lines) if isinstance(i, Incident)]
    last = found[-1]
    assert (last.action, last.impact.duration_s) == ("resolved", 10.0)
    assert last.post_mortem is not None
    assert last.post_mortem.duration_s == 10.0
    assert last.summary.startswith("fraud: over after 10 s;")


def test_no_length_of_time_is_told_as_nothing() -> None:
    said = [lasted(s) for s in (0.0, 0.2, 1.0, 20.0, 119.0, 120.0, 7199.0, 7200.0)]
    assert said == ["0 s", "less than 1 s", "1 s", "20 s", "119 s", "2 min", "120 min", "2.0 h"]


def a_gap() -> RecordBatch:
    """Ten requests a second, with twelve seconds of none in the middle, and twelve more later."""
    seconds = [s for s in range(140) if not (60 <= s < 72 or 110 <= s < 122)]
    times = [BEGIN_US + s * SECOND + k * SECOND // 10 for s in seconds for k in range(10)]
    return batch([prediction(at) for at in times], stamps_us=times)


def empty_windows(alerts: list[Alert]) -> list[Alert]:
    return [a for a in alerts if a.signal == "throughput" and a.action == "opened" and a.value == 0.0]


def test_the_evidence_of_an_empty_window_is_the_last_record_before_it() -> None:
    whole = a_gap()
    opened = empty_windows(feed(pipeline(config(CONFIG)), [whole]))
    assert len(opened) == 2
    for alert, last in zip(opened, (599, 979), strict=True):
        assert alert.evidence is not None
        assert (alert.evidence.offset_first, alert.evidence.offset_last) == (last, last)
    assert opened[0].episode_id != opened[1].episode_id


def test_it_is_so_wherever_the_log_is_cut_or_restored() -> None:
    whole = a_gap()
    expected = empty_windows(feed(pipeline(config(CONFIG)), [whole]))
    p, found = pipeline(config(CONFIG)), list[Alert]()
    for part in cut(whole, [3, 599, 600, 601, 980]):
        found += p.process(part).alerts
        manifest, saved = p.manifest(), state(p)
        p = pipeline(config(CONFIG))
        p.restore_manifest(manifest)
        for name, data in saved.items():
            p.restore_model(name, data)
        p.restored()
    assert empty_windows(found) == expected
