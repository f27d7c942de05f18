"""Parameters of detectors: declared as structs, checked by name, refused with what is allowed."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

__all__ = [
    "DetectorSpec",
    "Kind",
    "ParameterError",
    "Sensitivity",
    "allowed",
    "build",
    "closest",
    "require_kept",
]

#: What a detector is fed: real numbers (n,), zeros and ones (n,), or rows (n, columns).
Kind: TypeAlias = Literal["value", "boolean", "vector"]

#: How readily a detector alarms. It scales scores and never touches what is learned.
Sensitivity: TypeAlias = Literal["low", "medium", "high"]

_P = TypeVar("_P", bound=msgspec.Struct)


class ParameterError(ValueError):
    """A parameter is unknown, or its value is not allowed.

    Attributes
    ----------
    detector, parameter
        Where. `parameter` is empty when it is about several together.
    """

    def __init__(self, message: str, *, detector: str, parameter: str = "") -> None:
        super().__init__(message)
        self.detector = detector
        self.parameter = parameter


class DetectorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry says about one detector.

    budget says how a detector is held to so many false alarms a day: by `limit`, on evidence, or by `alpha`, a
    share of values; None where it is not. once: an incident scores 1.0 once, not while it lasts. structural
    names the parameters whose change needs new state; all others may be changed by `reconfigure` with what was
    learned kept.
    """

    name: str
    kind: Kind
    summary: str
    params: type[msgspec.Struct]
    structural: frozenset[str] = frozenset()
    budget: Literal["limit", "alpha"] | None = None
    once: bool = False


def closest(word: str, words: Iterable[str]) -> str:
    """Return ', did you mean "…"?' for the nearest of words, or an empty string."""
    match = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f'; did you mean "{match[0]}"?' if match else ""


@functools.cache
def _fields(params: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    # Reading annotations takes longer than making a detector.
    return {field.name: field for field in msgspec.structs.fields(params)}


def build(params: type[_P], values: Mapping[str, Any], *, detector: str) -> _P:
    """Check values against a parameter struct and make it.

    Raises
    ------
    ParameterError
        An unknown name, a missing one, a value of another type or out of bounds.

    Examples
    --------
    >>> from typing import Annotated
    >>> count = Annotated[int, msgspec.Meta(ge=3, description="values kept")]
    >>> Params = msgspec.defstruct("Params", [("window", count, 300)], frozen=True, kw_only=True)
    >>> build(Params, {"window": 10}, detector="robust_z")
    Params(window=10)
    >>> build(Params, {"windw": 10}, detector="robust_z")
    Traceback (most recent call last):
    ...
    detectors.params.ParameterError: robust_z: unknown parameter "windw"; did you mean "window"?
    >>> build(Params, {"window": 2}, detector="robust_z")
    Traceback (most recent call last):
    ...
    detectors.params.ParameterError: robust_z: window = 2 is not allowed; expected an integer >= 3
    """
    fields = _fields(params)
    for name, value in values.items():
        if name not in fields:
            hint = closest(name, fields)
            if not hint:
                hint = f"; known: {', '.join(sorted(fields))}" if fields else "; it takes none"
            raise ParameterError(
                f'{detector}: unknown parameter "{name}"{hint}', detector=detector, parameter=name
            )
        try:
            msgspec.convert(value, fields[name].type)
        except msgspec.ValidationError:
            pass
        else:
            if not isinstance(value, float) or math.isfinite(value):
                continue
        raise ParameterError(
            f"{detector}: {name} = {value!r} is not allowed; expected {allowed(fields[name].type)}",
            detector=detector,
            parameter=name,
        )
    for name, field in fields.items():
        if field.required and name not in values:
            raise ParameterError(
                f"{detector}: {name} is missing; expected {allowed(field.type)}",
                detector=detector,
                parameter=name,
            )
    try:
        return msgspec.convert(dict(values), params)
    except msgspec.ValidationError as error:  # what __post_init__ refuses
        raise ParameterError(f"{detector}: {error}", detector=detector) from error


def allowed(annotation: Any) -> str:
    """Say in words which values a parameter's type allows.

    Examples
    --------
    >>> from typing import Annotated, Literal
    >>> allowed(Annotated[float, msgspec.Meta(gt=0, lt=1)] | None)
    'a number > 0 and < 1, or null'
    >>> allowed(Literal["up", "down"])
    '"down" or "up"'
    """
    return _words(msgspec.inspect.type_info(annotation))


def _words(kind: msgspec.inspect.Type) -> str:
    match kind:
        case msgspec.inspect.Metadata(type=inner):
            return _words(inner)
        case msgspec.inspect.UnionType(types=types):
            words = [_words(one) for one in types if not isinstance(one, msgspec.inspect.NoneType)]
            if kind.includes_none:
                words.append("null")
            return ", or ".join(words)
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f'"{value}"' for value in values)
        case msgspec.inspect.FloatType() | msgspec.inspect.IntType():
            noun = "a number" if isinstance(kind, msgspec.inspect.FloatType) else "an integer"
            bounds = [
                f"{sign} {bound}"
                for sign, bound in ((">", kind.gt), (">=", kind.ge), ("<", kind.lt), ("<=", kind.le))
                if bound is not None
            ]
            return f"{noun} {' and '.join(bounds)}" if bounds else noun
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.StrType():
            return "text"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


def require_kept(spec: DetectorSpec, old: msgspec.Struct, new: msgspec.Struct) -> None:
    """Refuse new parameters that need new state.

    Raises
    ------
    ParameterError
        A structural parameter differs.
    """
    for name in sorted(spec.structural):
        if getattr(old, name) != getattr(new, name):
            raise ParameterError(
                f"{spec.name}: {name} cannot change from {getattr(old, name)!r} to {getattr(new, name)!r} "
                "with what was learned kept; make a new detector",
                detector=spec.name,
                parameter=name,
            )
