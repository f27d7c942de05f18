"""What an alert is about, and what it says: a transition of its life as it is published."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from detectors.protocol import Evidence
from streamproc.alerts import Step, identity
from streamproc.events import Alert, Changed, DetectorRef, Expected, Feedback, Impact, Share, Span, rfc3339
from streamproc.rules import Rule
from streamproc.segments import Change, History
from streamproc.silences import Silence, Silences

__all__ = ["Ended", "Subject", "after", "amount", "answered", "build_alert", "fingerprint", "word"]

#: What a dashboard shows before and after an alert.
_BEFORE_MS = 3_600_000


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


class Ended(Struct, frozen=True):
    """How an episode ended: what it is now and was before, in the signal's unit, and whether that is as before.

    back: None where nothing tells. rhythm: it has a usual for each time of the day.
    """

    now: float | None
    was: float | None
    back: bool | None
    rhythm: bool = False


def fingerprint(rule: Rule, subject: Subject) -> str:
    """Return what names a condition for ever."""
    whole = (subject.model, rule.signal, rule.detector)
    return identity(*whole, subject.segment) if subject.segment else identity(*whole)


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
    ended: Ended | None = None,
) -> Alert:
    """Return the alert that one transition is published as; ended: how a resolved one did, None for normally."""
    condition = fingerprint(rule, subject)
    episode = identity(condition, subject.topic, subject.partition, step.opening)
    attribution = [
        *(Share(columns[i], min(1.0, s)) for i, s in evidence.shares if i < len(columns)),
        *carried,
    ]
    shown = step.action != "resolved"
    it_is = value if evidence.now is None else evidence.now
    effect = it_is - evidence.expected if it_is is not None and evidence.expected is not None else None
    severity = "critical" if step.escalated else rule.severity
    change = subject.change(step) if shown else None
    summary = _summary(
        rule, subject, step, value=value, evidence=evidence, attribution=attribution, change=change, ended=ended
    )
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
        fingerprint=condition,
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


def _lasted_s(rule: Rule, step: Step) -> float:
    """Return how long a fault has lasted, or did: from its first value over the limit to its last, in seconds.

    A value of a window stands for all of it. What an alert waits for after that, lest it flap, is no part of the fault.
    """
    until_us = step.at_us if step.until_us < 0 else step.until_us
    return (max(0, until_us - step.started_us) + rule.window_us) / 1e6


def _impact(rule: Rule, step: Step, effect: float | None) -> Impact:
    lasted_s = _lasted_s(rule, step)
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
    ended: Ended | None,
) -> str:
    text = _what_is(rule, subject, step, value=value, evidence=evidence, attribution=attribution, ended=ended)
    if change is not None:
        text += f"; since version {change.version}"
        if (began_s := (step.started_us - change.at_us) / 1e6) > 0:
            text += f", {amount(began_s, 's')} before"
    return text


def _what_is(
    rule: Rule,
    subject: Subject,
    step: Step,
    *,
    value: float | None,
    evidence: Evidence,
    attribution: list[Share],
    ended: Ended | None,
) -> str:
    what = f"{subject.model} ({subject.segment})" if subject.segment else subject.model
    what += f": {rule.signal}"
    if step.action == "resolved":
        return f"{what} {_how_it_ended(rule, step, ended)}"
    unit = rule.spec.unit
    if rule.spec.shape == "arrivals":
        return f"{what}: no event for {amount(value or 0.0, 's')}"
    if value is None:
        carried = ", ".join(f"{s.feature} {s.share:.0%}" for s in attribution[:3])
        return f"{what}: {rule.spec.summary}" + (f"; carried by {carried}" if carried else "")
    lasted = "" if step.action == "opened" else f" after {amount(_lasted_s(rule, step), 's')} still"
    text = f"{what}{lasted} is {amount(value, unit)}"
    if evidence.now is not None and evidence.note and evidence.expected is not None:
        text = f"{what}{lasted} {_moved(evidence, evidence.now, evidence.expected, unit)}"
    elif evidence.now is not None and evidence.expected is not None:
        now, line = (_least(rule, x) for x in (evidence.now, _line(evidence, evidence.now, evidence.expected)))
        said = _apart((now, evidence.expected, line), evidence.now - evidence.expected, unit)
        text = f"{what}{lasted} is about {said[0]} of late, usual is {said[1]}, the limit {said[2]}"
    elif evidence.side and evidence.usual is not None:
        text = f"{what}{lasted}: {evidence.note}; it was {_band(*evidence.usual, unit, of=value)}"
    elif evidence.usual is not None:
        out = not evidence.usual[0] <= value <= evidence.usual[1]
        text += f": {evidence.note}" + (f"; usual is {_band(*evidence.usual, unit, of=value)}" if out else "")
    elif evidence.lower is not None and evidence.upper is not None and evidence.lower <= value <= evidence.upper:
        text += f": {evidence.note or rule.spec.summary}"  # what is out is no single value
    elif evidence.lower is not None and evidence.upper is not None:
        upper = min(1.0, evidence.upper) if rule.spec.share and value <= 1.0 else evidence.upper
        text += f", expected {_band(_least(rule, evidence.lower), upper, unit, of=value)}"
    elif evidence.upper is not None:
        text += f", the limit is {amount(evidence.upper, unit)}"
    elif evidence.lower is not None:
        text += f", the limit is {amount(evidence.lower, unit)}"
    elif evidence.note:
        text += f": {evidence.note}"
    if attribution:
        text += "; " + ", ".join(f"{s.feature} {s.share:.0%}" for s in attribution[:3])
    return text


def _how_it_ended(rule: Rule, step: Step, ended: Ended | None) -> str:
    """Return what is said of an alert that is over: normal only where it is so."""
    lasted_s = _lasted_s(rule, step)
    after = f"after {amount(lasted_s, 's')}" if lasted_s else "after a single value"
    if ended is None or ended.back:
        return f"is back to normal {after}"
    if ended.back is None or ended.now is None:
        return f"no longer stands out {after}"
    at = "at a new level: " if ended.rhythm else "at "
    if ended.was is None:
        return f"no longer changes; it has settled {at}{_apart((ended.now,), ended.now, rule.spec.unit)[0]} {after}"
    now, was = _apart((ended.now, ended.was), ended.now - ended.was, rule.spec.unit)
    return f"no longer changes; it has settled {at}{now} (was {was}) {after}"


def _moved(evidence: Evidence, now: float, was: float, unit: str) -> str:
    """Return how values of late differ from those before, each with its range."""
    usual, late = evidence.usual, evidence.late
    note = evidence.note.removeprefix("rate ")
    if usual is not None and late is not None and note in ("spread wider", "drew together"):
        least, most, low, high = _apart((*late, *usual), (late[1] - late[0]) - (usual[1] - usual[0]), unit)
        return f"{note}: it is about {least} to {most} of late and was {low} to {high}"
    numbers = (now, was) if usual is None else (now, was, *usual)
    said = _apart(numbers, now - was, unit)
    return f"{note}: it is about {said[0]} of late and was {said[1]}" + (f" ({said[2]} to {said[3]})" if usual else "")


def _line(evidence: Evidence, now: float, expected: float) -> float:
    """Return the edge of the band that the mean of the latest is beyond."""
    edge = evidence.upper if now > expected else evidence.lower
    return expected if edge is None else edge


def _apart(numbers: Sequence[float], difference: float, unit: str) -> list[str]:
    """Return numbers in words, with as many digits as a tenth of a difference needs."""
    if unit == "s" or difference == 0.0 or not math.isfinite(difference):
        return [amount(number, unit) for number in numbers]
    digits = max(-300, min(300, math.ceil(1.0 - math.log10(abs(difference)))))
    told = (f"{round(number, digits) + 0.0:.12g}" for number in numbers)
    return [text if unit == "1" else f"{text} {unit}" for text in told]


def _least(rule: Rule, lower: float) -> float:
    """Return the lower bound as it is said: a share, a rate or a latency is never below 0."""
    return lower if rule.spec.name in ("prediction_value", "prediction_drift", "metric") else max(0.0, lower)


def _band(lower: float, upper: float, unit: str, *, of: float) -> str:
    """Return a range in words; one number where its width is nothing beside the value's distance."""
    middle = (lower + upper) / 2
    if upper - lower <= 1e-3 * abs(of - middle):
        return amount(0.0 if abs(middle) < 1e-6 * abs(of) else middle, unit)
    return f"{amount(lower, unit)} to {amount(upper, unit)}"


def amount(number: float, unit: str) -> str:
    """Return a number of a unit in words; seconds as milliseconds, minutes or hours where these read better."""
    if unit == "s":
        if abs(number) >= 120:
            return f"{number / 60:.3g} min" if abs(number) < 7200 else f"{number / 3600:.3g} h"
        return f"{number:.3g} s" if abs(number) >= 1 or number == 0.0 else f"{number * 1e3:.3g} ms"
    return f"{number:.4g}" if unit == "1" else f"{number:.4g} {unit}"


def word(verdict: Feedback) -> str:
    """Return an operator's verdict and comment in a line."""
    return f"{verdict.verdict}: {verdict.comment}" if verdict.comment else verdict.verdict


def answered(alert: Alert, verdict: Feedback, offset: int) -> Alert:
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
        summary=f"{alert.name}: {word(verdict)}"[:1024],
        annotations={**alert.annotations, **{k: v for k, v in said.items() if v}},
    )


def after(muted: str, alert: Alert) -> Alert:
    """Say of an alert that opens anew for what it was hidden until now."""
    return msgspec.structs.replace(alert, annotations={**alert.annotations, "silenced": muted})
