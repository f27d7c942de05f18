"""What is known of one model: its windows, its watches, what its features and classes are called.

A model's events of a batch come as a `Group`, in the order of the log; what they come to does not
depend on how many there are in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc import joins, kernels
from streamproc.budget import Fleet
from streamproc.columns import Features, PredictionColumns, Versions
from streamproc.events import Alert, Share
from streamproc.exchanges import Exchanges, Joined
from streamproc.kernels import I32
from streamproc.reference import Bins, Lately, Period, Reference, Vocabulary, jsd, psi
from streamproc.rules import ModelRules, RuleBook
from streamproc.signals import FeatureSchema, Kind, Matrix
from streamproc.watch import SilenceWatch, Subject, Watch
from streamproc.windows import Accumulator, Windows

#: Format of a model's state; older ones are refused by name rather than misread.
STATE_VERSION = 3

#: Metrics, and classes or labels, watched per model beyond which newcomers share one name.
_OTHER = "(other)"
MAX_METRICS = 200
#: Types of errors watched per model, likewise.
MAX_ERRORS = 20

#: Features an alert names at most, and the windows that a feature's usual part is the mean of.
_MAX_SHARES = 5
_USUAL_OF = 30
#: Windows remembered to have been without an error that comes for the first time.
_COUNTED = 60

_DAY_US = 86_400_000_000


class Shared(Struct, gc=False):
    """What every kind of record has: offsets, Kafka's record time, the arrival clock at it and before it.

    All (n,), the last three in microseconds.
    """

    offsets: I64
    stamps: I64
    arrivals: I64
    before: I64

    def at(self, rows: Any) -> Shared:
        """Return some of the records."""
        return Shared(self.offsets[rows], self.stamps[rows], self.arrivals[rows], self.before[rows])


class Placed(Struct, gc=False):
    """Where n events belong: index (n,) of their windows, late (n,), and if one window takes them all."""

    index: I64
    late: npt.NDArray[np.bool_]
    alike: bool

    def at(self, rows: slice) -> Placed:
        """Return some of the events."""
        return Placed(self.index[rows], self.late[rows], self.alike)


class Aggregate(Struct, gc=False):
    """A closed window's value of a signal, of n events; parts (d,): what each of some features adds to it."""

    signal: str
    value: float
    n: int
    names: tuple[str, ...] = ()
    parts: F64 | None = None

    def carried(self) -> list[Share]:
        """Return the features that carry the value, the first ones first."""
        if self.parts is None:
            return []
        total = float(self.parts.sum())
        most = np.argsort(-self.parts, kind="stable")[:_MAX_SHARES].tolist()
        return [Share(self.names[i], float(self.parts[i]) / total) for i in most if self.parts[i] > 0.0]


class EventRows(Struct, gc=False):
    """Events as objects, for kinds that come too seldom to be worth columns."""

    events: list[Any]

    def at(self, rows: Any) -> EventRows:
        """Return some of the rows."""
        return EventRows([self.events[i] for i in np.arange(len(self.events))[rows].tolist()])


class Group(Struct, gc=False):
    """The records of one model in a batch, in the order of the log: where they stand, when, and what."""

    name: str
    rows: I64
    times: I64
    shared: Shared
    what: Any  # PredictionColumns or EventRows

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: Any) -> Group:
        """Return some of the records."""
        return Group(self.name, self.rows[rows], self.times[rows], self.shared.at(rows), self.what.at(rows))


