"""Labels that come a day late, through a real Kafka: what they find, and what is known before them."""

from __future__ import annotations

import csv
import datetime as dt
import itertools
from pathlib import Path
from typing import Any

import orjson
import pytest
from river import linear_model, preprocessing

from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import publish, read, topic, worker

#: Prices of the electricity market of New South Wales, one row each half hour from 7 May 1996 (Harries, 1999).
ELEC = Path(__file__).resolve().parents[3] / "shared" / "data" / "streams" / "elec.csv"

BEGIN_S = dt.datetime(1996, 5, 7, tzinfo=dt.UTC).timestamp()
STEP_S, DAY = 1800, 48

#: Rows learned from, before the model is frozen: four months.
TRAINED = 6000
#: From here the second model is given the same price for ever: its feed is stuck. 18 December 1996.
STUCK = 10800
ROWS = 11500


def config(bootstrap: str) -> str:
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [elec-in]
  labels: [elec-labels]
  app_id: elec
  alerts: elec-alerts
  dead_letters: elec-dead
  snapshots: elec-snapshots
  partitions: 2
defaults:
  window: 12h
  lateness: 1h
  min_samples: 8
  silence_after: 1000d
  signals:
    accuracy: {{lower_limit: 0.65, breaches: 2/2}}
    estimated_accuracy: {{lower_limit: 0.65, breaches: 2/2}}
worker: {{web_host: 127.0.0.1, web_port: PORT, snapshot_interval: 300ms, idle_advance: false}}
"""


def rows() -> tuple[list[dict[str, float]], list[int]]:
    with ELEC.open() as lines:
        found = list(itertools.islice(csv.DictReader(lines), ROWS))
    return [{k: float(v) for k, v in r.items() if k != "class"} for r in found], [int(r["class"]) for r in found]


def day(alert: dict[str, Any]) -> str:
    return str(alert["startsAt"][:10])


@pytest.mark.kafka
@pytest.mark.skipif(not ELEC.exists(), reason="shared/data/streams/elec.csv is not there")
def test_labels_a_day_late_find_the_drift_of_a_frozen_model_and_the_estimate_sees_a_stuck_feed_before_them(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    """On real prices: one model frozen after four months, and one more whose price feed is stuck later on.

    What drifts in the market the estimate does not see, since the model does not know it: only labels tell.
    """
    features, truth = rows()
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    for i in range(TRAINED):
        model.learn_one(features[i], truth[i])

    def predictions(name: str, i: int) -> tuple[bytes, bytes, int]:
        at = BEGIN_S + i * STEP_S
        given = features[i]
        if name == "stuck" and i >= STUCK:
            given = {**given, "nswprice": features[STUCK]["nswprice"]}
        up = model.predict_proba_one(given)[1]
        event = {
            "id": f"{name}-{i}",
            "source": "elec",
            "time": at,
            "model": {"name": name},
            "prediction": {"scores": {"up": up, "down": 1.0 - up}},
            "features": given,
        }
        return name.encode(), orjson.dumps(event), int(at * 1000)

    def label(name: str, i: int) -> tuple[bytes, bytes, int]:
        at = BEGIN_S + (i + DAY) * STEP_S  # a day late
        said = {"prediction_id": f"{name}-{i}", "label": "up" if truth[i] else "down", "model": name, "time": at}
        return name.encode(), orjson.dumps(said), int(at * 1000)

    topic(kafka.bootstrap, "elec-in")
    topic(kafka.bootstrap, "elec-labels")
    names = ("sound", "stuck")
    with worker(tmp_path, config(kafka.bootstrap)) as running:
        labelled = 0
        for start in range(TRAINED, ROWS, 10 * DAY):
            new = range(start, min(start + 10 * DAY, ROWS))
            publish(kafka.bootstrap, "elec-in", [predictions(n, i) for i in new for n in names])
            told = [i - DAY for i in new if i - DAY >= TRAINED]
            publish(kafka.bootstrap, "elec-labels", [label(n, i) for i in told for n in names])
            labelled += len(told) * len(names)
            running.until(
                lambda n=labelled: running.metric("streamproc_label_joins_total") == n, f"{labelled} labels joined"
            )
        assert running.stop() == 0
    found = read(kafka.bootstrap, "elec-alerts", at_least=1)
    opened = [a for a in (orjson.loads(m.value()) for m in found) if a["action"] == "opened"]

    def of(name: str, signal: str) -> list[dict[str, Any]]:
        return [a for a in opened if a["labels"]["model"] == name and a["signal"] == signal]

    # The market has moved on within weeks; errors tell, as does which predictions they are of: a day before.
    drift = of("sound", "prediction_error")[0]
    assert day(drift) < "1996-10-15"
    assert drift["annotations"]["predictions"].split("/")[0] < drift["startsAt"]
    assert of("sound", "estimated_accuracy") == []
    # A feed that is stuck makes the model unsure: it is known before the first label of such a prediction.
    (estimate,) = of("stuck", "estimated_accuracy")
    stuck_at = dt.datetime.fromtimestamp(BEGIN_S + STUCK * STEP_S, dt.UTC)
    assert stuck_at < dt.datetime.fromisoformat(estimate["startsAt"]) <= stuck_at + dt.timedelta(days=1)
    from_labels = [a for a in of("stuck", "accuracy") if a["startsAt"] > stuck_at.isoformat()]
    assert from_labels[0]["startsAt"] > estimate["startsAt"]
    assert not [a for a in of("sound", "accuracy") if a["startsAt"] > stuck_at.isoformat()]
