"""The benchmark of detectors on labelled telemetry keeps what it measured."""

from __future__ import annotations

import contextlib
import io

import orjson
import pytest

from benchmarks.detection import cloud, nab
from benchmarks.detection.shared import SHARED

needs_data = pytest.mark.skipif(
    not (SHARED / "data" / "cloud").is_dir() or not (SHARED / "tools").is_dir(),
    reason="needs the shared data beside the repository, or $STREAMPROC_SHARED",
)


@needs_data
def test_spike_catches_what_it_did_on_cloud_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "CLOUD", ("spike", "standard_absolute_deviation"))
    with contextlib.redirect_stdout(io.StringIO()):
        found = orjson.loads(orjson.dumps(cloud.run(SHARED / "data" / "cloud")))
    assert found["recall_at_1"] >= 0.64
    assert found["recall_at_2"] >= 0.80
    assert found["recall_at_1"] > found["others"]["standard_absolute_deviation"]["recall_at_1"]


@pytest.mark.skipif(
    not (SHARED / "data" / "nab").is_dir() or not (SHARED / "tools").is_dir(),
    reason="needs the shared data beside the repository, or $STREAMPROC_SHARED",
)
def test_pattern_scores_what_it_did_on_nab() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        found = nab.run(SHARED / "data" / "nab")
    assert found["own_limit"] >= 74
    assert found["swept"] >= 75
    assert found["profiles"]["reward_low_FP_rate"] >= 70
    assert found["swept"] > 15 + max(other["swept"] for other in found["others"].values())
