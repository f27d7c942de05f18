"""What records say, read slowly and plainly, one at a time: written apart from the fast path, of which nothing is used.

Each format's reading follows its publisher's specification and docs/inputs.md. What comes of a record is a list of
facts, or the word for why it is refused.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.oracles.messages import INFERENCE, PREDICTIONS

AVRO_ID, PROTOBUF_ID, JSON_ID = 7, 8, 9

#: What became of an answer.
READ, EMPTY, UNREADABLE, UNTOLD = "read", "empty", "unreadable", "untold"


@dataclass
class Fact:
    """What one event says. A number that is not told is None."""

    model: str
    time_s: float | None = None
    kind: str = "call"  # or embedding, agent, tool, retrieval: of these only an embedding is a request too
    side: str = ""  # request or response, of one that comes in two halves
    exchange: str = ""
    failed: bool = False
    value: float | None = None
    label: str | None = None
    answer: str = UNTOLD
    latency_s: float | None = None
    tokens_in: float | None = None
    tokens_out: float | None = None
    cost: float | None = None
    reasons: list[str] = field(default_factory=list)
    features: dict[str, Any] | None = None
    span: str = ""
    parent: str = ""
    response: str = ""


class Refused(Exception):
    """Why a record is not read, in the worker's word for it."""


@dataclass
class Said:
    """What a record says: facts, how many spans of it hold none, and how many could not be read."""

    facts: list[Fact] = field(default_factory=list)
    passed_over: int = 0  # of no language model
    ignored: int = 0  # of one, and no request
    unread: int = 0


# ------------------------------------------------------------------------------ any record


def read(value: bytes | None, headers: Sequence[tuple[str, bytes | None]], topic: str, key: bytes | None) -> Said:
    """Return what a record says. Raise `Refused`."""
    if value is None:
        raise Refused("null_value")
    if value[:1] == b"\0" and len(value) >= 5 and not topic.startswith("seldon."):
        return _whole(_frame(value), headers, topic, key)
    if value[:2] == b"\x1f\x8b":
        try:
            value = gzip.decompress(value)
        except (OSError, EOFError):
            raise Refused("malformed") from None
    if value[:1] == b"\n" and not topic.startswith("seldon."):
        return _protobuf_traces(value)
    return _whole(value, headers, topic, key)


def _whole(value: bytes, headers: Sequence[tuple[str, bytes | None]], topic: str, key: bytes | None) -> Said:
    attributes = {k[3:]: v.decode() for k, v in headers if k.startswith("ce_") and v is not None}
    if topic.startswith("seldon."):
        return Said([_seldon(value, topic, key)])
    if attributes.get("type", "").startswith("org.kubeflow.serving.inference."):
        return Said([_kserve(attributes, value)])
    tree = _tree(value)
    enveloped = isinstance(tree, dict) and "specversion" in tree and not attributes
    if enveloped and ("data" in tree or "data_base64" in tree):
        data = tree["data"] if "data" in tree else _tree(base64.b64decode(tree["data_base64"]))
        if tree.get("type", "").startswith("org.kubeflow.serving.inference."):
            return Said([_kserve(tree, json.dumps(data).encode())])
        return _of_tree(data, {"time": tree.get("time"), "id": tree.get("id")}, key)
    return _of_tree(tree, attributes, key)


