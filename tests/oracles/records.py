"""Streams of mixed formats, record by record from a number: what real systems write, with what goes wrong in them."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import io
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro
from google.protobuf import json_format
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.oracles.messages import INFERENCE, PREDICTION_INDEX, PREDICTIONS

#: Monday, 5 January 2026, 09:00 UTC, in seconds: an hour in which models are met, and one in which they are watched.
MET_S = 1_767_603_600
BEGIN_S = MET_S + 7200

AVRO_ID, PROTOBUF_ID, JSON_ID = 7, 8, 9
AVRO: dict[str, Any] = {
    "type": "record",
    "name": "Prediction",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "model", "type": {"type": "record", "name": "Model", "fields": [{"name": "name", "type": "string"}]}},
        {"name": "prediction", "type": ["null", "double", "string"]},
        {"name": "duration_s", "type": ["null", "float"]},
        {"name": "features", "type": {"type": "map", "values": ["null", "double", "long"]}},
    ],
}
_AVRO = fastavro.parse_schema(AVRO)


@dataclass
class Record:
    """A record before it has an offset; stamp_s: its own time, seconds."""

    value: bytes | None
    stamp_s: float
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    key: bytes | None = None


class Draw:
    """Chance for one record, from its number in the stream and a seed."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.rng = random.Random(seed)
        self.at = BEGIN_S + 1 + number + round(self.rng.random() * 0.5, 3)

    def one(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def often(self, share: float) -> bool:
        return self.rng.random() < share

    def model(self) -> str:
        return f"m{self.rng.randrange(3)}"

    def number_(self) -> float:
        return self.one(0.0, 0, 1, 0.5, -1.5, 3, 1e6, round(self.rng.gauss(0, 1), 6))

    def time(self) -> Any:
        """Return a time in one of the forms that name one moment."""
        moment = dt.datetime.fromtimestamp(self.at, dt.UTC)
        return self.one(
            moment.isoformat(),
            moment.isoformat().replace("+00:00", "Z"),
            moment.isoformat().replace("+00:00", ""),
            self.at,
            round(self.at * 1000),
            round(self.at * 1_000_000),
        )

    def features(self) -> dict[str, Any]:
        found: dict[str, Any] = {"x": self.number_(), "y": self.number_(), "n": self.rng.randrange(3)}
        for name in list(found):
            if self.often(0.15):
                found[name] = self.one(None, math.nan, math.inf)
            elif self.often(0.05):
                del found[name]
        return found


# ------------------------------------------------------------------------------ ours, and envelopes around it


def _answer(draw: Draw) -> Any:
    shares = [round(x / 10, 1) for x in draw.one([1, 9], [5, 5], [7, 3])]
    return draw.one(
        draw.number_(), draw.number_(), draw.number_(), "yes", "no", True, False, "1", "0", "0.25", None, [], {}, "",
        math.nan, [draw.number_()], [1, 2, 3], shares, {"value": draw.number_()}, {"label": draw.rng.randrange(3)},
        {"label": "yes", "score": 0.5}, {"scores": {"yes": shares[0], "no": shares[1]}}, {"unknown": 1},
        {"value": 0}, {"value": None, "label": "no"}, {"value": "1.5"}, [[1], [2]], {"score": 0.25},
    )  # fmt: skip


def _ours(draw: Draw, **more: Any) -> dict[str, Any]:
    event: dict[str, Any] = {"id": f"p{draw.number}", "time": draw.time(), "model": {"name": draw.model()}}
    if draw.often(0.1):
        event["id"] = draw.number
    if draw.often(0.1):
        event["model"] = event["model"]["name"]
    elif draw.often(0.1):
        event["model.name"] = event.pop("model")["name"]
    failed = draw.often(0.1)
    if failed:
        event |= draw.one(
            {"error": {"type": "timeout"}}, {"error": "boom"}, {"error.type": "overloaded"}, {"status_code": "ERROR"},
            {"http.response.status_code": 503}, {"http.response.status_code": "404"}, {"status_code": 500},
        )  # fmt: skip
    else:
        event["prediction"] = _answer(draw)
        if draw.often(0.1):
            event |= draw.one({"status_code": "OK"}, {"http.response.status_code": 200}, {"error": None})
    if draw.often(0.8):
        event["duration_s"] = draw.one(0, 0.25, 1, "0.5", 2.5)
    if draw.often(0.8):
        event["features"] = draw.features()
    if draw.often(0.2):
        event["usage"] = draw.one(
            {"input_tokens": 10, "output_tokens": 3, "cost": 0.5},
            {"input_tokens": 10, "output_tokens": 0},
            {"input_tokens": 0, "output_tokens": 0, "cost": 0},
            {"input_tokens": "7"},
        )
    return {**event, **more}


def _json(tree: Any) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


def native(draw: Draw) -> Record:
    value = json.dumps(_ours(draw), indent=draw.one(None, None, 1)).encode()
    return Record(value, draw.at)


def compressed(draw: Draw) -> Record:
    return Record(gzip.compress(_json(_ours(draw))), draw.at)


def no_model(draw: Draw) -> Record:
    event = _ours(draw)
    event.pop("model", event.pop("model.name", None))
    event.pop("model.name", None)
    return Record(_json(event), draw.at, key=draw.one(None, b"m0", b""))


def binary_event(draw: Draw) -> Record:
    event = _ours(draw)
    when = dt.datetime.fromtimestamp(draw.at, dt.UTC).isoformat()
    headers: list[tuple[str, bytes | None]] = [
        ("ce_specversion", b"1.0"), ("ce_type", b"prediction"), ("ce_id", b"e%d" % draw.number), ("ce_source", b"/s"),
        ("content-type", b"application/json"), ("ce_nothing", None),
    ]  # fmt: skip
    if draw.often(0.5):
        del event["time"]
        headers.append(("ce_time", when.encode()))
    if draw.often(0.5):
        del event["id"]
    if draw.often(0.2):
        headers.append(("ce_statuscode", draw.one(b"200", b"500", b"429")))
    return Record(_json(event), draw.at, headers)


def structured_event(draw: Draw) -> Record:
    event = _ours(draw)
    if draw.often(0.5):
        del event["time"]
    data = {"data_base64": base64.b64encode(_json(event)).decode()} if draw.often(0.5) else {"data": event}
    when = dt.datetime.fromtimestamp(draw.at, dt.UTC).isoformat()
    envelope = {"specversion": "1.0", "type": "prediction", "id": f"e{draw.number}", "source": "/s", "time": when}
    return Record(_json({**envelope, **data}), draw.at)


def connect(draw: Draw) -> Record:
    """A row as Kafka Connect's JSON converter writes it, as Debezium does with the unwrapping transform."""
    number = draw.rng.randrange(-500, 500)
    size = max(1, (number.bit_length() + 8) // 8)
    text = base64.b64encode(number.to_bytes(size, "big", signed=True)).decode()
    decimal = {"name": "org.apache.kafka.connect.data.Decimal", "type": "bytes", "parameters": {"scale": "2"}}
    schema = {"type": "struct", "fields": [{"field": "prediction", **decimal}, {"field": "id", "type": "string"}]}
    event = {"id": f"p{draw.number}", "time": draw.at, "model": {"name": draw.model()}, "prediction": text}
    return Record(_json({"schema": schema, "payload": event}), draw.at)


# ------------------------------------------------------------------------------ frames


def avro(draw: Draw) -> Record:
    features = {k: v for k, v in draw.features().items() if v is None or math.isfinite(v) or draw.often(0.5)}
    event = {
        "id": f"p{draw.number}",
        "time": round(draw.at * 1_000_000),
        "model": {"name": draw.model()},
        "prediction": draw.one(None, draw.number_(), "yes", math.nan),
        "duration_s": draw.one(None, 0.25, 1.5),
        "features": features,
    }
    event["prediction"] = float(p) if isinstance(p := event["prediction"], int) else p
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _AVRO, event)
    return Record(b"\0" + AVRO_ID.to_bytes(4, "big") + out.getvalue(), draw.at)


def protobuf(draw: Draw) -> Record:
    message = PREDICTIONS["Prediction"](
        id=f"p{draw.number}",
        time=draw.at,
        model={"name": draw.model()},
        prediction=draw.one(0.0, 0.5, 2.0, math.nan),
        duration_s=draw.one(0.25, 1.5),
        features={"x": draw.number_(), "y": draw.one(0.0, 1.0, math.inf), "n": draw.rng.randrange(2)},
    )
    if draw.often(0.5):
        message.usage.input_tokens = draw.one(5, 7)
        message.usage.cost = 0.25
    path = b"\x02" + bytes([2 * PREDICTION_INDEX])  # one index, zigzagged
    return Record(b"\0" + PROTOBUF_ID.to_bytes(4, "big") + path + message.SerializeToString(), draw.at)


def framed_json(draw: Draw) -> Record:
    return Record(b"\0" + JSON_ID.to_bytes(4, "big") + _json(_ours(draw)), draw.at)


def other_frame(draw: Draw) -> Record:
    value = draw.one(b"\0\0\0\0\x63abc", b"\0\0\0\0\x07\xff\xff\xff\xff", b"\0\0", b"\0\0\0\0\x08\x02\x55")
    return Record(value, draw.at)


# ------------------------------------------------------------------------------ model servers


def _tensors(draw: Draw) -> list[dict[str, Any]]:
    number = draw.number_()
    return draw.one(
        [{"name": "y", "shape": [1], "datatype": "FP32", "data": [number]}],
        [{"name": "y", "shape": [1, 1], "datatype": "FP64", "data": [[number]]}],
        [{"name": "y", "shape": [2, 1], "datatype": "FP64", "data": [1.0, 2.0]}],
        [{"name": "y", "shape": [-1], "datatype": "FP64", "data": [number]}],
        [{"name": "y", "shape": [1], "datatype": "BYTES", "data": [draw.one("yes", "no")]}],
        [{"name": "y", "shape": [1], "datatype": "BOOL", "data": [draw.one(True, False)]}],
        [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": draw.one([0.25, 0.75], [0.5, 0.5], [1.0, 0.0])}],
        [{"name": "y", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}],
        [{"name": "y", "shape": [3], "datatype": "FP32", "data": [1.0]}],
        [],
    )


def _half(draw: Draw, of: int, *, request: bool) -> tuple[dict[str, str], Any]:
    """Return what KServe's logger says of one half of exchange `of`: a CloudEvent's attributes, and the body."""
    chance = random.Random(of)
    side = "request" if request else "response"
    # A response follows its request by a time that both know.
    at = BEGIN_S + 1 + of + (0.0 if request else chance.choice((0.25, 0.5, 2.0)))
    attributes = {
        "specversion": "1.0",
        "id": f"x{of}",
        "source": "http://svc/",
        "type": f"org.kubeflow.serving.inference.{side}",
        "time": dt.datetime.fromtimestamp(at, dt.UTC).isoformat(),
        "inferenceservicename": "churn",
        "namespace": "prod",
    }
    if request:
        body = draw.one({"instances": [[1.0, 2.0]]}, {"instances": [{"x": 1}]})
    else:
        body = draw.one(
            {"predictions": [draw.number_()]},
            {"predictions": [draw.one("yes", "no")]},
            {"predictions": [[0.25, 0.75]]},
            {"predictions": [1, 2, 3]},
            {"predictions": []},
            {"predictions": [None]},
            {"predictions": [math.nan]},
            {"predictions": [{"label": "yes", "score": 0.75}]},
            {"error": "no such thing"},
            {"detail": "boom"},
            {"outputs": _tensors(draw), "model_name": "churn"},
            {"outputs": _tensors(draw), "model_name": "churn"},
            {},
            b"not JSON",
            b"",
        )
    return attributes, body


def kserve(draw: Draw) -> Record:
    """Either half of a few exchanges: some come twice, some never have their other half."""
    of = max(0, draw.number - draw.rng.randrange(4))
    half_of = random.Random(of * 2 + (request := draw.often(0.5)))
    body_draw = Draw(draw.number, half_of.randrange(1 << 30))
    attributes, body = _half(body_draw, of, request=request)
    data = body if isinstance(body, bytes) else _json(body)
    stamp = dt.datetime.fromisoformat(attributes["time"]).timestamp()
    if isinstance(body, dict) and draw.often(0.3):
        return Record(_json({**attributes, "data": body}), stamp)
    headers: list[tuple[str, bytes | None]] = [(f"ce_{k}", v.encode()) for k, v in attributes.items()]
    return Record(data, stamp, headers)


def open_inference(draw: Draw) -> Record:
    """A response that names no request, on any topic."""
    body = {"model_name": draw.model(), "outputs": _tensors(draw)}
    if draw.often(0.1):
        body = {"model_name": body["model_name"], "outputs": [{"name": "y", "shape": [1], "datatype": "INT64",
                                                               "data": [draw.rng.randrange(3)]}]}  # fmt: skip
    return Record(_json(body), draw.at)


def seldon(draw: Draw, *, binary: bool) -> Record:
    """A response on one of Seldon's topics: V2 in protobuf or in JSON."""
    kind, values = draw.one(
        ("FP32", [0.5]), ("FP64", [draw.number_()]), ("INT64", [draw.rng.randrange(3)]), ("BYTES", ["yes"]),
        ("BOOL", [True]), ("FP64", [0.25, 0.75]), ("FP64", []),
    )  # fmt: skip
    shape = [1, len(values)] if len(values) != 1 else [1]
    key = b"s%d" % draw.number
    if not binary:
        tensor = {"name": "y", "datatype": kind, "shape": shape, "data": values}
        return Record(_json({"model_name": "iris_1", "id": "z", "outputs": [tensor]}), draw.at, key=key)
    message = INFERENCE["Response"](model_name="iris_1", id="z")
    made = message.outputs.add(name="y", datatype=kind, shape=shape)
    raw = draw.often(0.5) and kind in ("FP32", "FP64", "INT64")
    if raw:
        import struct

        code = {"FP32": "f", "FP64": "d", "INT64": "q"}[kind]
        message.raw_output_contents.append(struct.pack(f"<{len(values)}{code}", *values))
    else:
        name = {"FP32": "fp32", "FP64": "fp64", "INT64": "int64", "BYTES": "bytes", "BOOL": "bool"}[kind]
        contents = [v.encode() if isinstance(v, str) else v for v in values]
        getattr(made.contents, f"{name}_contents").extend(contents)
    return Record(message.SerializeToString(), draw.at, key=key)


# ------------------------------------------------------------------------------ language models


def _use(draw: Draw) -> dict[str, Any]:
    asked = {"gen_ai.operation.name": draw.one("chat", "chat", "text_completion"), "gen_ai.request.model": "gpt"}
    used = draw.one(
        {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 4, "gen_ai.usage.cost": 0.5},
        {"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 0},
        {"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0},
        {},
    )
    reasons = draw.one(["stop"], ["length"], "MAX_TOKENS", '["stop"]', ["tired"], None)
    ended = {} if reasons is None else {"gen_ai.response.finish_reasons": reasons}
    return {**asked, **used, **ended}


def _openinference(draw: Draw, *, failed: bool) -> dict[str, Any]:
    asked = {"openinference.span.kind": "LLM", "llm.invocation_parameters": json.dumps({"model": "gpt", "n": 1})}
    if failed:
        return asked
    return {**asked, "llm.model_name": "gpt-2026", "llm.token_count.prompt": 9, "llm.token_count.completion": 2}


def _mlflow(draw: Draw, *, failed: bool) -> dict[str, Any]:
    asked = {"mlflow.spanType": '"CHAT_MODEL"', "model": '"gpt"'}
    if failed:
        return asked
    outputs = {"choices": [{"finish_reason": draw.one("stop", "length")}]}
    return {
        **asked,
        "mlflow.llm.model": '"gpt-2026"',
        "mlflow.chat.tokenUsage": json.dumps({"input_tokens": 6, "output_tokens": draw.one(0, 2), "total_tokens": 8}),
        "mlflow.spanOutputs": json.dumps(outputs),
    }


def _value(x: Any, *, text: bool) -> dict[str, Any]:
    if isinstance(x, bool):
        return {"boolValue": x}
    if isinstance(x, int):
        return {"intValue": str(x) if text else x}
    if isinstance(x, float):
        return {"doubleValue": x}
    if isinstance(x, list):
        return {"arrayValue": {"values": [_value(v, text=text) for v in x]}}
    return {"stringValue": x}


def _span(draw: Draw, j: int) -> dict[str, Any]:
    failed = draw.often(0.2)
    own: dict[str, Any] = draw.one(
        _use(draw), _use(draw), _openinference(draw, failed=failed), _mlflow(draw, failed=failed),
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "triage", "gen_ai.usage.input_tokens": 99},
        {"openinference.span.kind": "CHAIN"}, {"openinference.span.kind": "TOOL", "tool.name": "search"},
        {"http.route": "/pay"}, {"gen_ai.operation.name": "sing", "gen_ai.request.model": "gpt"},
        {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "ada", "gen_ai.usage.input_tokens": 5,
         "gen_ai.usage.output_tokens": 0},
        {"gen_ai.operation.name": "chat"},
    )  # fmt: skip
    if draw.often(0.3):
        own["gen_ai.response.id"] = f"r{draw.number - draw.rng.randrange(2)}"
    began = round((draw.at + j / 10) * 1e9)
    number = draw.number * 8 + j + 1
    span: dict[str, Any] = {
        "traceId": f"{draw.number + 1:032x}",
        "spanId": f"{number << 3:016x}",
        "name": "work",
        "startTimeUnixNano": str(began),
        "endTimeUnixNano": str(began + draw.one(0, 250_000_000, 1_500_000_000)),
        "attributes": [{"key": k, "value": _value(v, text=draw.often(0.5))} for k, v in own.items()],
        "status": {"code": 2} if failed else draw.one({}, {"code": 1}),
    }
    if draw.often(0.3):
        span["parentSpanId"] = f"{(number + draw.one(-1, 1, 100)) << 3:016x}"
    if failed and draw.often(0.5):
        told = [{"key": "exception.type", "value": {"stringValue": "RateLimitError"}}]
        span["events"] = [{"name": "exception", "timeUnixNano": str(began), "attributes": told}]
    return span


def _traces(draw: Draw) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    spans = [_span(draw, j) for j in range(draw.rng.randrange(1, 5))]
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}


def otlp_json(draw: Draw) -> Record:
    return Record(_json(_traces(draw)), draw.at)


def otlp_protobuf(draw: Draw) -> Record:
    tree = _traces(draw)
    for span in tree["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for name in ("traceId", "spanId", "parentSpanId"):
            if name in span:
                span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return Record(json_format.ParseDict(tree, ExportTraceServiceRequest()).SerializeToString(), draw.at)


def genai_flat(draw: Draw) -> Record:
    event = {"id": f"c{draw.number}", "time": draw.at, "duration_s": draw.one(0.5, 1), **_use(draw)}
    if draw.often(0.2):
        event["error.type"] = "overloaded"
    if draw.often(0.3):
        return Record(_json({"attributes": event, "time": draw.at, "id": event["id"]}), draw.at)
    return Record(_json(event), draw.at)


def genai_nested(draw: Draw) -> Record:
    tree: dict[str, Any] = {"id": f"c{draw.number}", "time": draw.at, "duration_s": 0.5}
    for name, value in _use(draw).items():
        node = tree
        *path, last = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return Record(_json(tree), draw.at)


def openinference_flat(draw: Draw) -> Record:
    failed = draw.often(0.2)
    event = {"id": f"c{draw.number}", "time": draw.at, **_openinference(draw, failed=failed)}
    if failed:
        event["error.type"] = "RateLimitError"
    return Record(_json(event), draw.at)


# ------------------------------------------------------------------------------ what nobody can read


def garbage(draw: Draw) -> Record:
    value = draw.one(
        None, b"", b"{", b"[]", b"7", b"null", b'"text"', b"{}", b'{"a":1}', b"\xff\xfe", b'{"model": 7}',
        b'{"model":{"name":"m0"}}', b'{"model":{"name":"m0"},"prediction":', b'{"prediction":1,"time":0,"model":"m0"}',
        b'{"prediction":1,"time":"soon","model":"m0"}', b'{"prediction":1,"time":20000,"model":"m0"}',
        b'{"resourceSpans": 7}', b'{"resourceSpans":[]}', b'{"resourceSpans":[{}]}', b"\n\xff", b"\x1f\x8bxx",
        b'{"specversion":"1.0","data":{}}', b'{"outputs":7}', b"[" * 3000, b'{"gen_ai.operation.name":"chat"}',
    )  # fmt: skip
    return Record(value, draw.at)


FORMATS: dict[str, Callable[[Draw], Record]] = {
    f.__name__: f
    for f in (
        native, compressed, no_model, binary_event, structured_event, connect, avro, protobuf, framed_json, other_frame,
        kserve, open_inference, otlp_json, otlp_protobuf, genai_flat, genai_nested, openinference_flat, garbage,
    )
}  # fmt: skip


def _met() -> list[Record]:
    """Return events by which every model and every side of it is known before what is compared begins."""
    found = []
    for model in ("m0", "m1", "m2"):
        for i in range(60):
            event = {"id": f"w{i}", "time": MET_S + i, "model": {"name": model}, "prediction": 0.5,
                     "features": {"x": 1.0, "y": 0.5, "n": i % 3}}  # fmt: skip
            found.append(Record(_json(event), MET_S + i))
    for request in (True, False):
        attributes, _ = _half(Draw(0, 1), 0, request=request)
        attributes |= {"id": "met", "time": dt.datetime.fromtimestamp(MET_S + 60, dt.UTC).isoformat()}
        body = {"instances": [[1.0]]} if request else {"predictions": [0.5]}
        headers: list[tuple[str, bytes | None]] = [(f"ce_{k}", v.encode()) for k, v in attributes.items()]
        found.append(Record(_json(body), MET_S + 60, headers))
    return sorted(found, key=lambda r: r.stamp_s)


MET = _met()

#: What a stream is drawn as: for each record its format and a seed.
Recipe = Sequence[tuple[str, int]]
recipes = st.lists(st.tuples(st.sampled_from(sorted(FORMATS)), st.integers(0, (1 << 32) - 1)), max_size=40)


def stream(recipe: Recipe, *, twice: bool = True) -> list[Record]:
    """Return the records of a recipe; now and then one comes twice."""
    found = []
    for number, (name, seed) in enumerate(recipe):
        record = FORMATS[name](Draw(number, seed))
        found.append(record)
        if twice and seed % 11 == 0:
            found.append(record)
    return found
