"""A model as its predictions show it: answers, features, latency, usage, errors, and segments of all these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.protocol import F64, I64
from streamproc import genai, joins, kernels, reference
from streamproc.baseline import Baseline, Wanted
from streamproc.budget import Fleet
from streamproc.columns import Features, PredictionColumns, Versions, hashed_ids
from streamproc.events import Alert, Feedback
from streamproc.exchanges import Exchanges, Joined, key_of
from streamproc.feature_schema import FeatureSchema, Matrix
from streamproc.kernels import I32
from streamproc.models import DAY_US, Aggregate, Classes, Group, ModelState, Placed, Shared, add_warming
from streamproc.reference import Bins, Lately, jsd, psi
from streamproc.rules import RuleBook
from streamproc.segments import VERSION, HeavyHitters
from streamproc.signals import EMPTY, READ, UNREADABLE, Kind
from streamproc.span_kinds import CALL, EMBEDDING
from streamproc.watch import Watch
from streamproc.windows import Accumulator, PartTally, Sums, quantile

#: Types of errors watched per model, beyond which newcomers share one name.
MAX_ERRORS = 20

#: Calls of language models that are remembered by the id of their response: the two spans of one end seconds apart.
_CALLS_SEEN = 2048

#: Why the second span of one call is ignored.
TOLD_TWICE = "span: a call told twice"

#: Windows with enough samples after which a signal is missed, and the most that are counted: so long is it missed.
_ENOUGH, _ENOUGH_OF = 10, 40

#: Windows that a feature's usual part is the mean of.
_USUAL_OF = 30
#: Windows remembered to have been without an error that comes for the first time.
_COUNTED = 60


class PredictionState(ModelState):
    """A model as its predictions show it."""

    kind: Kind = "predictions"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int, *, segment: str = "") -> None:
        super().__init__(book, name, topic, partition, segment=segment)
        self.common: dict[str, HeavyHitters] = {}  # by dimension
        self.parts: dict[str, PredictionState] = {}  # segments watched, by `dimension=value`
        self.features = FeatureSchema(max_features=book.config.defaults.max_features)
        self.classes = Classes(book.config.defaults.max_classes)
        serving = book.config.serving
        self.exchanges = Exchanges(timeout_us=serving.response_timeout.us, limit=serving.max_outstanding)
        self.errors = Classes(MAX_ERRORS)
        self.counted = 0  # windows closed, up to a bound
        self.baseline = self._first_baseline()
        self.coming: Baseline | None = None  # what the next is learned from, where it is renewed
        self.renewed_us = 0  # when it next is
        self.day = (0, 0.0)  # since the epoch, and what it has cost so far
        self.lately = Lately()
        self.arrived: dict[int, list[int]] = {}  # by window of the progress: events, and those out of order
        self.usual: dict[str, tuple[int, F64]] = {}  # by signal: windows, and each feature's mean part
        self.calls_seen: dict[int, int] = {}  # by hash of a call's response id, of late: the span that told of it
        self.enough: dict[str, int] = {}  # by signal: windows of late in which it had enough samples
        self._told_left_out = False
        self.requested = False  # whether any record was a request; spans of agents and tools are none
        self._bind()

    def _against(self) -> str:
        return self.baseline.describe()

    def _first_baseline(self) -> Baseline:
        rule = self.rules.reference
        if rule is not None and (told := self.book.told(rule, max_features=self.features.max_features)) is not None:
            schema, state = told
            self.features.restore(schema)
            for label in state["classes"]:
                self.classes.note(label)
            return Baseline.restored(state)
        return Baseline(events=None if rule is None else rule.first)

    def _joined(self, group: Group) -> Group:
        if group.what.llm is not None:
            group = self._once(group)
        if (group.what.halves is None and not self.exchanges) or not len(group):
            return group
        if group.what.halves is not None:
            self._taken.paired += sum(half is not None for half in group.what.halves.tolist())
        shared = group.shared
        return self._put_together(self.exchanges.join(group.what, shared.arrivals, shared.before, shared.offsets))

    def _put_together(self, joined: Joined) -> Group:
        shared = Shared(joined.offsets, joined.arrivals, joined.arrivals, joined.before)
        return Group(self.name, np.arange(len(joined.what)), joined.what.times, shared, joined.what, joined.made)

    def _once(self, group: Group) -> Group:
        """Return a group without the calls that another span has told of already.

        An SDK that traces itself, beside an instrumentor that traces it, writes two spans of one call: one inside the
        other, and of one response id where it was answered. A span that comes again is a copy, which the signal
        `duplicates` counts, as of any other record.
        """
        kept = np.ones(len(group), np.bool_)
        ids = np.zeros(len(group), np.uint64) if group.what.ids is None else group.what.ids[:, 1]
        for row, (llm, span) in enumerate(zip(group.what.llm.tolist(), ids.tolist(), strict=True)):
            if llm is None or llm.kind not in (CALL, EMBEDDING) or not span:
                continue
            own = _span_key(span)
            around = None if llm.parent_id is None else _span_key(int(hashed_ids([llm.parent_id, ""])[0, 1]))
            answer = None if llm.response_id is None else key_of(llm.response_id)
            # It has a call inside, it is inside of one, or its answer is another's too.
            told = [self.calls_seen.get(key) for key in (own | 1, around, answer) if key is not None]
            if any(other is not None and other != span for other in told):
                kept[row] = False
                continue
            self.calls_seen.update({key: span for key in (own, answer) if key is not None})
            if around is not None:
                self.calls_seen[around | 1] = span
            while len(self.calls_seen) > _CALLS_SEEN:
                del self.calls_seen[next(iter(self.calls_seen))]
        if kept.all():
            return group
        self._taken.ignored[TOLD_TWICE] += int(np.count_nonzero(~kept))
        return group.at(kept)

    def _observe(self, group: Group) -> list[Alert]:
        if not len(group):
            return []
        end = self._renewed_before(group.times)
        if end < len(group):  # as if the batch had been cut there
            alerts = self._observe(group.at(slice(end))) + self._close()
            return alerts + self._observe(group.at(slice(end, None)))
        if self.book.joins and not self.segment:
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
        if not self.segment:
            self.history.note(group.what.versions, group.what.versions.codes, group.times)
        alerts = super()._observe(group)
        for dimension in self.rules.segments if not self.segment else ():
            alerts += self._observe_parts(dimension, group)
        return alerts

    def _observe_parts(self, dimension: str, group: Group) -> list[Alert]:
        """Show each segment of a dimension that is watched its own events."""
        common = self.common.get(dimension)
        if common is None:
            common = self.common[dimension] = HeavyHitters(self.rules.max_segments)
        names, given_up = common.take(group.what.dimension(dimension))
        alerts: list[Alert] = []
        start = 0
        for row, least in given_up:
            alerts += self._show_parts(dimension, names, group, start, row)
            part = self.parts.pop(f"{dimension}={least}", None)
            alerts += part.retire() if part is not None else []
            start = row
        return alerts + self._show_parts(dimension, names, group, start, len(names))

    def _show_parts(
        self, dimension: str, names: Sequence[str | None], group: Group, start: int, end: int
    ) -> list[Alert]:
        rows: dict[str, list[int]] = {}
        for row in range(start, end):
            if (name := names[row]) is not None:
                rows.setdefault(f"{dimension}={name}", []).append(row)
        alerts: list[Alert] = []
        for segment, at in rows.items():
            part = self.parts.get(segment)
            if part is None:
                older = [p for s, p in self.parts.items() if s.startswith(f"{dimension}=")]
                part = self._add_part(segment)
                if dimension == VERSION and older:
                    part.inherit(older[-1])
            alerts += part.take(group if len(at) == len(group) else group.at(np.array(at)))
        return alerts

    def _add_part(self, segment: str) -> PredictionState:
        part = PredictionState(self.book, self.name, self.subject.topic, self.subject.partition, segment=segment)
        part.history = self.history
        part.subject = msgspec.structs.replace(part.subject, history=self.history)
        part.allowed_per_day = self.allowed_per_day
        self.parts[segment] = part
        return part

    def inherit(self, before: PredictionState) -> None:
        """Take what another has learned as what is normal: of a new version, its predecessor's."""
        self.features.restore(before.features.snapshot())
        self.classes.restore(before.classes.snapshot())
        for (signal, detector), theirs in before.watches.items():
            watch = self.watches[signal, detector] = Watch(theirs.rule, columns=theirs.columns)
            watch.detector.restore(theirs.detector.snapshot())
            if self.allowed_per_day > 0.0:
                self._allot(watch, 1.0)

    def feedback(self, verdicts: Sequence[tuple[int, Feedback]], clock_us: int) -> list[Alert]:
        """Take what operators say of alerts, of the model and of its segments."""
        alerts = super().feedback(verdicts, clock_us)
        for part in self.parts.values():
            alerts += part.feedback(verdicts, clock_us)
        return alerts

    def warming(self) -> dict[str, tuple[int, int, int]]:
        """Return each signal of which a series gives no scores yet, those of segments too."""
        found = super().warming()
        for part in self.parts.values():
            add_warming(found, part.warming())
        return found

    def _watching(self) -> int:
        return super()._watching() + sum(p._watching() for p in self.parts.values())

    def _share(self, fleet: Fleet, allowed_per_day: float) -> None:
        super()._share(fleet, allowed_per_day)
        for part in self.parts.values():
            part._share(fleet, allowed_per_day)

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without an event: requests without a response are given up on."""
        expired = self.exchanges.expired(clock_us)
        alerts = [] if expired is None else self._observe(self._put_together(expired)) + self._close()
        for part in self.parts.values():
            alerts += part.advance(clock_us)
        return alerts + super().advance(clock_us)

    def due_us(self, idle_ttl_us: int) -> int:
        """Return the arrival clock at which `advance` would next do something."""
        due = [super().due_us(idle_ttl_us), *(p.due_us(idle_ttl_us) for p in self.parts.values())]
        if self.exchanges.waiting and (waiting := self.exchanges.due_us()) is not None:
            due.append(waiting)
        return min(due)

    def retire(self) -> list[Alert]:
        """Resolve whatever still fires, before the model is forgotten."""
        return super().retire() + [a for p in self.parts.values() for a in p.retire()]

    def losses(self) -> tuple[int, int, int]:
        """Return how many requests were not answered, halves given up on for want of room, and repeated."""
        of = self.exchanges
        return of.unanswered, of.evicted, of.repeated

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
        usage = ("tokens_in", "tokens_out", "cost_per_request", "cost_per_hour", "cost_per_day")
        self._wants_usage = any(of(s) for s in usage)
        self._wants_calls = any(of(s) for s in genai.FACTS)
        self._wants_ages = bool(of("feature_age"))
        self._wants_moments = bool(of("prediction_correlation"))
        self._wants_errors = bool(of("error_share"))
        self._wants_ids = bool(of("duplicates"))
        self._wants_order = bool(of("out_of_order"))
        self._wants_reference = bool(of("feature_range") or of("constant_features") or of("feature_drift"))
        self._wants_words = bool(of("unseen_category"))
        self._wanted = Wanted(self._wants_reference, self._wants_words, self._wants_moments)
        self._wants_features = (
            self._wants_outliers
            or self._wants_reference
            or self._wants_words
            or self._wants_moments
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
        if not self.segment:
            self._reconfigure_parts(book)

    def _reconfigure_parts(self, book: RuleBook) -> None:
        """Keep of the segments those that are still asked for."""
        rules = self.rules
        self.common = {d: c for d, c in self.common.items() if d in rules.segments and c.limit == rules.max_segments}
        kept = {f"{d}={name}" for d, c in self.common.items() for name in c.watched}
        for segment in [s for s in self.parts if s not in kept]:
            self._left += self.parts.pop(segment).retire()
        for part in self.parts.values():
            part.reconfigure(book)

    def _columns(self, what: PredictionColumns, progress: I64, offsets: I64, placed: Placed) -> list[Alert]:
        alerts: list[Alert] = []
        if what.llm is not None:
            aside = np.array([llm is not None and llm.kind != CALL for llm in what.llm.tolist()])
            if aside.any():
                requests = self._count_parts(what, aside, offsets, placed)
                if not requests.any():
                    return []
                what, progress, offsets = what.at(requests), progress[requests], offsets[requests]
                placed = placed.at(requests)
        self.requested = True
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
        calls: F64 | None = None
        if self._wants_calls and what.llm is not None:
            both = zip(what.llm.tolist(), failed.tolist(), strict=True)
            calls = np.array([genai.facts(llm, failed=f) for llm, f in both])
        for window, rows in self._by_window(placed, offsets, versions):
            errors = window.errors
            window.tally(placed.index, placed.late, values=values, buckets=buckets, failed=failed)
            self._count_classes(window, what.labels[rows], what.names)
            if judged is not None and not window.judged:
                window.judged = bool(judged[rows].any())
            if self._wants_certainty and what.certainty is not None:
                window.certainty = window.add(window.certainty, placed.index, placed.late, what.certainty)
            if self._wants_usage and what.usage is not None:
                window.usage = window.add(window.usage, placed.index, placed.late, what.usage)
            if calls is not None:
                window.add_calls(placed.index, placed.late, calls)
            if self._wants_ages and what.ages is not None:
                window.ages = window.add(window.ages, placed.index, placed.late, what.ages[:, None])
            if again is not None and what.ids is not None:
                window.identified += int(np.count_nonzero(what.ids[rows, 0]))
                window.repeated += int(np.count_nonzero(again[rows]))
            if self._wants_errors and what.errors is not None:
                self._count_errors(window, what.errors[rows], what.error_names)
            if what.answered is None:  # what did not fail was answered
                came = len(failed) if isinstance(rows, slice) else len(rows)
                window.by_answer[READ] += came - (window.errors - errors)
            else:
                self._count_answered(window, what.answered, failed, rows)
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
            alerts += self._observe_events("failures", failed.astype(np.float64), progress, offsets, versions=versions)
        if self._wants_features:
            alerts += self._take_features(what.features, values, progress, offsets, placed, versions)
        return alerts

    def _count_parts(
        self, what: PredictionColumns, parts: npt.NDArray[np.bool_], offsets: I64, placed: Placed
    ) -> npt.NDArray[np.bool_]:
        """Count spans of agents, tools, retrievals and embeddings in their windows; return which rows are requests.

        An embedding is a request too, to its own model.
        """
        requests = ~parts
        used = [] if what.llm is None else what.llm.tolist()
        for row in np.nonzero(parts)[0].tolist():
            llm = used[row]
            named = llm.kind == EMBEDDING and llm.part is None
            requests[row] = named
            if placed.late[row]:
                continue
            window = self.windows.at(int(placed.index[row]), int(offsets[row]))
            window.offset_last = max(window.offset_last, int(offsets[row]))
            tally = window.parts.get(llm.kind)
            if tally is None:
                tally = window.parts[llm.kind] = PartTally()
            tally.add(llm.part, bool(what.failed[row]), float(what.latency[row]), llm.retrieval_score)
        return requests

    def _renewed_before(self, times: I64) -> int:
        """Renew the baseline where it is time to; return the row at which it next will be, or how many there are."""
        trailing_us = 0 if self.rules.reference is None else self.rules.reference.trailing_us
        if not trailing_us or self.segment:
            self.coming = None
            return len(times)
        latest = self.windows.max_event_us
        progress = np.maximum.accumulate(times if latest is None else np.maximum(times, latest))
        now_us = int(progress[0])
        if self.coming is not None and now_us >= self.renewed_us:
            self.renewed_us = now_us + trailing_us
            if self.coming.events >= reference.LEARN_EVENTS:  # else too few to go by: it goes on learning
                self._renew()
        if self.coming is None:
            self.coming = Baseline(endless=True)
            self.renewed_us = now_us + trailing_us
        return int(np.searchsorted(progress, self.renewed_us))

    def _renew(self) -> None:
        """Measure by what was learned of late from now on; what open windows have was measured by the old."""
        if self.coming is None:
            return
        self.baseline, self.coming = self.coming, None
        self.baseline.end()
        for window in self.windows.open.values():
            window.answers = window.features = window.words = window.unseen = window.moments = None

    def _judged(self, labels: I32, names: list[str], progress: I64) -> npt.NDArray[np.bool_]:
        """Learn classes while it is time to; return which events have one that comes after that."""
        labelled = labels >= 0
        if not labelled.any():
            return labelled
        rows = np.nonzero(labelled)[0]
        for learning in self._learning():
            taken = learning.take(learning.classes_period, rows, progress, self.windows.size_us)
            if not len(taken):
                continue
            self._add_classes(learning.classes, labels[taken], names)
            if learning is self.baseline:
                labelled[taken] = False
        return labelled

    def _learning(self) -> list[Baseline]:
        """Return the generations that may still learn: the one to come, and that in force."""
        return [self.baseline] if self.coming is None else [self.coming, self.baseline]

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
        if not given.any():
            return
        rows, baseline = np.nonzero(given)[0], self.baseline
        learned = not baseline.answers_period.over
        for learning in self._learning():
            taken = learning.take(learning.answers_period, rows, progress, self.windows.size_us)
            if not len(taken):
                continue
            learning.answers.learn(values[taken, None])
            if learning is baseline:
                given[taken] = False
        if learned and baseline.answers_period.over:
            baseline.answers.settle()
        if not given.any():
            return
        for index, own in _windows_of(placed, given):
            window = self.windows.open[index]
            if window.answers is None:
                window.answers = Bins.empty(1)
            baseline.answers.count(window.answers, values[:, None], own)

    def _take_features(
        self, features: Features, answers: F64, progress: I64, offsets: I64, placed: Placed, versions: Versions
    ) -> list[Alert]:
        if features.dicts is not None:
            self.features.measure(features.dicts.tolist())
        start = 0 if self.features.ready else self.features.learn(features.rows())
        self._tell_left_out()
        size_us, alerts = self.windows.size_us, list[Alert]()
        while start < len(features):
            rest = slice(start, None)
            # Names from training data are the norm, whatever else comes.
            fixed = self.rules.reference is not None and self.rules.reference.table is not None
            left = features if not start else features.at(rest)
            change = None
            if not fixed and not self.features.follow_alike(left.names_alike(), len(left)):
                change = self.features.follow(left.named(self.features.usual), progress[rest], size_us)
            own = rest if change is None else slice(start, start + change)
            alerts += self._take_rows(
                features.at(own), answers[own], progress[own], offsets[own], placed.at(own), versions[own]
            )
            if change is None:
                return alerts
            start += change
            self._change_features(int(progress[start]))
            self._tell_left_out()
        return alerts

    def _change_features(self, now_us: int) -> None:
        """Take in features that came and forget those that went; what features are like is learned again."""
        came, gone = self.features.change(now_us, self.windows.size_us)
        for learning in self._learning():
            learning.relearn_features()
        for signal in _OF_FEATURES:
            self.usual.pop(signal, None)
            self.enough.pop(signal, None)  # while it is learned there is no value
        for window in self.windows.open.values():  # what they have was counted by other columns
            window.feature_rows = 0
            window.missing = window.invalid = window.features = window.words = window.unseen = window.moments = None
        for names, what in ((came, "came"), (gone, "no longer come")):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                self._taken.notes.append(f"features that {what}: {', '.join(names[:5])}{more}")

    def _tell_left_out(self) -> None:
        if self.features.left_out and self.features.ready and not self._told_left_out:
            self._told_left_out = True
            self._taken.notes.append(f"features beyond max_features ({self.features.max_features}) are not watched")

    def _take_rows(
        self, features: Features, answers: F64, progress: I64, offsets: I64, placed: Placed, versions: Versions
    ) -> list[Alert]:
        if not len(features) or not features.any():
            return []
        matrix = features.matrix(self.features)
        flawless, given = matrix.flawless, matrix.given
        known = self._learn_features(matrix, answers, progress)
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
                self._count_features(window, matrix, answers, own if known is given else own & known)
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

    def _learn_features(self, matrix: Matrix, answers: F64, progress: I64) -> npt.NDArray[np.bool_] | None:
        """Learn what features are like; return which rows come after that, None where none does."""
        rows, baseline = np.nonzero(matrix.given)[0], self.baseline
        over = baseline.features_period.over
        taken = rows[:0]
        for learning in self._learning() if len(rows) else ():
            if not learning.features_period.over:
                taken = learning.take(learning.features_period, rows, progress, self.windows.size_us)
                learning.learn_features(matrix, answers, taken, self._wanted)
        if over:
            return matrix.given
        if len(taken) == len(rows):
            return None
        if baseline.numbers is not None:
            baseline.numbers.settle()
        known = matrix.given.copy()
        known[taken] = False
        return known

    def _count_features(
        self, window: Accumulator, matrix: Matrix, answers: F64, own: npt.NDArray[np.bool_]
    ) -> None:
        baseline = self.baseline
        if baseline.moments is not None and self._wants_moments:
            if window.moments is None:
                window.moments = np.zeros_like(baseline.moments.sums)
            baseline.moments.add(matrix.values, answers, own, window.moments)
        if baseline.numbers is not None and self._wants_reference:
            if window.features is None:
                window.features = Bins.empty(baseline.numbers.columns)
            baseline.numbers.count(window.features, matrix.values, own)
        if baseline.words is not None and self._wants_words:
            if window.words is None or window.unseen is None:
                window.words, window.unseen = np.zeros((2, len(baseline.words.known)), np.int64)
            baseline.words.count(matrix.words, own, window.words, window.unseen)

    @staticmethod
    def _count_answered(
        window: Accumulator, answered: npt.NDArray[np.uint8], failed: npt.NDArray[np.bool_], rows: Any
    ) -> None:
        for code, n in enumerate(np.bincount(answered[rows][~failed[rows]], minlength=4).tolist()):
            window.by_answer[code] += n

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

    def _is_faulty(self, window: Accumulator) -> bool:
        if not window.errors:
            return False
        share = window.errors / window.count
        for rule in self.rules.of("error_rate"):
            watch = self.watches.get(("error_rate", rule.detector))
            never = rule.never if watch is None or watch.absolute else None
            if window.count >= rule.min_samples and any(b is not None and share >= b for b in (never, rule.upper)):
                return True
        return False

    def _aggregates(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        found = [*self._values_of(window, whole)]
        yield from found
        if not self.segment and window.count and (thin := self._thin(window, found)) is not None:
            yield thin

    def _thin(self, window: Accumulator, found: Sequence[Aggregate]) -> Aggregate | None:
        """Return how many signals used to have enough samples in a window and have not, though events still come.

        A signal below `min_samples` is not scored, and would so fall silent without a word.
        """
        samples: dict[str, int] = {}
        for aggregate in found:
            base = aggregate.signal.partition(":")[0]
            samples[base] = max(samples.get(base, 0), aggregate.n)
        thin = []
        for signal in {**self.enough, **samples}:
            least = max((r.min_samples for r in self.rules.of(signal)), default=0)
            if not 0 < least <= window.count - window.errors:  # what failed has told nothing
                continue
            windows = self.enough.get(signal, 0)
            if samples.get(signal, 0) >= least:
                self.enough[signal] = min(windows + 1, _ENOUGH_OF)
            elif windows >= _ENOUGH:
                thin.append(signal)
                self.enough[signal] = windows - 1
        if not self.enough:
            return None
        parts = np.ones(len(thin)) if thin else None
        share = len(thin) / len(self.enough)
        return Aggregate("insufficient_samples", share, window.count, tuple(sorted(thin)), parts)

    def _values_of(self, window: Accumulator, whole: bool) -> Iterator[Aggregate]:
        n, answered = window.count, window.count - window.errors
        if whole and self.requested:
            yield Aggregate("throughput", n / (self.windows.size_us / 1e6), n)
        yield from _parts_of(window)
        if self._wants_order and self.arrived:
            arrived, older = self.arrived.get(window.index, (0, 0))
            # Those of windows that were too many to be reported go too.
            self.arrived = {i: found for i, found in self.arrived.items() if i > window.index}
            if arrived:
                yield Aggregate("out_of_order", older / arrived, arrived)
        yield from self._spent(window)
        if n == 0:
            return
        types = sorted(window.errors_by)
        yield Aggregate(
            "error_rate",
            window.errors / n,
            n,
            tuple(f"error.type={t}" for t in types),
            np.array([window.errors_by[t] for t in types], np.float64) if types else None,
        )
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
        told = window.by_answer[READ] + window.by_answer[EMPTY] + window.by_answer[UNREADABLE]
        if told:
            yield Aggregate("empty_predictions", window.by_answer[EMPTY] / told, told)
            yield Aggregate("unreadable", window.by_answer[UNREADABLE] / told, told)
        yield from self._answers_of(window)
        yield from _means(("tokens_in", "tokens_out", "cost_per_request"), window.usage)
        if whole and window.usage is not None and (told := int(window.usage.counts[2])):
            hours = self.windows.size_us / 3.6e9
            yield Aggregate("cost_per_hour", min(float(window.usage.totals[2]), kernels.LARGEST) / hours, told)
        yield from _means(genai.FACTS[:-1], window.calls)
        if window.first_tokens is not None:
            n_first = int(window.first_tokens.sum())
            yield Aggregate("time_to_first_token", quantile(window.first_tokens, 0.95), n_first)
        if (latencies := window.latency_n()) > 0:
            for q in (50, 95, 99):
                yield Aggregate(f"latency_p{q}", window.latency_quantile(q / 100), latencies)
        if answered and window.feature_rows:
            yield from self._features_of(window)

    def _spent(self, window: Accumulator) -> Iterator[Aggregate]:
        """Yield what the day has cost, up to the end of a window."""
        if not self._heard("cost_per_day", window.count):
            return
        day = window.index * self.windows.size_us // DAY_US
        spent = 0.0 if window.usage is None else min(float(window.usage.totals[2]), kernels.LARGEST)
        self.day = (day, spent + (self.day[1] if self.day[0] == day else 0.0))
        yield Aggregate("cost_per_day", self.day[1], window.count)

    def _answers_of(self, window: Accumulator) -> Iterator[Aggregate]:
        if window.value_n:
            yield Aggregate("prediction_value", window.value_sum / window.value_n, window.value_n)
        yield from _means(("confidence", "prediction_entropy"), window.certainty)
        labelled = sum(window.classes.values())
        for label, share, _ in self.classes.shares(window):
            yield Aggregate(f"class_share:{label}", share, labelled)
        known = counts = None
        if window.judged and self._wants_classes:
            learned = self.baseline.classes
            unknown = sum(count for name, count in window.classes.items() if name not in learned)
            yield Aggregate("new_class", unknown / labelled, labelled, measured=True)
            names = [*learned, *sorted(set(window.classes) - set(learned))]
            known = np.array([[learned.get(name, 0) for name in names]])
            counts = np.array([[window.classes.get(name, 0) for name in names]])
        for signal, differ in (("prediction_psi", psi), ("prediction_jsd", jsd)):
            if not self._heard(signal, max(labelled, window.value_n)):
                continue
            found = []
            if window.answers is not None and (numbers := int(window.answers.counts.sum())):
                found.append((float(differ(self.baseline.answers.seen.counts, window.answers.counts)[0]), numbers))
            if known is not None and counts is not None:
                found.append((float(differ(known, counts)[0]), labelled))
            if found:
                yield Aggregate(signal, *max(found), measured=True)

    def _features_of(self, window: Accumulator) -> Iterator[Aggregate]:
        numeric, categorical = self.features.numeric, self.features.categorical
        rows = window.feature_rows
        if window.missing is not None and window.invalid is not None and rows * len(window.missing):
            names, cells = numeric + categorical, rows * len(window.missing)
            for signal, counts in (("missing_features", window.missing), ("invalid_features", window.invalid)):
                if self._heard(signal, rows):
                    yield self._of_features(signal, int(counts.sum()) / cells, rows, names, counts / cells)
        if (bins := window.features) is not None and (numbers := self.baseline.numbers) is not None:
            had = bins.counts.sum(axis=1)
            most, total = int(had.max()), int(had.sum())
            if total and self._heard("feature_range", most):
                share = int(bins.outside.sum()) / total
                yield self._of_features("feature_range", share, most, numeric, bins.outside / total)
            if total and self._heard("constant_features", most):
                constant = numbers.constant(bins)
                share = int(constant.sum()) / len(numeric)
                yield self._of_features("constant_features", share, most, numeric, constant / len(numeric))
            if total and self._heard("feature_drift", most):
                drift = numbers.psi(bins)
                yield self._of_features("feature_drift", float(drift.max()), most, numeric, drift)
        yield from _means(("feature_age",), window.ages)
        if window.moments is not None and (moments := self.baseline.moments) is not None:
            most = int(window.moments[0].max())
            if most and self._heard("prediction_correlation", most):
                changes = moments.changes(window.moments)
                yield self._of_features("prediction_correlation", float(changes.max()), most, numeric, changes)
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
        measured = signal in _MEASURED
        return Aggregate(signal, value, n, names, beyond if beyond.any() else parts, measured)

    def _own_state(self) -> dict[str, Any]:
        return {
            "history": None if self.segment else self.history.snapshot(),
            "segments": [[d, c.limit, c.snapshot()] for d, c in self.common.items()],
            "parts": [[segment, part.snapshot()] for segment, part in self.parts.items()],
            "features": self.features.snapshot(),
            "classes": self.classes.snapshot(),
            "exchanges": self.exchanges.snapshot(),
            "errors": [*self.errors.snapshot(), self.counted],
            "baseline": self.baseline.snapshot(),
            "coming": None if self.coming is None else [self.renewed_us, self.coming.snapshot()],
            "day": list(self.day),
            "lately": self.lately.snapshot(),
            "arrived": [[index, *found] for index, found in sorted(self.arrived.items())],
            "calls_seen": [[key, span] for key, span in self.calls_seen.items()],
            "requested": self.requested,
            "enough": dict(sorted(self.enough.items())),
            "usual": [[signal, windows, parts.copy()] for signal, (windows, parts) in sorted(self.usual.items())],
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        if own["history"] is not None:
            self.history.restore(own["history"])
        for dimension, limit, state in own["segments"]:
            if dimension in self.rules.segments and limit == self.rules.max_segments:
                self.common[dimension] = HeavyHitters(limit)
                self.common[dimension].restore(state)
        for segment, state in own["parts"]:
            dimension, _, name = segment.partition("=")
            if dimension in self.common and name in self.common[dimension].watched:
                self._add_part(segment).restore(state)
        self.features.restore(own["features"])
        self.classes.restore(own["classes"])
        self.exchanges.restore(own["exchanges"])
        *errors, self.counted = own["errors"]
        self.errors.restore(errors)
        self.baseline = Baseline.restored(own["baseline"])
        if own["coming"] is not None:
            self.renewed_us, coming = own["coming"]
            self.coming = Baseline.restored(coming)
        self.day = tuple(own["day"])
        self.lately.restore(own["lately"])
        self.arrived = {index: [n, older] for index, n, older in own["arrived"]}
        self.calls_seen = dict(own["calls_seen"])
        self.requested, self.enough = own["requested"], dict(own["enough"])
        self.usual = {signal: (windows, parts) for signal, windows, parts in own["usual"]}


def _parts_of(window: Accumulator) -> Iterator[Aggregate]:
    """Yield what spans of agents, tools, retrievals and embeddings came to, with which of them failed."""
    for kind, tally in sorted(window.parts.items()):
        names = sorted(tally.failed_by)
        parts = np.array([tally.failed_by[n] for n in names], np.float64) if names else None
        names = [f"{kind}={n}" for n in names]
        yield Aggregate(f"{kind}_failure_rate", tally.failed / tally.count, tally.count, tuple(names), parts)
        if timed := int(tally.latency.sum()):
            yield Aggregate(f"{kind}_latency_p95", quantile(tally.latency, 0.95), timed)
        if tally.scored and not window.count:
            yield Aggregate("retrieval_score", tally.score / tally.scored, tally.scored)


def _span_key(span: int) -> int:
    """Return what a span's id is remembered by, which leaves the last bit free."""
    return span & ~1


#: Signals whose usual parts are those of features.
_OF_FEATURES = (
    "missing_features", "invalid_features", "feature_range", "constant_features", "feature_drift",
    "prediction_correlation", "unseen_category",
)  # fmt: skip

#: Signals of features that are measured against the baseline.
_MEASURED = frozenset(
    {"feature_range", "constant_features", "feature_drift", "unseen_category", "prediction_correlation"}
)


def _means(signals: tuple[str, ...], sums: Sums | None) -> Iterator[Aggregate]:
    """Yield the mean of each signal that anything was counted of."""
    if sums is not None:
        for signal, n, total in zip(signals, sums.counts.tolist(), sums.totals.tolist(), strict=False):
            if n:
                yield Aggregate(signal, total / n, n)


def _windows_of(placed: Placed, given: npt.NDArray[np.bool_]) -> list[tuple[int, npt.NDArray[np.bool_]]]:
    """Return the windows that some given events belong to, each with which of them are its own."""
    if placed.alike:
        return [(int(placed.index[0]), given)]
    counted = given & ~placed.late
    return [(int(v), counted & (placed.index == v)) for v in np.unique(placed.index[counted])]
