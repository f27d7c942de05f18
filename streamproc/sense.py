"""What a config says in good form and cannot mean, or hardly: limits, globs, placeholders, and what has no effect."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from streamproc import signals
from streamproc.config import BRIDGES, Bridge, Config, Duration, ModelBlock, Quantity, Report, SignalRule, suggested
from streamproc.signals import SignalSpec

__all__ = ["check"]

#: What alerts and incidents are labelled with, and what bridges know of them beside.
_LABELS = (
    "alertname", "model", "severity", "signal", "detector", "segment", "model_version", "env", "team", "scope",
    "status",
)  # fmt: skip
#: What a label is one of.
_VALUES: dict[str, tuple[str, ...]] = {"severity": ("critical", "warning", "info"), "status": ("firing", "resolved")}

_RUNBOOK = ("model", "signal")
_DASHBOARD = ("model", "signal", "from_ms", "to_ms")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

#: What a regular expression has and a glob of names would not.
_LIKE_A_REGEX = re.compile(r"^\^|\$$|\\[dwsbDWSB.]|\(\?|[-_]\.[*+]|^\.[*+]|\]\+|\)[*+?]")

_TOPICS = {"predictions": "kafka.predictions", "telemetry": "kafka.telemetry", "labels": "kafka.labels"}


def check(config: Config, report: Report) -> None:
    """Report what cannot be meant as an error (E05.), and what hardly is as a warning (W01.)."""
    _check_globs(config, report)
    _check_placeholders(config, report)
    _check_overridden(config.models, report)
    shared = config.defaults.signals if not isinstance(config.defaults.signals, str) else {}
    window = config.defaults.window
    _check_signals("defaults.signals", shared, {}, window, config, report)
    _check_wait("defaults", "for", config.defaults.for_, window, report)
    for i, block in enumerate(config.models):
        _check_signals(f"models[{i}].signals", block.signals, shared, block.window or window, config, report)
        if block.labels != type(block.labels)() and not config.kafka.labels:
            report(f"models[{i}].labels", "W010", "no topic of labels is read; name one in `kafka.labels`")


def _check_signals(
    path: str,
    rules: Mapping[str, SignalRule],
    below: Mapping[str, SignalRule],
    window: Duration,
    config: Config,
    report: Report,
) -> None:
    """Check what a block says of signals; below: what holds where it says nothing."""
    for name, rule in rules.items():
        spec = signals.find(name)
        if spec is None:
            continue  # said elsewhere
        place = f"{path}.{name}"
        _check_limits(place, rule, below.get(name), spec, report)
        if rule.mode != "off":
            _check_topics(place, spec, config, report)
        if spec.shape == "window":
            _check_wait(place, "for", rule.for_, window, report)


def _check_limits(place: str, rule: SignalRule, below: SignalRule | None, spec: SignalSpec, report: Report) -> None:
    found: dict[str, float] = {}
    for side in ("upper", "lower"):
        name = f"{side}_limit"
        own: Quantity | None = getattr(rule, name)
        said = own if own is not None or below is None else getattr(below, name)
        try:
            number = None if said is None else said.to(spec.unit, name=spec.name)
        except ValueError:
            continue  # said elsewhere
        if number is None:
            continue
        found[side] = number
        if spec.share and own is not None and not 0.0 <= number <= 1.0:
            hint = f"; did you mean {own.number:g}%?" if 1.0 < number <= 100.0 and not own.unit else ""
            report(f"{place}.{name}", "E050", f"{spec.name} is a share, from 0 to 1, and never {number:g}{hint}")
    if len(found) == 2 and found["lower"] >= found["upper"]:
        side = "lower_limit" if rule.lower_limit is not None else "upper_limit"
        lower, upper = f"{found['lower']:g}", f"{found['upper']:g}"
        message = f"no value is from {lower} to {upper}: `lower_limit` is to be below `upper_limit`"
        report(f"{place}.{side}", "E051", message)
    if rule.min_effect is not None and spec.share:
        try:
            least, _ = rule.min_effect.to(spec.unit, name=spec.name, share=True)
        except ValueError:
            return
        if least is not None and least > 1.0:
            report(f"{place}.min_effect", "E050", f"{spec.name} is a share and never changes by {least:g}")


def _check_topics(place: str, spec: SignalSpec, config: Config, report: Report) -> None:
    """Report a signal of events that nobody reads."""
    kafka = config.kafka
    read = {kind for kind in _TOPICS if getattr(kafka, kind)}
    if "quality" in spec.sources:
        missing, word = [kind for kind in ("predictions", "labels") if kind not in read], " and "
    else:
        missing, word = [] if read & set(spec.sources) else list(spec.sources), " or "
    if missing:
        names = word.join(_TOPICS[kind] for kind in missing)
        report(place, "W010", f"is never watched: it needs {names}, and no such topic is named")


def _check_wait(place: str, name: str, wait: Duration | None, window: Duration, report: Report) -> None:
    if wait is not None and 0 < wait.us < window.us:
        message = f"{wait} is shorter than a window of {window}: it waits for the next one, as {window} would"
        report(f"{place}.{name}", "W011", message)


# ----------------------------------------------------------------------------------------- globs


def _check_globs(config: Config, report: Report) -> None:
    discover = config.defaults.discover.models
    if isinstance(discover, str):
        _check_glob("defaults.discover.models", discover, report)
    else:
        for i, glob in enumerate(discover):
            _check_glob(f"defaults.discover.models[{i}]", glob, report)
        if not discover and not config.models:
            report("defaults.discover.models", "W013", "is empty, and there are no blocks of models: none is watched")
    for i, block in enumerate(config.models):
        _check_glob(f"models[{i}].match.model", block.match.model, report)
    for i, silence in enumerate(config.silences):
        place = f"silences[{i}].match"
        _check_glob(f"{place}.model", silence.match.model, report)
        _check_glob(f"{place}.signal", silence.match.signal, report, among=_signal_names())
        _check_glob(f"{place}.segment", silence.match.segment, report)
        segment = silence.match.segment
        if segment and "=" not in segment and not set("*?[") & set(segment):
            report(f"{place}.segment", "E052", f'"{segment}" matches nothing: a segment is written country=DE')
    for kind in BRIDGES:
        for name, bridge in getattr(config.bridges, kind).items():
            _check_match(f"bridges.{kind}.{name}.match", bridge, report)


def _check_match(place: str, bridge: Bridge, report: Report) -> None:
    ours = bridge.topic in ("alerts", "pages", "incidents")
    for label, glob in bridge.match.items():
        if label not in _LABELS:
            if not ours:
                continue  # whoever writes to that topic has labels of his own
            report(f"{place}.{label}", "E052", f"no alert has a label `{label}`; {suggested(label, _LABELS)}")
            continue
        among = _VALUES.get(label) or (_signal_names() if label == "signal" else None)
        _check_glob(f"{place}.{label}", glob, report, among=among)


def _signal_names() -> tuple[str, ...]:
    return (*signals.SIGNALS, "digest", "incident")


def _check_glob(place: str, glob: str, report: Report, *, among: Iterable[str] | None = None) -> None:
    """Report a glob that matches nothing, among names where these are known, or that seems a regular expression."""
    if not glob:
        report(place, "E052", '"" matches nothing; write "*" for all')
    elif "(?!)" in fnmatch.translate(glob):
        report(place, "E052", f'"{glob}" matches nothing: its [ ] allow no character')
    elif glob != glob.strip():
        report(place, "W013", f'"{glob}" begins or ends with a blank, as no name does')
    elif _LIKE_A_REGEX.search(glob):
        simple = re.sub(r"\\([.\w])", r"\1", glob.removeprefix("^").removesuffix("$"))
        simple = re.sub(r"\.[*+]", "*", simple)
        message = f'"{glob}" looks like a regular expression, and is taken as a glob; did you mean "{simple}"?'
        report(place, "W013", message)
    elif among is not None:
        # A member of a family goes by the family's name and its own.
        names = list(among)
        if not any(fnmatch.fnmatchcase(n, g) for n in names for g in (glob, glob.partition(":")[0])):
            report(place, "E052", f'"{glob}" matches nothing; {suggested(glob.strip("*?"), names)}')


# ----------------------------------------------------------------------------------------- placeholders


def _check_placeholders(config: Config, report: Report) -> None:
    for i, block in enumerate(config.models):
        _check_template(f"models[{i}].runbook", block.runbook, _RUNBOOK, report)
        _check_template(f"models[{i}].dashboard", block.dashboard, _DASHBOARD, report)
    for kind in BRIDGES:
        for name, bridge in getattr(config.bridges, kind).items():
            for key in ("generator_url", "dashboard_url"):
                _check_template(f"bridges.{kind}.{name}.{key}", getattr(bridge, key, None), _LABELS, report)


def _check_template(place: str, text: str | None, known: tuple[str, ...], report: Report) -> None:
    for name in dict.fromkeys(_PLACEHOLDER.findall(text or "")):
        if name not in known:
            hint = suggested(name, known, near="{{{}}}", each="{{{}}}")
            report(place, "E053", f"nothing stands for {{{name}}}; {hint}")


# ----------------------------------------------------------------------------------------- blocks over blocks


def _check_overridden(blocks: list[ModelBlock], report: Report) -> None:
    """Report blocks that take back what an earlier one says of the same models, or of some of its own."""
    said = [dict(_leaves(block)) for block in blocks]
    for j, later in enumerate(blocks):
        for i in range(j):
            first, last = blocks[i].match.model, later.match.model
            # A narrow block after a broad one is what blocks are for.
            if first != last and not fnmatch.fnmatchcase(first, last):
                continue
            both = [p for p in said[j] if p in said[i] and said[i][p] != said[j][p]]
            if both:
                shown = ", ".join(both[:4]) + (f" and {len(both) - 4} more" if len(both) > 4 else "")
                of = "as this one is" if first == last else "of some of whose models this one is too"
                report(
                    f"models[{j}].match.model",
                    "W012",
                    f"models[{i}] is for {first}, {of}; the later wins, which is this one: {shown}",
                )


def _leaves(block: ModelBlock) -> Iterator[tuple[str, Any]]:
    """Yield what a block says, field by field."""
    for name in block.__struct_fields__:
        value = getattr(block, name)
        if name in ("match", "signals", "labels") or value is None:
            continue
        yield name, value
    for name, limit in msgspec.structs.asdict(block.labels).items():
        if limit is not None:
            yield f"labels.{name}", limit
    for signal, rule in block.signals.items():
        for name in rule.__struct_fields__:
            value = getattr(rule, name)
            if value is not None and value != {}:
                yield f"signals.{signal}.{name.rstrip('_')}", repr(value)
