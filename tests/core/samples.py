"""The recorded payloads of `tests/payloads`, as records."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from streamproc.events import Header, RecordBatch

FOLDER = Path(__file__).parents[1] / "payloads"
NAMES = sorted(p.stem for p in FOLDER.glob("*.json"))

#: Monday, 5 January 2026, 09:00 UTC: when all samples were recorded.
BEGIN_MS = 1_767_603_600_000


class Sample:
    """One recorded payload."""

    def __init__(self, name: str) -> None:
        tree: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.about: str = tree["about"]
        self.topic: str = tree["topic"]
        self.key = None if tree["key"] is None else tree["key"].encode()
        self.headers: list[Header] = [(k, v.encode()) for k, v in tree["headers"].items()]
        coded = tree.get("value_base64")
        self.value = orjson.dumps(tree["value"]) if coded is None else base64.b64decode(coded)


def records(
    samples: Sequence[Sample], *, stamps_ms: Sequence[int] | None = None, first: int = 0, topic: str | None = None
) -> RecordBatch:
    n = len(samples)
    return RecordBatch(
        samples[0].topic if topic is None else topic,
        0,
        list(range(first, first + n)),
        [BEGIN_MS + 200] * n if stamps_ms is None else list(stamps_ms),
        [s.key for s in samples],
        [s.value for s in samples],
        [s.headers for s in samples],
    )
