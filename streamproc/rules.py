"""What a config means for one model: each signal with its detector and its alert policy.

Also the checks of a config that need the table of signals and the registry of detectors.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from detectors import registry
from detectors.protocol import Detector
from streamproc import config as config_module
from streamproc import sense, signals, topology
from streamproc.alerts import Policy
from streamproc.baseline import Table, from_table
from streamproc.config import Config, Effect, ModelBlock, ReferenceRule, Report, Sensitivity, SignalRule, suggested
from streamproc.errors import ConfigIssue
from streamproc.events import EVENTS, lasted
from streamproc.field_map import path_parts, target_problem, unit_problem
from streamproc.signals import Kind, SignalSpec
from streamproc.silences import Silence, Silences

#: What is watched of each segment where the config does not say.
SEGMENT_SIGNALS = frozenset(
    {"throughput", "error_rate", "latency_p95", "prediction_value", "class_share", "confidence", "missing_features"}
)

#: Segments of one dimension watched at most, where the config does not say.
MAX_SEGMENTS = 50

#: Alerts on evidence last until its logarithm is down to three quarters of the limit's, a tenth or less of it. Evidence
#: that rests, while nothing changes, at hundreds or thousands is about the root of a limit: what waited for that lasted
#: for days, and hid what came then.
_CLEAR = 0.75

#: How long a prediction waits for its label, and how many of one model do, where nobody says.
MAX_DELAY_US = 14 * 86_400_000_000
MAX_OUTSTANDING = 1_000_000


class Rule(Struct, frozen=True, kw_only=True):
    """One signal of one model, watched by one detector."""

    signal: str
    spec: SignalSpec
    detector: str
    params: dict[str, Any]
    sensitivity: Sensitivity
    severity: Literal["critical", "warning", "info"]
    direction: Literal["up", "down", "both"]
    min_effect: float
    relative_effect: float  # a part of what is expected
    lasting_effect: float  # the same, of the mean of the latest values
    min_samples: int
    shadow: bool
    policy: Policy
    budget: Literal["limit", "alpha"] | None  # the parameter that the budget sets, if it does
    owner: str
    runbook: str
    dashboard: str
    environment: str
    cost_per_affected: float | None
    window_us: int  # of a value of a window; 0 where a value is an event's own
    never: float | None  # from where on a value is an anomaly, whatever was learned
    lower: float | None  # limits that an operator set; what is beyond them no detector begins to learn from
    upper: float | None
    structure: str  # equal for two rules whose learned state is interchangeable
    params_hash: str

    def build(self, *, columns: int, seed: int) -> Detector:
        """Make this rule's detector, knowing nothing yet."""
        return registry.create(self.detector, self.params, columns=columns, sensitivity=self.sensitivity, seed=seed)


    def warm_up(self) -> int:
        """Return how many values of a new series give no score."""
        return self.build(columns=1, seed=0).warming()

    def first_alert(self, lateness_us: int) -> str:
        """Return in words when a new series can first alert, counted from its first event."""
        values = self.warm_up() + self.policy.k
        waited_us = self.policy.for_us
        if self.spec.shape == "window":
            after = lasted((values * self.window_us + lateness_us + waited_us) / 1e6)
            if self.never is not None:
                soon = lasted((self.policy.k * self.window_us + lateness_us + waited_us) / 1e6)
                after += f"; {soon} from {self.never:g} on"
            return after
        what = "events" if self.spec.shape in ("arrivals", "vector") else "values"
        return f"{values} {what}" + (f" and {lasted(waited_us / 1e6)}" if waited_us else "")


class Measure(Struct, frozen=True):
    """Where a model's baseline comes from: a table that was read, its first events, or what it was of late."""

    table: str | None = None
    first: int | None = None
    trailing_us: int = 0


