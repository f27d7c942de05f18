"""The life of one alert: inactive, pending, firing, resolved; in event time, replayable to the byte.

The words are vmalert's. A condition is met when `k` of the last `n` values are over the limit; it
fires once it has been met for `for_us`, and resolves once it has not been met for
`resolve_after_us` (Prometheus' `keep_firing_for`). Each firing is one episode: one `opened`, one
`resolved`, the same `episode_id`, and between them

- `updated`, where its score has doubled since it was last told of, or it has lasted for another
  `renotify_us`;
- `escalated`, once: it has lasted for `escalate_after_us` and is still large; the larger, the sooner.

What fires again soon after it resolved is one thing that comes and goes. Each time it does so the
next resolution waits twice as long, so that it is told of ever less often (flap damping).
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
from msgspec import Struct, structs

from detectors.protocol import F64, I64

State = Literal["inactive", "pending", "firing"]


class Policy(Struct, frozen=True, gc=False):
    """When a condition becomes an alert; times in microseconds.

    clear: the score below which a firing alert counts as quiet. Evidence that gathers and fades crosses its limit
    many times on the way down; it is one alert until it is down to `clear`. renotify_us and escalate_after_us: 0 for
    never.
    """

    for_us: int = 0
    resolve_after_us: int = 600_000_000
    k: int = 1
    n: int = 1
    clear: float = 1.0
    renotify_us: int = 0
    escalate_after_us: int = 0


#: What has lasted escalates where it is still so many times its limit, and the least effect that matters. What is
#: larger escalates sooner in proportion, after a part of the time at the soonest.
ESCALATE_SIZE = 2.0
_SOONEST = 0.1

#: Fires again within so many times what it takes to resolve: it flaps. It is damped so many times at most.
_FLAPS_WITHIN = 6
_MOST_FLAPS = 4


class Step(Struct, frozen=True, gc=False):
    """One transition, at `row` of the values observed (-1: by the passing of time)."""

    action: Literal["opened", "updated", "escalated", "resolved"]
    row: int
    at_us: int
    started_us: int
    opening: int
    offset_first: int
    offset_last: int
    peak: float
    escalated: bool = False
    values: int = 0  # over the limit so far
    weight: int = 0  # of those, in what each stands for
    anew: bool = False  # told of once more as if it opened: nobody was told when it did
    until_us: int = -1  # when the condition was last met, before what it took to resolve; -1: at `at_us`


class Lifecycle:
    """The state of one alert condition."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: State = "inactive"
        self.seen = 0  # values observed so far
        self.recent: list[int] = []  # the counts at which the last k breaches were seen
        self.since_us = 0  # when the condition was first met in this run
        self.last_us = 0  # when it was last met
        self.opening = -1  # offset that names the episode
        self.offset_first = -1
        self.offset_last = -1
        self.peak = 0.0
        self.told = 0.0  # the peak when it was last told of
        self.told_us = 0
        self.escalated = False
        self.values = self.weight = 0
        self.resolved_us: int | None = None  # when it last resolved
        self.flaps = 0

    @property
    def _resolve_after_us(self) -> int:
        return self.policy.resolve_after_us << self.flaps

    def observe(
        self,
        breach: np.typing.NDArray[np.bool_],
        scores: F64,
        times: I64,
        offsets: I64,
        *,
        sizes: F64 | None = None,
        weight: int = 1,
        opening: int | None = None,
    ) -> list[Step]:
        """Take values in order; return the transitions.

        All (n,); `offsets` names the evidence. sizes: how large an excess is, in limits, where the score alone does not
        tell. weight: how many events each of the values stands for. opening: what names an episode that one of them
        opens, where its offset has named another one before.
        """
        if self.state == "inactive" and not breach.any():
            self.seen += len(breach)
            return []
        steps: list[Step] = []
        policy = self.policy
        for row in range(len(breach)):
            at = int(times[row])
            self.seen += 1
            if self.state == "firing" and at - self.last_us >= self._resolve_after_us:
                steps.append(self._resolve(row, self.last_us + self._resolve_after_us))
            met = False
            if breach[row]:
                if self.state == "inactive" and (not self.recent or self.seen - self.recent[-1] >= policy.n):
                    self._reset()  # breaches too long ago to count are no part of this episode
                self.recent.append(self.seen)
                del self.recent[: -policy.k]
                met = len(self.recent) >= policy.k and self.seen - self.recent[0] < policy.n
                if self.offset_first < 0:
                    self.offset_first = int(offsets[row])
                self.offset_last = int(offsets[row])
                self.peak = max(self.peak, float(scores[row]))
                self.values += 1
                self.weight += weight
            if met:
                if self.state == "inactive":
                    self.state = "pending"
                    self.since_us = at
                    self.opening = int(offsets[row]) if opening is None else opening
                self.last_us = at
                if self.state == "pending" and at - self.since_us >= policy.for_us:
                    self.state = "firing"
                    self._note_flap(at)
                    steps.append(self._tell("opened", row, at))
                elif self.state == "firing":
                    steps += self._news(row, at, float((scores if sizes is None else sizes)[row]))
            elif self.state == "firing" and policy.clear < 1.0 and scores[row] >= policy.clear:
                self.last_us = at
            elif self.state == "pending" and self.seen - self.recent[0] >= policy.n:
                self._reset()
        return steps

    def expire(self, now_us: int) -> list[Step]:
        """Resolve what has been quiet long enough at `now_us`, though no value came."""
        if self.state == "firing" and now_us - self.last_us >= self._resolve_after_us:
            return [self._resolve(-1, self.last_us + self._resolve_after_us)]
        return []

    def due_us(self) -> int | None:
        """Return when `expire` would resolve, or None."""
        return self.last_us + self._resolve_after_us if self.state == "firing" else None

    def again(self, at_us: int) -> Step:
        """Return the opening of an alert that fires, once more."""
        return structs.replace(self._tell("opened", -1, at_us), anew=True)

    def end(self, at_us: int) -> list[Step]:
        """Resolve now, whatever is over the limit; what was pending is forgotten."""
        if self.state == "firing":
            return [self._resolve(-1, max(at_us, self.since_us))]
        self._reset()
        return []

    def _note_flap(self, at_us: int) -> None:
        soon_us = _FLAPS_WITHIN * self._resolve_after_us
        again = self.resolved_us is not None and at_us - self.resolved_us < soon_us
        self.flaps = min(self.flaps + 1, _MOST_FLAPS) if again else 0

    def _news(self, row: int, at_us: int, size: float) -> list[Step]:
        """Return what is worth telling of an alert that fires on."""
        policy = self.policy
        if policy.escalate_after_us and not self.escalated and size >= ESCALATE_SIZE:
            wait_us = policy.escalate_after_us * max(ESCALATE_SIZE / size, _SOONEST)
            if at_us - self.since_us >= wait_us:
                self.escalated = True
                return [self._tell("escalated", row, at_us)]
        worse = self.peak >= 2.0 * self.told and at_us - self.told_us >= policy.resolve_after_us
        if policy.renotify_us and (worse or at_us - self.told_us >= policy.renotify_us):
            return [self._tell("updated", row, at_us)]
        return []

    def _tell(self, action: Literal["opened", "updated", "escalated"], row: int, at_us: int) -> Step:
        self.told, self.told_us = self.peak, at_us
        return self._step(action, row, at_us)

    def _resolve(self, row: int, at_us: int) -> Step:
        step = structs.replace(self._step("resolved", row, at_us), until_us=self.last_us)
        self.resolved_us = at_us
        self._reset()
        return step

    def _reset(self) -> None:
        self.state = "inactive"
        self.recent = []
        self.opening = self.offset_first = self.offset_last = -1
        self.peak = 0.0
        self.escalated = False
        self.values = self.weight = 0

    def _step(self, action: Literal["opened", "updated", "escalated", "resolved"], row: int, at_us: int) -> Step:
        return Step(
            action,
            row,
            at_us,
            self.since_us,
            self.opening,
            self.offset_first,
            self.offset_last,
            self.peak,
            self.escalated,
            self.values,
            self.weight,
        )

    def snapshot(self) -> list[Any]:
        """Return the state as a list of plain values."""
        return [
            self.state,
            self.seen,
            list(self.recent),
            self.since_us,
            self.last_us,
            self.opening,
            self.offset_first,
            self.offset_last,
            self.peak,
            [self.told, self.told_us, self.escalated, self.values, self.weight, self.resolved_us, self.flaps],
        ]

    def restore(self, state: list[Any]) -> None:
        """Take up what `snapshot` gave."""
        (
            self.state,
            self.seen,
            self.recent,
            self.since_us,
            self.last_us,
            self.opening,
            self.offset_first,
            self.offset_last,
            self.peak,
            (self.told, self.told_us, self.escalated, self.values, self.weight, self.resolved_us, self.flaps),
        ) = state
        self.recent = list(self.recent)


#: How far above its peak an episode that was none puts the limit, and the most that a limit is ever raised.
_SURELY = 1.1
_MOST_TOLERANCE = 100.0


def raised(tolerance: float, peak: float, *, most: float = _MOST_TOLERANCE) -> float:
    """Return by how much the limit is to be raised, so far by `tolerance`, that what came to `peak` is no anomaly."""
    return min(tolerance * max(1.0, _SURELY * peak), most)


def identity(*parts: object) -> str:
    """Return a short stable name for what the parts say together: 128 bits of SHA-256, in hex.

    The same parts give the same name after a crash and on another machine, so a consumer that has
    seen it can drop the copy.
    """
    joined = "\x1f".join(map(str, parts))
    return hashlib.sha256(joined.encode()).hexdigest()[:32]
