"""Values framed for a schema registry: Avro, Protocol Buffers and JSON, by the schema that they or their headers name.

A frame is a zero byte, the schema's number in four bytes, and the value. Newer serializers leave the value as it is,
and put into a header a byte of 1 and the schema's GUID, of 16 bytes, or a frame without a value. Numbers and GUIDs
stand for one schema for ever, so what a value comes to is decided by the log and the registry's past alone.

References
----------
[^1]: Confluent, 2025. Formats, serializers and deserializers: wire format; schema IDs in headers, since Platform 8.1.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import orjson

from streamproc import wire
from streamproc.events import Header

#: From a value without its frame to JSON.
Codec = Callable[[bytes], bytes]

FRAME: Final = 5

#: The header that names the schema of a value without a frame.
HEADER: Final = "__value_schema_id"

#: A byte of 1 and a GUID.
_GUID: Final = 17

#: What a registry knows a schema by: its number, or its GUID as it is written in text.
SchemaName = int | str


def schema_id(value: bytes | None) -> int | None:
    """Return the number of a framed value's schema, None where it is not framed."""
    if value is None or len(value) < FRAME or value[0] != 0:
        return None
    return int.from_bytes(value[1:FRAME], "big")


def has_header(headers: Sequence[Header]) -> bool:
    """Whether a record's headers name the schema of its value."""
    return any(key == HEADER and value is not None for key, value in headers)


def of_header(headers: Sequence[Header]) -> tuple[SchemaName, bytes] | None:
    """Return the schema that a record's headers name, and what of the header a codec reads before the value.

    That is, of Protobuf, which message of its file the value is. None where no header names a schema; raise ValueError
    where it does so in no known form.
    """
    told = next((value for key, value in headers if key == HEADER), None)
    if told is None:
        return None
    if told[:1] == b"\1" and len(told) >= _GUID:
        digits = told[1:_GUID].hex()
        return "-".join(digits[a:b] for a, b in itertools.pairwise((0, 8, 12, 16, 20, 32))), told[_GUID:]
    number = schema_id(told)
    if number is None:
        raise ValueError(f"header `{HEADER}`: neither a number of a schema nor a GUID")
    return number, told[FRAME:]


def schema_name(value: bytes | None, headers: Sequence[Header]) -> SchemaName | None:
    """Return what a record's value is to be read by, None where neither it nor its headers name a schema."""
    try:
        told = of_header(headers)
    except ValueError:
        return None
    return schema_id(value) if told is None else told[0]


def json_of(value: bytes, codecs: Mapping[SchemaName, Codec], headers: Sequence[Header] = ()) -> bytes:
    """Return a value as JSON, by the schema that its headers name, or else its frame.

    Raise ValueError where it cannot be read, KeyError for an unknown schema.
    """
    told = of_header(headers)
    name, before, data = (*told, value) if told else (int.from_bytes(value[1:FRAME], "big"), b"", value[FRAME:])
    codec = codecs[name]
    try:
        return codec(before + data)
    except ValueError:
        raise
    except Exception as e:  # each library has errors of its own for bytes that do not fit a schema
        raise ValueError(f"does not fit its schema: {type(e).__name__}: {e}") from None


def codec(kind: str, schema: str, references: Sequence[str] = ()) -> Codec:
    """Return the codec of a schema: "AVRO", "PROTOBUF" (a file's descriptor in base64) or "JSON".

    references: the schemas it names, each after those it names itself. Raise ValueError for one that cannot be
    used, and ImportError where a library is not installed.
    """
    if kind == "JSON":
        return bytes
    if kind == "AVRO":
        return _avro(schema, references)
    if kind == "PROTOBUF":
        return _protobuf(schema, references)
    raise ValueError(f"schemas of type {kind} are not read")


