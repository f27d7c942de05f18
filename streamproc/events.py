"""Wire types of everything streamproc reads and writes; `decoding` reads them.

Unknown fields are tolerated everywhere: producers add fields before we know them. A record that
cannot be read is a value, `Rejected`, never an exception: one bad record must not stop a stream.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

#: Longest model name, source and id we keep; longer ones are a producer's mistake, and keys of state.
MAX_NAME = 512

#: Where a record that was sent on under another key came from: `partition:offset`.
ORIGIN_HEADER = "streamproc.origin"

#: Of such a record: the topic and the key it had, where its meaning rests on them.
TOPIC_HEADER = "streamproc.topic"
KEY_HEADER = "streamproc.key"

#: Key of the records of all alerts in one order.
FLEET_KEY = b"fleet"

Header: TypeAlias = tuple[str, bytes | None]
Scalar: TypeAlias = float | bool | str | None
Time: TypeAlias = dt.datetime | float | int | None

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

#: The years 1 to 9999, in microseconds: what RFC 3339 can say. A number beyond is taken as their end.
_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999
_FARTHEST = 10**21


class RecordBatch(Struct, frozen=True, gc=False):
    """Records of one partition in the order of the log, as columns of equal length.

    timestamps_ms is Kafka's record time in milliseconds, -1 where the broker has none. position is
    the offset from which the batch was asked for, -1 where nobody asked; previous is the last offset
    read before it, -1 for none. Together they tell a hole in the log from a batch that went missing. wanted
    is the offset that was asked for where the log no longer has it and the batch comes from elsewhere, else -1.
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    timestamps_ms: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[Header]]
    position: int = -1
    previous: int = -1
    wanted: int = -1

    def __len__(self) -> int:
        return len(self.offsets)

    def rows(self, start: int, end: int) -> RecordBatch:
        """Return the records of some rows."""
        own = slice(start, end)
        return RecordBatch(
            self.topic,
            self.partition,
            self.offsets[own],
            self.timestamps_ms[own],
            self.keys[own],
            self.values[own],
            self.headers[own],
        )

    def since(self, offset: int) -> RecordBatch:
        """Return the records from `offset` on."""
        if not self.offsets or self.offsets[0] >= offset:
            return self
        first = next((i for i, o in enumerate(self.offsets) if o >= offset), len(self.offsets))
        rest: RecordBatch = msgspec.structs.replace(self.rows(first, len(self)), position=offset, previous=offset - 1)
        return rest


#: Why a record is not read: the words for it in metrics, dead letters and logs, and what each stands for.
REASONS: dict[str, str] = {
    "null_value": "the record has no value",
    "malformed": "not JSON, not UTF-8, or damaged where it is compressed",
    "schema": "JSON of ours, or of a format that is known, in which a field is missing or of the wrong type",
    "unknown_format": "no decoder takes it",
    "unknown_schema": "framed for a schema registry that has no such schema",
    "too_large": "larger than is read, as it is or decompressed",
    "too_deep": "nested too deeply",
    "no_model": "no model is named, and the record has no key",
    "future_time": "an event further ahead of its record than `max_future`",
    "refused": "the internal topic of `repartition` never takes it: too large, or without a key",
    "past_time": "an event further behind its record than `max_past`",
    "implausible_time": "a time that is none, or that can be read in more than one way",
}


class Rejected(Struct, frozen=True, gc=False):
    """A record that could not be read: where it stands in its batch, and why.

    error_type is one of `REASONS`; message says what is wrong, without the payload.
    """

    row: int
    offset: int
    error_type: str
    message: str


class Ignored(Struct, frozen=True, gc=False):
    """A record that was understood and holds nothing to watch; reason is a short stable phrase for metrics."""

    reason: str


class ModelRef(Struct, gc=False):
    """The model that answered."""

    name: str = ""
    version: str | int | None = None


class Outcome(Struct, gc=False):
    """What a model answered: a number, a label, a score for one class, or scores by class."""

    value: float | None = None
    label: str | int | float | bool | None = None
    score: float | None = None
    scores: dict[str, float] | list[float] | None = None
    unreadable: bool = False  # there was an answer, in a form that is not read
    rows: int = 1  # rows of one request that the answer sums up; of several no label can be of one


class ErrorInfo(Struct, gc=False):
    """Why a model did not answer; `type` follows OpenTelemetry's `error.type`."""

    type: str = ""
    message: str | None = None


class LlmUsage(Struct, gc=False):
    """What one call of a language model used; names follow OpenTelemetry's `gen_ai.*`, see `genai`."""

    provider: str | None = None
    operation: str | None = None
    request_model: str | None = None
    response_model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: float | None = None
    time_to_first_token_s: float | None = None
    finish_reasons: list[str] | None = None
    retrieval_score: float | None = None  # of the best document
    kind: str = "call"  # see `span_kinds`
    part: str | None = None  # the agent or tool that a span of another kind is of
    response_id: str | None = None  # the answer's own, which two spans of one call share
    parent_id: str | None = None  # the span around it


