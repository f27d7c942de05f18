"""CloudEvents 1.0 in Kafka's binary mode: what we publish, as value and headers."""

from __future__ import annotations

import msgspec
import orjson

from streamproc.events import Alert

ALERT_TYPE = "io.streamproc.alert.v1"
ALERT_SCHEMA = "https://streamproc.dev/schemas/alert.v1.json"

RETRAIN_TYPE = "io.streamproc.retrain.v1"
RETRAIN_SCHEMA = "https://streamproc.dev/schemas/retrain-request.v1.json"

#: Fields that are published even where they equal their default: readers rely on them.
ALWAYS = ("threshold", "schema_version", "source", "category")

_SEVERITY = {"info": ("INFO", 9), "warning": ("WARN", 13), "critical": ("ERROR", 17)}


def encode_alert(alert: Alert, *, source: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return an alert as a record's value and headers. `source` is the CloudEvents source of this app."""
    text, number = _SEVERITY[alert.severity]
    headers = {
        "ce_specversion": "1.0",
        "ce_type": ALERT_TYPE,
        "ce_source": source,
        "ce_id": alert.id,
        "ce_time": alert.lastReceived,
        "ce_dataschema": ALERT_SCHEMA,
        "ce_severitytext": text,
        "ce_severitynumber": str(number),
        "ce_partitionkey": alert.fingerprint,
        "ce_correlationid": alert.episode_id,
        "content-type": "application/json",
    }
    return to_json(alert), [(k, v.encode()) for k, v in headers.items()]


def to_json(alert: Alert) -> bytes:
    """Return an alert as one line of JSON."""
    return orjson.dumps(msgspec.to_builtins(alert) | {name: getattr(alert, name) for name in ALWAYS})
