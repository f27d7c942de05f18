"""What goes in and out, for other people's machines: JSON Schemas (2020-12) and AsyncAPI 3.0; pure.

Generated from the types that decode and encode, and kept in step by a test.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from streamproc import __version__, cloudevents, topology
from streamproc.config import Breaches, Config, Duration, Effect, Kafka, Moment, Quantity
from streamproc.events import Alert, Feedback, Incident, Label, Prediction, RetrainRequest, Telemetry

BASE = "https://streamproc.dev/schemas/"

#: How the config's own types are written.
_WRITTEN: dict[Any, Any] = {
    Duration: Annotated[
        str,
        Meta(pattern=r"^\s*\d+(\.\d+)?\s*(us|ms|s|m|h|d)\s*$", description="A length of time, such as 30s."),
    ],
    Breaches: Annotated[
        str, Meta(pattern=r"^\s*\d+\s*/\s*\d+\s*$", description="k of the last n values, such as 5/20.")
    ],
    Moment: Annotated[
        str, Meta(description="A point in time, such as 2026-10-01T22:00Z; without an offset it is UTC.")
    ],
    Quantity: float
    | Annotated[
        str,
        Meta(
            pattern=r"^\s*[+-]?\d+(\.\d+)?\s*[a-zA-Z%{}]*\s*$",
            description="A number with a unit, such as 50ms.",
        ),
    ],
    Effect: float
    | Annotated[
        str,
        Meta(
            pattern=r"^\s*\d+(\.\d+)?\s*[a-zA-Z%{}]*(\s+and\s+\d+(\.\d+)?\s*[a-zA-Z%{}]*)?\s*$",
            description="A change with its unit, a part of what is usual, or both: 50ms, 20%, 50ms and 20%.",
        ),
    ],
}

#: What `streamproc silence add` writes.
_SILENCE = {
    "type": "object",
    "required": ["from", "to"],
    "properties": {
        "from": {"type": ["string", "number"]},
        "to": {"type": ["string", "number"]},
        **{name: {"type": "string"} for name in ("model", "signal", "segment", "reason", "author")},
        "learn": {"type": "boolean"},
    },
}

#: Of each role of a topic, what is on it and what it is for.
_CHANNELS: dict[topology.Role, tuple[str, str]] = {
    "predictions": ("prediction", "Predictions of serving systems, keyed by model."),
    "telemetry": ("telemetry", "Measurements of services, keyed by model."),
    "labels": ("label", "True labels as they become known, keyed by model."),
    "joins": ("join", "Predictions on their way to their labels; the worker's own, not for others."),
    "silences": ("silence", "Silences of `streamproc silence`, keyed by their id."),
    "feedback": ("feedback", "Operators' verdicts on alerts, keyed by the alert's fingerprint."),
    "alerts": ("alert", "What is wrong, and when it is over, keyed by model."),
    "pages": ("alert", "Alerts under the cap of a day, and digests of the rest."),
    "incidents": ("incident", "Alerts that have one cause, told once, keyed by incident."),
    "alertFeed": ("alert", "All alerts in one order; the worker's own, not for others."),
    "deadLetters": ("deadLetter", "Records that could not be read, whole."),
    "snapshots": ("snapshot", "The worker's own state; not for others."),
}

#: What a reader of alerts may count on, though it equals its default.
_ALERT_ALWAYS = cloudevents.ALWAYS


def files() -> dict[str, str]:
    """Return every file of `schemas/`, by name."""
    return {f"{name}.json": _text(tree) for name, tree in {**schemas(), "asyncapi": asyncapi()}.items()}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schemas by name."""
    return {
        "prediction.v1": _of(Prediction, "prediction.v1", _prediction_needs),
        "telemetry.v1": _of(Telemetry, "telemetry.v1", _telemetry_needs),
        "label.v1": _of(Label, "label.v1", _label_needs),
        "feedback.v1": _of(Feedback, "feedback.v1"),
        "alert.v1": _of(Alert, "alert.v1", _alert_needs),
        "retrain-request.v1": _of(RetrainRequest, "retrain-request.v1"),
        "incident.v1": _of(Incident, "incident.v1", _incident_needs),
        "config.v1": _of(_written(Config), "config.v1", _config_needs),
    }


def _config_needs(root: dict[str, Any]) -> None:
    """Allow what a file keeps for its anchors."""
    root["patternProperties"] = {"^x-": {"description": "Yours: for anchors, and for other programs."}}


