"""One input with the values that are right for it, and how far what the pipeline says is from them."""

from __future__ import annotations

import contextlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson
from msgspec import Struct, field

from streamproc import rules
from streamproc.events import Alert
from streamproc.models import ModelState
from streamproc.replay import JoinedReplay, Replay, Report
from streamproc.rules import RuleBook

#: Monday, 5 January 2026, 09:00 UTC, in seconds since the epoch.
BEGIN = 1_767_603_600.0

CONFIG = """\
version: 1
kafka: {brokers: "localhost:9092", predictions: [predictions], telemetry: [telemetry], labels: [labels]}
"""

#: A line of a stream: `p` for a prediction, `l` for a label, and the record.
Line = tuple[str, Any]


class Expect(Struct, frozen=True):
    """A signal's mean over the windows before the fault begins and after it; None where nothing is said of it."""

    signal: str
    before: float | None = None
    after: float | None = None
    model: str = ""  # empty: whichever model has it
    tolerance: float = 0.06


class Case(Struct, frozen=True, kw_only=True):
    """One input. `lines` makes it; the fault begins at two thirds, or there is none."""

    name: str
    says: str  # what is wrong with a monitor that fails here
    lines: Callable[[], Iterable[Line]]
    config: str = ""
    expect: tuple[Expect, ...] = ()
    alerts: frozenset[str] = frozenset()  # signals that must alert
    may: frozenset[str] = frozenset()  # and such as may
    models: frozenset[str] = frozenset()  # all there are, where named
    rejected: dict[str, int] = {}
    reads: str = ""  # the format that is read, for docs/inputs.md


class Outcome(Struct):
    """What became of a case: values that are wrong, alerts that did not come, and such as should not have."""

    wrong: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    false_alerts: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)


@contextlib.contextmanager
def observed() -> Iterator[dict[tuple[str, str], list[tuple[int, float, int]]]]:
    """Collect, by model and signal, the end, the value and the number of samples of each window that closes."""
    found: dict[tuple[str, str], list[tuple[int, float, int]]] = defaultdict(list)
    original = ModelState._observe_window

    def observe(self: ModelState, aggregate: Any, end_us: int, window: Any) -> list[Alert]:
        found[self.name, aggregate.signal].append((end_us, aggregate.value, aggregate.n))
        return original(self, aggregate, end_us, window)

    ModelState._observe_window = observe  # type: ignore[method-assign]
    try:
        yield found
    finally:
        ModelState._observe_window = original  # type: ignore[method-assign]


def run(case: Case) -> Outcome:
    """Replay a case, and return how it differs from what is right."""
    sides: dict[str, list[bytes]] = {"p": [], "l": []}
    for side, record in case.lines():
        sides[side].append(record if isinstance(record, bytes) else orjson.dumps(record))
    book = RuleBook(rules.parse(CONFIG + case.config))
    out = Outcome()
    with observed() as values:
        if sides["l"]:
            both = JoinedReplay(book)
            told = list(both.run_both(sides["p"], sides["l"]))
            out.report = both.report
        else:
            one = Replay(book, kind="predictions")
            told = list(one.run(sides["p"]))
            out.report = one.report
    opened = Counter(a.signal for a in told if isinstance(a, Alert) and a.action == "opened")
    out.silent = sorted(case.alerts - opened.keys())
    out.false_alerts = sorted(opened.keys() - case.alerts - case.may)
    for expect in case.expect:
        out.wrong += _differences(expect, values)
    report = out.report
    if case.models and set(report.models) != case.models:
        out.wrong.append(f"models {sorted(report.models)}, right are {sorted(case.models)}")
    if dict(report.rejected) != case.rejected:
        out.wrong.append(f"rejected {dict(report.rejected)}, right is {case.rejected}")
    if sum(report.accounts.values()) != report.came:
        out.wrong.append(f"{report.came} came, and {dict(report.accounts)} is known of them")
    return out


def _differences(expect: Expect, values: dict[tuple[str, str], list[tuple[int, float, int]]]) -> list[str]:
    rows = [
        row
        for (model, signal), found in values.items()
        if signal == expect.signal and expect.model in ("", model)
        for row in found
    ]
    if not rows:
        return [f"{expect.signal}: there is none"]
    ends = sorted({end for found in values.values() for end, *_ in found})
    begins = ends[0] + (ends[-1] - ends[0]) * 2 // 3
    parts = {
        "before": [v for end, v, _ in rows if end < begins],
        "after": [v for end, v, _ in rows if end > begins + 120_000_000],
    }
    wrong = []
    for when, right in (("before", expect.before), ("after", expect.after)):
        if right is None:
            continue
        if not parts[when]:
            wrong.append(f"{expect.signal} {when}: there is none, right is {right:g}")
        elif abs(mean := statistics.fmean(parts[when]) - right) > expect.tolerance * max(abs(right), 0.5):
            wrong.append(f"{expect.signal} {when}: {mean + right:.4g}, right is {right:g}")
    return wrong
