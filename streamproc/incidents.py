"""Incidents: alerts that have one cause, found together, told once; pure.

A second agent reads every alert we publish, from a topic of one partition, so that the alerts of all models are in one
order, and publishes incidents: opened, updated, escalated, resolved. An alert joins an open incident of its model that
has news of late, or one that shares an upstream with it, a feature or something both depend on, along which such a
symptom travels (`causes.LINKS`). What the cause is, `causes.RULES` say.

Time is that of the alerts: the greatest yet, and from there on the arrival clock for as long as none comes. So a
backlog is grouped as it would have been live, and where nothing comes any more incidents end all the same. All that is
decided by the passing of time is decided in the order of when it is due, whoever notices it, the clock or the next
alert. A copy of an alert, published again after a crash, is dropped by its id.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from streamproc import causes
from streamproc.alerts import identity
from streamproc.config import Severity
from streamproc.events import (
    Alert,
    Category,
    Cause,
    Changed,
    Incident,
    IncidentImpact,
    Kpis,
    Moment,
    PostMortem,
    SuggestedAction,
    Symptom,
    lasted,
    rfc3339,
    time_us,
)
from streamproc.models import Group, ModelState
from streamproc.rules import RuleBook
from streamproc.signals import Kind

__all__ = ["IncidentState"]

#: Ids of the latest alerts, by which copies are known.
_REMEMBERED = 5000
#: Alerts that are kept whole, of one incident and of all but for the first of each, and those named in what is
#: published. Of more it is known how many.
_KEPT = 200
_KEPT_OF_ALL = 5000
_NAMED = 50
#: Models, features, upstreams and changes named.
_LISTED = 50
#: Lines of a timeline.
_LINES = 60
#: Incidents open at once; one more ends the one that has had no news for longest.
_OPEN = 500
#: An incident that goes on is told of again no sooner than after this long, if there is something to tell.
_UPDATE_EVERY_US = 300_000_000
#: The default of `incidents.window`, if the models' own windows are not longer.
_WINDOW_US = 900_000_000
_OF_WINDOWS = 4
#: Upstreams by which an incident may be joined, the latest ones.
_LINKS = 2000
#: A feature links alerts that it carries so much of.
_CARRIES = 0.2

#: Failures in a window that are news by themselves; fewer are a symptom of something else, or none.
_FAILURES = 5
#: A lone warning of a window lasts five windows at least, before it resolves (`rules`), and some more where it has not
#: been over at once; beyond these it is an incident.
_CONFIRM_WINDOWS = 8

_RANK: dict[Severity, int] = {"info": 0, "warning": 1, "critical": 2}
_SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
#: Quality signals of which less is worse; of the others more is.
_LESS_IS_WORSE = frozenset({"accuracy", "estimated_accuracy", "evaluation"})

_DO: dict[SuggestedAction, str] = {
    "retrain": "retrain",
    "roll_back": "roll back",
    "fix_feed": "fix the feed",
    "scale": "scale or replace it",
    "contact_provider": "contact the provider",
    "investigate": "investigate",
}

#: Causes that one incident may seem to have in turn; those of data show in what models answer, load in their latency.
_NEAR: tuple[frozenset[Category], ...] = (frozenset({"data", "model"}), frozenset({"infra", "traffic"}))


class _Member(Struct, gc=False, kw_only=True):
    """An alert of an incident; times in microseconds of event time, end_us -1 while it fires."""

    episode_id: str
    fingerprint: str
    model: str
    segment: str
    signal: str
    severity: Severity
    category: Category
    group: causes.Group
    summary: str
    start_us: int
    opened_us: int
    end_us: int = -1
    sure: bool = False  # one that needs no other beside it
    wait_us: int = -1  # alone it is an incident if it lasts so much longer; -1: as long as any other
    counts_us: int = -1  # of a silence: when it will have lasted long enough to count in full; -1: it does
    weak: bool = False  # one that rests on too few events to be more than a symptom
    value: float | None = None
    expected: float | None = None
    until_us: int = -1  # when it was last over its limit, which is before it was resolved; -1: not told
    events: int | None = None  # in values over the limit
    cost: float | None = None  # of these
    features: list[str] = field(default_factory=list)
    upstreams: list[str] = field(default_factory=list)
    version: list[Any] | None = None  # of a change shortly before: to, before, at

    def over_by(self, now_us: int) -> int:
        """Return when it was last over its limit, or now while it fires."""
        if self.end_us < 0:
            return now_us
        return self.until_us if self.until_us >= 0 else self.end_us


class _Open(Struct, kw_only=True):
    """An incident that is not over; times in microseconds of event time."""

    incident_id: str
    fingerprint: str
    model: str  # of the alert it began with, as are its labels
    labels: dict[str, str]
    url: str
    started_us: int
    first_us: int  # when its first alert opened
    news_us: int  # when an alert of it last opened or was over
    ended_us: int = -1  # when the last of its alerts was over
    until_us: int = -1  # until when one of its alerts was over its limit; -1: not told
    published_us: int = -1  # -1: not yet confirmed
    steps: int = 0  # published
    rank: int = 0  # the highest severity that an alert began with
    escalated: bool = False  # one became critical
    confirm_us: int = -1  # when it is told of, if it has not ended by then; -1: not by lasting
    aged: bool = False  # it has lasted long enough to be more severe for it
    stale: bool = False  # there are alerts since it was last told of
    told: list[Any] = field(default_factory=list)  # what was last said of it that is worth saying anew
    count: int = 0  # alerts folded
    models: dict[str, int] = field(default_factory=dict)  # when the latest alert of each began
    links: dict[str, int] = field(default_factory=dict)  # likewise by `_links`
    members: dict[str, _Member] = field(default_factory=dict)  # by episode
    firing: dict[str, None] = field(default_factory=dict)  # episodes
    moments: list[list[Any]] = field(default_factory=list)


class IncidentState(ModelState):
    """All alerts that are not over, by what they belong to."""

    kind: Kind = "alerts"

    def __init__(self, book: RuleBook, name: str, topic: str, partition: int) -> None:
        super().__init__(book, name, topic, partition)
        self.seen: dict[str, None] = {}  # ids of alerts, oldest first
        self.open: dict[str, _Open] = {}  # oldest first
        self.of: dict[str, str] = {}  # the incident of each firing episode
        self.base_us = 0  # event time at the last alert
        self.published: list[Incident] = []  # since last asked for
        self._soonest_us = 0  # nothing is due before
        self._know(book)

    def _know(self, book: RuleBook) -> None:
        said = book.config.incidents
        widest = max([book.config.defaults.window.us, *(b.window.us for b in book.config.models if b.window)])
        self.window_us = max(_WINDOW_US, _OF_WINDOWS * widest) if said.window is None else said.window.us
        self.quiet_us = self.window_us if said.quiet is None else said.quiet.us
        self.near_us = self.window_us // 2
        lasting_us = max(_WINDOW_US, _CONFIRM_WINDOWS * widest)
        self.confirm_us = lasting_us if said.confirm_after is None else said.confirm_after.us
        self.named = {d.rpartition("/")[2]: d for b in book.config.models for d in b.depends_on or ()}
        self.named |= {d: d for d in self.named.values()}
        self._upstreams: dict[str, tuple[str, ...]] = {}

    def reconfigure(self, book: RuleBook) -> None:
        """Take another config; what is open stays so."""
        super().reconfigure(book)
        self._know(book)
        self._soonest_us = 0

    # -- alerts in

    def take(self, group: Group) -> list[Alert]:
        """Take alerts of whatever models; what comes of it is had by `incidents`."""
        if self.started_us is None:
            self.started_us = int(group.times[0])
        for event, arrival in zip(group.what.events, group.shared.arrivals.tolist(), strict=True):
            self._take(event.alert, arrival)
            self.last_arrival_us = arrival
        return []

    def incidents(self) -> list[Incident]:
        """Return what is to be published, once."""
        found, self.published = self.published, []
        return found

    def advance(self, clock_us: int) -> list[Alert]:
        """Let the arrival clock pass without an alert."""
        self._settle(self._time(clock_us))
        return []

    def due_us(self, idle_ttl_us: int) -> int:
        """Return the arrival clock at which `advance` would next do something."""
        due = [self.last_arrival_us + idle_ttl_us]
        due += [self._due(i)[0] - self.base_us + self.last_arrival_us for i in self.open.values()]
        return min(due)

    def retire(self) -> list[Alert]:
        """Let the time pass after which a series is forgotten, and end what is still open then."""
        self._settle(self._time(self.last_arrival_us + self.book.config.defaults.discover.idle_ttl.us))
        for incident in list(self.open.values()):
            self._end(incident, max(self.base_us, incident.news_us), "no news for long")
        return []

    def _time(self, arrival_us: int) -> int:
        """Return event time at an arrival: it goes on while no alert comes."""
        return self.base_us + (max(0, arrival_us - self.last_arrival_us) if self.base_us else 0)

    def _take(self, alert: Alert, arrival_us: int) -> None:
        at_us = _us(alert.lastReceived)
        now_us = max(self._time(arrival_us), at_us)
        self._settle(now_us)
        self.base_us = now_us
        if alert.id in self.seen:
            return
        self.seen[alert.id] = None
        while len(self.seen) > _REMEMBERED:
            del self.seen[next(iter(self.seen))]
        if alert.suppressed_by and alert.action != "resolved":
            return  # nobody is to be told
        if alert.action == "opened":
            if alert.episode_id not in self.of:
                self._join(alert, now_us)
        elif (found := self.of.get(alert.episode_id)) is not None:
            self._go_on(self.open[found], alert, at_us, now_us)

    def _join(self, alert: Alert, now_us: int) -> None:
        member = self._member(alert)
        linked, own = [], []
        for incident in self.open.values():
            met = [at for link in _links(member) if (at := incident.links.get(link)) is not None]
            if any(abs(member.start_us - at) <= self.near_us for at in met):
                linked.append(incident)
            elif self._is_of_model(incident, member):
                own.append(incident)
        candidates = linked + own
        if not candidates:
            self._found(member, alert, now_us)
            return
        target = candidates[0]
        self._fold(target, member, now_us)
        cause = self._verdict(target).cause
        for other in candidates[1:]:
            if _near(cause, self._verdict(other).cause):
                older, younger = (target, other) if target.first_us <= other.first_us else (other, target)
                self._merge(older, younger, now_us)
                target = older
        self._tell(target, now_us)

    def _is_of_model(self, incident: _Open, member: _Member) -> bool:
        latest = incident.models.get(member.model)
        if latest is None:
            return False
        if abs(member.start_us - latest) <= self.window_us:
            return True
        return any(m.fingerprint == member.fingerprint for m in incident.members.values())

    def _member(self, alert: Alert) -> _Member:
        model, change = alert.labels.get("model", ""), alert.changes[-1] if alert.changes else None
        up = None if alert.effect is None else alert.effect >= 0
        group = causes.group_of(alert.signal, up=up)
        features = [s.feature for s in alert.attribution if s.share >= _CARRIES]
        upstreams = [*self._depends(model), *(f"feature/{f}" for f in features)]
        return _Member(
            episode_id=alert.episode_id,
            fingerprint=alert.fingerprint,
            model=model,
            segment=alert.labels.get("segment", ""),
            signal=alert.signal,
            severity=alert.severity,
            category=alert.category,
            group=group,
            summary=alert.summary[:300],
            start_us=_us(alert.startsAt),
            opened_us=_us(alert.lastReceived),
            sure=alert.severity == "critical" and group != "silent" and not _is_weak(alert, group),
            wait_us=round(alert.value * 1e6) if group == "silent" and alert.value is not None else -1,
            weak=_is_weak(alert, group),
            value=alert.value,
            expected=None if alert.expected is None else alert.expected.value,
            until_us=_until(alert, _us(alert.startsAt)),
            events=None if alert.impact is None else alert.impact.events,
            cost=None if alert.impact is None else alert.impact.cost,
            features=features[:5],
            upstreams=[u for u in upstreams if causes.links(u, group)][:_LISTED],
            version=None if change is None else [change.to, change.before, change.at],
        )

    def _depends(self, model: str) -> tuple[str, ...]:
        """Return what a model depends on; of what others depend on, itself."""
        found = self._upstreams.get(model)
        if found is None:
            if len(self._upstreams) > 10_000:
                self._upstreams.clear()
            said = [d for b in self.book.config.blocks_for(model) for d in b.depends_on or ()]
            if model in self.named:
                said.append(self.named[model])
            found = self._upstreams[model] = tuple(dict.fromkeys(said))
        return found

    def _found(self, member: _Member, alert: Alert, now_us: int) -> None:
        while len(self.open) >= _OPEN:
            oldest = min(self.open.values(), key=lambda i: i.news_us)
            self._end(oldest, now_us, "too many incidents are open")
        labels = {"alertname": "incident", "model": member.model}
        labels |= {k: alert.labels[k] for k in ("env", "team") if k in alert.labels}
        incident_id = identity("incident", member.episode_id)
        incident = self.open[incident_id] = _Open(
            incident_id=incident_id,
            fingerprint=identity("incident", member.fingerprint),
            model=member.model,
            labels=labels,
            url=alert.url,
            started_us=member.start_us,
            first_us=now_us,
            news_us=now_us,
        )
        self._fold(incident, member, now_us)
        self._tell(incident, now_us)

    def _fold(self, incident: _Open, member: _Member, now_us: int) -> None:
        incident.count += 1
        incident.until_us = max(incident.until_us, member.until_us)
        incident.started_us = min(incident.started_us, member.start_us)
        if not member.weak:
            incident.rank = max(incident.rank, self._rank(incident, member, now_us))
            # From now on, not from when it opened: of a backlog its end may be the next record.
            confirm_us = now_us + (member.wait_us if member.wait_us >= 0 else self.confirm_us)
            incident.confirm_us = confirm_us if incident.confirm_us < 0 else min(incident.confirm_us, confirm_us)
        incident.models[member.model] = max(incident.models.get(member.model, 0), member.start_us)
        for link in _links(member):
            incident.links[link] = max(incident.links.pop(link, 0), member.start_us)
        while len(incident.links) > _LINKS:
            del incident.links[next(iter(incident.links))]
        kept = sum(len(i.members) for i in self.open.values())
        if not incident.members or (len(incident.members) < _KEPT and kept < _KEPT_OF_ALL):
            incident.members[member.episode_id] = member
        incident.firing[member.episode_id] = None
        self.of[member.episode_id] = incident.incident_id

    @staticmethod
    def _rank(incident: _Open, member: _Member, now_us: int) -> int:
        """Return how severe a new alert makes an incident.

        A gap somewhat longer than any before is a warning until it has lasted as long again: where a model gets few
        requests chance makes one every few weeks. The silence of a second model is no chance.
        """
        if member.group != "silent" or member.wait_us < 0:
            return _RANK[member.severity]
        still = [m for m in incident.members.values() if m.group == "silent" and m.end_us < 0]
        if any(m.model != member.model for m in still):
            for each in still:
                each.counts_us = -1
            return max(_RANK[m.severity] for m in (*still, member))
        member.counts_us = now_us + member.wait_us
        return min(_RANK["warning"], _RANK[member.severity])

    def _go_on(self, incident: _Open, alert: Alert, at_us: int, now_us: int) -> None:
        """Take the next step of an alert that is part of an incident."""
        member = incident.members.get(alert.episode_id)
        until_us = _until(alert, _us(alert.startsAt) if member is None else member.start_us)
        if alert.action == "resolved" and until_us < 0:
            until_us = at_us
        incident.until_us = max(incident.until_us, until_us)
        if member is not None:
            member.until_us = max(member.until_us, until_us)
        if member is not None and alert.impact is not None:
            member.events = alert.impact.events
            member.cost = alert.impact.cost if alert.impact.cost is not None else member.cost
        if alert.action == "escalated":
            incident.escalated = True
            if member is not None:
                member.severity = alert.severity
            self._tell(incident, now_us)
        if alert.action != "resolved":
            return
        del incident.firing[alert.episode_id], self.of[alert.episode_id]
        if member is not None:
            member.end_us, member.counts_us = at_us, -1
        incident.ended_us = max(incident.ended_us, at_us)
        incident.news_us = now_us
        self._soonest_us = min(self._soonest_us, self._due(incident)[0])

    def _merge(self, older: _Open, younger: _Open, now_us: int) -> None:
        """Take what the younger has into the older; where the younger was told of, say so."""
        for member in younger.members.values():
            if len(older.members) < _KEPT:
                older.members[member.episode_id] = member
        for episode in younger.firing:
            older.firing[episode] = None
            self.of[episode] = older.incident_id
        older.count += younger.count
        older.started_us = min(older.started_us, younger.started_us)
        older.ended_us = max(older.ended_us, younger.ended_us)
        older.until_us = max(older.until_us, younger.until_us)
        older.rank = max(older.rank, younger.rank)
        older.escalated |= younger.escalated
        if len({m.model for m in older.members.values() if m.group == "silent" and m.end_us < 0}) > 1:
            self._be_silent(older)
        if younger.confirm_us >= 0:
            older.confirm_us = (
                younger.confirm_us if older.confirm_us < 0 else min(older.confirm_us, younger.confirm_us)
            )
        for own, theirs in ((older.models, younger.models), (older.links, younger.links)):
            for name, at in theirs.items():
                own[name] = max(own.get(name, 0), at)
        self._note(older, now_us, f"incident {younger.incident_id} turned out to be this one")
        if younger.published_us >= 0:
            if older.published_us < 0:
                self._publish(older, "opened", now_us)
            self._publish(younger, "resolved", now_us, merged_into=older.incident_id)
        del self.open[younger.incident_id]

    # -- incidents out

    def _tell(self, incident: _Open, now_us: int) -> None:
        """Take note of a new alert: publish what cannot wait."""
        incident.news_us = now_us
        self._publish_if_due(incident, now_us)
        self._soonest_us = min(self._soonest_us, self._due(incident)[0])

    def _publish_if_due(self, incident: _Open, now_us: int) -> None:
        if incident.published_us < 0:
            if self._is_sure(incident):
                self._publish(incident, "opened", now_us)
        elif self._severity(incident) != incident.told[0]:
            self._publish(incident, "escalated", now_us)
        else:
            incident.stale = True

    def _is_sure(self, incident: _Open) -> bool:
        """Whether an incident is more than one alert that may be over in a moment."""
        members = incident.members.values()
        if any(m.sure for m in members) or self._is_borne_out(incident):
            return True
        return incident.escalated and len({m.fingerprint for m in members if not m.weak}) > 1

    @staticmethod
    def _is_borne_out(incident: _Open) -> bool:
        """Whether there are alerts of two models or of two natures; of what wanders, three alerts."""
        counted = [m for m in incident.members.values() if not m.weak]
        natures = {(m.model, _nature(m)) for m in counted}
        if len(natures) < 2:
            return False
        return any(nature not in _WANDER for _, nature in natures) or len({m.fingerprint for m in counted}) > 2

    def _severity(self, incident: _Open) -> Severity:
        """Return the worst severity that an alert had, a step more where many models are hit or it lasts long.

        One signal alone does not become critical by lasting.
        """
        said = self.book.config.incidents
        raised = len(incident.models) >= said.escalate_models or (incident.aged and len(incident.firing) > 1)
        rank = 2 if incident.escalated and self._is_borne_out(incident) else incident.rank
        return _SEVERITIES[min(2, rank + raised)]

    def _due(self, incident: _Open) -> tuple[int, str]:
        """Return when something is next to be done about an incident, in event time, and what."""
        if not incident.firing:
            due = [(incident.ended_us + self.quiet_us, "end")]
        else:
            due = [(incident.news_us + self.book.config.defaults.discover.idle_ttl.us, "give up")]
            if incident.published_us < 0:
                if incident.confirm_us >= 0:
                    due.append((incident.confirm_us, "confirm"))
            elif not incident.aged:
                due.append((incident.first_us + self.book.config.incidents.escalate_after.us, "age"))
            due += [(m.counts_us, "be silent") for m in incident.members.values() if m.counts_us >= 0]
        if incident.published_us >= 0 and incident.stale:
            due.append((incident.published_us + _UPDATE_EVERY_US, "update"))
        at_us, what = min(due)
        # What could have been due before the latest news is due with it: nothing is told of as of the past.
        return max(at_us, incident.news_us, incident.published_us), what

    def _settle(self, now_us: int) -> None:
        """Do all that is due by now, in the order in which it is."""
        if now_us < self._soonest_us:
            return
        while self.open:
            (at_us, what), incident = min(
                ((self._due(i), i) for i in self.open.values()), key=lambda d: (d[0], d[1].first_us, d[1].incident_id)
            )
            if at_us > now_us:
                self._soonest_us = at_us
                return
            if what == "end":
                self._end(incident, at_us, "")
            elif what == "give up":
                self._end(incident, at_us, "no news for long")
            elif what == "be silent":
                self._be_silent(incident, until_us=at_us)
                if incident.published_us >= 0 and self._severity(incident) != incident.told[0]:
                    self._publish(incident, "escalated", at_us)
            elif what == "confirm":
                self._publish(incident, "opened", at_us)
            elif what == "age":
                incident.aged = True
                if self._severity(incident) != incident.told[0]:
                    self._publish(incident, "escalated", at_us)
            else:
                incident.stale = False
                if self._worth_saying(incident) != incident.told:
                    self._publish(incident, "updated", at_us)

    @staticmethod
    def _be_silent(incident: _Open, *, until_us: int | None = None) -> None:
        """Count silences that last in full; only those due by a time where given."""
        for m in incident.members.values():
            if m.counts_us >= 0 and (until_us is None or m.counts_us <= until_us):
                m.counts_us = -1
                incident.rank = max(incident.rank, _RANK[m.severity])

    def _worth_saying(self, incident: _Open) -> list[Any]:
        verdict = self._verdict(incident)
        return [self._severity(incident), verdict.cause, verdict.action, verdict.root, len(incident.models)]

    def _end(self, incident: _Open, at_us: int, why: str) -> None:
        if incident.published_us >= 0:
            if why:
                self._note(incident, at_us, why)
            self._publish(incident, "resolved", at_us)
        for episode in incident.firing:
            self.of.pop(episode, None)
        del self.open[incident.incident_id]

    def _note(self, incident: _Open, at_us: int, what: str) -> None:
        if len(incident.moments) < _LINES // 3:
            incident.moments.append([at_us, what])

    def _verdict(self, incident: _Open) -> causes.Verdict:
        ordered = sorted(incident.members.values(), key=lambda m: (m.start_us, m.opened_us, m.episode_id))
        first_us = ordered[0].start_us
        seen = [
            causes.Seen(
                m.model,
                m.group,
                (m.start_us - first_us) / 1e6,
                m.summary,
                m.fingerprint,
                tuple(m.upstreams),
                None if m.version is None else str(m.version[0]),
            )
            for m in ordered
        ]
        return causes.judge(seen, tie_s=self.window_us / _OF_WINDOWS / 1e6)

    def _publish(
        self,
        incident: _Open,
        action: Literal["opened", "updated", "escalated", "resolved"],
        at_us: int,
        *,
        merged_into: str = "",
    ) -> None:
        verdict, severity = self._verdict(incident), self._severity(incident)
        over = action == "resolved"
        cause = Cause(verdict.cause, verdict.confidence, verdict.rule, verdict.evidence)
        if not over:
            self._note(incident, at_us, f"{action}: {verdict.cause}, {verdict.evidence[0]}")
        incident.told = self._worth_saying(incident)
        incident.stale, incident.published_us = False, at_us
        members = list(incident.members.values())
        end_us = (incident.ended_us if not incident.firing else at_us) if over else -1
        # Alerts wait for some time of quiet before they are over, and incidents for more: no part of the fault.
        until_us = incident.until_us if over and not incident.firing and incident.until_us >= 0 else at_us
        impact = self._impact(incident, max(until_us, incident.until_us))
        symptoms = [m for m in members if m.fingerprint != verdict.root]
        symptoms.sort(key=lambda m: (-_RANK[m.severity], m.start_us, m.episode_id))
        models = list(incident.models)
        who = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
        likely = f"likely {verdict.cause} ({verdict.confidence:.0%}), {_DO[verdict.action]}"
        if merged_into:
            summary = f"{who}: part of an older incident"
        elif over:
            summary = f"{who}: over after {lasted(impact.duration_s)}; {verdict.evidence[0]}; {likely}"
        else:
            summary = f"{who}: {verdict.evidence[0]}; {likely}"
        root = next((m for m in members if m.fingerprint == verdict.root), members[0])
        description = "\n".join([root.summary, *(m.summary for m in symptoms[:20])])
        annotations = {"summary": summary[:1024], "description": description}
        if incident.url:
            annotations["runbook_url"] = incident.url
        if merged_into:
            annotations["merged_into"] = merged_into
        changed = {tuple(m.version): None for m in members if m.version is not None}
        upstreams = [u for u, n in _shared(members) if n > 1 and not u.startswith("feature/")]
        features = [u.partition("/")[2] for u, _ in _shared(members) if u.startswith("feature/")]
        incident.steps += 1
        self.published.append(
            Incident(
                id=identity(incident.incident_id, action, incident.steps),
                incident_id=incident.incident_id,
                fingerprint=incident.fingerprint,
                name=f"{incident.model} incident",
                status="resolved" if over else "firing",
                severity=severity,
                summary=summary[:1024],
                action=action,
                labels=dict(incident.labels),
                annotations=annotations,
                startsAt=rfc3339(incident.started_us),
                lastReceived=rfc3339(at_us),
                endsAt=rfc3339(end_us) if over else None,
                models=models[:_LISTED],
                more_models=max(0, len(models) - _LISTED),
                cause=cause,
                root=verdict.root,
                suggested_action=verdict.action,
                impact=impact,
                alerts=incident.count,
                message=summary[:1024],
                description=description,
                environment=incident.labels.get("env", ""),
                service=incident.model,
                url=incident.url,
                symptoms=[_symptom(m) for m in symptoms[:_NAMED]],
                more_symptoms=incident.count - (len(members) - len(symptoms)) - min(len(symptoms), _NAMED),
                features=features[:_LISTED],
                upstreams=upstreams[:_LISTED],
                changes=[Changed("version", to, before, at) for to, before, at in list(changed)[:_LISTED]],
                post_mortem=(
                    PostMortem(
                        timeline=_timeline(incident),
                        duration_s=impact.duration_s,
                        impact=impact,
                        cause=cause,
                        suggested_action=verdict.action,
                        kpis=_kpis(members, impact, at_us),
                    )
                    if over and not merged_into
                    else None
                ),
            )
        )

    def _impact(self, incident: _Open, until_us: int) -> IncidentImpact:
        duration_s = max(0, until_us - incident.started_us) / 1e6
        by_model: dict[str, int] = {}
        costs: dict[str, float] = {}
        for m in incident.members.values():
            if m.events is not None and m.group != "machine":
                by_model[m.model] = max(by_model.get(m.model, 0), m.events)
            if m.cost is not None and m.group not in ("usage", "spend"):
                costs[m.model] = max(costs.get(m.model, 0.0), m.cost)
        cost = sum(costs.values()) if costs else None
        for m in incident.members.values():
            if m.signal == "cost_per_hour" and not m.segment and m.value is not None and m.expected is not None:
                hours = max(0, m.over_by(until_us) - m.start_us) / 3.6e9
                cost = (cost or 0.0) + (m.value - m.expected) * hours
        return IncidentImpact(
            len(incident.models),
            duration_s,
            sum(by_model.values()) if by_model else None,
            None if cost is None else round(cost, 6),
        )

    # -- state

    def _own_state(self) -> dict[str, Any]:
        return {
            "seen": list(self.seen),
            "open": [msgspec.to_builtins(i) for i in self.open.values()],
            "base_us": self.base_us,
        }

    def _restore_own(self, own: dict[str, Any]) -> None:
        self.seen, self.base_us = dict.fromkeys(own["seen"]), own["base_us"]
        self._soonest_us = 0
        self.open = {i.incident_id: i for i in msgspec.convert(own["open"], list[_Open])}
        self.of = {episode: i.incident_id for i in self.open.values() for episode in i.firing}


def _us(stamp: str) -> int:
    """Return a time we wrote as microseconds since the epoch; what is none is the epoch."""
    try:
        return time_us(dt.datetime.fromisoformat(stamp))
    except ValueError:
        return 0


def _until(alert: Alert, start_us: int) -> int:
    """Return until when an alert that began then was over its limit, -1 where it does not tell."""
    return -1 if alert.impact is None else start_us + round(alert.impact.duration_s * 1e6)


def _is_weak(alert: Alert, group: causes.Group) -> bool:
    """Whether an alert on a share rests on so few events that a window more or less of them is chance."""
    if group not in ("failing", "replies") or alert.value is None or alert.n is None:
        return False
    return alert.value * alert.n < _FAILURES


#: Natures that wander on their own, and on one host or feed together: two such alerts may be chance.
_WANDER = frozenset({"moved", "slow"})


def _links(m: _Member) -> list[str]:
    """Return what an alert must share one of with another model's: an upstream, and which way it fails.

    A feed that stops makes its models silent, one that goes wrong moves their answers; they are not one fault.
    """
    still = m.group in ("silent", "shed")
    return [f"{u} stopped" if still and u.startswith("feed/") else u for u in m.upstreams]


def _nature(m: _Member) -> str:
    """Return what two alerts of one model must differ in to bear each other out.

    Answers move with what comes in, and all latencies together; measures of quality and of use need not agree.
    """
    if m.group in ("drifted", "answers"):
        return "moved"
    return m.signal.partition(":")[0] if m.group in ("quality", "usage") else m.group


def _near(a: Category, b: Category) -> bool:
    """Whether two causes may be those of one incident."""
    return a == b or "unknown" in (a, b) or frozenset({a, b}) in _NEAR


def _shared(members: Iterable[_Member]) -> list[tuple[str, int]]:
    """Return each upstream with the number of models that have it, the most shared first."""
    found: dict[str, set[str]] = {}
    for member in members:
        for upstream in member.upstreams:
            found.setdefault(upstream, set()).add(member.model)
    return sorted(((u, len(models)) for u, models in found.items()), key=lambda f: (-f[1], f[0]))


def _symptom(m: _Member) -> Symptom:
    return Symptom(
        fingerprint=m.fingerprint,
        episode_id=m.episode_id,
        model=m.model,
        signal=m.signal,
        severity=m.severity,
        category=m.category,
        startsAt=rfc3339(m.start_us),
        summary=m.summary,
        segment=m.segment,
        endsAt=None if m.end_us < 0 else rfc3339(m.end_us),
    )


def _timeline(incident: _Open) -> list[Moment]:
    lines: list[tuple[int, int, str]] = [(at, 2, what) for at, what in incident.moments]
    for m in incident.members.values():
        lines.append((m.start_us, 0, f"began: {m.summary}"))
        if m.version is not None:
            lines.append((_us(m.version[2]), 0, f"{m.model}: version {m.version[0]}, before it {m.version[1]}"))
        if m.end_us >= 0:
            lines.append((m.end_us, 1, f"over: {' '.join(filter(None, (m.model, m.segment, m.signal)))}"))
    ordered = sorted(dict.fromkeys(lines))
    if len(ordered) > _LINES:  # how it began and how it ended are what matters
        left = len(ordered) - _LINES
        middle = (ordered[_LINES * 2 // 3][0], 0, f"and {left} more")
        ordered = [*ordered[: _LINES * 2 // 3], middle, *ordered[-(_LINES // 3) :]]
    return [Moment(rfc3339(at), what[:300]) for at, _, what in ordered]


def _kpis(members: list[_Member], impact: IncidentImpact, now_us: int) -> Kpis:
    whole = impact.duration_s * 1e6 * max(1, impact.models)
    down: dict[str, float] = {}
    worst: float | None = None
    for m in members:
        lasted_us = max(0, m.over_by(now_us) - m.start_us)
        if m.segment:
            continue
        if m.signal == "silence":
            down[m.model] = max(down.get(m.model, 0.0), float(lasted_us))
        elif m.signal == "error_rate" and m.value is not None:
            down[m.model] = max(down.get(m.model, 0.0), lasted_us * m.value)
        if m.group == "quality" and m.value is not None and m.expected is not None:
            less = m.signal.partition(":")[0] in _LESS_IS_WORSE
            above, below = (m.value, m.expected) if less else (m.expected, m.value)
            if below > 0:
                kept = max(0.0, min(1.0, above / below))
                worst = kept if worst is None else min(worst, kept)
    uptime = max(0.0, 1.0 - sum(down.values()) / whole) if whole > 0 else None
    return Kpis(
        None if uptime is None else round(uptime, 4), None if worst is None else round(worst, 4), impact.cost
    )
