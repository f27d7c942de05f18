"""Field maps: where a producer's JSON has what our types ask for.

A target is a field of ours, with dots for what is nested (`prediction.value`, `features.amount`). A path is a part of
JSONPath [^1]: `$` is the record, `.name` or `['any name']` a member, `[0]` an element; a member whose name has dots is
found without quotes too. A unit converts durations and times.

References
----------
[^1]: Gössner, S., Normington, G., Bormann, C., 2024. JSONPath: Query Expressions for JSON. RFC 9535.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from streamproc import coercion

__all__ = ["FieldMap", "FieldPath", "path_parts", "target_problem"]

#: How many of each unit a second has; what a duration or a time may be written in.
UNITS: Final = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0, "m": 1 / 60, "h": 1 / 3600}

#: Targets that a unit may be given for, all in seconds.
_SECONDS: Final = ("duration_s", "window_s", *coercion.TIMES)

#: Short names for targets.
_SHORT: Final = {"duration": "duration_s", "latency": "duration_s"}

#: Targets below which any name may stand.
_OPEN: Final = ("features", "segment", "attributes", "prediction.scores")

_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]|\[\"((?:[^\"\\]|\\.)*)\"\]")


class FieldPath(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a producer has a field, and the unit it counts in: ns, us, ms, s, m or h."""

    path: str
    unit: str | None = None


def path_parts(path: str) -> tuple[str | int, ...]:
    """Return the members and elements that a path goes through. Raise ValueError where it is no path.

    >>> path_parts("$.output.scores[0]['a.b']"), path_parts("score"), path_parts("$")
    (('output', 'scores', 0, 'a.b'), ('score',), ())
    """
    rest = path.removeprefix("$")
    if rest == path:
        rest = rest if rest.startswith("[") else f".{rest}"
    found: list[str | int] = []
    at = 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None:
            raise ValueError(f"`{path}` is no path; write `$.name`, `$.name[0]` or `$['any name']`")
        name, index, single, double = part.groups()
        quoted = single if single is not None else double
        found.append(int(index) if index is not None else name if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = part.end()
    return tuple(found)


def target_problem(target: str, kind: type) -> str | None:
    """Return what is wrong with a target of a type of ours, with the nearest one there is; None where it is one."""
    name = _SHORT.get(target, target)
    known = {f.encode_name: f.type for f in msgspec.structs.fields(kind)}
    if name in known or any(name.startswith(f"{o}.") and o.partition(".")[0] in known for o in _OPEN):
        return None
    nested = {
        f"{outer}.{f.encode_name}"
        for outer, type_ in known.items()
        for part in (type_, *getattr(type_, "__args__", ()))
        if isinstance(part, type) and issubclass(part, Struct)
        for f in msgspec.structs.fields(part)
    }
    if name in nested:
        return None
    near = difflib.get_close_matches(name, [*known, *nested, *_SHORT], n=1, cutoff=0.5)
    hint = f"; did you mean `{near[0]}`?" if near else f"; there are {', '.join(sorted(known))}"
    return f"`{target}` is no field of ours{hint}"


class _Rule(Struct, gc=False):
    target: tuple[str, ...]
    name: str
    path: str
    parts: tuple[str | int, ...]
    scale: float | None  # seconds for each of its unit
    seen: bool = False


class FieldMap:
    """The field map of one kind of record; targets to paths, as the config has them."""

    def __init__(self, fields: Mapping[str, str | FieldPath]) -> None:
        self._rules: list[_Rule] = []
        for target, where in fields.items():
            path, unit = (where, None) if isinstance(where, str) else (where.path, where.unit)
            name = _SHORT.get(target, target)
            # Flat names of conventions, such as `gen_ai.request.model`, are fields as they stand.
            nested = name.split(".") if name.partition(".")[0] in _NESTED else [name]
            scale = None if unit is None else 1.0 / UNITS[unit]
            self._rules.append(_Rule(tuple(nested), target, path, path_parts(path), scale))
        self._taken = {r.parts[0] for r in self._rules if r.parts}
        #: Records that the map was applied to.
        self.records = 0

    def first_names(self) -> set[str]:
        """Return the members of a record at which paths begin."""
        return {p for p in self._taken if isinstance(p, str)}

    def unseen(self) -> list[tuple[str, str]]:
        """Return targets, with their paths, that no record has had anything at yet."""
        return [(r.name, r.path) for r in self._rules if not r.seen]

    def apply(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Return a record's tree with our fields beside the producer's; what a path does not find stays as it is."""
        self.records += 1
        found = dict(tree)
        for rule in self._rules:
            value = self._whole(tree) if not rule.parts else _at(tree, rule.parts)
            if value is None:
                continue
            rule.seen = True
            if rule.scale is not None:
                value = _scaled(value, rule)
            _put(found, rule.target, value)
        return found

    def _whole(self, tree: dict[str, Any]) -> dict[str, Any]:
        """Return all of a record that no other path takes."""
        return {k: v for k, v in tree.items() if k not in self._taken}


#: Fields of ours that hold others.
_NESTED: Final = ("prediction", "features", "model", "usage", "segment", "error", "llm", "attributes")


def _at(tree: Any, parts: tuple[str | int, ...]) -> Any:
    node = tree
    for i, part in enumerate(parts):
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                return None
            node = node[part]
            continue
        if not isinstance(node, dict):
            return None
        if part in node:
            node = node[part]
            continue
        # A member whose own name has dots: the longest that there is.
        for end in range(len(parts), i + 1, -1):
            names = parts[i:end]
            if all(isinstance(p, str) for p in names) and (key := ".".join(map(str, names))) in node:
                return _at(node[key], parts[end:])
        return None
    return node


def _put(tree: dict[str, Any], target: tuple[str, ...], value: Any) -> None:
    node = tree
    for name in target[:-1]:
        inner = node.get(name)
        # What a producer has there of his own stays, beside what is mapped.
        node[name] = dict(inner) if isinstance(inner, dict) else {}
        node = node[name]
    node[target[-1]] = value


def _scaled(value: Any, rule: _Rule) -> Any:
    if isinstance(value, str):
        number = coercion.decimal(value)
        value = value if number is None else number
    if isinstance(value, bool) or not isinstance(value, int | float) or rule.scale is None:
        return value
    if rule.target[-1] in coercion.TIMES:
        return round(value * rule.scale * 1e6) if rule.scale >= 1e-6 else int(value) // 1000
    return value * rule.scale


def unit_problem(target: str, unit: str | None) -> str | None:
    """Return what is wrong with a unit given for a target, None where it is right or there is none."""
    if unit is None:
        return None
    if unit not in UNITS:
        return f"`{unit}` is no unit; there are {', '.join(UNITS)}"
    if _SHORT.get(target, target) not in _SECONDS:
        return f"`{target}` is no duration and no time, and takes no unit"
    return None
