"""Every kind of input that was once read wrongly, with the values that are right."""

from __future__ import annotations

import base64
import datetime as dt
import json
import random
from collections.abc import Callable, Iterator
from email.utils import format_datetime
from typing import Any

from benchmarks.truth.case import BEGIN, Case, Expect, Line

__all__ = ["CASES"]

N = 4200
AFTER = N * 2 // 3


def _iso(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat().replace("+00:00", "Z")


def _rng(seed: int = 1) -> random.Random:
    return random.Random(seed)


def _native(i: int, rng: random.Random, **more: Any) -> dict[str, Any]:
    event = {
        "id": f"p{i}",
        "time": _iso(BEGIN + i),
        "model": {"name": "m"},
        "prediction": {"value": rng.random()},
        "duration_s": 0.04,
        "features": {"a": rng.gauss(0, 1), "b": rng.random()},
    }
    return {**event, **more}


def _each(make: Callable[[int, random.Random], Any], n: int = N) -> Callable[[], Iterator[Line]]:
    """Return lines of predictions, made one by one."""

    def lines() -> Iterator[Line]:
        rng = _rng()
        for i in range(n):
            yield "p", make(i, rng)

    return lines


def _judged(answer: Callable[[int, random.Random], tuple[Any, Any]], **label: Any) -> Callable[[], Iterator[Line]]:
    """Return lines of predictions and labels: an answer and its truth, each as it is to be written."""

    def lines() -> Iterator[Line]:
        rng = _rng()
        for i in range(N):
            said, truth = answer(i, rng)
            yield "p", {"id": f"p{i}", "time": _iso(BEGIN + i), "model": {"name": "m"}, "prediction": said}
            told = {"value": truth[1]} if isinstance(truth, tuple) else {"label": truth}
            yield "l", {"prediction_id": f"p{i}", "model": {"name": "m"}, "time": _iso(BEGIN + i + 20), **told, **label}

    return lines


def _three(write: Callable[[int], Any], tell: Callable[[int], Any]) -> Callable[[], Iterator[Line]]:
    """Return answers and truths of three classes: .95 right, .63 once the third is taken for the second."""

    def one(i: int, rng: random.Random) -> tuple[Any, Any]:
        y = rng.choice((0, 1, 2))
        p = y if rng.random() < 0.925 else (y + 1) % 3
        if i >= AFTER and y == 2:
            p = 1
        return write(p), tell(y)

    return _judged(one)


_THREE = (Expect("accuracy", 0.925, 0.617), Expect("unjudged", 0.0, 0.0))
_FELL = frozenset({"accuracy", "prediction_error"})
_OF_ANSWERS = frozenset({
    "prediction_value", "prediction_psi", "class_share:0", "class_share:1", "class_share:2", "class_share:3",
    "class_share:V1", "class_share:V2", "confidence", "log_loss", "brier", "calibration_error", "estimated_accuracy",
    "class_share:one", "class_share:two", "class_share:three", "new_class", "class_share:1.0", "class_share:2.0",
    "class_share:-1", "class_share:#1", "class_share:#2", "class_share:#0", "class_share:a", "class_share:b",
    "class_share:c", "prediction_correlation",
})  # fmt: skip


# ---------------------------------------------------------------------------- spans and calls


def _value(x: Any) -> dict[str, Any]:
    if isinstance(x, bool):
        return {"boolValue": x}
    if isinstance(x, int):
        return {"intValue": str(x)}
    if isinstance(x, list):
        return {"arrayValue": {"values": [_value(v) for v in x]}}
    return {"doubleValue": x} if isinstance(x, float) else {"stringValue": x}


def _span(i: int, j: int, at: float, attributes: dict[str, Any], took: float = 0.3, **more: Any) -> dict[str, Any]:
    return {
        "traceId": f"{i:032x}",
        "spanId": f"{i * 10 + j:016x}",
        "name": "s",
        "startTimeUnixNano": str(int(at * 1e9)),
        "endTimeUnixNano": str(int((at + took) * 1e9)),
        "attributes": [{"key": k, "value": _value(v)} for k, v in attributes.items()],
        **more,
    }


def _otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": _value("shop")}]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def _call(i: int, **more: Any) -> dict[str, Any]:
    return {
        "time": _iso(BEGIN + i),
        "duration_s": 1.2,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.response.id": f"c{i}",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 20,
        **more,
    }


def _agents(outer: dict[str, Any]) -> Callable[[int, random.Random], Any]:
    """Return records of two calls, and from two thirds on of a span around them that repeats what they used."""
    use = {"gen_ai.request.model": "gpt-x", "gen_ai.usage.cost": 0.001}

    def one(i: int, _: random.Random) -> Any:
        at = BEGIN + i
        call = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 100, **use}
        spans = [_span(i, j, at + 0.4 * j, call, parentSpanId=f"{i * 10 + 9:016x}") for j in range(2)]
        if i >= AFTER:
            spans.append(_span(i, 9, at, {**use, "gen_ai.usage.input_tokens": 200, **outer}, took=1.2))
        return _otlp(*spans)

    return one


