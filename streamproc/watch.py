"""One series under one rule: its detector, and its alert's life."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64, Damped, Detector, Evidence
from streamproc import budget, silences
from streamproc.alerts import Lifecycle, Step, raised
from streamproc.config import Sensitivity
from streamproc.events import Alert, Feedback, Share
from streamproc.rules import Rule
from streamproc.silences import Silence
from streamproc.telling import Ended, Subject, after, answered, build_alert, fingerprint, word

__all__ = ["Basis", "Watch", "end_unwatched"]

#: What of its share of the budget a sensitivity allows a watch.
_SHARES: dict[Sensitivity, float] = {"low": 0.1, "medium": 1.0, "high": 10.0}

#: Values kept of an episode, to begin anew with.
_KEPT = 256
#: Values that tell, on average, what it is at the end of an episode.
_LATEST = 20
#: Values over the limit that are kept, and numbers in them where they are rows.
_KEPT_OVER = 64
_NUMBERS_OVER = 640


class Basis(Struct, frozen=True):
    """What a window's value rests on; of a single event's value there is no more to say than its offset.

    n and last_offset: how many events, and the last of them. opening: what names an episode that the value opens, where
    its offset does not. faulty: it is of a stretch in which the model was out of order. carried: tells which features
    carry the value, against: what it is measured by; both are asked only for an alert.
    """

    n: int | None = None
    last_offset: int | None = None
    opening: int | None = None
    faulty: bool = False
    carried: Callable[[], list[Share]] | None = None
    against: Callable[[], str] | None = None


#: Of values that are events' own.
_OF_EVENTS = Basis()


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
        self.absolute = True  # what is never normal by itself is not: no operator has said otherwise
        self.tolerance = 1.0  # by how much operators have raised the limit
        self.last_peak = 0.0  # of the episode before
        self.kept: list[tuple[float, int]] = []  # values and times of the episode, the latest
        self.held: list[float | None] | None = None  # what the episode's end is measured by; see `_hold`
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
            out.append(after(muted, self._alert(subject, self.life.again(at_us))))
        return out

    def fingerprint(self, subject: Subject) -> str:
        """Return what names the condition for ever."""
        return fingerprint(self.rule, subject)

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
            before = self.tolerance
            self.tolerance = raised(before, peak)
            self.last_peak = peak * before / self.tolerance  # as it would score now: said twice, it is the same
            self._learn_undamped()
            self.absolute = False
            steps = self.life.end(now_us)
        elif verdict.verdict == "ANOMALY_NEW_TREND":
            self.detector = self.rule.build(columns=max(1, len(self.columns)), seed=0)
            self.absolute = False
            if self.kept:
                values, times = zip(*self.kept, strict=True)
                self.detector.score(np.array(values), np.array(times, np.int64))
            kept, self.budgeted = self.budgeted, None
            self._budget(kept)
            steps = self.life.end(now_us)
        elif verdict.verdict == "ANOMALY_EXPECTED" and self.life.state == "firing":
            self.expected = word(verdict)
        if not steps:
            action: Literal["updated", "resolved"] = "updated" if self.life.state == "firing" else "resolved"
            steps = [Step(action, -1, now_us, self.life.since_us, opening, opening, opening, peak)]
        else:
            self.muted = self.expected = ""
            self.kept, self.held = [], None
        return [answered(self._alert(subject, step), verdict, offset) for step in steps]

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
        beyond = self._beyond(values)
        if beyond is None:
            return self._show(subject, values, times, offsets, versions, basis)
        alerts: list[Alert] = []
        for key, run in itertools.groupby(range(len(values)), beyond.__getitem__):
            rows = list(run)
            own = slice(rows[0], rows[-1] + 1)
            said = versions[own] if versions else ()
            alerts += self._show(subject, values[own], times[own], offsets[own], said, basis, beyond=bool(key))
        return alerts

    def _beyond(self, values: F64) -> npt.NDArray[np.bool_] | None:
        """Return which values are beyond a limit that holds whatever was learned, None where none needs a look."""
        rule = self.rule
        never = rule.never if self.absolute else None
        if values.ndim > 1 or (never is None and rule.lower is None and rule.upper is None):
            return None
        if never is None and not self.detector.warming():
            return None
        found = np.zeros(len(values), np.bool_)
        for bound in (never, rule.upper):
            if bound is not None:
                found |= values >= bound
        if rule.lower is not None:
            found |= values <= rule.lower
        return found if found.any() else None

    def _show(
        self,
        subject: Subject,
        values: F64,
        times: I64,
        offsets: I64,
        versions: Sequence[str | None],
        basis: Basis,
        *,
        beyond: bool = False,
    ) -> list[Alert]:
        """Show the detector values, and see what comes of it; beyond: all are beyond a limit that always holds."""
        never = self.rule.never if beyond and self.absolute else None
        # What nobody takes for normal is nothing to begin to learn from.
        scores = self._scores(values, times, learn=not (beyond or basis.faulty))
        breach = scores >= 1.0  # nan, while warming up, is not
        own = breach.copy()
        sizes = scores
        if breach.any():
            sizes = scores.copy()
            for row in np.nonzero(breach)[0].tolist():
                effect = self._effect(values, row)
                breach[row], sizes[row] = effect >= 1.0, min(sizes[row], effect)
        if never is not None:
            scores = np.fmax(scores, values / never)
            sizes = np.fmax(sizes, scores)
            own &= breach
            breach[:] = True
        if not breach.any() and self.life.state == "inactive":
            self.life.seen += len(breach)
            return []
        steps = self.life.observe(
            breach, scores, times, offsets, sizes=sizes, weight=basis.n or 1, opening=basis.opening
        )
        before = self.kept
        self._keep(values, times, breach, steps)
        self._keep_over(values, times, breach)
        alerts = []
        for step in steps:
            if step.action == "opened":
                self.version = versions[step.row] if versions else None
            evidence = Evidence(upper=never) if never is not None and step.row >= 0 and not own[step.row] else None
            ended = None
            if values.ndim == 1 and step.action == "opened":
                self.held = self._hold(self._explain(step.row) if evidence is None else evidence)
            elif values.ndim == 1 and step.action in ("updated", "escalated"):
                self._note_further(step.row)
            elif step.action == "resolved":
                pool = [*before, *zip(values[: step.row + 1].tolist(), times[: step.row + 1].tolist(), strict=True)]
                if self._has_rhythm() and step.row > 0:
                    self._note_rhythm(step.row - 1)
                ended = self._ended(step, pool)
                self.held = None
            alerts.append(self._alert(subject, step, values, scores, basis, evidence, ended))
        if self._has_rhythm():
            self._note_rhythm(-1)
        return alerts

    def _note_rhythm(self, row: int) -> None:
        """Remember what is expected at a row, and by what the rhythm is multiplied in it."""
        found = self.detector.explain(row)
        if self.held is not None:
            self.held[5:] = found.expected, found.level

    def _note_further(self, row: int) -> None:
        """Remember what it has become since it opened, in what was expected then."""
        held = self.held
        if held is None or held[0] is None or held[3] is None:
            return
        found = self.detector.explain(row)
        if found.now is not None and found.expected:
            held[3] = held[0] * found.now / found.expected

    def _has_rhythm(self) -> bool:
        return self.held is not None and self.held[4] is not None

    def _scores(self, values: F64, times: I64, *, learn: bool) -> F64:
        """Return the detector's scores; it learns the values, but for those that it is not to begin with."""
        if not learn and self.detector.warming():
            return np.full(len(values), np.nan)
        scores = self.detector.score(values, times)
        return scores if self.tolerance == 1.0 else scores / self.tolerance

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
        ended = self._ended(steps[-1], self.kept)
        self.last_peak, self.kept, self.held = steps[-1].peak, [], None
        silence = silences.at(subject.silenced(self.rule.signal), steps[-1].at_us)
        return self._told(subject, [self._alert(subject, step, ended=ended) for step in steps], silence, now_us)

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

    def _effect(self, values: F64, row: int) -> float:
        """Return how large an excess in the rule's direction is, in effects that just matter; inf where any does."""
        rule = self.rule
        least = max(rule.min_effect, rule.relative_effect, rule.lasting_effect)
        if values.ndim > 1 or (rule.direction == "both" and least == 0.0):
            return math.inf
        evidence = self.detector.explain(row)
        expected = evidence.expected
        if expected is None:
            return math.inf
        if evidence.side:  # a single one or zero says nothing of a rate's size
            return math.inf if rule.direction in ("both", "up" if evidence.side > 0 else "down") else 0.0
        change = (float(values[row]) if evidence.now is None else evidence.now) - expected
        if (rule.direction == "up" and change < 0) or (rule.direction == "down" and change > 0):
            return 0.0
        least = self._least_effect(evidence)
        return abs(change) / least if least > 0.0 else math.inf

    def _least_effect(self, evidence: Evidence) -> float:
        """Return how far from what is expected a value, or the mean of the latest, is before it matters."""
        rule = self.rule
        relative = rule.relative_effect if evidence.now is None else rule.lasting_effect
        return max(rule.min_effect, relative * abs(evidence.expected or 0.0))

    def _explain(self, row: int) -> Evidence:
        """Return the detector's evidence, with the line that alarms where an operator's word has put it."""
        evidence = self.detector.explain(row)
        middle, by = evidence.expected, self.tolerance
        if by == 1.0 or middle is None:
            return evidence
        edges = evidence.lower, evidence.upper
        lower, upper = (None if edge is None else middle + by * (edge - middle) for edge in edges)
        return msgspec.structs.replace(evidence, lower=lower, upper=upper)

    def _hold(self, evidence: Evidence) -> list[float | None]:
        """Return of the evidence that an episode opens with what its end is measured by."""
        lower, upper, middle = evidence.lower, evidence.upper, evidence.expected
        if middle is not None:  # what does not matter is no anomaly
            least = self._least_effect(evidence)
            lower = None if lower is None else min(lower, middle - least)
            upper = None if upper is None else max(upper, middle + least)
        # Of a spread that changed the mean tells nothing.
        moved = evidence.late is None or evidence.note.startswith("drifted")
        if evidence.now is not None:  # the band is of more values than tell of its end
            lower = upper = None
        held = [middle, lower, upper, evidence.now if moved else None, evidence.level, middle, evidence.level]
        return [None if x is None else float(x) for x in held]

    def _ended(self, step: Step, pool: list[tuple[float, int]]) -> Ended:
        """Return how an episode ended: what values are since it was last met, and whether that is as before.

        pool: values and times. Those from when it ended on do not count: whether they are here yet is the cut's affair.
        """
        latest = [value for value, at in pool if step.until_us < at < step.at_us][-_LATEST:]
        if not latest or self.held is None:
            return Ended(None, None, None)
        now = math.fsum(latest) / len(latest)
        was, lower, upper, then, level_then, expected, level = self.held
        by = 1.0
        if level is not None and level_then and expected and was:
            # Another hour has another usual: what counts is whether the rhythm is as high as it was.
            by = level_then / level * expected / was
        was, lower, upper, then = (None if x is None else x * by for x in (was, lower, upper, then))
        if lower is None and upper is None:
            if was is None or then is None:
                return Ended(now, was, None)
            gone = (now - was) * math.copysign(1.0, then - was)
            back = -abs(then - was) <= gone <= 0.5 * abs(then - was)  # nearer to what it was than to what it became
            return Ended(now, was, back, rhythm=by != 1.0)
        back = (lower is None or now >= lower) and (upper is None or now <= upper)
        return Ended(now, was, back, rhythm=by != 1.0)

    def _alert(
        self,
        subject: Subject,
        step: Step,
        values: F64 | None = None,
        scores: F64 | None = None,
        basis: Basis = _OF_EVENTS,
        why: Evidence | None = None,
        ended: Ended | None = None,
    ) -> Alert:
        shown = step.action != "resolved"
        evidence, value = Evidence(), None
        if shown and values is not None and step.row >= 0:
            evidence = self._explain(step.row) if why is None else why
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
            ended=ended,
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
            "absolute": self.absolute,
            "held": None if self.held is None else list(self.held),
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
        self.absolute = state.get("absolute", True)  # likewise
        held = state.get("held")  # likewise
        self.held = None if held is None else list(held)
        if self.rule.budget is not None:
            self._budget(state["budgeted"])


def end_unwatched(rule: Rule, subject: Subject, life: list[Any], version: str | None) -> list[Alert]:
    """Return the end of an alert that still fires, though what watched it is gone; life: a snapshot of its own."""
    kept = Lifecycle(rule.policy)
    kept.restore(life)
    ended = []
    for step in kept.end(kept.last_us):
        alert = build_alert(
            rule, subject, step, score=step.peak, value=None, n=None, evidence=Evidence(), version=version
        )
        said = f"{alert.name} is no longer watched by {rule.detector}"
        ended.append(
            msgspec.structs.replace(
                alert, summary=said, message=said, annotations={**alert.annotations, "summary": said}
            )
        )
    return ended


def _stretches(times: I64, found: tuple[Silence, ...]) -> Iterator[tuple[int, int, Silence | None]]:
    """Yield the rows, from start to end, that are in one silence or in none."""
    edges = sorted({edge for s in found for edge in (s.from_us, s.to_us)})
    cuts = [0, *(int(np.searchsorted(times, edge)) for edge in edges), len(times)]
    for start, end in itertools.pairwise(cuts):
        if start < end:
            yield start, end, silences.at(found, int(times[start]))
