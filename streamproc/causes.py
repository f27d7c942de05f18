"""What an incident is put down to: the links by which alerts belong together, and the table of rules for causes; pure.

Both are tables, to be read and argued with. A rule holds of an incident where all it asks for is there; it then speaks
for its cause with its weight, less where what it looks at came after other alerts: what came first is likelier the
cause. The cause is that of the strongest rule, and its confidence is how far that is ahead of the strongest rule for
any other cause. docs/incidents.md has the table in words; `python -m benchmarks.incidents` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct

from streamproc.events import Category, SuggestedAction

__all__ = ["LINKS", "RULES", "Rule", "Seen", "Verdict", "group_of", "judge", "links"]

Group = Literal[
    "broken", "range", "drifted", "answers", "quality", "slow", "failing", "load", "shed", "silent", "usage", "spend",
    "replies", "transport", "machine", "other",
]  # fmt: skip

#: Signals by what they are symptoms of; a family under its base name.
_GROUPS: Final[dict[Group, tuple[str, ...]]] = {
    "broken": (
        "missing_features", "invalid_features", "constant_features", "unseen_category", "feature_age",
        "empty_predictions", "unreadable", "insufficient_samples",
    ),
    "range": ("feature_range",),
    "drifted": ("feature_drift", "feature_outlier", "retrieval_score"),
    "answers": (
        "prediction_value", "prediction_drift", "prediction_psi", "prediction_jsd", "prediction_correlation",
        "class_share", "confidence", "prediction_entropy", "new_class",
    ),
    "quality": (
        "accuracy", "log_loss", "brier", "calibration_error", "mae", "prediction_error", "absolute_error",
        "estimated_accuracy", "evaluation", "unjudged",
    ),
    "slow": ("latency_p50", "latency_p95", "latency_p99", "latency", "time_to_first_token",
             "agent_latency_p95", "tool_latency_p95", "retrieval_latency_p95", "embedding_latency_p95"),
    "failing": ("error_rate", "error_share", "failures", "tool_failure_rate", "agent_failure_rate",
                "retrieval_failure_rate", "embedding_failure_rate"),
    "silent": ("silence",),
    "usage": ("tokens_in", "tokens_out", "cost_per_request"),
    "spend": ("cost_per_hour", "cost_per_day"),
    "replies": ("refusal_rate", "empty_rate", "truncated_rate", "unknown_finish_reasons"),
    "transport": ("duplicates", "out_of_order"),
    "machine": ("metric",),
}  # fmt: skip

_GROUP_OF: Final = {signal: group for group, signals in _GROUPS.items() for signal in signals}


def group_of(signal: str, *, up: bool | None) -> Group:
    """Return what a signal is a symptom of; of throughput it is the direction that tells."""
    base = signal.partition(":")[0]
    if base == "throughput":
        return "shed" if up is False else "load"
    return _GROUP_OF.get(base, "other")


#: What travels along a dependency, by the part of its name before the slash: a host that fails makes models slow, not
#: their features null. A name without one, or with another, links whatever there is.
LINKS: Final[dict[str, frozenset[Group]]] = {
    "host": frozenset({"slow", "failing", "shed", "silent", "machine"}),
    "feed": frozenset({"broken", "range", "drifted", "answers", "quality", "shed", "silent"}),
    "provider": frozenset({"slow", "failing", "usage", "spend", "replies", "silent"}),
}

#: Symptoms in which the same feature in several models is the same fault.
_OF_FEATURES: Final = frozenset({"broken", "range", "drifted"})


def links(upstream: str, group: Group) -> bool:
    """Return whether a symptom may come from a dependency, or from a feature (`feature/<name>`)."""
    kind = upstream.partition("/")[0]
    if kind == "feature":
        return group in _OF_FEATURES
    found = LINKS.get(kind)
    return found is None or group in found


class Seen(Struct, frozen=True, gc=False):
    """An alert as rules look at it; after_s: seconds it began after the first alert of the incident."""

    model: str
    group: Group
    after_s: float
    summary: str
    fingerprint: str
    upstreams: tuple[str, ...] = ()  # dependencies and features that may link it
    since_version: str | None = None  # that the model was given shortly before


class Rule(Struct, frozen=True, kw_only=True):
    """One line of the table.

    any_of: symptoms of which one at least is there, and which the rule rests on. with_: symptoms of which one must be
    there too. without: symptoms of which none may be there before what the rule rests on is. version: what it rests
    on began shortly after a change of version. shared: kinds of upstream of which one has two models or more among
    what the rule rests on; upstream: kinds of which one is itself among the alerts.
    """

    name: str
    cause: Category
    any_of: tuple[Group, ...]
    weight: float
    action: SuggestedAction
    says: str
    with_: tuple[Group, ...] = ()
    without: tuple[Group, ...] = ()
    version: bool = False
    shared: tuple[str, ...] = ()


_DATA: Final[tuple[Group, ...]] = ("broken", "range", "drifted")
_SERVICE: Final[tuple[Group, ...]] = ("slow", "failing")

#: The table. The order is of no matter but between rules of equal weight.
RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="shared_feature", cause="data", any_of=_DATA, shared=("feature", "feed"), weight=0.97, action="fix_feed",
        says="several models have it on one upstream, {upstream}",
    ),
    Rule(
        name="host_lost", cause="infra", any_of=("silent", "shed"), shared=("host",), weight=0.97, action="scale",
        says="several models of {upstream} went silent or lost their traffic",
    ),
    Rule(
        name="host_saturated", cause="infra", any_of=("slow", "failing", "machine"), shared=("host",), weight=0.95,
        action="scale", says="several models of {upstream} became slow or failed",
    ),
    Rule(
        name="machine", cause="infra", any_of=("machine",), with_=("slow", "failing", "silent", "shed"), weight=0.9,
        action="scale", says="a metric of what they run on is odd",
    ),
    Rule(
        name="bad_deploy", cause="model",
        any_of=("answers", "quality", "replies", "usage", "slow", "failing", "broken", "range"), version=True,
        weight=0.93, action="roll_back", says="it began shortly after version {version}",
    ),
    Rule(
        name="feed_broken", cause="data", any_of=("broken",), weight=0.9, action="fix_feed",
        says="features came missing, of the wrong type, unknown, constant or old",
    ),
    Rule(
        name="out_of_range", cause="data", any_of=("range",), weight=0.85, action="fix_feed",
        says="features left the range they were learned in, as after a change of unit",
    ),
    Rule(
        name="covariate_drift", cause="data", any_of=("drifted",), weight=0.75, action="retrain",
        says="what comes in is distributed unlike before",
    ),
    Rule(
        name="concept_drift", cause="model", any_of=("quality",), without=(*_DATA, *_SERVICE), weight=0.8,
        action="retrain", says="answers are worse by their labels, and nothing is odd about what comes in",
    ),
    Rule(
        name="answers_moved", cause="model", any_of=("answers",), without=(*_DATA, "load"), weight=0.5,
        action="investigate", says="answers changed, and nothing else did before",
    ),
    Rule(
        name="traffic_with_latency", cause="traffic", any_of=("load",), with_=("slow", "failing"), weight=0.95,
        action="scale", says="more requests came than usual, and they were slow or failed",
    ),
    Rule(
        name="traffic", cause="traffic", any_of=("load",), weight=0.8, action="scale",
        says="more requests came than usual",
    ),
    Rule(
        name="repeated", cause="traffic", any_of=("transport",), weight=0.6, action="investigate",
        says="events came twice, or late",
    ),
    Rule(
        name="spend", cause="traffic", any_of=("spend",), with_=("load",), weight=0.85, action="scale",
        says="more is spent because more is asked",
    ),
    Rule(
        name="cost_runaway", cause="model", any_of=("usage",), weight=0.82, action="investigate",
        says="each request takes more tokens, or costs more",
    ),
    Rule(
        name="spend_alone", cause="model", any_of=("spend",), without=("load",), weight=0.6, action="investigate",
        says="more is spent, and not because more is asked",
    ),
    Rule(
        name="provider", cause="model", any_of=("replies",), shared=("provider",), weight=0.95,
        action="contact_provider", says="several models of {upstream} have answers withheld, empty or cut off",
    ),
    Rule(
        name="refusals", cause="model", any_of=("replies",), weight=0.88, action="contact_provider",
        says="answers are withheld, empty or cut off",
    ),
    Rule(
        name="silent", cause="infra", any_of=("silent",), weight=0.8, action="investigate",
        says="nothing comes from it any more",
    ),
    Rule(
        name="less_traffic", cause="traffic", any_of=("shed",), weight=0.5, action="investigate",
        says="fewer requests came than usual",
    ),
    Rule(
        name="service", cause="infra", any_of=_SERVICE, weight=0.7, action="investigate",
        says="it became slow or failed, and not for more requests", without=("load",),
    ),
    Rule(
        name="metric", cause="infra", any_of=("machine",), weight=0.55, action="investigate",
        says="a metric of the service is odd",
    ),
)  # fmt: skip

#: What began so much later than the first alert came after it; within, both came first.
_TIE: Final = 1.0
#: What a rule's weight is worth where what it rests on came later.
_LATER: Final = 0.7

#: Alerts quoted as evidence for a rule.
_QUOTED: Final = 3


class Verdict(Struct, frozen=True, gc=False):
    """What a table of rules makes of an incident; root: the fingerprint of the alert that is the cause."""

    cause: Category
    confidence: float
    rule: str
    action: SuggestedAction
    evidence: list[str]
    root: str


def judge(alerts: Sequence[Seen], *, tie_s: float, rules: Sequence[Rule] = RULES) -> Verdict:
    """Return the verdict on the alerts of one incident, given in order of when they began.

    tie_s: seconds within which two beginnings are as one: signals of windows are no sharper.
    """
    found: list[tuple[float, Rule, list[Seen], str]] = []
    for rule in rules:
        held = _holds(rule, alerts, tie_s)
        if held is not None:
            on, upstream = held
            weight = rule.weight if on[0].after_s <= _TIE * tie_s else rule.weight * _LATER
            found.append((weight, rule, on, upstream))
    if not found:
        first = alerts[0]
        return Verdict("unknown", 0.0, "none", "investigate", [first.summary], first.fingerprint)
    found.sort(key=lambda f: -f[0])  # stable: of equal weights the first in the table
    weight, rule, on, upstream = found[0]
    rival = next((f for f in found if f[1].cause != rule.cause), None)
    confidence = weight if rival is None else weight * weight / (weight + rival[0])
    said = rule.says.format(upstream=upstream, version=next((s.since_version for s in on if s.since_version), ""))
    evidence = [said, *dict.fromkeys(s.summary for s in on[:_QUOTED])]
    if rival is not None:
        evidence.append(f"against it: {rival[1].cause}, for {_plain(rival[1])}")
    return Verdict(rule.cause, round(confidence, 3), rule.name, rule.action, evidence, on[0].fingerprint)


def _plain(rule: Rule) -> str:
    return rule.says.format(upstream="one upstream", version="that is new")


def _holds(rule: Rule, alerts: Sequence[Seen], tie_s: float) -> tuple[list[Seen], str] | None:
    """Return what a rule rests on, in order, and the upstream it names; None where it does not hold."""
    on = [a for a in alerts if a.group in rule.any_of and (a.since_version is not None or not rule.version)]
    if not on:
        return None
    if rule.with_ and not any(a.group in rule.with_ for a in alerts):
        return None
    if rule.without and any(a.group in rule.without and a.after_s <= on[0].after_s + tie_s for a in alerts):
        return None
    if not rule.shared:
        return on, ""
    best: tuple[int, str] = (1, "")
    for upstream in dict.fromkeys(u for a in on for u in a.upstreams if u.partition("/")[0] in rule.shared):
        models = len({a.model for a in on if upstream in a.upstreams})
        best = max(best, (models, upstream), key=lambda b: b[0])
    if not best[1]:
        return None
    return [a for a in on if best[1] in a.upstreams], best[1]
