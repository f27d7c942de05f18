"""Payloads of inference protocols as features and answers.

The Open Inference Protocol (V2) in JSON and in protobuf, and the `instances` and `predictions` of V1.
A payload may hold several rows. It is still one request, so one prediction: features are those of its
first row, and the answer is the mean of numbers, or the class that all rows share.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from streamproc import wire
from streamproc.events import Outcome

#: Features taken of one row; a picture's pixels are none to watch one by one.
MAX_FEATURES = 512

#: Longest text taken for a class or a feature.
MAX_TEXT = 256

_LARGEST_INT = 2**63


class Tensor(Struct, gc=False):
    """One tensor, its data flat or nested, row by row."""

    name: str = ""
    shape: list[int] = field(default_factory=list)
    datatype: str = ""
    data: Any = None


class Payload(Struct, gc=False):
    """A V2 request or response. A request may name outputs too: those it wants."""

    model_name: str | None = None
    model_version: str | None = None
    id: str | None = None
    inputs: list[Tensor] | None = None
    outputs: list[Tensor] | None = None
    error: Any = None


read_json = msgspec.json.Decoder(Payload).decode


# ------------------------------------------------------------------------------ what they say


def features(tensors: Sequence[Tensor]) -> dict[str, Any] | None:
    """Return the first row by names: the tensor's, with `.0`, `.1`, … where a row has several numbers."""
    found: dict[str, Any] = {}
    for tensor in tensors:
        values, rows = _filled(tensor)
        width = len(values) // rows if rows else 0
        for i, value in enumerate(values[: min(width, MAX_FEATURES - len(found))]):
            found[tensor.name if width == 1 else f"{tensor.name}.{i}"] = _scalar(value)
    return found or None


def answer(tensors: Sequence[Tensor]) -> Outcome:
    """Return a number and a class, each from the first tensor that has it."""
    found = Outcome()
    for tensor in tensors:
        values, rows = _filled(tensor)
        if rows and values:
            _add(found, values, rows)
    return found


def row_features(instances: Any) -> dict[str, Any] | None:
    """Return the first of V1's instances by names, `f0`, `f1`, … where it has none."""
    first = instances[0] if isinstance(instances, list) and instances else None
    if isinstance(first, dict):
        items = [(str(k), v) for k, v in first.items()]
    else:
        items = [(f"f{i}", v) for i, v in enumerate(first if isinstance(first, list) else [first])]
    plain = {k: _scalar(v) for k, v in items[:MAX_FEATURES] if not isinstance(v, list | dict)}
    return plain if first is not None and plain else None


def row_answer(predictions: Any) -> Outcome:
    """Return what V1's predictions say."""
    found = Outcome()
    rows = predictions if isinstance(predictions, list) else [predictions]
    if rows and all(isinstance(r, list) and len(r) == len(rows[0]) for r in rows):
        flat = [v for r in rows for v in r]
        if not any(isinstance(v, list | dict) for v in flat):
            _add(found, flat, len(rows))
    elif rows and not any(isinstance(r, list | dict) for r in rows):
        _add(found, rows, len(rows))
    elif len(rows) == 1 and isinstance(rows[0], dict):
        of = rows[0]
        label = next((v for k in ("label", "class") if isinstance(v := of.get(k), str | bool)), None)
        found.label = None if label is None else str(label)[:MAX_TEXT]
        values = (_finite(of.get(k)) for k in ("value", "score", "probability"))
        found.value = next((v for v in values if v is not None), None)
    return found


def _add(found: Outcome, values: Sequence[Any], rows: int) -> None:
    width = len(values) // rows
    if isinstance(values[0], str | bool):
        if found.label is None and width == 1 and all(v == values[0] for v in values):
            found.label = str(values[0])[:MAX_TEXT]
        return
    numbers = [_finite(v) for v in values]
    if width == 1:
        known = [n for n in numbers if n is not None]
        if found.value is None and known:
            found.value = math.fsum(known) / len(known)
        return
    scores = [n for n in numbers[:width] if n is not None]
    if len(scores) < width or found.scores is not None:
        return
    found.scores = scores[:MAX_FEATURES]
    # A row of shares that sum to one is a distribution over classes; any other may be anything.
    if rows == 1 and min(scores) >= 0.0 and abs(math.fsum(scores) - 1.0) < 1e-3:
        best = max(range(width), key=scores.__getitem__)
        found.score = scores[best]
        if found.label is None:
            found.label = str(best)