def _avro(schema: str, references: Sequence[str]) -> Codec:
    from fastavro import parse_schema, schemaless_reader

    named: dict[str, Any] = {}
    try:
        for text in references:
            parse_schema(msgspec.json.decode(text), named_schemas=named)
        parsed = parse_schema(msgspec.json.decode(schema), named_schemas=named)
    except Exception as e:
        raise ValueError(f"no Avro schema: {e}") from None

    def read(data: bytes) -> bytes:
        return orjson.dumps(schemaless_reader(io.BytesIO(data), parsed, None), default=_plain)

    return read


def _protobuf(schema: str, references: Sequence[str]) -> Codec:
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

    pool = descriptor_pool.DescriptorPool()
    try:
        for well_known in _well_known():
            pool.AddSerializedFile(well_known)
        for text in (*references, schema):
            file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text))
            if not file.name:
                file.name = f"schema-{len(text)}.proto"
            pool.Add(file)
        top = list(pool.FindFileByName(file.name).message_types_by_name.values())
    except Exception as e:
        raise ValueError(f"no Protobuf schema: {e}") from None

    def read(data: bytes) -> bytes:
        path, at = _indexes(data)
        kind = top[path[0]]
        for index in path[1:]:
            kind = kind.nested_types[index]
        message = message_factory.GetMessageClass(kind)()
        message.ParseFromString(data[at:])
        # In proto3 a field without presence that is 0, false or "" is not on the wire: it has that value all the same.
        tree = json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        return orjson.dumps(_without_unset(_plain_message(tree, kind)))

    return read


#: Times of ours: a proto3 field of 0 or "" there is one that nobody set.
_TIMES = ("time", "feature_time", "observed_at", "start_time")


def _without_unset(tree: Any) -> Any:
    if isinstance(tree, dict):
        for name in _TIMES:
            if name in tree and tree[name] in (0, ""):
                del tree[name]
    return tree


def _well_known() -> list[bytes]:
    from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2

    return [m.DESCRIPTOR.serialized_pb for m in (duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)]


def _indexes(data: bytes) -> tuple[list[int], int]:
    """Return which message of its file it is, as a path through nested ones, and where the message begins."""
    count, at = wire.varint(data, 0)
    count = _zigzag(count)
    if count == 0:
        return [0], at
    if count < 0 or count > 16:
        raise ValueError("protobuf: no message of its schema")
    path = []
    for _ in range(count):
        index, at = wire.varint(data, at)
        path.append(_zigzag(index))
    return path, at


def _zigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


#: Wrappers of one value, which stand in JSON as that value.
_WRAPPED_INTEGERS: Final = ("google.protobuf.Int64Value", "google.protobuf.UInt64Value")
_WRAPPED_FLOATS: Final = ("google.protobuf.DoubleValue", "google.protobuf.FloatValue")


def _plain_message(tree: Any, kind: Any) -> Any:
    """Return a message with its numbers as numbers; proto3's JSON has texts for 64-bit integers, NaN and infinities."""
    if kind.full_name in _WRAPPED_INTEGERS or kind.full_name in _WRAPPED_FLOATS:
        return _number_of(tree, whole=kind.full_name in _WRAPPED_INTEGERS)
    if not isinstance(tree, dict):
        return tree
    for field in kind.fields:
        if field.name in tree:
            tree[field.name] = _plain_field(tree[field.name], field)
    return tree


def _plain_field(value: Any, field: Any) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        of = inner.fields_by_name["value"]
        return {k: _plain_field(v, of) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain_field(v, field) for v in value]
    if inner is not None:
        return _plain_message(value, inner)
    if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        return _number_of(value, whole=True)
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return _number_of(value, whole=False)
    return value


def _number_of(value: Any, *, whole: bool) -> Any:
    """Return the number that proto3's JSON writes so; None, a missing value, for what is not finite."""
    if not isinstance(value, str):
        return value
    return int(value) if whole else None


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of Avro's that it has not: bytes as text, decimals as numbers."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return float(value)
