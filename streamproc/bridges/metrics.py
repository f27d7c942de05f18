"""What a bridge tells Prometheus, under the names of the worker's own house."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The metrics of one bridge, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.delivered = Counter(
            "streamproc_bridge_delivered_total", "Steps the receiver took.", ("action",), registry=registry
        )
        self.skipped = Counter(
            "streamproc_bridge_skipped_total", "Steps not to be told: copies, silenced.", ("reason",), registry=registry
        )
        self.retries = Counter("streamproc_bridge_retries_total", "Deliveries tried again.", registry=registry)
        self.dead_letters = Counter(
            "streamproc_bridge_dead_letters_total", "Records set aside.", ("reason",), registry=registry
        )
        self.renewed = Counter(
            "streamproc_bridge_topic_renewed_total", "Times its topic was created anew, or lost records.",
            registry=registry,
        )  # fmt: skip
        self.blocked = Gauge(
            "streamproc_bridge_blocked_seconds", "How long the receiver takes nothing; 0: it does.", registry=registry
        )
        self.lag = Gauge(
            "streamproc_bridge_lag", "Records still to be told.", ("topic", "partition"), registry=registry
        )
        self.open = Gauge("streamproc_bridge_firing", "Episodes told of and not over.", registry=registry)
        self.reload_ok = Gauge(
            "streamproc_bridge_config_last_reload_successful", "1 where the last reload was taken.", registry=registry
        )
        self.reload_ok.set(1)
        self.seconds = Histogram(
            "streamproc_bridge_delivery_seconds", "From the first attempt to the answer.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return bytes(generate_latest(self.registry))
