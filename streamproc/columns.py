"""Predictions as columns: where the two ways to read them meet.

What the templates read is columns already; what msgspec decoded into objects is put into the same
columns, row by row, so that nothing behind this knows which way a record came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc import kernels
from streamproc.cells import IS_NULL, IS_TEXT
from streamproc.events import Half, LlmUsage, ModelRef, Outcome, Prediction, Usage, error_type, model_version, time_us
from streamproc.feature_schema import FeatureSchema, Matrix
from streamproc.kernels import I32, NO_LABEL, NO_TIME, U8, U64
from streamproc.segments import VERSION
from streamproc.signals import EMPTY, READ, certainty, outcome
from streamproc.signals import answered as answered_by
from streamproc.span_kinds import EMBEDDING
from streamproc.templates import MAX_ERROR, Templates, Walked
from streamproc.windows import latency_buckets

#: Layouts of rows whose features are not in cells: none at all, or a dict of them.
NO_FEATURES = -1
AS_DICT = -2

#: Longest value of a segment, in characters.
MAX_SEGMENT = 128


class Versions(Sequence[str | None]):
    """The model's version at each row, made into strings only when asked for."""

    def __init__(self, codes: I32, names: list[Any]) -> None:
        self.codes = codes
        self.names = names

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice | np.ndarray):
            return Versions(self.codes[at], self.names)
        return self.names[self.codes[at]]

    def __iter__(self) -> Iterator[str | None]:
        return map(self.names.__getitem__, self.codes.tolist())


class Features(Struct, gc=False):
    """The features of n rows, each either in cells by a layout of names or as a dict.

    layouts (n,): code of the names of a row's cells, NO_FEATURES or AS_DICT. cells and kinds (n, w) as
    `FeatureSchema.arrange` takes them. dicts (n,) objects, None where no row has one.
    """

    layouts: I32
    cells: F64
    kinds: U8
    dicts: npt.NDArray[np.object_] | None
    names: list[Any]  # of layouts

    def __len__(self) -> int:
        return len(self.layouts)

    def at(self, rows: Any) -> Features:
        """Return some of the rows."""
        dicts = None if self.dicts is None else self.dicts[rows]
        return Features(self.layouts[rows], self.cells[rows], self.kinds[rows], dicts, self.names)

    def _one_layout(self) -> int | None:
        first = self.layouts[0]
        return int(first) if (self.layouts == first).all() else None

    def any(self) -> bool:
        """Whether any row has features."""
        if self.layouts[0] >= 0:
            return True
        if (self.layouts == NO_FEATURES).all():
            return False
        if (self.layouts >= 0).any():
            return True
        return self.dicts is not None and any(self.dicts.tolist())

    def names_alike(self) -> tuple[str, ...] | None:
        """Return the names that all rows have in cells, None where they differ or are not in cells."""
        layout = self._one_layout()
        return self.names[layout] if layout is not None and layout >= 0 else None

    def named(self, usual: set[tuple[str, ...]]) -> Iterator[tuple[str, ...] | dict[str, Any] | None]:
        """Yield what `rows` does, but of a row of cells whose names are among the usual ones only these."""
        known = {layout: self.names[layout] for layout in np.unique(self.layouts).tolist() if layout >= 0}
        for layout, row in zip(self.layouts.tolist(), self.rows(), strict=True):
            yield known[layout] if layout >= 0 and known[layout] in usual else row

    def rows(self) -> Iterator[dict[str, Any] | None]:
        """Yield each row as a dict; numbers, nulls and texts are told apart, of a text only its length is kept."""
        for i, layout in enumerate(self.layouts.tolist()):
            if layout == AS_DICT:
                yield None if self.dicts is None else self.dicts[i]
            elif layout == NO_FEATURES:
                yield None
            else:
                names = self.names[layout]
                values = self.cells[i].tolist()
                kinds = self.kinds[i].tolist()
                yield {
                    name: None if kind == IS_NULL else "x" * (kind - IS_TEXT) if kind >= IS_TEXT else value
                    for name, value, kind in zip(names, values, kinds, strict=False)
                }

    def matrix(self, schema: FeatureSchema) -> Matrix:
        """Return the rows as `schema.matrix` would, had it been given dicts."""
        layout = self._one_layout()
        if layout is not None:
            if layout >= 0:
                return schema.arrange(self.names[layout], self.cells, self.kinds)
            return schema.matrix([None] * len(self) if self.dicts is None else self.dicts.tolist())
        whole = schema.empty(len(self))
        for layout in np.unique(self.layouts).tolist():
            if layout == NO_FEATURES:
                continue
            rows = np.nonzero(self.layouts == layout)[0]
            part = self.at(rows).matrix(schema)
            whole.values[rows], whole.missing[rows], whole.invalid[rows] = part.values, part.missing, part.invalid
            whole.given[rows], whole.words[rows] = part.given, part.words
        return whole


