"""From a batch of records to alerts, for one source partition; pure.

The same `Pipeline` serves the worker, `replay`, the tests and the benchmarks. Its answer depends on
the records in the order of the log and on nothing else: not on how they were cut into batches, not
on the clock, not on what other partitions hold.

State is kept model by model. Each model knows the next offset it expects, so that after a restore
records it has already seen pass it by, wherever the replay begins (the fence).
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from detectors import registry
from detectors import state as state_codec
from detectors.compile import warm_up_kernels
from detectors.protocol import I64
from streamproc import kernels, outstanding, serving
from streamproc.budget import Fleet
from streamproc.columns import columns as read_columns
from streamproc.columns import event_times
from streamproc.config import Config
from streamproc.decoding import Decoded, Decoder, OwnDecoder
from streamproc.errors import SnapshotError
from streamproc.events import (
    EVENTS,
    MAX_NAME,
    ORIGIN_HEADER,
    REASONS,
    Alert,
    Feedback,
    Header,
    Incident,
    ModelRef,
    RecordBatch,
    Rejected,
    model_name,
    time_us,
)
from streamproc.feed import INCIDENTS, PAGES, FeedDecoder
from streamproc.framed import Codec, SchemaName
from streamproc.incidents import IncidentState
from streamproc.joins import JoinDecoder
from streamproc.models import (
    METRIC_BEYOND,
    STATE_VERSION,
    EventRows,
    Group,
    LabelState,
    ModelState,
    Shared,
    TelemetryState,
)
from streamproc.pages import PageState
from streamproc.predictions import TOLD_TWICE, PredictionState
from streamproc.quality import QualityState
from streamproc.rules import RuleBook, detectors_of
from streamproc.signals import Kind
from streamproc.templates import Templates
from streamproc.unpack import OTHER_SPAN, Unpacked, unpack
from streamproc.windows import ANY_STEP, new_clock

_STATES: dict[Kind, type[ModelState]] = {
    "predictions": PredictionState,
    "telemetry": TelemetryState,
    "labels": LabelState,
    "quality": QualityState,
}

#: What is made of our own alerts, by series.
_OF_ALERTS: dict[str, type[ModelState]] = {INCIDENTS: IncidentState, PAGES: PageState}

#: Kinds whose records are our own, and what reads them.
_OURS: dict[Kind, Callable[[Config], OwnDecoder]] = {
    "alerts": lambda config: FeedDecoder(_series(config)),
    "quality": lambda _: JoinDecoder(),
}

#: Between a model's name and that of a part of its state that is stored apart.
PART = "\x00"

#: A model may be forgotten for a newcomer once it has been quiet this long.
_REPLACEABLE_AFTER_US = 600_000_000

#: What becomes of an event.
OUTCOMES = ("scored", "rejected", "paired", "late", "fenced", "ignored")

#: Records after which a path of the field map that never found anything is named.
_MAPPED = 500
_BEYOND, _NOT_WATCHED, _PART = "model beyond max_series", "model not to be watched", "part of a record: {}"

#: Why events are ignored; of spans there are as many reasons more as they have words for themselves.
IGNORED = (_BEYOND, _NOT_WATCHED, OTHER_SPAN, TOLD_TWICE, METRIC_BEYOND, *map(_PART.format, REASONS))

_SUMS = (
    "came", "scored", "paired", "events", "late", "fenced", "refused", "misplaced", "unanswered", "outnumbered",
    "repeated",
)  # fmt: skip


#: By so much the arrival clock goes on with one record: less is no silence of anybody's.
_CLOCK_SLACK_US = 60_000_000


class Output(Struct):
    """What a batch came to."""

    alerts: list[Alert] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    events: int = 0
    late: int = 0
    fenced: int = 0
    refused: int = 0  # of models beyond max_series
    misplaced: int = 0  # whose record key is not their model
    unanswered: int = 0  # requests that no response came to
    outnumbered: int = 0  # halves given up on before their time, for want of room
    repeated: int = 0  # halves that came once more, or after they were given up on
    came: int = 0  # events, and what was to be one: the six that follow sum to it
    scored: int = 0  # in a window, or shown to a detector
    paired: int = 0  # halves: requests and responses, to be put together
    ignored: Counter[str] = field(default_factory=Counter)  # understood and not watched, by reason
    notes: list[tuple[str, str]] = field(default_factory=list)  # of a model, what to know of it once
    evicted: list[str] = field(default_factory=list)
    forwarded: list[tuple[str, bytes]] = field(default_factory=list)  # model and record, to be joined
    outcomes: Counter[str] = field(default_factory=Counter)  # of predictions and labels that were joined, or not

    def add(self, part: Output, start: int) -> None:
        """Add what came of a part of the batch, which began at row `start`."""
        self.alerts += part.alerts
        self.incidents += part.incidents
        self.rejected += [msgspec.structs.replace(r, row=r.row + start) for r in part.rejected]
        self.evicted += part.evicted
        self.forwarded += part.forwarded
        self.outcomes += part.outcomes
        self.ignored += part.ignored
        self.notes += part.notes
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(part, name))

    def accounts(self) -> dict[str, int]:
        """Return what became of all that came, by `OUTCOMES`, each event once; the values sum to `came`."""
        counts = (self.scored, len(self.rejected), self.paired, self.late, self.fenced, self.ignored.total())
        return dict(zip(OUTCOMES, counts, strict=True))

    def note(self, model: ModelState, before: tuple[int, int, int]) -> None:
        """Add what became of a model's records, and what it has lost since `before`, its `losses` then."""
        taken = model.taken()
        self.scored += taken.scored
        self.paired += taken.paired
        self.late += taken.late
        self.ignored += taken.ignored
        self.notes += [(model.name, note) for note in taken.notes]
        for name, earlier, now in zip(("unanswered", "outnumbered", "repeated"), before, model.losses(), strict=True):
            setattr(self, name, getattr(self, name) + now - earlier)

    def collect(self, name: str, model: ModelState) -> list[str]:
        """Add what a model has to send on, and what became of what it joins; return parts of its state now over."""
        self.forwarded += [(name, record) for record in model.outbox()]
        if not isinstance(model, QualityState):
            return []
        self.outcomes += model.outcomes()
        return model.dropped()


