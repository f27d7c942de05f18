"""The hard cap: what of the alerts may land in front of a person, so many a day and model; the rest in one digest.

A second agent reads the `alerts` topic and passes alerts on to the `pages` topic. There the alerts of one model are in
one order, whichever of its signals raised them, so a cap has one answer; and like any other source, what is kept is
saved, fenced and restored with it.

The cap is a token bucket (the generic cell rate algorithm): so many openings at once, one more each 1/so many days, on
the arrival clock, since it is a person's day. A critical alert always passes and takes nothing. What is held back opens
one digest, which closes when there is room again and then says what it held. The resolution of an alert goes where its
opening went. A copy of an alert, published again after a crash, is dropped by its id.

References
----------
[^1]: ITU-T I.371, 2004. Traffic control and congestion control in B-ISDN, annex A (generic cell rate algorithm).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from streamproc.alerts import identity
from streamproc.decoding import OwnDecoder
from streamproc.events import Alert, DetectorRef, ModelRef, rfc3339
from streamproc.models import Group, ModelState
from streamproc.rules import RuleBook
from streamproc.signals import Kind

__all__ = ["AlertDecoder", "PageState"]

_DAY_US = 86_400_000_000

#: Ids of the latest alerts, by which copies are known, and episodes held back that are remembered.
_REMEMBERED = 500

#: Alerts a digest names; of more it says how many.
_NAMED = 20


class Received(Struct, gc=False):
    """An alert as an event, of the time of its record: a person's day is what is counted."""

    model: ModelRef
    alert: Alert
    time: None = None


class AlertDecoder(OwnDecoder):
    """Decode the alerts we publish."""

    what = "alert"

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Alert).decode

    def read(self, value: bytes) -> Received:
        """Return the alert in a record's value."""
        alert = self._decode(value)
        return Received(self._whose(alert), alert)

    def fault(self, error: Exception) -> str:
        """Return whether it is no JSON, or no alert."""
        return "schema" if isinstance(error, msgspec.ValidationError) else "malformed"

    def _whose(self, alert: Alert) -> ModelRef:
        return ModelRef(alert.labels.get("model", ""))


class _Held(Struct, gc=False):
    """An alert held back."""

    episode_id: str
    signal: str
    summary: str
    lasting: bool = True