def _text(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _of(kind: Any, name: str, needs: Callable[[dict[str, Any]], None] = lambda _root: None) -> dict[str, Any]:
    """Return the schema of one type, its root inline and what it needs made explicit."""
    tree = msgspec.json.schema(kind)
    definitions = tree.pop("$defs")
    root = definitions.pop(tree.pop("$ref").rpartition("/")[2])
    root = _tidied(root)
    needs(root)
    out = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{BASE}{name}.json", **root}
    if definitions:
        out["$defs"] = {k: _tidied(v) for k, v in sorted(definitions.items())}
        if "ModelRef" in definitions:
            model = out["$defs"]["ModelRef"]
            model["required"] = ["name"]
            model["properties"]["name"]["minLength"] = 1
    return out


def _tidied(node: Any) -> Any:
    """Return a schema without the defaults that say nothing, its descriptions without indentation."""
    if isinstance(node, list):
        return [_tidied(n) for n in node]
    if not isinstance(node, dict):
        return node
    out = {k: _tidied(v) for k, v in node.items() if not (k == "default" and v in (None, "", [], {}))}
    if isinstance(out.get("description"), str):
        out["description"] = inspect.cleandoc(out["description"])
    if out.get("required") == []:
        del out["required"]
    return out


def _given(*names: str) -> dict[str, Any]:
    """Return a schema that holds where all of these fields are there and not null."""
    return {"required": list(names), "properties": {n: {"not": {"type": "null"}} for n in names}}


_NAMES_MODEL = {"anyOf": [_given("model"), _given("model.name")]}


def _prediction_needs(root: dict[str, Any]) -> None:
    root["allOf"] = [_NAMES_MODEL, {"anyOf": [{"required": ["prediction"]}, _given("error"), _given("error.type")]}]


def _telemetry_needs(root: dict[str, Any]) -> None:
    root["anyOf"] = [_given("value"), _given("sum", "count")]


def _label_needs(root: dict[str, Any]) -> None:
    truth = {"anyOf": [_given("label"), _given("value")]}
    judged = {"anyOf": [_given("gen_ai.evaluation.score.value"), _given("gen_ai.evaluation.score.label")]}
    named = {"allOf": [_given("prediction_id"), {"properties": {"prediction_id": {"minLength": 1}}}]}
    by = _given("gen_ai.evaluation.name")
    root["allOf"] = [_NAMES_MODEL, {"anyOf": [{"allOf": [named, truth]}, {"allOf": [by, judged]}]}]


def _alert_needs(root: dict[str, Any]) -> None:
    root["required"] += [n for n in _ALERT_ALWAYS if n not in root["required"]]


def _incident_needs(root: dict[str, Any]) -> None:
    root["required"] += [n for n in cloudevents.INCIDENT_ALWAYS if n not in root["required"]]


def _written(kind: Any) -> Any:
    """Return a type with the config's own types replaced by how they are written, all the way down."""
    if kind in _WRITTEN:
        return _WRITTEN[kind]
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _written_struct(kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return Union[tuple(_written(a) for a in args)]  # noqa: UP007 - the members are known only now
    if origin in (list, dict):
        return origin[tuple(_written(a) for a in args)]
    return kind


@functools.cache
def _written_struct(kind: type[Struct]) -> type[Struct]:
    fields: list[Any] = []
    for f in msgspec.structs.fields(kind):
        default: Any = f.default
        if isinstance(default, Duration | Breaches | Effect | Quantity):
            default = repr(default)
        how = {"default": default} if default is not NODEFAULT else {}
        if f.default_factory is not NODEFAULT:
            # Blocks and collections default to empty ones, of which a schema need not speak.
            how = {"default_factory": f.default_factory if f.default_factory in (list, dict) else dict}
        fields.append((f.name, _written(f.type), msgspec.field(name=f.encode_name, **how)))
    return msgspec.defstruct(
        kind.__name__, fields, kw_only=True, forbid_unknown_fields=True, namespace={"__doc__": kind.__doc__}
    )


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI document of a worker with the topic names that are the defaults."""
    kafka = Kafka(
        brokers="localhost:9092", predictions=["predictions"], telemetry=["telemetry"], labels=["labels"], pages="pages"
    )
    own = topology.topics(kafka)
    attributes = {
        name: {"type": "string"} for name in ("ce_id", "ce_source", "ce_specversion", "ce_type", "ce_time")
    }
    extensions = (
        "ce_dataschema",
        "ce_severitytext",
        "ce_severitynumber",
        "ce_partitionkey",
        "ce_correlationid",
    )
    optional = {
        "type": "object",
        "description": "CloudEvents 1.0 in binary mode; bare JSON and structured mode are read too.",
        "properties": {**attributes, "content-type": {"type": "string"}},
    }
    def published(kind: str, schema: str) -> Any:
        return {
            "type": "object",
            "description": "CloudEvents 1.0 in binary mode.",
            "required": [*attributes, *extensions, "content-type"],
            "properties": {
                **attributes,
                **{name: {"type": "string"} for name in extensions},
                "ce_specversion": {"const": "1.0"},
                "ce_type": {"const": kind},
                "ce_dataschema": {"const": schema},
                "content-type": {"const": "application/json"},
            },
        }

    requested = {
        "type": "object",
        "description": "CloudEvents 1.0 in binary mode; idempotency-key is its id.",
        "required": [*attributes, "ce_correlationid", "idempotency-key", "content-type"],
        "properties": {
            **attributes,
            "ce_correlationid": {"type": "string"},
            "idempotency-key": {"type": "string"},
            "ce_specversion": {"const": "1.0"},
            "ce_type": {"const": cloudevents.RETRAIN_TYPE},
            "content-type": {"const": "application/json"},
        },
    }
    errors = [f"__streams.errors.{name}" for name in ("exception", "message", "topic", "partition", "offset")]
    dead = {
        "type": "object",
        "description": "The record's own headers, and why it could not be read (KIP-1034).",
        "required": ["error.type", *errors],
        "properties": {name: {"type": "string"} for name in ("error.type", *errors)},
    }
    by_model = {"type": "string", "description": "The model's name."}

    def message(
        name: str, summary: str, *, headers: Any, key: Any = by_model, schema: str | None = None, payload: Any = None
    ) -> Any:
        payload = payload or ({"$ref": f"./{schema}.json"} if schema is not None else {"description": "Bytes."})
        return {
            "name": name,
            "summary": summary,
            "contentType": "application/json" if "description" not in payload else "application/octet-stream",
            "headers": headers,
            "payload": payload,
            "bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}},
        }

    def channel(address: str, what: str, description: str, *, compact: bool = False) -> Any:
        binding: dict[str, Any] = {"topic": address, "bindingVersion": "0.5.0"}
        if compact:
            binding["topicConfiguration"] = {"cleanup.policy": ["compact"]}
        return {
            "address": address,
            "description": description,
            "messages": {what: {"$ref": f"#/components/messages/{what}"}},
            "bindings": {"kafka": binding},
        }

    channels: dict[str, Any] = {
        topic.role: channel(
            topic.name, *_CHANNELS[topic.role], compact=topic.settings.get("cleanup.policy") == "compact"
        )
        for topic in own
    }
    channels["retrainRequests"] = channel(
        "retrain-requests", "retrainRequest", "What should be trained anew, keyed by model; by a bridge."
    )
    channels["bridgeDeadLetters"] = channel(
        topology.bridge_dead_letters(kafka), "deadLetter", "Alerts and incidents that no receiver takes, whole."
    )
    messages = {
        "prediction": message(
            "prediction", "One prediction, or none", headers=optional, schema="prediction.v1"
        ),
        "telemetry": message("telemetry", "One measurement", headers=optional, schema="telemetry.v1"),
        "label": message("label", "One true label", headers=optional, schema="label.v1"),
        "feedback": message(
            "feedback",
            "One verdict",
            headers=optional,
            schema="feedback.v1",
            key={"type": "string", "description": "The alert's fingerprint."},
        ),
        "silence": message(
            "silence",
            "One silence; without a value it is over",
            headers={"type": "object"},
            payload=_SILENCE,
            key={"type": "string", "description": "The silence's id."},
        ),
        "join": message(
            "join", "Predictions or labels of one model, packed; not for others", headers={"type": "object"}
        ),
        "retrainRequest": message(
            "retrainRequest", "One request", headers=requested, schema="retrain-request.v1"
        ),
        "alert": message(
            "alert",
            "One step of one alert's life",
            headers=published(cloudevents.ALERT_TYPE, cloudevents.ALERT_SCHEMA),
            schema="alert.v1",
        ),
        "incident": message(
            "incident",
            "One step of one incident's life",
            headers=published(cloudevents.INCIDENT_TYPE, cloudevents.INCIDENT_SCHEMA),
            schema="incident.v1",
            key={"type": "string", "description": "The incident's id."},
        ),
        "deadLetter": message(
            "deadLetter", "One unreadable record", headers=dead, key={"description": "The record's own key."}
        ),
        "snapshot": message(
            "snapshot",
            "The state of a model, or the manifest of a partition",
            headers={"type": "object"},
            key={"type": "string", "description": "What the state is of."},
        ),
    }
    received = [topic.role for topic in own if topic.reads]
    sent = [*(topic.role for topic in own if topic.writes), "retrainRequests", "bridgeDeadLetters"]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "streamproc",
            "version": __version__,
            "description": "A worker that watches machine-learning models in production.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "localhost:9092", "protocol": "kafka"}},
        "channels": channels,
        "operations": {
            f"{action}{name[0].upper()}{name[1:]}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
            }
            for action, names in (("receive", received), ("send", sent))
            for name in names
        },
        "components": {"messages": messages},
    }
