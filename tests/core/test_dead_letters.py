"""A record that could not be read goes on whole, and says why."""

from __future__ import annotations

from streamproc.decoding import Decoder
from streamproc.events import Prediction, Rejected
from streamproc.worker.deadletters import dead_letter
from tests.core.make import batch

VALUE = b'{"model": "m", "card": "4111"'


def letter(*, redact: bool = False) -> tuple[bytes | None, bytes | None, dict[str, bytes]]:
    records = batch(
        [b"{}", VALUE], first=40, keys=[None, b"k"], headers=[(), [("trace", b"1"), ("empty", None)]]
    )
    rejected = Decoder(Prediction).decode(records).rejected[-1]
    key, value, headers = dead_letter(records, rejected, redact=redact)
    return key, value, dict(headers)


def test_key_value_and_headers_are_the_records_own() -> None:
    key, value, headers = letter()
    assert (key, value, headers["trace"], headers["empty"]) == (b"k", VALUE, b"1", b"")


def test_the_reason_and_the_place_are_in_the_headers() -> None:
    headers = letter()[2]
    assert headers["error.type"] == b"malformed"
    assert headers["__streams.errors.message"]
    assert headers["__streams.errors.topic"] == b"predictions"
    assert (headers["__streams.errors.partition"], headers["__streams.errors.offset"]) == (b"0", b"41")


def test_no_header_quotes_the_payload() -> None:
    assert all(b"4111" not in v for v in letter()[2].values())


def test_redaction_takes_all_that_a_record_holds_and_leaves_where_it_is() -> None:
    records = batch(
        [VALUE], first=41, keys=[b"customer-4111"], headers=[[("user", b"4111"), ("content-type", b"application/json")]]
    )
    rejected = Rejected(0, 41, "schema", "`card` is no number: 4111")
    key, value, found = dead_letter(records, rejected, redact=True)
    assert (key, value) == (None, None)
    assert not [v for _, v in found if b"4111" in v]
    headers = dict(found)
    assert (headers["user"], headers["content-type"]) == (b"", b"application/json")
    assert (headers["error.type"], headers["__streams.errors.message"]) == (b"schema", b"")
    assert (headers["__streams.errors.topic"], headers["__streams.errors.offset"]) == (b"predictions", b"41")
    assert headers["streamproc.redacted.key.bytes"] == b"13"
    assert headers["streamproc.redacted.value.bytes"] == str(len(VALUE)).encode()


def test_a_record_without_value_is_still_a_letter() -> None:
    records = batch([None], keys=[None])
    assert dead_letter(records, Rejected(0, 0, "null_value", "x"))[:2] == (None, None)
