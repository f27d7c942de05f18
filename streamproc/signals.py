"""What is watched: the table of signals, and the columns they are computed from.

A signal is one number over time. `window` signals are aggregates of a closed window; `event`
signals are one value an event; the `vector` signal is one row of features an event; `arrivals` is
the coming of events itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from msgspec import UNSET, Struct

from detectors.protocol import F64
from streamproc import kernels
from streamproc.coercion import decimal, is_fraction
from streamproc.events import Half, Outcome, Prediction, error_type

SourceKind = Literal["predictions", "telemetry", "labels"]
#: Also what we publish, read again, and predictions joined with their labels.
Kind = Literal["predictions", "telemetry", "labels", "alerts", "quality"]
Shape = Literal["window", "event", "vector", "arrivals"]


class SignalSpec(Struct, frozen=True, kw_only=True):
    """One signal with its defaults. unit is "s", "1" (a share or a count) or "1/s".

    direction, min_effect and the rest say what is worth waking somebody for; a change of theirs
    never touches what was learned. channels: further detectors, each with its own limit and alert,
    unless a config names one. family: the name is followed by `:` and a label or a metric. samples: how many times
    `min_samples` events a window's value rests on, that is to count; 0 where it is no estimate from a sample. never:
    from where on a value is an anomaly whatever was learned, while a detector warms up too. lasting_effect: what
    matters, instead of relative_effect, of the mean of the latest values rather than of a single one.
    """

    name: str
    summary: str
    sources: tuple[Kind, ...]
    shape: Shape
    unit: str = "1"
    detector: str = "robust_z"
    params: dict[str, Any] = {}
    detector_kind: Literal["value", "boolean", "vector"] = "value"
    direction: Literal["up", "down", "both"] = "both"
    min_effect: float = 0.0
    relative_effect: float = 0.0
    lasting_effect: float | None = None
    for_us: int = 0
    resolve_after_us: int = 600_000_000
    breaches: tuple[int, int] = (1, 1)
    severity: Literal["critical", "warning", "info"] = "warning"
    category: Literal["data", "model", "infra", "traffic", "unknown"] = "unknown"
    samples: float = 1.0
    on: bool = True
    channels: tuple[str, ...] = ()
    family: bool = False
    share: bool = False  # never above 1
    never: float | None = None


_ALL: tuple[Kind, ...] = ("predictions", "telemetry", "labels")

_QUALITY: tuple[Kind, ...] = ("quality",)

#: Two windows in a row: a single odd window is noise more often than news.
_TWICE = (2, 3)

#: An hour of the default windows: what lies near 0 while all is well needs no long past, and memory counts.
_SHORT = {"window": 60}

#: By percentile: with 50 events for a mean, one of the tail has five beyond it. The 99th of a hundred is the largest.
_TAIL_SAMPLES = {50: 1.0, 95: 2.0, 99: 10.0}

_USAGE: tuple[tuple[str, str, Literal["up", "both"], float, float], ...] = (
    ("tokens_in", "mean input tokens a request in a window", "both", 0.25, 1.0),
    ("tokens_out", "mean output tokens a request in a window", "both", 0.25, 1.0),
    ("cost_per_request", "mean cost of a request in a window, in the producer's currency", "up", 0.25, 1.0),
    ("cost_per_hour", "cost of a window's requests an hour, in the producer's currency", "up", 0.5, 0.0),
)

#: Name, summary, direction, unit, least effect and relative effect, category, and whether it is a share.
_CALLS: tuple[
    tuple[str, str, Literal["up", "down"], str, float, float, Literal["model", "data", "infra"], bool], ...
] = (
    ("refusal_rate", "share of a language model's answers withheld, in a window", "up", "1", 0.02, 0.0, "model", True),
    (
        "empty_rate", "share of a language model's answers without a token, in a window",
        "up", "1", 0.02, 0.0, "model", True,
    ),
    (
        "truncated_rate", "share of a language model's answers cut off at their length",
        "up", "1", 0.02, 0.0, "model", True,
    ),
    (
        "unknown_finish_reasons", "share of a language model's answers that ended for a reason of no known word",
        "up", "1", 0.02, 0.0, "data", True,
    ),
    ("retrieval_score", "mean score of the best document retrieved, in a window", "down", "1", 0.0, 0.1, "data", False),
    ("time_to_first_token", "95th percentile of the time to the first token", "up", "s", 0.0, 0.2, "infra", False),
)

#: Spans that are watched beside the calls of language models, by kind, and what they are.
_PARTS = (("agent", "agents, chains and workflows"), ("tool", "tools"), ("retrieval", "retrievals"),
          ("embedding", "embeddings"))  # fmt: skip

#: Name, summary, and from where on it is never normal: what no alert may rest on in silence.
_UNTOLD: tuple[tuple[str, str, float], ...] = (
    ("empty_predictions", "share of answers that say nothing: null, [], {}, or no field that is known", 0.2),
    ("unreadable", "share of answers in a form that is not read: binary, a stream, a shape that does not fit", 0.2),
)

#: Name, summary, unit, direction, least effect and relative effect, and whether it is a share.
_JOINED: tuple[tuple[str, str, str, Literal["up", "down"], float, float, bool], ...] = (
    ("accuracy", "share of right answers among those that labels came for in a window", "1", "down", 0.02, 0.0, True),
    ("log_loss", "mean log loss of the answers that labels came for in a window, in nats", "1", "up", 0.05, 0.0, False),
    ("brier", "mean Brier score of the answers that labels came for in a window", "1", "up", 0.02, 0.0, False),
    ("calibration_error", "expected calibration error of the answers that labels came for", "1", "up", 0.05, 0.0, True),
    ("mae", "mean absolute error of the numbers that labels came for in a window", "1", "up", 0.0, 0.1, False),
    (
        "label_delay", "median age of the predictions that labels came for; without any, growing",
        "s", "up", 1.0, 0.5, False,
    ),
    (
        "unjudged", "share of pairs of answer and label that cannot be held against each other",
        "1", "up", 0.02, 0.0, True,
    ),
    ("unlabelled", "share of predictions still without a label at twice the usual delay", "1", "up", 0.05, 0.0, True),
)

SIGNALS: dict[str, SignalSpec] = {
    s.name: s
    for s in (
        SignalSpec(
            name="prediction_value",
            summary="mean predicted value of a window",
            sources=("predictions",),
            shape="window",
            breaches=_TWICE,
            channels=("drift",),
            category="model",
        ),
        SignalSpec(
            name="prediction_drift",
            summary="every predicted value, for detectors of change",
            sources=("predictions",),
            shape="event",
            detector="drift",
            category="model",
            on=False,
        ),
        SignalSpec(
            name="class_share",
            summary="share of a predicted class in a window",
            sources=("predictions",),
            shape="window",
            min_effect=0.05,
            breaches=_TWICE,
            category="model",
            family=True,
            share=True,
        ),
        SignalSpec(
            name="confidence",
            summary="mean confidence of a window: the largest of an answer's scores, or its score",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="down",
            min_effect=0.02,
            breaches=_TWICE,
            category="model",
            share=True,
        ),
        SignalSpec(
            name="prediction_entropy",
            summary="mean entropy of an answer's scores in a window, in nats",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.05,
            breaches=_TWICE,
            category="model",
        ),
        SignalSpec(
            name="new_class",
            summary="share of predictions with a class not seen while learning",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.01,
            breaches=_TWICE,
            category="model",
            share=True,
        ),
        SignalSpec(
            name="prediction_psi",
            summary="population stability index of a window's predicted values or classes, beyond chance",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.2,
            breaches=_TWICE,
            category="model",
        ),
        SignalSpec(
            name="prediction_jsd",
            summary="Jensen-Shannon divergence of a window's predicted values or classes, in bits",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.05,
            breaches=_TWICE,
            category="model",
            on=False,
        ),
        *(
            SignalSpec(
                name=f"latency_p{q}",
                summary=f"{q}th percentile of prediction latency in a window",
                sources=("predictions",),
                shape="window",
                unit="s",
                direction="up",
                relative_effect=0.2,
                breaches=_TWICE,
                category="infra",
                samples=_TAIL_SAMPLES[q],
            )
            for q in (50, 95, 99)
        ),
        SignalSpec(
            name="latency",
            summary="latency of every prediction",
            sources=("predictions",),
            shape="event",
            unit="s",
            detector="spike",
            direction="up",
            category="infra",
            on=False,
        ),
        SignalSpec(
            name="failures",
            summary="whether each request went unanswered: 1 or 0",
            sources=("predictions",),
            shape="event",
            detector="rate",
            detector_kind="boolean",
            direction="up",
            category="infra",
            on=False,
        ),
        SignalSpec(
            name="error_rate",
            summary="share of requests without an answer in a window",
            sources=("predictions",),
            shape="window",
            direction="up",
            min_effect=0.02,
            severity="critical",
            category="infra",
            share=True,
            never=0.5,
        ),
        SignalSpec(
            name="error_share",
            summary="share of requests that failed with an error of one type in a window",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.02,
            breaches=_TWICE,
            category="infra",
            family=True,
            share=True,
        ),
        SignalSpec(
            name="duplicates",
            summary="share of events in a window whose id was seen lately",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.02,
            breaches=_TWICE,
            category="traffic",
            share=True,
        ),
        SignalSpec(
            name="out_of_order",
            summary="share of events that came in a window and were older than the watermark",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.02,
            breaches=_TWICE,
            category="traffic",
            share=True,
        ),
        *(
            SignalSpec(
                name=name,
                summary=summary,
                sources=("predictions",),
                shape="window",
                params=_SHORT,
                direction=direction,
                relative_effect=effect,
                breaches=_TWICE,
                category="traffic",
                samples=samples,
            )
            for name, summary, direction, effect, samples in _USAGE
        ),
        *(
            SignalSpec(
                name=name,
                summary=summary,
                sources=("predictions",),
                shape="window",
                unit=unit,
                params=_SHORT,
                direction=way,
                min_effect=least,
                relative_effect=relative,
                breaches=_TWICE,
                category=category,
                share=share,
                samples=_TAIL_SAMPLES[95] if name == "time_to_first_token" else 1.0,
            )
            for name, summary, way, unit, least, relative, category, share in _CALLS
        ),
        *(
            SignalSpec(
                name=f"{kind}_failure_rate",
                summary=f"share of spans of {what} that failed, in a window",
                sources=("predictions",),
                shape="window",
                params=_SHORT,
                direction="up",
                min_effect=0.02,
                never=0.5,
                breaches=_TWICE,
                category="infra",
                share=True,
            )
            for kind, what in _PARTS
        ),
        *(
            SignalSpec(
                name=f"{kind}_latency_p95",
                summary=f"95th percentile of the time that spans of {what} took, in a window",
                sources=("predictions",),
                shape="window",
                unit="s",
                params=_SHORT,
                direction="up",
                relative_effect=0.2,
                breaches=_TWICE,
                category="infra",
                samples=_TAIL_SAMPLES[95],
            )
            for kind, what in _PARTS
        ),
        *(
            SignalSpec(
                name=name,
                summary=summary,
                sources=("predictions",),
                shape="window",
                params=_SHORT,
                direction="up",
                min_effect=0.02,
                never=never,
                breaches=_TWICE,
                category="data",
                share=True,
            )
            for name, summary, never in _UNTOLD
        ),
        SignalSpec(
            name="insufficient_samples",
            summary="share of signals that used to have enough samples in a window and have not, though events come",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.01,
            breaches=_TWICE,
            category="data",
            share=True,
        ),
        SignalSpec(
            name="cost_per_day",
            summary="cost since midnight UTC, in the producer's currency; give it an `upper_limit`",
            sources=("predictions",),
            shape="window",
            direction="up",
            category="traffic",
            samples=0.0,
            on=False,
        ),
        SignalSpec(
            name="throughput",
            summary="events a second in a window",
            sources=("predictions", "labels"),
            shape="window",
            unit="1/s",
            detector="seasonal",
            relative_effect=0.5,
            lasting_effect=0.15,
            breaches=_TWICE,
            category="traffic",
            samples=0.0,
        ),
        SignalSpec(
            name="missing_features",
            summary="share of known features that are null or absent in a window",
            sources=("predictions",),
            shape="window",
            direction="up",
            min_effect=0.01,
            category="data",
            share=True,
        ),
        SignalSpec(
            name="invalid_features",
            summary="share of known features of the wrong type in a window",
            sources=("predictions",),
            shape="window",
            direction="up",
            min_effect=0.01,
            category="data",
            share=True,
        ),
        SignalSpec(
            name="feature_range",
            summary="share of numeric features outside the range learned, and half of it on each side",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.01,
            breaches=_TWICE,
            category="data",
            share=True,
        ),
        SignalSpec(
            name="unseen_category",
            summary="share of categorical values not seen while learning",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.01,
            breaches=_TWICE,
            category="data",
            share=True,
        ),
        SignalSpec(
            name="constant_features",
            summary="share of numeric features that used to vary and had one value for a whole window",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.001,
            breaches=_TWICE,
            category="data",
            share=True,
        ),
        SignalSpec(
            name="feature_drift",
            summary="largest population stability index of a numeric feature in a window, beyond chance",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.2,
            breaches=_TWICE,
            category="data",
        ),
        SignalSpec(
            name="feature_age",
            summary="mean age of the features in a window, by their `feature_time`",
            sources=("predictions",),
            shape="window",
            unit="s",
            params=_SHORT,
            direction="up",
            relative_effect=0.5,
            breaches=_TWICE,
            category="data",
        ),
        SignalSpec(
            name="prediction_correlation",
            summary="largest change of a numeric feature's correlation with the predicted value, beyond chance",
            sources=("predictions",),
            shape="window",
            params=_SHORT,
            direction="up",
            min_effect=0.2,
            breaches=_TWICE,
            category="model",
        ),
        SignalSpec(
            name="feature_outlier",
            summary="feature vectors unlike those seen before",
            sources=("predictions",),
            shape="vector",
            detector="outlier",
            detector_kind="vector",
            direction="up",
            breaches=(10, 40),
            category="data",
        ),
        SignalSpec(
            name="silence",
            summary="time without any event",
            sources=_ALL,
            shape="arrivals",
            unit="s",
            detector="silence",
            direction="up",
            severity="critical",
            category="infra",
        ),
        SignalSpec(
            name="metric",
            summary="every point of a telemetry metric",
            sources=("telemetry",),
            shape="event",
            detector="spike",
            breaches=_TWICE,
            channels=("pattern",),
            category="infra",
            family=True,
        ),
        SignalSpec(
            name="label_share",
            summary="share of a true label in a window",
            sources=("labels",),
            shape="window",
            min_effect=0.05,
            breaches=_TWICE,
            category="model",
            family=True,
            share=True,
        ),
        SignalSpec(
            name="evaluation",
            summary="mean score that judges or people gave in a window, by the evaluation's name",
            sources=("labels",),
            shape="window",
            params=_SHORT,
            direction="down",
            relative_effect=0.05,
            breaches=_TWICE,
            category="model",
            family=True,
        ),
        *(
            SignalSpec(
                name=name,
                summary=summary,
                sources=_QUALITY,
                shape="window",
                unit=unit,
                params=_SHORT,
                direction=direction,
                min_effect=least,
                relative_effect=effect,
                never=0.2 if name == "unjudged" else None,
                breaches=_TWICE,
                category="model",
                share=share,
            )
            for name, summary, unit, direction, least, effect, share in _JOINED
        ),
        SignalSpec(
            name="prediction_error",
            summary="whether each prediction turned out wrong: 1 or 0",
            sources=_QUALITY,
            shape="event",
            detector="rate",
            detector_kind="boolean",
            # As many points as matter of `accuracy`: a rate of errors wanders with what comes in.
            params={"effect": 0.02},
            direction="up",
            category="model",
        ),
        SignalSpec(
            name="absolute_error",
            summary="how far each predicted number turned out to be from the true one",
            sources=_QUALITY,
            shape="event",
            detector="drift",
            category="model",
        ),
        SignalSpec(
            name="estimated_accuracy",
            summary="accuracy of a window's predictions as their confidence lets expect, before any label",
            sources=_QUALITY,
            shape="window",
            params=_SHORT,
            direction="down",
            min_effect=0.02,
            breaches=_TWICE,
            category="model",
            share=True,
        ),
    )
}


def names() -> list[str]:
    """Return the names a config may use; `name:*` stands for a family."""
    return [f"{s.name}:*" if s.family else s.name for s in SIGNALS.values()]


def find(name: str) -> SignalSpec | None:
    """Return the signal a config's name means, or None."""
    base, colon, member = name.partition(":")
    spec = SIGNALS.get(base)
    if spec is None or (bool(colon and member) and not spec.family):
        return None
    return spec


