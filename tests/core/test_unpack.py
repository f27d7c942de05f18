"""Records that hold several events, or stand in a frame, become events at the offset they came from."""

from __future__ import annotations

import base64
import gzip
import io
import json
import uuid
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc import framed, otlp
from streamproc.events import RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from streamproc.unpack import OTHER_SPAN, schemas, unpack
from tests.core.make import BEGIN_US, SECOND, batch, config, cut, feed, pipeline, prediction, state


def span(i: int, model: str = "gpt", *, call: bool = True, **more: Any) -> dict[str, Any]:
    names: dict[str, Any] = (
        {"gen_ai.request.model": model, "gen_ai.usage.input_tokens": 100 + i} if call else {"http.route": "/pay"}
    )
    attributes = [
        {"key": k, "value": {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}}
        for k, v in {**names, **more}.items()
    ]
    at = (BEGIN_US + i * SECOND) * 1000
    return {"spanId": f"{i:016x}", "startTimeUnixNano": str(at), "endTimeUnixNano": str(at + 10**9),
            "attributes": attributes, "status": {}}  # fmt: skip


def traces(*spans: dict[str, Any], service: str = "chat") -> bytes:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]},
                      separators=(",", ":")).encode()  # fmt: skip


def test_each_call_in_a_record_is_an_event_and_other_spans_are_passed_over() -> None:
    p = pipeline(config())
    out = p.process(batch([traces(span(0), span(1, call=False), span(2, "claude")), traces(span(3))]))
    assert (out.events, out.ignored, out.rejected) == (3, {OTHER_SPAN: 1}, [])
    assert sorted(p.models) == ["claude", "gpt"]
    assert p.next_offset == 2


def test_a_record_of_other_spans_alone_moves_the_offset_and_is_no_mistake() -> None:
    p = pipeline(config())
    out = p.process(batch([traces(span(0, call=False))], first=7))
    assert (out.events, out.ignored, out.rejected, p.next_offset) == (0, {OTHER_SPAN: 1}, [], 8)


def test_a_record_of_which_no_span_can_be_read_is_rejected_once() -> None:
    bad = span(1)
    bad["endTimeUnixNano"] = "soon"
    out = pipeline(config()).process(batch([prediction(BEGIN_US), traces(bad, dict(bad))], first=10))
    assert out.events == 1
    assert [(r.row, r.offset, r.error_type) for r in out.rejected] == [(1, 11, "schema")]
    assert sum(out.accounts().values()) == out.came == 3


def test_a_span_that_cannot_be_read_is_counted_by_name_and_the_others_stand() -> None:
    bad = span(1)
    bad["endTimeUnixNano"] = "soon"
    out = pipeline(config()).process(batch([prediction(BEGIN_US), traces(bad, span(2), dict(bad))], first=10))
    assert (out.events, out.rejected) == (2, [])
    assert out.ignored == {"part of a record: schema": 2}
    assert sum(out.accounts().values()) == out.came == 4


@pytest.mark.parametrize(
    "value", [b'{"resourceSpans": 7}', b'{"resourceSpans":[{}]}', b'{"resourceSpans":[', b"\n\xff"]
)
def test_what_only_looks_like_traces_is_rejected_by_name(value: bytes) -> None:
    out = pipeline(config()).process(batch([value]))
    assert out.events == 0
    assert [r.row for r in out.rejected] == [0]


def test_predictions_that_begin_with_a_line_end_are_no_traces() -> None:
    assert pipeline(config()).process(batch([b"\n" + orjson.dumps(prediction(BEGIN_US))])).events == 1


def test_compressed_traces_are_unpacked_too() -> None:
    out = pipeline(config()).process(batch([gzip.compress(traces(span(0), span(1)))]))
    assert (out.events, out.rejected) == (2, [])