class ModelState:
    """What is known of one model from one kind of event; the kinds differ in `_columns`."""

    kind: Kind

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        self.name = name
        self.book = book
        self.rules: ModelRules = book.for_model(self.kind, name)
        self.subject = Subject(topic, partition, name)
        self.next_offset = 0
        self.last_arrival_us = 0
        self.first_stamp_us = -1  # record time of its first record
        self.allotted = -1  # period of the fleet whose budget its watches have
        self.allowed_per_day = 0.0  # false alerts a watch, 0 without a budget
        self.scheduled_us = -1
        self.windows = Windows(
            size_us=self.rules.window_us,
            lateness_us=self.rules.lateness_us,
            idle_us=max(2 * self.rules.window_us, 1_000_000),
        )
        self.watches: dict[tuple[str, str], Watch] = {}
        self.silence = [SilenceWatch(r) for r in self.rules.of("silence")]
        self.started_us: int | None = None
        self.origins: dict[int, int] = {}  # greatest offset had from each partition before a re-keying
        self.sent_on = -1  # the last offset whose row was sent on to be joined
        self._outbox: list[bytes] = []

    # -- records in

    def take(self, group: Group) -> list[Alert]:
        """Take this model's events of a batch."""
        alerts: list[Alert] = []
        arrivals, offsets = group.shared.arrivals, group.shared.offsets
        for silence in self.silence:
            alerts += silence.observe(self.subject, arrivals, offsets)
        if self.started_us is None:
            self.started_us = int(group.times[0])
            self.first_stamp_us = int(group.shared.stamps[0])
        alerts += self._observe(self._joined(group))
        self.last_arrival_us = int(arrivals[-1])
        return alerts + self._close()

    def _joined(self, group: Group) -> Group:
        """Return what a group's records come to: predictions, where some are halves of one."""
        return group

    def _observe(self, group: Group) -> list[Alert]:
        """Put events into their windows, and show them to the watches."""
        if not len(group):
            return []
        progress = self.windows.advance(group.times, group.shared.arrivals, group.shared.before)
        index, late, alike = self.windows.place(group.times, progress)
        return self._columns(group.what, progress, group.shared.offsets, Placed(index, late, alike))

    def _send_on(self, rows: joins.Rows | None) -> None:
        """Send rows on to where predictions meet their labels."""
        if rows is not None:
            self._outbox += rows.pack(self.name)
            self.sent_on = int(rows.offsets[-1])

    def outbox(self) -> list[bytes]:
        """Return the records to be sent on since this was last called."""
        sent, self._outbox = self._outbox, []
        return sent

    def losses(self) -> tuple[int, int, int, int]:
        """Return how many events were late, unanswered, given up on for want of room, and repeated."""
        return self.windows.late, 0, 0, 0

    def allot(self, fleet: Fleet, *, allowed_per_day: float) -> None:
        """Let each watch have its part of what all models of a partition are allowed together in a day."""
        self.allotted = fleet.period
        self.allowed_per_day = allowed_per_day / max(fleet.size, 1.0) / max(len(self.watches), self.rules.count(), 1)
        for watch in self.watches.values():
            self._allot(watch, fleet.days(self.first_stamp_us))

    def _allot(self, watch: Watch, days: float) -> None:
        """Let one watch have its part, its values a day being known from the window, or from its days."""
        a_day = _DAY_US / self.windows.size_us if watch.rule.spec.shape == "window" else watch.life.seen / days
        watch.allot(observations_per_day=a_day, allowed_per_day=self.allowed_per_day)

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without an event."""
        alerts: list[Alert] = []
        for silence in self.silence:
            alerts += silence.advance(self.subject, clock_us)
        self.windows.idle(clock_us)
        alerts += self._close()
        if self.windows.progress_us is not None:
            for watch in self.watches.values():
                alerts += watch.expire(self.subject, self.windows.progress_us)
        return alerts

    def due_us(self, idle_ttl_us: int) -> int:
        """Return the arrival clock at which `advance` would next do something."""
        due = [self.last_arrival_us + idle_ttl_us]
        due += [d for s in self.silence if (d := s.due_us()) is not None]
        if (window := self.windows.due_us()) is not None:
            due.append(window)
        if self.windows.max_event_us is not None:
            shift = self.windows.last_arrival_us + self.windows.idle_us - self.windows.max_event_us
            due += [d + shift for w in self.watches.values() if (d := w.life.due_us()) is not None]
        return min(due)

    def keeps_us(self, idle_ttl_us: int) -> int:
        """Return how long the model is kept without a record."""
        return idle_ttl_us

    def retire(self) -> list[Alert]:
        """Resolve whatever still fires, before the model is forgotten."""
        forever = 1 << 62
        return [a for w in self.watches.values() for a in w.expire(self.subject, forever)]

    def _columns(self, what: Any, progress: I64, offsets: I64, placed: Placed) -> list[Alert]:
        raise NotImplementedError

    def _by_window(
        self, placed: Placed, offsets: I64, versions: Sequence[str | None] | None = None
    ) -> Iterator[tuple[Accumulator, Any]]:
        """Yield each open window that has events here, with which of them are its own."""
        index, late = placed.index, placed.late
        if placed.alike:
            window = self.windows.at(int(index[0]), int(offsets[0]))
            window.count += len(index)
            window.offset_last = int(offsets[-1])
            if versions is not None:
                window.version = versions[-1]
            yield window, slice(None)
            return
        for value in np.unique(index[~late]):
            rows = np.nonzero((index == value) & ~late)[0]
            window = self.windows.at(int(value), int(offsets[rows[0]]))
            window.count += len(rows)
            window.offset_last = int(offsets[rows[-1]])
            if versions is not None:
                window.version = versions[rows[-1]]
            yield window, rows

    # -- windows out

    def _close(self) -> list[Alert]:
        alerts: list[Alert] = []
        for window in self.windows.close():
            end_us = (window.index + 1) * self.windows.size_us
            # The window in which a model first appeared is not a whole one.
            whole = self.started_us is not None and window.index * self.windows.size_us >= self.started_us
            for aggregate in self._aggregates(window, whole):
                alerts += self._observe_window(aggregate, end_us, window)
        return alerts

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        raise NotImplementedError

    def _observe_window(self, aggregate: Aggregate, end_us: int, window: Accumulator) -> list[Alert]:
        alerts: list[Alert] = []
        n = aggregate.n
        offset = window.offset_first if window.offset_first >= 0 else window.index
        for watch in self._watches(aggregate.signal):
            if n >= watch.rule.min_samples:
                alerts += watch.observe(
                    self.subject,
                    np.array([aggregate.value]),
                    np.array([end_us]),
                    np.array([offset]),
                    versions=(window.version,),
                    n=n,
                    last_offset=window.offset_last,
                    carried=None if aggregate.parts is None else aggregate.carried,
                )
        return alerts

    def _observe_events(
        self,
        signal: str,
        values: F64,
        times: I64,
        offsets: I64,
        *,
        versions: Sequence[str | None] | None = None,
        rows: Any = None,
        columns: tuple[str, ...] = (),
    ) -> list[Alert]:
        """Show the watches of a signal its values; only those at `rows` where given."""
        if rows is not None and not rows.all():
            if not rows.any():
                return []
            values, times, offsets = values[rows], times[rows], offsets[rows]
            versions = None if versions is None else [versions[i] for i in np.nonzero(rows)[0].tolist()]
        alerts: list[Alert] = []
        for watch in self._watches(signal, columns):
            alerts += watch.observe(self.subject, values, times, offsets, versions=versions or ())
        return alerts

    def _watches(self, signal: str, columns: tuple[str, ...] = ()) -> list[Watch]:
        found = []
        for rule in self.rules.of(signal):
            key = (signal, rule.detector)
            watch = self.watches.get(key)
            if watch is None or watch.columns != columns:
                watch = self.watches[key] = Watch(rule, columns=columns)
                if self.allowed_per_day > 0.0:
                    self._allot(watch, 1.0)
            found.append(watch)
        return found

    # -- state

    def reconfigure(self, book: RuleBook) -> None:
        """Take another config; a watch whose rule kept its structure keeps what it learned."""
        old = self.rules
        self.allotted, self.allowed_per_day = -1, 0.0
        self.book, self.rules = book, book.for_model(self.kind, self.name)
        self.windows.lateness_us = self.rules.lateness_us
        if self.rules.window_us != old.window_us:
            self.windows = Windows(
                size_us=self.rules.window_us,
                lateness_us=self.rules.lateness_us,
                idle_us=max(2 * self.rules.window_us, 1_000_000),
            )
        for (signal, detector), watch in list(self.watches.items()):
            rule = next((r for r in self.rules.of(signal) if r.detector == detector), None)
            if rule is None or rule.structure != watch.rule.structure:
                del self.watches[signal, detector]
            else:
                watch.adopt(rule)
        wanted = self.rules.of("silence")
        if len(wanted) == len(self.silence):
            for silence, rule in zip(self.silence, wanted, strict=True):
                silence.adopt(rule)
        else:
            self.silence = [SilenceWatch(r) for r in wanted]

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "version": STATE_VERSION,
            "scalars": [self.next_offset, self.last_arrival_us, self.started_us, self.first_stamp_us],
            "budget": [self.allotted, self.allowed_per_day],
            "sent_on": self.sent_on,
            "origins": [list(o) for o in sorted(self.origins.items())],
            "window_us": self.windows.size_us,
            "windows": self.windows.snapshot(),
            "watches": [[s, d, w.snapshot()] for (s, d), w in sorted(self.watches.items())],
            "silence": [s.snapshot() for s in self.silence],
            "own": self._own_state(),
        }

    def restore(self, tree: dict[str, Any]) -> None:
        """Take up what `snapshot` gave; what the config has since changed in structure warms up anew."""
        self.next_offset, self.last_arrival_us, self.started_us, self.first_stamp_us = tree["scalars"]
        self.allotted, self.allowed_per_day = tree["budget"]
        self.origins = {int(p): int(o) for p, o in tree["origins"]}
        self.sent_on = tree.get("sent_on", -1)  # states of before have none
        self._restore_own(tree["own"])
        if tree["window_us"] == self.windows.size_us:
            self.windows.restore(tree["windows"])
        for signal, detector, state in tree["watches"]:
            for rule in self.rules.of(signal):
                if rule.detector == detector:
                    watch = Watch(rule, columns=tuple(state["columns"]))
                    watch.restore(state)
                    self.watches[signal, detector] = watch
        for silence, state in zip(self.silence, tree["silence"], strict=False):
            silence.restore(state)

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _restore_own(self, own: dict[str, Any]) -> None:
        pass


class Classes:
    """The classes of one model, known by name up to a bound and reported once a window had them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: list[str] = []  # in the order of the log
        self.reported: list[str] = []  # in the order of closed windows

    def note(self, name: str) -> str:
        """Return the name to count a class under: its own, or that of all others."""
        return _bounded(name, self.names, self.limit)

    def shares(self, window: Accumulator) -> Iterator[tuple[str, float, int]]:
        """Yield each class with its share of a closing window, and how many that window has.

        A class is reported from the first window that has it. One first seen after the window, though
        in the same batch, is none of this window's affair: the cut would decide.
        """
        total = sum(window.classes.values())
        if not total:
            return
        for name in self.met(window.classes):
            yield name, window.classes.get(name, 0) / total, total

    def met(self, counts: dict[str, int]) -> list[str]:
        """Return the classes that a closing window or one before it had."""
        known = set(self.reported)
        self.reported += [n for n in self.names if n not in known and n in counts]
        return self.reported

    def snapshot(self) -> list[list[str]]:
        """Return the state as a list."""
        return [list(self.names), list(self.reported)]

    def restore(self, state: list[list[str]]) -> None:
        """Take up what `snapshot` gave."""
        self.names, self.reported = list(state[0]), list(state[1])