def certainty(events: Sequence[Prediction]) -> F64:
    """Return confidence and entropy of each answer, (n, 2), nan for what it does not tell."""
    answers = [e.prediction for e in events]
    found = np.full((len(answers), 2), np.nan)
    scores: list[float] = []
    ends: list[int] = []
    for i, answer in enumerate(answers):
        if type(answer) is Outcome:
            if answer.scores:
                scores += answer.scores.values() if isinstance(answer.scores, dict) else answer.scores
            # A score beside a label or a value says how sure the model is of it; alone it is the answer itself.
            elif (
                answer.score is not None
                and 0.0 <= answer.score <= 1.0
                and (answer.label is not None or answer.value is not None)
            ):
                found[i, 0] = answer.score
        ends.append(len(scores))
    if scores:
        kernels.certainties(np.array(scores, np.float64), np.array(ends), found)
    return found


#: What became of a request, as far as its record tells: nothing is told, it was answered, the answer says nothing, or
#: it is in a form that is not read.
NOT_TOLD, READ, EMPTY, UNREADABLE = 0, 1, 2, 3


def answered(event: Prediction) -> int:
    """Return whether an event has an answer: NOT_TOLD, READ, EMPTY or UNREADABLE."""
    answer = event.prediction
    if answer is UNSET or error_type(event) or (type(event) is Half and event.side == "request"):
        return NOT_TOLD
    if type(answer) is Outcome:
        if answer.value is not None or answer.score is not None or answer.label not in (None, ""):
            return READ
        if answer.scores or answer.rows > 1:
            return READ
        if answer.unreadable:
            return UNREADABLE
    elif answer not in (None, ""):
        return READ
    # A call of a language model says what it used, and seldon's pipelines may log no content at all.
    return NOT_TOLD if event.llm is not None else EMPTY


def outcome(event: Prediction) -> tuple[float | None, str | None]:
    """Return the number and the class a model answered with; None for what it did not give.

    Of shares in a list the best one's place stands for its class, as `#2`: which class that is the list does not say.
    """
    answer = event.prediction
    if type(answer) is Outcome:
        value = answer.value if answer.value is not None else answer.score
        label = answer.label
        if label is None and answer.scores:
            if isinstance(answer.scores, dict):
                label = max(answer.scores, key=answer.scores.__getitem__)
            elif answer.rows == 1:
                label = f"#{answer.scores.index(max(answer.scores))}"
        return value, None if label is None or label == "" else str(label)
    if answer is None or answer is UNSET:
        return None, None
    if isinstance(answer, bool):
        return None, str(answer)
    if isinstance(answer, str):
        number = decimal(answer) if is_fraction(answer) else None
        return (number, None) if number is not None else (None, answer or None)
    return float(answer), None  # type: ignore[arg-type]