class Pipeline:
    """All that one partition of one source topic has taught us."""

    def __init__(
        self,
        book: RuleBook,
        *,
        kind: Kind,
        topic: str,
        partition: int = 0,
        max_series: int | None = None,
        budget_share: float = 1.0,
        deduplicate: bool = False,
        codecs: Mapping[SchemaName, Codec] | None = None,
    ) -> None:
        self.book = book
        self.codecs = codecs  # by what names their schemas; None where no registry is asked
        self.kind = kind
        self.topic = topic
        self.partition = partition
        self.deduplicate = deduplicate
        self.max_series = max_series if max_series is not None else book.config.defaults.discover.max_series
        self.budget_share = budget_share  # of the fleet's budget
        self.fleet = Fleet(assumed=self.max_series)
        self.models: OrderedDict[str, ModelState] = OrderedDict()  # least recently heard of first
        self.dirty: set[str] = set()
        self.gone: set[str] = set()
        self.clock_us = 0  # the arrival clock: the greatest record time that a quorum of records has come to
        self.clock = new_clock()
        self._timely_all = False  # whether all events of the batch at hand are near their records
        self._wall_us = 0  # to where the clock was let pass without a record
        # Our own records come seldom, and have the times of our own clocks.
        self._slack_us = ANY_STEP if kind in _OURS else _CLOCK_SLACK_US
        self.next_offset = 0
        self.movers: set[str] = set()  # models whose records are thought to go to another partition by now
        self._due: list[tuple[int, str]] = []
        self._parts: dict[str, dict[str, bytes]] = {}  # by model, until all are restored
        self._read_by(book)

    def _read_by(self, book: RuleBook) -> None:
        self._templates: Templates | None = None
        self._told_unmapped = False
        self._decoder: Decoder | OwnDecoder
        if self.kind in _OURS:
            self._decoder = _OURS[self.kind](book.config)
            return
        field_map = book.config.fields.get(self.kind)  # type: ignore[arg-type]
        self._decoder = Decoder(EVENTS[self.kind], field_map=field_map)
        # Seldon's own topics hold tensors in protobuf, which begin as traces do.
        self._traces = self.kind == "predictions" and serving.seldon_topic(self.topic) is None
        if self.kind == "predictions":
            self._templates = Templates(
                max_bytes=self._decoder.max_bytes,
                whole=lambda name: bool(book.for_model("predictions", name).segments),
            )
            self._templates.learning = not field_map

    def process(self, batch: RecordBatch) -> Output:
        """Take a batch in the order of the log; return alerts, rejections and counts."""
        stamps = np.asarray(batch.timestamps_ms, np.int64) * 1000
        settled = np.empty(len(stamps), np.int64)
        first = self.clock_us
        kernels.run_clock(self._clock(), stamps, self._slack_us, settled)
        before = np.concatenate(([first], np.maximum(settled[:-1], first)))
        if self.kind in _OURS:
            return self._take_batch(batch, stamps, settled, before)
        unpacked = unpack(batch, self.codecs, traces=self._traces)
        if unpacked is None:
            return self._take_batch(batch, stamps, settled, before)
        rows = np.array(unpacked.rows, np.int64)
        out = self._take_batch(unpacked.batch, stamps[rows], settled[rows], before[rows]) if len(rows) else Output()
        found = [msgspec.structs.replace(r, row=unpacked.rows[r.row]) for r in out.rejected]
        out.rejected = self._whole_records(unpacked, out, found)
        out.ignored += unpacked.ignored
        out.came += len(unpacked.rejected) + unpacked.ignored.total()
        # What holds nothing for us moves the clock too.
        self.clock_us = max(self._wall_us, int(settled[-1]))
        self.next_offset = int(batch.offsets[-1]) + 1
        self._run_due(out)
        return out

    def _whole_records(self, unpacked: Unpacked, out: Output, found: Sequence[Rejected]) -> list[Rejected]:
        """Return which records are to be dead letters: those of which nothing could be read.

        A record that holds several events is none for the sake of one: what of it could not be read is counted.
        """
        events = Counter(unpacked.rows)
        failed = Counter(r.row for r in found)
        by_row: dict[int, Rejected] = {}
        for rejected in (*unpacked.rejected, *found):
            row = rejected.row
            if failed[row] < events[row] or row in by_row:
                out.ignored[_PART.format(rejected.error_type)] += 1
            else:
                by_row[row] = rejected
        return [by_row[row] for row in sorted(by_row)]

    def _clock(self) -> I64:
        """Return the arrival clock to go on with: the wall may have moved it since the last record."""
        if self._wall_us > 0:
            self.clock[kernels.LATEST] = max(int(self.clock[kernels.LATEST]), self._wall_us)
        return self.clock

    def _tell_unmapped(self, out: Output) -> None:
        """Name, once there were enough records, the paths of the field map at which none had anything."""
        fields = None if isinstance(self._decoder, OwnDecoder) else self._decoder.field_map
        if fields is None or self._told_unmapped or fields.records < _MAPPED:
            return
        self._told_unmapped = True
        place = f"fields.{self.kind}"
        out.notes += [(f"{place}.{name}", f"nothing was found at {path} yet") for name, path in fields.unseen()]

    def time_of(self, value: bytes, headers: Sequence[Header] = (), key: bytes | None = None) -> int | None:
        """Return the latest time in microseconds of the events in one record, None where none of them says one."""
        if isinstance(self._decoder, OwnDecoder):
            return None
        batch = RecordBatch(self.topic, self.partition, [0], [-1], [key], [value], [headers])
        unpacked = unpack(batch, self.codecs, traces=self._traces)
        decoded = self._decoder.decode(batch if unpacked is None else unpacked.batch)
        times = [time_us(e.time) for e in decoded.events if e.time is not None]
        return max(times, default=None)

    def _take_batch(self, batch: RecordBatch, times: I64, settled: I64, before: I64) -> Output:
        """Take records of one event each; (n,) record times, the arrival clock at each, and before it, microseconds."""
        out = Output()
        start = 0
        # A period of the fleet ends at a record, wherever batches are cut.
        while start < len(batch):
            stamps = batch.timestamps_ms
            self.fleet.advance(stamps[start] * 1000)
            end = len(batch)
            if not self.fleet.until(max(stamps) * 1000):
                end = next((i for i in range(start, end) if not self.fleet.until(stamps[i] * 1000)), end)
            if start == 0 and end == len(batch):
                return self._process(batch, times, settled, before)
            part = slice(start, end)
            out.add(self._process(batch.rows(start, end), times[part], settled[part], before[part]), start)
            start = end
        return out

    def feedback(self, verdicts: Sequence[tuple[int, Feedback]]) -> Output:
        """Take what operators say of alerts, each with its offset in their topic; copies pass by."""
        out = Output()
        for name, model in self.models.items():
            seen = model.feedback_seen
            out.alerts += model.feedback(verdicts, self.clock_us)
            if model.feedback_seen != seen:
                self.dirty.add(name)
                self._schedule(name, model)
        return out

    def _process(self, batch: RecordBatch, stamps: I64, settled: I64, before: I64) -> Output:
        """Take records that are of one period of the fleet."""
        out = Output(came=len(batch))
        # A record that is ahead of the others counts as arrived at its own time, and moves nothing else.
        arrivals = np.maximum(settled, stamps)
        ahead = settled if (arrivals != settled).any() else None
        shared = Shared(np.asarray(batch.offsets, np.int64), stamps, arrivals, before, ahead)
        self._timely_all = False
        self._tell_unmapped(out)
        if self._templates is None:
            decoded = self._decoder.decode(batch)
            out.rejected = decoded.rejected
            out.ignored.update(reason for _, reason in decoded.ignored)
            groups = self._grouped_events(batch, decoded, shared, out)
        else:
            groups = self._grouped_columns(batch, self._templates, shared, out)
        for group in groups:
            self._take(group, batch, out)
        self.clock_us = max(self._wall_us, int(settled[-1]))
        self.next_offset = int(shared.offsets[-1]) + 1
        self._run_due(out)
        out.rejected.sort(key=lambda r: r.row)
        return out

    def advance(self, clock_us: int) -> Output:
        """Let the arrival clock pass without a record: what is silent or idle comes to its end."""
        out = Output()
        self._wall_us = max(self._wall_us, clock_us)
        self.clock_us = max(self.clock_us, clock_us)
        self._run_due(out)
        return out

    def _grouped_events(
        self, batch: RecordBatch, decoded: Decoded, shared: Shared, out: Output
    ) -> Iterator[Group]:
        """Yield the events of each model, in order of its first."""
        groups: dict[str, tuple[list[int], list[Any]]] = {}
        for row, event in zip(decoded.rows, decoded.events, strict=True):
            name = self._name(batch, row, event, out)
            if name:
                group = groups.setdefault(name, ([], []))
                group[0].append(row)
                group[1].append(event)
        for name, (rows, events) in groups.items():
            at = np.array(rows)
            own = shared.at(at)
            yield Group(name, at, event_times(events, own.stamps), own, EventRows(events))

    def _grouped_columns(
        self, batch: RecordBatch, templates: Templates, shared: Shared, out: Output
    ) -> Iterator[Group]:
        """Yield the predictions of each model as columns, in order of its first."""
        walked = templates.walk(batch)
        models = walked.models
        rows: list[int] = []
        events: list[Any] = []
        unfit = np.nonzero(walked.chosen < 0)[0]
        if len(unfit):
            decoded = self._decoder.decode(batch, None if len(unfit) == len(batch) else unfit.tolist())
            out.rejected = decoded.rejected
            out.ignored.update(reason for _, reason in decoded.ignored)
            models[unfit] = -1
            code = templates.models.code
            for row, event in zip(decoded.rows, decoded.events, strict=True):
                name = self._name(batch, row, event, out)
                if name:
                    models[row] = code(name)
                    rows.append(row)
                    events.append(event)
            templates.learn(batch, rows, events)
        columns = read_columns(walked, templates, shared.stamps, rows, events)
        self._timely_all = self._is_timely(columns.times - shared.stamps)
        if (models == models[0]).all():
            if models[0] >= 0:
                name = templates.models.names[models[0]]
                yield Group(name, np.arange(len(batch)), columns.times, shared, columns)
            return
        # A stable sort keeps a model's records in the order of the log.
        small = len(templates.models) < 32_767
        order = np.argsort(models.astype(np.int16) if small else models, kind="stable")
        models = models[order]
        columns, shared = columns.at(order), shared.at(order)
        starts = np.concatenate(([0], np.nonzero(models[1:] != models[:-1])[0] + 1))
        ends = [*starts[1:].tolist(), len(models)]
        names = templates.models.names
        for k in np.argsort(order[starts]).tolist():
            start = int(starts[k])
            if models[start] >= 0:
                own = slice(start, ends[k])
                part = columns.at(own)
                yield Group(names[models[start]], order[own], part.times, shared.at(own), part)

    def _name(self, batch: RecordBatch, row: int, event: Any, out: Output) -> str:
        """Return the name of the model an event belongs to, "" where it was rejected for want of one."""
        model = event.model
        name = model.name if type(model) is ModelRef else model_name(event)
        if not name:
            key = batch.keys[row]
            if not key:
                out.rejected.append(
                    Rejected(row, batch.offsets[row], "no_model", "no `model.name`, and the record has no key")
                )
                return ""
            name = key.decode("utf-8", "replace")
        if len(name) > MAX_NAME:
            out.rejected.append(
                Rejected(row, batch.offsets[row], "schema", "`model.name` is longer than 512 characters")
            )
            return ""
        return name

    def _take(self, group: Group, batch: RecordBatch, out: Output) -> None:
        name = group.name
        # One look a batch is enough to find a producer that keys by something else.
        key = batch.keys[group.rows[0]]
        if key is not None and key != name.encode():
            out.misplaced += 1
        model = self.models.get(name)
        if model is None:
            model = self._admit(name, int(group.shared.arrivals[0]), out)
            if model is None:
                known = self.kind == "alerts" or self.book.discovers(name)
                out.refused += len(group) if known else 0
                out.ignored[_BEYOND if known else _NOT_WATCHED] += len(group)
                return
        self.fleet.note(name)
        if group.shared.offsets[0] < model.next_offset:  # the fence: its snapshot already covers these
            covered = len(group)
            group = group.at(group.shared.offsets >= model.next_offset)
            out.fenced += covered - len(group)
            if not len(group):
                return
        if self.deduplicate:
            kept = _first_copies(model.origins, batch, group.rows.tolist())
            out.fenced += len(group) - len(kept)
            if not kept:
                return
            group = group.at(np.array(kept))
        group = self._timely(group, out)
        if not len(group):
            return
        out.events += len(group)
        if model.allotted != self.fleet.period:
            self._allot(model)
        before = model.losses()
        out.alerts += model.take(group)
        out.incidents += model.incidents()
        out.note(model, before)
        self._forget_parts(name, out.collect(name, model))
        model.next_offset = int(group.shared.offsets[-1]) + 1
        self.models.move_to_end(name)
        self.dirty.add(name)
        self._schedule(name, model)

    def _is_timely(self, apart_us: I64) -> bool:
        """Whether no event is further from its record than is allowed, given by how much each is ahead of it."""
        limits = self.book.config.defaults
        return int(apart_us.max()) <= limits.max_future.us and int(apart_us.min()) >= -limits.max_past.us

    def _timely(self, group: Group, out: Output) -> Group:
        """Return the records whose times are not far from when their records were written; reject the others."""
        stamps, limits = group.shared.stamps, self.book.config.defaults
        if self._timely_all or self._is_timely(group.times - stamps):
            return group
        # Where the broker has no record time (-1), nothing tells what is ahead of it.
        future = (group.times > stamps + limits.max_future.us) & (stamps >= 0)
        past = (group.times < stamps - limits.max_past.us) & (stamps >= 0)
        if not (future | past).any():
            return group
        for i in np.nonzero(future | past)[0]:
            apart, ahead = int(group.times[i] - stamps[i]) / 1e6, bool(future[i])
            said = f"event time is {abs(apart):.0f} s {'ahead of' if ahead else 'before'} its record"
            error_type, key = "past_time", "max_past"
            if ahead:
                error_type, key = "future_time", "max_future"
            out.rejected.append(
                Rejected(
                    int(group.rows[i]),
                    int(group.shared.offsets[i]),
                    error_type,
                    f"{said}{_likely_zone(apart)}; see `{key}`",
                )
            )
        return group.at(~(future | past))

    def _forget_parts(self, name: str, parts: list[str]) -> None:
        self.gone.update(f"{name}{PART}{part}" for part in parts)

    def _allot(self, model: ModelState) -> None:
        budget = self.book.config.defaults.budget
        if budget is not None:
            model.allot(self.fleet, allowed_per_day=budget.false_alerts_per_day * self.budget_share)

    def _admit(self, name: str, now_us: int, out: Output) -> ModelState | None:
        if self.kind != "alerts" and not self.book.discovers(name):
            return None
        if len(self.models) >= self.max_series and self.kind != "alerts":  # of these we know how many there are
            oldest = next(iter(self.models))
            if now_us - self.models[oldest].last_arrival_us < _REPLACEABLE_AFTER_US:
                return None  # a flood of new names must not push out models that are alive
            self._evict(oldest, out)
        model = self.models[name] = self._new(name)
        self.gone.discard(name)
        return model

    def _new(self, name: str) -> ModelState:
        state = _OF_ALERTS[name] if self.kind == "alerts" else _STATES[self.kind]
        return state(self.book, name, self.topic, self.partition)

    def _evict(self, name: str, out: Output) -> None:
        model = self.models.pop(name)
        out.alerts += model.retire()
        out.incidents += model.incidents()
        self._forget_parts(name, out.collect(name, model))
        if isinstance(model, QualityState):
            self._forget_parts(name, model.dropped(all_of_them=True))
        out.evicted.append(name)
        self.dirty.discard(name)
        self.gone.add(name)

    def _schedule(self, name: str, model: ModelState) -> None:
        due = model.due_us(self.book.config.defaults.discover.idle_ttl.us)
        if due != model.scheduled_us:
            model.scheduled_us = due
            heapq.heappush(self._due, (due, name))

    def _run_due(self, out: Output) -> None:
        """Run what the arrival clock has reached. Entries that no longer hold are passed over."""
        ttl = self.book.config.defaults.discover.idle_ttl.us
        while self._due and self._due[0][0] <= self.clock_us:
            due, name = heapq.heappop(self._due)
            model = self.models.get(name)
            if model is None or model.scheduled_us != due:
                continue
            model.scheduled_us = -1
            if name in self.movers:
                continue  # that nothing comes here says nothing of it
            if self.clock_us - model.last_arrival_us >= model.keeps_us(ttl):
                self._evict(name, out)
                continue
            before = model.losses()
            out.alerts += model.advance(self.clock_us)
            out.incidents += model.incidents()
            out.note(model, before)
            self._forget_parts(name, out.collect(name, model))
            self.dirty.add(name)
            self._schedule(name, model)

    # ------------------------------------------------------------------------------ state

    def snapshot_models(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, bytes]]:
        """Yield the state of each model named, or of each changed since it was last called without.

        Before it the parts of it that are stored apart, under names of their own: of each changed, those that
        this has not given yet.
        """
        changed = names is None
        if names is None:
            names = sorted(self.dirty)
            self.dirty.clear()
        for name in names:
            model = self.models.get(name)
            if isinstance(model, QualityState):
                for part, data in model.parts(unsaved=changed):
                    yield f"{name}{PART}{part}", data
            if model is not None:
                yield name, state_codec.dumps(model.snapshot())

    def manifest(self) -> dict[str, Any]:
        """Return what belongs to the partition rather than to a model."""
        return {
            "next_offset": self.next_offset,
            "clock_us": self.clock_us,
            "clock": self.clock.tolist(),
            "fleet": self.fleet.snapshot(),
        }

    def restore_manifest(self, manifest: dict[str, Any]) -> None:
        """Take up what `manifest` gave."""
        self.next_offset = int(manifest["next_offset"])
        self.clock_us = self._wall_us = int(manifest["clock_us"])
        if "clock" in manifest:
            self.clock = np.array(manifest["clock"], np.int64)
        if "fleet" in manifest:
            self.fleet.restore(manifest["fleet"])

    def restore_model(self, name: str, data: bytes) -> None:
        """Take up one model's state, or a part of one. Raise `SnapshotError` where it cannot be read."""
        if self.kind == "quality" and PART in name:
            name, _, part = name.rpartition(PART)
            self._parts.setdefault(name, {})[part] = data
            return
        if self.kind == "alerts" and name not in _series(self.book.config):
            self.gone.add(name)  # there is no topic any more that its steps could go to
            return
        try:
            tree = state_codec.loads(data)
            if tree["version"] != STATE_VERSION:
                raise SnapshotError(
                    f"state of {name} has version {tree['version']}; this program reads {STATE_VERSION}"
                )
            model = self._new(name)
            model.restore(tree)
        except (state_codec.StateError, KeyError, TypeError, ValueError, IndexError) as e:
            raise SnapshotError(f"state of {name} cannot be read: {e}") from e
        self.models[name] = model
        self._schedule(name, model)

    def leave(self, name: str) -> bytes:
        """Let go of a model that is at home in another partition now, telling nobody; return its state."""
        model = self.models.pop(name)
        self.movers.discard(name)
        self.dirty.discard(name)
        self.gone.add(name)
        return state_codec.dumps(model.snapshot())

    def adopt(self, name: str, data: bytes) -> None:
        """Take up a model that another partition has had. Raise `SnapshotError` where its state cannot be read."""
        self.restore_model(name, data)
        model = self.models[name]
        model.next_offset, model.sent_on = 0, -1  # offsets of another log
        # What it has had is the past: nothing that comes here is before it on the arrival clock.
        self.clock_us = self._wall_us = max(self.clock_us, model.last_arrival_us)
        self.gone.discard(name)
        self.dirty.add(name)

    def stays(self, name: str) -> None:
        """Watch again for the silence of a model that was thought to have moved."""
        self.movers.discard(name)
        if name in self.models:
            self.models[name].scheduled_us = -1
            self._schedule(name, self.models[name])

    def restored(self) -> None:
        """Put models and their parts together, and in order of when they were last heard of."""
        for name, model in self.models.items():
            if isinstance(model, QualityState):
                self._forget_parts(name, model.assemble(self._parts.pop(name, {})))
        for name, parts in self._parts.items():
            self._forget_parts(name, list(parts))
        self._parts = {}
        self.models = OrderedDict(sorted(self.models.items(), key=lambda m: (m[1].last_arrival_us, m[1].next_offset)))

    def reconfigure(self, book: RuleBook) -> None:
        """Take another config, keeping all that was learned wherever its structure did not change."""
        self.book = book
        self._read_by(book)
        for name, model in self.models.items():
            model.reconfigure(book)
            self.dirty.add(name)
            self._schedule(name, model)