class PredictionState(ModelState):
    """A model as its predictions show it."""

    kind: Kind = "predictions"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self.features = FeatureSchema(max_features=book.config.defaults.max_features)
        self.classes = Classes(book.config.defaults.max_classes)
        serving = book.config.serving
        self.exchanges = Exchanges(timeout_us=serving.response_timeout.us, limit=serving.max_outstanding)
        self.errors = Classes(MAX_ERRORS)
        self.counted = 0  # windows closed, up to a bound
        self.answers = Reference(1)
        self.answers_period = Period()
        self.learned_classes: dict[str, int] = {}  # how often each came while learning
        self.classes_period = Period()
        self.reference: Reference | None = None  # of numeric features, once they are known
        self.vocabulary: Vocabulary | None = None  # of categorical ones
        self.features_period = Period()
        self.lately = Lately()
        self.arrived: dict[int, list[int]] = {}  # by window of the progress: events, and those out of order
        self.usual: dict[str, tuple[int, F64]] = {}  # by signal: windows, and each feature's mean part
        self._bind()

    def _joined(self, group: Group) -> Group:
        if group.what.halves is None and not self.exchanges:
            return group
        shared = group.shared
        return self._put_together(self.exchanges.join(group.what, shared.arrivals, shared.before, shared.offsets))

    def _put_together(self, joined: Joined) -> Group:
        shared = Shared(joined.offsets, joined.arrivals, joined.arrivals, joined.before)
        return Group(self.name, np.arange(len(joined.what)), joined.what.times, shared, joined.what)

    def _observe(self, group: Group) -> list[Alert]:
        if self.book.joins and len(group):
            of = self.subject
            self._send_on(
                joins.of_predictions(
                    group.what,
                    group.shared.offsets,
                    topic=of.topic,
                    partition=of.partition,
                    after=self.sent_on,
                    loose=bool(self.exchanges),
                )
            )
        return super()._observe(group)

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without an event: requests without a response are given up on."""
        expired = self.exchanges.expired(clock_us)
        alerts = [] if expired is None else self._observe(self._put_together(expired)) + self._close()
        return alerts + super().advance(clock_us)

    def due_us(self, idle_ttl_us: int) -> int:
        """Return the arrival clock at which `advance` would next do something."""
        due = super().due_us(idle_ttl_us)
        waiting = self.exchanges.due_us() if self.exchanges.waiting else None
        return due if waiting is None else min(due, waiting)

    def losses(self) -> tuple[int, int, int, int]:
        """Return how many events were late, unanswered, given up on for want of room, and repeated."""
        of = self.exchanges
        return self.windows.late, of.unanswered, of.evicted, of.repeated

    def _bind(self) -> None:
        of = self.rules.of
        self._wants_latency = any(of(f"latency_p{q}") for q in (50, 95, 99))
        self._wants_each_latency = bool(of("latency"))
        self._wants_drift = bool(of("prediction_drift"))
        self._wants_failures = bool(of("failures"))
        self._wants_outliers = bool(of("feature_outlier"))
        self._wants_certainty = bool(of("confidence") or of("prediction_entropy"))
        self._wants_answers = bool(of("prediction_psi") or of("prediction_jsd"))
        self._wants_classes = self._wants_answers or bool(of("new_class"))
        self._wants_usage = any(of(s) for s in ("tokens_in", "tokens_out", "cost_per_request", "cost_per_hour"))
        self._wants_errors = bool(of("error_share"))
        self._wants_ids = bool(of("duplicates"))
        self._wants_order = bool(of("out_of_order"))
        self._wants_reference = bool(of("feature_range") or of("constant_features") or of("feature_drift"))
        self._wants_words = bool(of("unseen_category"))
        self._wants_features = (
            self._wants_outliers
            or self._wants_reference
            or self._wants_words
            or bool(of("missing_features") or of("invalid_features"))
        )

    def reconfigure(self, book: RuleBook) -> None:
        """Take another config."""
        size_us = self.windows.size_us
        super().reconfigure(book)
        serving = book.config.serving
        self.exchanges.timeout_us, self.exchanges.limit = serving.response_timeout.us, serving.max_outstanding
        if self.windows.size_us != size_us:
            self.arrived = {}
        self._bind()

    def _columns(
        self, what: PredictionColumns, progress: I64, offsets: I64, placed: Placed
    ) -> list[Alert]:
        alerts: list[Alert] = []
        versions, values, latency, failed = what.versions, what.values, what.latency, what.failed
        buckets = what.buckets if self._wants_latency else np.full(len(what), -1, np.int32)
        if not placed.alike:
            # In the order of the log, not of windows: where names run out, the cut must not choose.
            for code in dict.fromkeys(what.labels.tolist()):
                if code >= 0:
                    self.classes.note(what.names[code])
        judged = self._judged(what.labels, what.names, progress) if self._wants_classes else None
        if what.errors is not None and self._wants_errors and not placed.alike:
            for code in dict.fromkeys(what.errors.tolist()):
                if code >= 0:
                    self.errors.note(what.error_names[code])
        again = None
        if self._wants_ids and what.ids is not None:
            again = self.lately.recall(np.ascontiguousarray(what.ids[:, 0]))
        if self._wants_order:
            self._count_arrivals(what.times, progress)
        for window, rows in self._by_window(placed, offsets, versions):
            window.tally(placed.index, placed.late, values=values, buckets=buckets, failed=failed)
            self._count_classes(window, what.labels[rows], what.names)
            if judged is not None and not window.judged:
                window.judged = bool(judged[rows].any())
            if self._wants_certainty and what.certainty is not None:
                window.add_certainty(placed.index, placed.late, what.certainty)
            if self._wants_usage and what.usage is not None:
                window.add_usage(placed.index, placed.late, what.usage)
            if again is not None and what.ids is not None:
                window.identified += int(np.count_nonzero(what.ids[rows, 0]))
                window.repeated += int(np.count_nonzero(again[rows]))
            if self._wants_errors and what.errors is not None:
                self._count_errors(window, what.errors[rows], what.error_names)
        if self._wants_answers:
            self._count_answers(values, progress, placed)
        if self._wants_drift:
            alerts += self._observe_events(
                "prediction_drift", values, progress, offsets, versions=versions, rows=~np.isnan(values)
            )
        if self._wants_each_latency:
            alerts += self._observe_events(
                "latency", latency, progress, offsets, versions=versions, rows=~np.isnan(latency)
            )
        if self._wants_failures:
            alerts += self._observe_events(
                "failures", failed.astype(np.float64), progress, offsets, versions=versions
            )
        if self._wants_features:
            alerts += self._take_features(what.features, progress, offsets, placed, versions)
        return alerts

    def _judged(self, labels: I32, names: list[str], progress: I64) -> npt.NDArray[np.bool_]:
        """Learn classes while it is time to; return which events have one that comes after that."""
        labelled = labels >= 0
        if not self.classes_period.over and labelled.any():
            rows = np.nonzero(labelled)[0]
            taken = rows[: self.classes_period.take(progress[rows], self.windows.size_us)]
            self._add_classes(self.learned_classes, labels[taken], names)
            labelled[taken] = False
        return labelled

    def _count_arrivals(self, times: I64, progress: I64) -> None:
        """Count arrivals in the window that the progress is in: an old event's own may have closed."""
        runs = np.empty((len(times), 3), np.int64)
        count = kernels.disorder(times, progress, self.windows.size_us, self.windows.lateness_us, runs)
        for index, n, older in runs[:count].tolist():
            found = self.arrived.setdefault(index, [0, 0])
            found[0] += n
            found[1] += older

    def _count_answers(self, values: F64, progress: I64, placed: Placed) -> None:
        given = ~np.isnan(values)
        if not self.answers_period.over:
            rows = np.nonzero(given)[0]
            if not len(rows):
                return
            taken = self.answers_period.take(progress[rows], self.windows.size_us)
            self.answers.learn(values[rows[:taken], None])
            given[rows[:taken]] = False
            if taken < len(rows):
                self.answers.settle()
        if not given.any():
            return
        for index, own in _windows_of(placed, given):
            window = self.windows.open[index]
            if window.answers is None:
                window.answers = Bins.empty(1)
            self.answers.count(window.answers, values[:, None], own)

    def _take_features(
        self, features: Features, progress: I64, offsets: I64, placed: Placed, versions: Versions
    ) -> list[Alert]:
        start = 0 if self.features.ready else self.features.learn(features.rows())
        if start == len(features):
            return []
        if start:
            rest = slice(start, None)
            features, progress, offsets = features.at(rest), progress[rest], offsets[rest]
            placed, versions = placed.at(rest), versions[rest]
        if not features.any():
            return []
        matrix = features.matrix(self.features)
        flawless, given = matrix.flawless, matrix.given
        known = self._learn_features(matrix, progress)
        for index, own in [(int(placed.index[0]), given)] if placed.alike and flawless else _windows_of(placed, given):
            window = self.windows.open[index]
            window.feature_rows += int(np.count_nonzero(own))
            if window.missing is None or window.invalid is None:
                window.missing = np.zeros(matrix.missing.shape[1], np.int64)
                window.invalid = np.zeros(matrix.missing.shape[1], np.int64)
            if not flawless:
                window.missing += matrix.missing[own].sum(axis=0)
                window.invalid += matrix.invalid[own].sum(axis=0)
            if known is not None:
                self._count_features(window, matrix, own if known is given else own & known)
        if not self._wants_outliers or not matrix.values.shape[1]:
            return []
        return self._observe_events(
            "feature_outlier",
            matrix.values,
            progress,
            offsets,
            versions=versions,
            rows=None if flawless else ~np.isnan(matrix.values).any(axis=1),
            columns=self.features.numeric,
        )

    def _learn_features(self, matrix: Matrix, progress: I64) -> npt.NDArray[np.bool_] | None:
        """Learn what features are like; return which rows come after that, None where none does."""
        if self._wants_reference and self.reference is None and self.features.numeric:
            self.reference = Reference(len(self.features.numeric))
            self.features_period = Period()
        if self._wants_words and self.vocabulary is None and self.features.categorical:
            self.vocabulary = Vocabulary(len(self.features.categorical))
            self.features_period = Period()
        if self.features_period.over:
            return matrix.given
        if self.reference is None and self.vocabulary is None:
            return None
        rows = np.nonzero(matrix.given)[0]
        if not len(rows):
            return None
        taken = rows[: self.features_period.take(progress[rows], self.windows.size_us)]
        over = len(taken) < len(rows)
        if len(taken) and self.reference is not None:
            self.reference.learn(matrix.values[taken])
        if len(taken) and self.vocabulary is not None:
            self.vocabulary.learn(matrix.words[taken])
        if not over:
            return None
        if self.reference is not None:
            self.reference.settle()
        known = matrix.given.copy()
        known[taken] = False
        return known

    def _count_features(self, window: Accumulator, matrix: Matrix, own: npt.NDArray[np.bool_]) -> None:
        if self.reference is not None and self._wants_reference:
            if window.features is None:
                window.features = Bins.empty(self.reference.columns)
            self.reference.count(window.features, matrix.values, own)
        if self.vocabulary is not None and self._wants_words:
            if window.words is None or window.unseen is None:
                window.words, window.unseen = np.zeros((2, len(self.vocabulary.known)), np.int64)
            self.vocabulary.count(matrix.words, own, window.words, window.unseen)

    def _count_classes(self, window: Accumulator, labels: I32, names: list[str]) -> None:
        if not window.classes:
            window.classes = {}
        self._add_classes(window.classes, labels, names)

    def _add_classes(self, counts: dict[str, int], labels: I32, names: list[str]) -> None:
        for code, count in Counter(labels.tolist()).items():
            if code >= 0:
                name = self.classes.note(names[code])
                counts[name] = counts.get(name, 0) + count

    def _count_errors(self, window: Accumulator, errors: I32, names: list[str]) -> None:
        for code, count in Counter(errors[errors >= 0].tolist()).items():
            if not window.errors_by:
                window.errors_by = {}
            name = self.errors.note(names[code])
            window.errors_by[name] = window.errors_by.get(name, 0) + count

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        n, answered = window.count, window.count - window.errors
        if whole:
            yield Aggregate("throughput", n / (self.windows.size_us / 1e6), n)
        if self._wants_order and self.arrived:
            arrived, older = self.arrived.get(window.index, (0, 0))
            # Those of windows that were too many to be reported go too.
            self.arrived = {i: found for i, found in self.arrived.items() if i > window.index}
            if arrived:
                yield Aggregate("out_of_order", older / arrived, arrived)
        if n == 0:
            return
        yield Aggregate("error_rate", window.errors / n, n)
        if self._wants_errors:
            before = len(self.errors.reported)
            for k, name in enumerate(self.errors.met(window.errors_by)):
                if k >= before:
                    # Of an error never seen the share is known of every window before: none.
                    for _ in range(self.counted):
                        yield Aggregate(f"error_share:{name}", 0.0, n)
                yield Aggregate(f"error_share:{name}", window.errors_by.get(name, 0) / n, n)
            self.counted = min(self.counted + 1, _COUNTED)
        if window.identified:
            yield Aggregate("duplicates", window.repeated / window.identified, window.identified)
        yield from self._answers_of(window)
        yield from _means(("tokens_in", "tokens_out", "cost_per_request"), window.usage_n, window.usage)
        if whole and window.usage is not None and window.usage_n is not None and window.usage_n[2]:
            hours = self.windows.size_us / 3.6e9
            yield Aggregate("cost_per_hour", min(float(window.usage[2]), 1e290) / hours, int(window.usage_n[2]))
        if (latencies := window.latency_n()) > 0:
            for q in (50, 95, 99):
                yield Aggregate(f"latency_p{q}", window.latency_quantile(q / 100), latencies)
        if answered and window.feature_rows:
            yield from self._features_of(window)

    def _answers_of(self, window: Accumulator) -> Iterator[Aggregate]:
        if window.value_n:
            yield Aggregate("prediction_value", window.value_sum / window.value_n, window.value_n)
        yield from _means(("confidence", "prediction_entropy"), window.certain_n, window.certainty)
        labelled = sum(window.classes.values())
        for label, share, _ in self.classes.shares(window):
            yield Aggregate(f"class_share:{label}", share, labelled)
        reference = counts = None
        if window.judged and self._wants_classes:
            learned = self.learned_classes
            unknown = sum(count for name, count in window.classes.items() if name not in learned)
            yield Aggregate("new_class", unknown / labelled, labelled)
            names = [*learned, *sorted(set(window.classes) - set(learned))]
            reference = np.array([[learned.get(name, 0) for name in names]])
            counts = np.array([[window.classes.get(name, 0) for name in names]])
        for signal, differ in (("prediction_psi", psi), ("prediction_jsd", jsd)):
            if not self._heard(signal, max(labelled, window.value_n)):
                continue
            found = []
            if window.answers is not None and (numbers := int(window.answers.counts.sum())):
                found.append((float(differ(self.answers.seen.counts, window.answers.counts)[0]), numbers))
            if reference is not None and counts is not None:
                found.append((float(differ(reference, counts)[0]), labelled))
            if found:
                yield Aggregate(signal, *max(found))

    def _features_of(self, window: Accumulator) -> Iterator[Aggregate]:
        numeric, categorical = self.features.numeric, self.features.categorical
        rows = window.feature_rows
        if window.missing is not None and window.invalid is not None and rows * len(window.missing):
            names, cells = numeric + categorical, rows * len(window.missing)
            for signal, counts in (("missing_features", window.missing), ("invalid_features", window.invalid)):
                if self._heard(signal, rows):
                    yield self._of_features(signal, int(counts.sum()) / cells, rows, names, counts / cells)
        if (bins := window.features) is not None and self.reference is not None:
            had = bins.counts.sum(axis=1)
            most, total = int(had.max()), int(had.sum())
            if total and self._heard("feature_range", most):
                share = int(bins.outside.sum()) / total
                yield self._of_features("feature_range", share, most, numeric, bins.outside / total)
            if total and self._heard("constant_features", most):
                constant = self.reference.constant(bins)
                share = int(constant.sum()) / len(numeric)
                yield self._of_features("constant_features", share, most, numeric, constant / len(numeric))
            if total and self._heard("feature_drift", most):
                drift = self.reference.psi(bins)
                yield self._of_features("feature_drift", float(drift.max()), most, numeric, drift)
        if window.words is not None and window.unseen is not None and (words := int(window.words.sum())):
            share, most = int(window.unseen.sum()) / words, int(window.words.max())
            if self._heard("unseen_category", most):
                yield self._of_features("unseen_category", share, most, categorical, window.unseen / words)

    def _heard(self, signal: str, n: int) -> bool:
        """Whether any rule of a signal takes a value of so many events: else it need not be worked out."""
        return any(n >= rule.min_samples for rule in self.rules.of(signal))

    def _of_features(self, signal: str, value: float, n: int, names: tuple[str, ...], parts: F64) -> Aggregate:
        """Return a value with what each feature adds beyond its usual part: one always null is no news."""
        windows, usual = self.usual.get(signal, (0, np.zeros(len(parts))))
        windows = min(windows + 1, _USUAL_OF)
        self.usual[signal] = (windows, usual + (parts - usual) / windows)
        beyond = np.maximum(parts - usual, 0.0)
        return Aggregate(signal, value, n, names, beyond if beyond.any() else parts)

    def _own_state(self) -> dict[str, Any]:
        return {
            "features": self.features.snapshot(),
            "classes": self.classes.snapshot(),
            "exchanges": self.exchanges.snapshot(),
            "errors": [*self.errors.snapshot(), self.counted],
            "periods": [p.snapshot() for p in (self.answers_period, self.classes_period, self.features_period)],
            "answers": self.answers.snapshot(),
            "learned_classes": dict(self.learned_classes),
            "reference": None if self.reference is None else self.reference.snapshot(),
            "vocabulary": None if self.vocabulary is None else self.vocabulary.snapshot(),
            "lately": self.lately.snapshot(),
            "arrived": [[index, *found] for index, found in sorted(self.arrived.items())],
            "usual": [[signal, windows, parts.copy()] for signal, (windows, parts) in sorted(self.usual.items())],
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.features.restore(own["features"])
        self.classes.restore(own["classes"])
        self.exchanges.restore(own.get("exchanges"))  # states of before have none
        *errors, self.counted = own["errors"]
        self.errors.restore(errors)
        periods = (self.answers_period, self.classes_period, self.features_period)
        for period, state in zip(periods, own["periods"], strict=True):
            period.restore(state)
        self.answers = Reference.restored(own["answers"])
        self.learned_classes = dict(own["learned_classes"])
        self.reference = None if own["reference"] is None else Reference.restored(own["reference"])
        self.vocabulary = None if own["vocabulary"] is None else Vocabulary.restored(own["vocabulary"])
        self.lately.restore(own["lately"])
        self.arrived = {index: [n, older] for index, n, older in own["arrived"]}
        self.usual = {signal: (windows, parts) for signal, windows, parts in own["usual"]}


def _means(signals: tuple[str, ...], counts: I64 | None, sums: F64 | None) -> Iterator[Aggregate]:
    """Yield the mean of each signal that anything was counted of."""
    if counts is not None and sums is not None:
        for signal, n, total in zip(signals, counts.tolist(), sums.tolist(), strict=False):
            if n:
                yield Aggregate(signal, total / n, n)


def _windows_of(placed: Placed, given: npt.NDArray[np.bool_]) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """Return the windows that some given events belong to, each with which of them are its own."""
    if placed.alike:
        return [(int(placed.index[0]), given)]
    counted = given & ~placed.late
    return [(int(v), counted & (placed.index == v)) for v in np.unique(placed.index[counted])]


class TelemetryState(ModelState):
    """A model or service as its telemetry shows it."""

    kind: Kind = "telemetry"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self.metrics: list[str] = []

    def _columns(self, what: EventRows, progress: I64, offsets: I64, placed: Placed) -> list[Alert]:
        events = what.events
        for _ in self._by_window(placed, offsets):
            pass
        rows: dict[str, list[int]] = {}
        for i, event in enumerate(events):
            rows.setdefault(_bounded(event.name, self.metrics, MAX_METRICS), []).append(i)
        alerts: list[Alert] = []
        for name, at in rows.items():
            if name == _OTHER:
                continue  # unlike things have no common normal
            values = np.array(
                [e.value if e.value is not None else e.sum / e.count for e in (events[i] for i in at)], np.float64
            )
            alerts += self._observe_events(f"metric:{name}", values, progress[at], offsets[at])
        return alerts

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:  # noqa: ARG002
        return iter(())

    def _own_state(self) -> dict[str, Any]:
        return {"metrics": list(self.metrics)}

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.metrics = list(own["metrics"])


class LabelState(ModelState):
    """A model as its true labels show it."""

    kind: Kind = "labels"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self.classes = Classes(book.config.defaults.max_classes)

    def _observe(self, group: Group) -> list[Alert]:
        if self.book.joins:
            stamps, of = group.shared.stamps, self.subject
            latest = np.where(stamps < 0, group.times, stamps) + self.book.config.defaults.max_future.us
            self._send_on(
                joins.of_labels(
                    group.what.events,
                    group.times,
                    latest,
                    group.shared.offsets,
                    topic=of.topic,
                    partition=of.partition,
                    after=self.sent_on,
                )
            )
        return super()._observe(group)

    def _columns(self, what: EventRows, progress: I64, offsets: I64, placed: Placed) -> list[Alert]:  # noqa: ARG002
        events = what.events
        for event in events:
            if event.label is not None:
                self.classes.note(str(event.label))
        for window, rows in self._by_window(placed, offsets):
            if not window.classes:
                window.classes = {}
            for event in events if isinstance(rows, slice) else [events[i] for i in rows]:
                if event.label is not None:
                    name = self.classes.note(str(event.label))
                    window.classes[name] = window.classes.get(name, 0) + 1
        return []

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        if whole:
            yield Aggregate("throughput", window.count / (self.windows.size_us / 1e6), window.count)
        for label, share, labelled in self.classes.shares(window):
            yield Aggregate(f"label_share:{label}", share, labelled)

    def _own_state(self) -> dict[str, Any]:
        return {"classes": self.classes.snapshot()}

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.classes.restore(own["classes"])


def _bounded(name: str, known: list[str], limit: int) -> str:
    """Return name where it is known or there is room to know it, else the name of all others."""
    if name in known:
        return name
    if len(known) < limit:
        known.append(name)
        return name
    return _OTHER
