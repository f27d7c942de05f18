"""The hard cap: what of the alerts may land in front of a person, so many a day; the rest in one digest.

A second agent reads every alert we publish, from the topic on which all of them are in one order, and passes alerts on
to the `pages` topic. In that order a cap has one answer, of each model and of all models together; and like any other
source, what is kept is saved, fenced and restored with it.

A cap is a token bucket (the generic cell rate algorithm): so many openings at once, one more each 1/so many days, on
the arrival clock, since it is a person's day. A critical alert always passes and takes nothing; any other takes one of
its model's and one of all models'. What its model has no room for opens that model's digest, which is passed on in its
place; what all together have none for, be it a digest, opens the one digest of the fleet. A digest holds back all that
comes until there is room for a quarter of a day's alerts, so that alerts and digests do not take turns; then it closes
and says what it held. The resolution of an alert goes where its opening went. A copy of an alert, published again after
a crash, is dropped by its id.

References
----------
[^1]: ITU-T I.371, 2004. Traffic control and congestion control in B-ISDN, annex A (generic cell rate algorithm).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from streamproc.alerts import identity
from streamproc.events import Alert, DetectorRef, rfc3339
from streamproc.models import Group, ModelState
from streamproc.rules import RuleBook
from streamproc.signals import Kind

__all__ = ["PageState"]

_DAY_US = 86_400_000_000

#: Ids of the latest alerts, by which copies are known, and episodes held back that are remembered once their digest is
#: closed.
_REMEMBERED = 5000

#: Alerts that one digest keeps, and all together; of more it is known how many.
_KEPT = 500
_KEPT_OF_ALL = 5000

#: Alerts and models that a digest names; of more it says how many.
_NAMED = 20

#: A digest closes when there is room again for this part of a day's alerts.
_ROOM = 4

#: The bucket, and the digest, of all models together.
_ALL = ""


class _Held(Struct, gc=False, array_like=True):
    """An alert held back."""

    model: str
    signal: str
    summary: str
    lasting: bool = True


class _Digest(Struct, array_like=True):
    """What one digest holds; opened_by: the alert that it began with."""

    opened_by: str
    opened_us: int
    held: dict[str, _Held] = field(default_factory=dict)  # by episode
    left_out: int = 0  # held back beyond those kept


class PageState(ModelState):
    """What of all alerts was passed on, and what was held back."""

    kind: Kind = "alerts"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self.seen: dict[str, None] = {}  # ids, oldest first
        self.full_at_us: dict[str, int] = {}  # when the bucket of a model is full again; none of one that is
        self.digests: dict[str, _Digest] = {}  # that are open, by model
        self.gone: dict[str, None] = {}  # episodes held back by digests that have closed, or kept no more of them
        self.hidden: dict[str, None] = {}  # episodes that began in a silence

    def take(self, group: Group) -> list[Alert]:
        """Take alerts of whatever models; return what is to be passed on."""
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
        return min([self.last_arrival_us + idle_ttl_us, *(self._closes_at(whose) for whose in self.digests)])

    def retire(self) -> list[Alert]:
        """Close open digests, before all is forgotten."""
        return self._settle(max([self.last_arrival_us, *(self._closes_at(whose) for whose in self.digests)]))

    # -- buckets

    def _cap(self, whose: str) -> int:
        budget = self.book.config.defaults.budget
        if budget is None:
            return 0
        return budget.per_model_per_day if whose else budget.per_fleet_per_day

    def _room_at(self, whose: str, alerts: int = 1) -> int:
        """Return when a bucket has, or had, room for so many alerts."""
        return self.full_at_us.get(whose, 0) - _DAY_US + alerts * (_DAY_US // max(1, self._cap(whose)))

    def _closes_at(self, whose: str) -> int:
        return self._room_at(whose, -(-self._cap(whose) // _ROOM))

    def _spend(self, whose: str, now_us: int) -> None:
        """Take one of a bucket; forget those that are full again, which are as if they had never been."""
        full = max(self.full_at_us.pop(whose, 0), now_us) + _DAY_US // max(1, self._cap(whose))
        self.full_at_us = {w: at for w, at in self.full_at_us.items() if at > now_us or w in self.digests}
        self.full_at_us[whose] = full

    # -- alerts

    def _pass(self, alert: Alert, now_us: int) -> list[Alert]:
        if alert.id in self.seen:
            return []
        self.seen[alert.id] = None
        _trim(self.seen)
        episode = alert.episode_id
        if alert.action == "opened":
            self.gone.pop(episode, None)
            self.hidden.pop(episode, None)
        if alert.suppressed_by:
            if alert.action == "opened":
                self.hidden[episode] = None
                _trim(self.hidden)
            # What was shown and is expected since then still ends for those whom it was shown.
            if alert.action != "resolved" or episode in self.hidden:
                return []
        if alert.action != "opened":
            holding = next((d for d in self.digests.values() if episode in d.held), None)
            if holding is None and episode not in self.gone:
                return [alert]
            if alert.action == "escalated":
                # It has become critical, and those are never held back: to a person this is the first of it.
                self.gone.pop(episode, None)
                if holding is not None:
                    del holding.held[episode]
                return [alert]
            if holding is not None and alert.action == "resolved":
                holding.held[episode].lasting = False
            return []
        if alert.severity == "critical" or not self._cap(_ALL):
            return [alert]
        return self._under_the_caps(alert, now_us)

    def _under_the_caps(self, alert: Alert, now_us: int) -> list[Alert]:
        """Pass an opening on, or hold it back."""
        model = alert.labels.get("model", "") or alert.name
        for whose in (model, _ALL):
            if whose in self.digests:
                self._hold(whose, model, alert)
                return []
        if now_us < self._room_at(_ALL):
            return [self._begin(_ALL, model, alert, now_us)]
        self._spend(_ALL, now_us)
        if now_us < self._room_at(model):
            return [self._begin(model, model, alert, now_us)]
        self._spend(model, now_us)
        return [alert]

    def _begin(self, whose: str, model: str, alert: Alert, now_us: int) -> Alert:
        self.digests[whose] = _Digest(alert.id, now_us)
        self._hold(whose, model, alert)
        return self._told(whose, self.digests[whose], "opened", now_us)

    def _hold(self, whose: str, model: str, alert: Alert) -> None:
        digest = self.digests[whose]
        if len(digest.held) < _KEPT and sum(len(d.held) for d in self.digests.values()) < _KEPT_OF_ALL:
            digest.held[alert.episode_id] = _Held(model, alert.signal, alert.summary[:300])
        else:
            digest.left_out += 1
            self.gone[alert.episode_id] = None  # what comes of it is held back all the same
            _trim(self.gone)

    def _settle(self, now_us: int) -> list[Alert]:
        """Close the digests for which there is room again by now, in the order in which there was."""
        out = []
        for at_us, whose in sorted((self._closes_at(w), w) for w in self.digests):
            if at_us <= now_us:
                digest = self.digests.pop(whose)
                self.gone.update(dict.fromkeys(digest.held))
                _trim(self.gone)
                out.append(self._told(whose, digest, "resolved", at_us))
        return out

    def _told(self, whose: str, digest: _Digest, action: Literal["opened", "resolved"], at_us: int) -> Alert:
        fingerprint = identity(whose, "digest") if whose else identity("digest of the fleet")
        episode = identity(fingerprint, digest.opened_by)
        held = list(digest.held.values())
        n = len(held) + digest.left_out
        who = whose or "fleet"
        if action == "opened":
            first = held[0]
            what = first.signal if whose else f"{first.model} {first.signal}"
            summary = f"{who}: {self._cap(whose)} alerts in a day; holding back {what} and what follows"
        else:
            lasting = sum(h.lasting for h in held)
            still = f", {lasting} of them not over" if lasting else ""
            summary = f"{who}: {n} alert{'s' if n > 1 else ''} held back{still}: " + _listed(whose, held)
        named = "\n".join(h.summary for h in held[:_NAMED])
        more = f"\nand {n - _NAMED} more" if n > _NAMED else ""
        labels = {"alertname": "digest", "severity": "warning", "signal": "digest"}
        labels |= {"model": whose} if whose else {"scope": "fleet"}
        return Alert(
            id=identity(episode, action),
            fingerprint=fingerprint,
            episode_id=episode,
            name=f"{who} digest",
            status="firing" if action == "opened" else "resolved",
            severity="warning",
            summary=summary[:1024],
            action=action,
            labels=labels,
            annotations={"summary": summary[:1024], "description": named + more},
            startsAt=rfc3339(digest.opened_us),
            lastReceived=rfc3339(at_us),
            endsAt=None if action == "opened" else rfc3339(at_us),
            signal="digest",
            detector=DetectorRef("budget", ""),
            score=1.0,
            message=summary[:1024],
            description=named + more,
            service=whose,
            n=n,
        )

    # -- state

    def _own_state(self) -> dict[str, Any]:
        return {
            "seen": list(self.seen),
            "gone": list(self.gone),
            "hidden": list(self.hidden),
            "full_at_us": dict(self.full_at_us),
            "digests": {whose: msgspec.to_builtins(digest) for whose, digest in self.digests.items()},
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.seen, self.gone = dict.fromkeys(own["seen"]), dict.fromkeys(own["gone"])
        self.hidden = dict.fromkeys(own["hidden"])
        self.full_at_us = dict(own["full_at_us"])
        self.digests = msgspec.convert(own["digests"], dict[str, _Digest])


def _listed(whose: str, held: list[_Held]) -> str:
    """Return the signals of a model's digest; of the fleet's the models, with how many of each."""
    if whose:
        return ", ".join(sorted({h.signal for h in held}))
    counts = Counter(h.model for h in held).most_common()
    more = f" and {len(counts) - _NAMED} more models" if len(counts) > _NAMED else ""
    return ", ".join(f"{model} ({n})" for model, n in counts[:_NAMED]) + more


def _trim(kept: dict[str, None]) -> None:
    while len(kept) > _REMEMBERED:
        del kept[next(iter(kept))]
