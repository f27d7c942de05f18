"""What is to be told: the steps of alerts and incidents, folded from their topic; pure.

What is firing is a function of the topic alone. A bridge reads it back from the start to the position it had committed,
telling nobody, and goes on from there: what it knows can never differ from what it has delivered but by the one record
that was on its way. See docs/adr/0012.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

Action = Literal["opened", "updated", "escalated", "resolved"]

#: Episodes remembered after their end, so that a copy of an old step is known for one.
_REMEMBERED = 10_000


class Cause(Struct, frozen=True):
    """Why, of an incident."""

    category: str = ""
    confidence: float | None = None
    evidence: Any = None


class PostMortem(Struct, frozen=True):
    """What an incident's account of itself suggests."""

    suggested_action: str | None = None


class Event(Struct, frozen=True, kw_only=True):
    """What a bridge needs of an alert or an incident; whatever else is there is not looked at."""

    id: str
    fingerprint: str
    status: Literal["firing", "resolved"]
    severity: str
    summary: str
    action: Action
    startsAt: str  # noqa: N815 (Alertmanager's own spelling)
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    lastReceived: str = ""  # noqa: N815
    endsAt: str | None = None  # noqa: N815
    episode_id: str = ""
    incident_id: str = ""
    description: str = ""
    generatorURL: str = ""  # noqa: N815
    signal: str = ""
    value: float | None = None
    score: float | None = None
    category: str = ""
    cause: Cause | None = None
    attribution: Any = None
    changes: Any = None
    evidence: Any = None
    models: Any = None
    impact: Any = None
    post_mortem: PostMortem | None = None
    suggested_action: str | None = None
    suppressed_by: Any = None

    @property
    def episode(self) -> str:
        """Return what names one firing of a condition."""
        return self.incident_id or self.episode_id or self.fingerprint

    @property
    def all_labels(self) -> dict[str, str]:
        """Return the labels, with the two that routing goes by."""
        own = {k: str(v) for k, v in self.labels.items() if v not in ("", None)}
        return {"alertname": self.name or "streamproc", **own, "severity": self.severity}

    @property
    def action_suggested(self) -> str:
        """Return what the record says should be done, or ""."""
        if self.suggested_action:
            return self.suggested_action
        if self.post_mortem is not None and self.post_mortem.suggested_action:
            return self.post_mortem.suggested_action
        return self.annotations.get("suggested_action", "")


_decode = msgspec.json.Decoder(Event, strict=True).decode


def decode(value: bytes | None) -> Event:
    """Return the event in a record's value. Raises msgspec.MsgspecError where there is none."""
    try:
        return _decode(value or b"")
    except msgspec.ValidationError:
        # Some encoders write null for what is not there.
        return msgspec.convert(_without_nulls(msgspec.json.decode(value or b"")), Event)


def _without_nulls(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _without_nulls(v) for k, v in tree.items() if v is not None}
    return tree


def matcher(match: Mapping[str, str]) -> Callable[[Event], bool]:
    """Return whether an event's labels fit every glob."""
    globs = list(match.items())

    def fits(event: Event) -> bool:
        known = {"status": event.status, "signal": event.signal, **event.all_labels}
        return all(fnmatch.fnmatchcase(known.get(name, ""), glob) for name, glob in globs)

    return fits


class Worn(Struct, frozen=True):
    """A set of labels an episode had until it took others, and when that was."""

    labels: dict[str, str]
    until_ms: int


class Episode(Struct):
    """One firing of a condition, as far as it has been told."""

    id: str
    fingerprint: str
    first: Event
    latest: Event  # that was told
    labels: dict[str, str]  # of the latest firing step: a resolution goes where the firing went
    opened_ms: int
    latest_ms: int
    raw: bytes = b""
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    open: bool = True
    worn: list[Worn] = field(default_factory=list)
    asked: bool = False  # something that is asked once an episode has been
    shown_ms: int | None = None  # when the receiver first took it, in this life of the process
    told_ms: int = 0  # when the latest step was told, likewise
    refused: bool = False  # the receiver takes it never


class Step(Struct, frozen=True):
    """One thing to tell."""

    event: Event
    episode: Episode
    value: bytes
    headers: list[tuple[str, bytes]]
    at_ms: int  # the record's time
    first: bool  # nothing of the episode was told before
    last: bool  # nothing else of the condition is firing still
    track: Track
    asks: bool = False  # for what an episode asks for once, and has not before
    again: bool = False  # this may have been told already, just before a crash

    @property
    def open(self) -> list[Episode]:
        """Return every episode of the partition that is open now."""
        return self.track.open()


