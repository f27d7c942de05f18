"""Whatever a producer sends, the pipeline goes on: each record is an event or a rejection."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.signals import Kind
from tests.core.make import BEGIN_US, batch, config, pipeline, quick, state

FIELDS: dict[str, list[str]] = {
    "predictions": ["model", "prediction", "features", "duration_s", "time", "error", "id", "source", "segment",
                    "model.name", "model.version", "error.type"],
    "telemetry": ["name", "value", "unit", "model", "time", "sum", "count", "attributes", "service.name", "source"],
    "labels": ["prediction_id", "label", "value", "model", "time", "observed_at", "origin"],
}  # fmt: skip

scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8), st.sampled_from([0, 1, -1, 1e308, -1e308, 5e-324, BEGIN_US, "m", "2026-01-05T09:00:00Z"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "version", "value", "label", "score", "scores", "type", "x", "y"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=6,
)

#: Good events on either side: what a bad one leaves behind shows in them.
GOOD: dict[str, dict[str, Any]] = {
    "predictions": {"model": "m", "prediction": 0.5, "features": {"x": 1.0, "y": 2.0}, "duration_s": 0.1},
    "telemetry": {"name": "x", "value": 1.0, "model": "m"},
    "labels": {"prediction_id": "1", "label": "x", "model": "m"},
}


@pytest.mark.parametrize("kind", FIELDS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_record_is_an_event_or_a_rejection(kind: Kind, data: Any) -> None:
    odd = st.dictionaries(st.sampled_from(FIELDS[kind]), values, max_size=6).map(lambda e: {**GOOD[kind], **e})
    events = data.draw(st.lists(odd, min_size=1, max_size=30))
    p = pipeline(config(quick()), kind)
    at = BEGIN_US
    offset = 0
    for events_ in ([GOOD[kind]] * 60, events, [GOOD[kind]] * 20):
        values_ = [orjson.dumps({"time": (at := at + 100_000), **e}) for e in events_]
        out = p.process(batch(values_, first=offset, stamps_us=[at] * len(values_), keys=[b"m"] * len(values_)))
        assert out.events + len(out.rejected) + out.refused == len(values_)
        offset += len(values_)
    p.advance(at + 3_600_000_000)
    # And its state can be stored and taken up again.
    q = pipeline(config(quick()), kind)
    for name, stored in state(p).items():
        q.restore_model(name, stored)
    assert state(q) == state(p)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=10), st.binary(max_size=12))
def test_bytes_of_any_kind_are_rejected_and_no_more(junk: list[bytes], header: bytes) -> None:
    p = pipeline(config())
    records = [*junk, orjson.dumps(GOOD["predictions"])]
    for name in ("ce_time", "ce_id", "ce_source"):
        out = p.process(batch(records, headers=[[(name, header)]] * len(records)))
        assert out.events + len(out.rejected) + out.fenced == len(records)
