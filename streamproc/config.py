"""YAML to a frozen `Config`; every mistake is named with file, line, column and remedy.

Two blocks are enough (`version` and `kafka`); all else has a default that works.
"""

from __future__ import annotations

import base64
import datetime as dt
import difflib
import fnmatch
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta, Struct, field

from streamproc.errors import ConfigError, ConfigIssue
from streamproc.field_map import FieldPath

_UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_QUANTITY = re.compile(r"^\s*([+-]?\d+(?:\.\d+)?)\s*([a-zA-Z%{}]*)\s*$")
_ENV = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

Sensitivity = Literal["low", "medium", "high"]
Severity = Literal["critical", "warning", "info"]
Direction = Literal["up", "down", "both"]
SourceName = Literal["predictions", "telemetry", "labels"]
Task = Literal["auto", "classes", "number", "probability"]

#: The kinds of bridges.
BRIDGES = ("alertmanager", "pagerduty", "slack", "webhook", "retrain", "mlflow")


class Duration:
    """A length of time written with its unit: `250ms`, `3m`, `7d`."""

    __slots__ = ("us",)

    def __init__(self, us: int) -> None:
        self.us = us

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read a duration; raise ValueError saying what was meant."""
        match = _QUANTITY.match(text) if isinstance(text, str) else None
        if match is not None and match[2] in _UNITS_US:
            us = float(match[1]) * _UNITS_US[match[2]]
            if us < 0:
                raise ValueError(f'"{text}" is negative; a duration is 0s or longer')
            return cls(round(us))
        shown = text if isinstance(text, int | float) and not isinstance(text, bool) else (match and match[1])
        if shown is not None and (match is None or not match[2]):
            raise ValueError(f'"{text}" has no unit; did you mean {shown}s or {shown}ms?')
        raise ValueError(f'"{text}" is no duration; write a number and one of us, ms, s, m, h, d, such as 30s')

    def __repr__(self) -> str:
        for unit in ("d", "h", "m", "s", "ms"):
            if self.us and self.us % _UNITS_US[unit] == 0:
                return f"{self.us // _UNITS_US[unit]}{unit}"
        return f"{self.us}us"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and other.us == self.us

    def __hash__(self) -> int:
        return hash(self.us)


class Breaches:
    """How many of how many: `5/20` fires when 5 of the last 20 values are over the limit."""

    __slots__ = ("k", "n")

    def __init__(self, k: int, n: int) -> None:
        self.k, self.n = k, n

    @classmethod
    def parse(cls, text: object) -> Breaches:
        """Read `k/n`; raise ValueError saying what was meant."""
        match = re.match(r"^\s*(\d+)\s*/\s*(\d+)\s*$", text) if isinstance(text, str) else None
        if match is None or not 1 <= int(match[1]) <= int(match[2]) <= 1000:
            raise ValueError(f'"{text}" is not k/n with 1 <= k <= n <= 1000, such as 5/20')
        return cls(int(match[1]), int(match[2]))

    def __repr__(self) -> str:
        return f"{self.k}/{self.n}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Breaches) and (other.k, other.n) == (self.k, self.n)

    def __hash__(self) -> int:
        return hash((self.k, self.n))


class Moment:
    """A point in time as people write it: `2026-10-01T22:00Z`; without an offset it is UTC."""

    __slots__ = ("us",)

    def __init__(self, us: int) -> None:
        self.us = us

    @classmethod
    def parse(cls, value: object) -> Moment:
        """Read a moment, or take one that YAML has read already; raise ValueError saying what was meant."""
        try:
            found = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(str(value).strip())
        except ValueError:
            raise ValueError(f'"{value}" is no time; write one such as 2026-10-01T22:00Z') from None
        if found.tzinfo is None:
            found = found.replace(tzinfo=dt.UTC)
        return cls((found - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1))

    def __repr__(self) -> str:
        return dt.datetime.fromtimestamp(self.us / 1e6, dt.UTC).isoformat()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Moment) and other.us == self.us

    def __hash__(self) -> int:
        return hash(self.us)


class Quantity:
    """A number, with the unit it was written in where it has one: `50ms`, `2%`, `0.05`."""

    __slots__ = ("number", "unit")

    def __init__(self, number: float, unit: str = "") -> None:
        self.number, self.unit = number, unit

    @classmethod
    def parse(cls, text: object) -> Quantity:
        """Read a quantity; raise ValueError saying what was meant."""
        if isinstance(text, int | float) and not isinstance(text, bool):
            return cls(float(text))
        match = _QUANTITY.match(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f'"{text}" is no number; write one, with a unit such as 50ms or 2% where it has one')
        return cls(float(match[1]), match[2])

    def to(self, unit: str, *, name: str) -> float:
        """Return the number in `unit` ("s", "1" or another). Raise ValueError where they do not fit."""
        if unit == "s":
            if self.unit not in _UNITS_US:
                shown = f"{self.number:g}"
                raise ValueError(f'"{shown}{self.unit}" has no unit; did you mean {shown}ms or {shown}s?')
            return self.number * _UNITS_US[self.unit] / 1e6
        if self.unit == "%":
            return self.number / 100
        if self.unit:
            raise ValueError(f'"{self.number:g}{self.unit}": {name} is measured in "{unit}"; leave the unit out')
        return self.number

    def __repr__(self) -> str:
        return f"{self.number:g}{self.unit}"


class Effect:
    """The least change that matters, as `check` prints it: `50ms`, `20%` of what is usual, or `50ms and 20%`.

    Of a share `2%` are two points, which is how shares are measured; of anything else a part of the usual value.
    """

    __slots__ = ("parts",)

    def __init__(self, *parts: Quantity) -> None:
        self.parts = parts

    @classmethod
    def parse(cls, text: object) -> Effect:
        """Read an effect; raise ValueError saying what was meant."""
        if not isinstance(text, str):
            return cls(Quantity.parse(text))
        return cls(*(Quantity.parse(part) for part in re.split(r"\s+and\s+", text.strip())))

    def to(self, unit: str, *, name: str, share: bool) -> tuple[float | None, float | None]:
        """Return the change in the signal's unit, and as a part of the usual value; None for what is not said.

        Raise ValueError where they do not fit.
        """
        absolute: float | None = None
        relative: float | None = None
        for part in self.parts:
            if part.unit == "%" and not share:
                if relative is not None:
                    raise ValueError(f'"{self!r}" says twice which part of the usual value')
                relative = part.number / 100
            elif absolute is not None:
                raise ValueError(f'"{self!r}" says twice by how much')
            else:
                absolute = part.to(unit, name=name)
        return absolute, relative

    def __repr__(self) -> str:
        return " and ".join(map(repr, self.parts))


class Kafka(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where events come from and alerts go.

    `{app_id}` in the name of a topic of ours stands for the app_id, so that deployments on one Kafka have their own.
    """

    brokers: str | list[str]
    predictions: list[str] = field(default_factory=list)
    telemetry: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    alerts: str = "alerts"
    pages: str = ""  # alerts under the cap of a day; empty: none
    incidents: str = "incidents"  # alerts grouped by what caused them; empty: none
    dead_letters: str = "{app_id}-dead-letters"
    snapshots: str = "{app_id}-snapshots"
    silences: str = "{app_id}-silences"  # those of the command line; empty: none
    feedback: str = "{app_id}-feedback"  # what operators say of alerts; empty: none
    joins: str = ""  # predictions and labels, to be joined; empty: `<app_id>-joins`
    app_id: str = "streamproc"
    partitions: Annotated[int, Meta(ge=1, le=10_000)] = 4
    replication_factor: Annotated[int, Meta(ge=-1)] = -1
    create_topics: bool = True
    repartition: bool = False
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    session_timeout: Duration = Duration(10_000_000)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True

    def __post_init__(self) -> None:
        for name in ("alerts", "pages", "incidents", "dead_letters", "snapshots", "silences", "feedback", "joins"):
            msgspec.structs.force_setattr(self, name, getattr(self, name).replace("{app_id}", self.app_id))

    @property
    def alert_feed(self) -> str:
        """Return the topic on which all alerts are in one order, for incidents and the cap; ours alone."""
        return f"{self.app_id}-alert-feed" if self.incidents or self.pages else ""

    def sources(self) -> dict[str, str]:
        """Return every source topic with the kind of event on it."""
        kinds = {"predictions": self.predictions, "telemetry": self.telemetry, "labels": self.labels}
        return {topic: kind for kind, topics in kinds.items() for topic in topics}

    def joins_topic(self) -> str:
        """Return the topic on which predictions meet their labels, "" where no topic of labels is named."""
        return (self.joins or f"{self.app_id}-joins") if self.labels and self.predictions else ""

    def broker_list(self) -> list[str]:
        """Return the brokers as host:port."""
        parts = self.brokers.split(",") if isinstance(self.brokers, str) else self.brokers
        return [p.strip() for p in parts if p.strip()]


