"""Calls of language models: OpenTelemetry's `gen_ai.*` and OpenInference's `llm.*`, by one table.

Both conventions are still moving. What is called how stands in `ALIASES` and nowhere else.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

import msgspec
from msgspec import UNSET

from streamproc import chat, otlp, span_kinds
from streamproc.events import (
    OTHER_ERROR,
    ErrorInfo,
    Ignored,
    Label,
    LlmUsage,
    ModelRef,
    Outcome,
    Prediction,
    Time,
    failed_status,
)

#: What a producer calls it, and what it is here. Where several are given, the one further up wins.
ALIASES: dict[str, str] = {
    # OpenTelemetry, the names of today
    "gen_ai.provider.name": "provider",
    "gen_ai.operation.name": "operation",
    "gen_ai.request.model": "request_model",
    "gen_ai.response.model": "response_model",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cache_read_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "gen_ai.response.finish_reasons": "finish_reasons",
    "gen_ai.response.time_to_first_chunk": "time_to_first_token_s",
    "gen_ai.response.id": "response_id",
    "gen_ai.client.operation.duration": "duration_s",
    # its metrics' names, where a producer puts them on the call
    "gen_ai.server.time_to_first_token": "time_to_first_token_s",
    "gen_ai.client.operation.time_to_first_chunk": "time_to_first_token_s",
    "gen_ai.server.request.duration": "duration_s",
    # OpenTelemetry, the names of before
    "gen_ai.system": "provider",
    "gen_ai.usage.prompt_tokens": "input_tokens",
    "gen_ai.usage.completion_tokens": "output_tokens",
    "gen_ai.usage.reasoning_tokens": "reasoning_tokens",
    "gen_ai.usage.cache_read_input_tokens": "cache_read_tokens",
    "gen_ai.response.finish_reason": "finish_reasons",
    "gen_ai.completion.0.finish_reason": "finish_reasons",
    # what providers' own SDKs write beside them
    "anthropic.message.stop_reason": "finish_reasons",
    # OpenTelemetry has no cost: what others write
    "gen_ai.usage.cost": "cost",
    "gen_ai.usage.total_cost": "cost",
    "gen_ai.cost.total_cost": "cost",
    # OpenInference
    "llm.model_name": "request_model",
    "llm.provider": "provider",
    "llm.system": "provider",
    "llm.token_count.prompt": "input_tokens",
    "llm.token_count.completion": "output_tokens",
    "llm.token_count.prompt_details.cache_read": "cache_read_tokens",
    "llm.token_count.completion_details.reasoning": "reasoning_tokens",
    "llm.cost.total": "cost",
    "llm.finish_reason": "finish_reasons",
    "openinference.span.kind": "operation",
    "embedding.model_name": "request_model",
    "reranker.model_name": "request_model",
    # OpenLLMetry, before it wrote OpenTelemetry's names
    "llm.request.model": "request_model",
    "llm.request.model_name": "request_model",
    "llm.response.model": "response_model",
    "llm.usage.prompt_tokens": "input_tokens",
    "llm.usage.completion_tokens": "output_tokens",
    "llm.response.finish_reason": "finish_reasons",
    "llm.response.stop_reason": "finish_reasons",
    "llm.request.type": "operation",
    "traceloop.span.kind": "operation",
    "traceloop.entity.name": "entity",
    # MLflow, and Vercel's AI SDK
    "mlflow.llm.model": "response_model",
    "mlflow.spanType": "operation",
    "mlflow.spanFunctionName": "entity",
    "ai.model.id": "request_model",
    "ai.model.provider": "provider",
    "ai.response.model": "response_model",
    "ai.response.finishReason": "finish_reasons",
    "ai.usage.promptTokens": "input_tokens",
    "ai.usage.completionTokens": "output_tokens",
    "ai.toolCall.name": "tool",
    "langfuse.observation.model.name": "request_model",
    # tools, and judgements of answers
    "gen_ai.tool.name": "tool",
    "tool.name": "tool",
    "gen_ai.agent.name": "agent",
    "agent.name": "agent",
    "gen_ai.evaluation.name": "evaluation",
    "gen_ai.evaluation.score.value": "evaluation_score",
    "gen_ai.evaluation.score.label": "evaluation_label",
    # our own, in a prediction's `llm`
    **{f"llm.{name}": name for name in LlmUsage.__struct_fields__},
}

#: What a record of a language model has somewhere in its bytes, flat or nested; few others do.
MARKS = (b'"gen_ai.', b'"gen_ai"', b'"llm.', b'"llm"', *(f'"{p}'.encode() for p in span_kinds.PREFIXES[2:]))

_TEXTS = frozenset({
    "provider", "operation", "request_model", "response_model", "response_id", "tool", "agent", "evaluation",
    "evaluation_label", "entity", "kind",
})  # fmt: skip
_COUNTS = frozenset({"input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens"})

#: Longest name of a tool, and longest word of a convention, that is kept.
MAX_WORD = 64

#: More attributes, and deeper ones, than these are a producer's mistake.
_MAX_ATTRIBUTES = 1024
_MAX_DEPTH = 8

#: Why an answer ended, as providers say it, in lower case and with `_`: it was complete, cut off at its length,
#: withheld, a call of tools, or broken off.
_REASONS: dict[str, str] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "stop_str", "eos", "eos_token", "end", "complete",
                     "completed", "finish", "finished", "success", "normal", "pause_turn", "compaction"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "max_new_tokens", "max_length", "model_length",
                     "max_completion_tokens", "token_limit", "incomplete", "error_limit", "context_length_exceeded",
                     "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("content_filter", "content_filtered", "content_policy_violation", "refusal", "safety", "blocked",
                     "image_safety", "blocklist", "prohibited_content", "image_prohibited_content", "recitation",
                     "image_recitation", "language", "spii", "error_toxic", "flagged", "filtered"), "content_filter"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call", "function_calls"), "tool_calls"),
    **dict.fromkeys(("error", "failed", "malformed_function_call", "unexpected_tool_call", "abort", "aborted",
                     "cancelled", "canceled", "timeout", "malformed_model_output", "malformed_tool_use"), "error"),
}  # fmt: skip

#: Vertex AI's enum `Candidate.FinishReason`, where a client writes its numbers.
_NUMBERED = {1: "stop", 2: "length", 3: "content_filter", 4: "content_filter", 6: "content_filter",
             7: "content_filter", 8: "content_filter", 9: "error"}  # fmt: skip

#: What a reason of no known word becomes: it is counted, and says nothing of how the answer ended.
UNKNOWN_REASON = "unknown"

#: Prefixes that enums put before a word: `FinishReason.STOP`, `FINISH_REASON_STOP`, `StopReason::EndTurn`.
_ENUM_PREFIX = re.compile(r"^(?:.*(?:\.|::|/))?(?:(?:finish|stop|completion|stopping)_reason_)?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

_RETRIEVED = re.compile(r"retrieval\.documents\.\d+\.document\.score")

_ERROR_CODES = frozenset({2, "2", "STATUS_CODE_ERROR", "ERROR", "Error", "error"})

#: Events of a span that mark the first token of a streamed answer.
_FIRST_TOKEN = frozenset({
    "First Token Stream Event", "llm.content.completion.chunk", "gen_ai.content.completion.chunk",
    "mlflow.chunk.item.0", "ai.stream.firstChunk", "first_token",
})  # fmt: skip


def looks_genai(value: bytes) -> bool:
    """Whether a record may be of a language model."""
    return any(mark in value for mark in MARKS)


def may_be_ours(span: dict[str, Any]) -> bool:
    """Whether a span, as OTLP writes it in JSON, is of a language model, its agents or tools."""
    own = span.get("attributes")
    return isinstance(own, list) and any(
        isinstance(a, dict) and str(a.get("key")).startswith(span_kinds.PREFIXES) for a in own
    )


def canonical(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return what `ALIASES` knows of a call's attributes, by our names.

    >>> canonical({"llm.token_count.prompt": "7", "gen_ai.request.model": "m"})
    {'request_model': 'm', 'input_tokens': 7}
    """
    found: dict[str, Any] = {}
    for theirs, ours in ALIASES.items():
        if ours not in found and (value := _converted(ours, attributes.get(theirs))) is not None:
            found[ours] = value
    return found


