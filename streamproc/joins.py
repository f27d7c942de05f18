"""What is sent on to be joined: rows of predictions and of labels, packed; pure.

The order between two topics is no log: a join that read both could not be repeated. So the pipelines of
both send on what a join needs to one topic, keyed by model, and there one order holds for ever.

A record has the rows of one model from one batch, as columns: 36 bytes a row. A crash or a zombie
sends rows again, cut otherwise perhaps. Each record so says which offsets of its source it covers: those after
`after`, up to its last row's. The receiver drops rows of offsets that are covered already, and a record that
never arrived leaves a gap, which its copy fills.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc.coercion import decimal, is_fraction
from streamproc.columns import PredictionColumns, hashed_ids
from streamproc.decoding import OwnDecoder
from streamproc.events import Label, ModelRef, time_us
from streamproc.kernels import F32, U16, U32, U64

__all__ = [
    "NEGATIVE",
    "NO_CLASS",
    "POSITIVE",
    "JoinDecoder",
    "Rows",
    "class_hash",
    "of_labels",
    "of_predictions",
]

#: Format of a record; others are refused by name.
FORMAT = 1

#: Rows of one record at most: with the longest of names it is still below the megabyte that brokers take.
MAX_ROWS = 2000
_MAX_VERSION = 64

#: Classes of predictions that are sent on with their names in one record: enough to say what a model answers.
_MAX_NAMED = 16

#: The class of an answer that has none.
NO_CLASS = 0

Side = Literal["predictions", "labels"]


@lru_cache(maxsize=4096)
def class_hash(text: str) -> int:
    """Return what stands for a class: 32 bits, never 0.

    A class is the same however it is written: `True`, `1`, `1.0` and ` 1`; `-1` and `-1.0`.

    >>> class_hash("1.0") == class_hash("True") == class_hash("1") != class_hash("01")
    True
    """
    return zlib.crc32(canonical(text).encode("utf-8", "surrogatepass")) or 1


_BOOLEANS = {"True": "1", "true": "1", "TRUE": "1", "False": "0", "false": "0", "FALSE": "0"}


def canonical(text: str) -> str:
    """Return the one way a class is written: whole numbers without a fraction, booleans as 1 and 0."""
    text = text.strip()
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[:1] in "+-0123456789." and is_fraction(text):
        number = float(text)
        if number.is_integer() and abs(number) < LARGEST_CLASS:
            return str(int(number))
    return text


#: A whole number beyond is no class, and a double no longer tells it from its neighbours.
LARGEST_CLASS = 1e15


def whole_classes(values: F64) -> U32:
    """Return the classes that whole numbers are, of (n,) values; NO_CLASS for other numbers and for nan."""
    found = np.zeros(len(values), np.uint32)
    with np.errstate(invalid="ignore"):
        whole = (np.abs(values) < LARGEST_CLASS) & (values == np.floor(values))
    for value in np.unique(values[whole]).tolist():
        found[values == value] = class_hash(str(int(value)))
    return found


#: The classes that a boolean label, or one of 0 or 1, has; and the negative one where the classes are -1 and 1.
POSITIVE, NEGATIVE, MINUS_ONE = class_hash("1"), class_hash("0"), class_hash("-1")

#: Of shares in a list: the place of the best, by what stands for its class.
PLACES = {class_hash(f"#{place}"): place for place in range(256)}


class Rows(Struct, gc=False):
    """n predictions, or n labels, of one model from one partition of one source; all arrays (n,).

    keys, hashes of the prediction's id; times in microseconds; values, nan for none; classes, NO_CLASS for
    none; offsets in the source, not decreasing; scores, how sure the model was of its answer, nan where it
    does not tell; versions, codes of names; words, what classes are called. loose: put together from halves, so that
    several may share an offset.
    """

    side: Side
    topic: str
    partition: int
    after: int  # the last offset of the source whose row, if it had any, was sent on before
    loose: bool
    keys: U64
    times: I64
    values: F64
    classes: U32
    offsets: I64
    scores: F32
    versions: U16
    names: list[str | None]
    words: dict[int, str] = {}  # names of classes

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: Any) -> Rows:
        """Return some of the rows."""
        return Rows(
            self.side,
            self.topic,
            self.partition,
            self.after,
            self.loose,
            self.keys[rows],
            self.times[rows],
            self.values[rows],
            self.classes[rows],
            self.offsets[rows],
            self.scores[rows],
            self.versions[rows],
            self.names,
            self.words,
        )

    def pack(self, model: str) -> list[bytes]:
        """Return the rows as records of at most MAX_ROWS."""
        records, after = [], self.after
        for start in range(0, len(self), MAX_ROWS):
            part = self.at(slice(start, start + MAX_ROWS))
            codes, own = _coded(part.versions)
            base = int(part.offsets[0])
            records.append(
                _encode(
                    _Packed(
                        FORMAT,
                        model,
                        part.side,
                        part.topic,
                        part.partition,
                        after,
                        part.loose,
                        base,
                        [n if (n := self.names[c]) is None else n[:_MAX_VERSION] for c in codes.tolist()],
                        part.keys.astype("<u8").tobytes(),
                        part.times.astype("<i8").tobytes(),
                        part.values.astype("<f8").tobytes(),
                        part.classes.astype("<u4").tobytes(),
                        (part.offsets - base).astype("<u4").tobytes(),
                        b"" if part.side == "labels" else part.scores.astype("<f4").tobytes(),
                        b"" if len(codes) == 1 else own.astype("<u2").tobytes(),
                        # In the order of the log, so that no cut decides which of too many are known by name.
                        {c: self.words[c] for c in dict.fromkeys(part.classes.tolist()) if c in self.words},
                    )
                )
            )
            after = int(part.offsets[-1])
        return records


class _Packed(Struct, array_like=True, gc=False):
    format: int
    model: str
    side: Side
    topic: str
    partition: int
    after: int
    loose: bool
    base: int
    names: list[str | None]
    keys: bytes
    times: bytes
    values: bytes
    classes: bytes
    offsets: bytes
    scores: bytes
    versions: bytes
    words: dict[int, str] = {}  # records of before have none


_encode = msgspec.msgpack.Encoder().encode


def _coded(codes: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the codes there are, and which of them each is; one is what most models have."""
    if (codes == codes[0]).all():
        return codes[:1], np.zeros(len(codes), np.uint16)
    return np.unique(codes, return_inverse=True)


