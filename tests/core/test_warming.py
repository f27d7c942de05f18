"""While a model warms up: what is never normal alerts all the same, and is not what it learns as its norm."""

from __future__ import annotations

from typing import Any

from streamproc.events import Alert, Feedback, RecordBatch
from tests.core.make import BEGIN_US, SECOND, batch, config, cut, feed, pipeline, prediction, state

CONFIG = """
defaults:
  window: 1s
  lateness: 0s
  min_samples: 5
  resolve_after: 5s
  signals:
    error_rate: {params: {warm_up: 30, window: 60}}
    latency_p95: {params: {warm_up: 30, window: 60}, min_samples: 5}
    throughput: {mode: "off"}
    silence: {mode: "off"}
"""


def failing(*, share: float, seconds: int, begins: int = 0, ends: int = 10_000, **bad: Any) -> RecordBatch:
    """Ten requests a second; of each ten between two seconds a share fails, and is as slow as said."""
    events, stamps = [], []
    for i in range(seconds * 10):
        at = BEGIN_US + i * SECOND // 10
        fails = begins <= i // 10 < ends and i % 10 < share * 10
        slow = {"duration_s": 5.0 if begins <= i // 10 < ends else 0.02 + 0.001 * (i % 7)}
        more = {"error": {"type": "timeout"}, **bad} if fails else {}
        events.append(prediction(at, **slow, **more))
        stamps.append(at)
    return batch(events, stamps_us=stamps)


def of(signal: str, alerts: list[Alert]) -> list[tuple[str, str]]:
    return [(a.action, a.severity) for a in alerts if a.signal == signal]


def test_half_of_all_requests_failing_is_critical_from_the_first_window() -> None:
    (first,) = [a for a in feed(pipeline(config(CONFIG)), [failing(share=0.5, seconds=8)]) if a.signal == "error_rate"]
    assert (first.action, first.severity, first.value, first.n) == ("opened", "critical", 0.5, 10)
    assert first.summary.startswith("fraud: error_rate is 0.5, the limit is 0.5")


def test_less_than_half_is_learned_and_a_few_requests_say_nothing() -> None:
    assert of("error_rate", feed(pipeline(config(CONFIG)), [failing(share=0.4, seconds=8)])) == []
    few = batch([prediction(BEGIN_US + i * SECOND, error={"type": "timeout"}) for i in range(8)])
    assert of("error_rate", feed(pipeline(config(CONFIG)), [few])) == []


def test_a_fault_while_warming_up_is_not_learned_as_the_norm() -> None:
    # Twenty seconds of failures in a warm-up of thirty windows, and once more after it.
    events = failing(share=1.0, seconds=130, begins=5, ends=25)
    again = failing(share=0.3, seconds=10, begins=0)
    later = [{**_decoded(v), "time": BEGIN_US + (130 * 10 + i) * SECOND // 10} for i, v in enumerate(again.values)]
    p = pipeline(config(CONFIG))
    alerts = feed(p, [events, batch(later, first=1300, stamps_us=[int(e["time"]) for e in later])])
    assert of("error_rate", alerts) == [("opened", "critical"), ("resolved", "critical"), ("opened", "critical")]
    # Nor was the latency of those seconds: what came with the second fault is out of the ordinary.
    assert of("latency_p95", alerts) == [("opened", "warning")]


def _decoded(value: bytes | None) -> dict[str, Any]:
    import orjson

    assert value is not None
    found: dict[str, Any] = orjson.loads(value)
    return found


def test_who_sets_a_limit_means_that_one() -> None:
    own = CONFIG.replace("error_rate: {", "error_rate: {upper_limit: 90%, ")
    assert of("error_rate", feed(pipeline(config(own)), [failing(share=0.8, seconds=8)])) == []
    found = feed(pipeline(config(own)), [failing(share=1.0, seconds=8)])
    assert [(a.detector.name, a.action) for a in found if a.signal == "error_rate"] == [("limits", "opened")]


def test_what_an_operator_says_is_no_anomaly_is_learned_from_then_on() -> None:
    p = pipeline(config(CONFIG))
    (opened,) = [a for a in feed(p, [failing(share=0.7, seconds=8)]) if a.signal == "error_rate"]
    verdict = Feedback(fingerprint=opened.fingerprint, verdict="NOT_ANOMALY")
    assert of("error_rate", p.feedback([(0, verdict)]).alerts) == [("resolved", "critical")]
    saved = state(p)
    p = pipeline(config(CONFIG))
    for name, data in saved.items():
        p.restore_model(name, data)
    p.restored()
    rest = failing(share=0.7, seconds=60)
    later = [{**_decoded(v), "time": BEGIN_US + (80 + i) * SECOND // 10} for i, v in enumerate(rest.values)]
    found = p.process(batch(later, first=80, stamps_us=[int(e["time"]) for e in later])).alerts
    assert of("error_rate", found) == []
    assert p.models["fraud"].watches["error_rate", "robust_z"].detector.warming() == 0


def test_it_is_so_wherever_the_log_is_cut() -> None:
    whole = failing(share=1.0, seconds=80, begins=5, ends=25)
    one, other = pipeline(config(CONFIG)), pipeline(config(CONFIG))
    expected = feed(one, [whole])
    assert feed(other, cut(whole, range(1, 800, 7))) == expected
    assert state(one) == state(other)


POINTS = """
defaults:
  signals:
    silence: {mode: "off"}
    metric: {detector: robust_z, params: {warm_up: 20, window: 60}, upper_limit: 90}
"""


def test_points_beyond_an_operators_limit_are_not_learned_while_warming_up_wherever_the_log_is_cut() -> None:
    values = [50.0 + k % 5 for k in range(10)] + [99.0] * 15 + [50.0 + k % 5 for k in range(15)] + [80.0] * 4
    points = [{"source": "gpu", "name": "temperature", "time": BEGIN_US + k * SECOND, "value": v, "model": "m"}
              for k, v in enumerate(values)]  # fmt: skip
    whole = batch(points, stamps_us=[int(p["time"]) for p in points], topic="telemetry")
    found = []
    for at in ([], [1, 5, 9, 10, 11, 20, 26], range(44)):
        p = pipeline(config(POINTS), kind="telemetry")
        alerts = feed(p, cut(whole, at))
        assert {a.detector.name for a in alerts} == {"limits", "robust_z"}
        found.append((sorted(a.id for a in alerts), state(p)))
    assert found[0] == found[1] == found[2]
