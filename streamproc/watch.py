"""One series under one rule: its detector, its alert's life, and the alert in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64, Damped, Detector, Evidence
from streamproc import budget, silences
from streamproc.alerts import Lifecycle, Step, identity
from streamproc.config import Sensitivity
from streamproc.events import Alert, Changed, DetectorRef, Expected, Feedback, Impact, Share, Span, rfc3339
from streamproc.rules import Rule
from streamproc.segments import Change, History
from streamproc.silences import Silence, Silences

#: What a dashboard shows before and after an alert.
_BEFORE_MS = 3_600_000

#: What of its share of the budget a sensitivity allows a watch.
_SHARES: dict[Sensitivity, float] = {"low": 0.1, "medium": 1.0, "high": 10.0}


class Subject(Struct, frozen=True, gc=False):
    """What an alert is about: a model, or a segment of it, as its records in one partition show it."""

    topic: str
    partition: int
    model: str
    segment: str = ""  # dimension=value
    history: History | None = None  # of the model's versions
    silences: Silences | None = None

    def change(self, step: Step) -> Change | None:
        """Return the change of version that came shortly before an episode, or while it built up."""
        return None if self.history is None else self.history.near(step.started_us, until_us=step.at_us)

    def silenced(self, signal: str) -> tuple[Silence, ...]:
        """Return the silences there are for a signal, whenever."""
        return self.silences.of(self.model, signal, self.segment) if self.silences else ()


class Basis(Struct, frozen=True):
    """What a window's value rests on; of a single event's value there is no more to say than its offset.

    n and last_offset: how many events, and the last of them. carried: tells which features carry the value, against:
    what it is measured by; both are asked only for an alert.
    """

    n: int | None = None
    last_offset: int | None = None
    carried: Callable[[], list[Share]] | None = None
    against: Callable[[], str] | None = None


#: Of values that are events' own.
_OF_EVENTS = Basis()


class _Silence(Protocol):
    """What the silence detector offers beyond the others."""

    def score(self, values: F64, times: I64) -> F64: ...
    def explain(self, index: int = -1) -> Evidence: ...
    def deadline_us(self) -> int | None: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Watch:
    """A detector over one series and the life of its alert."""

    def __init__(self, rule: Rule, *, columns: tuple[str, ...] = ()) -> None:
        self.rule = rule
        self.columns = columns
        # One seed for all: models of equal width then share the structure of their random trees.
        self.detector: Detector = rule.build(columns=max(1, len(columns)), seed=0)
        self.life = Lifecycle(rule.policy)
        self.budgeted: float | None = None  # the limit or share that the budget came to
        self.version: str | None = None  # of the model when the episode opened: labels are identity
        self.muted = ""  # the silence for which nobody was told of the episode yet
        self.expected = ""  # the operator's word for which nobody is told any more of it
        self.tolerance = 1.0  # by how much operators have raised the limit
        self.last_peak = 0.0  # of the episode before
        self.kept: list[tuple[float, int]] = []  # values and times of the episode, the latest
        self.over: list[tuple[Any, int]] = []  # values over the limit, whenever, and their times; the latest

    def observe(
        self,
        subject: Subject,
        values: F64,
        times: I64,
        offsets: I64,
        *,
        versions: Sequence[str | None] = (),
        basis: Basis = _OF_EVENTS,
    ) -> list[Alert]:
        """Score values in order and return what came of it.

        values (n,) or (n, d) in the signal's unit, times and offsets (n,), times not falling; versions: the model's
        at each.
        """
        found = subject.silenced(self.rule.signal)
        if not found and not self.muted and not self.expected:
            return self._observe(subject, values, times, offsets, versions, basis)
        alerts: list[Alert] = []
        for start, end, silence in _stretches(times, found):
            if silence is not None and not silence.learn:
                continue
            while start < end:
                # Of what was hidden the first value after a silence tells; row by row, for the cut is not to decide.
                stop = start + 1 if silence is None and self.muted else end
                own = slice(start, stop)
                said = versions[own] if versions else ()
                told = self._observe(subject, values[own], times[own], offsets[own], said, basis)
                alerts += self._told(subject, told, silence, int(times[stop - 1]))
                start = stop
        return alerts

    def _told(self, subject: Subject, found: list[Alert], silence: Silence | None, at_us: int) -> list[Alert]:
        """Return alerts as those are to see them who are not told of what a silence hides."""
        out: list[Alert] = []
        for alert in found:
            if alert.action == "opened":
                self.muted = "" if silence is None else str(silence)
            hidden = self.muted or self.expected
            if silence is not None and alert.action in ("updated", "escalated"):
                hidden = str(silence)
            out.append(msgspec.structs.replace(alert, suppressed_by=hidden) if hidden else alert)
            if alert.action == "resolved":
                self.muted = self.expected = ""
        if silence is None and self.muted and self.life.state == "firing":
            muted, self.muted = self.muted, ""
            out.append(_after(muted, self._alert(subject, self.life.again(at_us))))
        return out

    def fingerprint(self, subject: Subject) -> str:
        """Return what names the condition for ever."""
        return _fingerprint(self.rule, subject)

    def feedback(self, subject: Subject, verdict: Feedback, offset: int, now_us: int) -> list[Alert]:
        """Take an operator's word, from an offset of the topic of feedback; return what came of it.

        NOT_ANOMALY raises the limit above what the episode, or the one before, came to, and takes damping back: what of
        it was over the limit is learned in full. ANOMALY_NEW_TREND takes what it is now as normal: the detector begins
        anew with the values since. Both end the episode. For ANOMALY_EXPECTED nobody is told any more of it. Every
        verdict is published, for the record.
        """
        peak = max(self.life.peak, self.last_peak)
        opening = self.life.opening
        steps: list[Step] = []
        if verdict.verdict == "NOT_ANOMALY" and peak > 0.0:
            self.tolerance = _raised(self.tolerance, peak)
            self._learn_undamped()
            steps = self.life.end(now_us)
        elif verdict.verdict == "ANOMALY_NEW_TREND":
            self.detector = self.rule.build(columns=max(1, len(self.columns)), seed=0)
            if self.kept:
                values, times = zip(*self.kept, strict=True)
                self.detector.score(np.array(values), np.array(times, np.int64))
            kept, self.budgeted = self.budgeted, None
            self._budget(kept)
            steps = self.life.end(now_us)
        elif verdict.verdict == "ANOMALY_EXPECTED" and self.life.state == "firing":
            self.expected = _word(verdict)
        if not steps:
            action: Literal["updated", "resolved"] = "updated" if self.life.state == "firing" else "resolved"
            steps = [Step(action, -1, now_us, self.life.since_us, opening, opening, opening, peak)]
        else:
            self.muted = self.expected = ""
            self.kept = []
        return [_answered(self._alert(subject, step), verdict, offset) for step in steps]

    def _learn_undamped(self) -> None:
        """Have the detector learn in full what was over the limit in the episode, or the one before."""
        over = [(value, at) for value, at in self.over if at >= self.life.since_us]
        self.over = []
        if over and isinstance(self.detector, Damped):
            values, times = zip(*over, strict=True)
            self.detector.learn_undamped(np.array(values), np.array(times, np.int64))

    def _observe(
        self,
        subject: Subject,
        values: F64,
        times: I64,
        offsets: I64,
        versions: Sequence[str | None],
        basis: Basis,
    ) -> list[Alert]:
        """Observe values as if there were no silences."""
        scores = self.detector.score(values, times)
        if self.tolerance != 1.0:
            scores = scores / self.tolerance
        breach = scores >= 1.0  # nan, while warming up, is not
        if not breach.any():
            if self.life.state == "inactive":
                self.life.seen += len(breach)
                return []
        else:
            for row in np.nonzero(breach)[0]:
                if not self._matters(values, int(row)):
                    breach[row] = False
        steps = self.life.observe(breach, scores, times, offsets, weight=basis.n or 1)
        self._keep(values, times, breach, steps)
        self._keep_over(values, times, breach)
        alerts = []
        for step in steps:
            if step.action == "opened":
                self.version = versions[step.row] if versions else None
            alerts.append(self._alert(subject, step, values, scores, basis))
        return alerts

    def _keep(self, values: F64, times: I64, breach: npt.NDArray[np.bool_], steps: list[Step]) -> None:
        """Remember the values of the episode, from its first over the limit on."""
        for step in steps:
            if step.action == "resolved":
                self.last_peak = step.peak
        if values.ndim > 1:
            return
        ended = max((s.row for s in steps if s.action == "resolved"), default=-1)
        if ended >= 0 or self.life.state == "inactive":
            self.kept = []
        first = ended + 1
        if not self.kept:
            over = np.nonzero(breach[first:])[0]
            if not len(over) or self.life.state == "inactive":
                return
            first += int(over[0])
        self.kept = [*self.kept, *zip(values[first:].tolist(), times[first:].tolist(), strict=True)][-_KEPT:]

    def _keep_over(self, values: F64, times: I64, breach: npt.NDArray[np.bool_]) -> None:
        rows = np.nonzero(breach)[0]
        if len(rows) and isinstance(self.detector, Damped):
            most = _KEPT_OVER if values.ndim == 1 else max(1, min(_KEPT_OVER, _NUMBERS_OVER // values.shape[1]))
            rows = rows[-most:]
            self.over = [*self.over, *zip(values[rows].tolist(), times[rows].tolist(), strict=True)][-most:]

    def allot(self, *, observations_per_day: float, allowed_per_day: float) -> None:
        """Let the budget set this watch's limit: it may alarm falsely so often. What was learned is kept."""
        rule = self.rule
        if rule.budget is None or observations_per_day <= 0.0:
            return
        allowed = allowed_per_day * _SHARES[rule.sensitivity]
        if rule.budget == "limit":
            found = budget.evidence_limit(observations_per_day=observations_per_day, allowed_per_day=allowed)
        else:
            found = budget.tail_share(
                observations_per_day=observations_per_day,
                allowed_per_day=allowed,
                breaches=(rule.policy.k, rule.policy.n),
            )
        self._budget(budget.rounded(found))

    def _budget(self, value: float | None) -> None:
        if value is not None and value != self.budgeted and self.rule.budget is not None:
            detector: Any = self.detector
            detector.reconfigure(msgspec.structs.replace(detector.params, **{str(self.rule.budget): value}))
        self.budgeted = value

    def expire(self, subject: Subject, now_us: int) -> list[Alert]:
        """Return what the passing of event time up to `now_us` brings: at most a resolution."""
        steps = self.life.expire(now_us)
        if not steps:
            return []
        self.last_peak, self.kept = steps[-1].peak, []
        silence = silences.at(subject.silenced(self.rule.signal), steps[-1].at_us)
        return self._told(subject, [self._alert(subject, step) for step in steps], silence, now_us)

    def adopt(self, rule: Rule) -> None:
        """Take a changed rule of equal structure, keeping what was learned."""
        if any(getattr(rule, name) != getattr(self.rule, name) for name in ("params", "sensitivity", "budget")):
            state = self.detector.snapshot()
            self.detector = rule.build(columns=max(1, len(self.columns)), seed=0)
            self.detector.restore(state)
        kept, self.budgeted = self.budgeted, None
        self.rule = rule
        if rule.budget is not None:
            self._budget(kept)
        self.life.policy = rule.policy

    def _matters(self, values: F64, row: int) -> bool:
        """Whether an excess is in the rule's direction and large enough to matter."""
        rule = self.rule
        relative = rule.spec.relative_effect if rule.detector == rule.spec.detector else 0.0
        if values.ndim > 1 or (rule.direction == "both" and rule.min_effect == 0.0 and relative == 0.0):
            return True
        evidence = self.detector.explain(row)
        expected = evidence.expected
        if expected is None:
            return True
        if evidence.side:  # a single one or zero says nothing of a rate's size
            return rule.direction in ("both", "up" if evidence.side > 0 else "down")
        change = float(values[row]) - expected
        if (rule.direction == "up" and change < 0) or (rule.direction == "down" and change > 0):
            return False
        return abs(change) >= max(rule.min_effect, relative * abs(expected))

    def _alert(
        self,
        subject: Subject,
        step: Step,
        values: F64 | None = None,
        scores: F64 | None = None,
        basis: Basis = _OF_EVENTS,
    ) -> Alert:
        shown = step.action != "resolved"
        evidence, value = Evidence(), None
        if shown and values is not None and step.row >= 0:
            evidence = self.detector.explain(step.row)
            value = float(values[step.row]) if values.ndim == 1 else None
        score = float(scores[step.row]) if shown and scores is not None else step.peak
        return build_alert(
            self.rule,
            subject,
            step,
            score=score,
            value=value,
            n=basis.n if shown else None,
            evidence=evidence,
            columns=self.columns,
            carried=basis.carried() if shown and basis.carried is not None else [],
            against=basis.against() if shown and basis.against is not None else "",
            last_offset=basis.last_offset,
            version=self.version,
            confidence=self._confidence(score) if shown else None,
        )

    def _confidence(self, score: float) -> float | None:
        """Return how sure it is that this is no chance, None where nothing can be said.

        Evidence of E comes up without a change in at most one series of E (Ville's inequality); of a limit that the
        own past was measured for, a share of the values is beyond it.
        """
        if self.rule.budget is None or self.budgeted is None:
            return None
        chance = self.budgeted ** -min(score, 100.0) if self.rule.budget == "limit" else self.budgeted
        return round(1.0 - min(chance, 1.0), 9)

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "structure": self.rule.structure,
            "columns": list(self.columns),
            "detector": self.detector.snapshot(),
            "life": self.life.snapshot(),
            "version": self.version,
            "budgeted": self.budgeted,
            "told": [self.muted, self.expected, self.tolerance, self.last_peak, [list(k) for k in self.kept]],
            "over": [list(o) for o in self.over],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `snapshot` gave; of another structure, nothing: the detector warms up anew."""
        if state["structure"] == self.rule.structure and tuple(state["columns"]) == self.columns:
            self.detector.restore(state["detector"])
        self.life.restore(state["life"])
        self.version = state["version"]
        self.muted, self.expected, self.tolerance, self.last_peak, kept = state["told"]
        self.kept = [(value, at) for value, at in kept]
        self.over = [(value, at) for value, at in state.get("over", ())]  # states of before have none
        if self.rule.budget is not None:
            self._budget(state["budgeted"])


class SilenceWatch:
    """Watch arrivals: open when the arrival clock passes the deadline, resolve at the next event.

    Whether the clock or the next event shows the silence first, the alerts are the same.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.detector: _Silence = rule.build(columns=1, seed=0)  # type: ignore[assignment]
        self.open = False
        self.last_offset = -1
        self.last_us = 0
        self.opened_us = 0
        self.muted, self.muted_until_us = "", 0
        self.expected = ""  # the operator's word for which nobody is told any more of it
        self.tolerance = 1.0  # by how much operators have raised the timeout
        self.last_peak = 0.0  # of the silence before: how long it was, in timeouts
        self.answered = False  # this silence was over by an operator's word, and is told of anew

    def fingerprint(self, subject: Subject) -> str:
        """Return what names the condition for ever."""
        return _fingerprint(self.rule, subject)

    def feedback(self, subject: Subject, verdict: Feedback, offset: int, clock_us: int) -> list[Alert]:
        """Take an operator's word, as `Watch.feedback` does, at the arrival clock.

        NOT_ANOMALY raises the timeout above how long the silence has lasted, or the one before did; should this one
        outlast that too it is told of anew. ANOMALY_NEW_TREND has the usual gaps learned anew.
        """
        was = self.open
        clock_us = max(clock_us, self.opened_us)
        peak = (clock_us - self.last_us) / (self.opened_us - self.last_us) if was else self.last_peak
        action: Literal["updated", "resolved"] = "updated" if was else "resolved"
        if verdict.verdict in ("NOT_ANOMALY", "ANOMALY_NEW_TREND"):
            action = "resolved"
        answer = _answered(self._alert(subject, action, clock_us), verdict, offset)
        if verdict.verdict == "NOT_ANOMALY" and peak > 0.0:
            self._tolerate(_raised(self.tolerance, peak, most=math.inf))
        elif verdict.verdict == "ANOMALY_NEW_TREND":
            self.detector = self._build()
        elif verdict.verdict == "ANOMALY_EXPECTED" and was:
            self.expected = _word(verdict)
        if was and action == "resolved":
            self.open, self.muted, self.expected, self.last_peak = False, "", "", peak
            self.answered = True
            answer = msgspec.structs.replace(answer, suppressed_by="")
        return [answer]

    def _build(self) -> _Silence:
        detector: Any = self.rule.build(columns=1, seed=0)
        p, by = detector.params, self.tolerance
        if by != 1.0:
            # A learned timeout is a multiple of the gaps there were, and at least so long.
            longer = {"min_timeout_s": min(p.min_timeout_s * by, _LONGEST_S), "factor": p.factor * by}
            if p.timeout_s is not None:
                longer["timeout_s"] = min(p.timeout_s * by, _LONGEST_S)
            detector.reconfigure(msgspec.structs.replace(p, **longer))
        found: _Silence = detector
        return found

    def _tolerate(self, tolerance: float) -> None:
        state = self.detector.snapshot()
        self.tolerance = tolerance
        self.detector = self._build()
        self.detector.restore(state)

    def observe(self, subject: Subject, arrivals: I64, offsets: I64) -> list[Alert]:
        """Take arrivals, (n,) on the arrival clock, not decreasing."""
        scores = self.detector.score(np.zeros(len(arrivals)), arrivals)  # it looks at times alone
        alerts: list[Alert] = []
        late = scores >= 1.0
        for row in np.nonzero(late)[0].tolist() if late.any() else ():
            if row > 0:
                self.last_us, self.last_offset = int(arrivals[row - 1]), int(offsets[row - 1])
            timeout_s = self.detector.explain(row).upper
            if timeout_s is not None:
                alerts += self._fire(subject, self.last_us + round(timeout_s * 1e6))
            if self.open:
                alerts.append(self._alert(subject, "resolved", int(arrivals[row])))
                self.last_peak = (int(arrivals[row]) - self.last_us) / max(1, self.opened_us - self.last_us)
                self.open, self.muted, self.expected = False, "", ""
            self.answered = False
        self.open = self.answered = False
        self.last_us, self.last_offset = int(arrivals[-1]), int(offsets[-1])
        return alerts

    def advance(self, subject: Subject, clock_us: int) -> list[Alert]:
        """Take note of the arrival clock."""
        deadline = self.detector.deadline_us()
        if deadline is None or clock_us < deadline:
            return []
        alerts = self._fire(subject, deadline)
        if self.muted and clock_us >= self.muted_until_us:
            muted, self.muted = self.muted, ""
            alerts.append(_after(muted, self._alert(subject, "opened", self.muted_until_us, anew=True)))
        return alerts

    def due_us(self) -> int | None:
        """Return when `advance` would open, or None."""
        if self.open:
            return self.muted_until_us if self.muted else None
        return self.detector.deadline_us()

    def adopt(self, rule: Rule) -> None:
        """Take a changed rule, keeping what was learned where its structure is equal."""
        if rule.params != self.rule.params or rule.sensitivity != self.rule.sensitivity:
            state, structure = self.detector.snapshot(), self.rule.structure
            self.rule = rule
            self.detector = self._build()
            if rule.structure == structure:
                self.detector.restore(state)
        self.rule = rule

    def _fire(self, subject: Subject, at_us: int) -> list[Alert]:
        if self.open:
            return []
        self.open = True
        self.opened_us = at_us
        silence = silences.at(subject.silenced(self.rule.signal), at_us)
        if silence is not None:
            self.muted, self.muted_until_us = str(silence), silence.to_us
        return [self._alert(subject, "opened", at_us, anew=self.answered)]

    def _alert(self, subject: Subject, action: Any, at_us: int, *, anew: bool = False) -> Alert:
        timeout_s = (self.opened_us - self.last_us) / 1e6
        waited_s = (at_us - self.last_us) / 1e6
        last = self.last_offset
        step = Step(action, -1, at_us, self.last_us, last, last, last, 1.0, anew=anew)
        upper = timeout_s if timeout_s > 0 else None
        evidence = Evidence(upper=upper, note=f"nothing for {_amount(waited_s, 's')}")
        score = max(1.0, waited_s / timeout_s) if timeout_s > 0 else 1.0
        alert = build_alert(self.rule, subject, step, score=score, value=waited_s, n=None, evidence=evidence)
        hidden = self.muted or self.expected
        return msgspec.structs.replace(alert, suppressed_by=hidden) if hidden else alert

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "structure": self.rule.structure,
            "detector": self.detector.snapshot(),
            "life": [self.open, self.last_offset, self.last_us, self.opened_us, self.muted, self.muted_until_us],
            "told": [self.expected, self.tolerance, self.last_peak, self.answered],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `snapshot` gave."""
        self.expected, self.tolerance, self.last_peak, self.answered = state.get("told", ("", 1.0, 0.0, False))
        self.detector = self._build()
        if state["structure"] == self.rule.structure:
            self.detector.restore(state["detector"])
        self.open, self.last_offset, self.last_us, self.opened_us, self.muted, self.muted_until_us = state["life"]


#: Values kept of an episode, to begin anew with.
_KEPT = 256
#: How far above its peak an episode that was none puts the limit, and the most that a limit is ever raised.
_SURELY = 1.1
_MOST_TOLERANCE = 100.0
#: Values over the limit that are kept, and numbers in them where they are rows.
_KEPT_OVER = 64
_NUMBERS_OVER = 640
#: No timeout is longer, in seconds.
_LONGEST_S = 1e9


def _fingerprint(rule: Rule, subject: Subject) -> str:
    whole = (subject.model, rule.signal, rule.detector)
    return identity(*whole, subject.segment) if subject.segment else identity(*whole)


def _raised(tolerance: float, peak: float, *, most: float = _MOST_TOLERANCE) -> float:
    """Return the tolerance under which what scored `peak` is no anomaly."""
    return min(tolerance * max(1.0, _SURELY * peak), most)


def _word(verdict: Feedback) -> str:
    return f"{verdict.verdict}: {verdict.comment}" if verdict.comment else verdict.verdict


def _answered(alert: Alert, verdict: Feedback, offset: int) -> Alert:
    """Return an alert as what an operator said of it, at an offset of the topic of feedback."""
    said = {
        "feedback": verdict.verdict,
        "feedback_author": verdict.author or "",
        "feedback_comment": verdict.comment or "",
        "feedback_cause": verdict.cause or "",
    }
    return msgspec.structs.replace(
        alert,
        id=identity(alert.fingerprint, "feedback", offset),
        summary=f"{alert.name}: {_word(verdict)}"[:1024],
        annotations={**alert.annotations, **{k: v for k, v in said.items() if v}},
    )


def _after(muted: str, alert: Alert) -> Alert:
    """Say of an alert that opens anew for what it was hidden until now."""
    return msgspec.structs.replace(alert, annotations={**alert.annotations, "silenced": muted})


def _stretches(times: I64, found: tuple[Silence, ...]) -> Iterator[tuple[int, int, Silence | None]]:
    """Yield the rows, from start to end, that are in one silence or in none."""
    edges = sorted({edge for s in found for edge in (s.from_us, s.to_us)})
    cuts = [0, *(int(np.searchsorted(times, edge)) for edge in edges), len(times)]
    for start, end in itertools.pairwise(cuts):
        if start < end:
            yield start, end, silences.at(found, int(times[start]))


def build_alert(
    rule: Rule,
    subject: Subject,
    step: Step,
    *,
    score: float,
    value: float | None,
    n: int | None,
    evidence: Evidence,
    columns: tuple[str, ...] = (),
    carried: Sequence[Share] = (),
    against: str = "",
    last_offset: int | None = None,
    version: str | None = None,
    confidence: float | None = None,
) -> Alert:
    """Return the alert that one transition is published as."""
    fingerprint = _fingerprint(rule, subject)
    episode = identity(fingerprint, subject.topic, subject.partition, step.opening)
    attribution = [
        *(Share(columns[i], min(1.0, s)) for i, s in evidence.shares if i < len(columns)),
        *carried,
    ]
    shown = step.action != "resolved"
    effect = value - evidence.expected if value is not None and evidence.expected is not None else None
    severity = "critical" if step.escalated else rule.severity
    change = subject.change(step) if shown else None
    summary = _summary(rule, subject, step, value=value, evidence=evidence, attribution=attribution, change=change)
    labels = {
        "alertname": rule.signal,
        "model": subject.model,
        "severity": severity,
        "signal": rule.signal,
        "detector": rule.detector,
    }
    if subject.segment:
        labels["segment"] = subject.segment
    if version is not None:
        labels["model_version"] = version
    if rule.environment:
        labels["env"] = rule.environment
    if rule.owner:
        labels["team"] = rule.owner
    annotations = {"summary": summary, "description": rule.spec.summary}
    if against:
        annotations["reference"] = against
    if rule.runbook:
        annotations["runbook_url"] = rule.runbook.replace("{model}", subject.model).replace("{signal}", rule.signal)
    if rule.dashboard:
        annotations["dashboard_url"] = (
            rule.dashboard.replace("{model}", subject.model)
            .replace("{signal}", rule.signal)
            .replace("{from_ms}", str(step.started_us // 1000 - _BEFORE_MS))
            .replace("{to_ms}", str(step.at_us // 1000 + _BEFORE_MS))
        )
    expected = None
    if evidence.expected is not None or evidence.upper is not None or evidence.lower is not None:
        expected = Expected(evidence.expected, evidence.lower, evidence.upper)
    return Alert(
        id=identity(episode, step.action, *([step.at_us] if step.action == "updated" or step.anew else [])),
        fingerprint=fingerprint,
        episode_id=episode,
        name=" ".join(filter(None, (subject.model, subject.segment, rule.signal))),
        status="firing" if shown else "resolved",
        severity=severity,
        summary=summary[:1024],
        action=step.action,
        labels=labels,
        annotations=annotations,
        startsAt=rfc3339(step.started_us),
        lastReceived=rfc3339(step.at_us),
        endsAt=None if shown else rfc3339(step.at_us),
        signal=rule.signal,
        detector=DetectorRef(rule.detector, rule.params_hash),
        score=score,
        message=summary,
        description=rule.spec.summary,
        environment=rule.environment,
        service=subject.model,
        url=annotations.get("runbook_url", ""),
        value=value,
        expected=expected,
        effect=effect,
        n=n,
        confidence=confidence,
        impact=_impact(rule, step, effect) if step.values else None,
        generatorURL=annotations.get("dashboard_url", ""),
        category=rule.spec.category,
        attribution=attribution,
        changes=[] if change is None else [Changed("version", change.version, change.before, rfc3339(change.at_us))],
        evidence=Span(
            subject.topic,
            subject.partition,
            step.offset_first,
            max(step.offset_last, last_offset if last_offset is not None and shown else -1),
        ),
    )


def _impact(rule: Rule, step: Step, effect: float | None) -> Impact:
    lasted_s = max(0, step.at_us - step.started_us) / 1e6
    cost: float | None = None
    if effect is not None and rule.signal == "cost_per_hour":
        cost = effect * lasted_s / 3600.0
    elif effect is not None and rule.signal == "cost_per_request":
        cost = effect * step.weight
    elif rule.cost_per_affected is not None and rule.spec.name != "metric":  # points of a metric are no predictions
        cost = rule.cost_per_affected * step.weight
    return Impact(step.weight, lasted_s, None if cost is None else round(cost, 6))


def _summary(
    rule: Rule,
    subject: Subject,
    step: Step,
    *,
    value: float | None,
    evidence: Evidence,
    attribution: list[Share],
    change: Change | None,
) -> str:
    text = _what_is(rule, subject, step, value=value, evidence=evidence, attribution=attribution)
    if change is not None:
        text += f"; since version {change.version}"
        if (began_s := (step.started_us - change.at_us) / 1e6) > 0:
            text += f", {_amount(began_s, 's')} before"
    return text


def _what_is(
    rule: Rule,
    subject: Subject,
    step: Step,
    *,
    value: float | None,
    evidence: Evidence,
    attribution: list[Share],
) -> str:
    what = f"{subject.model} ({subject.segment})" if subject.segment else subject.model
    what += f": {rule.signal}"
    if step.action == "resolved":
        return f"{what} is back to normal after {_amount((step.at_us - step.started_us) / 1e6, 's')}"
    unit = rule.spec.unit
    if rule.spec.shape == "arrivals":
        return f"{what}: no event for {_amount(value or 0.0, 's')}"
    if value is None:
        carried = ", ".join(f"{s.feature} {s.share:.0%}" for s in attribution[:3])
        return f"{what}: {rule.spec.summary}" + (f"; carried by {carried}" if carried else "")
    lasted = "" if step.action == "opened" else f" after {_amount((step.at_us - step.started_us) / 1e6, 's')} still"
    text = f"{what}{lasted} is {_amount(value, unit)}"
    if evidence.side and evidence.lower is not None and evidence.upper is not None:
        text = f"{what}{lasted}: {evidence.note}, from {_band(evidence.lower, evidence.upper, unit, of=value)}"
    elif evidence.lower is not None and evidence.upper is not None:
        upper = min(1.0, evidence.upper) if rule.spec.share and value <= 1.0 else evidence.upper
        text += f", expected {_band(_least(rule, evidence.lower), upper, unit, of=value)}"
    elif evidence.upper is not None:
        text += f", the limit is {_amount(evidence.upper, unit)}"
    elif evidence.lower is not None:
        text += f", the limit is {_amount(evidence.lower, unit)}"
    elif evidence.note:
        text += f": {evidence.note}"
    if attribution:
        text += "; " + ", ".join(f"{s.feature} {s.share:.0%}" for s in attribution[:3])
    return text


def _least(rule: Rule, lower: float) -> float:
    """Return the lower bound as it is said: a share, a rate or a latency is never below 0."""
    return lower if rule.spec.name in ("prediction_value", "prediction_drift", "metric") else max(0.0, lower)


def _band(lower: float, upper: float, unit: str, *, of: float) -> str:
    """Return a range in words; one number where its width is nothing beside the value's distance."""
    middle = (lower + upper) / 2
    if upper - lower <= 1e-3 * abs(of - middle):
        return _amount(0.0 if abs(middle) < 1e-6 * abs(of) else middle, unit)
    return f"{_amount(lower, unit)} to {_amount(upper, unit)}"


def _amount(number: float, unit: str) -> str:
    if unit == "s":
        if abs(number) >= 120:
            return f"{number / 60:.3g} min" if abs(number) < 7200 else f"{number / 3600:.3g} h"
        return f"{number:.3g} s" if abs(number) >= 1 or number == 0.0 else f"{number * 1e3:.3g} ms"
    return f"{number:.4g}" if unit == "1" else f"{number:.4g} {unit}"
