"""Requests and responses that come as records of their own, put together into predictions.

The first half of a pair waits for the other. What waits is state: it is bounded, and what is given up
on is given up on at a moment of the arrival clock that the log alone decides, so that neither the cut
of a stream nor a restart changes what comes of it.

- Both halves: a prediction at the time of the response, its latency the difference of their times.
- A request that waited for the timeout: a failure, once the model has been seen to respond. Before, it
  is a prediction without an answer: a logger may be set to log requests only.
- A response that waited: an answer without a latency. Where responses waited in vain and no request was
  ever seen they wait no more: a logger may be set to log responses only.
- A copy of what came before, or of what was given up on, is dropped. Clients reuse ids, and send those of sessions: a
  copy has the same time and content; a request like one that was answered counts as a copy only if no response comes,
  and only until the model's ids are known to be reused.

What is given up on counts when it is given up on: it would else be late for every window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import I64
from streamproc.columns import AS_DICT, Features, PredictionColumns, Versions, usage_row
from streamproc.events import LlmUsage
from streamproc.kernels import NO_LABEL
from streamproc.signals import NOT_TOLD, READ
from streamproc.windows import latency_buckets

#: Bytes of features and labels that wait, at most: a model's state must stay small enough to be stored.
MAX_HELD = 5_000_000


class Waiting(Struct, gc=False):
    """One half whose other has not come; arrival on the arrival clock, both times in microseconds."""

    request: bool
    time_us: int
    arrival_us: int
    value: float
    label: Any
    failed: bool
    version: str | None
    features: dict[str, Any] | None
    llm: Any
    id: int = 0  # hash of the id that both halves share
    answered: int = 0  # as `signals.answered` has it
    error: str = ""  # its type, where it failed
    certainty: tuple[float, float] = (np.nan, np.nan)
    content: int = 0  # hash of all it says but its time
    key: int = 0  # of its exchange
    doubtful: bool = False  # a request like one of the same id before: a copy, if no response comes


class Answered(Struct, gc=False):
    """A prediction that was put together, or given up on, and where it stands in the log."""

    time_us: int
    arrival_us: int
    before_us: int
    offset: int
    latency_s: float
    value: float
    label: Any
    failed: bool
    version: str | None
    features: dict[str, Any] | None
    llm: Any
    id: int
    answered: int
    error: str
    certainty: tuple[float, float]


class Joined(Struct, gc=False):
    """Predictions in the order in which they became known, with what the log says of each; all (n,)."""

    what: PredictionColumns
    arrivals: I64
    before: I64
    offsets: I64
    made: npt.NDArray[np.bool_]  # of halves; the others came as they are


class Exchanges:
    """What waits, and what is over, of one model."""

    def __init__(self, *, timeout_us: int, limit: int) -> None:
        self.timeout_us = timeout_us
        self.limit = limit
        # By a hash of what an exchange goes by: of ids as long as UUIDs a state would be mostly ids.
        self.waiting: dict[int, Waiting] = {}  # by a number, in the order of arrival
        self.queues: dict[int, list[int]] = {}  # by exchange: the numbers of what waits, all of one side
        self.over: dict[int, Over] = {}  # by exchange, in the order in which they came to their end
        self.following = 0  # the next number
        self.reused = False  # whether ids are known to come again for other requests
        self.held = 0  # bytes of features and labels that wait
        self.requests = self.responses = False  # whether any was ever seen
        self.alone = False  # whether responses are known to come without requests
        self.offset = -1  # of the last record
        self.unanswered = 0
        self.evicted = 0
        self.repeated = 0

    def __bool__(self) -> bool:
        return bool(self.waiting or self.over)

    def due_us(self) -> int | None:
        """Return the arrival clock at which what waits longest is given up on, None where nothing waits."""
        for waiting in self.waiting.values():
            return waiting.arrival_us + self.timeout_us
        return None

    def join(self, what: PredictionColumns, arrivals: I64, before: I64, offsets: I64) -> Joined:
        """Take records of the model in the order of the log; return the predictions that they complete."""
        steps: list[int | Answered] = []
        halves = [None] * len(what) if what.halves is None else what.halves.tolist()
        rows = zip(halves, arrivals.tolist(), before.tolist(), offsets.tolist(), strict=True)
        for i, (half, arrival, earlier, offset) in enumerate(rows):
            self._expire(arrival, steps)
            self._forget(arrival)
            if half is None:
                steps.append(i)
                continue
            self.offset = offset
            found = self._take(key_of(half.exchange), _waiting(what, i, half, arrival), earlier, offset)
            if found is not None:
                steps.append(found)
            while len(self.waiting) > self.limit:
                self.evicted += 1
                if (given_up := self._give_up(next(iter(self.waiting)), arrival, earlier)) is not None:
                    steps.append(given_up)
        return _columns(what, arrivals, before, offsets, steps)

    def expired(self, clock_us: int) -> Joined | None:
        """Let the arrival clock pass without a record; return what is given up on by then, None for nothing."""
        steps: list[int | Answered] = []
        self._expire(clock_us, steps)
        if not steps:
            return None
        none = np.empty(0, np.int64)
        return _columns(_NOTHING, none, none, none, steps)

    def _expire(self, clock_us: int, steps: list[int | Answered]) -> None:
        while (due := self.due_us()) is not None and due <= clock_us:
            self._forget(due)
            if (found := self._give_up(next(iter(self.waiting)), due, due)) is not None:
                steps.append(found)

    def _forget(self, clock_us: int) -> None:
        # Only at a record, or at an end: when else the clock is looked at depends on the cut.
        while self.over:
            key = next(iter(self.over))
            if self.over[key].at_us + self.timeout_us > clock_us:
                return
            del self.over[key]

    def _take(self, key: int, half: Waiting, before_us: int, offset: int) -> Answered | None:
        if half.request:
            self.requests, self.alone = True, False
        else:
            self.responses = True
        over, queue = self.over.get(key), self.queues.get(key, [])
        oldest = self.waiting[queue[0]] if queue else None
        if self._is_copy(half, over, queue):
            self.repeated += 1
            return None
        if oldest is not None and oldest.request != half.request:
            self._leave(key, queue[0])
            self.reused = self.reused or oldest.doubtful or half.doubtful
            response, request = (oldest, half) if half.request else (half, oldest)
            self._end(key, Over(half.arrival_us, _mark(request), request.content, _mark(response), response.content))
            return _answered(response, request, response.time_us, half.arrival_us, before_us, offset)
        if not half.request and self.alone:
            self._end(key, Over(half.arrival_us, 0, 0, _mark(half), half.content))
            return _answered(half, None, half.time_us, half.arrival_us, before_us, offset)
        alike = [] if over is None else [over.request]
        alike += [self.waiting[n].content for n in queue]
        half.doubtful = half.request and not self.reused and half.content in alike
        if self.held + _weight(half) > MAX_HELD:
            half.features = half.label = None
        self.held += _weight(half)
        self.waiting[self.following] = half
        self.queues.setdefault(key, []).append(self.following)
        half.key = key
        self.following += 1
        return None

    def _is_copy(self, half: Waiting, over: Over | None, queue: Sequence[int]) -> bool:
        """Whether a half is known at once to have come before."""
        mark = _mark(half)
        waiting = [self.waiting[n] for n in queue]
        if any(w.request == half.request and _mark(w) == mark for w in waiting):
            return True
        if over is None:
            return False
        if mark == (over.request_mark if half.request else over.response_mark):
            return True
        if half.request:
            # What was answered without its request, by a response that waited in vain, has its request too late.
            return over.request_mark == 0 and over.response_mark != 0 and not self.reused and not self.alone
        if any(w.request for w in waiting) or self.alone:
            return False
        return over.response_mark == 0 or (half.content == over.response and not self.reused)

    def _give_up(self, number: int, at_us: int, before_us: int) -> Answered | None:
        """Return what a half that waited in vain comes to; None for a request that was a copy after all."""
        half = self.waiting[number]
        self._leave(half.key, number)
        if half.doubtful and not self.reused:
            self.repeated += 1
            return None
        mark = _mark(half)
        if half.request:
            self._end(half.key, Over(at_us, mark, half.content, 0, 0))
        else:
            self._end(half.key, Over(at_us, 0, 0, mark, half.content))
        if half.request and self.responses:
            half.failed, half.error = True, NO_RESPONSE
            self.unanswered += 1
        if not half.request and not self.requests:
            self.alone = True
        time_us = half.time_us + at_us - half.arrival_us
        return _answered(half, None, time_us, at_us, before_us, self.offset)

    def _leave(self, key: int, number: int) -> None:
        half = self.waiting.pop(number)
        self.held -= _weight(half)
        queue = self.queues[key]
        queue.remove(number)
        if not queue:
            del self.queues[key]

    def _end(self, key: int, over: Over) -> None:
        self.over.pop(key, None)  # to stand last
        self.over[key] = over
        if len(self.over) > 2 * self.limit:
            del self.over[next(iter(self.over))]

    def snapshot(self) -> list[Any] | None:
        """Return the state as a list, None where there never was any."""
        if not (self.requests or self.responses):
            return None
        flags = [self.requests, self.responses, self.alone, self.reused]
        return [
            [_plain(w) for w in self.waiting.values()],
            [[k, *(getattr(o, n) for n in o.__struct_fields__)] for k, o in self.over.items()],
            [*flags, self.offset, self.unanswered, self.evicted, self.repeated],
        ]

    def restore(self, state: list[Any] | None) -> None:
        """Take up what `snapshot` gave."""
        if state is None:
            return
        waiting, over, rest = state
        self.waiting, self.queues = dict(enumerate(map(_restored, waiting))), {}
        for number, half in self.waiting.items():
            self.queues.setdefault(half.key, []).append(number)
        self.following = len(self.waiting)
        self.held = sum(map(_weight, self.waiting.values()))
        self.over = {k: Over(*fields) for k, *fields in over}
        self.requests, self.responses, self.alone, self.reused, *counts = rest
        self.offset, self.unanswered, self.evicted, self.repeated = counts


#: The type of error of a request that no response came to.
NO_RESPONSE = "no_response"


class Over(Struct, gc=False):
    """An exchange that came to its end: when, and what tells its halves again; 0 for one that never came."""

    at_us: int
    request_mark: int  # time and content
    request: int  # content alone
    response_mark: int
    response: int


def _mark(half: Waiting) -> int:
    return _digest((half.time_us, half.content))


def _digest(of: Any) -> int:
    """Return 31 bits that stand for plain values of one exchange; never 0."""
    data = msgspec.msgpack.encode(of)
    return (int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "big") >> 1) or 1


def key_of(exchange: str) -> int:
    """Return what an exchange is remembered by."""
    return int.from_bytes(hashlib.blake2b(exchange.encode(), digest_size=8).digest(), "big", signed=True)


def _weight(half: Waiting) -> int:
    names = half.features or {}
    return sum(len(n) + (len(v) if isinstance(v, str | bytes) else 9) for n, v in names.items()) + len(half.label or "")


def _waiting(what: PredictionColumns, row: int, half: Any, arrival_us: int) -> Waiting:
    code = int(what.labels[row])
    error = -1 if what.errors is None else int(what.errors[row])
    found = Waiting(
        half.side == "request",
        int(what.times[row]),
        arrival_us,
        float(what.values[row]),
        what.names[code] if code >= 0 else None,
        bool(what.failed[row]),
        what.versions[row],
        half.features,
        half.llm,
        0 if what.ids is None else int(what.ids[row, 1]),
        READ if what.answered is None else int(what.answered[row]),
        what.error_names[error] if error >= 0 else "",
        (np.nan, np.nan) if what.certainty is None else (float(what.certainty[row, 0]), float(what.certainty[row, 1])),
    )
    if found.failed or found.request:
        found.answered = NOT_TOLD
    found.content = _digest((found.value, found.label, found.failed, found.features, found.llm, found.error))
    return found


def _answered(
    half: Waiting, request: Waiting | None, time_us: int, arrival_us: int, before_us: int, offset: int
) -> Answered:
    latency = float("nan") if request is None else (half.time_us - request.time_us) / 1e6
    return Answered(
        time_us,
        arrival_us,
        before_us,
        offset,
        latency if latency >= 0 else float("nan"),
        half.value,
        half.label,
        half.failed,
        half.version or (None if request is None else request.version),
        half.features or (None if request is None else request.features),
        half.llm or (None if request is None else request.llm),
        half.id,
        half.answered,
        half.error,
        half.certainty,
    )


def _columns(
    what: PredictionColumns, arrivals: I64, before: I64, offsets: I64, steps: Sequence[int | Answered]
) -> Joined:
    """Return steps as columns: rows of `what` as they are, and what was put together in its place among them."""
    rows = np.array([s if isinstance(s, int) else -1 for s in steps], np.int64)
    own = rows >= 0
    new = [s for s in steps if isinstance(s, Answered)]

    def merged(old: Any, values: list[Any]) -> Any:
        column = np.empty((len(steps), *old.shape[1:]), old.dtype)
        column[own] = old[rows[own]]
        column[~own] = (
            _objects(values)
            if old.dtype == object
            else np.array(values, old.dtype).reshape(-1, *old.shape[1:])
        )
        return column

    names, versions = list(what.names), list(what.versions.names)
    codes = {n: i for i, n in enumerate(names)}
    labels = [NO_LABEL if s.label is None else _code(s.label, names, codes) for s in new]
    version_codes = {v: i for i, v in enumerate(versions)}
    latency = merged(what.latency, [s.latency_s for s in new])
    features = what.features
    cells = np.zeros((len(steps), features.cells.shape[1]))
    kinds = np.zeros(cells.shape, np.uint8)
    cells[own], kinds[own] = features.cells[rows[own]], features.kinds[rows[own]]
    empty = np.empty(len(what), object)
    dicts = merged(empty if features.dicts is None else features.dicts, [s.features for s in new])
    llm = merged(empty if what.llm is None else what.llm, [s.llm for s in new])
    none = np.full((len(what), 3), np.nan)
    ids = merged(np.zeros((len(what), 2), np.uint64) if what.ids is None else what.ids, [(0, s.id) for s in new])
    usage = merged(none if what.usage is None else what.usage, [_usage(s.llm) for s in new])
    error_names = list(what.error_names)
    error_codes = {n: i for i, n in enumerate(error_names)}
    errors = merged(
        np.full(len(what), -1, np.int32) if what.errors is None else what.errors,
        [_code(s.error, error_names, error_codes) if s.error else -1 for s in new],
    )
    unsure = np.full((len(what), 2), np.nan)
    certainty = merged(unsure if what.certainty is None else what.certainty, [s.certainty for s in new])
    failed = merged(what.failed, [s.failed for s in new])
    answered = merged(
        np.full(len(what), READ, np.uint8) if what.answered is None else what.answered, [s.answered for s in new]
    )
    found = PredictionColumns(
        merged(what.times, [s.time_us for s in new]),
        latency,
        latency_buckets(latency),
        merged(what.values, [s.value for s in new]),
        merged(what.labels, labels),
        failed,
        Versions(merged(what.versions.codes, [_code(s.version, versions, version_codes) for s in new]), versions),
        Features(
            merged(features.layouts, [AS_DICT] * len(new)),
            cells,
            kinds,
            dicts,
            features.names,
        ),
        names,
        None if np.isnan(certainty).all() else certainty,
        ids if ids.any() else None,  # of those put together, the first is 0: copies were dropped in joining
        errors if (errors >= 0).any() else None,
        error_names,
        usage if np.isfinite(usage).any() else None,
        None,
        llm if any(x is not None for x in llm.tolist()) else None,
        None if what.segments is None else merged(what.segments, [None] * len(new)),
        None if what.ages is None else merged(what.ages, [np.nan] * len(new)),
        None if (answered[~failed] == READ).all() else answered,
    )
    return Joined(
        found,
        merged(arrivals, [s.arrival_us for s in new]),
        merged(before, [s.before_us for s in new]),
        merged(offsets, [s.offset for s in new]),
        ~own,
    )


def _usage(llm: LlmUsage | None) -> tuple[float, float, float]:
    """Return tokens in and out and cost, nan for what is not told."""
    return (np.nan, np.nan, np.nan) if llm is None else usage_row(llm)


def _plain(half: Waiting) -> list[Any]:
    return [msgspec.to_builtins(v) if n == "llm" else v for n in half.__struct_fields__ for v in (getattr(half, n),)]


def _restored(row: Sequence[Any]) -> Waiting:
    found = Waiting(*row)
    found.llm = None if found.llm is None else LlmUsage(**found.llm)
    found.certainty = (found.certainty[0], found.certainty[1])
    return found


_NOTHING = PredictionColumns(
    np.empty(0, np.int64),
    np.empty(0),
    np.empty(0, np.int32),
    np.empty(0),
    np.empty(0, np.int32),
    np.empty(0, bool),
    Versions(np.empty(0, np.int32), []),
    Features(np.empty(0, np.int32), np.empty((0, 0)), np.empty((0, 0), np.uint8), None, []),
    [],
    None,
    None,
    None,
    [],
    None,
)


def _code(name: Any, names: list[Any], codes: dict[Any, int]) -> int:
    code = codes.get(name)
    if code is None:
        code = codes[name] = len(names)
        names.append(name)
    return code


def _objects(values: list[Any]) -> Any:
    found = np.empty(len(values), object)
    found[:] = values
    return found
