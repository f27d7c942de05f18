"""What a worker tells Prometheus. Names: one prefix, base units, `_total` for counters."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from streamproc.config import Severity
from streamproc.events import REASONS, Category
from streamproc.pipeline import IGNORED, OUTCOMES

#: Steps of alerts and of incidents.
_ACTIONS = ("opened", "updated", "escalated", "resolved")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"streamproc_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"streamproc_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"streamproc_{name}", text, buckets=_SECONDS, registry=registry)

        self.events = counter("events_total", "Events scored.", ("topic",))
        self.records = counter("source_records_total", "Records read, whatever came of them.", ("topic",))
        self.bytes = counter("source_bytes_total", "Bytes of records read.", ("topic",))
        self.late = counter("late_events_total", "Events whose window had closed; not in any aggregate.")
        self.fenced = counter("fenced_events_total", "Events skipped after a restore: already in the state.")
        self.refused = counter("refused_events_total", "Events of models beyond max_series; not scored.")
        self.evicted = counter("evicted_series_total", "Models forgotten: idle, or for a newcomer.")
        self.unanswered = counter("unanswered_requests_total", "Requests given up on without a response.")
        self.outnumbered = counter("outnumbered_halves_total", "Requests or responses given up on for want of room.")
        self.outcomes = counter("records_total", "Events that came, by its outcome: all sum to them.", ("outcome",))
        self.ignored = counter("ignored_total", "Events that were understood and are not watched, by why.", ("reason",))
        self.repeated = counter("repeated_halves_total", "Requests or responses that came again, or too late.")
        self.joins = counter("label_joins_total", "What became of predictions and labels to be joined.", ("outcome",))
        self.dead_letters = counter("dead_letters_total", "Records that could not be read.", ("reason",))
        self.alerts = counter("alerts_total", "Alerts published.", ("action", "severity"))
        self.pages = counter("pages_total", "Alerts and digests passed on under the cap.", ("action", "severity"))
        self.incidents = counter(
            "incidents_total", "Steps of incidents published, by cause.", ("action", "severity", "cause")
        )
        self.shadow_alerts = counter("shadow_alerts_total", "Alerts of rules in shadow mode; not published.")
        self.rewinds = counter("rewinds_total", "Times a partition was read again from the expected offset.")
        self.gone = counter(
            "records_gone_total",
            "Records that were not read: deleted before we came, or passed over by a reset of the group.",
            ("topic", "reason"),
        )
        self.renewed = counter(
            "logs_renewed_total",
            "Partitions whose topic was deleted and created anew, or whose log was cut; how much is lost is not known.",
            ("topic", "reason"),
        )
        self.moved = counter(
            "moved_models_total",
            "Models whose key moved to another partition: what they learned was kept, or could not be.",
            ("outcome",),
        )
        self.absent = gauge("topics_absent", "Topics we read, or keep state on, that are not there.")
        self.spread_models = counter("spread_models_total", "Models seen in more than one partition.")
        self.unusable_states = counter("unusable_states_total", "Stored states that could not be read.")
        self.snapshot_bytes = counter("snapshot_bytes_total", "Bytes of state written.")
        self.repartitioned = counter("repartitioned_records_total", "Records sent on under their model's key.")
        self.silences = gauge("silences", "Silences of run time, in force, past or to come.")
        self.series = gauge("series_active", "Models held in memory.")
        self.warming = gauge("series_warming", "Models of which a signal gives no scores yet.")
        self.signals_warming = gauge("signals_warming", "Series that give no scores yet, by signal.", ("signal",))
        self.mismatched = gauge(
            "label_mismatches", "Models whose labels can agree with no prediction of theirs.", ("kind",)
        )
        self.allowed = gauge(
            "budget_false_alerts_per_day", "False alerts that the config allows all models in a day; 0: no budget."
        )
        self.partitions = gauge("partitions_owned", "Source partitions held.")
        self.lag = gauge("consumer_lag", "Records still to be read.", ("topic", "partition"))
        self.snapshot_age = gauge(
            "snapshot_age_seconds", "Time since a partition's state was last durable.", ("topic", "partition")
        )
        self.reload_ok = gauge("config_last_reload_successful", "1 where the last reload was taken.")
        self.reload_ok.set(1)
        self.info = gauge("build_info", "Version and config in force.", ("version", "config"))
        self.batch_seconds = seconds("batch_seconds", "Time to process a batch.")
        self.snapshot_seconds = seconds("snapshot_seconds", "Time to make state durable.")
        self.restore_seconds = seconds("restore_seconds", "Time to restore assigned partitions.")

    def begin(self, topics: Iterable[str]) -> None:
        """Have every series there will be at 0: what does not exist yet neither divides nor rises."""
        for topic in topics:
            self.events.labels(topic=topic)
            self.records.labels(topic=topic)
            self.bytes.labels(topic=topic)
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome=outcome)
        for reason in IGNORED:
            self.ignored.labels(reason=reason)
        for reason in REASONS:
            self.dead_letters.labels(reason=reason)
        for kind in ("unknown_model", "other_classes"):
            self.mismatched.labels(kind=kind)
        for action, severity in itertools.product(_ACTIONS, get_args(Severity)):
            self.alerts.labels(action=action, severity=severity)
            self.pages.labels(action=action, severity=severity)
            for cause in get_args(Category):
                self.incidents.labels(action=action, severity=severity, cause=cause)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return bytes(generate_latest(self.registry))

    def forget_partition(self, topic: str, partition: int) -> None:
        """Drop a partition's gauges once it is no longer ours."""
        for metric in (self.lag, self.snapshot_age):
            try:
                metric.remove(topic, str(partition))
            except KeyError:
                continue
