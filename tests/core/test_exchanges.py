"""Requests and responses are joined whatever their order, and wherever the stream is cut or restarted."""

from __future__ import annotations

import functools
import math
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc import exchanges
from streamproc.events import Alert, RecordBatch, rfc3339
from streamproc.exchanges import Exchanges, key_of
from streamproc.pipeline import Pipeline
from streamproc.predictions import PredictionState
from tests.core.make import BEGIN_US, SECOND, config, cut, feed, pipeline, prediction, quick, state

CONFIG = quick() + "serving: {response_timeout: 3s, max_outstanding: 25}\n"

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

Record = tuple[int, bytes, bytes, list[tuple[str, bytes]]]  # microseconds of arrival, key, value, headers


def half(side: str, id: str, time_us: int, arrival_us: int, body: Any, *, model: str = "m0") -> Record:
    headers = {
        "ce_specversion": "1.0",
        "ce_type": f"org.kubeflow.serving.inference.{side}",
        "ce_source": "http://localhost:9081/",
        "ce_id": id,
        "ce_time": rfc3339(time_us),
        "ce_inferenceservicename": model,
        "ce_namespace": "prod",
        "content-type": "application/json",
    }
    return arrival_us, f"prod/{model}".encode(), orjson.dumps(body), [(k, v.encode()) for k, v in headers.items()]


def request(id: str, time_us: int, arrival_us: int | None = None, *, model: str = "m0", **body: Any) -> Record:
    body = body or {"instances": [{"x": 1.0, "y": "a"}]}
    return half("request", id, time_us, time_us if arrival_us is None else arrival_us, body, model=model)


def response(id: str, time_us: int, arrival_us: int | None = None, *, model: str = "m0", **body: Any) -> Record:
    body = body or {"predictions": [0.5]}
    return half("response", id, time_us, time_us if arrival_us is None else arrival_us, body, model=model)


