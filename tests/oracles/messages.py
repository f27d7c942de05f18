"""Protocol Buffers of the published protocols, built of their descriptors by Google's own library."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_STRING, _INT32, _INT64, _UINT32, _UINT64, _BOOL, _DOUBLE, _FLOAT, _BYTES, _MESSAGE = 9, 5, 3, 13, 4, 8, 1, 2, 12, 11


def _file(name: str, package: str, messages: dict[str, list[tuple[str, int, int, bool, str]]]) -> Any:
    """Return a pool of messages; each field as name, number, type, whether it is repeated, and the message it is of."""
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message, fields in messages.items():
        kind = file.message_type.add(name=message)
        for field, number, of, many, inner in fields:
            made = kind.field.add(name=field, number=number, type=of, label=3 if many else 1)
            if inner:
                made.type_name = f".{package}.{inner}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {m: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{m}")) for m in messages}, file


_TENSOR = [
    ("name", 1, _STRING, False, ""),
    ("datatype", 2, _STRING, False, ""),
    ("shape", 3, _INT64, True, ""),
    ("contents", 5, _MESSAGE, False, "Contents"),
]

#: The Open Inference Protocol, `grpc_predict_v2.proto`, as far as it is spoken here.
INFERENCE, _ = _file("predict.proto", "inference", {
    "Contents": [
        ("bool_contents", 1, _BOOL, True, ""),
        ("int_contents", 2, _INT32, True, ""),
        ("int64_contents", 3, _INT64, True, ""),
        ("uint_contents", 4, _UINT32, True, ""),
        ("uint64_contents", 5, _UINT64, True, ""),
        ("fp32_contents", 6, _FLOAT, True, ""),
        ("fp64_contents", 7, _DOUBLE, True, ""),
        ("bytes_contents", 8, _BYTES, True, ""),
    ],
    "Tensor": _TENSOR,
    "Request": [
        ("model_name", 1, _STRING, False, ""),
        ("model_version", 2, _STRING, False, ""),
        ("id", 3, _STRING, False, ""),
        ("inputs", 5, _MESSAGE, True, "Tensor"),
        ("raw_input_contents", 7, _BYTES, True, ""),
    ],
    "Response": [
        ("model_name", 1, _STRING, False, ""),
        ("model_version", 2, _STRING, False, ""),
        ("id", 3, _STRING, False, ""),
        ("outputs", 5, _MESSAGE, True, "Tensor"),
        ("raw_output_contents", 6, _BYTES, True, ""),
    ],
})  # fmt: skip

#: A prediction of ours as a producer may write it, framed for a schema registry.
PREDICTIONS, PREDICTION_FILE = _file("prediction.proto", "watched", {
    "Model": [("name", 1, _STRING, False, "")],
    "Other": [("nothing", 1, _INT32, False, "")],
    "Usage": [
        ("input_tokens", 1, _INT64, False, ""),
        ("output_tokens", 2, _INT64, False, ""),
        ("cost", 3, _DOUBLE, False, ""),
    ],
    "Features": [("x", 1, _DOUBLE, False, ""), ("y", 2, _DOUBLE, False, ""), ("n", 3, _INT64, False, "")],
    "Prediction": [
        ("id", 1, _STRING, False, ""),
        ("time", 2, _DOUBLE, False, ""),
        ("model", 3, _MESSAGE, False, "Model"),
        ("prediction", 4, _DOUBLE, False, ""),
        ("duration_s", 5, _DOUBLE, False, ""),
        ("usage", 6, _MESSAGE, False, "Usage"),
        ("features", 7, _MESSAGE, False, "Features"),
    ],
})  # fmt: skip

#: Which of the file's messages a prediction is: what a frame says before it.
PREDICTION_INDEX = 4
