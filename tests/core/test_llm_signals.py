"""What goes wrong with calls of language models makes its own signal fire, and only plausible neighbours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamproc.decoding import Decoder
from streamproc.events import Alert, Label
from streamproc.signals import SIGNALS
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
)

RATE = 10
FROM, N = 500 * RATE, 600 * RATE
CONFIG = "defaults: {window: 10s, lateness: 5s, resolve_after: 1m}\n"

Fault = Callable[[dict[str, Any], np.random.Generator], None]


def calm(i: int, rng: np.random.Generator) -> dict[str, Any]:
    reason = "stop" if rng.random() < 0.97 else "length" if rng.random() < 0.5 else "content_filter"
    return {
        "id": f"call-{i}",
        "time": (BEGIN_US + i * SECOND // RATE) / 1e6,
        "duration_s": float(rng.lognormal(0, 0.3)),
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "claude",
        "gen_ai.usage.input_tokens": int(rng.integers(400, 600)),
        "gen_ai.usage.output_tokens": int(rng.integers(100, 300)),
        "gen_ai.response.finish_reasons": [reason],
        "gen_ai.response.time_to_first_chunk": float(rng.lognormal(-1, 0.2)),
        "retrieval.documents.0.document.score": float(rng.normal(0.8, 0.03)),
        "retrieval.documents.1.document.score": 0.3,
    }


def refusals(event: dict[str, Any], rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        event["gen_ai.response.finish_reasons"] = ["refusal"]


def cut_off(event: dict[str, Any], rng: np.random.Generator) -> None:
    if rng.random() < 0.3:
        event["gen_ai.response.finish_reasons"] = ["max_tokens"]


def empty(event: dict[str, Any], rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        event["gen_ai.usage.output_tokens"] = 0


def slow_start(event: dict[str, Any], rng: np.random.Generator) -> None:
    event["gen_ai.response.time_to_first_chunk"] *= 2


def poor_documents(event: dict[str, Any], rng: np.random.Generator) -> None:
    event["retrieval.documents.0.document.score"] -= 0.3


def odd_endings(event: dict[str, Any], rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        event["gen_ai.response.finish_reasons"] = ["ran_out_of_breath"]


FAULTS: dict[Fault, tuple[set[str], set[str]]] = {
    refusals: ({"refusal_rate"}, set()),
    cut_off: ({"truncated_rate"}, {"refusal_rate"}),
    empty: ({"empty_rate"}, {"tokens_out"}),
    odd_endings: ({"unknown_finish_reasons"}, set()),
    slow_start: ({"time_to_first_token"}, set()),
    poor_documents: ({"retrieval_score"}, set()),
}


@functools.cache
def run(fault: Fault | None, seed: int = 1) -> tuple[Alert, ...]:
    rng, odd = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    events = []
    for i in range(N):
        event = calm(i, rng)
        if fault is not None and i >= FROM:
            fault(event, odd)
        events.append(event)
    stamps = [BEGIN_US + i * SECOND // RATE for i in range(N)]
    return tuple(feed(pipeline(config(CONFIG)), cut(batch(events, stamps_us=stamps), range(0, N, 500))))


@pytest.mark.parametrize("seed", range(2))
def test_nothing_fires_on_calm_calls(seed: int) -> None:
    assert [a.summary for a in run(None, seed)] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_of_calls_fires_its_signal_and_only_plausible_neighbours(fault: Fault) -> None:
    must, may = FAULTS[fault]
    found = {a.signal for a in run(fault) if a.action == "opened"}
    assert must <= found
    assert found <= must | may


def test_failed_tools_are_a_signal_of_the_agent_that_called_them() -> None:
    def call(i: int) -> dict[str, Any]:
        failed = i % (3 if i >= FROM else 50) == 0
        return {
            "span_id": f"{i:016x}",
            "end_time": f"2026-01-05T09:{i // RATE // 60:02d}:{i / RATE % 60:09.6f}+00:00",
            "attributes": {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": "search",
                "gen_ai.agent.name": "planner",
                **({"error.type": "timeout"} if failed else {}),
            },
        }

    stamps = [BEGIN_US + i * SECOND // RATE for i in range(N)]
    alerts = feed(pipeline(config(CONFIG)), [batch([call(i) for i in range(N)], stamps_us=stamps)])
    opened = {(a.labels["model"], a.signal) for a in alerts if a.action == "opened"}
    assert ("planner", "tool_failure_rate") in opened
    assert {s for _, s in opened} <= {"tool_failure_rate"}


def judged(i: int, score: float, *, form: str) -> dict[str, Any]:
    at = BEGIN_US + i * SECOND
    names = {
        "gen_ai.evaluation.name": "groundedness",
        "gen_ai.evaluation.score.value": score,
        "gen_ai.response.id": f"r{i}",
        "gen_ai.request.model": "claude",
    }
    if form == "ours":
        return {"model": "claude", "prediction_id": f"r{i}", "time": at, "gen_ai.evaluation.name": "groundedness",
                "gen_ai.evaluation.score.value": score, "origin": "judge"}  # fmt: skip
    if form == "flat":
        return {"time": at / 1e6, "attributes": names}
    otlp = [
        {"key": k, "value": {"doubleValue": v} if isinstance(v, float) else {"stringValue": v}}
        for k, v in names.items()
    ]
    return {"timeUnixNano": str(at * 1000), "eventName": "gen_ai.evaluation.result", "attributes": otlp}


@pytest.mark.parametrize("form", ["ours", "flat", "otlp"])
def test_a_judges_scores_that_sink_are_an_alert_in_every_form_they_come_in(form: str) -> None:
    rng = np.random.default_rng(2)
    n = 6000
    events = [judged(i, float(rng.normal(0.5 if i > 5000 else 0.9, 0.05)), form=form) for i in range(n)]
    stamps = [BEGIN_US + i * SECOND for i in range(n)]
    p = pipeline(config(), kind="labels")
    opened = [a for a in feed(p, [batch(events, stamps_us=stamps, topic="labels")]) if a.action == "opened"]
    assert {a.signal for a in opened} == {"evaluation:groundedness"}
    assert "claude: evaluation:groundedness is 0.5" in opened[0].summary


def test_a_judgement_in_words_is_a_share_of_its_label() -> None:
    event = {"model": "m", "gen_ai.evaluation.name": "toxicity", "gen_ai.evaluation.score.label": "pass"}
    p = pipeline(config("defaults: {min_samples: 1}"), kind="labels")
    times = [BEGIN_US + i * SECOND for i in range(200)]
    feed(p, [batch([{**event, "time": t} for t in times], stamps_us=times, topic="labels")])
    assert ("label_share:toxicity=pass", "robust_z") in p.models["m"].watches


def test_a_judgement_without_score_or_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gen_ai\.evaluation\.name"):
        Decoder(Label).decode_one(b'{"model": "m", "prediction_id": "", "gen_ai.evaluation.name": "x"}')


def test_features_that_grow_old_are_an_alert() -> None:
    rng = np.random.default_rng(3)
    events = []
    for i in range(N):
        at = BEGIN_US + i * SECOND // RATE
        updated = min(at, BEGIN_US + FROM * SECOND // RATE) - int(rng.uniform(0, 20) * SECOND)
        events.append(prediction(at, id=str(i), features={"x": float(rng.normal())}, feature_time=updated / 1e6))
    alerts = feed(pipeline(config(CONFIG)), [batch(events, stamps_us=[e["time"] for e in events])])
    assert {a.signal for a in alerts} == {"feature_age"}


def test_what_a_day_costs_has_a_limit_and_begins_anew_at_midnight() -> None:
    said = CONFIG + "models: [{match: {model: fraud}, signals: {cost_per_day: {upper_limit: 50}}}]"
    hours = 36  # from nine in the morning; a request a minute
    events = [
        prediction(BEGIN_US + m * 60 * SECOND, usage={"cost": 0.1}, id=str(m)) for m in range(hours * 60)
    ]
    p = pipeline(config(said))
    every = feed(p, [batch(events, stamps_us=[e["time"] for e in events])])
    alerts = [a for a in every if a.signal == "cost_per_day" and a.action in ("opened", "resolved")]
    assert [a.action for a in alerts] == ["opened", "resolved", "opened"]
    assert alerts[0].startsAt.startswith("2026-01-05T17:1")  # 500 requests after nine
    assert alerts[1].lastReceived.startswith("2026-01-06T00:0")
    assert alerts[2].startsAt.startswith("2026-01-06T08:1")


def test_calls_of_language_models_come_to_the_same_however_cut_and_restored() -> None:
    rng, odd = np.random.default_rng(9), np.random.default_rng(10)
    events = [calm(i, rng) for i in range(2000)]
    for event in events[1200:]:
        refusals(event, odd)
    whole = batch(events, stamps_us=[BEGIN_US + i * SECOND // RATE for i in range(2000)])
    check_cut_and_restored(config(CONFIG), whole, at=777, edges=range(0, 2000, 130))



def test_every_signal_of_calls_has_a_fault_here() -> None:
    from streamproc.genai import FACTS

    shown = {s for must, _ in FAULTS.values() for s in must}
    assert shown == set(FACTS) <= set(SIGNALS)
