"""Values that a producer wrote otherwise than our types have them, where only one reading is plausible.

Numbers written as text, ids written as numbers, times in the forms that loggers use, and the `NaN` and `Infinity` that
Python's `json` writes. What has two plausible readings is refused with the guess named; it is never converted.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import email.utils
import math
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = [
    "TIMES",
    "TimeError",
    "connect_payload",
    "decimal",
    "eased",
    "plausible_us",
    "read_time",
    "without_nan",
]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

#: The times an event may have, in seconds since the epoch: from 1980 to the end of 2199. Counted in seconds,
#: milliseconds, microseconds and nanoseconds, and in minutes, hours and days, these ranges do not meet.
_FIRST_S: Final = 315_532_800
_LAST_S: Final = 7_258_118_399

#: Units that a number may count, and how many microseconds each has. Minutes and longer are too coarse for an event.
_FINE: Final = (("seconds", 1_000_000), ("milliseconds", 1_000), ("microseconds", 1))
_COARSE: Final = (("minutes", 60), ("hours", 3_600), ("days", 86_400))

#: JSON's strings, which stay as they are, or one of the words that Python writes and JSON has not.
_NOT_JSON = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b')

_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_DIGITS = re.compile(r"[+-]?\d+(?:\.\d+)?")

#: `2026-01-05 09:00:00 UTC`, with an offset's name that means one thing only.
_ZONE = re.compile(r"\s*(?:UTC|GMT|utc|gmt|Z|z)$")

#: Longest text that is looked at as a number or as a time.
_LONGEST = 64


class TimeError(ValueError):
    """Why a time is refused; the message names the unit that was guessed, and not the record's content."""


def without_nan(value: bytes) -> bytes | None:
    """Return JSON with `NaN` and the infinities as null, None where it has none of them outside of strings.

    >>> without_nan(b'{"a": NaN, "b": [-Infinity], "c": "NaN"}')
    b'{"a": null, "b": [null], "c": "NaN"}'
    """
    if b"NaN" not in value and b"Infinity" not in value:
        return None
    changed = False

    def null(found: re.Match[bytes]) -> bytes:
        nonlocal changed
        if found[0].startswith(b'"'):
            return found[0]
        changed = True
        return b"null"

    plain = _NOT_JSON.sub(null, value)
    return plain if changed else None


def decimal(text: str) -> float | None:
    """Return the number that a text writes in digits, None where it writes none or one that is not finite.

    >>> decimal("12.50"), decimal("-3e2"), decimal("12,5"), decimal("1e999")
    (12.5, -300.0, None, None)
    """
    if len(text) > _LONGEST or _DECIMAL.fullmatch(text.strip()) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def is_fraction(text: str) -> bool:
    """Whether a text writes a number with a point or an exponent: a class is seldom called so, a decimal always."""
    return any(c in text for c in ".eE") and decimal(text) is not None


def plausible_us(value: dt.datetime | float | int) -> int:
    """Return a time in microseconds since the epoch. Raise `TimeError` where no reading of it is plausible.

    A number counts seconds, milliseconds, microseconds or nanoseconds, told apart by its size; a datetime without an
    offset is UTC.

    >>> plausible_us(1_790_000_000_000_000_000)
    1790000000000000
    """
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=dt.UTC)
        us = (value - _EPOCH) // dt.timedelta(microseconds=1)
        if not _FIRST_S * 1_000_000 <= us < (_LAST_S + 1) * 1_000_000:
            raise TimeError(f"its time is in the year {value.year}; years from 1980 to 2199 are read")
        return us
    if (isinstance(value, int) and value.bit_length() > 64) or not math.isfinite(value):
        raise TimeError("its time is beyond all years")
    if value == 0:
        raise TimeError("its time is 0: probably it was never set; leave it out to take the record's")
    if value < 0:
        raise TimeError("its time is before 1970")
    for _, us_each in _FINE:
        if _FIRST_S <= value * us_each / 1e6 <= _LAST_S:
            return round(value * us_each)
    if _FIRST_S <= value / 1e9 <= _LAST_S:
        return int(value) // 1000
    for unit, seconds in _COARSE:
        if _FIRST_S <= value * seconds <= _LAST_S:
            raise TimeError(f"its time looks like {unit} since 1970: too coarse; send seconds, or map another field")
    if 36_526 <= value <= 73_050:
        raise TimeError("its time looks like days since 1900, as spreadsheets count them; send seconds since 1970")
    raise TimeError("its time is no plausible number of seconds, milliseconds, microseconds or nanoseconds since 1970")


def read_time(text: str) -> dt.datetime | float | int:
    """Return what a text says of a time. Raise `TimeError` where it can be read in more than one way, or in none.

    Takes RFC 3339 and the rest of ISO 8601, with a space for the `T`, with `UTC` or no offset (which is UTC too),
    RFC 2822, and digits.

    >>> read_time("2026-01-05 09:00:00 UTC").isoformat(), read_time("1790000000")
    ('2026-01-05T09:00:00+00:00', 1790000000)
    """
    plain = text.strip()
    if not plain or len(plain) > _LONGEST:
        raise TimeError("its time is an empty text" if not plain else "its time is too long a text")
    if _DIGITS.fullmatch(plain):
        compact = len(plain) in (8, 14) and plain.isdigit() and plain[:2] in ("19", "20")
        if not compact:
            return float(plain) if "." in plain else int(plain)
        if len(plain) == 8:
            raise TimeError("its time is a date in digits, without a time of day")
        plain = f"{plain[:8]}T{plain[8:]}"
    bare = _ZONE.sub("+00:00", plain)
    try:
        found = dt.datetime.fromisoformat(bare.replace(",", ".") if bare[4:5] == "-" else bare)
    except ValueError:
        found = None
    if found is not None:
        if len(plain) <= 10:
            raise TimeError("its time is a date without a time of day")
        return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)
    try:
        moment = email.utils.parsedate_to_datetime(plain)
    except (ValueError, TypeError, IndexError):
        raise TimeError(_guess(plain)) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)