class Track:
    """What was told of one partition, step by step."""

    def __init__(
        self, match: Mapping[str, str] | None = None, *, asks: Callable[[Event], bool] = lambda _event: False
    ) -> None:
        self.episodes: dict[str, Episode] = {}  # in the order of their latest step
        self._open: dict[str, Episode] = {}
        self._firing: Counter[str] = Counter()  # open episodes by fingerprint
        self._seen: dict[str, None] = {}
        self._held: dict[str, None] = {}  # episodes that were passed over and not told since
        self._fits = matcher(match or {})
        self._asks = asks
        self.skipped = ""

    def rematch(self, match: Mapping[str, str], *, asks: Callable[[Event], bool]) -> None:
        """Tell of what fits from now on; what was told of before goes on to its end."""
        self._fits, self._asks = matcher(match), asks

    def open(self) -> list[Episode]:
        """Return the episodes that are firing, in the order of their latest steps."""
        return list(self._open.values())

    def recent(self, since_ms: int) -> list[Episode]:
        """Return the episodes that are firing, and those whose latest step was told since."""
        ended = []
        for episode in reversed(self.episodes.values()):
            if max(episode.latest_ms, episode.told_ms) < since_ms:
                break
            if not episode.open:
                ended.append(episode)
        return [*self._open.values(), *ended]

    def take(self, event: Event, value: bytes, headers: list[tuple[str, bytes]], at_ms: int) -> Step | None:
        """Take one record; return what is to be told of it, None (and `skipped` says why) where nothing is."""
        self.skipped = ""
        if event.id in self._seen:
            self.skipped = "copy"
            return None
        known = self.episodes.get(event.episode)
        if known is not None and not known.open and event.lastReceived <= known.latest.lastReceived:
            self.skipped = "over"  # a late step of what has ended would page again; a newer one has opened it anew
            return None
        if known is None or not known.open:
            if event.suppressed_by:
                self._hold(event, "suppressed")
                return None
            if not self._fits(event):
                self._hold(event, "unmatched")
                return None
            if event.status == "resolved" and event.episode in self._held:
                self._hold(event, "untold")
                return None
        elif event.suppressed_by and event.status == "firing":
            self._hold(event, "suppressed")
            return None
        self._seen[event.id] = None
        _trim(self._seen, 4 * _REMEMBERED)
        self._held.pop(event.episode, None)
        first = known is None
        episode = self._tell(known, event, value, headers, at_ms)
        asks = not episode.asked and self._asks(event)
        episode.asked |= asks
        last = event.status == "resolved" and not self._firing[episode.fingerprint]
        return Step(event, episode, value, headers, at_ms, first, last, self, asks)

    def again(self) -> list[Step]:
        """Return a step for each open episode, as if its latest were told now: for a bridge that has never run."""
        return [
            Step(e.latest, e, e.raw, e.headers, e.latest_ms, True, False, self, e.asked, True) for e in self.open()
        ]

    def _hold(self, event: Event, reason: str) -> None:
        if event.episode not in self.episodes:
            self._held[event.episode] = None
            _trim(self._held, _REMEMBERED)
        self.skipped = reason

    def _tell(
        self, known: Episode | None, event: Event, value: bytes, headers: list[tuple[str, bytes]], at_ms: int
    ) -> Episode:
        labels = event.all_labels
        if known is None:
            known = Episode(event.episode, event.fingerprint, event, event, labels, at_ms, at_ms)
        elif event.status == "firing" and labels != known.labels:
            # To Alertmanager labels are identity: the old set ends, a new one fires, in the same episode.
            known.worn = [w for w in known.worn if w.labels != labels] + [Worn(known.labels, at_ms)]
            known.labels = labels
        known.latest, known.latest_ms, known.raw, known.headers = event, at_ms, value, headers
        known.open = event.status == "firing"
        self.episodes.pop(known.id, None)
        self.episodes[known.id] = known
        was = self._open.pop(known.id, None) is not None
        self._firing[known.fingerprint] += known.open - was
        if known.open:
            self._open[known.id] = known
        else:
            if not self._firing[known.fingerprint]:
                del self._firing[known.fingerprint]
            if len(self.episodes) - len(self._open) > _REMEMBERED:
                oldest = next(e.id for e in self.episodes.values() if not e.open)
                del self.episodes[oldest]
        return known


def _trim(kept: dict[str, None], size: int) -> None:
    while len(kept) > size:
        del kept[next(iter(kept))]
