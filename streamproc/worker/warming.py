"""Which models cannot alert on all of their signals yet, and how long that takes: for the log, metrics and pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from streamproc.events import lasted

if TYPE_CHECKING:
    # With it comes numba, as in `engine`.
    from streamproc.pipeline import Pipeline
    from streamproc.rules import RuleBook
    from streamproc.signals import Kind

#: Models looked at in one go: a detector is asked in some tenth of a microsecond, and a model has dozens.
_AT_ONCE = 50

#: Signals that a text names; of more it says how many.
_NAMED = 6


class Warming:
    """Models of which a series gives no scores yet.

    signals: of each such signal the number of series, and how many values, and how many microseconds of windows, the
    last of them needs at most; 0 microseconds where values come as events do.
    """

    def __init__(self) -> None:
        self.models = 0
        self.of = 0
        self.signals: dict[str, tuple[int, int, int]] = {}

    def look(self, pipelines: Iterable[Pipeline]) -> Iterator[None]:
        """Look at all models, some at a time: the caller lets others run in between."""
        from streamproc.models import add_warming

        for pipeline in pipelines:
            if pipeline.kind == "alerts":
                continue
            for count, model in enumerate(list(pipeline.models.values()), start=1):
                self.of += 1
                found = model.warming()
                self.models += bool(found)
                add_warming(self.signals, found)
                if count % _AT_ONCE == 0:
                    yield

    def __str__(self) -> str:
        """Return it in a line: how many models, and what the last signal waits for."""
        if not self.of:
            return "no model yet"
        if not self.models:
            return f"all signals of {self.of} models can alert"
        slowest = sorted(self.signals.items(), key=lambda s: (-s[1][2], -s[1][1], s[0]))
        said = [
            f"{name} in {lasted(us / 1e6)}" if us else f"{name} in {values} values"
            for name, (_, values, us) in slowest[:_NAMED]
        ]
        more = f" and {len(slowest) - _NAMED} more signals" if len(slowest) > _NAMED else ""
        return f"{self.models} of {self.of} models warm up: {', '.join(said)}{more}, where enough events come"


def first_alerts(book: RuleBook) -> list[str]:
    """Return when each signal of a new model can first alert, those of equal length in a line."""
    kinds: list[Kind] = [k for k in ("predictions", "telemetry", "labels") if getattr(book.config.kafka, k)]
    kinds += ["quality"] if book.joins else []
    found: dict[str, list[str]] = {}
    for kind in kinds:
        rules = book.for_model(kind, "*")
        for rule in (r for each in rules.rules.values() for r in each if not r.shadow):
            name = rule.signal if rule.detector == rule.spec.detector else f"{rule.signal} by {rule.detector}"
            names = found.setdefault(rule.first_alert(rules.lateness_us), [])
            if name not in names:
                names.append(name)
    most = sorted(found.items(), key=lambda f: -len(f[1]))
    return [
        f"{', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}: {when}"
        for when, names in most
    ]
