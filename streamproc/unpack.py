"""Records that are not one event each: framed for a schema registry, or traces of many spans.

They become records of one JSON event each, at the offset they came from, before anything else looks at them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import orjson
from msgspec import Struct

from streamproc import compression, framed, genai, otlp
from streamproc.events import TOPIC_HEADER, Header, RecordBatch, Rejected


class Unpacked(Struct, gc=False):
    """What a batch's records hold: rows[i] is the row that record i of `batch` came from.

    ignored: spans that hold nothing to watch, by reason.
    """

    batch: RecordBatch
    rows: list[int]
    rejected: list[Rejected]
    ignored: Counter[str]


def schemas(batch: RecordBatch) -> set[framed.SchemaName]:
    """Return what names the schemas that values are framed by, or that their headers name."""
    pairs = zip(batch.values, batch.headers, strict=True)
    return {name for v, h in pairs if v is not None and (name := framed.schema_name(v, h)) is not None}


def unpack(
    batch: RecordBatch,
    codecs: Mapping[framed.SchemaName, framed.Codec] | None,
    *,
    traces: bool,
    max_bytes: int = 4_000_000,
) -> Unpacked | None:
    """Return a batch unpacked, None where nothing in it is packed.

    codecs: of every schema there is, None where no registry is asked; traces: whether spans may come.
    """
    headed = codecs is not None and any(map(framed.has_header, batch.headers))
    # Of most batches the few different beginnings tell that nothing in them is packed.
    if not headed and not any(_may_be_packed(head) for head in {v[:_HEAD] for v in batch.values if v}):
        return None
    marked = [_kind(v, codecs is not None, traces=traces) for v in batch.values]
    if headed:
        pairs = zip(marked, batch.headers, strict=True)
        marked = [_FRAMED if framed.has_header(own) else kind for kind, own in pairs]
    if not any(marked):
        return None
    rows: list[int] = []
    values: list[bytes | None] = []
    rejected: list[Rejected] = []
    ignored: Counter[str] = Counter()
    for row, (value, kind) in enumerate(zip(batch.values, marked, strict=True)):
        # What Seldon's topics were sent on to is told by a header, and is no trace either.
        if kind == _MAYBE and any(name == TOPIC_HEADER for name, _ in batch.headers[row]):
            kind = 0
        if not kind or value is None:
            rows.append(row)
            values.append(value)
            continue
        try:
            found = _records(value, kind, codecs or {}, max_bytes, batch.headers[row])
        except compression.CompressionError as e:
            rejected.append(Rejected(row, batch.offsets[row], e.error_type, str(e)))
            continue
        except KeyError:
            name = framed.schema_name(value, batch.headers[row])
            why = f"the registry has no schema of {'GUID' if isinstance(name, str) else 'number'} {name}"
            rejected.append(Rejected(row, batch.offsets[row], "unknown_schema", why))
            continue
        except (ValueError, RecursionError) as e:
            if kind == _MAYBE:  # not OTLP's after all
                found = [value]
            else:
                rejected.append(Rejected(row, batch.offsets[row], "schema", str(e)))
                continue
        kept = [v for v in found if v]
        if len(kept) < len(found):
            ignored[OTHER_SPAN] += len(found) - len(kept)
        rows += [row] * len(kept)
        values += kept
    whole = RecordBatch(
        batch.topic,
        batch.partition,
        [batch.offsets[r] for r in rows],
        [batch.timestamps_ms[r] for r in rows],
        [batch.keys[r] for r in rows],
        values,
        [batch.headers[r] for r in rows],
        position=batch.position,
        previous=batch.previous,
    )
    return Unpacked(whole, rows, rejected, ignored)


#: Why a span of HTTP, a database or anything else that is no part of a language model's work is ignored.
OTHER_SPAN = "span: not of a language model"

_FRAMED, _TRACES, _MAYBE, _COMPRESSED = 1, 2, 3, 4


#: So much of a value tells whether it may be packed.
_HEAD = 3


def _may_be_packed(head: bytes) -> bool:
    return not head.startswith(b"{") or otlp.JSON_BEGINS.startswith(head)


def _kind(value: bytes | None, registry: bool, *, traces: bool) -> int:
    if not value:
        return 0
    first = value[0]
    if first == 0:
        return _FRAMED if registry and len(value) >= framed.FRAME else 0
    if not traces:
        return 0
    if first == 0x7B:  # {
        return _TRACES if value.startswith(otlp.JSON_BEGINS) else 0
    if first == 0x0A:  # field 1 of a message, or a line's end before JSON
        return _MAYBE
    return _COMPRESSED if compression.is_compressed(value) else 0


def _records(
    value: bytes,
    kind: int,
    codecs: Mapping[framed.SchemaName, framed.Codec],
    max_bytes: int,
    headers: Sequence[Header],
) -> list[bytes]:
    """Return the events in a value; empty for what is none to us."""
    if kind == _FRAMED:
        return [framed.json_of(value, codecs, headers)]
    if kind == _COMPRESSED:
        plain = compression.decompress(value, max_bytes=max_bytes)
        kind = _kind(plain, registry=False, traces=True)
        if kind not in (_TRACES, _MAYBE):
            return [plain]
        try:
            return _calls(plain)
        except ValueError:
            return [plain]
    return _calls(value)


def _calls(value: bytes) -> list[bytes]:
    try:
        found = otlp.spans(value)
    except msgspec.DecodeError as e:
        raise ValueError(str(e)) from None
    if not found:
        raise ValueError("no spans")
    return [orjson.dumps(span) if genai.may_be_ours(span) else b"" for span in found]
