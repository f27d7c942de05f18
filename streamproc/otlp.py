"""Traces as an OpenTelemetry collector publishes them: many spans a record, in JSON or in Protocol Buffers.

Each span comes out as OTLP writes one in JSON, its resource's attributes among its own, for `genai.call` to read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from streamproc import wire

#: How such a record begins in JSON.
JSON_BEGINS: Final = b'{"resourceSpans"'

#: Attributes of one span, and values of one list, beyond which the rest is left out.
_MOST = 1024
_DEEPEST = 8

_decode = msgspec.json.Decoder().decode


def spans(value: bytes) -> list[dict[str, Any]]:
    """Return the spans of a record. Raise ValueError where it is none of OTLP's."""
    if value.startswith(b"{"):
        tree = _decode(value)
        resources = tree.get("resourceSpans") if isinstance(tree, dict) else None
        if not isinstance(resources, list):
            raise ValueError("`resourceSpans` is not as OTLP has it")
        return of_json(resources)
    return [span for number, part in wire.fields(value) if number == 1 for span in _resource_spans(wire.content(part))]


def of_json(resources: list[Any]) -> list[dict[str, Any]]:
    """Return the spans of `resourceSpans`, its resources' attributes among their own. Raise ValueError."""
    found = []
    try:
        for resource in resources:
            shared = (resource.get("resource") or {}).get("attributes") or []
            # Empty lists may be left out; before 0.15 of the protocol a scope was an instrumentation library.
            for scope in resource.get("scopeSpans") or resource.get("instrumentationLibrarySpans") or ():
                for span in scope.get("spans") or ():
                    found.append({**span, "attributes": [*shared, *(span.get("attributes") or [])]})
    except (TypeError, AttributeError):
        raise ValueError("`resourceSpans` is not as OTLP has it") from None
    return found


def _resource_spans(data: bytes) -> Iterator[dict[str, Any]]:
    shared: list[dict[str, Any]] = []
    scopes: list[bytes] = []
    for number, part in wire.fields(data):
        if number == 1:
            shared = [_pair(wire.content(p)) for n, p in wire.fields(wire.content(part)) if n == 1][:_MOST]
        elif number == 2:
            scopes.append(wire.content(part))
    for scope in scopes:
        for number, part in wire.fields(scope):
            if number == 2:
                span = _span(wire.content(part))
                yield {**span, "attributes": [*shared, *span["attributes"]]}


def _span(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"attributes": [], "events": []}
    for number, part in wire.fields(data):
        if number == 2:
            found["spanId"] = wire.content(part).hex()
        elif number == 4:
            found["parentSpanId"] = wire.content(part).hex()
        elif number == 5:
            found["name"] = wire.text(part)
        elif number == 11 and len(found["events"]) < _MOST:
            found["events"].append(_event(wire.content(part)))
        elif number in (7, 8):
            name = "startTimeUnixNano" if number == 7 else "endTimeUnixNano"
            found[name] = str(int.from_bytes(wire.content(part), "little"))
        elif number == 9 and len(found["attributes"]) < _MOST:
            found["attributes"].append(_pair(wire.content(part)))
        elif number == 15:
            codes = [p for n, p in wire.fields(wire.content(part)) if n == 3]
            found["status"] = {"code": codes[-1]} if codes else {}
    return found


def _event(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"attributes": []}
    for number, part in wire.fields(data):
        if number == 1:
            found["timeUnixNano"] = str(int.from_bytes(wire.content(part), "little"))
        elif number == 2:
            found["name"] = wire.text(part)
        elif number == 3 and len(found["attributes"]) < _MOST:
            found["attributes"].append(_pair(wire.content(part)))
    return found


def _pair(data: bytes) -> dict[str, Any]:
    key, value = "", {}
    for number, part in wire.fields(data):
        if number == 1:
            key = wire.text(part)
        elif number == 2:
            value = _value(wire.content(part), 0)
    return {"key": key, "value": value}


def _value(data: bytes, depth: int) -> dict[str, Any]:
    """Return a value as OTLP's JSON has it; kinds that attributes of calls never have are left out."""
    for number, part in wire.fields(data):
        if number == 1:
            return {"stringValue": wire.text(part)}
        if number == 2:
            return {"boolValue": bool(part)}
        if number == 3 and isinstance(part, int):
            return {"intValue": part - (1 << 64) if part >> 63 else part}
        if number == 4 and isinstance(part, bytes) and len(part) == 8:
            return {"doubleValue": struct.unpack("<d", part)[0]}
        if number == 5 and depth < _DEEPEST:
            items = [_value(wire.content(p), depth + 1) for n, p in wire.fields(wire.content(part)) if n == 1]
            return {"arrayValue": {"values": items[:_MOST]}}
    return {}