def _filled(tensor: Tensor) -> tuple[list[Any], int]:
    """Return a tensor's values flat and its number of rows. Raise ValueError where they do not fit."""
    if tensor.data is None:
        raise ValueError("a tensor without `data`; binary tensors beside the JSON are not read")
    values = _flat(tensor.data)
    if any(n < 0 for n in tensor.shape) or math.prod(tensor.shape) != len(values):
        raise ValueError("a tensor whose data do not fill its shape")
    return values, tensor.shape[0] if len(tensor.shape) > 1 or len(values) > 1 else 1


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    while any(isinstance(v, list) for v in data):
        data = [w for v in data for w in (v if isinstance(v, list) else [v])]
    return list(data)


def _scalar(value: Any) -> Any:
    """Return a value as a feature may have it: nothing larger than state can be written with."""
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if value is None or isinstance(value, bool):
        return value
    return _finite(value)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int) and abs(value) >= _LARGEST_INT:
        return None
    return float(value) if math.isfinite(value) else None


# ------------------------------------------------------------------------------ from protobuf

# Field numbers are those of the protocol's `grpc_predict_v2.proto`.
_CONTENTS = {1: "bool", 2: "int", 3: "int", 4: "uint", 5: "uint", 6: "<f", 7: "<d", 8: "bytes"}
_RAW = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h",
    "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def read_protobuf(data: bytes, *, request: bool) -> Payload:
    """Return a `ModelInferRequest` or a `ModelInferResponse`. Raise ValueError where it is none.

    Nothing in the bytes tells one from the other, so it must be known.
    """
    found = Payload()
    tensors: list[Tensor] = []
    raw: list[bytes] = []
    for number, value in wire.fields(data):
        match number:
            case 1:
                found.model_name = wire.text(value)
            case 2:
                found.model_version = wire.text(value)
            case 3:
                found.id = wire.text(value)
            case 5:
                tensors.append(_tensor(wire.content(value)))
            case 6 if not request:
                raw.append(wire.content(value))
            case 7 if request:
                raw.append(wire.content(value))
            case _:
                pass
    if raw and len(raw) != len(tensors):
        raise ValueError("protobuf: raw contents for some tensors and not for others")
    for tensor, content in zip(tensors, raw, strict=False):
        tensor.data = _raw(tensor.datatype, content)
    if request:
        found.inputs = tensors
    else:
        found.outputs = tensors
    return found


def _tensor(data: bytes) -> Tensor:
    found = Tensor()
    for number, value in wire.fields(data):
        match number:
            case 1:
                found.name = wire.text(value)
            case 2:
                found.datatype = wire.text(value)
            case 3:
                found.shape += [value] if isinstance(value, int) else list(wire.varints(wire.content(value)))
            case 5:
                parts = wire.fields(wire.content(value))
                found.data = [v for n, part in parts for v in _content(_CONTENTS.get(n), part)]
            case _:
                pass
    return found


def _content(kind: str | None, value: bytes | int) -> list[Any]:
    if kind is None:
        return []
    if kind == "bytes":
        return [wire.content(value).decode("utf-8", "replace")]
    if kind in ("<f", "<d"):
        return _numbers(kind, wire.content(value))
    found = [value] if isinstance(value, int) else list(wire.varints(value))
    if kind == "bool":
        return [bool(v) for v in found]
    return [v - (1 << 64) if v >> 63 else v for v in found] if kind == "int" else found


def _raw(datatype: str, content: bytes) -> list[Any]:
    if datatype == "BYTES":
        found, at = [], 0
        while at < len(content):  # each is preceded by its length
            length = int.from_bytes(content[at : at + 4], "little")
            at += 4 + length
            if at > len(content):
                raise ValueError("protobuf: raw contents are cut off")
            found.append(content[at - length : at].decode("utf-8", "replace"))
        return found
    if datatype not in _RAW:
        raise ValueError("protobuf: raw contents of a datatype the protocol does not have")
    return _numbers("<" + _RAW[datatype], content)


def _numbers(kind: str, content: bytes) -> list[Any]:
    size = struct.calcsize(kind)
    if len(content) % size:
        raise ValueError("protobuf: contents are cut off")
    return list(struct.unpack(f"<{len(content) // size}{kind[-1]}", content))
