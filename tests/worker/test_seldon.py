"""A Seldon Core 2 model's two topics through a real Kafka: keyed by request, spread over partitions, and yet joined."""

from __future__ import annotations

import random
from pathlib import Path

import orjson
import pytest

from tests.brokers.kafka import KafkaCluster
from tests.core.samples import Sample
from tests.worker.harness import publish, read, topic, worker

START_MS = 1_790_000_000_000
REQUESTS = 400

CONFIG = """
version: 1
kafka:
  brokers: "{brokers}"
  predictions: [seldon.prod.model.iris.inputs, seldon.prod.model.iris.outputs]
  app_id: seldon
  alerts: seldon-alerts
  dead_letters: seldon-dead
  snapshots: seldon-snapshots
  partitions: 3
  repartition: true
defaults:
  signals:
    latency: {{detector: limits, params: {{upper: 1.0}}}}
serving: {{response_timeout: 20s}}
worker: {{web_host: 127.0.0.1, web_port: PORT, snapshot_interval: 300ms, idle_advance: false}}
"""


@pytest.mark.kafka
def test_requests_and_responses_of_two_topics_become_predictions_with_a_latency(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    rng = random.Random(3)
    request, response = Sample("seldon_request"), Sample("seldon_response")
    for sample in (request, response):
        topic(kafka.bootstrap, sample.topic, partitions=3)
    requests, responses = [], []
    for i in range(REQUESTS):
        key, at = f"{rng.getrandbits(80):020x}".encode(), START_MS + 100 * i
        headers = [(k, key if k == "x-request-id" else v) for k, v in request.headers]
        requests.append((key, request.value, at, headers))
        if i % 100 != 50:  # four are never answered
            responses.append((key, response.value, at + (3000 if i >= 350 else 20), headers))
    # A backlog of forty seconds, twice the timeout: whichever topic is read first, no pair is torn.
    publish(kafka.bootstrap, request.topic, requests)
    publish(kafka.bootstrap, response.topic, responses)
    with worker(tmp_path, CONFIG.format(brokers=kafka.bootstrap)) as running:
        halves = 2 * REQUESTS - 4
        running.until(lambda: running.metric("streamproc_events_total") == halves, f"{halves} halves")
        # A minute later one more pair: the arrival clock passes the timeout of those without an answer.
        at = START_MS + 100 * REQUESTS + 60_000
        publish(kafka.bootstrap, request.topic, [(b"last", request.value, at, [("x-request-id", b"last")])])
        publish(kafka.bootstrap, response.topic, [(b"last", response.value, at + 20, [("x-request-id", b"last")])])
        running.until(lambda: running.metric("streamproc_events_total") == halves + 2, "one more pair")
        running.until(lambda: running.metric("streamproc_unanswered_requests_total") == 4, "four given up on")
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, "seldon-alerts", partitions=3, at_least=1)]
        assert running.metric("streamproc_dead_letters_total") == 0
        assert running.stop() == 0
    slow = [a for a in found if a["signal"] == "latency" and a["action"] == "opened"]
    assert slow
    assert slow[0]["labels"]["model"] == "prod/iris"
    assert slow[0]["value"] == pytest.approx(3.0, abs=0.01)
