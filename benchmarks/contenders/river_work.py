"""The detection a user would write by hand: three river detectors for each model, event by event."""

from __future__ import annotations

import time
from typing import Any

import orjson
from river import anomaly, drift


class RiverWork:
    """ADWIN on the value, GaussianScorer on the latency, HalfSpaceTrees on the features."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[Any, Any, Any]] = {}
        self.alarms = 0

    def __call__(self, event: dict[str, Any]) -> None:
        name = event["model"]["name"]
        detectors = self.models.get(name)
        if detectors is None:
            detectors = self.models[name] = (
                drift.ADWIN(),
                anomaly.GaussianScorer(),
                anomaly.HalfSpaceTrees(seed=1),
            )
        adwin, gaussian, trees = detectors
        adwin.update(event["prediction"]["value"])
        latency = event["duration_s"]
        score = gaussian.score_one(None, latency)
        gaussian.learn_one(None, latency)
        features = event["features"]
        outlier = trees.score_one(features)
        trees.learn_one(features)
        self.alarms += adwin.drift_detected or score > 0.9999 or outlier > 0.99


class Meter:
    """Counts events; reports CPU and wall time between the first and the last."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.seen = 0
        self.cpu = self.wall = 0.0

    def tick(self, n: int = 1) -> bool:
        """Count n events; return whether that was all of them."""
        if self.seen == 0:
            self.cpu, self.wall = time.process_time(), time.perf_counter()
        self.seen += n
        return self.seen >= self.events

    def report(self) -> str:
        """Return the result as JSON."""
        return orjson.dumps(
            {
                "events": self.seen,
                "cpu_s": time.process_time() - self.cpu,
                "wall_s": time.perf_counter() - self.wall,
            }
        ).decode()