class Worker(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker process runs; a change needs a restart."""

    snapshot_interval: Duration = Duration(5_000_000)
    web_host: str = "0.0.0.0"  # a container's metrics port is meant to be reached
    web_port: Annotated[int, Meta(ge=0, le=65535)] = 6066
    shutdown_grace: Duration = Duration(8_000_000)
    idle_advance: bool = True
    reload_token: Annotated[str, Meta(min_length=16)] | None = None  # asks for a reload from another machine
    redact: bool = False


class Discover(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which models are taken up as they appear, and how many are remembered."""

    models: str | list[str] = "*"
    max_series: Annotated[int, Meta(ge=1)] = 5000
    idle_ttl: Duration = Duration(7 * 86_400_000_000)


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many false alerts the whole fleet may raise. Critical alerts are outside of it."""

    false_alerts_per_day: Annotated[float, Meta(gt=0)] = 5.0
    per_model_per_day: Annotated[int, Meta(ge=1, le=1000)] = 4  # of pages, whether false or not
    per_fleet_per_day: Annotated[int, Meta(ge=1, le=1000)] = 20


class SignalRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may say of one signal; None takes the signal's default."""

    detector: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    mode: Literal["on", "shadow", "off"] | None = None
    sensitivity: Sensitivity | None = None
    severity: Severity | None = None
    direction: Direction | None = None
    min_effect: Effect | None = None
    min_samples: Annotated[int, Meta(ge=0)] | None = None
    for_: Duration | None = field(name="for", default=None)
    resolve_after: Duration | None = None
    breaches: Breaches | None = None
    renotify: Duration | None = None
    escalate_after: Duration | None = None
    upper_limit: Quantity | None = None
    lower_limit: Quantity | None = None


class Labels(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long predictions wait for their labels, and how many of one model do; None takes what holds else."""

    max_delay: Duration | None = None  # 14d
    max_outstanding: Annotated[int, Meta(ge=1000, le=50_000_000)] | None = None  # 1000000


class Defaults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for every model that says nothing else."""

    discover: Discover = field(default_factory=Discover)
    sensitivity: Sensitivity = "medium"
    budget: Budget | None = field(default_factory=Budget)
    window: Duration = Duration(60_000_000)
    lateness: Duration = Duration(10_000_000)
    max_future: Duration = Duration(300_000_000)
    max_past: Duration = Duration(366 * 86_400_000_000)
    min_samples: Annotated[int, Meta(ge=0)] = 50
    for_: Duration | None = field(name="for", default=None)
    resolve_after: Duration | None = None
    renotify: Duration = Duration(4 * 3_600_000_000)  # 0s: never
    escalate_after: Duration = Duration(3_600_000_000)  # 0s: never
    silence_after: Duration | None = None
    max_features: Annotated[int, Meta(ge=1, le=2000)] = 200
    max_classes: Annotated[int, Meta(ge=1, le=1000)] = 50
    labels: Labels = field(default_factory=Labels)
    signals: dict[str, SignalRule] | Literal["auto"] = "auto"


class ReferenceRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What answers and features are measured against; one of file, mlflow, first and trailing."""

    file: str | None = None  # .csv or .parquet, beside the config
    mlflow: str | None = None  # a model's directory, or models:/name/version: its input example
    first: Annotated[int, Meta(ge=100, le=10_000_000)] | None = None  # events
    trailing: Duration | None = None
    prediction: str | None = None  # column of a file
    label: str | None = None  # column of a file
    features: list[str] | None = None  # columns of a file; all others where not said

    def table(self) -> str | None:
        """Return what names the rows to be read, None where there are none to read."""
        source = self.file or self.mlflow
        return None if source is None else "\0".join(map(str, (source, self.prediction, self.label, self.features)))


class Match(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which models a block is for; names are globs."""

    model: str = "*"


class ModelBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for the models it matches; later blocks win over earlier ones."""

    match: Match
    owner: str | None = None
    runbook: str | None = None
    dashboard: str | None = None
    env: str | None = None
    cost_per_affected: Annotated[float, Meta(ge=0)] | None = None  # of a prediction that an alert is about
    window: Duration | None = None
    lateness: Duration | None = None
    silence_after: Duration | None = None
    sensitivity: Sensitivity | None = None
    segments: list[Annotated[str, Meta(min_length=1, max_length=128)]] | None = None
    max_segments: Annotated[int, Meta(ge=1, le=1000)] | None = None
    segment_signals: list[str] | None = None
    depends_on: list[Annotated[str, Meta(min_length=1, max_length=512)]] | None = None
    task: Task | None = None  # auto: settled from the first answers and labels
    classes: list[Annotated[str, Meta(min_length=1, max_length=256)]] | None = None  # in the order of shares in a list
    reference: ReferenceRule | None = None
    labels: Labels = field(default_factory=Labels)
    signals: dict[str, SignalRule] = field(default_factory=dict)


class Serving(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests and responses that are logged as records of their own are put together."""

    response_timeout: Duration = Duration(60_000_000)
    max_outstanding: Annotated[int, Meta(ge=1, le=50_000)] = 10_000


class SilenceMatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which alerts a silence is for; all are globs."""

    model: str = "*"
    signal: str = "*"
    segment: str = "*"


class SilenceBlock(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch of event time in which alerts that match go to nobody."""

    match: SilenceMatch
    from_: Moment = field(name="from")
    to: Moment
    learn: bool = True
    reason: str = ""


class SchemaRegistry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the schemas of framed values, Avro and Protobuf, are asked for: Confluent's API, which others speak too."""

    url: str
    username: str | None = None
    password: str | None = None
    ssl_cafile: str | None = None
    timeout: Duration = Duration(10_000_000)


class Bridge(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every bridge may be told: what it reads, which of it, and how long a request may take.

    match: globs by label, all of which must fit; `severity`, `status` and `signal` are labels too. start: what a bridge
    that has never run begins with: what is firing now, or all the topic still has. history: how far back it reads, at
    each start, to know what is firing.
    """

    topic: str = "alerts"  # alerts, pages, incidents, or a topic's name
    match: dict[str, str] = field(default_factory=dict)
    start: Literal["firing", "earliest"] = "firing"
    history: Duration = Duration(30 * 86_400_000_000)
    timeout: Duration = Duration(10_000_000)
    max_backoff: Duration = Duration(60_000_000)
    ssl_cafile: str | None = None


class AlertmanagerBridge(Bridge, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Alertmanagers of one cluster are; each gets everything.

    show_for: what began and ended while none could be reached is shown as firing for so long, or as long as it lasted.
    """

    urls: Annotated[list[str], Meta(min_length=1)]
    username: str | None = None
    password: str | None = None
    token: str | None = None
    resend: Duration = Duration(60_000_000)
    keep_resolved: Duration = Duration(300_000_000)
    show_for: Duration = Duration(30_000_000)
    labels: dict[str, str] = field(default_factory=dict)  # added to each alert's
    generator_url: str = ""  # with {model}, {signal} or any other label


class PagerdutyBridge(Bridge, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which PagerDuty service is paged, by its Events API v2."""

    routing_key: str
    url: str = "https://events.pagerduty.com/v2/enqueue"
    severities: dict[Severity, Literal["critical", "error", "warning", "info"]] = field(default_factory=dict)
    actions: dict[
        Literal["opened", "updated", "escalated", "resolved"], Literal["trigger", "acknowledge", "resolve", "none"]
    ] = field(default_factory=dict)
    dashboard_url: str = ""  # with {model}, {signal} or any other label


class SlackBridge(Bridge, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where in Slack to write: an incoming webhook, or a token and a channel, which makes threads."""

    webhook_url: str | None = None
    token: str | None = None
    channel: str | None = None
    api_url: str = "https://slack.com/api"
    dashboard_url: str = ""


class WebhookBridge(Bridge, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where CloudEvents are posted to. Several secrets sign side by side, for the time one replaces the other."""

    url: str
    secrets: list[str] = field(default_factory=list)
    mode: Literal["structured", "binary"] = "structured"
    headers: dict[str, str] = field(default_factory=dict)


class RetrainBridge(Bridge, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a retraining is asked for, once an episode: on a topic, by a webhook, or both.

    suggested: only where the suggested action is to retrain; else whatever `match` fits.
    """

    requests: str | None = "retrain-requests"  # the topic; null: none
    url: str | None = None
    secrets: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    suggested: bool = True


class MlflowBridge(Bridge, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which MLflow registry is told of its models' health, and how our names and versions are found there."""

    url: str
    username: str | None = None
    password: str | None = None
    token: str | None = None
    tag: Annotated[str, Meta(min_length=1, max_length=250)] = "streamproc.status"
    names: dict[str, str] = field(default_factory=dict)  # a model's name in the registry, where it is another
    alias: str | None = None  # the version to tag where an alert names none


class Bridges(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where alerts and incidents are delivered, by kind and name; each is a `streamproc bridge` of its own."""

    alertmanager: dict[str, AlertmanagerBridge] = field(default_factory=dict)
    pagerduty: dict[str, PagerdutyBridge] = field(default_factory=dict)
    slack: dict[str, SlackBridge] = field(default_factory=dict)
    webhook: dict[str, WebhookBridge] = field(default_factory=dict)
    retrain: dict[str, RetrainBridge] = field(default_factory=dict)
    mlflow: dict[str, MlflowBridge] = field(default_factory=dict)


class Incidents(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How alerts are grouped into incidents.

    window: alerts that begin so close together may be of one incident; None is 15m, or four of the models' windows
    where those are longer. quiet: so long after its last alert is over an incident is too; None is `window`.
    confirm_after: a lone warning is an incident once it has lasted so long, and none where it ends sooner; None is 15m,
    or eight windows.
    escalate_after: one that lasts so long with two alerts or more firing is a step more severe.
    escalate_models: and one that hits so many models.
    """

    window: Duration | None = None
    quiet: Duration | None = None
    confirm_after: Duration | None = None
    escalate_after: Duration = Duration(6 * 3_600_000_000)
    escalate_models: Annotated[int, Meta(ge=2, le=10_000)] = 5


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can say."""

    version: Literal[1]
    kafka: Kafka
    defaults: Defaults = field(default_factory=Defaults)
    models: list[ModelBlock] = field(default_factory=list)
    fields: dict[SourceName, dict[str, str | FieldPath]] = field(default_factory=dict)
    incidents: Incidents = field(default_factory=Incidents)
    serving: Serving = field(default_factory=Serving)
    schema_registry: SchemaRegistry | None = None
    silences: list[SilenceBlock] = field(default_factory=list)
    bridges: Bridges = field(default_factory=Bridges)
    worker: Worker = field(default_factory=Worker)

    def blocks_for(self, model: str) -> list[ModelBlock]:
        """Return the blocks that match a model, in the order of the file."""
        return [b for b in self.models if fnmatch.fnmatchcase(model, b.match.model)]

    def discovers(self, model: str) -> bool:
        """Return whether a model is to be watched at all."""
        globs = self.defaults.discover.models
        return any(
            fnmatch.fnmatchcase(model, g) for g in ([globs] if isinstance(globs, str) else globs)
        ) or any(True for _ in self.blocks_for(model))


#: Codes of mistakes in the name of a field rather than in its value.
_OF_NAMES = frozenset({"E011", "E030", "E060"})

#: Reports a mistake: the path of the field, a code, and what is wrong and what to do.
Report = Callable[[str, str, str], None]

#: A further check, by a floor above that knows more than the shape of a config.
Check = Callable[[Config, Report], None]


def load(
    path: str | Path, *, env: Mapping[str, str], checks: Sequence[Check] = (), doubts: list[ConfigIssue] | None = None
) -> Config:
    """Read, check and return the config at `path`; what is doubtful and not wrong is added to `doubts`.

    Raise `ConfigError` with every mistake found.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError([ConfigIssue(str(path), 0, 0, "E001", "", f"cannot be read: {e.strerror or e}")]) from None
    except UnicodeDecodeError as e:
        raise ConfigError([ConfigIssue(str(path), 0, 0, "E001", "", f"is not UTF-8 at byte {e.start}")]) from None
    return parse(text, name=str(path), env=env, checks=checks, doubts=doubts)


def digest(text: str | bytes) -> str:
    """Return a short hash by which people tell configs apart."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:8]


def parse(
    text: str,
    *,
    name: str = "<config>",
    env: Mapping[str, str] | None = None,
    checks: Sequence[Check] = (),
    doubts: list[ConfigIssue] | None = None,
) -> Config:
    """Return the config written in `text`; `name` stands for the file in messages.

    All mistakes are found at once: what is wrong is taken out and the rest is read on, but for what would be said of it
    only because that is gone.
    """
    tree, places, words, problems = _compose(text, name)
    left_out: list[str] = []  # paths of what was wrong, and is not there to be checked

    def report(path: str, code: str, message: str) -> None:
        key = f"{path}\0key"  # a name that is wrong is pointed at itself, not at what it is given
        line, column = places[key] if code in _OF_NAMES and key in places else _place(places, path)
        issue = ConfigIssue(name, line, column, code, path, message)
        if issue not in problems:
            problems.append(issue)

    def wrong(path: str, code: str, message: str) -> None:
        left_out.append(path)
        report(path, code, message)

    tree = _expand(tree, "", env if env is not None else {}, wrong)
    if not isinstance(tree, dict):
        report("", "E003", "a config is a mapping with `version` and `kafka`; this file is empty or a list")
        raise ConfigError(problems)
    tree = _worded({k: v for k, v in tree.items() if not k.startswith("x-")}, Config, "", words)
    _find_unknown(tree, Config, "", wrong)
    config = _convert(tree, wrong, left_out)

    def check_report(path: str, code: str, message: str) -> None:
        # Of what is wrong already, of what is around it and of what is in it nothing is known.
        if not any(_within(path, gone) or _within(gone, path) for gone in left_out):
            report(path, code, message)

    if config is not None:
        for check in (_check_kafka, _check_bridges, *checks):
            check(config, check_report)
    errors = [p for p in problems if not p.is_warning]
    if errors or config is None:
        raise ConfigError(errors)
    if doubts is not None:
        doubts += [p for p in problems if p.is_warning]
    return config


def _within(path: str, outer: str) -> bool:
    return path == outer or outer == "" or path.startswith((f"{outer}.", f"{outer}["))


#: What stands for a required value that is missing or wrong, so that the rest can be checked.
_STAND_INS: dict[str, Any] = {"version": 1, "brokers": "localhost:9092", "match": {}}

_ANY_KAFKA: dict[str, Any] = {"brokers": "localhost:9092", "predictions": ["predictions"]}

#: No file has so many mistakes in its values that each of them is worth naming.
_MOST_MISTAKES = 100


def _convert(tree: dict[str, Any], wrong: Report, left_out: list[str]) -> Config | None:
    """Return the config of a tree, leaving out what is wrong with it and reporting that; None where none is left.

    left_out: the paths of what is wrong already, of which nothing more is said.
    """
    for _ in range(_MOST_MISTAKES):
        try:
            return msgspec.convert(tree, Config, dec_hook=_dec_hook)
        except msgspec.ValidationError as e:
            message, path = _split_path(str(e))
            path = _exact(tree, path)
            missing = re.search(r"missing required field `(\w+)`", message)
            said = any(_within(path, gone) for gone in left_out if gone)
            if missing is not None:  # a name that is somewhat wrong is what is missing
                own = [gone.rpartition(".")[2] for gone in left_out if gone.rpartition(".")[0] == path]
                said = said or bool(difflib.get_close_matches(missing[1], own, n=1))
            if not said:
                wrong(path, "E010", _friendly(message, _choices(path)))
            if not _leave_out(tree, path, None if missing is None else missing[1]):
                return None
    return None


def _leave_out(tree: dict[str, Any], path: str, missing: str | None) -> bool:
    """Take what is at a path out of a tree, or put a stand-in there; return whether anything was changed.

    missing: a required field that what is at the path has not.
    """
    keys = _keys(path)
    at: Any = tree
    above: list[tuple[Any, Any]] = []
    for key in keys:
        above.append((at, key))
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):
            return False
    if missing in _STAND_INS and isinstance(at, dict):
        at[missing] = _STAND_INS[missing]
        return True
    if missing == "kafka" and not keys:
        at[missing] = dict(_ANY_KAFKA)
        return True
    while above:
        holder, last = above.pop()
        if last in _STAND_INS:
            if holder[last] == _STAND_INS[last]:
                return False
            holder[last] = _STAND_INS[last]
            return True
        if last == "kafka":
            holder[last] = dict(_ANY_KAFKA)
            return True
        if isinstance(holder, list):
            # Another in its place would move all that follow: their places in the file go by their number.
            if keys[:1] == ["models"] and len(above) == 1 and holder[last] != {"match": {}}:
                holder[last] = {"match": {}}
                return True
            continue
        del holder[last]
        return True
    return False


# ------------------------------------------------------------------- from text to a tree with places


def _compose(text: str, name: str) -> tuple[Any, dict[str, tuple[int, int]], dict[str, str], list[ConfigIssue]]:
    """Return the plain tree, for each path in it line and column (from 1) of its value, words, and what is wrong.

    Words: of each value that YAML takes for true or false, what is written: `off`, `no`.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        problem = getattr(e, "problem", None) or str(e).splitlines()[0]
        hint = "; indent with spaces, not tabs" if "\\t" in str(problem) else ""
        raise ConfigError([ConfigIssue(name, line, column, "E002", "", f"is not YAML: {problem}{hint}")]) from None
    places: dict[str, tuple[int, int]] = {"": (1, 1)}
    words: dict[str, str] = {}
    problems: list[ConfigIssue] = []
    if node is None:
        return None, places, words, problems
    constructor = yaml.SafeLoader("")

    above: set[int] = set()

    def scalar(node: yaml.Node) -> Any:
        try:
            return constructor.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, AttributeError) as e:
            line, column = node.start_mark.line + 1, node.start_mark.column + 1
            what = getattr(e, "problem", None) or f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
            raise ConfigError([ConfigIssue(name, line, column, "E002", "", f"is not YAML: {what}")]) from None

    def walk(node: yaml.Node, path: str) -> Any:
        if id(node) in above:
            line, column = node.start_mark.line + 1, node.start_mark.column + 1
            raise ConfigError([ConfigIssue(name, line, column, "E002", path, "holds itself, by an alias")])
        above.add(id(node))
        try:
            return inner(node, path)
        finally:
            above.discard(id(node))

    def inner(node: yaml.Node, path: str) -> Any:
        places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            out: dict[str, Any] = {}
            # What is merged in comes first, the first of several over those after it: what is given here goes over it.
            for key_node, value_node in reversed(node.value):
                if key_node.tag == _MERGE:
                    several = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                    for merged in reversed(several):
                        found = walk(merged, path)
                        if not isinstance(found, dict):
                            line, column = merged.start_mark.line + 1, merged.start_mark.column + 1
                            problem = ConfigIssue(name, line, column, "E002", path, "`<<` merges mappings only")
                            raise ConfigError([problem])
                        out.update(found)
            places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)
            given: set[str] = set()
            for key_node, value_node in node.value:
                if key_node.tag == _MERGE:
                    continue
                # As it is written: `no` is a name like any other.
                key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else str(scalar(key_node))
                if key in given:
                    line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
                    problems.append(
                        ConfigIssue(name, line, column, "E004", f"{path}.{key}".strip("."), "is given twice")
                    )
                given.add(key)
                child = f"{path}.{key}" if path else key
                for known in [p for p in words if _within(p, child)]:
                    del words[known]
                out[key] = walk(value_node, child)
                places[child + "\0key"] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            return out
        if isinstance(node, yaml.SequenceNode):
            return [walk(child, f"{path}[{i}]") for i, child in enumerate(node.value)]
        value = scalar(node)
        if isinstance(value, bool):
            words[path] = node.value
        return value

    return walk(node, ""), places, words, problems


#: What YAML takes `<<` for.
_MERGE = "tag:yaml.org,2002:merge"


def _worded(tree: Any, kind: Any, path: str, words: Mapping[str, str]) -> Any:
    """Return a tree in which what is to be a word is the one that is written: `off` is no false, `no` a team's name."""
    if isinstance(tree, bool):
        literals = [a for a in _literals(kind) if isinstance(a, str)]
        word = words.get(path, "")
        if literals:
            return next((a for a in literals if a == word.lower()), word)
        return word if word and str in _leaves(kind) and bool not in _leaves(kind) else tree
    for kind_ in _struct_types(kind):
        if isinstance(tree, dict) and isinstance(kind_, tuple):
            return {k: _worded(v, kind_[0], f"{path}.{k}" if path else k, words) for k, v in tree.items()}
        if isinstance(tree, list) and isinstance(kind_, list):
            return [_worded(v, kind_[0], f"{path}[{i}]", words) for i, v in enumerate(tree)]
        if isinstance(tree, dict) and isinstance(kind_, type):
            known = _fields_of(kind_)
            return {
                k: _worded(v, known[k], f"{path}.{k}" if path else k, words) if k in known else v
                for k, v in tree.items()
            }
    return tree


def _leaves(kind: Any) -> set[Any]:
    """Return the plain types that an annotation allows."""
    args = getattr(kind, "__args__", ())
    if getattr(kind, "__origin__", None) in (list, dict, Literal):
        return set()
    return {kind} if not args else {leaf for arg in args for leaf in _leaves(arg)}


def _expand(tree: Any, path: str, env: Mapping[str, str], report: Report) -> Any:
    """Replace `${NAME}` and `${NAME:-default}` in every string."""
    if isinstance(tree, dict):
        return {k: _expand(v, f"{path}.{k}" if path else k, env, report) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_expand(v, f"{path}[{i}]", env, report) for i, v in enumerate(tree)]
    if not isinstance(tree, str) or "${" not in tree:
        return tree

    def value(match: re.Match[str]) -> str:
        if match[1] in env:
            return env[match[1]]
        if match[2] is not None:
            return match[2]
        report(path, "E005", f"the environment has no {match[1]}; set it, or write ${{{match[1]}:-default}}")
        return ""

    return _ENV.sub(value, tree)


def place(path: Path, field: str) -> tuple[int, int]:
    """Return line and column, from 1, of a field in a config's file; (0, 0) where it cannot be told."""
    try:
        return _place(_compose(path.read_text(encoding="utf-8"), str(path))[1], field)
    except (OSError, UnicodeDecodeError, ConfigError):
        return 0, 0


def _place(places: Mapping[str, tuple[int, int]], path: str) -> tuple[int, int]:
    while path not in places:
        cut = max(path.rfind("."), path.rfind("["))
        path = path[: max(cut, 0)]
    return places[path]


def _split_path(message: str) -> tuple[str, str]:
    match = re.search(r" - at `(?:key in )?\$\.?([^`]*)`$", message)
    return (message[: match.start()], match[1]) if match is not None else (message, "")


def _exact(tree: dict[str, Any], path: str) -> str:
    """Return msgspec's path with its `[...]`, any key of a mapping, resolved to the key that is at fault."""
    while "[...]" in path:
        before, _, after = path.partition("[...]")
        holder: Any = tree
        try:
            for key in _keys(before):
                holder = holder[key]
        except (KeyError, IndexError, TypeError):  # a name with a dot or a bracket in it
            return before
        for key, value in list(holder.items()):
            kept = dict(holder)
            holder.clear()
            holder[key] = value
            try:
                msgspec.convert(tree, Config, dec_hook=_dec_hook)
            except msgspec.ValidationError as e:
                # All that comes before it is right: what is wrong is here, or in none of this key.
                if _split_path(str(e))[1] == path:
                    path = f"{before}.{key}{after}"
                    break
            finally:
                holder.clear()
                holder.update(kept)
        else:
            return before
    return path


def _keys(path: str) -> list[Any]:
    return [int(i) if i else k for k, i in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)]


def _choices(path: str) -> list[str]:
    """Return the words a field allows, where it is one that allows only some."""
    kinds: list[Any] = [Config]
    for name in re.findall(r"[^.\[\]]+", path):
        found: list[Any] = []
        for kind in kinds:
            for struct in _struct_types(kind):
                if isinstance(struct, type):
                    found += [t for f, t in _fields_of(struct).items() if f == name]
                else:
                    found += struct  # an index or a key: on to what is held there
        kinds = found
    return [str(a) for kind in kinds for a in _literals(kind)]


def _literals(kind: Any) -> list[Any]:
    args = getattr(kind, "__args__", ())
    if getattr(kind, "__origin__", None) is Literal:
        return list(args)
    return [a for arg in args for a in _literals(arg)]


def suggested(word: str, known: Sequence[str], *, of: str = "known", near: str = "`{}`", each: str = "{}") -> str:
    """Return what was probably meant by a word, or all there are; near, each: how a name is shown in either."""
    found = difflib.get_close_matches(word, known, n=1)
    if found:
        return f"did you mean {near.format(found[0])}?"
    return f"{of}: {', '.join(each.format(name) for name in known)}"


def _friendly(message: str, choices: Sequence[str]) -> str:
    wrong = re.match(r"Invalid enum value '?(.*?)'?$", message)
    if wrong is not None and choices:
        near = difflib.get_close_matches(wrong[1], choices, n=1)
        hint = f"did you mean {near[0]}? " if near and len(choices) > 1 else ""
        return f'"{wrong[1]}" is not allowed; {hint}write {" or ".join(choices)}'
    message = message.replace("Expected `", "expected `").replace("Object missing", "is missing")
    return re.sub(r"^is missing required field (`\w+`)", r"is missing its required field \1", message)


def _fields_of(kind: Any) -> dict[str, Any]:
    return {f.encode_name: f.type for f in msgspec.structs.fields(kind)}


def _find_unknown(tree: Any, kind: Any, path: str, report: Report) -> None:
    """Report every unknown field at once, each with the nearest known one."""
    for kind_ in _struct_types(kind):
        if isinstance(tree, dict) and isinstance(kind_, tuple):  # a dict of structs
            for key, value in tree.items():
                _find_unknown(value, kind_[0], f"{path}.{key}" if path else key, report)
        elif isinstance(tree, list) and isinstance(kind_, list):
            for i, value in enumerate(tree):
                _find_unknown(value, kind_[0], f"{path}[{i}]", report)
        elif isinstance(tree, dict) and isinstance(kind_, type):
            known = _fields_of(kind_)
            for key, value in tree.items():
                child = f"{path}.{key}" if path else key
                if key in known:
                    _find_unknown(value, known[key], child, report)
                else:
                    report(child, "E011", f"there is no `{key}`; {suggested(key, sorted(known), of='known here')}")
            for key in tree.keys() - known.keys():
                del tree[key]


def _struct_types(kind: Any) -> list[Any]:
    """Return the struct types within an annotation: T, [T] for a list, (T,) for a dict of T."""
    args: tuple[Any, ...] = getattr(kind, "__args__", ())
    origin = getattr(kind, "__origin__", None)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return [kind]
    if origin is list:
        return [[args[0]]]
    if origin is dict:
        return [(args[1],)]
    return [t for a in args for t in _struct_types(a)]


def _dec_hook(kind: type, value: Any) -> Any:
    if kind in (Duration, Breaches, Moment, Quantity, Effect):
        return kind.parse(value)
    raise NotImplementedError(kind)


def _check_kafka(config: Config, report: Report) -> None:
    """Report what is well-formed and yet cannot be meant."""
    if not config.kafka.broker_list():
        report("kafka.brokers", "E020", "names no broker; write host:port, several with commas")
    if not config.kafka.sources():
        report("kafka", "E021", "reads no topic; name at least one under predictions, telemetry or labels")
    if config.kafka.pages and config.defaults.budget is None:
        report("kafka.pages", "E026", "needs a `budget`: its `per_model_per_day` and `per_fleet_per_day` are the cap")
    if config.kafka.security_protocol.startswith("SASL") and not (config.kafka.username and config.kafka.password):
        report("kafka.security_protocol", "E024", "SASL needs `username` and `password`, best as ${KAFKA_PASSWORD}")
    for i, silence in enumerate(config.silences):
        if silence.to.us <= silence.from_.us:
            report(f"silences[{i}].to", "E037", "is not after `from`")
    registry = config.schema_registry
    if registry is not None and not registry.url.startswith(("http://", "https://")):
        report("schema_registry.url", "E027", f'"{registry.url}" is no address; write http://host:8081')
    if config.serving.response_timeout.us < 1000:
        report("serving.response_timeout", "E025", "a response has at least 1ms to come")
    if config.defaults.window.us < 1000:
        report("defaults.window", "E025", "a window is at least 1ms")


#: What becomes part of a consumer group's name.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


def _check_bridges(config: Config, report: Report) -> None:
    """Report what no receiver of alerts would take."""
    for kind in BRIDGES:
        for name, bridge in getattr(config.bridges, kind).items():
            path = f"bridges.{kind}.{name}"
            if not _NAME.fullmatch(name):
                report(path, "E060", f'"{name}" names a consumer group; write letters, digits, `.`, `_` and `-` only')
            if bridge.timeout.us < 1000:
                report(f"{path}.timeout", "E025", "a request has at least 1ms")
            if bridge.topic == "pages" and not config.kafka.pages:
                report(f"{path}.topic", "E061", "there are no pages; name their topic in `kafka: {pages: ...}`")
            for key, url in _urls(bridge):
                if not url.startswith(("http://", "https://")):
                    # Not quoted: such an address may itself be the credential.
                    report(f"{path}.{key}", "E027", "is no address; write http://host:port or https://host")
            if isinstance(bridge, WebhookBridge | RetrainBridge):
                for i, secret in enumerate(bridge.secrets):
                    if (problem := _weak(secret)) is not None:
                        report(f"{path}.secrets[{i}]", "E062", problem)
            _check_bridge(bridge, path, report)


def _check_bridge(bridge: Bridge, path: str, report: Report) -> None:
    """Report what is of one kind of bridge only."""
    match bridge:
        case AlertmanagerBridge():
            if bridge.resend.us < 1_000_000:
                report(f"{path}.resend", "E025", "is at least 1s")
            if bridge.token is not None and bridge.username is not None:
                report(f"{path}.token", "E063", "is given beside `username`; one of them goes")
        case PagerdutyBridge() if len(bridge.routing_key) != 32:
            found = len(bridge.routing_key)
            report(f"{path}.routing_key", "E064", f"has {found} characters; an integration key of Events API v2 has 32")
        case SlackBridge():
            if (bridge.webhook_url is None) == (bridge.token is None):
                report(path, "E065", "needs `webhook_url`, or `token` and `channel` for threads; one of the two")
            elif bridge.token is not None and not bridge.channel:
                report(f"{path}.token", "E065", "needs a `channel` to write to, best by its id, such as C024BE91L")
        case RetrainBridge():
            if bridge.requests is None and bridge.url is None:
                report(path, "E066", "asks nobody; name a topic under `requests`, a `url`, or both")
            if not bridge.suggested and not bridge.match:
                report(path, "E067", "`suggested: false` without `match` would retrain on every alert; name which")
        case _:
            pass


def _urls(bridge: Bridge) -> list[tuple[str, str]]:
    urls = [(f"urls[{i}]", url) for i, url in enumerate(getattr(bridge, "urls", []))]
    urls += [(key, getattr(bridge, key, None) or "") for key in ("url", "webhook_url", "api_url")]
    return [(key, url) for key, url in urls if url or (key == "url" and isinstance(bridge, WebhookBridge))]


def _weak(secret: str) -> str | None:
    """Return what is wrong with a secret of Standard Webhooks, None where nothing is."""
    try:
        size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    except ValueError:
        return "is no base64; make one with `echo whsec_$(openssl rand -base64 32)`"
    if not 24 <= size <= 64:
        return f"is {size} bytes; Standard Webhooks asks for 24 to 64: `echo whsec_$(openssl rand -base64 32)`"
    return None