def _tree(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        begins = value.lstrip()[:1]
        raise Refused("malformed" if begins in (b"{", b"[") or not value else "unknown_format") from None
    except RecursionError:
        raise Refused("too_deep") from None


def _of_tree(tree: Any, attributes: Mapping[str, Any], key: bytes | None) -> Said:
    if not isinstance(tree, dict):
        raise Refused("unknown_format")
    if tree.keys() == {"schema", "payload"}:
        tree = _connect(tree)
    if "resourceSpans" in tree:
        return _traces(tree)
    if isinstance(tree.get("outputs"), list) and tree["outputs"] and "prediction" not in tree and "model" not in tree:
        fact = Fact(tree.get("model_name") or "")
        _add_tensors(fact, tree["outputs"])
        return Said([_named(fact, key)])
    names = _flat(tree)
    if any(n.startswith(("gen_ai.", "llm.", "openinference.")) for n in names) and "prediction" not in tree:
        fact = _call(names, id=str(tree.get("id", "")), time_s=_seconds(tree.get("time")))
        if fact is None:
            raise Refused("ignored")
        return Said([fact])
    return Said([_named(_ours(tree, attributes), key)])


def _named(fact: Fact, key: bytes | None) -> Fact:
    if not fact.model:
        if not key:
            raise Refused("no_model")
        fact.model = key.decode()
    return fact


# ------------------------------------------------------------------------------ our own JSON

_OURS = {
    "prediction", "features", "duration_s", "error", "segment", "usage", "error.type", "http.response.status_code",
    "status_code", "model", "model.name",
}  # fmt: skip


def _ours(tree: dict[str, Any], attributes: Mapping[str, Any]) -> Fact:
    if not _OURS & tree.keys():
        raise Refused("unknown_format")
    model = tree.get("model", tree.get("model.name"))
    if isinstance(model, dict):
        model = model.get("name")
    if not isinstance(model, str | None):
        raise Refused("schema")
    when = tree.get("time")
    fact = Fact(model or "", time_s=_seconds(when if when is not None else attributes.get("time")))
    if (took := _number(tree.get("duration_s"))) is not None:
        fact.latency_s = took
    fact.features = {k: _number(v) for k, v in tree["features"].items()} if tree.get("features") else None
    used = tree.get("usage") or {}
    _add_use(fact, *(_number(used.get(k)) for k in ("input_tokens", "output_tokens", "cost")))
    statuses = [tree.get("http.response.status_code"), tree.get("status_code"), attributes.get("statuscode")]
    fact.failed = bool(tree.get("error") or tree.get("error.type"))
    for status in statuses:  # any one of them tells of a failure
        fact.failed = fact.failed or status == "ERROR" or (str(status).isdigit() and int(status) >= 400)
    if "prediction" not in tree:
        if not fact.failed:
            raise Refused("schema")
        return fact
    if fact.failed:
        fact.value, fact.label, _ = _answer(tree["prediction"])
        return fact
    fact.value, fact.label, fact.answer = _answer(tree["prediction"])
    return fact


def _answer(said: Any) -> tuple[float | None, str | None, str]:
    """Return the number, the class, and whether there was an answer."""
    if isinstance(said, bool):
        return None, str(said), READ
    if isinstance(said, int | float):
        return (None, None, EMPTY) if not math.isfinite(said) else (float(said), None, READ)
    if isinstance(said, str):
        if re.fullmatch(r"-?\d+\.\d+", said):
            return float(said), None, READ
        return None, said or None, READ if said else EMPTY
    if isinstance(said, list):
        if any(isinstance(x, list | dict) for x in said):
            return None, None, UNREADABLE
        return _row(said)
    if isinstance(said, dict):
        value, label, score = _number(said.get("value")), said.get("label"), _number(said.get("score"))
        shares = said.get("scores") or {}
        if value is None:
            value = score
        if label is None and shares:
            label = max(shares, key=lambda k: shares[k])
        told = value is not None or label is not None
        return value, None if label is None else str(label), READ if told else EMPTY
    return None, None, EMPTY


def _row(numbers: list[Any]) -> tuple[float | None, str | None, str]:
    """Return what one row of numbers says: shares over classes where they sum to one."""
    if not numbers:
        return None, None, EMPTY
    if len(numbers) == 1:
        only = numbers[0]
        if isinstance(only, bool | str):
            return None, str(only), READ
        finite = isinstance(only, int | float) and math.isfinite(only)
        return (float(only), None, READ) if finite else (None, None, EMPTY)
    if min(numbers) >= 0 and abs(sum(numbers) - 1) < 1e-3:
        return max(numbers), f"#{numbers.index(max(numbers))}", READ
    return sum(numbers) / len(numbers), None, READ


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        value = float(value)
    return float(value) if math.isfinite(value) else None


def _seconds(when: Any) -> float | None:
    """Return a time in seconds. Raise `Refused` where it is none."""
    if when is None:
        return None
    if isinstance(when, str):
        try:
            moment = dt.datetime.fromisoformat(when.replace("Z", "+00:00"))
        except ValueError:
            raise Refused("implausible_time") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
    for scale in (1, 1e3, 1e6, 1e9):
        if 315_532_800 <= when / scale <= 7_258_118_399:
            return float(when / scale)
    raise Refused("implausible_time")


def _add_use(fact: Fact, tokens_in: float | None, tokens_out: float | None, cost: float | None) -> None:
    if tokens_in == 0 and not tokens_out:  # was not filled in
        tokens_in = tokens_out = None
    fact.tokens_in, fact.tokens_out, fact.cost = tokens_in, tokens_out, cost


def _connect(tree: dict[str, Any]) -> dict[str, Any]:
    """Return Kafka Connect's payload with its decimals, two's complement in base64, as numbers."""
    row = dict(tree["payload"])
    for column in tree["schema"]["fields"]:
        if column.get("name") == "org.apache.kafka.connect.data.Decimal":
            digits = int.from_bytes(base64.b64decode(row[column["field"]]), "big", signed=True)
            row[column["field"]] = digits / 10 ** int(column["parameters"]["scale"])
    return row


# ------------------------------------------------------------------------------ frames


def _frame(value: bytes) -> bytes:
    number, rest = int.from_bytes(value[1:5], "big"), value[5:]
    if number == JSON_ID:
        return rest
    if number == AVRO_ID:
        try:
            return json.dumps(_Avro(rest).event()).encode()
        except (IndexError, ValueError, struct.error):
            raise Refused("schema") from None
    if number == PROTOBUF_ID:
        return json.dumps(_message(rest)).encode()
    raise Refused("unknown_schema")


class _Avro:
    """The binary encoding of Avro 1.12, for the one schema that `records` writes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise ValueError("too short")
        self.at += n
        return self.data[self.at - n : self.at]

    def whole(self) -> int:
        shift = number = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1)

    def text(self) -> str:
        return self.take(self.whole()).decode()

    def union(self, *kinds: str) -> Any:
        kind = kinds[self.whole()]
        if kind == "null":
            return None
        if kind == "double":
            return struct.unpack("<d", self.take(8))[0]
        if kind == "float":
            return struct.unpack("<f", self.take(4))[0]
        return self.whole() if kind == "long" else self.text()

    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = {"id": self.text(), "time": self.whole() / 1e6, "model": {"name": self.text()}}
        found["prediction"] = self.union("null", "double", "string")
        found["duration_s"] = self.union("null", "float")
        features = {}
        while count := self.whole():
            if count < 0:
                count, _ = -count, self.whole()
            for _ in range(count):
                name = self.text()
                features[name] = self.union("null", "double", "long")
        return {**found, "features": features}


def _message(data: bytes) -> dict[str, Any]:
    """Return a prediction of the framed file; what is not on the wire is 0, as proto3 says."""
    if data[:2] != bytes([2, 8]):
        raise Refused("schema")
    try:
        message = PREDICTIONS["Prediction"].FromString(data[2:])
    except Exception:
        raise Refused("schema") from None
    usage = message.usage
    found = {
        "id": message.id,
        "time": message.time,
        "model": {"name": message.model.name},
        "prediction": message.prediction,
        "duration_s": message.duration_s,
        "features": {"x": message.features.x, "y": message.features.y, "n": message.features.n},
    }
    if message.HasField("usage"):
        found["usage"] = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "cost": usage.cost}
    return found


# ------------------------------------------------------------------------------ model servers


def _kserve(attributes: Mapping[str, Any], data: bytes) -> Fact:
    side = attributes["type"].rpartition(".")[2]
    fact = Fact(
        f"{attributes['namespace']}/{attributes['inferenceservicename']}",
        time_s=_seconds(attributes["time"]),
        side=side,
        exchange=f"{attributes['source']} {attributes['id']}",
    )
    try:
        tree = json.loads(data)
    except ValueError:
        fact.answer = UNREADABLE if data.strip() else EMPTY
        return fact
    if side == "request":
        return fact
    if tree.get("error") or tree.get("detail"):
        fact.failed = True
    elif "outputs" in tree:
        _add_tensors(fact, tree["outputs"])
    else:
        fact.value, fact.label, fact.answer = _predictions(tree.get("predictions"))
    return fact


def _predictions(rows: Any) -> tuple[float | None, str | None, str]:
    """Return what V1's `predictions` say: of several rows the mean of their numbers."""
    if not rows or rows == [None]:
        return None, None, EMPTY
    if isinstance(rows[0], dict):
        return _number(rows[0].get("score")), rows[0].get("label"), READ
    if isinstance(rows[0], list):
        return _row(rows[0])
    if len(rows) == 1:
        return _row(rows)
    return sum(rows) / len(rows), None, READ


def _seldon(value: bytes, topic: str, key: bytes | None) -> Fact:
    _, namespace, _, name, side = topic.split(".")
    fact = Fact(f"{namespace}/{name}", side=side.replace("outputs", "response"), exchange=(key or b"").decode())
    if value[:1] == b"{":
        _add_tensors(fact, json.loads(value)["outputs"])
        return fact
    message = INFERENCE["Response"].FromString(value)
    tensors = []
    for i, tensor in enumerate(message.outputs):
        data: list[Any] = []
        for _, content in tensor.contents.ListFields():
            data = [v.decode() if isinstance(v, bytes) else v for v in content]
        if message.raw_output_contents:
            code, size = {"FP32": ("f", 4), "FP64": ("d", 8), "INT64": ("q", 8)}[tensor.datatype]
            raw = message.raw_output_contents[i]
            data = list(struct.unpack(f"<{len(raw) // size}{code}", raw))
        tensors.append({"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype, "data": data})
    _add_tensors(fact, tensors)
    return fact


def _add_tensors(fact: Fact, tensors: list[dict[str, Any]]) -> None:
    """Add what at most one tensor answers; none at all is an empty answer."""
    fact.answer = EMPTY
    for tensor in tensors:
        data = tensor.get("data")
        if data is None:
            fact.answer = UNREADABLE
            continue
        values = [v for row in data for v in (row if isinstance(row, list) else [row])]
        shape = [len(values) if n == -1 else n for n in tensor["shape"]]
        if math.prod(shape) != len(values):
            fact.answer = UNREADABLE
            continue
        if not values:
            continue
        rows = shape[0] if len(shape) > 1 or len(values) > 1 else 1
        if rows == 1:
            fact.value, fact.label, fact.answer = _row(values)
        else:
            fact.value, fact.answer = sum(values) / len(values), READ


# ------------------------------------------------------------------------------ language models


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, "" if not prefix and name == "attributes" else f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _protobuf_traces(value: bytes) -> Said:
    try:
        message = ExportTraceServiceRequest.FromString(value)
    except Exception:
        raise Refused("unread") from None
    resources = []
    for resource in message.resource_spans:
        shared = [_pair(a) for a in resource.resource.attributes]
        spans = [
            {
                "spanId": span.span_id.hex(),
                "parentSpanId": span.parent_span_id.hex(),
                "name": span.name,
                "startTimeUnixNano": span.start_time_unix_nano,
                "endTimeUnixNano": span.end_time_unix_nano,
                "attributes": [_pair(a) for a in span.attributes],
                "status": {"code": span.status.code},
            }
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        resources.append({"resource": {"attributes": shared}, "scopeSpans": [{"spans": spans}]})
    return _traces({"resourceSpans": resources})


def _pair(attribute: Any) -> dict[str, Any]:
    kind = attribute.value.WhichOneof("value")
    if kind == "array_value":
        values = [{"stringValue": v.string_value} for v in attribute.value.array_value.values]
        return {"key": attribute.key, "value": {"arrayValue": {"values": values}}}
    return {"key": attribute.key, "value": {kind: getattr(attribute.value, kind)}}


def _traces(tree: dict[str, Any]) -> Said:
    resources = tree["resourceSpans"]
    if not isinstance(resources, list):
        raise Refused("schema")
    said = Said()
    for resource in resources:
        shared = _attributes(resource.get("resource", {}).get("attributes", []))
        for scope in resource.get("scopeSpans", []):
            for span in scope["spans"]:
                _add_span(said, span, {**shared, **_attributes(span["attributes"])})
    if not said.facts and not said.passed_over and not said.ignored and not said.unread:
        raise Refused("schema")
    return said


def _attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        ((kind, value),) = pair["value"].items()
        if kind.startswith("array"):
            value = [next(iter(v.values())) for v in value["values"]]
        found[pair["key"]] = int(value) if kind.startswith("int") else value
    return found


_MARKS = ("gen_ai.", "llm.", "openinference.", "mlflow.")


def _add_span(said: Said, span: dict[str, Any], names: dict[str, Any]) -> None:
    if not any(n.startswith(_MARKS) for n in names):
        said.passed_over += 1
        return
    began, ended = int(span["startTimeUnixNano"]) // 1000 / 1e6, int(span["endTimeUnixNano"]) // 1000 / 1e6
    try:
        fact = _call(names, id=span["spanId"], time_s=ended)
    except Refused:
        said.unread += 1
        return
    if fact is None:
        said.ignored += 1
        return
    fact.latency_s = round(ended - began, 6)
    fact.failed = fact.failed or span.get("status", {}).get("code") == 2
    fact.span, fact.parent = span["spanId"], span.get("parentSpanId", "")
    fact.response = str(names.get("gen_ai.response.id", ""))
    said.facts.append(fact)


_KINDS = {
    "chat": "call", "text_completion": "call", "llm": "call", "chat_model": "call", "embeddings": "embedding",
    "invoke_agent": "agent", "chain": "agent", "tool": "tool", "retriever": "retrieval",
}  # fmt: skip

#: What a span that does not say what it is tells a call by.
_SIGNS = {"gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.response.finish_reasons", "llm.model_name"}

_CUT_OFF, _WHOLE = {"length", "max_tokens"}, {"stop"}


def _call(names: dict[str, Any], *, id: str, time_s: float | None) -> Fact | None:
    """Return what the attributes of a span or an event of a language model say; None for one that is no request."""
    word = next(
        (str(names[n]).strip('"').lower() for n in
         ("gen_ai.operation.name", "openinference.span.kind", "mlflow.spanType") if n in names),
        "chat" if _SIGNS & names.keys() else "",
    )  # fmt: skip
    kind = _KINDS.get(word)
    if kind is None:
        return None
    asked = json.loads(names.get("llm.invocation_parameters", "{}")).get("model")
    model = names.get("gen_ai.request.model") or asked or str(names.get("model", "")).strip('"')
    if kind in ("agent", "tool", "retrieval"):
        model = names.get("gen_ai.agent.name") or names.get("service.name")
        return Fact(model, time_s=time_s, kind=kind, failed="error.type" in names)
    if not model:
        raise Refused("schema")
    fact = Fact(model, time_s=time_s, kind=kind, failed="error.type" in names)
    fact.latency_s = _number(names.get("duration_s"))
    inside = json.loads(names.get("mlflow.chat.tokenUsage", "{}"))
    first = lambda *many: next((_number(names[n]) for n in many if n in names), None)  # noqa: E731
    tokens_in = first("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
    tokens_out = first("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
    tokens_in = tokens_in if tokens_in is not None else inside.get("input_tokens")
    tokens_out = tokens_out if tokens_out is not None else inside.get("output_tokens")
    _add_use(fact, tokens_in, tokens_out, first("gen_ai.usage.cost"))
    if kind == "embedding":
        fact.tokens_out = None
        return fact
    reasons = names.get("gen_ai.response.finish_reasons", [])
    if isinstance(reasons, str):
        reasons = json.loads(reasons) if reasons[:1] == "[" else [reasons]
    for choice in json.loads(names.get("mlflow.spanOutputs", "{}")).get("choices", []):
        reasons = [*reasons, choice["finish_reason"]]
    fact.reasons = [
        "length" if r.lower() in _CUT_OFF else "stop" if r.lower() in _WHOLE else "unknown" for r in reasons
    ]
    return fact