class Usage(Struct, gc=False):
    """What a request to a language model used: tokens, and its cost in the producer's currency."""

    input_tokens: float | None = None
    output_tokens: float | None = None
    cost: float | None = None


class Prediction(Struct, gc=False):
    """One prediction a serving system made, or failed to make.

    Needs `id`, `source`, a model name, and one of `prediction` and an error type; in CloudEvents
    binary mode the first two come from the headers.
    """

    model: ModelRef | str | None = None
    prediction: Outcome | float | str | bool | list[Any] | UnsetType | None = UNSET  # null is an answer without any
    features: dict[str, Any] | None = None
    duration_s: float | None = None
    time: Time = None
    id: str = ""
    source: str = ""
    error: ErrorInfo | str | None = None
    segment: dict[str, Scalar] | None = None
    usage: Usage | None = None
    request_id: str | None = None
    feature_time: Time = None  # when the features were true
    flat_model_name: str | None = field(name="model.name", default=None)
    flat_model_version: str | int | None = field(name="model.version", default=None)
    flat_error_type: str | None = field(name="error.type", default=None)
    http_status: Any = field(name="http.response.status_code", default=None)  # of 400 and more: a failure
    status_code: Any = None  # likewise, or "ERROR"
    service_name: str | None = field(name="service.name", default=None)
    environment: str | None = field(name="deployment.environment.name", default=None)
    mlflow_model_uri: str | None = field(name="mlflow.model_uri", default=None)
    traceparent: str | None = None
    llm: LlmUsage | None = None
    # Any of these tells that a language model was called; `genai` reads what else such a record has.
    gen_ai: Any = None
    gen_ai_model: Any = field(name="gen_ai.request.model", default=None)
    gen_ai_tokens: Any = field(name="gen_ai.usage.input_tokens", default=None)
    llm_model_name: Any = field(name="llm.model_name", default=None)


class Half(Prediction, gc=False):
    """The request or the response of a prediction whose other half comes as a record of its own."""

    side: Literal["request", "response"] = "request"
    exchange: str = ""  # what both halves share, and no other prediction of the model


class Telemetry(Struct, gc=False):
    """One measurement of a service: a gauge or the change of a counter.

    `model` (or the attribute `model.name`) says which model it belongs to; else `service.name` does.
    """

    name: str
    value: float | None = None
    unit: str = "1"
    model: ModelRef | str | None = None
    time: Time = None
    count: float | None = None
    sum: float | None = None
    attributes: dict[str, Any] | None = None
    window_s: float | None = None
    start_time: Time = None
    id: str = ""
    source: str = ""
    flat_model_name: str | None = field(name="model.name", default=None)
    service_name: str | None = field(name="service.name", default=None)


class Label(Struct, gc=False):
    """The truth about one earlier prediction, as it becomes known; or what a judge or a person says of it."""

    prediction_id: str = ""
    label: str | int | float | bool | None = None
    value: float | None = None
    model: ModelRef | str | None = None
    time: Time = None
    observed_at: Time = None
    origin: Literal["ground_truth", "human", "judge"] = "ground_truth"
    id: str = ""
    source: str = ""
    flat_model_name: str | None = field(name="model.name", default=None)
    evaluation: str | None = field(name="gen_ai.evaluation.name", default=None)
    evaluation_score: float | None = field(name="gen_ai.evaluation.score.value", default=None)
    evaluation_label: str | None = field(name="gen_ai.evaluation.score.label", default=None)


class Feedback(Struct, gc=False):
    """An operator's verdict on an alert."""

    fingerprint: str
    verdict: Literal["ANOMALY", "ANOMALY_EXPECTED", "NOT_ANOMALY", "ANOMALY_NEW_TREND"]
    cause: str | None = None
    author: str | None = None
    comment: str | None = None
    time: Time = None


class Expected(Struct, frozen=True, gc=False, omit_defaults=True):
    """What the detector took for normal, in the unit of the value."""

    value: float | None = None
    lower: float | None = None
    upper: float | None = None


class Share(Struct, frozen=True, gc=False):
    """How much of a score one feature carries, 0 to 1."""

    feature: str
    share: Annotated[float, Meta(ge=0, le=1.0000001)]


class Impact(Struct, frozen=True, gc=False):
    """What an alert has come to so far: events in values over the limit, and how long, in seconds of event time.

    cost: of these events, where the config says what one costs, or spent beyond the usual; in the operator's currency.
    """

    events: int
    duration_s: float
    cost: float | None = None


class Span(Struct, frozen=True, gc=False):
    """The records an alert rests on."""

    topic: str
    partition: int
    offset_first: int
    offset_last: int