def as_protobuf(value: bytes) -> bytes:
    """Return what OpenTelemetry's own classes make of traces in JSON."""
    pytest.importorskip("opentelemetry.proto", reason="opentelemetry-proto is not installed")
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    tree = json.loads(value)
    for resource in tree["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for one in scope["spans"]:
                one["spanId"] = base64.b64encode(bytes.fromhex(one["spanId"])).decode()
    return json_format.ParseDict(tree, ExportTraceServiceRequest()).SerializeToString()


def test_traces_in_protobuf_come_to_what_they_do_in_json() -> None:
    odd = span(1, error=3)
    odd["status"] = {"code": 2}
    odd["attributes"] += [
        {"key": "gen_ai.response.finish_reasons", "value": {"arrayValue": {"values": [{"stringValue": "length"}]}}},
        {"key": "llm.cost.total", "value": {"doubleValue": 0.25}},
        {"key": "stream", "value": {"boolValue": True}},
        {"key": "negative", "value": {"intValue": "-5"}},
    ]
    value = traces(span(0), odd)
    one, other = pipeline(config()), pipeline(config())
    one.process(batch([value]))
    other.process(batch([as_protobuf(value)]))
    assert state(one) == state(other)
    plain = otlp.spans(as_protobuf(value))[1]
    assert {"key": "negative", "value": {"intValue": -5}} in plain["attributes"]


@given(data=st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_traces(data: bytes) -> None:
    pipeline(config()).process(batch([b"\n" + data]))


def test_traces_come_to_the_same_however_cut_and_restored() -> None:
    events: list[dict[str, Any] | bytes | None] = [traces(span(2 * i), span(2 * i + 1, "b")) for i in range(300)]
    whole = batch(events, stamps_us=[BEGIN_US + 2 * i * SECOND for i in range(300)])
    one, many = pipeline(config()), pipeline(config())
    expected = feed(one, [whole])
    got = feed(many, cut(whole.rows(0, 150), range(0, 150, 7)))
    second = pipeline(config())
    second.restore_manifest(many.manifest())
    for name, data in state(many).items():
        second.restore_model(name, data)
    second.restored()
    out = second.process(whole.rows(100, 300))
    assert out.fenced == 100
    assert sorted(map(repr, [*got, *out.alerts])) == sorted(map(repr, expected))
    assert state(second) == state(one)


# -------------------------------------------------------------------------------------- framed

AVRO = {
    "type": "record",
    "name": "Prediction",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "source", "type": "string"},
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "model", "type": {"type": "record", "name": "Model", "fields": [{"name": "name", "type": "string"}]}},
        {"name": "prediction", "type": ["null", "double"]},
        {"name": "features", "type": {"type": "map", "values": ["null", "double", "string"]}},
    ],
}


def framed_avro(event: dict[str, Any], number: int = 7) -> bytes:
    fastavro = pytest.importorskip("fastavro", reason="fastavro is not installed")
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(AVRO), event)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


def reading(codecs: dict[Any, framed.Codec] | None) -> Pipeline:
    return Pipeline(RuleBook(config()), kind="predictions", topic="predictions", codecs=codecs)


def test_avro_comes_to_what_the_same_event_does_in_json() -> None:
    events = [
        prediction(BEGIN_US + i * SECOND, id=str(i), features={"x": i / 7, "country": "de", "none": None})
        for i in range(200)
    ]
    stamps = [BEGIN_US + i * SECOND for i in range(200)]
    one, other = pipeline(config()), reading({7: framed.codec("AVRO", json.dumps(AVRO))})
    one.process(batch(events, stamps_us=stamps))
    out = other.process(batch([framed_avro(e) for e in events], stamps_us=stamps))
    assert (out.events, out.rejected) == (200, [])
    assert state(one) == state(other)


def test_avro_that_names_another_schema_is_read_with_it() -> None:
    inner = {"type": "record", "name": "Model", "fields": [{"name": "name", "type": "string"}]}
    outer = {**AVRO, "fields": [f if f["name"] != "model" else {"name": "model", "type": "Model"}
                                for f in AVRO["fields"]]}  # type: ignore[index]  # fmt: skip
    p = reading({7: framed.codec("AVRO", json.dumps(outer), [json.dumps(inner)])})
    out = p.process(batch([framed_avro(prediction(BEGIN_US, features={}))]))
    assert (out.events, list(p.models)) == (1, ["fraud"])


def test_a_schema_the_registry_has_not_and_bytes_that_do_not_fit_one_are_named() -> None:
    p = reading({7: framed.codec("AVRO", json.dumps(AVRO))})
    good = framed_avro(prediction(BEGIN_US, features={}))
    out = p.process(batch([b"\0\0\0\0\x09abc", good, b"\0\0\0\0\x07\xff\xff\xff", b"\0\0\0"], first=5))
    assert out.events == 1
    assert [(r.row, r.offset, r.error_type) for r in out.rejected] == [
        (0, 5, "unknown_schema"),
        (2, 7, "schema"),
        (3, 8, "unknown_format"),
    ]
    assert "number 9" in out.rejected[0].message


def test_without_a_registry_a_frame_is_said_to_be_one() -> None:
    out = reading(None).process(batch([framed_avro(prediction(BEGIN_US, features={}))]))
    assert [r.error_type for r in out.rejected] == ["unknown_format"]
    assert "schema registry" in out.rejected[0].message


def test_json_in_a_frame_is_read_without_it() -> None:
    p = reading({3: framed.codec("JSON", "{}")})
    assert p.process(batch([b"\0\0\0\0\x03" + orjson.dumps(prediction(BEGIN_US))])).events == 1


