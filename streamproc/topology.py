"""Every topic of a deployment, in one table: what it is for, who reads and writes it, how it is to be; pure.

What creates topics, what checks their names, what tells a worker which are its own, and the AsyncAPI document all
come from here.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct, field

from streamproc.config import Config, Kafka, Report
from streamproc.serving import seldon_topic

Role = Literal[
    "predictions", "telemetry", "labels", "byModel", "joins", "silences", "feedback", "alerts", "pages", "incidents",
    "alertFeed", "deadLetters", "snapshots",
]  # fmt: skip

#: Largest record of ours: a model's state, or a dead letter, which is its record and the reason.
MAX_RECORD_BYTES = 16_000_000

#: What Kafka takes for a topic's name.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


class Topic(Struct, frozen=True, kw_only=True):
    """One topic, and what a worker does with it.

    where: the key of the config that names it. partitions: None for as many as the config says. siblings: topics of one
    such word are assigned together, and so need equally many partitions.
    """

    name: str
    role: Role
    where: str
    reads: bool = False
    writes: bool = False
    partitions: int | None = None
    siblings: str | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether records on it are made by workers for workers alone."""
        return self.reads and self.writes


def internal_topic(app_id: str, topic: str) -> str:
    """Return the name of the topic that holds a source's records keyed by model."""
    seldon = seldon_topic(topic)
    return f"{app_id}-{topic if seldon is None else seldon.pair}-by-model"


def topics(k: Kafka) -> list[Topic]:
    """Return every topic that workers of a config read or write."""
    return list(_topics(k))


def _topics(k: Kafka) -> Iterator[Topic]:
    kinds: tuple[Literal["predictions", "telemetry", "labels"], ...] = ("predictions", "telemetry", "labels")
    for kind in kinds:
        for i, name in enumerate(getattr(k, kind)):
            yield Topic(name=name, role=kind, where=f"kafka.{kind}[{i}]", reads=True, siblings="sources")
    if joined := k.joins_topic():
        # A worker that comes back late must find all of it, and nobody reads it twice: a week.
        kept = {"retention.ms": str(7 * 86_400_000)}
        yield Topic(name=joined, role="joins", where="kafka.joins", reads=True, writes=True, settings=kept)
    if k.repartition:
        # By size and not by time: records keep their own times, and those of a backlog are past any retention.
        kept = {"retention.ms": "-1", "retention.bytes": str(1 << 30)}
        for name in dict.fromkeys(internal_topic(k.app_id, t) for t in k.sources()):  # some share one
            yield Topic(
                name=name, role="byModel", where="kafka.app_id", reads=True, writes=True, siblings="internal",
                settings=kept,
            )  # fmt: skip
    # All of one topic of operators' words are in one order, and every worker reads them from the beginning.
    if k.silences:
        yield Topic(
            name=k.silences, role="silences", where="kafka.silences", reads=True, partitions=1,
            settings={"cleanup.policy": "compact"},
        )  # fmt: skip
    if k.feedback:
        yield Topic(
            name=k.feedback, role="feedback", where="kafka.feedback", reads=True, partitions=1,
            settings={"retention.ms": "-1"},
        )  # fmt: skip
    yield Topic(name=k.alerts, role="alerts", where="kafka.alerts", writes=True)
    if k.pages:
        yield Topic(name=k.pages, role="pages", where="kafka.pages", writes=True)
    if k.incidents:
        yield Topic(name=k.incidents, role="incidents", where="kafka.incidents", writes=True)
    if k.alert_feed:
        # What belongs together, and what is too much, is told by the order of all alerts: one partition.
        yield Topic(name=k.alert_feed, role="alertFeed", where="kafka.app_id", reads=True, writes=True, partitions=1)
    large = {"max.message.bytes": str(MAX_RECORD_BYTES)}
    yield Topic(name=k.dead_letters, role="deadLetters", where="kafka.dead_letters", writes=True, settings=large)
    yield Topic(
        name=k.snapshots, role="snapshots", where="kafka.snapshots", reads=True, writes=True,
        settings={"cleanup.policy": "compact", **large},
    )  # fmt: skip


def bridge_topics(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the topics that only bridges read or write, each with the key of the config that names it."""
    if any(getattr(config.bridges, kind) for kind in config.bridges.__struct_fields__):
        yield bridge_dead_letters(config.kafka), "kafka.app_id"
    for kind in config.bridges.__struct_fields__:
        for name, bridge in getattr(config.bridges, kind).items():
            at = f"bridges.{kind}.{name}"
            if bridge.topic not in ("alerts", "pages", "incidents"):
                yield bridge.topic, f"{at}.topic"
            if getattr(bridge, "requests", None) is not None:
                yield bridge.requests, f"{at}.requests"


def bridge_dead_letters(k: Kafka) -> str:
    """Return the topic that takes what no receiver of a bridge will."""
    return f"{k.app_id}-bridge-dead-letters"


def name_problem(name: str) -> str:
    """Return why Kafka has no topic of a name, "" where it may.

    >>> name_problem("alerts/eu")
    'Kafka takes letters, digits, `.`, `_` and `-`; it does not take `/`'
    """
    if not name:
        return "is empty; a topic needs a name"
    if name in (".", ".."):
        return "is no name Kafka takes"
    if len(name) > 249:
        return f"has {len(name)} characters; Kafka takes 249"
    if _NAME.fullmatch(name) is None:
        odd = "".join(dict.fromkeys(c for c in name if _NAME.fullmatch(c) is None))
        return f"Kafka takes letters, digits, `.`, `_` and `-`; it does not take `{odd}`"
    return ""


def check(config: Config, report: Report) -> None:
    """Report topics that Kafka cannot have, and topics that are used for two things."""
    k = config.kafka
    own = topics(k)
    said = set()
    for name, where in [*((t.name, t.where) for t in own), *bridge_topics(config)]:
        if (problem := name_problem(name)) and (name, where) not in said:
            said.add((name, where))
            report(where, "E028", f"topic `{name}`: {problem}" if name else problem)
    sources = [t.name for t in own if t.siblings == "sources"]
    for name in sorted({t for t in sources if sources.count(t) > 1}):
        report("kafka", "E022", f"topic `{name}` is named twice; a topic carries one kind of event")
    uses = defaultdict(list)
    for t in own:
        uses[t.name].append(t)
    for name, users in uses.items():
        ours = [t for t in users if t.siblings != "sources"]
        if len(ours) < len(users) and ours:
            report("kafka", "E023", f"topic `{name}` is both read and written; the worker would feed on itself")
        elif len(ours) > 1:
            what = " and ".join(f"`{t.where}`" for t in ours)
            report(ours[-1].where, "E029", f"topic `{name}` is named by {what}; each needs a topic of its own")
    # Kafka's metrics write both as `_`, so it refuses the second of such a pair.
    alike = defaultdict(list)
    for name in uses:
        alike[name.replace(".", "_")].append(name)
    for pair in alike.values():
        if len(pair) > 1:
            problem = f"Kafka takes `{pair[0]}` and `{pair[-1]}` for one; name it otherwise"
            report(uses[pair[-1]][0].where, "E028", problem)