def usage(known: dict[str, Any]) -> LlmUsage | None:
    """Return what `canonical` gave as the part of a prediction it is, None where it is nothing."""
    own = {name: known[name] for name in LlmUsage.__struct_fields__ if known.get(name) is not None}
    return LlmUsage(**own) if own else None


#: Of a call: withheld, empty, cut off, ended for a reason of no known word, each 0 or 1; the best document's score; the
#: time in seconds to the first token. nan where it does not apply or is not told.
FACTS = (
    "refusal_rate", "empty_rate", "truncated_rate", "unknown_finish_reasons", "retrieval_score", "time_to_first_token",
)  # fmt: skip


def facts(llm: LlmUsage | None, *, failed: bool) -> tuple[float, ...]:
    """Return what `FACTS` names of one call.

    >>> facts(LlmUsage(finish_reasons=["length"], output_tokens=9), failed=False)
    (0.0, 0.0, 1.0, 0.0, nan, nan)
    """
    if llm is None or llm.kind != span_kinds.CALL:
        return _NO_FACTS
    reasons = set(map(finish_reason, llm.finish_reasons or ()))
    unknown = UNKNOWN_REASON in reasons
    told = bool(reasons) and not unknown
    withheld, cut_off = "content_filter" in reasons, "length" in reasons
    # An answer of no tokens to a request of none is usage that was not filled in.
    counted = llm.output_tokens is not None and (llm.output_tokens > 0 or llm.input_tokens != 0)
    answered = not failed and not withheld and not reasons & {"tool_calls", "error"}
    return (
        float(withheld) if told or withheld else _NAN,
        float(llm.output_tokens == 0) if answered and counted else _NAN,
        float(cut_off) if told or cut_off else _NAN,
        float(unknown) if reasons else _NAN,
        _NAN if llm.retrieval_score is None else llm.retrieval_score,
        _NAN if llm.time_to_first_token_s is None else llm.time_to_first_token_s,
    )