@pytest.mark.parametrize(
    ("kind", "schema"), [("AVRO", "{"), ("AVRO", '{"type": "x"}'), ("PROTOBUF", "AAAA"), ("XML", "")]
)
def test_a_schema_that_cannot_be_used_is_refused(kind: str, schema: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        framed.codec(kind, schema)


def test_a_batch_with_nothing_packed_is_left_alone() -> None:
    whole: RecordBatch = batch([prediction(BEGIN_US), None, b""])
    assert unpack(whole, {}, traces=True) is None


# ------------------------------------------------------------------------------ schemas named by headers

GUID = "0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"


def bare_avro(event: dict[str, Any]) -> bytes:
    return framed_avro(event)[framed.FRAME :]


def by_guid(rest: bytes = b"") -> tuple[str, bytes]:
    return framed.HEADER, b"\1" + uuid.UUID(GUID).bytes + rest


def test_a_schema_that_a_header_names_by_guid_or_number_reads_the_whole_value() -> None:
    codec = framed.codec("AVRO", json.dumps(AVRO))
    events = [prediction(BEGIN_US + i * SECOND, id=str(i), features={"x": i / 7}) for i in range(60)]
    stamps = [BEGIN_US + i * SECOND for i in range(60)]
    one = pipeline(config())
    one.process(batch(events, stamps_us=stamps))
    for header in (by_guid(), (framed.HEADER, b"\0\0\0\0\x07")):
        other = reading({7: codec, GUID: codec})
        headers = [[("trace", b"1"), header]] * 60
        out = other.process(batch([bare_avro(e) for e in events], stamps_us=stamps, headers=headers))
        assert (out.events, out.rejected) == (60, [])
        assert state(one) == state(other)


def test_of_protobuf_the_header_says_which_message_of_its_file_a_value_is() -> None:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="p.proto", syntax="proto3")
    file.message_type.add(name="Other").field.add(name="x", number=1, type=9, label=1)
    kind = file.message_type.add(name="Prediction")
    kind.field.add(name="note", number=1, type=9, label=1)
    kind.field.add(name="prediction", number=2, type=1, label=1)
    kind.field.add(name="model", number=3, type=9, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("Prediction"))
    # Its first byte is that of a trace.
    value = made(note="x", prediction=0.5, model="m").SerializeToString()
    assert value[:1] == b"\n"
    p = reading({GUID: framed.codec("PROTOBUF", base64.b64encode(file.SerializeToString()).decode())})
    out = p.process(batch([value], headers=[[by_guid(b"\2\2")]]))
    assert (out.events, out.rejected, list(p.models)) == (1, [], ["m"])


def test_frames_headers_and_json_of_no_schema_stand_beside_one_another() -> None:
    codec = framed.codec("AVRO", json.dumps(AVRO))
    event = prediction(BEGIN_US, features={})
    values = [framed_avro(event), bare_avro(event), orjson.dumps(event), orjson.dumps(event)]
    p = reading({7: codec, GUID: codec, 3: framed.codec("JSON", "{}")})
    out = p.process(batch(values, headers=[(), [by_guid()], [(framed.HEADER, b"\0\0\0\0\3")], ()]))
    assert (out.events, out.rejected) == (4, [])


def test_a_header_that_names_no_schema_or_one_the_registry_has_not_is_refused_by_name() -> None:
    event = orjson.dumps(prediction(BEGIN_US))
    headers = [[by_guid()], [(framed.HEADER, b"\1short")], [(framed.HEADER, b"")], [(framed.HEADER, None)]]
    out = reading({}).process(batch([event] * 4, headers=headers))
    found = [(r.row, r.error_type) for r in out.rejected]
    assert found == [(0, "unknown_schema"), (1, "schema"), (2, "schema")]
    assert GUID in out.rejected[0].message
    assert out.events == 1


def test_without_a_registry_json_whose_schema_a_header_names_is_read_and_avro_is_said_to_be_it() -> None:
    event = prediction(BEGIN_US, features={})
    out = reading(None).process(batch([orjson.dumps(event), b"\x02" + bare_avro(event)], headers=[[by_guid()]] * 2))
    assert out.events == 1
    assert [r.error_type for r in out.rejected] == ["unknown_format"]
    assert "schema registry" in out.rejected[0].message


def test_schemas_are_asked_for_by_what_frames_and_headers_name() -> None:
    event = orjson.dumps(prediction(BEGIN_US))
    headers = [(), [by_guid()], [(framed.HEADER, b"?")], [by_guid()]]
    whole = batch([b"\0\0\0\0\x09x", event, event, None], headers=headers)
    assert schemas(whole) == {9, GUID}
