"""What real libraries emit is what is read: each makes the same calls, traced as its manual says.

Each runs in a process of its own. What they send to a collector is published as one would publish it, in OTLP's
protobuf and in its JSON.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.truth.case import observed
from streamproc import rules
from streamproc.events import Alert, RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.replay import Replay
from streamproc.rules import RuleBook
from tests.core.make import MINIMUM
from tests.real.server import ASKED, EMBEDDED, EMBEDS, TOKENS_IN, TOKENS_OUT, Server, running

pytestmark = pytest.mark.real

#: Where `make .cache/real/.installed` puts them.
PYTHON = Path(os.environ.get("STREAMPROC_REAL", Path(__file__).parents[2] / ".cache" / "real")) / "bin" / "python"

BOOK = RuleBook(rules.parse(MINIMUM + "defaults: {window: 1m, min_samples: 1}\n"))

#: By model and signal: of how many calls, and their sum.
Tally = dict[tuple[str, str], tuple[int, float]]

#: Four answers to five requests, one of them cut off; and one embedding of two.
RIGHT: Tally = {
    (ASKED, "error_rate"): (5, 1),
    (ASKED, "tokens_in"): (4, 4 * TOKENS_IN),
    (ASKED, "tokens_out"): (4, 4 * TOKENS_OUT),
    (ASKED, "truncated_rate"): (4, 1),
    (ASKED, "unknown_finish_reasons"): (4, 0),
    (EMBEDS, "error_rate"): (2, 1),
    (EMBEDS, "tokens_in"): (1, EMBEDDED),
    (EMBEDS, "embedding_failure_rate"): (2, 1),
}

_OF_EMBEDDINGS: Tally = {key: (0, 0) for key in RIGHT if key[0] == EMBEDS}

#: What each library tells otherwise.
OTHERWISE: dict[str, Tally] = {
    # It does not say how a streamed answer ended.
    "opentelemetry": {(ASKED, "truncated_rate"): (3, 1), (ASKED, "unknown_finish_reasons"): (3, 0)},
    "openinference": {},
    # A chain around each call, which fails with it and is no call; it traces no embeddings.
    "langchain": {**_OF_EMBEDDINGS, ("shop", "agent_failure_rate"): (5, 1)},
    "mlflow": {},
    "litellm": {},
}


#: Requests that reach the server. LiteLLM repeats an embedding that was refused, whatever it is told: findings/.
REQUESTS = {"langchain": 5, "litellm": 9}


@cache
def emitted(library: str) -> Server:
    """Return what the library's calls have a server see. Skip where it is not installed."""
    if not PYTHON.exists():
        if os.environ.get("STREAMPROC_REQUIRE_REAL"):
            pytest.fail(f"no {PYTHON}")
        pytest.skip(f"{library}: not installed; `make .cache/real/.installed` does")
    with running() as server:
        script = Path(__file__).with_name("emit.py")
        done = subprocess.run(
            [PYTHON, script, library, server.url], capture_output=True, text=True, timeout=120, check=False
        )
    if "ModuleNotFoundError" in done.stderr and not os.environ.get("STREAMPROC_REQUIRE_REAL"):
        pytest.skip(f"{library}: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return server


def tally(values: dict[tuple[str, str], list[tuple[int, float, int]]]) -> Tally:
    found: dict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for (model, signal), rows in values.items():
        for _, value, n in rows:
            before = found[model, signal]
            found[model, signal] = (before[0] + n, before[1] + value * n)
    return {key: (n, round(total, 6)) for key, (n, total) in found.items()}


def by_protobuf(bodies: list[bytes]) -> tuple[Tally, Pipeline]:
    pipeline = Pipeline(BOOK, kind="predictions", topic="predictions")
    with observed() as values:
        now_ms = max(_latest_ms(body) for body in bodies)
        n = len(bodies)
        batch = RecordBatch("predictions", 0, list(range(n)), [now_ms] * n, [None] * n, bodies, [()] * n)
        out = pipeline.process(batch)
        assert out.rejected == []
        assert not [r for r in out.ignored if r.startswith("part of a record")], out.ignored
        assert sum(out.accounts().values()) == out.came
        pipeline.advance((now_ms + 3_600_000) * 1000)
    return tally(values), pipeline


def _latest_ms(body: bytes) -> int:
    message = ExportTraceServiceRequest.FromString(body)
    spans = [s for r in message.resource_spans for c in r.scope_spans for s in c.spans]
    return max(s.end_time_unix_nano for s in spans) // 1_000_000


def as_json(body: bytes) -> bytes:
    """Return traces as a collector writes them in JSON: ids in hexadecimal, and all on one line."""
    tree = json_format.MessageToDict(ExportTraceServiceRequest.FromString(body), use_integers_for_enums=True)
    for resource in tree["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = _hex(span[name])
    return orjson.dumps(tree)


def _hex(text: str) -> str:
    return base64.b64decode(text).hex()


def differences(library: str, said: Tally) -> dict[Any, Any]:
    right = {**RIGHT, **OTHERWISE[library]}
    return {key: (said.get(key, (0, 0)), n) for key, n in right.items() if said.get(key, (0, 0)) != n}


@pytest.mark.parametrize("library", OTHERWISE)
def test_what_a_library_emits_in_protobuf_is_what_is_read(library: str) -> None:
    server = emitted(library)
    assert len(server.asked) == REQUESTS.get(library, 7)
    said, pipeline = by_protobuf(server.traces)
    assert differences(library, said) == {}
    embedded = set() if library == "langchain" else {EMBEDS}
    assert set(pipeline.models) - {"shop"} == {ASKED} | embedded, "a call stands under another model"
    assert library == "langchain" or "shop" not in pipeline.models


@pytest.mark.parametrize("library", OTHERWISE)
def test_what_a_library_emits_reads_the_same_in_the_json_of_a_collector(library: str) -> None:
    bodies = emitted(library).traces
    replay = Replay(BOOK, kind="predictions")
    with observed() as values:
        told = list(replay.run(map(as_json, bodies)))
        replay.pipeline.advance(replay.pipeline.clock_us + 3_600_000_000)
    assert differences(library, tally(values)) == {}
    assert not replay.report.rejected, replay.report.examples
    assert sum(replay.report.accounts.values()) == replay.report.came
    critical = [a for a in told if isinstance(a, Alert) and a.severity == "critical"]
    assert critical == []


@pytest.mark.parametrize("library", OTHERWISE)
def test_a_failure_has_the_type_that_the_library_tells(library: str) -> None:
    _, pipeline = by_protobuf(emitted(library).traces)
    state: Any = pipeline.models[ASKED]
    (name,) = state.errors.names
    assert name.endswith("RateLimitError")
