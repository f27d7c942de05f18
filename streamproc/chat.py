"""Answers of chat servers in the form that OpenAI's API gave the field: what a call used, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import structs

from streamproc.events import LlmUsage

#: Reasons and choices of one answer that are looked at.
_MOST = 16


def usage(tree: Mapping[str, Any]) -> LlmUsage | None:
    """Return what a response, or one chunk of a streamed one, tells of its call; None where it is no such response.

    >>> usage({"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 4}}).finish_reasons
    ['length']
    """
    choices, used = tree.get("choices"), tree.get("usage")
    if not isinstance(choices, list) and not (isinstance(used, Mapping) and isinstance(tree.get("model"), str)):
        return None
    found = LlmUsage()
    found.finish_reasons = finish_reasons(choices) or None
    if isinstance(model := tree.get("model"), str):
        found.response_model = model
    if isinstance(used, Mapping):
        found.input_tokens = _count(used, "prompt_tokens", "input_tokens")
        found.output_tokens = _count(used, "completion_tokens", "output_tokens")
    return found


def finish_reasons(choices: Any) -> list[str]:
    """Return why each of an answer's choices ended, of those that say it."""
    found = []
    for choice in choices[:_MOST] if isinstance(choices, list) else ():
        reason = choice.get("finish_reason") if isinstance(choice, Mapping) else None
        if isinstance(reason, str) and reason:
            found.append(reason[:64])
    return found


def merged(before: LlmUsage | None, after: LlmUsage) -> LlmUsage:
    """Return what two chunks tell together; the later one's word goes."""
    if before is None:
        return after
    told = {n: v for n in after.__struct_fields__ if (v := getattr(after, n)) is not None}
    return structs.replace(before, **told)


def _count(used: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = used.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    return None
