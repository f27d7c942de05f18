"""The worker's pipeline over history: lines in; alerts, incidents and a report out; pure.

One line is one record, and its number its offset; the order of the lines is the order of the log, but for those of
several partitions, which are put side by side by their times (`lines`). A line is an event, or a record written out as
`{"key": …, "value": {…}, "timestamp": …, "headers": {…}}` or as `kcat -J` does.

Incidents are made of the alerts as the worker makes them, each alert a record of the time it tells of. In which
order models' alerts come out of one batch depends on how lines are cut into batches. So they are gathered over a
stretch of lines that is the same however those are cut, and put in the order of their times.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct, field

from streamproc import coercion, lines
from streamproc.cloudevents import to_json
from streamproc.events import FLEET_KEY, Alert, Category, Header, Incident, RecordBatch, Time, time_us
from streamproc.pipeline import Output, Pipeline
from streamproc.quality import QualityState
from streamproc.rules import RuleBook
from streamproc.signals import SourceKind

#: Lines taken at once. Any number gives the same alerts; this one keeps the columns long and memory small.
BATCH_LINES = 2000

#: Alerts of so many lines, at least, are put in the order of their times before incidents are made of them. As many as
#: are taken at once, so that it costs no batch its length.
_STRETCH = BATCH_LINES

#: Incidents that a report tells of one by one; the others it counts.
_LISTED = 20


class Report(Struct):
    """What a replay came to. `examples` has, for each reason, the first line rejected and why.

    `incidents` counts steps by action, `causes` incidents by what was said last to have caused them. `listed` has the
    last step of each of the first incidents.
    """

    lines: int = 0
    came: int = 0  # events, of which a record may hold many; `accounts` says what became of each
    accounts: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)  # understood and not watched, by reason
    halves: Counter[str] = field(default_factory=Counter)  # what pairing of requests and responses gave up on
    notes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by model
    tasks: dict[str, str] = field(default_factory=dict)  # what models do, by their labels
    events: int = 0
    late: int = 0
    refused: int = 0
    untimed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[int, str]] = field(default_factory=dict)
    alerts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by signal and action
    shadow: Counter[tuple[str, str]] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # of predictions and labels that were joined, or not
    incidents: Counter[str] = field(default_factory=Counter)
    merged: int = 0  # resolved as part of an older one
    causes: Counter[Category] = field(default_factory=Counter)
    lasting: dict[str, Category] = field(default_factory=dict)  # the cause of each incident that is not over
    listed: dict[str, Incident] = field(default_factory=dict)
    pages: Counter[str] = field(default_factory=Counter)  # passed on: openings of alerts, and of digests
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

    def tell(self, incident: Incident) -> None:
        """Count a step of an incident."""
        number, cause = incident.incident_id, incident.cause.category
        self.incidents[incident.action] += 1
        if number in self.listed or len(self.listed) < _LISTED:
            self.listed[number] = incident
        if (said := self.lasting.pop(number, None)) is not None:
            self.causes[said] -= 1
        self.causes[cause] += 1
        if incident.action == "resolved":
            self.merged += "merged_into" in incident.annotations
        else:
            self.lasting[number] = cause


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


#: A record's number, its time in milliseconds, key, value and headers.
Record = lines.Row


class Page(Struct, frozen=True):
    """An alert, or a digest, that is passed on under the cap."""

    alert: Alert


class Grouping:
    """The worker's agent of incidents and pages, over the alerts of a replay."""

    def __init__(self, book: RuleBook) -> None:
        self.pipeline = Pipeline(book, kind="alerts", topic=book.config.kafka.alert_feed)

    def take(self, alerts: list[Alert]) -> list[Incident | Page]:
        """Take alerts, in any order; return the incidents' steps that come of them, and what is passed on.

        The record of each has the time it tells of, or the greatest before it.
        """
        if not alerts:
            return []
        alerts = _by_time(alerts)
        latest_ms, stamps = self.pipeline.clock_us // 1000, []
        for alert in alerts:
            latest_ms = max(latest_ms, time_us(dt.datetime.fromisoformat(alert.lastReceived)) // 1000)
            stamps.append(latest_ms)
        first, n = self.pipeline.next_offset, len(alerts)
        values = [to_json(a) for a in alerts]
        return _made(
            self.pipeline.process(
                RecordBatch(self.pipeline.topic, 0, range(first, first + n), stamps, [FLEET_KEY] * n, values, [()] * n)
            )
        )

    def advance(self, clock_us: int) -> list[Incident | Page]:
        """Let the time of the file pass without an alert."""
        return _made(self.pipeline.advance(clock_us))


def _made(out: Output) -> list[Incident | Page]:
    return [*out.incidents, *map(Page, out.alerts)]


class Replay:
    """One file's worth of one kind of event, through one pipeline.

    bound: lines kept to put those of several partitions in order; 0: all are taken as they come, at once.
    """

    def __init__(self, book: RuleBook, *, kind: SourceKind, bound: int = 0) -> None:
        topics: list[str] = getattr(book.config.kafka, kind)
        self.pipeline = Pipeline(book, kind=kind, topic=topics[0] if topics else kind)
        self.report = Report()
        self.grouping = Grouping(book) if book.config.kafka.alert_feed else None
        self._ungrouped: list[Alert] = []
        self._maps_time = "time" in book.config.fields.get(kind, {})
        self._clock_ms = 0
        self._next = 0  # offset
        self.order = lines.InOrder(bound=bound)

    def run(self, text: Iterable[bytes], *, batch_lines: int = BATCH_LINES) -> Iterator[Alert | Incident | Page]:
        """Yield the alerts that lines bring, as they come, the incidents and the pages; blank lines are passed over.

        Alerts of rules in shadow mode are counted and not yielded. What is still open at the last
        line stays open: nobody knows what came after.
        """
        rows: list[Record] = []
        left = _STRETCH
        for row in self.records(text):
            rows.append(row)
            left -= 1
            if len(rows) >= batch_lines or not left:
                yield from self._told(self.pipeline, self.process(rows))
                rows = []
            if not left:
                yield from self._grouped()
                left = _STRETCH
        if rows:
            yield from self._told(self.pipeline, self.process(rows))
        yield from self._grouped(end_us=self.pipeline.clock_us)

    def records(self, text: Iterable[bytes]) -> Iterator[Record]:
        """Yield lines as records, in the order of a log; blank ones are passed over."""
        return self.order.take(self._placed(text))

    def _placed(self, text: Iterable[bytes]) -> Iterator[tuple[int | None, Record]]:
        """Yield lines as records, each with its partition where it tells that."""
        for number, raw in enumerate(text):
            line = raw.strip()
            if not line:
                continue
            found = lines.of_kcat(line)
            if found is None:
                yield None, (number, *self._record(line))
            else:
                ms = self._record(found.value or b"")[0] if found.ms is None else self._stamp(found.ms)
                yield found.partition, (number, ms, found.key, found.value, found.headers)

    def process(self, rows: list[Record]) -> Output:
        """Take records, and count what comes of them."""
        numbers, stamps, keys, values, headers = map(list, zip(*rows, strict=True))
        # A log's offsets rise; a line that was moved has that of where it has come to.
        offsets = []
        for number in numbers:
            offsets.append(max(self._next, number))
            self._next = offsets[-1] + 1
        out = self.pipeline.process(
            RecordBatch(self.pipeline.topic, 0, offsets, stamps, keys, values, headers)
        )
        self._count(out, numbers)
        return out

    def _told(self, pipeline: Pipeline, out: Output) -> Iterator[Alert]:
        """Count alerts, and yield those of rules that are not in shadow mode."""
        for alert in out.alerts:
            counter = self.report.shadow if _is_shadow(pipeline, alert) else self.report.alerts
            counter[alert.signal, alert.action] += 1
            if counter is self.report.alerts:
                if self.grouping is not None:
                    self._ungrouped.append(alert)
                yield alert

    def _grouped(self, *, end_us: int | None = None) -> Iterator[Incident | Page]:
        """Yield what is made of the alerts since the last time, and of the time up to the file's end.

        In between nothing needs the clock: what is due before an alert is told of, as of when it was, at that alert.
        """
        if self.grouping is None:
            return
        found = self.grouping.take(self._ungrouped)
        self._ungrouped = []
        if end_us is not None:
            found += self.grouping.advance(end_us)
        for one in found:
            if isinstance(one, Incident):
                self.report.tell(one)
            elif one.alert.action == "opened":
                self.report.pages["digests" if one.alert.signal == "digest" else "alerts"] += 1
            yield one

    def _count(self, out: Output, numbers: list[int]) -> None:
        report = self.report
        report.lines += len(numbers)
        report.came += out.came
        report.accounts.update(out.accounts())
        report.ignored += out.ignored
        report.halves.update(unanswered=out.unanswered, crowded_out=out.outnumbered, repeated=out.repeated)
        report.notes.update(out.notes)
        report.events += out.events
        report.late += out.late
        report.refused += out.refused
        report.models.update(self.pipeline.models)
        for rejected in out.rejected:
            report.rejected[rejected.error_type] += 1
            report.examples.setdefault(rejected.error_type, (numbers[rejected.row] + 1, rejected.message))

    def _record(self, text: bytes) -> tuple[int, bytes | None, bytes, list[Header]]:
        """Return record time in milliseconds, key, value and headers of one line."""
        key: bytes | None = None
        value, headers, when = text, [], None
        try:
            try:
                line = _line(text)
            except msgspec.DecodeError:
                if (plain := coercion.without_nan(text)) is None:
                    raise
                line, value = _line(plain), text
            wrapped = bytes(line.value)
            if wrapped[:1] == b'"':  # a body that is no JSON
                wrapped = msgspec.json.decode(wrapped, type=str).encode("utf-8", "surrogatepass")
            if wrapped[:1] not in (b"", b"n") and (line.key is not None or line.timestamp is not None or line.headers):
                value, when = wrapped, line.timestamp
                key = None if line.key is None else line.key.encode()
                headers = [(k, None if v is None else v.encode()) for k, v in (line.headers or {}).items()]
                if when is not None and when <= 0:
                    when = None  # the broker had none
                if when is None and not self._maps_time:
                    when = _inner(value).time
            elif not self._maps_time:
                when = line.time
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # the pipeline says what is wrong with it
        if when is None:  # it may stand in a span, a header or an envelope: where the decoders look
            when = self.pipeline.time_of(value, headers, key)
        return self._stamp(when), key, value, headers

    def _stamp(self, when: Any) -> int:
        """Return the record time: the event's own, or a millisecond after the latest before it."""
        try:
            if isinstance(when, str):
                try:
                    when = msgspec.convert(when, dt.datetime)
                except msgspec.ValidationError:
                    when = coercion.read_time(when)
            us = None if when is None else coercion.plausible_us(msgspec.convert(when, Time))
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

    def __init__(self, book: RuleBook, *, bound: int = 0) -> None:
        super().__init__(book, kind="predictions", bound=bound)
        self.labels = Replay(book, kind="labels", bound=bound)
        self.labels.report, self.labels.grouping = self.report, self.grouping
        self.joins = Pipeline(book, kind="quality", topic=book.config.kafka.joins_topic() or "joins")
        config = book.config
        windows = [config.defaults.window, *(b.window for b in config.models if b.window is not None)]
        # What is read at once spans less than a silence: one side must not seem silent while the other is read.
        self._slice_ms = max(1, min(w.us for w in windows) // 1000)

    def run_both(
        self, predictions: Iterable[bytes], labels: Iterable[bytes], *, batch_lines: int = BATCH_LINES
    ) -> Iterator[Alert | Incident | Page]:
        """Yield the alerts that two files of lines bring, as they come, the incidents and the pages."""
        sides = ((self, predictions), (self.labels, labels))
        merged = heapq.merge(*(_ordered(side, text) for side, text in sides), key=itemgetter(0))
        asked: list[Record] = []
        told: list[Record] = []
        last = 0
        since = 0  # incidents were last made
        for stamp, side, row in merged:
            apart = stamp // self._slice_ms != last // self._slice_ms
            if (asked or told) and (apart or len(asked) + len(told) >= batch_lines):
                yield from self._take(asked, told, last)
                asked, told = [], []
            if apart and since >= _STRETCH:
                yield from self._grouped()
                since = 0
            (told if side is self.labels else asked).append(row)
            last = stamp
            since += 1
        if asked or told:
            yield from self._take(asked, told, last)
        clocks = (p.clock_us for p in (self.pipeline, self.labels.pipeline, self.joins))
        yield from self._grouped(end_us=max(clocks))

    def _take(self, asked: list[Record], told: list[Record], stamp: int) -> Iterator[Alert]:
        sent: list[tuple[str, bytes]] = []
        for side, own in ((self, asked), (self.labels, told)):
            if own:
                out = side.process(own)
                sent += out.forwarded
                yield from self._told(side.pipeline, out)
        if sent:
            first = self.joins.next_offset
            keys, values = [m.encode() for m, _ in sent], [v for _, v in sent]
            offsets = range(first, first + len(sent))
            out = self.joins.process(
                RecordBatch(self.joins.topic, 0, offsets, [stamp] * len(sent), keys, values, [()] * len(sent))
            )
            self.report.outcomes += out.outcomes
            self.report.tasks = {n: m.task for n, m in self.joins.models.items() if isinstance(m, QualityState)}
            yield from self._told(self.joins, out)

def _ordered(side: Replay, text: Iterable[bytes]) -> Iterator[tuple[int, Replay, Record]]:
    """Yield records with the latest time up to each, which never goes back."""
    latest = 0
    for row in side.records(text):
        latest = max(latest, row[1])
        yield latest, side, row


def _by_time(alerts: list[Alert]) -> list[Alert]:
    """Return alerts in the order of their times, those of one fingerprint in the order they have."""
    latest: dict[str, str] = {}
    keyed = []
    for alert in alerts:
        latest[alert.fingerprint] = at = max(latest.get(alert.fingerprint, ""), alert.lastReceived)
        keyed.append((at, alert.fingerprint, alert))
    return [alert for *_, alert in sorted(keyed, key=itemgetter(0, 1))]


def _is_shadow(pipeline: Pipeline, alert: Alert) -> bool:
    rules = pipeline.book.for_model(pipeline.kind, alert.labels["model"]).of(alert.signal)
    return any(r.shadow for r in rules if r.detector == alert.detector.name)