def finish_reason(word: str) -> str:
    """Return why an answer ended in one word: stop, length, content_filter, tool_calls, error, or `UNKNOWN_REASON`.

    >>> [finish_reason(w) for w in ("FinishReason.MAX_TOKENS", "end-turn", "guardrail_intervened", "2", "because")]
    ['length', 'stop', 'content_filter', 'length', 'unknown']
    """
    found = _REASONS.get(word)
    if found is not None:
        return found
    if word.isascii() and word.isdigit() and len(word) < 4:
        return _NUMBERED.get(int(word), UNKNOWN_REASON)
    plain = _CAMEL.sub("_", word.strip()).lower().replace("-", "_").replace(" ", "_")
    plain = _ENUM_PREFIX.sub("", plain, count=1)
    if "guardrail" in plain:
        return "content_filter"
    return _REASONS.get(plain, UNKNOWN_REASON)


_NAN = float("nan")
_NO_FACTS = (_NAN,) * len(FACTS)


def evaluation(tree: dict[str, Any]) -> Label | None:
    """Return the judgement of an answer that a record tells of, None where it tells of none.

    OpenTelemetry has it as an event, `gen_ai.evaluation.result`, with attributes flat, nested or as OTLP writes them.
    """
    own = tree.get("attributes")
    attributes = _otlp(own) if isinstance(own, list) else flat(own) if isinstance(own, dict) else {}
    attributes = {**flat(tree), **attributes}
    known = canonical(attributes)
    if "evaluation" not in known:
        return None
    ids = (attributes.get("prediction_id"), known.get("response_id"), tree.get("spanId"), tree.get("span_id"))
    name = known.get("request_model") or known.get("response_model") or attributes.get("model.name")
    return Label(
        prediction_id=next((i for i in ids if isinstance(i, str) and i), ""),
        model=_text(name),
        time=_moment(tree, "timeUnixNano", "timestamp") or msgspec.convert(tree.get("time"), Time),
        origin="human" if attributes.get("origin") == "human" else "judge",
        evaluation=known["evaluation"],
        evaluation_score=known.get("evaluation_score"),
        evaluation_label=known.get("evaluation_label"),
    )


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a record with nested names joined by dots; lists and OTLP's attributes become plain.

    >>> flat({"gen_ai": {"usage": {"input_tokens": 3}}})
    {'gen_ai.usage.input_tokens': 3}
    """
    found: dict[str, Any] = {}
    pending: list[tuple[str, Any, int]] = [("", tree, 0)]
    while pending and len(found) < _MAX_ATTRIBUTES:
        prefix, node, depth = pending.pop()
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, dict):
                if depth < _MAX_DEPTH:
                    pending.append((name, value, depth + 1))
            else:
                found[name] = value
    return found


def call(tree: dict[str, Any]) -> Prediction | Ignored | None:
    """Return what a record tells of a language model, None where it tells of none.

    A call is a prediction. A span of an agent, a tool or a retrieval is one too, with `llm.kind` saying so: it is no
    request and only feeds signals of its kind. A span of another kind is `Ignored`, with the word it calls itself.

    Takes attributes flat or nested, at the top or under `attributes`, a span as OTLP writes it in JSON,
    and a whole OTLP request of one span. Raise ValueError where it tells of a call and cannot be read.
    """
    if isinstance(tree.get("resourceSpans"), list):
        found = otlp.of_json(tree["resourceSpans"])
        if len(found) != 1:
            raise ValueError(f"{len(found)} spans where one is read")
        tree = found[0]
    own = tree.get("attributes")
    attributes = _otlp(own) if isinstance(own, list) else flat(own) if isinstance(own, dict) else {}
    if not attributes:
        attributes = flat(tree)
    elif "openinference.span.kind" not in attributes and isinstance(tree.get("span_kind"), str):
        attributes["openinference.span.kind"] = tree["span_kind"]  # as Phoenix exports it
    if not any(name.startswith(span_kinds.PREFIXES) for name in attributes):
        return None
    known = canonical(attributes)
    _add_more(known, attributes)
    kind, word = span_kinds.declared(attributes)
    if kind == span_kinds.CALL and not word and not span_kinds.is_call(known):
        return Ignored("span: of no call" if "spanId" in tree or "span_id" in tree else "no call of a language model")
    if not kind:
        return Ignored(f"span: {word[:MAX_WORD]}" if kind == "" else f"span of an unknown kind: {word[:MAX_WORD]}")
    model = known.get("request_model") or known.get("response_model")
    service = _text(attributes.get("service.name"))
    entity = next(filter(None, (known.get(n) for n in ("tool", "agent", "entity"))), _text(tree.get("name")))
    if kind == span_kinds.CALL or (kind == span_kinds.EMBEDDING and model):
        name = model
        if name is None:
            raise ValueError("a call of a language model without its name, such as `gen_ai.request.model`")
    else:
        name = next(filter(None, (known.get("agent"), service, entity, model)), None)
        if name is None:
            raise ValueError(f"a span of kind {word} that names neither agent, service nor tool")
    scores = [s for n, v in attributes.items() if _RETRIEVED.fullmatch(n) and (s := _number(v)) is not None]
    if scores:
        known["retrieval_score"] = max(scores)
    began, ended = _moment(tree, "startTimeUnixNano", "start_time"), _moment(tree, "endTimeUnixNano", "end_time")
    duration = known.get("duration_s", _number(tree.get("duration_s", attributes.get("duration_s"))))
    if duration is None and began is not None and ended is not None:
        duration = (ended - began).total_seconds()
    if "time_to_first_token_s" not in known and began is not None:
        first = _first_token(tree, began)
        if first is not None:
            known["time_to_first_token_s"] = first
    context = tree.get("context")
    ids = [tree.get("id"), tree.get("spanId"), tree.get("span_id")]
    ids += [context.get("span_id")] if isinstance(context, dict) else []
    spans = any(isinstance(i, str) and i for i in ids[1:])
    ids.append(known.get("response_id"))
    error = _error(tree, attributes)
    known["kind"] = kind
    parent = next((p for n in ("parentSpanId", "parent_id", "parent_span_id") if (p := _text(tree.get(n)))), None)
    known["parent_id"] = parent
    if not spans:  # what is no span is one call however often it comes
        known.pop("response_id", None)
    used = usage(known)
    if used is not None and name != model:
        # Its calls have told of these already.
        used.input_tokens = used.output_tokens = used.cost = used.cache_read_tokens = used.reasoning_tokens = None
        used.part = None if entity is None else entity[:MAX_WORD]
    version = known.get("response_model") if name == model else None
    return Prediction(
        model=ModelRef(name, version if version != name else None),
        prediction=Outcome() if error is None else UNSET,
        duration_s=duration,
        time=ended if ended is not None else msgspec.convert(tree.get("time"), Time),
        id=next((str(i) for i in ids if isinstance(i, str | int) and i), ""),
        source=str(attributes.get("service.name") or tree.get("source") or ""),
        error=error,
        service_name=service,
        environment=_text(attributes.get("deployment.environment.name")),
        traceparent=_text(attributes.get("traceparent")),
        llm=used,
    )


def _add_more(known: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Add what stands in JSON inside attributes: a failed call names its model nowhere else.

    OpenInference's `llm.model_name` is the model that answered, once there is an answer. What was asked for is the name
    that failures share with it, so that they are not put down to another model.
    """
    asked_by_name = "gen_ai.request.model" in attributes
    for name in ("llm.invocation_parameters", "embedding.invocation_parameters", "mlflow.spanInputs"):
        inside = {} if asked_by_name else _json(attributes.get(name))
        model = next((m for k in ("model", "model_name", "model_id") if (m := _text(inside.get(k)))), None)
        if model is not None:
            if (answering := known.get("request_model")) not in (None, model):
                known.setdefault("response_model", answering)
            known["request_model"] = model
            break
    if "mlflow.spanType" not in attributes:
        return
    model = _text(span_kinds.plain(attributes.get("model")))
    if model is not None:
        known.setdefault("request_model", model)
    tokens, cost = _json(attributes.get("mlflow.chat.tokenUsage")), _json(attributes.get("mlflow.llm.cost"))
    answer = _json(attributes.get("mlflow.spanOutputs"))
    for name, value in (
        ("input_tokens", tokens.get("input_tokens")),
        ("output_tokens", tokens.get("output_tokens")),
        ("cache_read_tokens", tokens.get("cache_read_input_tokens")),
        ("cost", cost.get("total_cost")),
        # Of embeddings MLflow tells it nowhere else.
        ("input_tokens", _json(answer.get("usage")).get("prompt_tokens")),
    ):
        if (number := _converted(name, value)) is not None:
            known.setdefault(name, number)
    if isinstance(answer.get("choices"), list):
        if reasons := chat.finish_reasons(answer["choices"]):
            known.setdefault("finish_reasons", reasons)
    elif (reason := _text(answer.get("stop_reason"))) is not None:
        known.setdefault("finish_reasons", [reason])
    elif (details := answer.get("incomplete_details")) is not None and isinstance(details, dict):
        known.setdefault("finish_reasons", [_text(details.get("reason")) or "incomplete"])
    if (response_id := _text(answer.get("id"))) is not None:
        known.setdefault("response_id", response_id)