def _reasons(of: Callable[[str], Any], cut: str, whole: str) -> Callable[[int, random.Random], Any]:
    def one(i: int, _: random.Random) -> Any:
        reason = cut if i >= AFTER and i % 10 < 4 else whole
        return _call(i, **{"gen_ai.response.finish_reasons": of(reason)})

    return one


def _tokens(i: int, _: random.Random) -> Any:
    faulty = i >= AFTER and i % 10 < 3
    return _call(i, **({"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0} if faulty else {}))


def _twice(i: int, _: random.Random) -> Any:
    use = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x", "gen_ai.usage.input_tokens": 100}
    failed = {"status": {"code": 2}} if i % 20 == 0 else {}
    response = {} if failed else {"gen_ai.response.id": f"r{i}"}
    spans = [_span(i, 1, BEGIN + i, {**use, **response}, parentSpanId=f"{i * 10 + 2:016x}", **failed)]
    if i >= AFTER:
        spans.append(_span(i, 2, BEGIN + i, {**use, **response}, took=0.31, **failed))
    return _otlp(*spans)


def _openinference_failure(i: int, _: random.Random) -> Any:
    asked = {"openinference.span.kind": "LLM", "llm.invocation_parameters": json.dumps({"model": "gpt-x"})}
    if i >= AFTER and i % 2:
        event = {"name": "exception", "attributes": [{"key": "exception.type", "value": _value("RateLimitError")}]}
        return _otlp(_span(i, 0, BEGIN + i, asked, status={"code": 2}, events=[event]))
    answered = {**asked, "llm.model_name": "gpt-x-2026", "llm.token_count.prompt": 100}
    return _otlp(_span(i, 0, BEGIN + i, answered))


def _mlflow(i: int, _: random.Random) -> Any:
    failed = i >= AFTER and i % 2
    names = {"mlflow.spanType": '"CHAT_MODEL"', "model": '"gpt-x"'}
    used = {} if failed else {
        "mlflow.llm.model": '"gpt-x-2026"',
        "mlflow.chat.tokenUsage": json.dumps({"input_tokens": 100, "output_tokens": 20}),
        "mlflow.spanOutputs": json.dumps({"id": f"r{i}", "choices": [{"finish_reason": "stop"}]}),
    }  # fmt: skip
    return _otlp(_span(i, 0, BEGIN + i, {**names, **used}, **({"status": {"code": 2}} if failed else {})))


def _kinds(i: int, _: random.Random) -> Any:
    at = BEGIN + i
    failed = {"status": {"code": 2}} if i >= AFTER else {}
    return _otlp(
        _span(i, 0, at, {"openinference.span.kind": "LLM", "llm.model_name": "gpt-x", "llm.token_count.prompt": 100}),
        _span(i, 1, at, {"openinference.span.kind": "CHAIN"}),
        _span(i, 2, at, {"openinference.span.kind": "TOOL", "tool.name": "search"}, **failed),
        _span(i, 3, at, {"openinference.span.kind": "RETRIEVER", "retrieval.documents.0.document.score": 0.9}),
        _span(i, 4, at, {"openinference.span.kind": "GUARDRAIL"}),
        _span(i, 5, at, {"http.route": "/pay"}),
    )


def _embeddings(i: int, _: random.Random) -> Any:
    return _otlp(_span(i, 0, BEGIN + i, {
        "gen_ai.operation.name": "embeddings", "gen_ai.request.model": "embed-x",
        "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 0,
    }))  # fmt: skip


_SPANS = (
    Case(
        name="an_agents_span_repeats_its_calls",
        says="tokens and cost are counted twice",
        lines=_each(_agents({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "triage"})),
        expect=(
            Expect("tokens_in", 100, 100),
            Expect("cost_per_hour", 7.2, 7.2),
            Expect("throughput", 2, 2, model="gpt-x"),
            Expect("agent_latency_p95", None, 1.2, model="triage"),
        ),
        models=frozenset({"gpt-x", "triage"}),
        reads="OpenTelemetry GenAI 1.38: spans of agents",
    ),
    Case(
        name="a_chains_span_repeats_its_calls",
        says="a chain is counted as a call",
        lines=_each(_agents({"openinference.span.kind": "CHAIN"})),
        expect=(Expect("tokens_in", 100, 100), Expect("throughput", 2, 2, model="gpt-x")),
        models=frozenset({"gpt-x", "shop"}),
    ),
    Case(
        name="a_workflows_span_repeats_its_calls",
        says="a workflow is counted as a call",
        lines=_each(_agents({"traceloop.span.kind": "workflow", "traceloop.entity.name": "answer"})),
        expect=(Expect("tokens_in", 100, 100), Expect("throughput", 2, 2, model="gpt-x")),
        models=frozenset({"gpt-x", "shop"}),
        reads="OpenLLMetry 0.4: workflows, tasks, agents and tools",
    ),
    Case(
        name="one_call_is_told_by_two_spans",
        says="an SDK that traces itself beside an instrumentor doubles everything, failures too",
        lines=_each(_twice),
        expect=(Expect("throughput", 1, 1), Expect("tokens_in", 100, 100), Expect("error_rate", 0.05, 0.05)),
        models=frozenset({"gpt-x"}),
    ),
    Case(
        name="spans_of_every_kind_in_one_record",
        says="a chain or a tool sends the record to the dead letters",
        lines=_each(_kinds),
        expect=(
            Expect("throughput", 1, 1, model="gpt-x"),
            Expect("tool_failure_rate", 0, 1, model="shop"),
            Expect("retrieval_score", 0.9, 0.9, model="shop"),
        ),
        alerts=frozenset({"tool_failure_rate"}),
        models=frozenset({"gpt-x", "shop"}),
        reads="OpenInference 0.1: LLM, EMBEDDING, CHAIN, AGENT, TOOL, RETRIEVER",
    ),
    Case(
        name="a_failed_call_names_its_model_in_its_parameters",
        says="failures go to a phantom model, and the real one has none",
        lines=_each(_openinference_failure),
        expect=(Expect("error_rate", 0, 0.5),),
        alerts=frozenset({"error_rate", "error_share:RateLimitError"}),
        models=frozenset({"gpt-x"}),
    ),
    Case(
        name="mlflows_spans_hold_json_in_their_attributes",
        says="tokens, models and failures are not read",
        lines=_each(_mlflow),
        expect=(Expect("error_rate", 0, 0.5), Expect("tokens_in", 100, 100), Expect("truncated_rate", 0, 0)),
        alerts=frozenset({"error_rate", "error_share:_OTHER"}),
        may=frozenset({"insufficient_samples"}),
        models=frozenset({"gpt-x"}),
        reads="MLflow 3.17: spans of `mlflow.spanType`",
    ),
    Case(
        name="an_embedding_has_no_output",
        says="an embedding's 0 tokens are an empty answer",
        lines=_each(_embeddings),
        expect=(Expect("tokens_in", 7, 7), Expect("throughput", 1, 1)),
        models=frozenset({"embed-x"}),
    ),
    Case(
        name="usage_of_nothing_is_not_told",
        says="0 tokens in and out is a critical empty answer",
        lines=_each(_tokens),
        expect=(Expect("empty_rate", 0, 0), Expect("tokens_in", 100, 100)),
        may=frozenset({"insufficient_samples"}),
    ),
    *(
        Case(
            name=f"finish_reasons_{name}",
            says="a reason in another form is 'not truncated'",
            lines=_each(_reasons(of, cut, whole)),
            expect=(Expect("truncated_rate", 0, 0.4), Expect("unknown_finish_reasons", 0, 0)),
            alerts=frozenset({"truncated_rate"}),
            reads="finish reasons: lists, JSON text, enums, hyphens, numbers" if name == "as_a_list" else "",
        )
        for name, of, cut, whole in (
            ("as_a_list", lambda r: [r], "length", "stop"),
            ("as_json_text", lambda r: json.dumps([r]), "length", "stop"),
            ("as_a_text", lambda r: r, "MAX_TOKENS", "STOP"),
            ("of_an_enum", lambda r: [f"FinishReason.{r}"], "MAX_TOKENS", "STOP"),
            ("with_a_prefix", lambda r: [f"FINISH_REASON_{r}"], "MAX_TOKENS", "STOP"),
            ("with_hyphens", lambda r: [r], "max-tokens", "end-turn"),
            ("as_numbers", lambda r: [r], "2", "1"),
            ("in_an_object", lambda r: [{"type": r}], "max_tokens", "end_turn"),
        )
    ),
    Case(
        name="a_finish_reason_never_seen",
        says="what is not understood is taken for good",
        lines=_each(_reasons(lambda r: [r], "tired", "stop")),
        expect=(Expect("unknown_finish_reasons", 0, 0.4), Expect("truncated_rate", 0, 0)),
        alerts=frozenset({"unknown_finish_reasons"}),
        may=frozenset({"insufficient_samples"}),
    ),
    Case(
        name="a_guardrail_intervenes",
        says="an answer withheld is none",
        lines=_each(_reasons(lambda r: [r], "GUARDRAIL_INTERVENED", "end_turn")),
        expect=(Expect("refusal_rate", 0, 0.4),),
        alerts=frozenset({"refusal_rate"}),
        may=frozenset({"insufficient_samples"}),
    ),
)


# ---------------------------------------------------------------------------- answers


def _kserve(kind: str, i: int, at: float, body: Any, content_type: str = "application/json", **more: str) -> Any:
    headers = {
        "ce_specversion": "1.0", "ce_type": f"org.kubeflow.serving.inference.{kind}", "ce_source": "http://x:9081/",
        "ce_id": f"u{i}", "ce_time": _iso(at), "ce_component": "predictor", "ce_inferenceservicename": "churn",
        "ce_namespace": "prod", "content-type": content_type, **more,
    }  # fmt: skip
    return {"timestamp": int(at * 1000), "key": None, "headers": headers, "value": body}


def _answers(body: Callable[[int, random.Random], Any], **more: str) -> Callable[[], Iterator[Line]]:
    """Return requests and responses of KServe's logger, with the body of each response."""

    def lines() -> Iterator[Line]:
        rng = _rng()
        for i in range(N):
            at = BEGIN + i
            yield "p", _kserve("request", i, at, {"instances": [[0.1, rng.random()]]})
            yield "p", _kserve("response", i, at + 0.05, body(i, rng), **more)

    return lines


def _some(i: int, odd: Any, rng: random.Random) -> Any:
    return odd if i >= AFTER and i % 10 < 3 else {"predictions": [rng.random()]}


def _tensor(**of: Any) -> dict[str, Any]:
    return {"outputs": [{"name": "y", "shape": [1], "datatype": "FP32", **of}]}


_ANSWERED = (Expect("error_rate", 0, 0), Expect("throughput", 1, 1))

_ANSWERS = (
    *(
        Case(
            name=f"unreadable_{name}",
            says="an answer that is not read is a failure",
            lines=_answers(lambda i, rng, odd=odd: _some(i, odd, rng)),  # type: ignore[misc]
            expect=(*_ANSWERED, Expect("unreadable", 0, 0.3)),
            alerts=frozenset({"unreadable"}),
            may=frozenset({"insufficient_samples"}),
        )
        for name, odd in (
            ("binary_tensor", _tensor(parameters={"binary_data_size": 4})),
            ("shape_that_does_not_fit", _tensor(shape=[3], data=[1.0])),
            ("nested_rows", {"predictions": [[[1.0]]]}),
        )
    ),
    *(
        Case(
            name=f"empty_{name}",
            says="an answer without an answer is only a smaller number of samples",
            lines=_answers(lambda i, rng, odd=odd: _some(i, odd, rng)),  # type: ignore[misc]
            expect=(*_ANSWERED, Expect("empty_predictions", 0, 0.3)),
            alerts=frozenset({"empty_predictions"}),
            may=frozenset({"insufficient_samples"}),
        )
        for name, odd in (
            ("null", {"predictions": None}),
            ("list", {"predictions": []}),
            ("object", {}),
            ("unknown_field", {"answer": 3}),
            ("row", {"predictions": [{}]}),
        )
    ),
    Case(
        name="empty_null_of_our_own",
        says="null is rejected, or nothing",
        lines=_each(lambda i, rng: _native(i, rng, **({"prediction": None} if i >= AFTER and i % 10 < 3 else {}))),
        expect=(*_ANSWERED, Expect("empty_predictions", 0, 0.3)),
        alerts=frozenset({"empty_predictions"}),
        may=frozenset({"insufficient_samples"}),
    ),
    Case(
        name="empty_list_of_our_own",
        says="[] is rejected, or nothing",
        lines=_each(lambda i, rng: _native(i, rng, **({"prediction": []} if i >= AFTER and i % 10 < 3 else {}))),
        expect=(*_ANSWERED, Expect("empty_predictions", 0, 0.3)),
        alerts=frozenset({"empty_predictions"}),
        may=frozenset({"insufficient_samples"}),
    ),
    Case(
        name="a_shape_with_one_side_left_open",
        says="a shape of -1 is a failure",
        lines=_answers(lambda i, rng: _tensor(shape=[-1], data=[rng.random()])),
        expect=(*_ANSWERED, Expect("unreadable", 0, 0)),
    ),
    *(
        Case(
            name=f"failure_{name}",
            says="a failure that came as an answer is none",
            lines=_answers(lambda i, rng, odd=odd: _some(i, odd, rng)),  # type: ignore[misc]
            expect=(Expect("error_rate", 0, 0.3),),
            alerts=frozenset({"error_rate", f"error_share:{kind}"}),
            may=frozenset({"insufficient_samples"}),
        )
        for name, odd, kind in (
            ("in_detail", {"detail": "boom"}, "_OTHER"),
            ("in_error", {"error": {"type": "overloaded", "message": "x"}}, "overloaded"),
            ("in_error_of_a_200", {"error": "boom", "predictions": None}, "_OTHER"),
        )
    ),
    *(
        Case(
            name=f"failure_by_{name}",
            says="a status is not looked at",
            lines=_each(lambda i, rng, field=field, bad=bad, good=good: _native(  # type: ignore[misc]
                i, rng, **{field: bad if i >= AFTER and i % 10 < 3 else good})),
            expect=(Expect("error_rate", 0, 0.3), Expect("throughput", 1, 1)),
            alerts=frozenset({"error_rate", f"error_share:{kind}"}),
            may=frozenset({"insufficient_samples"}),
        )
        for name, field, bad, good, kind in (
            ("http_status", "http.response.status_code", 503, 200, "503"),
            ("status_code", "status_code", "ERROR", "OK", "_OTHER"),
            ("status_number", "status_code", 429, 200, "429"),
        )
    ),
    Case(
        name="a_stream_of_events_is_an_answer",
        says="SSE is a request without an answer",
        lines=_answers(
            lambda i, _: "data: " + json.dumps({"choices": [{"finish_reason": "stop"}], "model": "l"}) + "\n\n"
        ),
        expect=_ANSWERED,
        may=frozenset({"unreadable", "empty_predictions"}),
    ),
    Case(
        name="openais_body_through_a_logger",
        says="a chat's answer is empty",
        lines=_answers(lambda i, _: {
            "object": "chat.completion", "model": "llama", "usage": {"prompt_tokens": 12, "completion_tokens": 4},
            "choices": [{"finish_reason": "length" if i >= AFTER and i % 10 < 4 else "stop"}],
        }),
        expect=(*_ANSWERED, Expect("truncated_rate", 0, 0.4), Expect("tokens_in", 12, 12)),
        alerts=frozenset({"truncated_rate"}),
        reads="OpenAI's chat completions in KServe's logger, streamed too",
    ),
    Case(
        name="reused_ids",
        says="traffic is dropped as copies",
        lines=lambda: (
            ("p", {"timestamp": int((BEGIN + i + 0.05 * k) * 1000), "key": None, "headers": {}, "value": {
                "id": "1", "model_name": "m",
                **({"outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [_rng(i).random()]}]} if k
                   else {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [0.1]}]}),
            }})
            for i in range(N) for k in (0, 1)
        ),
        expect=(*_ANSWERED, Expect("latency_p95", 0.05, 0.05)),
        reads="Open Inference Protocol V2",
    ),
    Case(
        name="integer_ids",
        says="an id that is a number is refused",
        lines=_each(lambda i, rng: _native(i, rng, id=i)),
        expect=(Expect("throughput", 1, 1),),
    ),
)


# ---------------------------------------------------------------------------- classes and labels


_CLASSES = (
    Case(
        name="integer_classes",
        says="two of three classes are left out of the accuracy",
        lines=_three(lambda p: p, lambda y: y),
        expect=_THREE,
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="integer_classes_from_one_on",
        says="a class is taken for its index",
        lines=_three(lambda p: p + 1, lambda y: y + 1),
        expect=_THREE,
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="classes_of_minus_one_and_one",
        says="-1 is no class",
        lines=_judged(lambda i, rng: (
            (y := rng.choice((-1, 1))) * (1 if rng.random() < (0.9 if i < AFTER else 0.6) else -1), y
        )),
        expect=(Expect("accuracy", 0.9, 0.6), Expect("unjudged", 0, 0)),
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="a_float_in_text_is_the_integer",
        says="'1.0' and 1 are two classes: an accuracy of 0",
        lines=_three(lambda p: {"label": p}, lambda y: str(float(y))),
        expect=_THREE,
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="classes_told_as_values",
        says="classes are measured as distances",
        lines=_three(lambda p: {"value": float(p)}, lambda y: ("value", float(y))),
        expect=(Expect("accuracy", 0.925, 0.617),),
        alerts=_FELL,
        may=_OF_ANSWERS | {"mae", "absolute_error"},
    ),
    Case(
        name="named_classes",
        says="the ordinary case is broken",
        lines=_three(lambda p: {"label": "abc"[p]}, lambda y: "abc"[y]),
        expect=_THREE,
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="shares_in_a_list_whose_order_a_config_says",
        says="a class is taken for its place",
        lines=_three(lambda p: {"scores": [0.9 if k == p else 0.05 for k in range(3)]}, lambda y: y + 1),
        config="models:\n  - {match: {model: m}, classes: ['1', '2', '3']}\n",
        expect=_THREE,
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="shares_in_a_list_of_unknown_order",
        says="an accuracy of .0 or of .3 is told, where nothing can be",
        lines=_judged(lambda i, rng: (
            {"scores": [0.9 if k == (y := rng.choice((0, 1, 2))) else 0.05 for k in range(3)]}, "abc"[y])),
        expect=(Expect("unjudged", 1, 1),),
        alerts=frozenset({"unjudged"}),
        may=_OF_ANSWERS,
    ),
    Case(
        name="labels_of_another_vocabulary",
        says="an accuracy of 0 for ever",
        lines=_judged(lambda i, rng: (
            {"label": "yes" if (y := rng.random() < 0.5) else "no"}, 1 if y else 0)),
        expect=(Expect("unjudged", 1, 1),),
        alerts=frozenset({"unjudged"}),
        may=_OF_ANSWERS,
    ),
    Case(
        name="probabilities",
        says="the ordinary case is broken",
        lines=_judged(lambda i, rng: (
            {"value": p if (p := rng.random()) and i < AFTER else 1 - p}, int(rng.random() < p))),
        expect=(Expect("accuracy", 0.75, 0.25), Expect("unjudged", 0, 0)),
        alerts=_FELL,
        may=_OF_ANSWERS,
    ),
    Case(
        name="quantities",
        says="a quantity that happens to be right is an accuracy",
        lines=_judged(lambda i, rng: (
            {"value": (y := rng.uniform(50, 90)) + rng.gauss(0, 2 if i < AFTER else 8)}, ("value", y))),
        expect=(Expect("mae", 1.6, 6.4, tolerance=0.15),),
        alerts=frozenset({"mae", "absolute_error"}),
        may=_OF_ANSWERS,
    ),
    Case(
        name="labels_with_integer_ids",
        says="no label finds its prediction",
        lines=lambda: (
            line for i in range(N) for line in (
                ("p", {"id": i, "time": _iso(BEGIN + i), "model": {"name": "m"}, "prediction": {"label": "ab"[i % 2]}}),
                ("l", {"prediction_id": i, "time": _iso(BEGIN + i + 20), "model": {"name": "m"}, "label": "ab"[i % 2]}),
            )
        ),
        expect=(Expect("accuracy", 1, 1),),
        may=_OF_ANSWERS,
    ),
)


def _served(write: Callable[[int], Any], tell: Callable[[int], Any]) -> Callable[[], Iterator[Line]]:
    """Return what `_three` does, with the answers in responses of a model server."""

    def lines() -> Iterator[Line]:
        rng = _rng()
        for i in range(N):
            at, y = BEGIN + i, rng.choice((0, 1, 2))
            p = y if rng.random() < 0.925 else (y + 1) % 3
            if i >= AFTER and y == 2:
                p = 1
            yield "p", _kserve("request", i, at, {"instances": [[0.1, 0.2]]})
            yield "p", _kserve("response", i, at + 0.05, write(p))
            yield "l", {"prediction_id": f"u{i}", "model": {"name": "prod/churn"}, "time": _iso(at + 20),
                        "label": tell(y)}  # fmt: skip

    return lines


def _shares(p: int) -> list[float]:
    return [0.9 if k == p else 0.05 for k in range(3)]


def _out(*tensors: tuple[str, list[int], str, list[Any]]) -> dict[str, Any]:
    return {"outputs": [{"name": n, "shape": s, "datatype": t, "data": d} for n, s, t, d in tensors]}


def _letter(y: int) -> str:
    return "abc"[y]


_SERVED = tuple(
    Case(
        name=f"served_{name}",
        says="the class of a model server's answer is not read, or read as another",
        lines=_served(write, tell),
        expect=_THREE,
        alerts=_FELL,
        may=_OF_ANSWERS,
        reads=reads,
    )
    for name, write, tell, reads in (
        ("whole_numbers_of_V1", lambda p: {"predictions": [p + 1]}, lambda y: y + 1,
         "KServe V1: numbers, classes, objects"),
        ("objects_of_V1", lambda p: {"predictions": [{"class": p + 1, "probabilities": _shares(p)}]},
         lambda y: y + 1, ""),
        ("integers_of_V2", lambda p: _out(("predict", [1], "INT64", [p + 1])), lambda y: str(y + 1), ""),
        ("predict_beside_predict_proba", lambda p: _out(
            ("predict", [1], "INT64", [p + 1]), ("predict_proba", [1, 3], "FP64", _shares(p))), lambda y: y + 1,
         "MLServer: `predict` beside `predict_proba`"),
        ("predict_proba_before_predict", lambda p: _out(
            ("predict_proba", [1, 3], "FP64", _shares(p)), ("predict", [1, 1], "INT64", [p + 1])), lambda y: y + 1, ""),
        ("shares_alone", lambda p: _out(("predict_proba", [1, 3], "FP64", _shares(p))), lambda y: y, ""),
        ("shares_in_the_order_of_names", lambda p: _out(
            ("classes", [1, 3], "BYTES", list("abc")), ("shares", [1, 3], "FP32", _shares(p))), _letter, ""),
        ("json_in_bytes", lambda p: _out(
            ("output", [1, 1], "BYTES", [json.dumps({"label": _letter(p), "score": 0.9})])), _letter,
         "Hugging Face runtimes: JSON in BYTES"),
        ("ranked_classes", lambda p: {"predictions": [
            [{"label": _letter(k), "score": _shares(p)[k]} for k in range(3)]]}, _letter, ""),
        ("classification_of_triton", lambda p: _out(
            ("o", [1, 3], "BYTES", [f"{_shares(p)[k]}:{k}:{_letter(k)}" for k in range(3)])), _letter,
         "Triton: the classification extension"),
    )
)  # fmt: skip


# ---------------------------------------------------------------------------- numbers, times, features


def _features(i: int, rng: random.Random, **features: Any) -> dict[str, Any]:
    return _native(i, rng, features={"a": rng.gauss(0, 1), **features})


def _written(form: Callable[[float], Any]) -> Callable[[int, random.Random], Any]:
    def one(i: int, rng: random.Random) -> Any:
        return _native(i, rng, time=form(BEGIN + i))

    return one


def _nan(i: int, rng: random.Random) -> bytes:
    event = _native(i, rng)
    if i >= AFTER and i % 10 < 3:
        event["features"]["a"] = float("nan")
    return json.dumps(event).encode()


def _debezium(i: int, rng: random.Random) -> Any:
    score = f"{rng.random() * (1 if i < AFTER else 50):.4f}"
    after = {"id": str(i), "model": "m", "score": score}
    return {"timestamp": int((BEGIN + i) * 1000), "key": "m", "headers": {}, "value": {
        "schema": {}, "payload": {"before": None, "after": after, "op": "c"}}}


def _base64(i: int, rng: random.Random) -> Any:
    digits = int(rng.random() * (1 if i < AFTER else 50) * 10_000)
    text = base64.b64encode(digits.to_bytes(8, "big", signed=True)).decode()
    schema = {"type": "struct", "fields": [{"field": "model", "type": "string"}, {
        "field": "prediction", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
        "parameters": {"scale": "4"}}]}
    return {"timestamp": int((BEGIN + i) * 1000), "key": "m", "headers": {}, "value": {
        "schema": schema, "payload": {"model": "m", "prediction": text}}}


_MOVED = frozenset({"prediction_value", "prediction_psi"})
_FIELDS = (
    "fields:\n  predictions:\n"
    "    {model: $.payload.after.model, id: $.payload.after.id, prediction: $.payload.after.score}\n"
)
_CORRELATED = frozenset({"prediction_correlation", "feature_outlier"})

_NUMBERS = (
    Case(
        name="nan_in_json",
        says="the whole event is lost, and nothing is missing",
        lines=_each(_nan),
        expect=(Expect("missing_features", 0, 0.15), Expect("throughput", 1, 1)),
        alerts=frozenset({"missing_features"}),
    ),
    Case(
        name="decimals_as_text",
        says="each number is a class of its own",
        lines=_each(_debezium),
        config=_FIELDS,
        expect=(Expect("prediction_value", 0.5, 25, tolerance=0.1),),
        alerts=_MOVED,
        reads="Debezium's envelope by a field map, decimals as text or in base64 by their schema",
    ),
    Case(
        name="decimals_in_base64",
        says="each number is a class of its own",
        lines=_each(_base64),
        expect=(Expect("prediction_value", 0.5, 25, tolerance=0.1),),
        alerts=_MOVED,
    ),
    Case(
        name="numbers_as_text",
        says="a record with a number in text is refused",
        lines=_each(lambda i, rng: _native(i, rng, prediction={"value": f"{rng.random():.6f}"}, duration_s="0.25")),
        expect=(Expect("prediction_value", 0.5, 0.5), Expect("latency_p50", 0.25, 0.25)),
    ),
    *(
        Case(
            name=f"time_{name}",
            says="a time is refused, or read as another",
            lines=_each(_written(form)),
            expect=(Expect("throughput", 1, 1),),
            reads=f"times {name.replace('_', ' ')}",
        )
        for name, form in (
            ("in_seconds", lambda s: s),
            ("in_milliseconds", lambda s: int(s * 1000)),
            ("in_microseconds", lambda s: int(s * 1_000_000)),
            ("in_nanoseconds", lambda s: int(s) * 1_000_000_000),
            ("in_digits_of_a_text", lambda s: str(int(s * 1000))),
            ("without_a_zone", lambda s: _iso(s).removesuffix("Z")),
            ("with_a_space_and_UTC", lambda s: _iso(s).removesuffix("Z").replace("T", " ") + " UTC"),
            ("of_RFC_2822", lambda s: format_datetime(dt.datetime.fromtimestamp(s, dt.UTC))),
        )
    ),
    *(
        Case(
            name=f"time_{name}_is_refused",
            says="a time nobody meant moves the watermark",
            lines=_each(lambda i, rng, odd=odd: _native(i, rng, **({"time": odd} if i in (0, 100) else {}))),  # type: ignore[misc]
            expect=(Expect("throughput", 1, 1),),
            rejected={"implausible_time": 2},
        )
        for name, odd in (("of_0", 0), ("in_days", 20_457), ("of_1970", "1970-01-01T00:00:00Z"),
                          ("of_two_readings", "05/01/2026 09:00"))
    ),
    Case(
        name="one_host_is_ahead",
        says="all that follows is late, and every other model silent",
        lines=lambda: (
            ("p", _native(i, _rng(i), time=_iso(BEGIN + i + (3000 if i in (900, 2000) else 0)),
                          model={"name": f"m{i % 3}"}))
            for i in range(N)
        ),
        expect=(Expect("throughput", 1 / 3, 1 / 3), Expect("out_of_order", 0, 0)),
    ),
)

_FEATURES = (
    Case(
        name="a_new_versions_features_are_watched",
        says="features are fixed by the first 50 events",
        lines=_each(lambda i, rng: _features(
            i, rng, **({} if i < N // 4 else {"fresh": None if i >= AFTER and i % 10 < 3 else rng.random()}))),
        expect=(Expect("missing_features", 0, 0.15),),
        alerts=frozenset({"missing_features"}),
        may=_CORRELATED,
    ),
    Case(
        name="smoke_tests_do_not_blind_a_model",
        says="60 events of a test decide what a model's features are",
        lines=_each(lambda i, rng: (
            _native(i, rng, features={"ping": 1}) if i < 60
            else _native(i, rng, features={"a": None if i >= AFTER and i % 10 < 3 else rng.gauss(0, 1)}))),
        expect=(Expect("missing_features", None, 0.3),),
        alerts=frozenset({"missing_features"}),
        may=_CORRELATED | {"insufficient_samples"},
    ),
    Case(
        name="nested_features",
        says="an object is an invalid category",
        lines=_each(lambda i, rng: _features(i, rng, user={"age": rng.gauss(40, 5) * (1 if i < AFTER else 30)})),
        expect=(Expect("invalid_features", 0, 0), Expect("feature_range", 0, 0.5)),
        alerts=frozenset({"feature_range", "feature_drift"}),
        may=_CORRELATED,
    ),
    Case(
        name="embeddings",
        says="a list is an invalid category",
        lines=_each(lambda i, rng: _features(i, rng, v=[
            rng.gauss(1 if (k < 32) == (i < AFTER) else 0, 0.3) for k in range(64)])),
        expect=(Expect("invalid_features", 0, 0), Expect("missing_features", 0, 0)),
        alerts=frozenset({"feature_range", "feature_drift"}),
        may=_CORRELATED,
    ),
    Case(
        name="long_texts",
        says="each text is a category never seen",
        lines=_each(lambda i, rng: _features(
            i, rng, text="" if i >= AFTER and i % 10 < 3 else "word " * rng.randint(20, 40))),
        expect=(Expect("invalid_features", 0, 0),),
        alerts=frozenset({"feature_drift"}),
        may=_CORRELATED | {"feature_range"},
    ),
    Case(
        name="a_field_map_with_nested_targets_and_units",
        says="milliseconds are seconds, and a dotted name is a path",
        lines=_each(lambda i, rng: {
            "meta": {"model.name": "m"}, "at": _iso(BEGIN + i), "out": [{"score": rng.random()}], "latency_ms": 250,
            "amount": rng.gauss(0, 1)}),
        config="fields:\n  predictions:\n    model: $.meta['model.name']\n    time: $.at\n"
        "    prediction.value: $.out[0].score\n    duration: {path: $.latency_ms, unit: ms}\n    features: $\n",
        expect=(Expect("latency_p50", 0.25, 0.25), Expect("prediction_value", 0.5, 0.5),
                Expect("missing_features", 0, 0)),
        models=frozenset({"m"}),
        reads="any JSON by a field map: nested targets, elements of lists, dotted names, units",
    ),
)

_SMALL = frozenset({"latency", "latency_p50", "latency_p95", "latency_p99"})

_MOVES: tuple[Case, ...] = (
    *(
        Case(
            name=f"a_constant_and_then_a_jump_under_{detector}",
            says="to a constant, or to milliseconds in seconds, nothing is out",
            lines=_each(lambda i, _: _native(i, _rng(i), duration_s=0.0004 if i < AFTER else 0.0012)),
            config=f"defaults: {{signals: {{latency: {{detector: {detector}}}}}}}\n",
            expect=(Expect("latency_p50", 0.0004, 0.0012),),
            alerts=frozenset({"latency", "latency_p50"}),
            may=_SMALL,
        )
        for detector in ("gaussian_scorer", "adwin", "page_hinkley")
    ),
)

_ALL = (*_SPANS, *_ANSWERS, *_CLASSES, *_SERVED, *_NUMBERS, *_FEATURES, *_MOVES)

CASES: dict[str, Case] = {c.name: c for c in _ALL}