class PageState(ModelState):
    """What of one model's alerts was passed on, and what was held back."""

    kind: Kind = "alerts"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self.seen: dict[str, None] = {}  # ids, oldest first
        self.full_at_us = 0  # when the bucket is full again
        self.held: dict[str, _Held] = {}  # of the open digest, by episode
        self.gone: dict[str, None] = {}  # episodes held back by digests that have closed
        self.left_out = 0  # held back beyond those remembered
        self.opened_by = ""  # the alert that the open digest began with
        self.opened_us = 0

    @property
    def _budget(self) -> int | None:
        budget = self.book.config.defaults.budget
        return None if budget is None else budget.per_model_per_day

    def take(self, group: Group) -> list[Alert]:
        """Take alerts of this model; return what is to be passed on."""
        out: list[Alert] = []
        if self.started_us is None:
            self.started_us = int(group.times[0])
        for event, arrival in zip(group.what.events, group.shared.arrivals.tolist(), strict=True):
            out += self._settle(arrival)
            out += self._pass(event.alert, arrival)
        self.last_arrival_us = int(group.shared.arrivals[-1])
        return out

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without an alert."""
        return self._settle(clock_us)

    def due_us(self, idle_ttl_us: int) -> int:
        """Return the arrival clock at which `advance` would next do something."""
        idle = self.last_arrival_us + idle_ttl_us
        return min(idle, self._room_at()) if self.opened_by else idle

    def retire(self) -> list[Alert]:
        """Close the open digest, before the model is forgotten."""
        return self._settle(max(self._room_at(), self.last_arrival_us))

    def _interval(self) -> int:
        return _DAY_US // (self._budget or 1)

    def _room_at(self) -> int:
        """Return when the bucket has, or had, room for one alert."""
        return self.full_at_us - _DAY_US + self._interval()

    def _pass(self, alert: Alert, now_us: int) -> list[Alert]:
        if alert.id in self.seen or alert.suppressed_by:
            return []
        self.seen[alert.id] = None
        _trim(self.seen)
        held = self.held.get(alert.episode_id)
        if alert.action == "escalated" and (held is not None or alert.episode_id in self.gone):
            # It has become critical, and those are never held back: to a person this is the first of it.
            self.held.pop(alert.episode_id, None)
            self.gone.pop(alert.episode_id, None)
            return [alert]
        if alert.action != "opened":
            if held is not None and alert.action == "resolved":
                held.lasting = False
            return [] if held is not None or alert.episode_id in self.gone else [alert]
        if alert.severity == "critical" or self._budget is None:
            return [alert]
        if now_us >= self._room_at():
            self.full_at_us = max(self.full_at_us, now_us) + self._interval()
            return [alert]
        first = not self.opened_by
        if len(self.held) < _REMEMBERED:
            self.held[alert.episode_id] = _Held(alert.episode_id, alert.signal, alert.summary)
        else:
            self.left_out += 1
        if not first:
            return []
        self.opened_by, self.opened_us = alert.id, now_us
        return [self._digest("opened", now_us)]

    def _settle(self, now_us: int) -> list[Alert]:
        """Close the digest where there is room again by now."""
        if not self.opened_by or now_us < self._room_at():
            return []
        out = [self._digest("resolved", self._room_at())]
        self.gone.update(dict.fromkeys(self.held))
        _trim(self.gone)
        self.held, self.left_out, self.opened_by = {}, 0, ""
        return out

    def _digest(self, action: Literal["opened", "resolved"], at_us: int) -> Alert:
        fingerprint = identity(self.name, "digest")
        episode = identity(fingerprint, self.opened_by)
        held = list(self.held.values())
        n = len(held) + self.left_out
        if action == "opened":
            summary = f"{self.name}: {self._budget} alerts in a day; holding back {held[0].signal} and what follows"
        else:
            lasting = sum(h.lasting for h in held)
            still = f", {lasting} of them not over" if lasting else ""
            summary = f"{self.name}: {n} alert{'s' if n > 1 else ''} held back{still}: " + ", ".join(
                sorted({h.signal for h in held})
            )
        named = "\n".join(h.summary for h in held[:_NAMED])
        more = f"\nand {n - _NAMED} more" if n > _NAMED else ""
        labels = {"alertname": "digest", "model": self.name, "severity": "warning", "signal": "digest"}
        return Alert(
            id=identity(episode, action),
            fingerprint=fingerprint,
            episode_id=episode,
            name=f"{self.name} digest",
            status="firing" if action == "opened" else "resolved",
            severity="warning",
            summary=summary[:1024],
            action=action,
            labels=labels,
            annotations={"summary": summary[:1024], "description": named + more},
            startsAt=rfc3339(self.opened_us),
            lastReceived=rfc3339(at_us),
            endsAt=None if action == "opened" else rfc3339(at_us),
            signal="digest",
            detector=DetectorRef("budget", ""),
            score=1.0,
            message=summary[:1024],
            description=named + more,
            service=self.name,
            n=n,
        )

    def _own_state(self) -> dict[str, Any]:
        return {
            "seen": list(self.seen),
            "gone": list(self.gone),
            "held": [[h.episode_id, h.signal, h.summary, h.lasting] for h in self.held.values()],
            "scalars": [self.full_at_us, self.left_out, self.opened_by, self.opened_us],
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.seen, self.gone = dict.fromkeys(own["seen"]), dict.fromkeys(own["gone"])
        self.held = {row[0]: _Held(*row) for row in own["held"]}
        self.full_at_us, self.left_out, self.opened_by, self.opened_us = own["scalars"]


def _trim(kept: dict[str, None]) -> None:
    while len(kept) > _REMEMBERED:
        del kept[next(iter(kept))]