class PredictionColumns(Struct, gc=False):
    """n predictions, of a batch or of one model: all arrays (n,).

    times in microseconds; latency in seconds and values, nan for none; buckets of latency, -1 for none;
    labels, codes of names, NO_LABEL for none; failed, whether it has an error's type; versions; features;
    certainty (n, 2), confidence and entropy, nan for none; ids (n, 2), hashes of an id within its source and of
    the id alone, 0 for none; errors, codes of
    error_names, -1 for none; usage (n, 3), tokens in and out and cost, nan for none. These last four are
    None where no row has any. halves: the `Half` at each row, None where it is a whole prediction; llm: its
    `LlmUsage` or None; segments: its segment, a dict, or None; ages (n,): how old its features are, in seconds,
    nan for none. All are None where no row has one. answered (n,): READ, EMPTY, … as `signals.answered` has them; None
    where every row that did not fail has an answer.
    """

    times: I64
    latency: F64
    buckets: I32
    values: F64
    labels: I32
    failed: npt.NDArray[np.bool_]
    versions: Versions
    features: Features
    names: list[Any]  # of labels
    certainty: F64 | None
    ids: U64 | None
    errors: I32 | None
    error_names: list[Any]
    usage: F64 | None
    halves: npt.NDArray[np.object_] | None = None
    llm: npt.NDArray[np.object_] | None = None
    segments: npt.NDArray[np.object_] | None = None
    ages: F64 | None = None
    answered: U8 | None = None

    def __len__(self) -> int:
        return len(self.times)

    def dimension(self, name: str) -> list[str | None]:
        """Return each row's value of a dimension: of its segment, or else a feature of that name."""
        if name == VERSION:
            return list(self.versions)
        found: list[Any] = [None] * len(self)
        for many in (self.features.dicts, self.segments):  # a segment's own value goes over a feature's
            if many is not None:
                for i, one in enumerate(many.tolist()):
                    if one and (value := one.get(name)) is not None:
                        found[i] = value
        return [v if v is None else _segment_name(v) for v in found]

    def at(self, rows: Any) -> PredictionColumns:
        """Return some of the rows: a slice, indices or a mask."""
        return PredictionColumns(
            self.times[rows],
            self.latency[rows],
            self.buckets[rows],
            self.values[rows],
            self.labels[rows],
            self.failed[rows],
            self.versions[rows],
            self.features.at(rows),
            self.names,
            None if self.certainty is None else self.certainty[rows],
            None if self.ids is None else self.ids[rows],
            None if self.errors is None else self.errors[rows],
            self.error_names,
            None if self.usage is None else self.usage[rows],
            None if self.halves is None else self.halves[rows],
            None if self.llm is None else self.llm[rows],
            None if self.segments is None else self.segments[rows],
            None if self.ages is None else self.ages[rows],
            None if self.answered is None else self.answered[rows],
        )


