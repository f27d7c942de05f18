"""False alerts of a whole fleet against its budget, and what the budget costs in delay, by kind of signal.

--signals signals of a kind, a value a minute for --days days, each watched by `drift` (`rate` for zeros and ones) with
the limit that `streamproc.budget` gives for --allowed false alerts a day over the fleet. Alerts are counted as the
worker opens them, by the same state machine. Nothing changes in these signals but their noise, season or trend, so
that every alert is false. `day one` is how many of them came in the first day.

Then --shifted signals of each kind are shifted, by half a standard deviation of their noise and by a whole one,
at the beginning of the fifth day: the median delay to the first alert, in values, and the share that never alert.
A rate is shifted by so many standard deviations of one zero or one.

`others` are the same signals under river's detectors with their defaults, a twentieth as many: what an alert budget
would be spent on without one.

`telemetry` has the two channels of a metric, each with its own budget: `spike`, two values of three, and `pattern`,
a tenth as many signals. `free` is what each alarms at its default limit with no budget. `caught` is the share of
signals in which it sees what it is for, planted once in the sixth day: three values 12 standard deviations up for
`spike`, an hour 2 up for `pattern`. In a heavy-tailed signal such a thing is everyday, and not to be caught.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from river import drift as river_drift
from river.drift import binary

from detectors import registry
from streamproc.alerts import Lifecycle, Policy
from streamproc.budget import evidence_limit, tail_share

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

A_DAY = 1440
MINUTE_US = 60_000_000
POLICY = Policy(resolve_after_us=5 * MINUTE_US, clear=0.75)

#: (generator, signals, values a signal, by, at) → (signals, values); shifted by so many deviations of the noise from
#: the row `at` on.
Make = Callable[[np.random.Generator, int, int, float, int], F64]


def _stepped(n: int, by: float, at: int) -> F64:
    return np.where(np.arange(n) >= at, by, 0.0)


def _angle(n: int) -> F64:
    return 2.0 * np.pi * np.arange(n) / A_DAY


def _season(rng: np.random.Generator, m: int, n: int) -> F64:
    """Return (m, n) daily rhythms of two waves, each signal with its own size and hour, about 0."""
    size, second = rng.uniform(0.5, 3.0, (m, 1)), rng.uniform(0.0, 0.5, (m, 1))
    one, two = rng.uniform(0.0, 2.0 * np.pi, (2, m, 1))
    return size * (np.sin(_angle(n) + one) + second * np.sin(2.0 * _angle(n) + two))


def normal(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    return rng.normal(size=(m, n)) + _stepped(n, by, at)


def lognormal(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    sd = np.sqrt((np.e - 1.0) * np.e)
    return np.exp(rng.normal(size=(m, n))) + sd * _stepped(n, by, at)


def heavy_tailed(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    return rng.standard_t(3.0, size=(m, n)) + np.sqrt(3.0) * _stepped(n, by, at)


def bernoulli(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    p = rng.uniform(0.01, 0.3, (m, 1))
    return (rng.random((m, n)) < p + np.sqrt(p * (1.0 - p)) * _stepped(n, by, at)).astype(np.float64)


def bursty_bernoulli(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    """Return zeros and ones in runs: after a one, another is likelier by a half."""
    p = rng.uniform(0.01, 0.3, (m, 1))
    chances, draws = p + np.sqrt(p * (1.0 - p)) * _stepped(n, by, at), rng.random((m, n))
    values = np.zeros((m, n))
    for i in range(1, n):
        values[:, i] = draws[:, i] < chances[:, i] * 0.5 + 0.5 * values[:, i - 1]
    return values


def _autoregressive(rng: np.random.Generator, m: int, n: int, phi: float) -> F64:
    values = rng.normal(size=(m, n))
    values[:, 1:] *= np.sqrt(1.0 - phi * phi)
    for i in range(1, n):
        values[:, i] += phi * values[:, i - 1]
    return values


def autoregressive(phi: float) -> Make:
    def make(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
        return _autoregressive(rng, m, n, phi) + _stepped(n, by, at)

    return make


def seasonal(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    return _season(rng, m, n) + rng.normal(size=(m, n)) + _stepped(n, by, at)


def trending(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    slope = rng.uniform(-1.0, 1.0, (m, 1)) / A_DAY
    return slope * np.arange(n) + rng.normal(size=(m, n)) + _stepped(n, by, at)


def counts(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    rate = rng.uniform(0.5, 8.0, (m, 1))
    return rng.poisson(rate + np.sqrt(rate) * _stepped(n, by, at)).astype(np.float64)


def sparse(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    """Return what is mostly 0, else exponential: a shift makes the rest more frequent."""
    p = rng.uniform(0.01, 0.1, (m, 1))
    there = rng.random((m, n)) < p + np.sqrt(p * (1.0 - p)) * _stepped(n, by, at)
    return np.where(there, rng.exponential(size=(m, n)), 0.0)


def constant(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    """Return what is always the same; it has no deviation, so it is shifted by so many thousandths."""
    return rng.uniform(-10.0, 10.0, (m, 1)) + 1e-3 * _stepped(n, by, at) * np.ones((m, 1))


def throughput(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    """Return requests a minute with a daily rhythm: their noise goes with their number."""
    rate, depth = rng.uniform(5.0, 200.0, (m, 1)), rng.uniform(0.2, 0.8, (m, 1))
    hour = rng.uniform(0.0, 6.28, (m, 1))
    mean = rate * (1.0 + depth * np.sin(_angle(n) + hour))
    return rng.poisson(mean + np.sqrt(rate) * _stepped(n, by, at)).astype(np.float64)


def latency(rng: np.random.Generator, m: int, n: int, by: float, at: int) -> F64:
    """Return what is skewed, and wider by day than by night."""
    depth, hour = rng.uniform(0.1, 0.6, (m, 1)), rng.uniform(0.0, 6.28, (m, 1))
    level = 0.1 * np.exp(depth * np.sin(_angle(n) + hour))
    return level * (np.exp(0.3 * rng.normal(size=(m, n))) + 0.3 * _stepped(n, by, at))


#: What the issue of the budget is held to first, then what else a fleet has.
KINDS: dict[str, Make] = {
    "normal": normal,
    "lognormal": lognormal,
    "bernoulli": bernoulli,
    "ar(.5)": autoregressive(0.5),
    "ar(.9)": autoregressive(0.9),
    "seasonal": seasonal,
    "mixed": normal,  # a share of each of the others; see `blocks`
    "heavy-tailed": heavy_tailed,
    "counts": counts,
    "sparse": sparse,
    "constant": constant,
    "trending": trending,
    "throughput": throughput,
    "latency": latency,
    "bursty 0/1": bursty_bernoulli,
}
BOOLEAN = ("bernoulli", "bursty 0/1")
OTHERS: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
    "ADWIN": (lambda _: river_drift.ADWIN(), lambda _: river_drift.ADWIN()),
    "PageHinkley": (lambda _: river_drift.PageHinkley(), lambda _: binary.HDDMA()),
}


def blocks(kind: str, signals: int, n: int, seed: int, by: float = 0.0, at: int = 0) -> Any:
    """Yield (boolean, values (m, n)) until there are `signals` of a kind."""
    if kind == "mixed":
        names = [name for name in KINDS if name != "mixed"]
        for k, name in enumerate(names):
            yield from blocks(name, (signals + len(names) - 1 - k) // len(names), n, seed + 1000, by, at)
        return
    place = list(KINDS).index(kind)
    for start in range(0, signals, 100):
        rng = np.random.default_rng((seed, place, start))
        yield kind in BOOLEAN, KINDS[kind](rng, min(100, signals - start), n, by, at)


def ours(values: F64, times: I64, offsets: I64, *, boolean: bool, limit: float, seed: int) -> list[int]:
    """Return the rows at which an alert opened."""
    detector = registry.create("rate" if boolean else "drift", {"limit": limit}, seed=seed)
    scores = detector.score(values, times)
    breach = scores >= 1.0
    if not breach.any():
        return []
    steps = Lifecycle(POLICY).observe(breach, scores, times, offsets)
    return [step.row for step in steps if step.action == "opened"]


class Channel(NamedTuple):
    """One of the two detectors of a metric: what an alert needs, what is planted, and how many signals there are."""

    detector: str
    policy: Policy
    size: float
    length: int
    share: float


CHANNELS = (
    Channel("spike", Policy(resolve_after_us=5 * MINUTE_US, k=2, n=3), 12.0, 3, 1.0),
    Channel("pattern", Policy(resolve_after_us=5 * MINUTE_US), 2.0, 60, 0.1),
)


def telemetry(
    channel: Channel, kind: str, signals: int, times: I64, offsets: I64, *, days: int, allowed: float, seed: int
) -> dict[str, float]:
    """Return false alerts a day with and without a budget, and the share of planted faults caught with it."""
    n, few = len(times), max(1, round(signals * channel.share))
    alpha = tail_share(
        observations_per_day=A_DAY * signals, allowed_per_day=allowed, breaches=(channel.policy.k, channel.policy.n)
    )
    at = round(min(5.5, days - 0.5) * A_DAY)
    found = {"a_day": 0, "free": 0, "caught": 0}
    watched = 0
    for boolean, values in blocks(kind, few, n, seed):
        if boolean:
            continue
        watched += len(values)
        for k, row in enumerate(values):

            def opened(row: F64, params: dict[str, Any]) -> list[int]:
                scores = registry.create(channel.detector, params).score(row, times)
                breach = scores >= 1.0
                if not breach.any():
                    return []
                steps = Lifecycle(channel.policy).observe(breach, scores, times, offsets)
                return [step.row for step in steps if step.action == "opened"]

            quiet = opened(row, {"alpha": alpha})
            found["a_day"] += len(quiet)
            if k % 10 == 0:
                found["free"] += 10 * len(opened(row, {}))
            planted = row.copy()
            planted[at : at + channel.length] += channel.size * row.std()
            loud = [r for r in opened(planted, {"alpha": alpha}) if at <= r < at + channel.length + 20]
            found["caught"] += bool(loud) and not any(at <= r < at + channel.length + 20 for r in quiet)
    scale = signals / watched / days
    return {
        "a_day": round(found["a_day"] * scale, 1),
        "free": round(found["free"] * scale, 1),
        "caught": round(found["caught"] / watched, 3),
    }


def rivers(make: Callable[[int], Any], values: F64, times: I64, offsets: I64, *, seed: int) -> list[int]:
    detector = make(seed)
    breach = np.zeros(len(values), dtype=bool)
    for i, value in enumerate(values.tolist()):
        detector.update(value)
        breach[i] = detector.drift_detected
    steps = Lifecycle(POLICY).observe(breach, breach.astype(np.float64), times, offsets)
    return [step.row for step in steps if step.action == "opened"]


def run(
    *, signals: int = 1000, days: int = 7, allowed: float = 5.0, shifted: int = 20, seed: int = 1,
    kinds: tuple[str, ...] = tuple(KINDS), baselines: bool = True, table: bool = False,
) -> dict[str, Any]:  # fmt: skip
    n = days * A_DAY
    times = np.arange(n, dtype=np.int64) * MINUTE_US
    offsets = np.arange(n, dtype=np.int64)
    limit = evidence_limit(observations_per_day=A_DAY * signals, allowed_per_day=allowed)
    for name in ("drift", "rate"):  # compile before the clock runs
        registry.create(name).score(np.zeros(3), np.arange(3))
    result: dict[str, Any] = {"limit": limit, "false_alerts_per_day": {}, "delay": {}, "missed": {}, "others": {}}
    if table:
        print(f"{signals} signals, a value a minute, {days} days; allowed {allowed:g} false alerts a day: "
              f"limit {limit:,.0f}\n")  # fmt: skip
        print(f"{'':14s} {'false alerts':^26s} {'delay, never':^26s} {'':12s}"
              f"{'false alerts a day' if baselines else '':>26s}")  # fmt: skip
        head = ("a day", "day one", "+.5 sd", "+1 sd", "µs", *(OTHERS if baselines else ()))
        print(f"{'':14s}", *(f"{title:>12s}" for title in head))
    for kind in kinds:
        opened, first, done, began = 0, 0, 0, time.perf_counter()
        generated = 0.0
        for boolean, values in timed(blocks(kind, signals, n, seed)):
            generated += timed.took
            for row in values:
                rows = ours(row, times, offsets, boolean=boolean, limit=limit, seed=done)
                opened, first, done = opened + len(rows), first + sum(r < A_DAY for r in rows), done + 1
        us = (time.perf_counter() - began - generated) / (done * n) * 1e6
        rate = opened / days
        result["false_alerts_per_day"][kind] = round(rate, 2)
        at = min(4, days - 1) * A_DAY
        delays = {
            name: delay_of(kind, by, shifted, n, seed, at, times, offsets, limit)
            for name, by in (("0.5", 0.5), ("1", 1.0))
        }
        result["delay"][kind] = {name: median for name, (median, _) in delays.items()}
        result["missed"][kind] = {name: missed for name, (_, missed) in delays.items()}
        cells = [f"{rate:.1f}", f"{first:d}", *(_cell(*one) for one in delays.values()), f"{us:.2f}"]
        if baselines:
            few = max(1, signals // 20)
            found: dict[str, int] = dict.fromkeys(OTHERS, 0)
            for boolean, values in blocks(kind, few, n, seed):
                for row in values:
                    for name, makers in OTHERS.items():
                        found[name] += len(rivers(makers[boolean], row, times, offsets, seed=0))
            result["others"][kind] = {
                name: round(count * signals / few / days, 1) for name, count in found.items()
            }
            cells += [f"{one:.0f}" for one in result["others"][kind].values()]
        if table:
            print(f"{kind:14s}", *(f"{cell:>12s}" for cell in cells), flush=True)
    result["telemetry"] = {channel.detector: {} for channel in CHANNELS}
    if table:
        print(f"\nthe two channels of a metric\n{'':14s}", *(f"{c.detector:^38s}" for c in CHANNELS))
        print(f"{'':14s}", *(f"{title:>12s}" for _ in CHANNELS for title in ("a day", "unbudgeted", "caught")))
    for kind in kinds:
        if kind in BOOLEAN:
            continue
        for channel in CHANNELS:
            result["telemetry"][channel.detector][kind] = telemetry(
                channel, kind, signals, times, offsets, days=days, allowed=allowed, seed=seed
            )
        if table:
            rows = [result["telemetry"][channel.detector][kind] for channel in CHANNELS]
            print(f"{kind:14s}", *(f"{cell:>12g}" for one in rows for cell in one.values()), flush=True)
    return {**result, "signals": signals, "days": days, "allowed": allowed}


class _Timed:
    """Iterate, noting how long each item took to make."""

    took = 0.0

    def __call__(self, items: Any) -> Any:
        items = iter(items)
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self.took = time.perf_counter() - began
            yield item


timed = _Timed()


def delay_of(
    kind: str, by: float, shifted: int, n: int, seed: int, at: int, times: I64, offsets: I64, limit: float
) -> tuple[float | None, float]:
    """Return the median delay in values, None where most never alert, and the share that never do."""
    found = []
    for boolean, values in blocks(kind, shifted, n, seed + 1, by, at):
        for k, row in enumerate(values):
            rows = [r for r in ours(row, times, offsets, boolean=boolean, limit=limit, seed=k) if r >= at]
            found.append(rows[0] - at + 1 if rows else np.inf)
    median = float(np.median(found))
    return (median if np.isfinite(median) else None), round(float(np.mean(np.isinf(found))), 3)


def _cell(delay: float | None, missed: float) -> str:
    text = "never" if delay is None else f"{delay:.0f}"
    return f"{text}, {missed:.0%}" if missed > 0 else text