class ModelRules(Struct, frozen=True, kw_only=True):
    """Everything a config says of one model, for one kind of event."""

    window_us: int
    lateness_us: int
    max_delay_us: int  # for a label
    max_outstanding: int
    rules: dict[str, list[Rule]]  # by signal; a family under its base name, its members under theirs
    segments: tuple[str, ...] = ()  # dimensions
    max_segments: int = 0  # watched of each
    of_segment: ModelRules | None = None  # what holds for each of them
    reference: Measure | None = None  # None: what the first events were
    task: str = "auto"  # what the model does; see `tasks`
    classes: tuple[str, ...] = ()  # in the order of shares that come as a list

    def of(self, signal: str) -> list[Rule]:
        """Return the rules of a signal; a member of a family takes its own or the family's."""
        found = self.rules.get(signal)
        if found is None:
            base = signal.partition(":")[0]
            found = [_renamed(r, signal) for r in self.rules.get(base, [])]
            self.rules[signal] = found
        return found

    def count(self) -> int:
        """Return how many rules there are, a family's counted once."""
        return sum(len(rules) for name, rules in self.rules.items() if ":" not in name)


def _renamed(rule: Rule, signal: str) -> Rule:
    return msgspec.structs.replace(rule, signal=signal)


class RuleBook:
    """The rules of every model under one config, worked out once for each.

    tables: rows to learn baselines from, by what `ReferenceRule.table` names them.
    """

    def __init__(self, config: Config, tables: Mapping[str, Table] | None = None) -> None:
        self.config = config
        self.silences = Silences(
            Silence(
                f"config-{i}",
                s.from_.us,
                s.to.us,
                s.match.model,
                s.match.signal,
                s.match.segment,
                s.learn,
                s.reason,
            )
            for i, s in enumerate(config.silences)
        )
        self._tables = dict(tables or {})
        self._told: dict[tuple[str, int], tuple[dict[str, Any], dict[str, Any]]] = {}
        #: Whether predictions are joined with labels: a topic of labels is named, and quality is watched.
        self.joins = bool(config.kafka.joins_topic()) and self._watches_quality()
        self._known: dict[tuple[Kind, tuple[int, ...]], ModelRules] = {}
        self._matching: dict[str, tuple[int, ...]] = {}

    def discovers(self, model: str) -> bool:
        """Return whether the config wants this model watched."""
        return self.config.discovers(model)

    def told(self, measure: Measure, *, max_features: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Return what `baseline.from_table` makes of a measure's table, None where it has none."""
        if measure.table is None or measure.table not in self._tables:
            return None
        key = (measure.table, max_features)
        if key not in self._told:
            self._told[key] = from_table(self._tables[measure.table], max_features=max_features)
        return self._told[key]

    def _watches_quality(self) -> bool:
        defaults = self.config.defaults.signals
        layers = [b.signals for b in self.config.models] + ([] if isinstance(defaults, str) else [defaults])
        off = {n for n, r in (defaults.items() if not isinstance(defaults, str) else ()) if r.mode == "off"}
        wanted = {n for n, s in signals.SIGNALS.items() if "quality" in s.sources}
        said = {n for layer in layers for n, r in layer.items() if r.mode != "off"}
        return bool(wanted - off or wanted & said)

    def for_model(self, kind: Kind, model: str) -> ModelRules:
        """Return the rules of a model; models matched by the same blocks share them."""
        blocks = self.config.blocks_for(model)
        key = (kind, tuple(i for i, b in enumerate(self.config.models) if b in blocks))
        rules = self._known.get(key)
        if rules is None:
            rules = self._known[key] = self._resolve(kind, model)
        return rules

    def _resolve(self, kind: Kind, model: str) -> ModelRules:
        defaults, blocks = self.config.defaults, self.config.blocks_for(model)
        layers: list[tuple[Mapping[str, SignalRule], Sensitivity | None]] = []
        if not isinstance(defaults.signals, str):
            layers.append((defaults.signals, None))
        layers += [(b.signals, b.sensitivity) for b in blocks]

        def last(name: str, default: Any) -> Any:
            return next((getattr(b, name) for b in reversed(blocks) if getattr(b, name) is not None), default)

        silence_after = last("silence_after", defaults.silence_after)
        wanted: dict[str, SignalSpec] = {n: s for n, s in signals.SIGNALS.items() if kind in s.sources}
        for layer, _ in layers:
            for name in layer:
                spec = signals.find(name)
                if spec is not None and kind in spec.sources:
                    wanted.setdefault(name.removesuffix(":*"), spec)
        rules: dict[str, list[Rule]] = {}
        for name, spec in wanted.items():
            keys = dict.fromkeys((spec.name, f"{spec.name}:*", name))
            merged, beside = _apart([layer[n] for layer, _ in layers for n in keys if n in layer], spec)
            watching: list[Rule] = []
            if merged.mode != "off" and (merged.mode is not None or merged.detector is not None or spec.on):
                params = dict(merged.params) or (dict(spec.params) if merged.detector in (None, spec.detector) else {})
                if spec.name == "silence" and silence_after is not None and "timeout_s" not in params:
                    params["timeout_s"] = silence_after.us / 1e6
                watching.append(self._rule(name, spec, merged, merged.detector or spec.detector, params, last))
                if merged.detector is None:
                    channels = (c for c in spec.channels if c not in beside)
                    watching += [self._rule(name, spec, merged, channel, {}, last) for channel in channels]
            watching += [self._rule(name, spec, each, d, dict(each.params), last) for d, each in beside.items()]
            # One limit for a signal: the live one where there is one, else what a shadow rule says.
            limited = next((each for each in (merged, *beside.values()) if _has_limits(each)), None)
            if limited is not None:
                watching.append(self._limits(name, spec, limited, last))
            if watching:
                rules[name] = watching
        labels = [defaults.labels, *(b.labels for b in blocks)]
        delays = [w.max_delay.us for w in labels if w.max_delay is not None]
        limits = [w.max_outstanding for w in labels if w.max_outstanding is not None]
        said: ReferenceRule | None = last("reference", None)
        found = ModelRules(
            window_us=last("window", defaults.window).us,
            lateness_us=last("lateness", defaults.lateness).us,
            max_delay_us=delays[-1] if delays else MAX_DELAY_US,
            max_outstanding=limits[-1] if limits else MAX_OUTSTANDING,
            rules=rules,
            task=last("task", "auto"),
            classes=tuple(last("classes", ())),
            reference=(
                None
                if said is None
                else Measure(said.table(), said.first, 0 if said.trailing is None else said.trailing.us)
            ),
        )
        dimensions = tuple(dict.fromkeys(last("segments", ()))) if kind == "predictions" else ()
        if not dimensions:
            return found
        asked = frozenset(n.removesuffix(":*") for n in last("segment_signals", SEGMENT_SIGNALS))
        own = {n: r for n, r in rules.items() if n in asked or n.partition(":")[0] in asked}
        return msgspec.structs.replace(
            found,
            segments=dimensions,
            max_segments=last("max_segments", MAX_SEGMENTS),
            of_segment=msgspec.structs.replace(found, rules=own),
        )

    def _limits(self, name: str, spec: SignalSpec, merged: SignalRule, last: Any) -> Rule:
        params = {side: bound for side, bound in _bounds(merged, spec).items() if bound is not None}
        merged = msgspec.structs.replace(
            merged, direction="both", min_effect=None, severity=merged.severity or "critical"
        )
        return self._rule(name, spec, merged, "limits", params, last)

    def _rule(
        self, name: str, spec: SignalSpec, merged: SignalRule, detector: str, params: dict[str, Any], last: Any
    ) -> Rule:
        defaults = self.config.defaults
        own = detector == spec.detector
        kept = merged.breaches
        k, n = (kept.k, kept.n) if kept is not None else spec.breaches if own else (1, 1)
        for_us = merged.for_ or defaults.for_
        resolve = merged.resolve_after or defaults.resolve_after
        window_us = last("window", defaults.window).us
        found = registry.spec(detector)
        if found.once:
            k, n = 1, 1
        checked = {k_: v for k_, v in params.items() if k_ in found.structural}
        severity = merged.severity or spec.severity
        bounds = _bounds(merged, spec)
        absolute, relative = None, None
        if merged.min_effect is not None:
            absolute, relative = merged.min_effect.to(spec.unit, name=spec.name, share=spec.share)
        effects = (relative, relative) if relative is not None else (0.0, 0.0)
        if relative is None and own:
            lasting = spec.lasting_effect if absolute is None else None
            effects = (spec.relative_effect, spec.relative_effect if lasting is None else lasting)
        return Rule(
            signal=name,
            spec=spec,
            detector=detector,
            params=params,
            sensitivity=merged.sensitivity or last("sensitivity", defaults.sensitivity),
            severity=severity,
            direction=merged.direction or (spec.direction if detector != "limits" else "both"),
            min_effect=absolute if absolute is not None else (spec.min_effect if own else 0.0),
            relative_effect=effects[0],
            lasting_effect=effects[1],
            min_samples=(
                merged.min_samples
                if merged.min_samples is not None
                else (math.ceil(defaults.min_samples * spec.samples) if spec.shape == "window" else 0)
            ),
            shadow=merged.mode == "shadow",
            policy=Policy(
                for_us=0 if found.once else for_us.us if for_us is not None else spec.for_us,
                # Long enough to span some windows, whatever their size.
                resolve_after_us=resolve.us if resolve is not None else max(5 * window_us, 5_000_000),
                k=k,
                n=n,
                clear=_CLEAR if found.budget == "limit" else 1.0,
                renotify_us=(merged.renotify or defaults.renotify).us,
                # What is critical already, or for information only, stays it.
                escalate_after_us=(merged.escalate_after or defaults.escalate_after).us if severity == "warning" else 0,
            ),
            # What is critical is never held back, and what an operator says of a limit holds.
            budget=(
                None
                if defaults.budget is None or severity == "critical" or params.keys() & {"limit", found.budget}
                else found.budget
            ),
            owner=last("owner", ""),
            runbook=last("runbook", ""),
            dashboard=last("dashboard", ""),
            environment=last("env", ""),
            cost_per_affected=last("cost_per_affected", None),
            window_us=window_us if spec.shape == "window" else 0,
            # Who sets a limit himself means that one.
            never=None if _has_limits(merged) or detector == "limits" else spec.never,
            lower=bounds["lower"],
            upper=bounds["upper"],
            structure=_hash([detector, sorted(checked.items()), window_us if spec.shape == "window" else 0]),
            params_hash=_hash([detector, sorted(params.items())]),
        )


def _merge(layers: list[SignalRule]) -> SignalRule:
    merged = SignalRule()
    for layer in layers:
        said = {
            f: v
            for f in SignalRule.__struct_fields__
            if (v := getattr(layer, f)) is not None and not (f == "params" and not v)
        }
        if layer.detector is not None and layer.detector != merged.detector:
            said.setdefault("params", {})  # another detector's parameters mean nothing to this one
        merged = msgspec.structs.replace(merged, **said)
    return merged


def _apart(layers: list[SignalRule], spec: SignalSpec) -> tuple[SignalRule, dict[str, SignalRule]]:
    """Merge what is said of a signal, the later over the earlier; return the rule, and rules to run beside it.

    A detector that is named with `mode: shadow` runs beside those that are live, by name; it replaces none, and only
    where it is itself the live one does it go into the shadow. What is said without a detector is said of both.
    """
    live, beside = SignalRule(), dict[str, SignalRule]()
    for layer in layers:
        named = layer.detector
        if layer.mode == "shadow" and named is not None and named != (live.detector or spec.detector):
            beside[named] = _merge([beside.get(named) or _without_detector(live), layer])
        elif named in beside and layer.mode != "on":
            assert named is not None
            beside[named] = _merge([beside[named], layer])
        else:
            if named is not None and (promoted := beside.pop(named, None)) is not None:
                live = _merge([live, promoted])
            live = _merge([live, layer])
            common = _without_detector(msgspec.structs.replace(layer, mode=None))
            beside = {d: _merge([each, common]) for d, each in beside.items() if layer.mode != "off"}
    return live, {d: each for d, each in beside.items() if each.mode != "off"}


def _without_detector(rule: SignalRule) -> SignalRule:
    """Return what a rule says whatever the detector."""
    return msgspec.structs.replace(rule, detector=None, params={}, upper_limit=None, lower_limit=None)


def _has_limits(rule: SignalRule) -> bool:
    return rule.upper_limit is not None or rule.lower_limit is not None


def _bounds(rule: SignalRule, spec: SignalSpec) -> dict[str, float | None]:
    """Return the limits that a rule sets, in the signal's unit."""
    said = {"lower": rule.lower_limit, "upper": rule.upper_limit}
    return {side: None if limit is None else limit.to(spec.unit, name=spec.name) for side, limit in said.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:12]


def detectors_of(config: Config) -> list[str]:
    """Return the detectors that watch something under a config, by default or because it names them."""
    kinds = [kind for kind in ("predictions", "telemetry", "labels") if getattr(config.kafka, kind)]
    kinds += ["quality"] if config.kafka.joins_topic() else []
    found: set[str] = set()
    for spec in signals.SIGNALS.values():
        if spec.on and any(kind in spec.sources for kind in kinds):
            found.update((spec.detector, *spec.channels))
    layers = [block.signals for block in config.models]
    if not isinstance(config.defaults.signals, str):
        layers.append(config.defaults.signals)
    for layer in layers:
        for name, rule in layer.items():
            named = signals.find(name)
            if rule.detector is not None:
                found.add(rule.detector)
            elif named is not None and rule.mode != "off":
                found.update((named.detector, *named.channels))
            if _has_limits(rule):
                found.add("limits")
    return sorted(found)


def load(path: str | Path, *, env: Mapping[str, str], doubts: list[ConfigIssue] | None = None) -> Config:
    """Read a config and check it down to signals and detectors; add what is doubtful to `doubts`.

    Raise `ConfigError` with every mistake found.
    """
    return config_module.load(path, env=env, checks=_checks(), doubts=doubts)


def parse(
    text: str,
    *,
    name: str = "<config>",
    env: Mapping[str, str] | None = None,
    doubts: list[ConfigIssue] | None = None,
) -> Config:
    """Read a config from text, as `load` does from a file."""
    return config_module.parse(text, name=name, env=env, checks=_checks(), doubts=doubts)


def _checks() -> list[config_module.Check]:
    return [topology.check, check, _check_fields, sense.check]


def check(config: Config, report: Report) -> None:
    """Report signals there are not, detectors that do not fit them, and units that mean nothing."""
    blocks: list[tuple[str, Mapping[str, SignalRule]]] = [
        (f"models[{i}].signals", b.signals) for i, b in enumerate(config.models)
    ]
    if not isinstance(config.defaults.signals, str):
        blocks.append(("defaults.signals", config.defaults.signals))
    for i, block in enumerate(config.models):
        _check_segments(f"models[{i}]", block, report)
        if block.reference is not None:
            _check_reference(f"models[{i}].reference", block.reference, report)
    for path, rules in blocks:
        for name, rule in rules.items():
            spec = signals.find(name)
            if spec is None:
                report(f"{path}.{name}", "E030", f"there is no signal `{name}`; {suggested(name, signals.names())}")
            else:
                _check_rule(f"{path}.{name}", rule, spec, report)


def _check_fields(config: Config, report: Report) -> None:
    """Report targets, paths and units of field maps that are none."""
    for kind, fields in config.fields.items():
        for target, where in fields.items():
            path, unit = (where, None) if isinstance(where, str) else (where.path, where.unit)
            place = f"fields.{kind}.{target}"
            if (problem := target_problem(target, EVENTS[kind])) is not None:
                report(place, "E040", problem)
            try:
                parts = path_parts(path)
            except ValueError as e:
                report(place, "E041", str(e))
                continue
            if not parts and target not in ("features", "attributes", "segment"):
                report(place, "E041", f"`{path}` is the whole record, which only `features` can take")
            if (problem := unit_problem(target, unit)) is not None:
                report(place, "E042", problem)


def _check_reference(path: str, said: ReferenceRule, report: Report) -> None:
    sources = [n for n in ("file", "mlflow", "first", "trailing") if getattr(said, n) is not None]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        report(path, "E035", f"takes one of file, mlflow, first and trailing, and has {found}")
    if said.file is not None and not said.file.lower().endswith((".csv", ".parquet")):
        report(f"{path}.file", "E035", f"`{said.file}` is neither .csv nor .parquet")
    columns = [n for n in ("prediction", "label") if getattr(said, n) is not None]
    if columns and said.file is None:
        report(f"{path}.{columns[0]}", "E035", "names a column, and there is no `file`")
    if said.trailing is not None and said.trailing.us < 60_000_000:
        report(f"{path}.trailing", "E025", "a trailing reference is of at least 1m")


def _check_segments(path: str, block: ModelBlock, report: Report) -> None:
    for i, name in enumerate(block.segment_signals or ()):
        spec = signals.find(name.removesuffix(":*"))
        if spec is None or "predictions" not in spec.sources:
            near = difflib.get_close_matches(name, signals.names(), n=1)
            hint = f"did you mean `{near[0]}`?" if spec is None and near else "write the name of one of predictions"
            report(f"{path}.segment_signals[{i}]", "E030", f"there is no signal `{name}` of segments; {hint}")
    if block.segment_signals is not None and not block.segments:
        report(f"{path}.segment_signals", "E034", "says what to watch of segments, and there is no `segments`")


def _check_rule(path: str, rule: SignalRule, spec: SignalSpec, report: Report) -> None:
    for name in ("min_effect", "upper_limit", "lower_limit"):
        quantity = getattr(rule, name)
        if quantity is not None:
            try:
                if isinstance(quantity, Effect):
                    quantity.to(spec.unit, name=spec.name, share=spec.share)
                else:
                    quantity.to(spec.unit, name=spec.name)
            except ValueError as e:
                report(f"{path}.{name}", "E012", str(e))
    if _has_limits(rule) and spec.shape in ("vector", "arrivals"):
        report(f"{path}", "E033", f"{spec.name} takes no limits; it has no single value")
    detector = rule.detector or spec.detector
    try:
        kind = registry.spec(detector).kind
        if kind != spec.detector_kind and not (kind == "value" and spec.detector_kind == "boolean"):
            fits = ", ".join(
                n for n in registry.names() if n != "silence" and registry.spec(n).kind == spec.detector_kind
            )
            report(
                f"{path}.detector",
                "E031",
                f"`{detector}` watches a {kind} and {spec.name} is a {spec.detector_kind}; these fit: {fits}",
            )
        elif (detector == "silence") != (spec.shape == "arrivals"):
            report(f"{path}.detector", "E031", "`silence` watches arrivals and only the signal `silence` is that")
        else:
            registry.create(detector, rule.params, columns=2 if kind == "vector" else 1)
    except registry.UnknownDetectorError as e:
        report(f"{path}.detector", "E031", str(e))
    except registry.ParameterError as e:
        at = f"{path}.params.{e.parameter}" if e.parameter in rule.params else f"{path}.params"
        report(at if rule.params else f"{path}.detector", "E032", str(e))
