"""What is known of one model: its windows, its watches, what its features and classes are called.

A model's events of a batch come as a `Group`, in the order of the log; what they come to does not
depend on how many there are in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from detectors.protocol import F64, I64
from streamproc import joins, kernels
from streamproc.arrivals import SilenceWatch
from streamproc.budget import Fleet
from streamproc.events import Alert, Feedback, Incident, Share
from streamproc.rules import ModelRules, RuleBook
from streamproc.segments import History
from streamproc.signals import Kind
from streamproc.telling import Subject
from streamproc.watch import Basis, Watch, end_unwatched
from streamproc.windows import Accumulator, Windows

#: Format of a model's state; older ones are refused by name rather than misread.
STATE_VERSION = 5

#: Metrics, and classes or labels, watched per model beyond which newcomers share one name.
OTHER = "(other)"
MAX_METRICS = 200

#: Why a measurement is ignored.
METRIC_BEYOND = f"metric beyond the first {MAX_METRICS} of its model"

#: Features an alert names at most.
_MAX_SHARES = 5

DAY_US = 86_400_000_000


class Shared(Struct, gc=False):
    """What every kind of record has: offsets, Kafka's record time, when it arrived, and the arrival clock.

    All (n,), the last four in microseconds: arrivals by the clock or, where a record is ahead of that, by the record;
    before, the clock just before each; settled, the clock at each.
    """

    offsets: I64
    stamps: I64
    arrivals: I64
    before: I64
    settled: I64 | None = None  # None: nothing is ahead of the clock

    def at(self, rows: Any) -> Shared:
        """Return some of the records."""
        return Shared(
            self.offsets[rows],
            self.stamps[rows],
            self.arrivals[rows],
            self.before[rows],
            None if self.settled is None else self.settled[rows],
        )


class Placed(Struct, gc=False):
    """Where n events belong: index (n,) of their windows, late (n,), and if one window takes them all."""

    index: I64
    late: npt.NDArray[np.bool_]
    alike: bool

    def at(self, rows: Any) -> Placed:
        """Return some of the events."""
        return Placed(self.index[rows], self.late[rows], self.alike)


class Aggregate(Struct, gc=False):
    """A closed window's value of a signal, of n events; parts (d,): what each of some features adds to it."""

    signal: str
    value: float
    n: int
    names: tuple[str, ...] = ()
    parts: F64 | None = None
    measured: bool = False  # against the baseline

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
    made: npt.NDArray[np.bool_] | None = None  # which were put together of halves; None for none

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: Any) -> Group:
        """Return some of the records."""
        made = None if self.made is None else self.made[rows]
        return Group(self.name, self.rows[rows], self.times[rows], self.shared.at(rows), self.what.at(rows), made)


class Taken(Struct):
    """What became of a model's records, each counted once: what `Output` has of them."""

    scored: int = 0
    paired: int = 0
    late: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)  # what an operator should know of it once


def add_warming(found: dict[str, tuple[int, int, int]], more: Mapping[str, tuple[int, int, int]]) -> None:
    """Add to what `ModelState.warming` gave what it gave of others."""
    for name, (n, most, longest_us) in more.items():
        before = found.get(name, (0, 0, 0))
        found[name] = (before[0] + n, max(before[1], most), max(before[2], longest_us))


