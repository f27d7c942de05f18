"""The worker's pipeline over history: lines in, alerts and a report out; pure.

One line is one record, and its number its offset; the order of the lines is the order of the log.
A line is an event, or a record written out as `{"key": …, "value": {…}, "timestamp": …, "headers": {…}}`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct, field

from streamproc.events import Alert, Header, RecordBatch, Time, time_us
from streamproc.pipeline import Output, Pipeline
from streamproc.rules import RuleBook
from streamproc.signals import SourceKind

#: Lines taken at once. Any number gives the same alerts; this one keeps the columns long and memory small.
BATCH_LINES = 2000


class Report(Struct):
    """What a replay came to. `examples` has, for each reason, the first line rejected and why."""

    lines: int = 0
    events: int = 0
    late: int = 0
    refused: int = 0
    untimed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[int, str]] = field(default_factory=dict)
    alerts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by signal and action
    shadow: Counter[tuple[str, str]] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # of predictions and labels that were joined, or not
    models: set[str] = field(default_factory=set)
    first_us: int | None = None
    last_us: int | None = None

    def opened(self) -> int:
        """Return how many alerts opened."""
        return sum(n for (_, action), n in self.alerts.items() if action == "opened")

    def opened_signals(self) -> set[str]:
        """Return the signals on which an alert opened; a member of a family under both its names."""
        names = {signal for signal, action in self.alerts if action == "opened"}
        return names | {n.partition(":")[0] for n in names}


class _Line(Struct, gc=False):
    """As much of a line as tells when it happened and whether it is a record written out."""

    time: Any = None
    value: msgspec.Raw = field(default_factory=msgspec.Raw)
    key: str | None = None
    timestamp: float | None = None
    headers: dict[str, str | None] | None = None


class _Envelope(Struct, gc=False):
    time: Any = None


_line = msgspec.json.Decoder(_Line).decode
_inner = msgspec.json.Decoder(_Envelope).decode
_any = msgspec.json.Decoder().decode


#: A record's number, its time in milliseconds, key, value and headers.
Record = tuple[int, int, bytes | None, bytes, list[Header]]


class Replay:
    """One file's worth of one kind of event, through one pipeline."""

    def __init__(self, book: RuleBook, *, kind: SourceKind) -> None:
        topics: list[str] = getattr(book.config.kafka, kind)
        self.pipeline = Pipeline(book, kind=kind, topic=topics[0] if topics else kind)
        self.report = Report()
        time_path = book.config.fields.get(kind, {}).get("time")
        self._time_path = None if time_path is None else time_path.removeprefix("$.").split(".")
        self._clock_ms = 0

    def run(self, lines: Iterable[bytes], *, batch_lines: int = BATCH_LINES) -> Iterator[Alert]:
        """Yield the alerts that lines bring, as they come; blank lines are passed over.

        Alerts of rules in shadow mode are counted and not yielded. What is still open at the last
        line stays open: nobody knows what came after.
        """
        rows: list[Record] = []
        for row in self.records(lines):
            rows.append(row)
            if len(rows) >= batch_lines:
                yield from self._told(self.process(rows))
                rows = []
        if rows:
            yield from self._told(self.process(rows))

    def records(self, lines: Iterable[bytes]) -> Iterator[Record]:
        """Yield lines as records; blank ones are passed over."""
        for number, line in enumerate(lines):
            text = line.strip()
            if text:
                yield (number, *self._record(text))

    def process(self, rows: list[Record]) -> Output:
        """Take records, and count what comes of them."""
        offsets, stamps, keys, values, headers = map(list, zip(*rows, strict=True))
        out = self.pipeline.process(
            RecordBatch(self.pipeline.topic, 0, offsets, stamps, keys, values, headers)
        )
        self._count(out, len(rows))
        return out

    def _told(self, out: Output) -> Iterator[Alert]:
        """Count alerts, and yield those of rules that are not in shadow mode."""
        for alert in out.alerts:
            counter = self.report.shadow if self._is_shadow(alert) else self.report.alerts
            counter[alert.signal, alert.action] += 1
            if counter is self.report.alerts:
                yield alert

    def _count(self, out: Output, lines: int) -> None:
        report = self.report
        report.lines += lines
        report.events += out.events
        report.late += out.late
        report.refused += out.refused
        report.models.update(self.pipeline.models)
        for rejected in out.rejected:
            report.rejected[rejected.error_type] += 1
            report.examples.setdefault(rejected.error_type, (rejected.offset + 1, rejected.message))

    def _is_shadow(self, alert: Alert) -> bool:
        return _is_shadow(self.pipeline, alert)

    def _record(self, text: bytes) -> tuple[int, bytes | None, bytes, list[Header]]:
        """Return record time in milliseconds, key, value and headers of one line."""
        key: bytes | None = None
        value, headers, when = text, [], None
        try:
            line = _line(text)
            wrapped = bytes(line.value)
            if wrapped[:1] == b"{" and (line.key is not None or line.timestamp is not None or line.headers):
                value, when = wrapped, line.timestamp
                key = None if line.key is None else line.key.encode()
                headers = [(k, None if v is None else v.encode()) for k, v in (line.headers or {}).items()]
                if when is None:
                    when = _inner(value).time
            else:
                when = line.time
            if self._time_path is not None and when is None:
                when = _at(_any(value), self._time_path)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # the pipeline says what is wrong with it
        return self._stamp(when), key, value, headers

    def _stamp(self, when: Any) -> int:
        """Return the record time: the event's own, or a millisecond after the latest before it."""
        try:
            us = None if when is None else time_us(msgspec.convert(when, Time))
        except (msgspec.ValidationError, ValueError, OverflowError):
            us = None
        if us is None:
            self._clock_ms += 1
            self.report.untimed += 1
            return self._clock_ms
        report = self.report
        report.first_us = us if report.first_us is None else min(report.first_us, us)
        report.last_us = us if report.last_us is None else max(report.last_us, us)
        self._clock_ms = max(self._clock_ms, us // 1000)
        return us // 1000


class JoinedReplay(Replay):
    """Predictions and their labels, a file of each, through the three pipelines that a worker has for them.

    The files are read side by side, by the times of their records.
    """

    def __init__(self, book: RuleBook) -> None:
        super().__init__(book, kind="predictions")
        self.labels = Replay(book, kind="labels")
        self.labels.report = self.report
        self.joins = Pipeline(book, kind="quality", topic=book.config.kafka.joins_topic() or "joins")
        config = book.config
        windows = [config.defaults.window, *(b.window for b in config.models if b.window is not None)]
        # What is read at once spans less than a silence: one side must not seem silent while the other is read.
        self._slice_ms = max(1, min(w.us for w in windows) // 1000)

    def run_both(
        self, predictions: Iterable[bytes], labels: Iterable[bytes], *, batch_lines: int = BATCH_LINES
    ) -> Iterator[Alert]:
        """Yield the alerts that two files of lines bring, as they come."""
        sides = ((self, predictions), (self.labels, labels))
        merged = heapq.merge(*(_ordered(side, lines) for side, lines in sides), key=itemgetter(0))
        asked: list[Record] = []
        told: list[Record] = []
        last = 0
        for stamp, side, row in merged:
            apart = stamp // self._slice_ms != last // self._slice_ms
            if (asked or told) and (apart or len(asked) + len(told) >= batch_lines):
                yield from self._take(asked, told, last)
                asked, told = [], []
            (told if side is self.labels else asked).append(row)
            last = stamp
        if asked or told:
            yield from self._take(asked, told, last)

    def _take(self, asked: list[Record], told: list[Record], stamp: int) -> Iterator[Alert]:
        sent: list[tuple[str, bytes]] = []
        for side, own in ((self, asked), (self.labels, told)):
            if own:
                out = side.process(own)
                sent += out.forwarded
                yield from side._told(out)
        if sent:
            first = self.joins.next_offset
            keys, values = [m.encode() for m, _ in sent], [v for _, v in sent]
            offsets = range(first, first + len(sent))
            out = self.joins.process(
                RecordBatch(self.joins.topic, 0, offsets, [stamp] * len(sent), keys, values, [()] * len(sent))
            )
            self.report.outcomes += out.outcomes
            yield from self._told(out)

    def _is_shadow(self, alert: Alert) -> bool:
        return super()._is_shadow(alert) or _is_shadow(self.joins, alert)


def _ordered(side: Replay, lines: Iterable[bytes]) -> Iterator[tuple[int, Replay, Record]]:
    """Yield records with the latest time up to each, which never goes back."""
    latest = 0
    for row in side.records(lines):
        latest = max(latest, row[1])
        yield latest, side, row


def _is_shadow(pipeline: Pipeline, alert: Alert) -> bool:
    rules = pipeline.book.for_model(pipeline.kind, alert.labels["model"]).of(alert.signal)
    return any(r.shadow for r in rules if r.detector == alert.detector.name)


def _at(tree: Any, path: list[str]) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree
