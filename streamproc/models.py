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
from streamproc.budget import Fleet
from streamproc.columns import Features, PredictionColumns, Versions
from streamproc.events import Alert
from streamproc.exchanges import Exchanges, Joined
from streamproc.kernels import I32
from streamproc.rules import ModelRules, RuleBook
from streamproc.signals import FeatureSchema, Kind
from streamproc.watch import SilenceWatch, Subject, Watch
from streamproc.windows import Accumulator, Windows

#: Format of a model's state; older ones are refused by name rather than misread.
STATE_VERSION = 2

#: Metrics, and classes or labels, watched per model beyond which newcomers share one name.
_OTHER = "(other)"
MAX_METRICS = 200

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
            for signal, value, n in self._aggregates(window, whole):
                alerts += self._observe_window(signal, value, n, end_us, window)
        return alerts

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[tuple[str, float, int]]:
        raise NotImplementedError

    def _observe_window(
        self, signal: str, value: float, n: int, end_us: int, window: Accumulator
    ) -> list[Alert]:
        alerts: list[Alert] = []
        offset = window.offset_first if window.offset_first >= 0 else window.index
        for watch in self._watches(signal):
            if n >= watch.rule.min_samples:
                alerts += watch.observe(
                    self.subject,
                    np.array([value]),
                    np.array([end_us]),
                    np.array([offset]),
                    versions=(window.version,),
                    n=n,
                    last_offset=window.offset_last,
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
        known = set(self.reported)
        self.reported += [n for n in self.names if n not in known and n in window.classes]
        for name in self.reported:
            yield name, window.classes.get(name, 0) / total, total

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
        self._bind()

    def _joined(self, group: Group) -> Group:
        if group.what.halves is None and not self.exchanges:
            return group
        shared = group.shared
        return self._put_together(self.exchanges.join(group.what, shared.arrivals, shared.before, shared.offsets))

    def _put_together(self, joined: Joined) -> Group:
        shared = Shared(joined.offsets, joined.arrivals, joined.arrivals, joined.before)
        return Group(self.name, np.arange(len(joined.what)), joined.what.times, shared, joined.what)

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
        self._wants_features = self._wants_outliers or bool(of("missing_features") or of("invalid_features"))

    def reconfigure(self, book: RuleBook) -> None:
        """Take another config."""
        super().reconfigure(book)
        serving = book.config.serving
        self.exchanges.timeout_us, self.exchanges.limit = serving.response_timeout.us, serving.max_outstanding
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
        for window, rows in self._by_window(placed, offsets, versions):
            window.tally(placed.index, placed.late, values=values, buckets=buckets, failed=failed)
            self._count_classes(window, what.labels[rows], what.names)
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
        values, missing, invalid, given = features.matrix(self.features)
        flawless = not missing.flags.writeable  # the shared zeros: every number is there
        if placed.alike and flawless:
            windows = [(int(placed.index[0]), given)]
        else:
            counted = given & ~placed.late
            windows = [(int(v), counted & (placed.index == v)) for v in np.unique(placed.index[counted])]
        for value, own in windows:
            window = self.windows.open[value]
            window.feature_rows += int(np.count_nonzero(own))
            if window.missing is None or window.invalid is None:
                window.missing = np.zeros(missing.shape[1], np.int64)
                window.invalid = np.zeros(missing.shape[1], np.int64)
            if not flawless:
                window.missing += missing[own].sum(axis=0)
                window.invalid += invalid[own].sum(axis=0)
        if not self._wants_outliers or not values.shape[1]:
            return []
        return self._observe_events(
            "feature_outlier",
            values,
            progress,
            offsets,
            versions=versions,
            rows=None if flawless else ~np.isnan(values).any(axis=1),
            columns=self.features.numeric,
        )

    def _count_classes(self, window: Accumulator, labels: I32, names: list[str]) -> None:
        if not window.classes:
            window.classes = {}
        for code, count in Counter(labels.tolist()).items():
            if code >= 0:
                name = self.classes.note(names[code])
                window.classes[name] = window.classes.get(name, 0) + count

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[tuple[str, float, int]]:
        n, answered = window.count, window.count - window.errors
        if whole:
            yield "throughput", n / (self.windows.size_us / 1e6), n
        if n == 0:
            return
        yield "error_rate", window.errors / n, n
        if window.value_n:
            yield "prediction_value", window.value_sum / window.value_n, window.value_n
        if (latencies := window.latency_n()) > 0:
            for q in (50, 95, 99):
                yield f"latency_p{q}", window.latency_quantile(q / 100), latencies
        for label, share, labelled in self.classes.shares(window):
            yield f"class_share:{label}", share, labelled
        if window.feature_rows and window.missing is not None and window.invalid is not None and answered:
            cells = window.feature_rows * len(window.missing)
            if cells:
                yield "missing_features", int(window.missing.sum()) / cells, window.feature_rows
                yield "invalid_features", int(window.invalid.sum()) / cells, window.feature_rows

    def _own_state(self) -> dict[str, Any]:
        return {
            "features": self.features.snapshot(),
            "classes": self.classes.snapshot(),
            "exchanges": self.exchanges.snapshot(),
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.features.restore(own["features"])
        self.classes.restore(own["classes"])
        self.exchanges.restore(own.get("exchanges"))  # states of before have none


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

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[tuple[str, float, int]]:  # noqa: ARG002
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

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[tuple[str, float, int]]:
        if whole:
            yield "throughput", window.count / (self.windows.size_us / 1e6), window.count
        for label, share, labelled in self.classes.shares(window):
            yield f"label_share:{label}", share, labelled

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
