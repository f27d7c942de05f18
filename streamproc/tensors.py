"""Payloads of inference protocols as features and answers.

The Open Inference Protocol (V2) in JSON and in protobuf, and the `instances` and `predictions` of V1.
A payload may hold several rows. It is still one request, so one prediction: features are those of its
first row, and the answer is the mean of numbers, or the class that all rows share.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from streamproc import coercion, wire
from streamproc.events import Outcome

#: Features taken of one row; a picture's pixels are none to watch one by one.
MAX_FEATURES = 512

#: Longest text taken for a class or a feature.
MAX_TEXT = 256

_LARGEST_INT = 2**63


class Tensor(Struct, gc=False):
    """One tensor, its data flat or nested, row by row."""

    name: str = ""
    shape: list[int | str] = field(default_factory=list)
    datatype: str = ""
    data: Any = None
    contents: dict[str, Any] | None = None  # as protobuf's JSON has the data
    parameters: Any = None


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
        try:
            values, rows = _filled(tensor)
        except ValueError:
            found[tensor.name] = None  # binary, or of no known form: a missing value, counted as one
            continue
        width = len(values) // rows if rows else 0
        for i, value in enumerate(values[: min(width, MAX_FEATURES - len(found))]):
            found[tensor.name if width == 1 else f"{tensor.name}.{i}"] = _scalar(value)
    return found or None


def answer(tensors: Sequence[Tensor]) -> Outcome:
    """Return what a response says: a class or a number, how sure it is, and whether it could be read.

    A tensor of integers answers with a class wherever another has shares (`predict` beside `predict_proba`), and else
    with a number that may be one. Shares alone have their best place in `scores`; its class is not known.
    """
    found = Outcome()
    names: list[Any] = []
    for tensor in tensors:
        try:
            values, rows = _filled(tensor)
        except ValueError:
            found.unreadable = True
            continue
        if not rows or not values:
            continue
        if len(values) > 1 and isinstance(values[0], str | int) and len(set(map(str, values))) == len(values):
            names = names or list(values)  # may be what the classes are called, in the order of the shares
        _add(found, _opened(values), rows)
    if isinstance(found.scores, list) and len(names) == len(found.scores):
        found.scores = {str(n)[:MAX_TEXT]: share for n, share in zip(names, found.scores, strict=True)}
        found.value, found.label, found.rows = None, None, 1
    if found.value is not None or found.label is not None or found.scores is not None:
        found.unreadable = False
    return found


def row_features(instances: Any) -> dict[str, Any] | None:
    """Return the first of V1's instances by names, `f0`, `f1`, … where it has none."""
    first = instances[0] if isinstance(instances, list) and instances else None
    if isinstance(first, dict):
        return {str(k): v for k, v in list(first.items())[:MAX_FEATURES]} or None
    items = first if isinstance(first, list) else [first]
    plain = {f"f{i}": _scalar(v) for i, v in enumerate(items[:MAX_FEATURES]) if not isinstance(v, list | dict)}
    return plain if first is not None and plain else None


def list_answer(values: list[Any]) -> Outcome:
    """Return what an answer that is one row says: a number or class alone, or shares over classes."""
    found = Outcome()
    if values and not any(isinstance(v, list | dict) for v in values):
        _add(found, values, 1)
    elif values:
        found.unreadable = True
    return found


def row_answer(predictions: Any) -> Outcome:
    """Return what V1's predictions say."""
    found = Outcome()
    rows = predictions if isinstance(predictions, list) else [predictions]
    if not rows or predictions is None:
        return found
    if len(rows) == 1 and rows[0] is None:
        return found
    if all(isinstance(r, dict) for r in rows):
        return _objects_answer(rows)
    if len(rows) == 1 and (ranked := _ranked(rows[0])) is not None:
        found.scores = ranked
    elif all(isinstance(r, list) and len(r) == len(rows[0]) for r in rows):
        flat = [v for r in rows for v in r]
        if any(isinstance(v, list | dict) for v in flat):
            found.unreadable = True
        elif flat:
            _add(found, flat, len(rows))
    elif any(isinstance(r, list | dict) for r in rows):
        found.unreadable = True
    else:
        _add(found, rows, len(rows))
    return found


#: What objects call an answer, a class, how sure they are of it, and shares by class.
_LABELS = ("label", "class", "class_name", "predicted_class", "predicted_label", "sentiment", "prediction")
_VALUES = ("value", "prediction", "score", "probability", "output", "result")
_SHARES = ("scores", "probabilities", "proba", "probs")


def _objects_answer(rows: Sequence[dict[str, Any]]) -> Outcome:
    """Return what rows that are objects say: what the first says, where all say the same."""
    found = Outcome(rows=len(rows))
    one = rows[0]
    if len(rows) > 1 and any(r != one for r in rows):
        values = [v for r in rows if (v := next((n for k in _VALUES if (n := _finite(r.get(k))) is not None), None))]
        if len(values) == len(rows):
            found.value = math.fsum(values) / len(values)
        elif values or any(r for r in rows):
            found.unreadable = True
        return found
    found.rows = 1
    label = next((name for k in _LABELS if (name := _label_of(k, one.get(k))) is not None), None)
    shares = next((v for k in _SHARES if isinstance(v := one.get(k), dict | list) and v), None)
    if isinstance(shares, list):
        shares = [n for v in shares if (n := _finite(v)) is not None] or None
    elif isinstance(shares, dict):
        shares = {str(k)[:MAX_TEXT]: n for k, v in shares.items() if (n := _finite(v)) is not None} or None
    found.scores = shares
    found.label = label
    value = next((v for k in _VALUES if (v := _finite(one.get(k))) is not None), None)
    if found.label is not None:
        if value is not None and 0.0 <= value <= 1.0:
            found.score = value
    else:
        found.value = value
    return found