def _series(config: Config) -> list[str]:
    """Return what a config wants made of our alerts."""
    return [name for name, topic in ((INCIDENTS, config.kafka.incidents), (PAGES, config.kafka.pages)) if topic]


def _likely_zone(apart_s: float) -> str:
    """Return a guess at why a time is off, where it is so by whole half hours: a zone that was left out."""
    halves = round(apart_s / 1800)
    if halves and abs(halves) <= 28 and abs(apart_s - 1800 * halves) < 60:
        return f", {halves / 2:+g} h: perhaps a local time without its zone"
    return ""


def _first_copies(seen: dict[int, int], batch: RecordBatch, rows: list[int]) -> list[int]:
    """Return which of the rows `seen` has not, as indices into them, and note them there."""
    kept = []
    for i, row in enumerate(rows):
        origin = next((v for k, v in batch.headers[row] if k == ORIGIN_HEADER and v is not None), None)
        if origin is not None:
            partition, _, offset = origin.partition(b":")
            if seen.get(int(partition), -1) >= int(offset):
                continue
            seen[int(partition)] = int(offset)
        kept.append(i)
    return kept


def warm_up(config: Config | None = None, progress: Callable[[str, int, int], None] | None = None) -> None:
    """Compile every loop that pipelines of a config run, their detectors' too, or load it compiled.

    config: None for all that any may need, as an image is built. progress is called as (name, done, total) after each.
    """
    own: dict[str, Callable[[], None]] = {"templates": Templates.warm_up, "windows": kernels.warm_windows}
    if config is None or config.kafka.joins_topic():
        own["joins"] = outstanding.warm_up
    made = 0

    def tell(name: str, done: int, total: int) -> None:
        nonlocal made
        made = done
        if progress is not None:
            progress(name, done, total + len(own))

    warm_up_kernels(tell, registry.names() if config is None else detectors_of(config))
    total = made
    for done, (name, step) in enumerate(own.items(), start=total + 1):
        step()
        tell(name, done, total)
