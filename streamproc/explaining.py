"""What would be read from one record: its format, its events, the signals they feed, or why it is refused; pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from streamproc import compression, framed, serving
from streamproc.config import Config
from streamproc.decoding import Decoder
from streamproc.events import EVENTS, REASONS, Half, Header, Prediction, RecordBatch
from streamproc.models import Group
from streamproc.pipeline import Output, Pipeline
from streamproc.rules import RuleBook
from streamproc.signals import SourceKind
from streamproc.unpack import unpack

__all__ = ["Explained", "explain"]

#: Copies of a record that are shown to a pipeline, in windows of so many each: enough that all is learned that a signal
#: needs before it has a value.
_COPIES = 2400
_A_WINDOW = 40


class Explained(Struct):
    """What a record comes to.

    formats: outermost first. events: the fields that each has, as plain values. feeds: signals, by name. refused: the
    reason, what it stands for and what is wrong, of each event that cannot be read.
    """

    formats: list[str]
    events: list[dict[str, Any]]
    feeds: list[str]
    refused: list[tuple[str, str, str]]
    halves: list[str]  # which halves of a prediction its events are
    ignored: list[str]  # why parts of it, or all, are not watched


class _Repeated(Pipeline):
    """A pipeline for which every event happens when its record was written."""

    def _take(self, group: Group, batch: RecordBatch, out: Output) -> None:
        super()._take(msgspec.structs.replace(group, times=group.shared.stamps), batch, out)


def explain(
    config: Config,
    kind: SourceKind,
    value: bytes | None,
    *,
    key: bytes | None = None,
    headers: list[Header] | None = None,
    topic: str = "",
    at_ms: int,
) -> Explained:
    """Return what a worker of a config would read from one record of a topic; at_ms: the record's time."""
    headers = headers or []
    batch = RecordBatch(topic or kind, 0, [0], [at_ms], [key], [value], [headers])
    traces = kind == "predictions" and serving.seldon_topic(batch.topic) is None
    unpacked = unpack(batch, None, traces=traces)
    records = batch if unpacked is None else unpacked.batch
    rejected = [] if unpacked is None else list(unpacked.rejected)
    decoded = Decoder(EVENTS[kind], field_map=config.fields.get(kind)).decode(records)
    rejected += decoded.rejected
    pipeline = Pipeline(RuleBook(config), kind=kind, topic=batch.topic)
    found = pipeline.process(batch)
    rejected += [r for r in found.rejected if r.error_type not in {known.error_type for known in rejected}]
    halves: list[str] = [e.side for e in decoded.events if isinstance(e, Half)]
    return Explained(
        formats=list(_formats(value, headers, batch.topic, kind, decoded.events, packed=unpacked is not None)),
        events=[_fields(e) for e in decoded.events],
        feeds=_feeds(config, kind, batch) if decoded.events and not halves and not found.rejected else [],
        refused=[(r.error_type, REASONS.get(r.error_type, ""), r.message) for r in rejected],
        halves=halves,
        ignored=list(found.ignored),
    )


def _formats(
    value: bytes | None, headers: list[Header], topic: str, kind: SourceKind, events: list[Any], *, packed: bool
) -> Iterator[str]:
    attributes = {k[3:].lower(): v for k, v in headers if k[:3].lower() == "ce_" and v is not None}
    if attributes:
        yield f"CloudEvents, binary (type {attributes.get('type', b'').decode('utf-8', 'replace') or 'not told'})"
    if value is not None and compression.is_compressed(value):
        yield "gzip" if value[:2] == b"\x1f\x8b" else "zstd"
    elif (schema := framed.schema_name(value, headers)) is not None:
        yield f"framed for a schema registry (schema {schema})"
    elif packed and events:
        yield "OpenTelemetry traces"
    if value is not None and b'"specversion"' in value:
        yield "CloudEvents, structured"
    if kind == "predictions":
        if attributes.get("type", b"").startswith(serving.KSERVE.encode()) or serving.KSERVE.encode() in (value or b""):
            yield "KServe's logger"
        elif serving.seldon_topic(topic) is not None:
            yield "Seldon Core"
    if any(isinstance(e, Half) for e in events):
        yield "half of a prediction"
    elif any(isinstance(e, Prediction) and e.llm is not None for e in events):
        yield "call of a language model"
    elif events:
        yield f"{kind[:-1] if kind.endswith('s') else kind} in JSON"


#: What goes without saying.
_ORDINARY = {"prediction.unreadable": False, "prediction.rows": 1}


def _fields(event: Any) -> dict[str, Any]:
    """Return the fields of an event that say something, by the names in the schemas, nested ones by their path."""
    found: dict[str, Any] = {}

    def walk(tree: Any, path: str) -> None:
        if isinstance(tree, dict) and tree:
            for name, value in tree.items():
                walk(value, f"{path}.{name}" if path else name)
        elif (tree not in (None, "", {}, []) or tree is False) and _ORDINARY.get(path) != tree:
            found[path] = tree

    walk(msgspec.to_builtins(event, enc_hook=str), "")
    return found


def _feeds(config: Config, kind: SourceKind, batch: RecordBatch) -> list[str]:
    """Return the signals of which a model has a value once many such records have come."""
    # A window of few will do: the question is which there are.
    defaults = msgspec.structs.replace(config.defaults, min_samples=1)
    book = RuleBook(msgspec.structs.replace(config, defaults=defaults))
    pipeline = _Repeated(book, kind=kind, topic=batch.topic)
    step_ms = max(1, config.defaults.window.us // 1000 // _A_WINDOW)
    n, begin_ms = _COPIES, batch.timestamps_ms[0]
    pipeline.process(
        RecordBatch(
            batch.topic,
            0,
            range(n),
            [begin_ms + k * step_ms for k in range(n)],
            [batch.keys[0]] * n,
            [batch.values[0]] * n,
            [batch.headers[0]] * n,
        )
    )
    found: dict[str, None] = {}
    for model in pipeline.models.values():
        found |= dict.fromkeys(signal for signal, _ in model.watches)
        found |= dict.fromkeys(s.rule.signal for s in model.silence)
    if kind == "labels" and book.joins:
        found |= dict.fromkeys(book.for_model("quality", "*").rules)
    return list(found)