class Changed(Struct, frozen=True, gc=False):
    """Something that changed shortly before: what, to what, from what, and when (event time, RFC 3339)."""

    what: Literal["version"]
    to: str
    before: str | None
    at: str


class DetectorRef(Struct, frozen=True, gc=False):
    """Which detector spoke, and a hash of its parameters."""

    name: str
    params_hash: str


class Alert(Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One step of one alert's life, in the flat form that alerting systems take.

    `id` names this step and repeats when a crash makes it be published again; `fingerprint` names
    the condition for ever; `episode_id` names one firing of it. Times are event time, RFC 3339.
    """

    id: str
    fingerprint: str
    episode_id: str
    name: str
    status: Literal["firing", "resolved"]
    severity: Literal["critical", "warning", "info"]
    summary: Annotated[str, Meta(max_length=1024)]
    action: Literal["opened", "updated", "escalated", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: str  # noqa: N815 (Alertmanager's and Keep's own spelling)
    lastReceived: str  # noqa: N815
    signal: str
    detector: DetectorRef
    score: float
    threshold: float = field(default=1.0)
    schema_version: str = "v1"
    source: list[str] = field(default_factory=lambda: ["streamproc"])
    message: str = ""
    description: str = ""
    environment: str = ""
    service: str = ""
    url: str = ""
    endsAt: str | None = None  # noqa: N815
    generatorURL: str = ""  # noqa: N815
    value: float | None = None
    expected: Expected | None = None
    effect: float | None = None
    n: int | None = None
    confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    impact: Impact | None = None
    category: Literal["data", "model", "infra", "traffic", "unknown"] = "unknown"
    attribution: list[Share] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    suppressed_by: str = ""  # the silence, or the word of an operator, for which nobody is to be told
    evidence: Span | None = None


class RetrainRequest(Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """That a model should be trained anew, asked for once an episode.

    `id` names the request and repeats when it is sent again: train once for each. `since` is event time, RFC 3339.
    """

    id: str
    model: str
    reason: str
    episode_id: str
    fingerprint: str
    requested_by: str  # the id of the step of an alert or incident that asked
    since: str
    severity: str
    model_version: str | None = None
    models: Any = None
    signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    cause: Any = None
    evidence: Any = None


Category: TypeAlias = Literal["data", "model", "infra", "traffic", "unknown"]
SuggestedAction: TypeAlias = Literal["retrain", "roll_back", "fix_feed", "scale", "contact_provider", "investigate"]


class Cause(Struct, frozen=True, gc=False):
    """What an incident is put down to, by which rule, how surely (0 to 1), and what speaks for it, in sentences."""

    category: Category
    confidence: Annotated[float, Meta(ge=0, le=1)]
    rule: str
    evidence: list[str]


class Symptom(Struct, frozen=True, gc=False, omit_defaults=True):
    """An alert that an incident folds: what of it a reader needs to know, and how to find it again."""

    fingerprint: str
    episode_id: str
    model: str
    signal: str
    severity: Literal["critical", "warning", "info"]
    category: Category
    startsAt: str  # noqa: N815
    summary: str
    segment: str = ""
    endsAt: str | None = None  # noqa: N815


class IncidentImpact(Struct, frozen=True, gc=False):
    """What an incident did so far; None where the alerts do not tell.

    models: how many are hit. predictions: of them those in values over a limit, of the worst signal of each model.
    duration_s: seconds. cost: of these predictions, where the config says what one costs, and spent beyond the usual.
    """

    models: int
    duration_s: float
    predictions: int | None = None
    cost: float | None = None


class Moment(Struct, frozen=True, gc=False):
    """A line of a timeline."""

    at: str
    what: str


class Kpis(Struct, frozen=True, gc=False):
    """What an incident did to the figures people answer for; None where the alerts do not tell.

    uptime: share of the models' time, while it lasted, in which they answered. accuracy_stability: the worst quality
    over the usual one, 0 to 1. cost: spent beyond what is usual, in the producer's currency.
    """

    uptime: float | None = None
    accuracy_stability: float | None = None
    cost: float | None = None


class PostMortem(Struct, frozen=True, gc=False):
    """What a post-mortem begins with; duration_s in seconds."""

    timeline: list[Moment]
    duration_s: float
    impact: IncidentImpact
    cause: Cause
    suggested_action: SuggestedAction
    kpis: Kpis


class Incident(Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One step of one incident's life: alerts that have one cause, whichever models and signals raised them.

    `id` names this step and repeats when a crash makes it be published again; `incident_id` names the incident,
    `fingerprint` what it began with, for ever. Times are event time, RFC 3339. `root` is the fingerprint of the alert
    taken for the cause; the others are `symptoms`, of which `more_symptoms` are not listed.
    """

    id: str
    incident_id: str
    fingerprint: str
    name: str
    status: Literal["firing", "resolved"]
    severity: Literal["critical", "warning", "info"]
    summary: Annotated[str, Meta(max_length=1024)]
    action: Literal["opened", "updated", "escalated", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: str  # noqa: N815
    lastReceived: str  # noqa: N815
    models: list[str]
    cause: Cause
    root: str
    impact: IncidentImpact
    alerts: int
    suggested_action: SuggestedAction
    schema_version: str = "v1"
    source: list[str] = field(default_factory=lambda: ["streamproc"])
    message: str = ""
    description: str = ""
    environment: str = ""
    service: str = ""
    url: str = ""
    endsAt: str | None = None  # noqa: N815
    more_models: int = 0
    symptoms: list[Symptom] = field(default_factory=list)
    more_symptoms: int = 0
    features: list[str] = field(default_factory=list)
    upstreams: list[str] = field(default_factory=list)
    changes: list[Changed] = field(default_factory=list)
    post_mortem: PostMortem | None = None


def time_us(value: dt.datetime | float | int) -> int:
    """Return a wire time as microseconds since the epoch.

    A datetime without an offset is UTC. A number is seconds, milliseconds, microseconds or nanoseconds, told apart by
    its size: the ranges do not meet between the years 1973 and 5138.

    >>> time_us(1_790_000_000), time_us(1_790_000_000_000), time_us(1_790_000_000_000_000)
    (1790000000000000, 1790000000000000, 1790000000000000)
    """
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            value = value.replace(tzinfo=dt.UTC)
        return (value - _EPOCH) // dt.timedelta(microseconds=1)
    value = max(-_FARTHEST, min(_FARTHEST, value))
    size = abs(value)
    if size >= 1e17:
        return max(_FIRST_US, min(_LAST_US, int(value) // 1000))
    us = round(value * 1e6) if size < 1e11 else round(value * 1e3) if size < 1e14 else round(value)
    return max(_FIRST_US, min(_LAST_US, us))


def lasted(seconds: float) -> str:
    """Return a length of time as people say it: `45 s`, `12 min`, `3.5 h`; what is shorter than a second, too."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else "less than 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rfc3339(us: int) -> str:
    """Return microseconds since the epoch as RFC 3339 in UTC.

    >>> rfc3339(1_790_000_000_000_000)
    '2026-09-21T14:13:20.000000Z'
    """
    moment = _EPOCH + dt.timedelta(microseconds=us)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


#: The type of each kind of event that sources carry.
EVENTS: Final[dict[str, type[Prediction] | type[Telemetry] | type[Label]]] = {
    "predictions": Prediction,
    "telemetry": Telemetry,
    "labels": Label,
}


def model_name(event: Prediction | Telemetry | Label) -> str:
    """Return the name of the model an event belongs to, or "" where it names none."""
    model = event.model
    if type(model) is ModelRef:
        return model.name
    if isinstance(model, str):
        return model
    if event.flat_model_name is not None:
        return event.flat_model_name
    if isinstance(event, Telemetry):
        attributes = event.attributes
        if attributes is not None and isinstance(attributes.get("model.name"), str):
            return str(attributes["model.name"])
        return event.service_name or event.source
    return ""


def model_version(event: Prediction) -> str | None:
    """Return the version of the model an event belongs to, or None."""
    model = event.model
    version = model.version if type(model) is ModelRef else event.flat_model_version
    return None if version is None else str(version)


def error_type(event: Prediction) -> str:
    """Return why the model did not answer, or "" where it did."""
    error = event.error
    if error is None:
        if event.flat_error_type:
            return event.flat_error_type
        return failed_status(event.http_status) or failed_status(event.status_code) or ""
    return error if isinstance(error, str) else error.type or "error"


def failed_status(code: Any) -> str | None:
    """Return the status of a response where it is one of a failure, as `error.type` has it; else None.

    Takes the numbers of HTTP and the words of OpenTelemetry.

    >>> failed_status(200), failed_status("503"), failed_status("503 Service Unavailable"), failed_status("ERROR")
    (None, '503', '503', '_OTHER')
    """
    if isinstance(code, str):
        if code in _ERROR_WORDS:
            return OTHER_ERROR
        code = code.strip()[:3]
        code = int(code) if code.isascii() and code.isdigit() else None
    if isinstance(code, float) and code.is_integer():
        code = int(code)
    if isinstance(code, bool) or not isinstance(code, int):
        return None
    return str(code) if 400 <= code <= 599 else None


#: OpenTelemetry's word for an error of no known type.
OTHER_ERROR = "_OTHER"

_ERROR_WORDS = frozenset({"ERROR", "Error", "error", "STATUS_CODE_ERROR", "failed", "FAILED", "failure", "FAILURE"})