def _json(value: Any) -> dict[str, Any]:
    """Return the object that an attribute holds as JSON, an empty one where it holds none."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or not value.startswith("{"):
        return {}
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _first_token(tree: dict[str, Any], began: dt.datetime) -> float | None:
    """Return the seconds from a span's beginning to the event that marks its first token."""
    for event in _events(tree):
        if event.get("name") in _FIRST_TOKEN:
            moment = _moment(event, "timeUnixNano", "timestamp")
            if moment is not None and moment >= began:
                return (moment - began).total_seconds()
    return None


def _events(tree: dict[str, Any]) -> list[dict[str, Any]]:
    events = tree.get("events")
    return [e for e in events if isinstance(e, dict)] if isinstance(events, list) else []


def _otlp(attributes: list[Any]) -> dict[str, Any]:
    """Return OTLP's list of keys and values as a dict."""
    found = {}
    for pair in attributes[:_MAX_ATTRIBUTES]:
        if not isinstance(pair, dict) or not isinstance(pair.get("key"), str):
            raise ValueError("`attributes` is a list, and not of OTLP's keys and values")
        found[pair["key"]] = _otlp_value(pair.get("value"))
    return found


def _otlp_value(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    for kind, content in value.items():
        if kind == "arrayValue" and isinstance(content, dict) and isinstance(content.get("values"), list):
            return [_otlp_value(v) for v in content["values"][:_MAX_ATTRIBUTES]]
        if kind in ("stringValue", "intValue", "doubleValue", "boolValue"):
            return content
    return None


def _error(tree: dict[str, Any], attributes: dict[str, Any]) -> ErrorInfo | None:
    kind = attributes.get("error.type") or tree.get("error.type")
    if isinstance(kind, str | int) and not isinstance(kind, bool):
        return ErrorInfo(str(kind))
    status = tree.get("status")
    code = (status.get("code") or status.get("status_code")) if isinstance(status, dict) else status
    codes = [code, tree.get("status_code"), attributes.get("otel.status_code"), attributes.get("status_code")]
    failed = any(isinstance(c, str | int) and not isinstance(c, bool) and c in _ERROR_CODES for c in codes)
    http = failed_status(attributes.get("http.response.status_code", attributes.get("http.status_code")))
    if not failed and http is None:
        return None
    named = _text(attributes.get("exception.type"))
    for event in _events(tree):
        if named is None and event.get("name") == "exception":
            own = event.get("attributes")
            inside = _otlp(own) if isinstance(own, list) else own if isinstance(own, dict) else {}
            named = _text(inside.get("exception.type"))
    return ErrorInfo(named or http or OTHER_ERROR)


def _moment(tree: dict[str, Any], nanos: str, text: str) -> dt.datetime | None:
    if nanos in tree:
        written = str(tree[nanos])
        # Digits, not a float: of that the microseconds would be lost.
        if not (written.isascii() and written.isdigit()) or len(written) > 20:
            raise ValueError(f"`{nanos}` is no time")
        return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=int(written) // 1000)
    if isinstance(tree.get(text), str):
        moment: dt.datetime = msgspec.convert(tree[text], dt.datetime)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
    return None


def _converted(name: str, value: Any) -> Any:
    """Return a value as our field has it, None where it cannot be: a moving convention is no reason to reject."""
    if value is None:
        return None
    value = span_kinds.plain(value)
    if name in _TEXTS:
        return _text(value)
    if name == "finish_reasons":
        return _reasons(value)
    number = _number(value)
    if number is None or (number < 0 and name != "evaluation_score"):
        return None
    return (int(number) if number < 1e15 else None) if name in _COUNTS else number


def _reasons(value: Any) -> list[str] | None:
    """Return finish reasons as words, whichever way they were written; None where there is none.

    >>> _reasons('["stop", "length"]'), _reasons("max_tokens"), _reasons([2]), _reasons("")
    (['stop', 'length'], ['max_tokens'], ['2'], None)
    """
    if isinstance(value, str) and value[:1] in "[{" and value:
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            value = value.strip("[]{}").replace("'", "").replace('"', "")
    if isinstance(value, str) and "," in value:
        value = value.split(",")
    found = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):  # an enum, or a message of one, written out
            item = item.get("reason", item.get("type", item.get("name", item.get("value"))))
        if isinstance(item, int) and not isinstance(item, bool):
            item = str(item)
        if isinstance(item, str) and (word := item.strip()):
            found.append(word[:MAX_WORD])
    return found[:16] or None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e300 else None
