"""What only bytes and headers show: bodies that are not what their headers say, and values of other encodings."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from typing import Any

import orjson
import pytest

from streamproc import framed
from streamproc.decoding import Decoder
from streamproc.events import Half, Prediction, RecordBatch, error_type
from streamproc.signals import EMPTY, READ, UNREADABLE, answered

HEADERS = {
    "ce_specversion": "1.0", "ce_source": "http://x:9081/", "ce_id": "u1", "ce_time": "2026-01-05T09:00:00Z",
    "ce_component": "predictor", "ce_inferenceservicename": "churn", "ce_namespace": "prod",
}  # fmt: skip


def read(body: bytes, side: str = "response", **more: str) -> Half:
    headers = {**HEADERS, "ce_type": f"org.kubeflow.serving.inference.{side}", **more}
    batch = RecordBatch(
        "predictions", 0, [0], [-1], [None], [body], [[(k, v.encode()) for k, v in headers.items()]]
    )
    out = Decoder(Prediction).decode(batch)
    assert out.rejected == []
    (event,) = out.events
    assert isinstance(event, Half)
    return event


ANSWER = b'{"predictions": [0.7]}'


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream", "text/plain", ""])
def test_a_body_is_what_its_bytes_are_whatever_its_content_type(kind: str) -> None:
    assert read(ANSWER, **{"content-type": kind}).prediction.value == 0.7  # type: ignore[union-attr]


def test_a_compressed_body_comes_unmarked() -> None:
    assert read(gzip.compress(ANSWER)).prediction.value == 0.7  # type: ignore[union-attr]


def test_a_stream_of_events_is_an_answer_with_its_usage() -> None:
    chunks = [{"choices": [{"delta": {}, "finish_reason": None}]}, {"choices": [{"finish_reason": "length"}]},
              {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 4}}]  # fmt: skip
    body = b"".join(b"data: " + orjson.dumps(c) + b"\n\n" for c in chunks) + b"data: [DONE]\n\n"
    event = read(body, **{"content-type": "application/json"})
    assert error_type(event) == ""
    used = event.llm
    assert used is not None
    assert (used.finish_reasons, used.input_tokens, used.output_tokens) == (["length"], 12, 4)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (ANSWER, READ),
        (b"\x00\x01\x02", UNREADABLE),
        (b"data: tokens of ours\n\n", UNREADABLE),
        (b'{"outputs": [{"name": "y", "shape": [4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]}',
         UNREADABLE),
        (b'{"outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [NaN]}]}', UNREADABLE),
        (b'{"predictions": [NaN]}', EMPTY),
        (b"", EMPTY),
        (b"null", EMPTY),
        (b"{}", EMPTY),
        (b'{"predictions": [null]}', EMPTY),
    ],
)  # fmt: skip
def test_an_answer_is_read_empty_or_unreadable_and_no_failure(body: bytes, expected: int) -> None:
    event = read(body)
    assert error_type(event) == ""
    if b"NaN" in body:
        assert answered(event) in (EMPTY, UNREADABLE)
    else:
        assert answered(event) == expected


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (ANSWER, {"ce_statuscode": "503"}, "503"),
        (b'{"detail": "boom"}', {}, "_OTHER"),
        (b'{"error": {"code": 429, "message": "slow down"}}', {}, "429"),
        (b'{"error": {"type": "overloaded_error"}}', {}, "overloaded_error"),
        (b'data: {"error": {"type": "overloaded_error"}}\n\n', {}, "overloaded_error"),
    ],
)
def test_a_failure_that_came_as_an_answer_is_one_with_its_type(body: bytes, headers: dict[str, str], kind: str) -> None:
    assert error_type(read(body, **headers)) == kind


def test_a_body_beside_a_detail_is_an_answer() -> None:
    event = read(b'{"predictions": [0.7], "detail": "ok", "error": null}')
    assert (error_type(event), event.prediction.value) == ("", 0.7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "y", "shape": ["1"], "datatype": "INT64", "data": ["3"]},
        {"name": "y", "shape": [1], "datatype": "INT64", "contents": {"int64_contents": ["3"]}},
        {"name": "y", "shape": [-1, 1], "datatype": "FP32", "data": [3.0]},
    ],
)
def test_protobufs_json_of_a_tensor_is_read(tensor: dict[str, Any]) -> None:
    assert read(json.dumps({"outputs": [tensor]}).encode()).prediction.value == 3.0  # type: ignore[union-attr]


def test_nan_in_a_request_is_a_missing_value_of_its_feature() -> None:
    event = read(b'{"instances": [{"a": NaN, "b": 2}]}', side="request")
    assert event.features == {"a": None, "b": 2}


def proto(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what is read of a proto3 message of these fields, as Confluent's serializer frames it."""
    descriptor = pytest.importorskip("google.protobuf.descriptor_pb2", reason="protobuf is not installed")
    from google.protobuf import descriptor_pool, message_factory, wrappers_pb2

    kinds = descriptor.FieldDescriptorProto
    file = descriptor.FileDescriptorProto(name="p.proto", package="x", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="P")
    for number, (name, (kind, _)) in enumerate(fields.items(), start=1):
        if kind == "map":
            entry = message.nested_type.add(name=f"{name.title()}Entry")
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
            entry.field.add(name="value", number=2, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
            message.field.add(name=name, number=number, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED,
                              type_name=f".x.P.{name.title()}Entry")  # fmt: skip
        elif kind.startswith("."):
            message.field.add(name=name, number=number, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_OPTIONAL,
                              type_name=kind)  # fmt: skip
        else:
            message.field.add(name=name, number=number, type=getattr(kinds, f"TYPE_{kind}"),
                              label=kinds.LABEL_OPTIONAL)  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    one = message_factory.GetMessageClass(pool.FindMessageTypeByName("x.P"))()
    for name, (kind, value) in fields.items():
        if kind == "map":
            getattr(one, name).update(value)
        elif kind.startswith("."):
            getattr(one, name).value = value
        else:
            setattr(one, name, value)
    codec = framed.codec("PROTOBUF", base64.b64encode(file.SerializeToString()).decode())
    frame = b"\0" + struct.pack(">I", 1) + b"\0" + one.SerializeToString()
    found: dict[str, Any] = orjson.loads(framed.json_of(frame, {1: codec}))
    return found


def test_zeros_of_proto3_are_values() -> None:
    found = proto({
        "prediction": ("DOUBLE", 0.0), "n": ("INT64", 0), "flag": ("BOOL", False), "text": ("STRING", ""),
        "features": ("map", {"a": 0, "b": 2**53}), "wrapped": (".google.protobuf.Int64Value", 0),
        "share": (".google.protobuf.DoubleValue", 0.0), "time": ("INT64", 0),
    })  # fmt: skip
    assert found == {
        "prediction": 0.0, "n": 0, "flag": False, "text": "", "features": {"a": 0, "b": 2**53},
        "wrapped": 0, "share": 0.0,
    }  # fmt: skip


def test_numbers_of_protobuf_that_are_none_are_missing_values() -> None:
    none, most = float("nan"), float("inf")
    found = proto({"a": ("DOUBLE", none), "b": ("FLOAT", -most), "c": (".google.protobuf.DoubleValue", most)})
    assert found == {"a": None, "b": None, "c": None}