def _label_of(name: str, value: Any) -> str | None:
    """Return the class that a member of an object names, None for none; `prediction` may as well be a number."""
    if isinstance(value, str):
        return value[:MAX_TEXT] or None
    if isinstance(value, bool) or (isinstance(value, int) and name != "prediction"):
        return str(value)
    return None


def _ranked(row: Any) -> dict[str, float] | None:
    """Return shares by class of one row that is a list of objects, a class and its score each; None for another."""
    if not isinstance(row, list) or not row or not all(isinstance(c, dict) for c in row):
        return None
    found = {}
    for one in row[:MAX_FEATURES]:
        label = next((name for k in _LABELS if (name := _label_of(k, one.get(k))) is not None), None)
        score = _finite(one.get("score", one.get("probability")))
        if label is None or score is None:
            return None
        found[label] = score
    return found if len(found) == len(row[:MAX_FEATURES]) else None


def _opened(values: Sequence[Any]) -> Sequence[Any]:
    """Return values with the JSON that runtimes of language models put into BYTES opened."""
    if not all(isinstance(v, str) and v[:1] in "{[" and v for v in values):
        return values
    try:
        return [msgspec.json.decode(v) for v in values]
    except (msgspec.DecodeError, RecursionError):
        return values


def _add(found: Outcome, values: Sequence[Any], rows: int) -> None:
    if isinstance(values[0], dict | list):
        if len(values) == 1 and (ranked := _ranked(values[0])) is not None:
            found.scores = found.scores or ranked
            return
        flat = [w for v in values for w in (v if isinstance(v, list) else [v])]
        other = _objects_answer(flat) if flat and all(isinstance(w, dict) for w in flat) else Outcome(unreadable=True)
        for name in ("value", "label", "score", "scores"):
            if getattr(found, name) is None:
                setattr(found, name, getattr(other, name))
        found.unreadable = found.unreadable or other.unreadable
        found.rows = max(found.rows, other.rows)
        return
    width = len(values) // rows
    if isinstance(values[0], str) and (named := _classified(values)):
        found.scores = found.scores or named
        return
    if isinstance(values[0], str | bool):
        if found.label is None and width == 1:
            if all(v == values[0] for v in values):
                found.label = values[0][:MAX_TEXT] if isinstance(values[0], str) else str(values[0])
            else:
                found.rows = max(found.rows, rows)
        elif found.label is None:
            found.unreadable = True
        return
    numbers = [_finite(v) for v in values]
    if width == 1:
        known = [n for n in numbers if n is not None]
        if found.value is None and known:
            found.value = math.fsum(known) / len(known)
            if any(n != known[0] for n in known):
                found.rows = max(found.rows, rows)
        if known and found.scores is not None and found.label is None and _whole(values) and len(set(known)) == 1:
            found.label = str(int(known[0]))
        return
    scores = [n for n in numbers[:width] if n is not None]
    if len(scores) < width:
        found.unreadable = True
        return
    if found.scores is not None:
        return
    found.rows = max(found.rows, rows)
    # A row of shares that sum to one is a distribution over classes; any other may be anything.
    if min(scores) < 0.0 or abs(math.fsum(scores) - 1.0) >= 1e-3:
        if found.value is None:
            found.value = math.fsum(n for n in numbers if n is not None) / len(numbers)
        return
    found.scores = scores[:MAX_FEATURES]
    if rows == 1:
        found.score = max(scores)
        if found.label is None and found.value is not None and float(found.value).is_integer():
            # Beside shares a whole number is the class that was chosen; the shares' order is not known.
            found.label = str(int(found.value))


#: Triton's classification extension: score, index and, where the model names its classes, a name.
_TRITON = re.compile(r"([0-9.eE+-]+):(\d+)(?::(.*))?")


def _classified(values: Sequence[Any]) -> dict[str, float] | None:
    """Return scores by class where texts are as Triton's classification extension writes them, else None."""
    found = {}
    for value in values:
        parts = _TRITON.fullmatch(value) if isinstance(value, str) else None
        if parts is None or (score := coercion.decimal(parts[1])) is None:
            return None
        found[(parts[3] or f"#{parts[2]}")[:MAX_TEXT]] = score
    return found


def _whole(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int) or (isinstance(v, float) and v.is_integer()) for v in values)


def _filled(tensor: Tensor) -> tuple[list[Any], int]:
    """Return a tensor's values flat and its number of rows. Raise ValueError where they do not fit."""
    data = tensor.data
    if data is None and tensor.contents:
        data = next(iter(tensor.contents.values()))
    if data is None:
        raise ValueError("a tensor without `data`; binary tensors beside the JSON are not read")
    values = _flat(data)
    shape = [int(n) for n in tensor.shape]
    whole = [n for n in shape if n >= 0]
    if len(whole) == len(shape) - 1 and math.prod(whole) > 0 and len(values) % math.prod(whole) == 0:
        shape = [n if n >= 0 else len(values) // math.prod(whole) for n in shape]  # one side left to be found
    if any(n < 0 for n in shape) or math.prod(shape) != len(values):
        raise ValueError("a tensor whose data do not fill its shape")
    if tensor.datatype.startswith(("INT", "UINT")):
        values = [int(v) if isinstance(v, str) and v.lstrip("-").isdigit() else v for v in values]
    return values, shape[0] if len(shape) > 1 or len(values) > 1 else 1


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