def log(records: list[Record], *, first: int = 0) -> RecordBatch:
    n = len(records)
    return RecordBatch(
        "predictions",
        0,
        list(range(first, first + n)),
        [r[0] // 1000 for r in records],
        [r[1] for r in records],
        [r[2] for r in records],
        [r[3] for r in records],
    )


@functools.cache
def story(seed: int) -> RecordBatch:
    """Return a stream in which everything happens: any order, copies, late and missing responses, a pause."""
    rng = np.random.default_rng(seed)
    records: list[Record] = []
    now = BEGIN_US
    for i in range(300):
        now += int(rng.exponential(0.05) * SECOND) + (12 * SECOND if i == 240 else 0)
        model, bad = f"m{rng.integers(2)}", 120 < i < 180
        if rng.random() < 0.1:  # one that publishes whole predictions as well
            whole = orjson.dumps(prediction(now, f"prod/{model}", duration_s=0.1))
            records.append((now, f"prod/{model}".encode(), whole, []))
        took = int(rng.lognormal(0 if bad else -2, 0.3) * SECOND)
        begun = request(str(i), now, now + int(rng.exponential(0.02) * SECOND), model=model)
        late = 4 * SECOND if rng.random() < 0.05 else int(rng.exponential(0.02) * SECOND)
        ended = response(
            str(i), now + took, now + (late if rng.random() < 0.1 else took + late), model=model,
            **({"error": "x"} if bad and rng.random() < 0.2 else {"predictions": [float(rng.normal())]}),
        )  # fmt: skip
        there = [r for r, p in ((begun, 0.97), (ended, 0.6 if bad else 0.97)) if rng.random() < p]
        records += there
        if there and rng.random() < 0.1:
            records.append((there[0][0] + int(rng.exponential(1.0) * SECOND), *there[0][1:]))
    return log(sorted(records, key=lambda r: r[0]))


def ended(p: Pipeline) -> list[Alert]:
    """Let all that waits come to its end."""
    return p.advance(p.clock_us + 3600 * SECOND).alerts


@functools.cache
def undisturbed(seed: int) -> tuple[list[str], dict[str, bytes], dict[str, bytes]]:
    p = pipeline(config(CONFIG))
    alerts = feed(p, [story(seed)])
    at_end = state(p)
    alerts += ended(p)
    return sorted(map(repr, alerts)), at_end, state(p)


def test_the_story_of_these_tests_has_all_of_it() -> None:
    total: Counter[str] = Counter()
    for seed in range(4):
        p = pipeline(config(CONFIG))
        out = p.process(story(seed))
        for name in ("unanswered", "outnumbered", "repeated"):
            total[name] += getattr(out, name)
        total.update(a.signal for a in out.alerts)
    assert min(total[n] for n in ("unanswered", "outnumbered", "repeated", "latency_p95", "error_rate")) > 0


@few
@given(seed=st.integers(0, 3), edges=st.lists(st.integers(1, 600), max_size=40))
def test_cutting_the_stream_changes_no_alert_and_no_bit_of_state(seed: int, edges: list[int]) -> None:
    p = pipeline(config(CONFIG))
    alerts = feed(p, cut(story(seed), edges))
    assert state(p) == undisturbed(seed)[1]
    alerts += ended(p)
    assert sorted(map(repr, alerts)) == undisturbed(seed)[0]
    assert state(p) == undisturbed(seed)[2]


@pytest.mark.parametrize("seed", range(4))
def test_one_record_at_a_time_changes_no_alert_and_no_bit_of_state(seed: int) -> None:
    p = pipeline(config(CONFIG))
    alerts = feed(p, cut(story(seed), range(1000)))
    assert state(p) == undisturbed(seed)[1]
    alerts += ended(p)
    assert sorted(map(repr, alerts)) == undisturbed(seed)[0]


@few
@given(seed=st.integers(0, 3), at=st.integers(1, 500), back=st.integers(0, 200), edges=st.lists(st.integers(1, 600)))
def test_a_restart_anywhere_goes_on_to_the_bit(seed: int, at: int, back: int, edges: list[int]) -> None:
    whole = story(seed)
    first = pipeline(config(CONFIG))
    alerts = feed(first, cut(whole, [at])[:1])
    second = pipeline(config(CONFIG))
    second.restore_manifest(first.manifest())
    for name, data in first.snapshot_models(list(first.models)):
        second.restore_model(name, data)
    second.restored()
    # Read again from further back, as after a crash: the fence passes over what the state has seen.
    begin = max(0, at - back)
    alerts += feed(second, cut(cut(whole, [begin])[-1] if begin else whole, edges))
    assert state(second) == undisturbed(seed)[1]
    alerts += ended(second)
    assert sorted(map(repr, alerts)) == undisturbed(seed)[0]


def test_a_clock_that_passes_without_records_gives_up_at_the_same_moments() -> None:
    p = pipeline(config(CONFIG))
    alerts = []
    for piece in cut(story(1), range(0, 600, 7)):
        p.advance(piece.timestamps_ms[0] * 1000)  # no further than the next record itself moves it
        alerts += p.process(piece).alerts
    assert state(p) == undisturbed(1)[1]


# ------------------------------------------------------------------------------ an oracle


def joined(records: list[Record], *, timeout: str = "60s", limit: int = 1000) -> list[tuple[Any, ...]]:
    """Return time, latency, failure, value and features of each prediction that records come to."""
    p = pipeline(config(f"serving: {{response_timeout: {timeout}, max_outstanding: {limit}}}\n"))
    found: list[tuple[Any, ...]] = []
    observe = PredictionState._observe

    def spy(self: PredictionState, group: Any) -> Any:
        what = group.what
        rows = zip(
            group.times.tolist(), what.latency.tolist(), what.failed.tolist(), what.values.tolist(),
            what.features.rows(), strict=True,
        )  # fmt: skip
        found.extend((t, None if math.isnan(s) else s, f, None if math.isnan(v) else v, x) for t, s, f, v, x in rows)
        return observe(self, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictionState, "_observe", spy)
        p.process(log(records))
        p.advance(p.clock_us + 600 * SECOND)
    return found


FEATURES = {"x": 1.0, "y": "a"}


def test_a_pair_is_one_prediction_at_the_time_of_its_response() -> None:
    pair = [request("1", BEGIN_US), response("1", BEGIN_US + 250_000)]
    expected = [(BEGIN_US + 250_000, 0.25, False, 0.5, FEATURES)]
    assert joined(pair) == expected
    assert joined([pair[1], (pair[1][0], *pair[0][1:])]) == expected  # the response comes first


@few
@given(data=st.data(), n=st.integers(1, 30))
def test_any_order_of_arrival_and_any_copies_give_the_same_predictions(data: Any, n: int) -> None:
    took = data.draw(st.lists(st.integers(1, 2_000_000), min_size=n, max_size=n))
    times = [BEGIN_US + 1000 * i for i in range(n)]
    halves = [request(str(i), times[i]) for i in range(n)] + [response(str(i), times[i] + took[i]) for i in range(n)]
    copies = data.draw(st.lists(st.sampled_from(halves), max_size=10))
    order = data.draw(st.permutations(halves + copies))
    found = joined([(BEGIN_US + 1000 * k, *r[1:]) for k, r in enumerate(order)])
    assert sorted(found) == sorted((times[i] + took[i], took[i] / 1e6, False, 0.5, FEATURES) for i in range(n))


def test_a_request_without_a_response_is_a_failure_when_it_is_given_up_on() -> None:
    found = joined([*pair_of("0"), request("1", BEGIN_US)], timeout="5s")
    assert found[1:] == [(BEGIN_US + 5 * SECOND, None, True, None, FEATURES)]


def pair_of(id: str) -> list[Record]:
    return [request(id, BEGIN_US), response(id, BEGIN_US)]


def test_a_response_that_comes_too_late_changes_nothing() -> None:
    late = [*pair_of("0"), request("1", BEGIN_US), response("1", BEGIN_US + 7 * SECOND)]
    assert joined(late, timeout="5s")[1:] == [(BEGIN_US + 5 * SECOND, None, True, None, FEATURES)]


def test_a_response_at_the_very_end_of_the_timeout_is_too_late() -> None:
    for wait, failed in ((4_999, False), (5_000, True)):
        found = joined([*pair_of("0"), request("1", BEGIN_US), response("1", BEGIN_US + wait * 1000)], timeout="5s")
        assert found[1][2] == failed


def test_a_logger_of_requests_alone_tells_of_no_failure() -> None:
    found = joined([request(str(i), BEGIN_US) for i in range(3)], timeout="5s")
    assert [(f[2], f[4]) for f in found] == [(False, FEATURES)] * 3


def test_a_logger_of_responses_alone_waits_only_once() -> None:
    first = response("1", BEGIN_US)
    second = response("2", BEGIN_US + 20 * SECOND)
    found = joined([first, second], timeout="5s")
    assert found == [(BEGIN_US + 5 * SECOND, None, False, 0.5, None), (BEGIN_US + 20 * SECOND, None, False, 0.5, None)]


def test_what_waits_is_bounded_and_the_oldest_gives_way() -> None:
    many = [*pair_of("x"), *(request(str(i), BEGIN_US + i * 1000) for i in range(10))]
    p = pipeline(config("serving: {max_outstanding: 4}\n"))
    out = p.process(log(many))
    assert (out.outnumbered, out.unanswered) == (6, 6)
    model = p.models["prod/m0"]
    assert isinstance(model, PredictionState)
    keys = [w.key for w in model.exchanges.waiting.values()]
    assert keys == [key_of(f"http://localhost:9081/\n{i}") for i in (6, 7, 8, 9)]
    for i in range(100):
        p.process(log(pair_of(f"y{i}"), first=12 + 2 * i))
    assert len(model.exchanges.over) == 8


def test_what_waits_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_HELD", 1000)
    p = pipeline(config())
    many = [request(str(i), BEGIN_US + i * 1000, instances=[{"feature": "x" * 93}]) for i in range(30)]
    p.process(log([*pair_of("x"), *many]))
    model = p.models["prod/m0"]
    assert isinstance(model, PredictionState)
    of = model.exchanges
    assert [w.features is not None for w in of.waiting.values()] == [True] * 10 + [False] * 20
    restored = Exchanges(timeout_us=SECOND, limit=100)
    restored.restore(of.snapshot())
    assert restored.held == of.held == 1000
    p.advance(p.clock_us + 100 * SECOND)
    assert of.held == 0


def test_a_state_of_the_most_that_may_wait_can_be_stored() -> None:
    from detectors import state as codec
    from streamproc.topology import MAX_RECORD_BYTES

    most = 50_000  # what a config may ask for
    big = (1 << 31) - 1
    bare = [True, BEGIN_US, BEGIN_US, 0.1, None, False, "a version", None, None, big, 1, "", [0.1, 0.2], big]
    rest = [True, True, False, True, BEGIN_US, 1 << 40, 1 << 40, 1 << 40]
    of = Exchanges(timeout_us=SECOND, limit=most)
    keys = [i - (1 << 62) for i in range(2 * most)]
    of.restore([[[*bare, k, False] for k in keys[:most]], [[k, BEGIN_US, big, big, big, big] for k in keys], rest])
    # What is held weighs a few bytes more once it is written.
    assert len(codec.dumps({"exchanges": of.snapshot()})) + 1.3 * exchanges.MAX_HELD < MAX_RECORD_BYTES


def test_requests_of_one_id_from_two_sources_are_two() -> None:
    other = [(k, b"http://other/" if k == "ce_source" else v) for k, v in request("1", BEGIN_US)[3]]
    records = [request("1", BEGIN_US), (*request("1", BEGIN_US)[:3], other), *pair_of("0")]
    assert len(joined(records, timeout="5s")) == 3


def test_a_model_of_whole_predictions_has_no_state_of_exchanges() -> None:
    p = pipeline(config())
    p.process(log([(BEGIN_US, b"m", orjson.dumps(prediction(BEGIN_US, "m")), [])]))
    model = p.models["m"]
    assert isinstance(model, PredictionState)
    assert model.exchanges.snapshot() is None


def test_a_half_that_waits_keeps_its_usage_over_a_restart() -> None:
    first = Exchanges(timeout_us=SECOND, limit=10)
    waiting = [True, 1, 2, 0.5, None, False, None, None, {"input_tokens": 3}, 0, 1, "", [0.1, 0.2], 5, 7, False]
    first.restore([[waiting], [], [True, True, False, False, 0, 0, 0, 0]])
    second = Exchanges(timeout_us=SECOND, limit=10)
    second.restore(msgspec.json.decode(msgspec.json.encode(first.snapshot())))
    assert [(w.key, w.llm.input_tokens) for w in second.waiting.values()] == [(7, 3)]


def test_another_timeout_by_a_reload_holds_for_what_waits_already() -> None:
    p = pipeline(config("serving: {response_timeout: 60s}\n"))
    p.process(log([*pair_of("0"), request("1", BEGIN_US)]))
    from streamproc.rules import RuleBook

    p.reconfigure(RuleBook(config("serving: {response_timeout: 5s}\n")))
    assert p.advance(BEGIN_US + 6 * SECOND).unanswered == 1
