"""Predictions joined with their labels, and how good a model so turns out to be; before its labels, how good it seems.

A third agent reads what the pipelines of predictions and of labels send on (`joins`): one log, in which a prediction
waits for its label (`outstanding`), or a label that came first for its prediction. Three clocks, all of event time, and
moved on by silence:

- of predictions, which closes the windows of `estimated_accuracy`, `unlabelled` and of labels that stay away;
- of labels;
- the lesser of the two, which closes the windows of pairs. A pair is of its label's time: what is measured is news.
  With one topic read ahead of the other no window closes before both have reached it.

A record is taken whole: what is late is so by what stood before the record in the log.

What counts as right depends on the model's task (`task`), which is settled from its first answers and labels:

- classes: the same class, however it is written; a whole number is the class of that name.
- probability: the number is that of the class 1 of 0 and 1 (or of -1 and 1), and a half or more says yes.
- number: nothing is right or wrong; the error is the difference.

A pair that cannot be judged (a class where no class was ever told, shares whose order is not known, a number where
labels have names) counts as `unjudged` and as nothing else. How sure a model was is its confidence in the class it
chose, so log loss, Brier score and calibration are those of "it is the class I say"; for two classes they are those of
the model itself.

Without labels, accuracy is estimated from confidence [^1]: the mean of a window's confidences, each calibrated by how
often predictions as sure as that turned out right. That holds where inputs change; where what they mean changes, a
model does not know it, and only labels tell.

References
----------
[^1]: Confidence-based performance estimation, NannyML. Białek, J. et al., 2024. Estimating model performance under
covariate shift without labels. arXiv:2401.08348.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from detectors import state as state_codec
from detectors.protocol import F64, I64
from streamproc.events import Alert, Span, rfc3339
from streamproc.joins import MINUS_ONE, NEGATIVE, NO_CLASS, POSITIVE, Rows, whole_classes
from streamproc.kernels import U32
from streamproc.models import OTHER, Aggregate, Group, ModelState
from streamproc.outstanding import AGAIN, CHUNK, DONE, LABEL, Outstanding
from streamproc.rules import RuleBook
from streamproc.signals import Kind
from streamproc.tasks import SAYS, Evidence
from streamproc.windows import ANY_STEP, BUCKETS, Accumulator, Windows, dense, latency_buckets, quantile, sparse

__all__ = ["BINS", "Asked", "Judged", "QualityState"]

Bools = npt.NDArray[np.bool_]

#: Bins of confidence, of equal width from 0 to 1.
BINS = 10

#: A probability of nothing is taken for this in a log loss.
_LEAST = 1e-15

#: Labelled answers from which accuracy can be estimated, and at which what was learned is worth half.
_CALIBRATED_FROM = 500
_CALIBRATION = 100_000

#: Delays are counted in the buckets of latencies, from a millisecond up to 240 days: a median within 1 %.
_FLOOR_S = 1e-3

#: Predictions are counted, and those labelled among them, by their times in so many parts of `max_delay`.
_COHORTS = 256

_MAX_VERSIONS = 1000

#: Classes that are known by name, and classes that a window tells wrong answers by.
_MAX_WORDS = 200

#: Stretches of a source's offsets that were had: one, and more only while a lost record is still to come again.
_MAX_STRETCHES = 64


class Judged(Accumulator):
    """A window of pairs, by their labels' times."""

    answered: int = 0  # pairs with a class
    right: int = 0
    sure: int = 0  # of these, with a confidence
    log_loss: float = 0.0
    brier: float = 0.0
    bins: F64 | None = None  # (3, BINS): of those with a confidence, how many, how many right, sum of confidence
    numbers: int = 0
    off: float = 0.0  # sum of absolute errors
    wrong_by: dict[int, int] = msgspec.field(default_factory=dict)  # wrong answers by what would have been right
    delays: I64 | None = None
    unjudged: int = 0  # pairs that could not be held against each other
    from_us: int = 0  # the predictions' times
    to_us: int = 0

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        scalars = [self.answered, self.right, self.sure, self.log_loss, self.brier, self.numbers, self.off]
        scalars += [self.unjudged, self.from_us, self.to_us]
        pairs = {"scalars": scalars, "bins": self.bins, "delays": sparse(self.delays)}
        pairs["wrong_by"] = [list(w) for w in sorted(self.wrong_by.items())]
        return {**super().snapshot(), "pairs": pairs}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Judged:
        """Build from what `snapshot` gave."""
        self: Judged = super().restored(state)  # type: ignore[assignment]
        pairs = state["pairs"]
        self.answered, self.right, self.sure, self.log_loss, self.brier, *rest = pairs["scalars"]
        self.numbers, self.off, self.unjudged, self.from_us, self.to_us = rest
        self.bins = pairs["bins"]
        self.delays = dense(pairs["delays"])
        self.wrong_by = dict(pairs.get("wrong_by", ()))  # states of before have none
        return self

    def median_delay_s(self) -> float:
        """Return the median age in seconds of the predictions when their labels came."""
        return float("nan") if self.delays is None else quantile(self.delays, 0.5, floor_s=_FLOOR_S)

    def calibration_error(self) -> float:
        """Return the expected calibration error, over bins of equal width."""
        if self.bins is None:
            return float("nan")
        return float(np.abs(self.bins[1] - self.bins[2]).sum() / self.bins[0].sum())


