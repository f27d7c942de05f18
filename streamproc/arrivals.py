"""Arrivals under the rule of `silence`: nothing comes for too long, on the arrival clock."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from detectors.protocol import F64, I64, Evidence
from streamproc import silences
from streamproc.alerts import Step, raised
from streamproc.events import Alert, Feedback
from streamproc.rules import Rule
from streamproc.telling import Subject, after, amount, answered, build_alert, fingerprint, word

__all__ = ["SilenceWatch"]

#: No timeout is longer, in seconds.
_LONGEST_S = 1e9


class _Silence(Protocol):
    """What the silence detector offers beyond the others."""

    def score(self, values: F64, times: I64) -> F64: ...
    def explain(self, index: int = -1) -> Evidence: ...
    def deadline_us(self) -> int | None: ...
    def warming(self) -> int: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


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
        return fingerprint(self.rule, subject)

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
        answer = answered(self._alert(subject, action, clock_us), verdict, offset)
        if verdict.verdict == "NOT_ANOMALY" and peak > 0.0:
            before = self.tolerance
            self._tolerate(raised(before, peak, most=math.inf))
            peak *= before / self.tolerance  # in timeouts as they are now: said twice, it is the same
            self.last_peak = peak
        elif verdict.verdict == "ANOMALY_NEW_TREND":
            self.detector = self._build()
        elif verdict.verdict == "ANOMALY_EXPECTED" and was:
            self.expected = word(verdict)
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
            longer = {"min_timeout_s": min(p.min_timeout_s * by, _LONGEST_S), "factor": min(p.factor * by, _LONGEST_S)}
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
        if self.open and not late[0]:  # the timeout has become longer since it opened
            alerts.append(self._end(subject, int(arrivals[0])))
        for row in np.nonzero(late)[0].tolist() if late.any() else ():
            if row > 0:
                self.answered = False
                self.last_us, self.last_offset = int(arrivals[row - 1]), int(offsets[row - 1])
            timeout_s = self.detector.explain(row).upper
            if timeout_s is not None:
                alerts += self._fire(subject, self.last_us + round(timeout_s * 1e6))
            if self.open:
                alerts.append(self._end(subject, int(arrivals[row])))
            self.answered = False
        self.open = self.answered = False
        self.last_us, self.last_offset = int(arrivals[-1]), int(offsets[-1])
        return alerts

    def _end(self, subject: Subject, at_us: int) -> Alert:
        alert = self._alert(subject, "resolved", at_us)
        self.last_peak = (at_us - self.last_us) / max(1, self.opened_us - self.last_us)
        self.open, self.muted, self.expected = False, "", ""
        return alert

    def advance(self, subject: Subject, clock_us: int) -> list[Alert]:
        """Take note of the arrival clock."""
        deadline = self.detector.deadline_us()
        if deadline is None or clock_us < deadline:
            return []
        alerts = self._fire(subject, deadline)
        if self.muted and clock_us >= self.muted_until_us:
            muted, self.muted = self.muted, ""
            alerts.append(after(muted, self._alert(subject, "opened", self.muted_until_us, anew=True)))
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
        evidence = Evidence(upper=upper, note=f"nothing for {amount(waited_s, 's')}")
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
