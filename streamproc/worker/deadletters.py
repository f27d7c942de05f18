"""Dead letters: a record that could not be read, whole, with the reason in its headers (KIP-1034)."""

from __future__ import annotations

from collections.abc import Sequence

from streamproc.events import Header, RecordBatch, Rejected

#: Headers that say how a record is written and nothing of what it holds: their values stay where a letter is redacted.
_OF_FORM = frozenset({"content-type", "content-encoding", "ce_specversion", "ce_type", "ce_datacontenttype"})


def dead_letter(
    batch: RecordBatch, rejected: Rejected, *, redact: bool = False
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Return key, value and headers of the dead letter for one rejected record.

    Key, value and the original headers are the record's own bytes. With `redact` none of them goes along: no key, no
    value, of headers their names, and no message, which may quote what the record holds. Where it was read stays, and
    so who may read that topic finds it; and its size, in bytes.
    """
    row = rejected.row
    key, value = batch.keys[row], batch.values[row]
    headers = _redacted(batch.headers[row]) if redact else [(k, v or b"") for k, v in batch.headers[row]]
    headers += [
        ("error.type", rejected.error_type.encode()),
        ("__streams.errors.exception", b"streamproc.events.Rejected"),
        ("__streams.errors.message", b"" if redact else rejected.message.encode()),
        ("__streams.errors.topic", batch.topic.encode()),
        ("__streams.errors.partition", str(batch.partition).encode()),
        ("__streams.errors.offset", str(rejected.offset).encode()),
    ]
    if not redact:
        return key, value, headers
    sizes = [(name, part) for name, part in (("key", key), ("value", value)) if part is not None]
    headers += [(f"streamproc.redacted.{name}.bytes", str(len(part)).encode()) for name, part in sizes]
    return None, None, headers


def _redacted(headers: Sequence[Header]) -> list[tuple[str, bytes]]:
    return [(k, (v or b"") if k.lower() in _OF_FORM else b"") for k, v in headers]
