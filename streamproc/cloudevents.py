"""CloudEvents 1.0 in Kafka's binary mode: what we publish, as value and headers."""

from __future__ import annotations

import msgspec
import orjson

from streamproc.events import Alert, Incident

ALERT_TYPE = "io.streamproc.alert.v1"
ALERT_SCHEMA = "https://streamproc.dev/schemas/alert.v1.json"
INCIDENT_TYPE = "io.streamproc.incident.v1"
INCIDENT_SCHEMA = "https://streamproc.dev/schemas/incident.v1.json"

RETRAIN_TYPE = "io.streamproc.retrain.v1"
RETRAIN_SCHEMA = "https://streamproc.dev/schemas/retrain-request.v1.json"

#: Fields that are published even where they equal their default: readers rely on them.
ALWAYS = ("threshold", "schema_version", "source", "category")
INCIDENT_ALWAYS = ("schema_version", "source")

_SEVERITY = {"info": ("INFO", 9), "warning": ("WARN", 13), "critical": ("ERROR", 17)}


def encode_alert(alert: Alert, *, source: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return an alert as a record's value and headers. `source` is the CloudEvents source of this app."""
    headers = _headers(alert, source, ALERT_TYPE, ALERT_SCHEMA, episode=alert.episode_id)
    return to_json(alert), headers


def encode_incident(incident: Incident, *, source: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return an incident as a record's value and headers. `source` is the CloudEvents source of this app."""
    headers = _headers(incident, source, INCIDENT_TYPE, INCIDENT_SCHEMA, episode=incident.incident_id)
    return incident_json(incident), headers


def _headers(
    said: Alert | Incident, source: str, kind: str, schema: str, *, episode: str
) -> list[tuple[str, bytes]]:
    text, number = _SEVERITY[said.severity]
    headers = {
        "ce_specversion": "1.0",
        "ce_type": kind,
        "ce_source": source,
        "ce_id": said.id,
        "ce_time": said.lastReceived,
        "ce_dataschema": schema,
        "ce_severitytext": text,
        "ce_severitynumber": str(number),
        "ce_partitionkey": said.fingerprint,
        "ce_correlationid": episode,
        "content-type": "application/json",
    }
    return [(k, v.encode()) for k, v in headers.items()]


def to_json(alert: Alert) -> bytes:
    """Return an alert as one line of JSON."""
    return orjson.dumps(msgspec.to_builtins(alert) | {name: getattr(alert, name) for name in ALWAYS})


def incident_json(incident: Incident) -> bytes:
    """Return an incident as one line of JSON."""
    always = {name: getattr(incident, name) for name in INCIDENT_ALWAYS}
    return orjson.dumps(msgspec.to_builtins(incident) | always)