def columns(
    walked: Walked, templates: Templates, stamps: I64, rows: Sequence[int], events: Sequence[Prediction]
) -> PredictionColumns:
    """Return a batch as columns: what was walked, and into its gaps at `rows` what was decoded.

    stamps (n,): the records' own times in microseconds, for events that have none. The arrays of
    `walked` are written to.
    """
    times, latency, values = walked.times, walked.latency, walked.values
    labels, versions, layouts = walked.labels, walked.versions, walked.layouts
    errors = walked.errors
    untimed = times == NO_TIME
    np.copyto(times, stamps, where=untimed)
    answered = np.full(len(times), READ, np.uint8)
    told = False  # whether any is something else
    dicts: npt.NDArray[np.object_] | None = None
    halves: npt.NDArray[np.object_] | None = None
    llm: npt.NDArray[np.object_] | None = None
    segments: npt.NDArray[np.object_] | None = None
    ages: F64 | None = None
    if rows:
        at = np.array(rows)
        times[at] = event_times(events, stamps[at])
        latency[at] = np.array([e.duration_s for e in events], np.float64)
        numbers, classes = outcomes(events)
        values[at] = np.nan if numbers is None else numbers
        code = templates.labels.code
        labels[at] = NO_LABEL if classes is None else [NO_LABEL if c is None else code(c) for c in classes]
        types = [error_type(e)[:MAX_ERROR] if _may_have_failed(e) else "" for e in events]
        failed = any(types)
        walked.failed[at] = [bool(t) for t in types] if failed else 0
        if failed:
            errors = np.full(len(times), -1, np.int32) if errors is None else errors
            code = templates.errors.code
            errors[at] = [code(t) if t else -1 for t in types]
        answered[at] = [_answered(e) for e in events]
        told = True
        untimed[at] = [e.time is None for e in events]
        walked.certainty[at] = certainty(events)
        walked.ids[at] = identities(events)
        walked.usage[at] = np.nan
        for row, event in zip(rows, events, strict=True):
            if (usage := event.usage or event.llm) is not None:
                walked.usage[row] = usage_row(usage)
        raw = [m.version if type(m := e.model) is ModelRef else model_version(e) for e in events]
        versions[at] = [templates.versions.code(v if v is None or type(v) is str else str(v)) for v in raw]
        layouts[at] = AS_DICT
        dicts = np.empty(len(times), object)
        dicts[at] = _objects([e.features for e in events])
        if Half in set(map(type, events)):
            halves = np.empty(len(times), object)
            halves[at] = _objects([e if type(e) is Half else None for e in events])
        used = [e.llm for e in events]
        if any(used):
            llm = np.empty(len(times), object)
            llm[at] = _objects(used)
        parts = [e.segment for e in events]
        if any(parts):
            segments = np.empty(len(times), object)
            segments[at] = _objects(parts)
        if any(e.feature_time is not None for e in events):
            ages = np.full(len(times), np.nan)
            since = [np.nan if e.feature_time is None else float(time_us(e.feature_time)) for e in events]
            ages[at] = (times[at] - np.array(since)) / 1e6
    with np.errstate(invalid="ignore"):
        latency[latency < 0] = np.nan
        walked.usage[walked.usage < 0] = np.nan
    nothing = np.isnan(values)
    if nothing.any():
        nothing &= (walked.chosen >= 0) & (labels < 0) & (walked.failed == 0)
        told |= bool(nothing.any())
        answered[nothing] = EMPTY
    identified = bool(walked.ids.any())
    if identified:
        _tell_apart(walked.ids, times, untimed, values, latency)
    return PredictionColumns(
        times,
        latency,
        latency_buckets(latency),
        values,
        labels,
        walked.failed.view(bool),
        Versions(versions, templates.versions.names),
        Features(layouts, walked.cells, walked.kinds, dicts, templates.layouts.names),
        templates.labels.names,
        None if np.isnan(walked.certainty).all() else walked.certainty,
        walked.ids if identified else None,
        errors,
        templates.errors.names,
        None if np.isnan(walked.usage).all() else walked.usage,
        halves,
        llm,
        segments,
        ages,
        answered if told and not (answered[walked.failed == 0] == READ).all() else None,
    )


