"""Dead letters: a record that could not be read, whole, with the reason in its headers (KIP-1034)."""

from __future__ import annotations

from streamproc.events import RecordBatch, Rejected


def dead_letter(
    batch: RecordBatch, rejected: Rejected, *, redact: bool = False
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Return key, value and headers of the dead letter for one rejected record.

    Key, value and the original headers are the record's own bytes. With `redact`, the message, which
    may quote a field's name, is left out.
    """
    row = rejected.row
    headers = [(k, v if v is not None else b"") for k, v in batch.headers[row]]
    headers += [
        ("error.type", rejected.error_type.encode()),
        ("__streams.errors.exception", b"streamproc.events.Rejected"),
        ("__streams.errors.message", b"" if redact else rejected.message.encode()),
        ("__streams.errors.topic", batch.topic.encode()),
        ("__streams.errors.partition", str(batch.partition).encode()),
        ("__streams.errors.offset", str(rejected.offset).encode()),
    ]
    return batch.keys[row], batch.values[row], headers