def of_predictions(
    what: PredictionColumns, offsets: I64, *, topic: str, partition: int, after: int, loose: bool
) -> Rows | None:
    """Return the predictions that a label can be joined to, those with an id and an answer; None for none."""
    if what.ids is None:
        return None
    fit = (what.ids[:, 1] != 0) & ~what.failed & ((what.labels >= 0) | np.isfinite(what.values))
    if not fit.all():
        if not fit.any():
            return None
        what, offsets = what.at(fit), offsets[fit]
    ids: Any = what.ids  # which some of them have, so it is there
    n = len(what)
    classes = np.zeros(n, np.uint32)
    words: dict[int, str] = {}
    for code in set(what.labels.tolist()):
        if code >= 0:
            name = str(what.names[code])
            classes[what.labels == code] = found = class_hash(name)
            if len(words) < _MAX_NAMED:
                words.setdefault(found, name[:_MAX_VERSION])
    codes, own = _coded(what.versions.codes)
    return Rows(
        "predictions",
        topic,
        partition,
        after,
        loose,
        np.ascontiguousarray(ids[:, 1]),
        what.times,
        what.values,
        classes,
        offsets,
        np.full(n, np.nan, np.float32) if what.certainty is None else what.certainty[:, 0].astype(np.float32),
        own.astype(np.uint16),
        [what.versions.names[c] for c in codes.tolist()],
        words,
    )


def of_labels(
    events: Sequence[Label], times: I64, latest: I64, offsets: I64, *, topic: str, partition: int, after: int
) -> Rows | None:
    """Return labels as rows, None for none.

    times and latest (n,): the labels' own times, and those that an `observed_at` may not be beyond.
    """
    told = (e.prediction_id and e.evaluation is None and (e.label is not None or e.value is not None) for e in events)
    fit = [i for i, t in enumerate(told) if t]
    if not fit:
        return None
    events, times, offsets = [events[i] for i in fit], times[fit].copy(), offsets[fit]
    for i, event in enumerate(events):
        if event.observed_at is not None and (observed := time_us(event.observed_at)) <= latest[fit[i]]:
            times[i] = observed
    n = len(events)
    words: dict[int, str] = {}
    for event in events:
        if event.label is not None:
            words.setdefault(class_hash(str(event.label)), str(event.label)[:_MAX_VERSION])
    return Rows(
        "labels",
        topic,
        partition,
        after,
        False,
        np.ascontiguousarray(hashed_ids([t for e in events for t in (e.prediction_id, "")])[:, 1]),
        times,
        np.array([_number_of(e) for e in events], np.float64),
        np.array([NO_CLASS if e.label is None else class_hash(str(e.label)) for e in events], np.uint32),
        offsets,
        np.full(n, np.nan, np.float32),
        np.zeros(n, np.uint16),
        [None],
        words,
    )


def _number_of(event: Label) -> float:
    """Return the number that a label says, as its value or written as its class; nan for none."""
    if event.value is not None:
        return event.value
    if isinstance(event.label, str):
        number = decimal(event.label)
        return np.nan if number is None else number
    return np.nan if event.label is None else float(event.label)


class Received(Struct, gc=False):
    """A record of rows as an event, of the time of its record."""

    model: ModelRef
    rows: Rows
    time: None = None


class JoinDecoder(OwnDecoder):
    """Decode what was sent on."""

    what = "rows to be joined"

    def __init__(self) -> None:
        self._decode = msgspec.msgpack.Decoder(_Packed).decode

    def read(self, value: bytes) -> Received:
        """Return the rows in a record's value."""
        packed = self._decode(value)
        if packed.format != FORMAT:
            raise ValueError(f"rows of format {packed.format}; this program reads {FORMAT}")
        keys = np.frombuffer(packed.keys, "<u8").astype(np.uint64)
        n = len(keys)
        versions = (
            np.frombuffer(packed.versions, "<u2").astype(np.uint16) if packed.versions else np.zeros(n, np.uint16)
        )
        scores = (
            np.frombuffer(packed.scores, "<f4").astype(np.float32) if packed.scores else np.full(n, np.nan, np.float32)
        )
        rows = Rows(
            packed.side,
            packed.topic,
            packed.partition,
            packed.after,
            packed.loose,
            keys,
            np.frombuffer(packed.times, "<i8").astype(np.int64),
            np.frombuffer(packed.values, "<f8").astype(np.float64),
            np.frombuffer(packed.classes, "<u4").astype(np.uint32),
            np.frombuffer(packed.offsets, "<u4").astype(np.int64) + packed.base,
            scores,
            versions,
            packed.names,
            packed.words,
        )
        if n == 0 or {len(c) for c in (rows.times, rows.values, rows.classes, rows.offsets, scores, versions)} != {n}:
            raise ValueError("columns of unequal length, or none")
        if int(versions.max()) >= len(packed.names):
            raise ValueError("a version without a name")
        return Received(ModelRef(packed.model), rows)
