"""Tumbling windows in event time, closed by a watermark.

A window [k·size, (k+1)·size) closes when the model's watermark, its greatest event time less the
allowed lateness, reaches its end. An event whose window has closed is late: counted, never mixed
in. Every answer depends on the order of the log alone, not on how it was cut into batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from detectors.protocol import F64, I64
from streamproc import kernels
from streamproc.reference import Bins

#: Latencies are counted in buckets of ratio GAMMA from FLOOR_S: a quantile is within 1% of the truth
#: (a DDSketch of fixed range; Masson, Rim, Lee 2019).
GAMMA = 1.02
FLOOR_S = 1e-6
BUCKETS = 1200  # up to 2.1e4 s

_CEILING_S = 1e8  # well within the last bucket

_LOG_GAMMA = float(np.log(GAMMA))

#: Empty windows reported for one gap: enough to see a drop to nothing, without a flood after a week.
MAX_EMPTY = 60


def latency_buckets(seconds: F64, *, floor_s: float = FLOOR_S) -> npt.NDArray[np.int32]:
    """Return the bucket of each time, -1 for nan; those below the floor count as it."""
    with np.errstate(invalid="ignore"):
        ratio = np.log(np.clip(seconds, floor_s, _CEILING_S) / floor_s) / _LOG_GAMMA
    return np.nan_to_num(np.minimum(ratio, BUCKETS - 1), copy=False, nan=-1.0).astype(np.int32)


def quantile(counts: I64, q: float, *, floor_s: float = FLOOR_S) -> float:
    """Return the q-quantile in seconds of times counted in (BUCKETS,) from a floor, nan where there are none."""
    total = int(counts.sum())
    if total == 0:
        return float("nan")
    bucket = int(np.searchsorted(np.cumsum(counts), max(1, int(np.ceil(q * total)))))
    return float(floor_s * GAMMA ** (bucket + 0.5))


def sparse(counts: I64 | None) -> list[Any] | None:
    """Return counts without the many buckets that are empty."""
    if counts is None:
        return None
    at = np.nonzero(counts)[0]
    return [at.astype(np.int16), counts[at]]


def dense(state: list[Any] | None) -> I64 | None:
    """Return what `sparse` was given."""
    if state is None:
        return None
    counts = np.zeros(BUCKETS, np.int64)
    counts[state[0]] = state[1]
    return counts


class Sums(Struct, gc=False):
    """How many values of each of k columns there were, and their sums; (k,) each."""

    counts: I64
    totals: F64

    @classmethod
    def of(cls, columns: int) -> Sums:
        """Build for columns of which nothing came yet."""
        return cls(np.zeros(columns, np.int64), np.zeros(columns))

    def snapshot(self) -> list[list[Any]] | None:
        """Return the state as lists; None where nothing was counted, as where there are no sums."""
        return [self.counts.tolist(), self.totals.tolist()] if self.counts.any() else None

    @classmethod
    def restored(cls, state: list[list[Any]] | None) -> Sums | None:
        """Build from what `snapshot` gave."""
        return None if state is None else cls(np.array(state[0], np.int64), np.array(state[1]))


#: Agents or tools of one window that failures are told by.
_MAX_PARTS = 50


class PartTally(Struct):
    """What spans of one kind (agents, tools, retrievals, embeddings) came to in a window."""

    count: int = 0
    failed: int = 0
    scored: int = 0
    score: float = 0.0  # sum of the best documents'
    failed_by: dict[str, int] = field(default_factory=dict)
    latency: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BUCKETS, np.int64))

    def add(self, name: str | None, failed: bool, latency_s: float, score: float | None) -> None:
        """Add one span; latency_s is nan where it is not known, score None."""
        self.count += 1
        if failed:
            self.failed += 1
            name = name if name is not None else "(unnamed)"
            if name not in self.failed_by and len(self.failed_by) >= _MAX_PARTS:
                name = "(other)"
            self.failed_by[name] = self.failed_by.get(name, 0) + 1
        if latency_s >= 0.0:
            self.latency[latency_buckets(np.array([latency_s]))[0]] += 1
        if score is not None:
            self.scored += 1
            self.score += score

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [self.count, self.failed, self.scored, self.score, dict(self.failed_by), sparse(self.latency)]

    @classmethod
    def restored(cls, state: list[Any]) -> PartTally:
        """Build from what `snapshot` gave."""
        *counts, latency = state
        found = cls(*counts)
        if (whole := dense(latency)) is not None:
            found.latency = whole
        return found


class Accumulator(Struct):
    """What one open window has seen. Arrays are allocated when first needed."""

    index: int
    offset_first: int
    offset_last: int
    count: int = 0
    errors: int = 0
    value_n: int = 0
    value_sum: float = 0.0
    feature_rows: int = 0
    version: str | None = None
    latency: npt.NDArray[np.int64] | None = None
    classes: dict[str, int] = {}
    missing: npt.NDArray[np.int64] | None = None
    invalid: npt.NDArray[np.int64] | None = None
    certainty: Sums | None = None  # of confidence and of entropy
    usage: Sums | None = None  # of tokens in, tokens out and cost
    identified: int = 0
    repeated: int = 0
    errors_by: dict[str, int] = {}
    answers: Bins | None = None
    features: Bins | None = None
    words: I64 | None = None  # categorical values, column by column, and those never learned
    unseen: I64 | None = None
    judged: bool = False  # has a class that came after classes were learned
    calls: Sums | None = None  # of language models: of each of `genai.FACTS` but the last
    first_tokens: I64 | None = None  # times to the first token, in buckets as latency
    ages: Sums | None = None
    moments: F64 | None = None  # as `reference.Moments` has them
    scores: dict[str, list[float]] = {}  # of evaluations, by name: how many and their sum
    by_answer: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # by `signals.NOT_TOLD`, `READ`, …
    parts: dict[str, PartTally] = field(default_factory=dict)  # by `span_kinds.PARTS`

    def tally(
        self,
        index: I64,
        late: npt.NDArray[np.bool_],
        *,
        values: F64,
        buckets: npt.NDArray[np.int32],
        failed: npt.NDArray[np.bool_],
    ) -> None:
        """Add what (n,) events have that is this window's: values, nan for none; latencies; failures.

        The mean's sum is in order, so that it has the same bits however the stream is cut.
        """
        latency = np.zeros(BUCKETS, np.int64) if self.latency is None else self.latency
        errors, value_n, self.value_sum, latency_n = kernels.tally(
            index, late, self.index, values, buckets, failed, latency, self.value_sum
        )
        self.errors += errors
        self.value_n += value_n
        if latency_n:
            self.latency = latency

    def add(self, sums: Sums | None, index: I64, late: npt.NDArray[np.bool_], columns: F64) -> Sums:
        """Return sums, of none as yet for None, with what of (n, k) columns, nan for none, is this window's."""
        sums = Sums.of(columns.shape[1]) if sums is None else sums
        kernels.add_columns(index, late, self.index, columns, sums.counts, sums.totals)
        return sums

    def add_calls(self, index: I64, late: npt.NDArray[np.bool_], facts: F64) -> None:
        """Add what calls of language models came to, (n, k) with nan for none and a time in s last."""
        self.calls = self.add(self.calls, index, late, np.ascontiguousarray(facts[:, :-1]))
        times = facts[(index == self.index) & ~late, -1]
        if len(times := times[~np.isnan(times)]):
            counts = np.bincount(latency_buckets(times), minlength=BUCKETS)
            self.first_tokens = counts if self.first_tokens is None else self.first_tokens + counts

    def add_values(self, values: F64) -> None:
        """Add numbers to the mean: what `tally` does, for a whole array and without a compiled loop."""
        values = np.clip(values, -kernels.LARGEST, kernels.LARGEST)
        self.value_n += len(values)
        self.value_sum = float(np.cumsum(np.concatenate(([self.value_sum], values)))[-1])

    def add_latencies(self, seconds: F64) -> None:
        """Count latencies in seconds, none of them nan: what `tally` does, likewise."""
        if self.latency is None:
            self.latency = np.zeros(BUCKETS, np.int64)
        self.latency += np.bincount(latency_buckets(seconds), minlength=BUCKETS)

    def latency_quantile(self, q: float) -> float:
        """Return the q-quantile of latency in seconds, nan where none was counted."""
        return float("nan") if self.latency is None else quantile(self.latency, q)

    def latency_n(self) -> int:
        """Return how many latencies were counted."""
        return 0 if self.latency is None else int(self.latency.sum())

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree; the many empty buckets are left out."""
        return {
            "scalars": [
                self.index,
                self.offset_first,
                self.offset_last,
                self.count,
                self.errors,
                self.value_n,
                self.value_sum,
                self.feature_rows,
                self.version,
            ],
            "more": [self.identified, self.repeated, self.judged],
            "certainty": None if self.certainty is None else self.certainty.snapshot(),
            "usage": None if self.usage is None else self.usage.snapshot(),
            "errors_by": dict(self.errors_by),
            "answers": None if self.answers is None else self.answers.snapshot(),
            "features": None if self.features is None else self.features.snapshot(),
            "words": self.words,
            "unseen": self.unseen,
            "latency": sparse(self.latency),
            "calls": None if self.calls is None else self.calls.snapshot(),
            "first_tokens": sparse(self.first_tokens),
            "ages": None if self.ages is None else self.ages.snapshot(),
            "moments": None if self.moments is None else self.moments.copy(),
            "scores": {name: list(found) for name, found in self.scores.items()},
            "by_answer": list(self.by_answer),
            "parts": {kind: tally.snapshot() for kind, tally in sorted(self.parts.items())},
            "classes": dict(self.classes),
            "missing": self.missing,
            "invalid": self.invalid,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Accumulator:
        """Build from what `snapshot` gave."""
        self = cls(*state["scalars"])
        self.latency = dense(state["latency"])
        self.first_tokens = dense(state["first_tokens"])
        for name in ("certainty", "usage", "calls", "ages"):
            setattr(self, name, Sums.restored(state[name]))
        self.moments = state["moments"]
        self.scores = {name: list(found) for name, found in state["scores"].items()}
        self.by_answer = list(state["by_answer"])
        self.parts = {kind: PartTally.restored(tally) for kind, tally in state["parts"].items()}
        self.classes = dict(state["classes"])
        self.missing, self.invalid = state["missing"], state["invalid"]
        self.identified, self.repeated, self.judged = state["more"]
        self.errors_by = dict(state["errors_by"])
        self.answers = None if state["answers"] is None else Bins.restored(state["answers"])
        self.features = None if state["features"] is None else Bins.restored(state["features"])
        self.words, self.unseen = state["words"], state["unseen"]
        return self


#: By so much a clock may go on with one record, whatever is usual: as far as records of one moment are apart.
SLACK_US = 10_000_000

#: Of a clock that follows any step at once.
ANY_STEP = 1 << 61


def new_clock() -> I64:
    """Return the state of a clock that has seen no time yet; see `kernels.step_clock`."""
    clock = np.zeros(kernels.CLOCK_SIZE, np.int64)
    clock[kernels.LATEST] = kernels.NO_TIME
    return clock


class Windows:
    """The open windows of one model.

    A model that falls silent would keep its last window open for ever. So the watermark also moves
    with the partition's arrival clock (Kafka's record time), once nothing of the model has arrived
    for `idle_us`: by as much as the silence exceeds it.
    """

    def __init__(
        self,
        *,
        size_us: int,
        lateness_us: int,
        idle_us: int,
        of: type[Accumulator] = Accumulator,
        slack_us: int = SLACK_US,
    ) -> None:
        self.of = of
        self.slack_us = slack_us
        self.size_us = size_us
        self.lateness_us = lateness_us
        self.idle_us = idle_us
        self.clock = new_clock()  # of events alone
        self.progress_us: int | None = None  # of events, or of the silence after them
        self.last_arrival_us = 0
        self.closed_before: int | None = None  # every window of a lower index has closed
        self.last_full: int | None = None  # the last closed window that was not empty
        self.open: dict[int, Accumulator] = {}
        self.late = 0

    @property
    def max_event_us(self) -> int | None:
        """The greatest event time that a quorum of events has come to, in microseconds; None before the first."""
        latest = int(self.clock[kernels.LATEST])
        return None if latest == kernels.NO_TIME else latest

    def advance(self, times: I64, arrivals: I64, clock_before: I64) -> I64:
        """Take in events' times; return for each the progress that its lateness is measured by.

        times, arrivals: (n,) event time and arrival clock at each event. clock_before: (n,) the
        arrival clock just before each event, moved by the partition's other models too.
        """
        progress = np.empty(len(times), np.int64)
        kernels.follow(
            times,
            arrivals,
            clock_before,
            self.clock,
            max(self.lateness_us, self.slack_us),
            kernels.NO_TIME if self.progress_us is None else self.progress_us,
            self.last_arrival_us,
            self.idle_us,
            progress,
        )
        self.progress_us = int(progress[-1])
        self.last_arrival_us = int(arrivals[-1])
        return progress

    def idle(self, clock_us: int) -> None:
        """Let the silence up to `clock_us` on the arrival clock move the watermark."""
        if self.max_event_us is None or self.progress_us is None:
            return
        silence = clock_us - self.last_arrival_us - self.idle_us
        if silence > 0:
            self.progress_us = max(self.progress_us, self.max_event_us + silence)

    def assign(self, times: I64, progress: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
        """Return the window index of each event, and whether it comes too late for it."""
        return self.place(times, progress)[:2]

    def place(self, times: I64, progress: I64) -> tuple[I64, npt.NDArray[np.bool_], bool]:
        """Return the window index of each event, whether it comes too late, and if one takes them all."""
        index, late = np.empty(len(times), np.int64), np.empty(len(times), np.bool_)
        # An event's own time cannot close its own window, so `progress` may include it.
        count, alike = kernels.place(times, progress, self.size_us, self.lateness_us, index, late)
        self.late += count
        return index, late, alike and count == 0

    def at(self, index: int, offset: int) -> Accumulator:
        """Return the open window of that index, opening it where need be."""
        window = self.open.get(index)
        if window is None:
            window = self.open[index] = self.of(index, offset, offset)
        return window

    def close(self) -> list[Accumulator]:
        """Close what the watermark has passed, in order of time, empty windows between them too."""
        if self.progress_us is None:
            return []
        through = (self.progress_us - self.lateness_us) // self.size_us  # windows below it are over
        start = min(self.open, default=None) if self.closed_before is None else self.closed_before
        if start is None or through <= start:
            return []
        closed: list[Accumulator] = []
        full = sorted(i for i in self.open if i < through)
        for k, index in enumerate([*full, through]):
            empty_from = start if self.last_full is None else self.last_full + 1
            last_empty = index if self.last_full is None else min(index, self.last_full + 1 + MAX_EMPTY)
            for gap in range(max(start, empty_from), last_empty):
                closed.append(self.of(gap, -1, -1))
            if k < len(full):
                closed.append(self.open.pop(index))
                self.last_full = index
        self.closed_before = through
        return closed

    def due_us(self) -> int | None:
        """Return the arrival clock at which silence would close the next window, None for never."""
        end_us = self.next_end_us()
        return None if end_us is None else self.reached_us(end_us)

    def reached_us(self, event_us: int) -> int | None:
        """Return the arrival clock at which silence would bring the progress to `event_us`, None for never."""
        if self.max_event_us is None:
            return None
        return self.last_arrival_us + self.idle_us + max(0, event_us - self.max_event_us)

    def next_end_us(self) -> int | None:
        """Return the progress at which the next window closes, None for none."""
        if self.progress_us is None:
            return None
        if self.open:
            index = min(self.open)
        elif (
            self.closed_before is not None
            and self.last_full is not None
            and self.closed_before <= self.last_full + MAX_EMPTY
        ):
            index = self.closed_before
        else:
            return None
        if (
            self.closed_before is not None
            and self.last_full is not None
            and self.closed_before <= self.last_full + MAX_EMPTY
        ):
            index = min(index, self.closed_before)
        return (index + 1) * self.size_us + self.lateness_us

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "clock": self.clock.copy(),
            "scalars": [
                self.progress_us,
                self.last_arrival_us,
                self.closed_before,
                self.last_full,
                self.late,
            ],
            "open": [w.snapshot() for _, w in sorted(self.open.items())],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `snapshot` gave."""
        self.clock = state["clock"].copy()
        (
            self.progress_us,
            self.last_arrival_us,
            self.closed_before,
            self.last_full,
            self.late,
        ) = state["scalars"]
        self.open = {w.index: w for w in map(self.of.restored, state["open"])}