def _guess(text: str) -> str:
    if re.match(r"\d{1,2}[/.]\d{1,2}[/.]\d{2,4}", text):
        return "its time begins with a day and a month in an order that only its writer knows; send RFC 3339"
    return "its time is a text of no known form; send RFC 3339, such as 2026-10-01T12:00:00Z"


# ---------------------------------------------------------------------------- events of ours

#: Fields that are times.
TIMES: Final = ("time", "feature_time", "observed_at", "start_time")
_IDS = ("id", "prediction_id", "request_id", "source", "session_id")
_NUMBERS = ("duration_s", "value", "count", "sum", "window_s", "gen_ai.evaluation.score.value")
_OF_ANSWER = ("value", "score")
_OF_USAGE = ("input_tokens", "output_tokens", "cost")


def eased(tree: dict[str, Any]) -> dict[str, Any]:
    """Return an event's tree with what is written otherwise than our types ask as they ask for it.

    Ids become texts, numbers in text become numbers where the field is one, times in text become times. What cannot
    be read stays as it is, for the decoder to name. Raise `TimeError` for a time that has no one reading.
    """
    found = dict(tree)
    for name in _IDS:
        if (value := found.get(name)) is not None and isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = str(value)
    for name in TIMES:
        if isinstance(value := found.get(name), str):
            found[name] = read_time(value)
    _numbers_in(found, _NUMBERS)
    for name, fields in (("prediction", _OF_ANSWER), ("usage", _OF_USAGE)):
        if isinstance(inner := found.get(name), dict):
            inner = dict(inner)
            _numbers_in(inner, fields)
            if isinstance(scores := inner.get("scores"), dict):
                inner["scores"] = dict(scores)
                _numbers_in(inner["scores"], tuple(scores))
            elif isinstance(scores, list):
                inner["scores"] = [_number(s) for s in scores]
            found[name] = inner
    model = found.get("model")
    if isinstance(model, dict) and isinstance(model.get("version"), float):
        found["model"] = {**model, "version": str(model["version"])}
    return found


def _numbers_in(tree: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if isinstance(value := tree.get(name), str):
            tree[name] = _number(value)


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.strip().lower() in ("nan", "infinity", "-infinity", "inf", "-inf", ""):
        return None  # a missing value, as where JSON has no word for it
    number = decimal(value)
    return value if number is None else number


# ---------------------------------------------------------------- Kafka Connect's JSON, Debezium's


def connect_payload(tree: Mapping[str, Any]) -> Any:
    """Return the payload of a record as Kafka Connect's JSON converter writes it, None where it is no such record.

    Decimals in base64 become numbers, and Debezium's times become ISO 8601, by the schema beside them [^1].

    References
    ----------
    [^1]: Apache Kafka 4.1, `org.apache.kafka.connect.data.Decimal`; Debezium 3.3, "Data type mappings".
    """
    if tree.keys() != {"schema", "payload"}:
        return None
    schema = tree["schema"]
    return _by_schema(tree["payload"], schema if isinstance(schema, Mapping) else {})


_DATES: Final = {
    "io.debezium.time.Timestamp": 1_000,
    "org.apache.kafka.connect.data.Timestamp": 1_000,
    "io.debezium.time.MicroTimestamp": 1,
}


def _by_schema(value: Any, schema: Mapping[str, Any]) -> Any:
    name = schema.get("name")
    if name == "org.apache.kafka.connect.data.Decimal" and isinstance(value, str):
        parameters = schema.get("parameters")
        scale = parameters.get("scale", 0) if isinstance(parameters, Mapping) else 0
        return _decimal_of(value, scale)
    if name == "io.debezium.data.VariableScaleDecimal" and isinstance(value, Mapping):
        return _decimal_of(value.get("value"), value.get("scale", 0))
    if name in _DATES and isinstance(value, int):
        return (_EPOCH + dt.timedelta(microseconds=value * _DATES[name])).isoformat()
    if name == "io.debezium.time.NanoTimestamp" and isinstance(value, int):
        return (_EPOCH + dt.timedelta(microseconds=value // 1000)).isoformat()
    if isinstance(value, dict) and isinstance(fields := schema.get("fields"), list):
        known = {f.get("field"): f for f in fields if isinstance(f, Mapping)}
        return {k: _by_schema(v, known.get(k, {})) for k, v in value.items()}
    if isinstance(value, list) and isinstance(items := schema.get("items"), Mapping):
        return [_by_schema(v, items) for v in value]
    return value


def _decimal_of(text: Any, scale: Any) -> Any:
    """Return the number that two's complement in base64 and a scale write; what is none stays."""
    try:
        digits = int.from_bytes(base64.b64decode(text, validate=True), "big", signed=True)
        return float(digits) / 10 ** int(scale)
    except (binascii.Error, TypeError, ValueError, OverflowError):
        return text
