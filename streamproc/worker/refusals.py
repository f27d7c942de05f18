"""Records that cannot be read, as the log tells of them: the first of each reason whole, then a count a minute."""

from __future__ import annotations

from collections import Counter

import structlog

from streamproc.events import RecordBatch, Rejected

log = structlog.get_logger("streamproc.records")

#: How often the log says how many there were, in seconds.
_EVERY_S = 60.0


class Refusals:
    """What was refused, by topic and reason, since the log last said so."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()
        self._fresh: Counter[tuple[str, str]] = Counter()
        self._read: Counter[str] = Counter()
        self._told_s: float | None = None

    def note(self, batch: RecordBatch, rejected: list[Rejected], *, redact: bool) -> None:
        """Count a batch, and log each reason that is new of its topic; redact: without the message."""
        self._read[batch.topic] += len(batch)
        for each in rejected:
            key = (batch.topic, each.error_type)
            self._fresh[key] += 1
            if key not in self._known:
                self._known.add(key)
                about = {} if redact else {"why": each.message}
                log.warning(
                    "a record cannot be read; it is in the dead letters, and so will others like it be",
                    reason=each.error_type,
                    topic=batch.topic,
                    partition=batch.partition,
                    offset=each.offset,
                    **about,
                )

    def tell(self, now_s: float) -> None:
        """Say how many there were since this last did, once a minute and only where there were any."""
        if self._told_s is None:
            self._told_s = now_s
        if now_s - self._told_s < _EVERY_S:
            return
        by_topic: dict[str, dict[str, int]] = {}
        for (topic, reason), count in sorted(self._fresh.items()):
            by_topic.setdefault(topic, {})[reason] = count
        for topic, reasons in by_topic.items():
            log.warning(
                "records could not be read",
                topic=topic,
                **reasons,
                of=self._read[topic],
                seconds=round(now_s - self._told_s),
            )
        self._fresh.clear()
        self._read.clear()
        self._told_s = now_s