def _tell_apart(ids: U64, times: I64, untimed: npt.NDArray[np.bool_], values: F64, latency: F64) -> None:
    """Add to the hash of each id within its source what tells a copy from another event of the same id.

    Clients reuse ids, and send those of sessions. A copy has the event's own time; of events without one, the same
    answer and latency.
    """
    content = times.view(np.uint64).copy()
    if untimed.any():
        bits = values.view(np.uint64) ^ (latency.view(np.uint64) << np.uint64(1))
        content[untimed] = bits[untimed]
    own = ids[:, 0]
    content += np.uint64(1)
    content *= np.uint64(0x9E3779B97F4A7C15)
    content ^= own
    content[own == 0] = 0
    ids[:, 0] = content


def _may_have_failed(event: Prediction) -> bool:
    return (
        event.error is not None
        or event.flat_error_type is not None
        or event.http_status is not None
        or event.status_code is not None
    )


def _answered(event: Prediction) -> int:
    answer = event.prediction
    if type(answer) is float or (type(answer) is Outcome and answer.value is not None and type(event) is Prediction):
        return READ
    return answered_by(event)


def usage_row(usage: Usage | LlmUsage) -> tuple[float, float, float]:
    """Return tokens in and out and cost, nan for what is not told: an answer of 0 tokens to 0 was not measured."""
    tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
    if tokens_in == 0 and not tokens_out:
        tokens_in = tokens_out = None
    if type(usage) is LlmUsage and usage.kind == EMBEDDING:
        tokens_out = None
    return tuple(np.nan if x is None else float(x) for x in (tokens_in, tokens_out, usage.cost))  # type: ignore[return-value]


def _segment_name(value: Any) -> str:
    text = value if type(value) is str else str(value)
    return text if len(text) <= MAX_SEGMENT else text[:MAX_SEGMENT]


def identities(events: Sequence[Prediction]) -> U64:
    """Return hashes of each event's id within its source and of its id alone, (n, 2), 0 where it has none."""
    found = hashed_ids([t for e in events for t in (e.id, e.source)])
    for row, event in enumerate(events):
        answer = event.prediction
        if type(answer) is Outcome and answer.rows > 1:
            found[row, 1] = 0  # a label of one row cannot be told from one of another: it is joined to none
    return found


def hashed_ids(names: Sequence[str]) -> U64:
    """Return what `identities` does, for ids and sources in turn."""
    texts = [t.encode("utf-8", "surrogatepass") for t in names]
    ends = np.fromiter(map(len, texts), np.int64, len(texts)).cumsum()
    found = np.empty((len(texts) // 2, 2), np.uint64)
    kernels.hash_identities(np.frombuffer(bytearray(b"".join(texts) + bytes(8)), np.uint8), ends, found)
    return found


def _objects(items: list[Any]) -> npt.NDArray[np.object_]:
    array = np.empty(len(items), object)
    array[:] = items
    return array


def event_times(events: Sequence[Any], stamps: I64) -> I64:
    """Return event times in microseconds; the record's own where an event has none."""
    times = [e.time for e in events]
    try:
        if None not in times and all([t.tzinfo is not None for t in times]):  # noqa: C419 (faster)
            seconds = np.array([t.timestamp() for t in times])
            return np.rint(seconds * 1e6).astype(np.int64)
    except AttributeError:
        pass  # some are numbers
    return np.array(
        [int(s) if t is None else time_us(t) for t, s in zip(times, stamps, strict=True)],
        np.int64,
    )


def outcomes(events: Sequence[Prediction]) -> tuple[F64 | None, list[str | None] | None]:
    """Return the numbers answered, nan where there is none, and the classes; None where no event has any."""
    answers = [e.prediction for e in events]
    if all([type(a) is Outcome for a in answers]) and not any([a.scores for a in answers]):  # type: ignore[union-attr]  # noqa: C419
        numbers: list[float | None] = [a.value if a.value is not None else a.score for a in answers]  # type: ignore[union-attr]
        raw = [a.label for a in answers]  # type: ignore[union-attr]
        labels: list[str | None] = [(a or None) if type(a) is str or a is None else str(a) for a in raw]
    else:
        both = [outcome(e) for e in events]
        numbers, labels = [b[0] for b in both], [b[1] for b in both]
    values = np.array(numbers, np.float64)
    return (
        None if np.isnan(values).all() else values,
        None if labels.count(None) == len(labels) else labels,
    )