class ModelState:
    """What is known of one model from one kind of event; the kinds differ in `_columns`."""

    kind: Kind

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int, *, segment: str = "") -> None:
        self.name = name
        self.book = book
        self.segment = segment  # dimension=value; empty for the whole model
        self.rules: ModelRules = self._rules(book)
        self.history = History()
        self.subject = Subject(topic, partition, name, segment, self.history, book.silences)
        self.feedback_seen = -1  # offset of the last verdict that was taken
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
        self.warm = -1  # watches there were when all of them gave scores; -1: not all did
        self.behind = -1  # the greatest offset in a window that has closed
        self.origins: dict[int, int] = {}  # greatest offset had from each partition before a re-keying
        self.sent_on = -1  # the last offset whose row was sent on to be joined
        self._faulty = False  # the window that is closing is of a stretch that nobody takes for normal
        self._outbox: list[bytes] = []
        self._taken = Taken()
        self._left: list[Alert] = []  # ends of alerts that nothing watches any more, to be told of next

    def _rules(self, book: RuleBook) -> ModelRules:
        rules = book.for_model(self.kind, self.name)
        return rules.of_segment or rules if self.segment else rules

    # -- records in

    def take(self, group: Group) -> list[Alert]:
        """Take this model's events of a batch."""
        alerts = self._leave()
        arrivals, offsets = group.shared.arrivals, group.shared.offsets
        # What is ahead of the clock may be of a host that is: the clock tells of a gap, once it is there.
        settled = group.shared.settled
        sure = slice(None) if settled is None else settled >= arrivals
        if settled is None or sure.any():  # type: ignore[union-attr]
            for silence in self.silence:
                alerts += silence.observe(self.subject, arrivals[sure], offsets[sure])
        if self.started_us is None:
            self.started_us = int(group.times[0])
            self.first_stamp_us = int(group.shared.stamps[0])
        alerts += self._observe(self._joined(group))
        self.last_arrival_us = int(arrivals[-1])
        return alerts + self._close()

    def _leave(self) -> list[Alert]:
        left, self._left = self._left, []
        return left

    def incidents(self) -> list[Incident]:
        """Return the incidents to be published, once; none but of the kind that finds them."""
        return []

    def _joined(self, group: Group) -> Group:
        """Return what a group's records come to: predictions, where some are halves of one."""
        return group

    def _observe(self, group: Group) -> list[Alert]:
        """Put events into their windows, and show them to the watches."""
        if not len(group):
            return []
        progress = self.windows.advance(group.times, group.shared.arrivals, group.shared.before)
        index, late, alike = self.windows.place(group.times, progress)
        if group.made is None:
            came, lost = len(group), 0 if alike else int(np.count_nonzero(late))
        else:
            came, lost = int(np.count_nonzero(~group.made)), int(np.count_nonzero(late & ~group.made))
        self._taken.late += lost
        self._taken.scored += came - lost
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

    def taken(self) -> Taken:
        """Return what became of the records since this was last called."""
        taken, self._taken = self._taken, Taken()
        return taken

    def losses(self) -> tuple[int, int, int]:
        """Return how many requests were not answered, halves given up on for want of room, and repeated."""
        return 0, 0, 0

    def allot(self, fleet: Fleet, *, allowed_per_day: float) -> None:
        """Let each watch have its part of what all models of a partition are allowed together in a day."""
        self.allotted = fleet.period
        self._share(fleet, allowed_per_day / max(fleet.size, 1.0) / max(self._watching(), 1))

    def _watching(self) -> int:
        """Return how many watches there are, or may be of a model of which there are none yet."""
        return len(self.watches) or self.rules.count()

    def _share(self, fleet: Fleet, allowed_per_day: float) -> None:
        self.allowed_per_day = allowed_per_day
        for watch in self.watches.values():
            self._allot(watch, fleet.days(self.first_stamp_us))

    def _allot(self, watch: Watch, days: float) -> None:
        """Let one watch have its part, its values a day being known from the window, or from its days."""
        a_day = DAY_US / self.windows.size_us if watch.rule.spec.shape == "window" else watch.life.seen / days
        watch.allot(observations_per_day=a_day, allowed_per_day=self.allowed_per_day)

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without an event."""
        alerts = self._leave()
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
        due = [0 if self._left else self.last_arrival_us + idle_ttl_us]
        due += [d for s in self.silence if (d := s.due_us()) is not None]
        if (window := self.windows.due_us()) is not None:
            due.append(window)
        if self.windows.max_event_us is not None:
            shift = self.windows.last_arrival_us + self.windows.idle_us - self.windows.max_event_us
            due += [d + shift for w in self.watches.values() if (d := w.life.due_us()) is not None]
        return min(due)

    def warming(self) -> dict[str, tuple[int, int, int]]:
        """Return each signal of which a series gives no scores yet: how many, values they need at most, and how long.

        The last in microseconds, 0 where values come as events do. A family's members count under its own name.
        """
        found: dict[str, tuple[int, int, int]] = {}
        watching = len(self.watches) + len(self.silence)
        if self.warm == watching:  # what has begun to score goes on
            return found
        left = [(w.rule, w.detector.warming()) for w in self.watches.values()]
        left += [(s.rule, s.detector.warming()) for s in self.silence]
        for rule, values in left:
            if values:
                name = rule.signal.partition(":")[0]
                add_warming(found, {name: (1, values, values * rule.window_us)})
        self.warm = -1 if found else watching
        return found

    def keeps_us(self, idle_ttl_us: int) -> int:
        """Return how long the model is kept without a record."""
        return idle_ttl_us

    def feedback(self, verdicts: Sequence[tuple[int, Feedback]], clock_us: int) -> list[Alert]:
        """Take what operators say of alerts, each with its offset; what was taken before passes by.

        clock_us: of arrivals.
        """
        fresh = [(offset, v) for offset, v in verdicts if offset > self.feedback_seen]
        if not fresh:
            return []
        self.feedback_seen = fresh[-1][0]
        self.warm = -1  # a verdict may have a detector begin anew
        now_us = self.windows.progress_us or self.last_arrival_us
        named = {watch.fingerprint(self.subject): watch for watch in self.watches.values()}
        silent = {watch.fingerprint(self.subject): watch for watch in self.silence}
        alerts: list[Alert] = []
        for offset, verdict in fresh:
            if (watch := named.get(verdict.fingerprint)) is not None:
                alerts += watch.feedback(self.subject, verdict, offset, now_us)
            elif (silence := silent.get(verdict.fingerprint)) is not None:
                alerts += silence.feedback(self.subject, verdict, offset, clock_us)
        return alerts

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
            self.behind = max(self.behind, window.offset_last)
            # The window in which a model first appeared is not a whole one.
            whole = self.started_us is not None and window.index * self.windows.size_us >= self.started_us
            self._faulty = self._is_faulty(window)
            for aggregate in self._aggregates(window, whole):
                alerts += self._observe_window(aggregate, end_us, window)
        return alerts

    def _is_faulty(self, window: Accumulator) -> bool:
        """Whether a window is of a stretch that nobody takes for normal, and that nothing begins to learn from."""
        del window
        return False

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        raise NotImplementedError

    def _observe_window(self, aggregate: Aggregate, end_us: int, window: Accumulator) -> list[Alert]:
        alerts: list[Alert] = []
        n = aggregate.n
        carried = None if aggregate.parts is None else aggregate.carried
        offset, opening = window.offset_first, None
        if offset < 0:
            # Without an event of its own the window rests on the last record before it. That names no episode: another
            # empty window may rest on the same.
            offset, opening = max(window.offset_last, self.behind), window.index
        against = self._against if aggregate.measured else None
        basis = Basis(n, max(window.offset_last, offset), opening, self._faulty, carried, against)
        for watch in self._watches(aggregate.signal):
            if n >= watch.rule.min_samples:
                alerts += watch.observe(
                    self.subject,
                    np.array([aggregate.value]),
                    np.array([end_us]),
                    np.array([offset]),
                    versions=(window.version,),
                    basis=basis,
                )
        return alerts

    def _against(self) -> str:
        """Return in words what aggregates are measured against."""
        return ""

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
        self.book, self.rules = book, self._rules(book)
        self.subject = msgspec.structs.replace(self.subject, silences=book.silences)
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
                self._left += end_unwatched(watch.rule, self.subject, watch.life.snapshot(), watch.version)
                del self.watches[signal, detector]
            else:
                watch.adopt(rule)
        self.warm = -1
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
            "feedback": self.feedback_seen,
            "sent_on": self.sent_on,
            "behind": self.behind,
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
        self.feedback_seen = tree["feedback"]
        self.origins = {int(p): int(o) for p, o in tree["origins"]}
        self.sent_on = tree.get("sent_on", -1)  # states of before have none
        self.behind = tree.get("behind", -1)  # likewise
        self._restore_own(tree["own"])
        if tree["window_us"] == self.windows.size_us:
            self.windows.restore(tree["windows"])
        for signal, detector, state in tree["watches"]:
            rules = self.rules.of(signal)
            rule = next((r for r in rules if r.detector == detector), None)
            if rule is not None:
                watch = self.watches[signal, detector] = Watch(rule, columns=tuple(state["columns"]))
                watch.restore(state)
            elif rules:
                gone = msgspec.structs.replace(rules[0], detector=detector)
                self._left += end_unwatched(gone, self.subject, state["life"], state["version"])
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
        return bounded(name, self.names, self.limit)

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
            rows.setdefault(bounded(event.name, self.metrics, MAX_METRICS), []).append(i)
        alerts: list[Alert] = []
        for name, at in rows.items():
            if name == OTHER:  # unlike things have no common normal
                timely = int(np.count_nonzero(~placed.late[at]))  # what is late was counted as that
                self._taken.scored -= timely
                self._taken.ignored[METRIC_BEYOND] += timely
                continue
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
        self.evaluations: list[str] = []

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
        # In the order of the log, not of windows: where names run out, the cut must not choose.
        classes = [None if (name := _class_of(e)) is None else self.classes.note(name) for e in events]
        known = self.evaluations
        judged = [None if (name := e.evaluation) is None else bounded(name, known, MAX_METRICS) for e in events]
        for window, rows in self._by_window(placed, offsets):
            for i in range(len(events)) if isinstance(rows, slice) else rows.tolist():
                if (name := classes[i]) is not None:
                    window.classes[name] = window.classes.get(name, 0) + 1
                if (judge := judged[i]) is not None and events[i].evaluation_score is not None:
                    score = window.scores.setdefault(judge, [0.0, 0.0])
                    score[0] += 1.0
                    score[1] += max(-kernels.LARGEST, min(events[i].evaluation_score, kernels.LARGEST))
        return []

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        if whole:
            yield Aggregate("throughput", window.count / (self.windows.size_us / 1e6), window.count)
        for label, share, labelled in self.classes.shares(window):
            yield Aggregate(f"label_share:{label}", share, labelled)
        for name, (n, total) in window.scores.items():
            if name != OTHER:
                yield Aggregate(f"evaluation:{name}", total / n, int(n))

    def _own_state(self) -> dict[str, Any]:
        return {"classes": self.classes.snapshot(), "evaluations": list(self.evaluations)}

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.classes.restore(own["classes"])
        self.evaluations = list(own["evaluations"])


def _class_of(event: Any) -> str | None:
    """Return the class a label is counted under: its own, or that which an evaluation gave."""
    if event.label is not None:
        return str(event.label)
    if event.evaluation is not None and event.evaluation_label is not None:
        return f"{event.evaluation}={event.evaluation_label}"
    return None


def bounded(name: str, known: list[str], limit: int) -> str:
    """Return name where it is known or there is room to know it, else the name of all others."""
    if name in known:
        return name
    if len(known) < limit:
        known.append(name)
        return name
    return OTHER
