"""Every envelope gives the same event; every poison gives a reason."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import orjson
import pytest

from streamproc import events
from streamproc.decoding import Decoder
from streamproc.events import Label, Prediction, Telemetry, time_us
from tests.core.make import BEGIN_US, batch, config, pipeline, prediction

WHEN = dt.datetime(2026, 1, 5, 9, tzinfo=dt.UTC)
DATA: dict[str, Any] = {
    "model": {"name": "fraud", "version": 3},
    "prediction": {"label": "yes", "score": 0.9},
}
FULL = {**DATA, "id": "7", "source": "s", "time": WHEN.isoformat()}


def decoded(value: bytes, headers: Any = (), **options: Any) -> Prediction:
    out = Decoder(Prediction, **options).decode(batch([value], headers=[headers]))
    assert out.rejected == []
    (event,) = out.events
    return event  # type: ignore[no-any-return]


def same(event: Prediction) -> None:
    assert (event.id, event.source, event.time) == ("7", "s", WHEN)
    assert events.model_name(event) == "fraud"
    assert events.model_version(event) == "3"
    assert event.prediction is not None


def test_bare_json_is_read() -> None:
    same(decoded(orjson.dumps(FULL)))


def test_cloudevents_binary_mode_is_read() -> None:
    headers = [("ce_id", b"7"), ("ce_source", b"s"), ("ce_time", b"2026-01-05T09:00:00Z"), ("ce_type", b"x")]
    same(decoded(orjson.dumps(DATA), headers))


def test_headers_are_read_whatever_their_case() -> None:
    headers = [("CE_id", b"7"), ("ce_Source", b"s"), ("ce_time", b"2026-01-05T09:00:00Z"), ("other", None)]
    same(decoded(orjson.dumps(DATA), headers))


def test_what_the_data_says_wins_over_the_headers() -> None:
    same(
        decoded(
            orjson.dumps(FULL), [("ce_id", b"8"), ("ce_source", b"t"), ("ce_time", b"2020-01-01T00:00:00Z")]
        )
    )


def test_cloudevents_structured_mode_is_read() -> None:
    envelope = {
        "specversion": "1.0",
        "id": "7",
        "source": "s",
        "type": "x",
        "time": WHEN.isoformat(),
        "data": DATA,
    }
    same(decoded(orjson.dumps(envelope)))


def test_bare_json_by_a_field_map_is_read() -> None:
    theirs = {
        "meta": {"uid": "7", "ts": WHEN.isoformat()},
        "src": "s",
        "m": "fraud",
        "v": "3",
        "out": {"p": 0.9},
    }
    names = {
        "id": "meta.uid",
        "time": "$.meta.ts",
        "source": "src",
        "model.name": "m",
        "model.version": "v",
        "prediction": "out.p",
    }
    same(decoded(orjson.dumps(theirs), field_map=names))


def test_flat_names_are_read() -> None:
    event = decoded(b'{"model.name": "fraud", "error.type": "timeout"}')
    assert (events.model_name(event), events.error_type(event)) == ("fraud", "timeout")


def test_unknown_fields_are_passed_over() -> None:
    same(
        decoded(orjson.dumps({**FULL, "new": {"deep": [1, 2]}, "prediction": {"score": 1.0, "extra": None}}))
    )


def test_a_mixed_batch_keeps_its_rows() -> None:
    out = Decoder(Prediction).decode(batch([orjson.dumps(FULL), b"{", orjson.dumps(FULL), None]))
    assert out.rows == [0, 2]
    assert [(r.row, r.offset, r.error_type) for r in out.rejected] == [
        (1, 1, "malformed"),
        (3, 3, "null_value"),
    ]


POISON: dict[str, tuple[Any, str]] = {
    "nothing": (None, "null_value"),
    "empty": (b"", "malformed"),
    "cut off": (b'{"model": "m", "predic', "malformed"),
    "not JSON": (b"\x00\x01avro", "unknown_format"),
    "not UTF-8": (b'{"model": "\xff", "prediction": 1}', "malformed"),
    "a list": (b"[1, 2]", "unknown_format"),
    "a number": (b"5", "unknown_format"),
    "text for a number": (b'{"model": "m", "prediction": 1, "duration_s": "fast"}', "schema"),
    "a time that is none": (b'{"model": "m", "prediction": 1, "time": "yesterday"}', "implausible_time"),
    "no answer": (b'{"model": "m"}', "schema"),
    "no model and no key": (b'{"prediction": 1}', "no_model"),
    "too long a name": (orjson.dumps({"model": "m" * 600, "prediction": 1}), "schema"),
    "too deep": (
        b'{"model": "m", "prediction": 1, "features": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        "too_deep",
    ),
    "too large": (b'{"model": "m", "prediction": 1, "x": "' + b"y" * 4_000_001 + b'"}', "too_large"),
    "from the future": (orjson.dumps(prediction(BEGIN_US + 3_600_000_000)), "future_time"),
    "a header that is no time": ((b'{"model": "m", "prediction": 1}', [("ce_time", b"soon")]), "implausible_time"),
}


@pytest.mark.parametrize("kind", POISON)
def test_poison_is_a_value_with_its_reason_and_the_rest_goes_on(kind: str) -> None:
    value, reason = POISON[kind]
    value, headers = value if isinstance(value, tuple) else (value, ())
    good = orjson.dumps(prediction(BEGIN_US))
    out = pipeline(config()).process(batch([good, value, good], headers=[(), headers, ()]))
    assert out.events == 2
    assert [(r.row, r.offset, r.error_type) for r in out.rejected] == [(1, 1, reason)]
    assert out.rejected[0].message


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e308", "-1.7e308", "1" + "0" * 400, "18446744073709551616"]
)
def test_numbers_beyond_all_measure_do_not_stop_the_stream(number: str) -> None:
    value = f'{{"model": "m", "prediction": {number}, "duration_s": {number}, "features": {{"x": {number}}}}}'.encode()
    p = pipeline(config())
    for first in range(0, 300, 100):
        out = p.process(batch([value] * 100, first=first, stamps_us=[BEGIN_US + first * 1_000_000] * 100))
        assert out.events + len(out.rejected) == 100


@pytest.mark.parametrize(
    "time", [1e300, -1e300, 2**62, -(2**62), 0, -1, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]
)
def test_times_beyond_all_measure_do_not_stop_the_stream(time: Any) -> None:
    p = pipeline(config())
    good = prediction(BEGIN_US)
    out = p.process(batch([good, {**good, "time": time}, good], stamps_us=[BEGIN_US] * 3))
    assert out.events + len(out.rejected) == 3
    assert p.process(batch([good], first=3, stamps_us=[BEGIN_US])).events == 1


@pytest.mark.parametrize("name", ["prediction", "features", "duration_s", "segment"])
def test_one_huge_number_among_good_events_costs_at_most_itself(name: str) -> None:
    huge = 10**400
    good = {**prediction(BEGIN_US), "features": {"x": 1.0, "y": 2.0}}
    value = {**good, name: {"x": "HUGE", "y": 1.0} if name in ("features", "segment") else "HUGE"}
    bad = orjson.dumps(value).replace(b'"HUGE"', str(huge).encode())
    p = pipeline(config())
    p.process(batch([good] * 60))
    out = p.process(batch([good, bad, good], first=60))
    assert out.events >= 2
    assert out.events + len(out.rejected) == 3


def test_a_broker_without_record_times_is_read() -> None:
    out = pipeline(config()).process(batch([prediction(BEGIN_US)], stamps_us=[-1000]))
    assert (out.events, out.rejected) == (1, [])


def test_a_message_never_quotes_the_payload() -> None:
    out = Decoder(Prediction).decode(batch([b'{"model": "m", "prediction": 1, "duration_s": "4111-1111"}']))
    assert "4111" not in out.rejected[0].message


def test_a_key_stands_for_a_model_that_is_not_named() -> None:
    p = pipeline(config())
    assert p.process(batch([{"prediction": 1.0}], keys=[b"churn"])).events == 1
    assert list(p.models) == ["churn"]


def test_telemetry_needs_a_value_or_a_sum_and_count() -> None:
    values = [
        b'{"name": "q", "value": 1}',
        b'{"name": "q", "sum": 6, "count": 2}',
        b'{"name": "q", "sum": 6, "count": 0}',
    ]
    out = Decoder(Telemetry).decode(batch(values))
    assert (out.rows, [r.row for r in out.rejected]) == ([0, 1], [2])


def test_telemetry_finds_its_model_in_attributes_and_else_its_service() -> None:
    decode = msgspec.json.Decoder(Telemetry).decode
    assert (
        events.model_name(decode(b'{"name": "q", "attributes": {"model.name": "m"}, "service.name": "s"}'))
        == "m"
    )
    assert events.model_name(decode(b'{"name": "q", "service.name": "s"}')) == "s"


def test_a_label_needs_its_prediction_and_the_truth() -> None:
    out = Decoder(Label).decode(
        batch([b'{"prediction_id": "1", "label": true}', b'{"prediction_id": "1"}', b'{"label": 1}'])
    )
    assert (out.rows, [r.row for r in out.rejected]) == ([0], [1, 2])


def test_a_time_without_an_offset_is_utc() -> None:
    assert time_us(dt.datetime(2026, 1, 5, 9)) == time_us(WHEN) == BEGIN_US  # noqa: DTZ001