class Asked(Accumulator):
    """A window of predictions: how sure they were."""

    bins: F64 | None = None  # (2, BINS): how many, and the sum of their confidence

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {**super().snapshot(), "bins": self.bins}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Asked:
        """Build from what `snapshot` gave."""
        self: Asked = super().restored(state)  # type: ignore[assignment]
        self.bins = state["bins"]
        return self


class QualityState(ModelState):
    """A model as its labels show it."""

    kind: Kind = "quality"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self._new_windows()
        self.waiting = Outstanding(self.rules.max_outstanding)
        self.early: deque[int] = deque()  # numbers of labels that wait for their predictions
        self.had: dict[str, list[list[int]]] = {}  # by source: stretches (after, last) of its offsets
        self.born = -1  # offset of the first record: chunks of one incarnation are not those of another
        self.versions: list[str | None] = []
        self.words: dict[int, str] = {}  # names of classes in labels
        self.answers: dict[int, str] = {}  # and in answers
        self.evidence = Evidence()
        self.learned = np.zeros((3, BINS))  # answers, right ones and sums of confidence, by confidence
        self.last_delay_s: float | None = None
        self.cohorts: dict[int, list[int]] = {}  # predictions and those labelled, by time
        self.counts: Counter[str] = Counter()  # what became of predictions and labels
        self._told_of: Counter[str] = Counter()
        self._dropped: list[int] = []
        self._wants_estimate = bool(self.rules.of("estimated_accuracy"))

    def _new_windows(self) -> None:
        size, lateness = self.rules.window_us, self.rules.lateness_us
        idle = max(2 * size, 1_000_000)
        self.windows = Windows(size_us=size, lateness_us=lateness, idle_us=idle, of=Judged, slack_us=ANY_STEP)
        self.asked = Windows(size_us=size, lateness_us=lateness, idle_us=idle, of=Asked, slack_us=ANY_STEP)
        self.told = Windows(size_us=size, lateness_us=lateness, idle_us=idle, slack_us=ANY_STEP)  # a clock alone

    # -- records in

    def take(self, group: Group) -> list[Alert]:
        """Take records of rows that were sent on."""
        alerts = self._leave()
        shared = group.shared
        if self.started_us is None:
            self.started_us, self.first_stamp_us = int(group.times[0]), int(shared.stamps[0])
            self.born = int(shared.offsets[0])
        at = zip(shared.arrivals.tolist(), shared.before.tolist(), shared.offsets.tolist(), strict=True)
        for event, (arrival, before, offset) in zip(group.what.events, at, strict=True):
            alerts += self.advance(before)
            self._idle(before)
            self._expire()
            rows = self._fresh(event.rows)
            if len(rows):
                alerts += self._take(rows, arrival, before, offset)
        self.last_arrival_us = int(shared.arrivals[-1])
        return alerts

    def _fresh(self, rows: Rows) -> Rows:
        """Return the rows not had yet, and note them as had."""
        source = f"{rows.topic}\x1f{rows.partition}"
        stretches = self.had.setdefault(source, [])
        known = np.zeros(len(rows), np.bool_)
        for after, last in stretches:
            # Of halves put together, some may share the last offset and come later; their keys tell them apart.
            known |= (rows.offsets > after) & ((rows.offsets < last) if rows.loose else (rows.offsets <= last))
        self.had[source] = _merged([*stretches, [rows.after, int(rows.offsets[-1])]])
        return rows.at(~known) if known.any() else rows

    def _take(self, rows: Rows, arrival: int, before: int, offset: int) -> list[Alert]:
        alerts: list[Alert] = []
        label = rows.side == "labels"
        clock = self.told if label else self.asked
        reached = clock.progress_us
        clock.advance(np.array([rows.times.max()]), np.array([arrival]), np.array([before]))
        for code, name in rows.words.items():
            words = self.words if label else self.answers
            if len(words) < _MAX_WORDS:
                words.setdefault(code, name)
        codes = np.array([self._version(n) for n in rows.names], np.uint16)
        rows.versions = codes[rows.versions]
        for start in range(0, len(rows), CHUNK):
            part = rows.at(slice(start, start + CHUNK))
            while self.waiting.crowded(len(part)):
                self._drop("crowded_out")
            first = self.waiting.following
            found = self.waiting.enter(
                LABEL if label else 0,
                keys=part.keys,
                times=part.times,
                values=part.values,
                classes=part.classes,
                scores=part.scores,
                versions=part.versions,
            )
            self.counts["repeated"] += int((found == AGAIN).sum())
            first_time = part.at(found != AGAIN)
            settled = self.evidence.settled
            self.evidence.add(label, first_time.classes, first_time.values)
            if self.evidence.settled != settled and self.rules.task == "auto":
                self._taken.notes.append(f"its answers are {SAYS[self.evidence.settled]}, by its first labels")
            if label:
                self.early.extend(range(first, self.waiting.following))
            else:
                new = part.at(found != AGAIN)
                if len(new):
                    self._ask(new, reached, offset)
            pairs = np.nonzero(found >= 0)[0]
            if len(pairs):
                other = {n: c[found[pairs]] for n, c in self.waiting.columns.items()}
                alerts += self._join(part.at(pairs), other, label, offset)
        self._meet()
        return alerts + self._close()

    def _version(self, name: str | None) -> int:
        if name not in self.versions:
            if len(self.versions) >= _MAX_VERSIONS:
                return _MAX_VERSIONS - 1
            self.versions.append(name if len(self.versions) < _MAX_VERSIONS - 1 else OTHER)
            return len(self.versions) - 1
        return self.versions.index(name)

    def _ask(self, rows: Rows, reached: int | None, offset: int) -> None:
        """Count predictions in the windows of their own times."""
        width = self._cohort_us
        for cohort, n in zip(*(a.tolist() for a in np.unique(rows.times // width, return_counts=True)), strict=True):
            self.cohorts.setdefault(cohort, [0, 0])[0] += n
        while len(self.cohorts) > 2 * _COHORTS:
            del self.cohorts[min(self.cohorts)]
        sure = self._confidence(rows.scores, rows.values, rows.classes)
        told = ~np.isnan(sure)
        for window, own in _placed(self.asked, rows.times, reached, offset):
            window.count += int(own.sum())
            if self._wants_estimate and (known := own & told).any():
                bins = np.zeros((2, BINS)) if window.bins is None else window.bins
                at = _bins(sure[known])
                bins[0] += np.bincount(at, minlength=BINS)
                bins[1] += np.bincount(at, weights=sure[known], minlength=BINS)
                window.bins = bins

    def _confidence(self, scores: Any, values: F64, classes: U32) -> F64:
        sure: F64 = np.clip(scores.astype(np.float64), 0.0, 1.0)
        shares = np.isnan(sure) & (classes == NO_CLASS) & (values >= 0.0) & (values <= 1.0)
        if self.task == "probability" or self.evidence.mixed:
            sure[shares] = np.maximum(values[shares], 1.0 - values[shares])
        return sure

    def _join(self, rows: Rows, other: dict[str, Any], label: bool, offset: int) -> list[Alert]:
        """Take pairs, in order: (n,) rows that came, and the rows they were waited for by."""
        own = {n: getattr(rows, n) for n in ("times", "values", "classes", "scores", "versions")}
        asked, told = (other, own) if label else (own, other)
        delays = told["times"] - asked["times"]
        overdue = delays > self.rules.max_delay_us
        self.counts["overdue"] += int(overdue.sum())
        if overdue.any():
            asked, told = ({n: c[~overdue] for n, c in side.items()} for side in (asked, told))
            delays = delays[~overdue]
        n = len(delays)
        self.counts["joined"] += n
        if not n:
            return []
        for cohort, count in zip(
            *(a.tolist() for a in np.unique(asked["times"] // self._cohort_us, return_counts=True)), strict=True
        ):
            if cohort in self.cohorts:
                self.cohorts[cohort][1] += count
        right, sure, answered, off = self._judge(asked, told)
        unjudged = ~answered & ~np.isfinite(off)
        self.counts["unjudged"] += int(unjudged.sum())
        if (known := answered & ~np.isnan(sure)).any():
            self._learn(sure[known], right[known])
        for window, own_rows in _placed(self.windows, told["times"], self.windows.progress_us, offset):
            _add(window, own_rows, asked["times"], delays, right, sure, answered, off, told["classes"])
            window.unjudged += int((own_rows & unjudged).sum())
            window.version = self.versions[int(asked["versions"][np.nonzero(own_rows)[0][-1]])]
        return self._show(asked, right, answered, off, offset)

    @property
    def task(self) -> str:
        """What the model does: classes, number or probability, as its config says or its first pairs show."""
        return self.rules.task if self.rules.task != "auto" else self.evidence.task()

    def _judge(self, asked: dict[str, Any], told: dict[str, Any]) -> tuple[Bools, F64, Bools, F64]:
        """Return of (n,) pairs whether the answer is right, how sure it was, whether it can be judged, its error."""
        task, values, numbers = self.task, asked["values"], told["values"]
        named = self.evidence.named_classes(asked["classes"], self.rules.classes)
        classes = np.where(named != NO_CLASS, named, whole_classes(values))
        truth = np.where(told["classes"] != NO_CLASS, told["classes"], whole_classes(numbers))
        two = (truth == POSITIVE) | (truth == NEGATIVE) | (truth == MINUS_ONE)
        shares = (asked["classes"] == NO_CLASS) & two & (values >= 0.0) & (values <= 1.0)
        if task == "number" and (self.rules.task == task or not self.evidence.label_values):
            shares[:] = False  # where labels are told as values too, one told as a class is no quantity
        known = (classes != NO_CLASS) & (truth != NO_CLASS) & self.evidence.comparable(classes, truth)
        answered = shares | (known & (task == "classes" or asked["classes"] != NO_CLASS))
        right = np.where(shares, (values >= 0.5) == (truth == POSITIVE), classes == truth) & answered
        # A class that is a number has no distance from another, unless the label was told as a value.
        off = np.abs(values - numbers)
        off[(told["classes"] != NO_CLASS) & (shares | (task != "number"))] = np.nan
        return right, self._confidence(asked["scores"], values, asked["classes"]), answered, off

    def _learn(self, sure: F64, right: Bools) -> None:
        at = _bins(sure)
        self.learned[0] += np.bincount(at, minlength=BINS)
        self.learned[1] += np.bincount(at, weights=right, minlength=BINS)
        self.learned[2] += np.bincount(at, weights=sure, minlength=BINS)
        if self.learned[0].sum() > _CALIBRATION:
            self.learned *= 0.5

    def _show(self, asked: dict[str, Any], right: Bools, answered: Bools, off: F64, offset: int) -> list[Alert]:
        """Show each pair's error to the detectors of change."""
        alerts: list[Alert] = []
        times = np.full(len(right), self.told.progress_us, np.int64)
        offsets = np.full(len(right), offset, np.int64)
        versions = [self.versions[c] for c in asked["versions"].tolist()]
        for signal, values, rows in (
            ("prediction_error", (~right).astype(np.float64), answered),
            ("absolute_error", off, np.isfinite(off)),
        ):
            if self.rules.of(signal):
                alerts += self._observe_events(signal, values, times, offsets, versions=versions, rows=rows)
        return _about(alerts, int(asked["times"].min()), int(asked["times"].max()))

    # -- time

    def _idle(self, clock_us: int) -> None:
        """Let the arrival clock pass: each clock goes on while nothing of its own comes."""
        self.asked.idle(clock_us)
        self.told.idle(clock_us)
        self._meet()

    def _meet(self) -> None:
        if self.asked.progress_us is not None and self.told.progress_us is not None:
            both = min(self.asked.progress_us, self.told.progress_us)
            self.windows.progress_us = max(both, self.windows.progress_us or both)

    def _expire(self) -> None:
        """Give up on what has waited too long, by the times of what it waits for: silence is no reason.

        Only at a record: when else the clocks are looked at the cut decides.
        """
        flags, times = self.waiting.flags, self.waiting.columns["times"]
        patience = self.rules.lateness_us + self.rules.window_us
        while self.early:
            number = self.early[0]
            place = number % len(flags)
            if number >= self.waiting.first and not flags[place] & DONE:
                if self.asked.max_event_us is None or int(times[place]) + patience > self.asked.max_event_us:
                    break
                flags[place] |= DONE
                self.counts["unmatched"] += 1
            self.early.popleft()
        while (own := self.waiting.head()) is not None and self.told.max_event_us is not None:
            overdue = (flags[own] == 0) & (times[own] + self.rules.max_delay_us < self.told.max_event_us)
            if not (overdue | (flags[own] & DONE != 0)).all():
                break
            self._drop("unlabelled")

    def _drop(self, outcome: str) -> None:
        """Forget the oldest chunk, whatever in it still waits."""
        own = self.waiting.head()
        if own is not None:
            flags = self.waiting.flags[own]
            self.counts[outcome] += int((flags == 0).sum())
            self.counts["unmatched"] += int((flags == LABEL).sum())
            chunk = self.waiting.drop()
            if chunk is not None:
                self._dropped.append(chunk)

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without a record.

        From one moment at which something is due to the next: the order in which windows of predictions and of
        pairs close, and where the clocks then stand, are so the same whenever this is called.
        """
        alerts = self._leave()
        last, due = -1, self._next_due()
        while due is not None and last < due <= clock_us:
            self._idle(due)
            alerts += self._close()
            if self.windows.progress_us is not None:
                alerts += self._ended(self.windows.progress_us)
            last, due = due, self._next_due()
        return alerts

    def _ended(self, now_us: int) -> list[Alert]:
        """Return what the passing of time ends; for windows' alerts no offsets stand."""
        alerts: list[Alert] = []
        for watch in self.watches.values():
            found = watch.expire(self.subject, now_us)
            windowed = watch.rule.spec.shape == "window"
            alerts += [msgspec.structs.replace(a, evidence=None) for a in found] if windowed else found
        return alerts

    def due_us(self, idle_ttl_us: int) -> int:
        """Return the arrival clock at which `advance` would next do something."""
        idle = 0 if self._left else self.last_arrival_us + self.keeps_us(idle_ttl_us)
        due = self._next_due()
        return idle if due is None else min(idle, due)

    def _next_due(self) -> int | None:
        """Return the arrival clock at which silence would close a window or end an alert, None for never."""
        due = []
        if (window := self.asked.due_us()) is not None:
            due.append(window)
        ends = [end] if (end := self.windows.next_end_us()) is not None else []
        for at in [*ends, *(d for w in self.watches.values() if (d := w.life.due_us()) is not None)]:
            reached = [self.asked.reached_us(at), self.told.reached_us(at)]
            if None not in reached:
                due.append(max(r for r in reached if r is not None))
        return min(due, default=None)

    def keeps_us(self, idle_ttl_us: int) -> int:
        """Return how long the model is kept without a record: its labels may come so late."""
        return max(idle_ttl_us, self.rules.max_delay_us)

    def retire(self) -> list[Alert]:
        """Resolve whatever still fires; give up on all that waits."""
        self.counts["unlabelled"] += len(self.waiting.waiting(0))
        self.counts["unmatched"] += len(self.waiting.waiting(LABEL))
        return self._ended(1 << 62)

    # -- windows out

    def _close(self) -> list[Alert]:
        alerts: list[Alert] = []
        for window in self.asked.close():
            alerts += self._closed(window, self._estimates(window))  # type: ignore[arg-type]
        for window in self.windows.close():
            found = self._closed(window, self._judgements(window))  # type: ignore[arg-type]
            alerts += _about(found, window.from_us, window.to_us)  # type: ignore[attr-defined]
        return alerts

    def _closed(self, window: Accumulator, aggregates: Iterable[Aggregate]) -> list[Alert]:
        first = window.offset_first
        # One record may hold many windows: what names an episode is the window, and not the record's offset.
        window.offset_first = -1
        alerts: list[Alert] = []
        for aggregate in aggregates:
            alerts += self._observe_window(aggregate, (window.index + 1) * self.windows.size_us, window)
        window.offset_first = first
        span = Span(self.subject.topic, self.subject.partition, first, window.offset_last)
        return [
            _with_base(
                msgspec.structs.replace(a, evidence=span if a.action != "resolved" and first >= 0 else None), window
            )
            for a in alerts
        ]

    def _judgements(self, window: Judged) -> Iterator[Aggregate]:
        if window.answered:
            by = sorted(window.wrong_by.items())
            names = tuple(f"class={self.words.get(code, OTHER)}" for code, _ in by)
            wrong = np.array([n for _, n in by], np.float64) if by else None
            yield Aggregate("accuracy", window.right / window.answered, window.answered, names, wrong)
        if window.count:
            names = (self._difference(),) if window.unjudged else ()
            parts = np.ones(1) if names else None
            yield Aggregate("unjudged", window.unjudged / window.count, window.count, names, parts)
        if window.sure:
            yield Aggregate("log_loss", window.log_loss / window.sure, window.sure)
            yield Aggregate("brier", window.brier / window.sure, window.sure)
            yield Aggregate("calibration_error", window.calibration_error(), window.sure)
        if window.numbers:
            yield Aggregate("mae", window.off / window.numbers, window.numbers)
        if window.delays is not None:
            self.last_delay_s = window.median_delay_s()
            yield Aggregate("label_delay", self.last_delay_s, window.count)

    def _difference(self) -> str:
        """Return in words what answers and labels are, where they cannot be held against each other."""

        def of(words: dict[int, str], numbers: bool) -> str:
            some = sorted(words.values())[:3]
            return ", ".join(some) + (" …" if len(words) > 3 else "") if some else "numbers" if numbers else "none"

        return f"answers: {of(self.answers, self.evidence.numeric > 0)}; labels: {of(self.words, True)}"

    def _estimates(self, window: Asked) -> Iterator[Aggregate]:
        if window.bins is not None and self.learned[0].sum() >= _CALIBRATED_FROM:
            n = float(window.bins[0].sum())
            yield Aggregate("estimated_accuracy", self._estimate(window.bins), int(n))
        end_us = (window.index + 1) * self.windows.size_us
        told = self.told
        if not window.count or self.last_delay_s is None or told.max_event_us is None or told.progress_us is None:
            return
        if told.progress_us + 2 * told.idle_us < end_us:
            return  # labels are read behind predictions, rather than stay away
        if told.max_event_us < end_us - told.size_us:
            yield Aggregate("label_delay", self.last_delay_s + (end_us - told.max_event_us) / 1e6, window.count)
        cohort = int((end_us - 2e6 * self.last_delay_s) // self._cohort_us) - 1
        if cohort in self.cohorts:
            predictions, labelled = self.cohorts[cohort]
            yield Aggregate("unlabelled", 1.0 - labelled / predictions, predictions)

    def _estimate(self, bins: F64) -> float:
        """Return the accuracy that predictions of such confidence had."""
        counts, right, sure = self.learned
        beyond = (sure.sum() - right.sum()) / counts.sum()  # by how much it is too sure of itself, all in all
        gaps = np.where(counts > 0.0, (sure - right) / np.maximum(counts, 1.0), beyond)
        return float(np.clip((bins[1] - bins[0] * gaps).sum() / bins[0].sum(), 0.0, 1.0))

    @property
    def _cohort_us(self) -> int:
        return max(self.rules.max_delay_us // _COHORTS, self.windows.size_us)

    # -- state

    def outcomes(self) -> Counter[str]:
        """Return what became of predictions and labels since this was last called."""
        new = self.counts - self._told_of
        self._told_of = self.counts.copy()
        return new

    def parts(self, *, unsaved: bool) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the state of each part that is stored apart; of those not stored yet."""
        for chunk, tree in self.waiting.sealed(unsaved=unsaved):
            yield f"{self.born}.{chunk}", state_codec.dumps(tree)

    def dropped(self, *, all_of_them: bool = False) -> list[str]:
        """Return the names of stored parts that are over since this was last called, or of all."""
        chunks = [*self._dropped, *(sorted(self.waiting.stored) if all_of_them else ())]
        self._dropped = []
        return [f"{self.born}.{c}" for c in chunks]

    def assemble(self, parts: dict[str, bytes]) -> list[str]:
        """Take up the parts of a model restored; return the names of those that are none of it."""
        chunks: dict[int, dict[str, Any]] = {}
        strange = []
        for name, data in parts.items():
            born, _, chunk = name.partition(".")
            try:
                if int(born) != self.born:
                    raise ValueError("of another incarnation")
                chunks[int(chunk)] = state_codec.loads(data)
            except (state_codec.StateError, ValueError):
                strange.append(name)
        others, missing = self.waiting.refill(chunks)
        self.counts["crowded_out"] += missing
        self.early = deque(self.waiting.waiting(LABEL).tolist())
        self._told_of = self.counts.copy()
        return [*strange, *(f"{self.born}.{c}" for c in others)]

    def reconfigure(self, book: RuleBook) -> None:
        """Take another config; windows of another size begin anew, what waits goes on waiting."""
        size_us, delay_us = self.windows.size_us, self.rules.max_delay_us
        super().reconfigure(book)
        if self.windows.size_us != size_us:
            self._new_windows()
        if self.windows.size_us != size_us or self.rules.max_delay_us != delay_us:
            self.cohorts = {}
        self.asked.lateness_us = self.told.lateness_us = self.rules.lateness_us
        self.waiting.limit = self.rules.max_outstanding
        self._wants_estimate = bool(self.rules.of("estimated_accuracy"))

    def _own_state(self) -> dict[str, Any]:
        return {
            "window_us": self.windows.size_us,
            "max_delay_us": self.rules.max_delay_us,
            "asked": self.asked.snapshot(),
            "told": self.told.snapshot(),
            "waiting": self.waiting.snapshot(),
            "had": [[source, stretches] for source, stretches in sorted(self.had.items())],
            "versions": list(self.versions),
            "words": [list(w) for w in self.words.items()],
            "learned": self.learned.copy(),
            "cohorts": [[c, *n] for c, n in sorted(self.cohorts.items())],
            "counts": {name: n for name, n in sorted(self.counts.items()) if n},
            "answers": [list(w) for w in self.answers.items()],
            "evidence": self.evidence.snapshot(),
            "scalars": [self.born, self.last_delay_s],
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        if own["window_us"] == self.windows.size_us:
            self.asked.restore(own["asked"])
            self.told.restore(own["told"])
        self.waiting.restore(own["waiting"])
        self.had = {source: [list(s) for s in stretches] for source, stretches in own["had"]}
        self.versions = list(own["versions"])
        self.words = dict(own.get("words", ()))
        self.learned = own["learned"]
        if (own["window_us"], own["max_delay_us"]) == (self.windows.size_us, self.rules.max_delay_us):
            self.cohorts = {c: list(n) for c, *n in own["cohorts"]}
        self.counts = Counter(own["counts"])
        self._told_of = self.counts.copy()
        self.born, self.last_delay_s = own["scalars"]
        self.answers = dict(own["answers"])
        self.evidence = Evidence.restored(own["evidence"])


def _placed(windows: Windows, times: I64, reached: int | None, offset: int) -> Iterator[tuple[Any, Bools]]:
    """Yield each open window that has events here, with which of them are its own; count the late ones."""
    index = times // windows.size_us
    late = np.zeros(len(times), np.bool_)
    if reached is not None:
        late = (index + 1) * windows.size_us <= reached - windows.lateness_us
        windows.late += int(late.sum())
    for value in np.unique(index[~late]).tolist():
        window = windows.at(value, offset)
        window.offset_last = offset
        yield window, (index == value) & ~late


def _add(
    window: Judged,
    own: Bools,
    asked: I64,
    delays: I64,
    right: Bools,
    sure: F64,
    answered: Bools,
    off: F64,
    truth: U32,
) -> None:
    """Add to a window the pairs that are its own; all (n,)."""
    first, last = int(asked[own].min()), int(asked[own].max())
    window.from_us = min(window.from_us, first) if window.count else first
    window.to_us = max(window.to_us, last) if window.count else last
    window.count += int(own.sum())
    if window.delays is None:
        window.delays = np.zeros(BUCKETS, np.int64)
    window.delays += np.bincount(latency_buckets(delays[own] / 1e6, floor_s=_FLOOR_S), minlength=BUCKETS)
    window.answered += int((own & answered).sum())
    window.right += int((own & right).sum())
    wrong = own & answered & ~right
    if wrong.any():
        for code, n in zip(*(a.tolist() for a in np.unique(truth[wrong], return_counts=True)), strict=True):
            known_by = code if code in window.wrong_by or len(window.wrong_by) < _MAX_WORDS else NO_CLASS
            window.wrong_by[known_by] = window.wrong_by.get(known_by, 0) + n
    known = own & answered & ~np.isnan(sure)
    if known.any():
        p, hit = sure[known], right[known]
        window.sure += len(p)
        window.log_loss -= float(np.log(np.maximum(np.where(hit, p, 1.0 - p), _LEAST)).sum())
        window.brier += float(((p - hit) ** 2).sum())
        at = _bins(p)
        bins = np.zeros((3, BINS)) if window.bins is None else window.bins
        bins[0] += np.bincount(at, minlength=BINS)
        bins[1] += np.bincount(at, weights=hit, minlength=BINS)
        bins[2] += np.bincount(at, weights=p, minlength=BINS)
        window.bins = bins
    errors = off[own & np.isfinite(off)]
    window.numbers += len(errors)
    window.off = min(window.off + float(np.minimum(errors, 1e290).sum()), 1e300)


def _bins(sure: F64) -> I64:
    return np.minimum((sure * BINS).astype(np.int64), BINS - 1)


def _merged(stretches: list[list[int]]) -> list[list[int]]:
    """Return stretches (after, last] as few as they can be, in order; of too many the oldest gap is given up on."""
    found: list[list[int]] = []
    for after, last in sorted(stretches):
        if found and after <= found[-1][1]:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([after, last])
    while len(found) > _MAX_STRETCHES:
        found[:2] = [[found[0][0], found[1][1]]]
    return found


#: From this share of pairs that could be judged on, an accuracy needs no word on what it rests.
_MOST_PAIRS = 0.8


def _with_base(alert: Alert, window: Accumulator) -> Alert:
    """Return an alert on accuracy with what it rests on, where that is few of the pairs, or where nothing was right."""
    if alert.signal != "accuracy" or not isinstance(window, Judged) or not window.count or alert.action == "resolved":
        return alert
    said = ""
    if window.answered < _MOST_PAIRS * window.count:
        said = f"only {window.answered:,} of {window.count:,} pairs could be judged"
    elif window.right == 0:
        said = "no answer is right: are labels and answers of the same classes?"
    if not said:
        return alert
    return msgspec.structs.replace(
        alert,
        summary=f"{alert.summary} ({said})"[:1024],
        annotations={**alert.annotations, "basis": said},
    )


def _about(alerts: list[Alert], from_us: int, to_us: int) -> list[Alert]:
    """Say in alerts that fire of which predictions they are, by their times."""
    said = f"{rfc3339(from_us)}/{rfc3339(to_us)}"
    return [
        msgspec.structs.replace(a, annotations={**a.annotations, "predictions": said}) if a.action != "resolved" else a
        for a in alerts
    ]
