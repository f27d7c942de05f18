"""Calls of language models: OpenTelemetry's `gen_ai.*` and OpenInference's `llm.*`, by one table.

Both conventions are still moving. What is called how stands in `ALIASES` and nowhere else.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

import msgspec

from streamproc import otlp
from streamproc.events import ErrorInfo, Label, LlmUsage, ModelRef, Outcome, Prediction, Time

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
    # OpenTelemetry has no cost: what others write
    "gen_ai.usage.cost": "cost",
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
MARKS = (b'"gen_ai.', b'"gen_ai"', b'"llm.', b'"llm"')

_TEXTS = frozenset({
    "provider", "operation", "request_model", "response_model", "response_id", "tool", "agent", "evaluation",
    "evaluation_label",
})  # fmt: skip
_COUNTS = frozenset({"input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens"})

#: More attributes, and deeper ones, than these are a producer's mistake.
_MAX_ATTRIBUTES = 1024
_MAX_DEPTH = 8

#: Why an answer ended, as providers say it, in lower case: cut off at its length, or withheld.
_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "incomplete"})
_WITHHELD = frozenset({"content_filter", "content_filtered", "refusal", "safety", "guardrail_intervened", "blocklist",
                       "prohibited_content", "recitation", "spii", "error_toxic"})  # fmt: skip

#: What a call of a tool is called.
_TOOL = frozenset({"execute_tool", "tool"})

_RETRIEVED = re.compile(r"retrieval\.documents\.\d+\.document\.score")

_ERROR_CODES = frozenset({2, "2", "STATUS_CODE_ERROR", "ERROR", "Error", "error"})


def looks_genai(value: bytes) -> bool:
    """Whether a record may be of a language model."""
    return any(mark in value for mark in MARKS)


def is_call(span: dict[str, Any]) -> bool:
    """Whether a span, as OTLP writes it in JSON, is of a language model, a tool of one or its retrieval."""
    own = span.get("attributes")
    return isinstance(own, list) and any(isinstance(a, dict) and str(a.get("key")).startswith(_OF_CALLS) for a in own)


_OF_CALLS = ("gen_ai.", "llm.", "openinference.", "retrieval.")


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
    own = {name: known[name] for name in LlmUsage.__struct_fields__ if name in known}
    return LlmUsage(**own) if own else None


#: Of a call: withheld, empty, cut off, a tool's that failed, each 0 or 1; the best document's score; the time in
#: seconds to the first token. nan where it does not apply or is not told.
FACTS = ("refusal_rate", "empty_rate", "truncated_rate", "tool_failure_rate", "retrieval_score", "time_to_first_token")


def facts(llm: LlmUsage | None, *, failed: bool) -> tuple[float, ...]:
    """Return what `FACTS` names of one call.

    >>> facts(LlmUsage(finish_reasons=["length"], output_tokens=9), failed=False)
    (0.0, 0.0, 1.0, nan, nan, nan)
    """
    if llm is None:
        return _NO_FACTS
    if llm.operation is not None and llm.operation.lower() in _TOOL:
        return (*_NO_FACTS[:3], float(failed), *_NO_FACTS[4:])
    reasons = {r.lower() for r in llm.finish_reasons or ()}
    told = bool(reasons)
    answered = not failed and not reasons & _WITHHELD
    calls_tool = bool(reasons & {"tool_calls", "tool_call", "tool_use", "function_call"})
    return (
        float(bool(reasons & _WITHHELD)) if told else _NAN,
        float(llm.output_tokens == 0 and not calls_tool) if answered and llm.output_tokens is not None else _NAN,
        float(bool(reasons & _CUT_OFF)) if told else _NAN,
        _NAN,
        _NAN if llm.retrieval_score is None else llm.retrieval_score,
        _NAN if llm.time_to_first_token_s is None else llm.time_to_first_token_s,
    )


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


def call(tree: dict[str, Any]) -> Prediction | None:
    """Return the call of a language model that a record tells of, None where it tells of none.

    Takes attributes flat or nested, at the top or under `attributes`, a span as OTLP writes it in JSON,
    and a whole OTLP request of one span. Raise ValueError where it tells of one and cannot be read.
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
    known = canonical(attributes)
    if not known:
        return None
    names = [known.get(n) for n in ("request_model", "response_model", "agent", "tool")]
    if "operation" in known:
        names.append(_text(attributes.get("service.name")))
    name = next(filter(None, names), None)
    if name is None:
        raise ValueError("a call without `gen_ai.request.model` or `llm.model_name`")
    scores = [s for n, v in attributes.items() if _RETRIEVED.fullmatch(n) and (s := _number(v)) is not None]
    if scores:
        known["retrieval_score"] = max(scores)
    began, ended = _moment(tree, "startTimeUnixNano", "start_time"), _moment(tree, "endTimeUnixNano", "end_time")
    duration = known.get("duration_s", _number(tree.get("duration_s")))
    if duration is None and began is not None and ended is not None:
        duration = (ended - began).total_seconds()
    context = tree.get("context")
    ids = [tree.get("id"), tree.get("spanId"), tree.get("span_id"), known.get("response_id")]
    ids += [context.get("span_id")] if isinstance(context, dict) else []
    error = _error(tree, attributes)
    return Prediction(
        model=ModelRef(name, known.get("response_model") if known.get("response_model") != name else None),
        prediction=Outcome() if error is None else None,
        duration_s=duration,
        time=ended if ended is not None else msgspec.convert(tree.get("time"), Time),
        id=next((i for i in ids if isinstance(i, str) and i), ""),
        source=str(attributes.get("service.name") or tree.get("source") or ""),
        error=error,
        service_name=_text(attributes.get("service.name")),
        environment=_text(attributes.get("deployment.environment.name")),
        llm=usage(known),
    )


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
    if isinstance(kind, str):
        return ErrorInfo(kind)
    status = tree.get("status")
    code = (status.get("code") or status.get("status_code")) if isinstance(status, dict) else None
    if isinstance(code, str | int) and code in _ERROR_CODES:
        return ErrorInfo(_text(attributes.get("exception.type")) or "_OTHER")
    return None


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
    if name in _TEXTS:
        return _text(value)
    if name == "finish_reasons":
        items = value if isinstance(value, list) else [value]
        return [v for v in items if isinstance(v, str)][:16] or None
    number = _number(value)
    if number is None or (number < 0 and name != "evaluation_score"):
        return None
    return (int(number) if number < 1e15 else None) if name in _COUNTS else number


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
