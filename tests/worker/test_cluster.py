"""What a cluster does to its topics while we read them: a real worker, a real Kafka, and nothing lost in silence."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import read, topic, worker
from tests.worker.test_worker import config, stream


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_topic_compressed_by_any_of_kafkas_codecs_is_read_whole(
    kafka: KafkaCluster, tmp_path: Path, codec: str
) -> None:
    app = f"codec-{codec}"
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "compression.type": codec, "linger.ms": 50})
    for key, value, at in stream("m", 500, slow_from=490):
        producer.produce(f"{app}-in", key=key, value=value, timestamp=at)
    assert producer.flush(30) == 0
    with worker(tmp_path, config(kafka.bootstrap, app)) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 500, "500 events")
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, f"{app}-alerts", at_least=1)]
        assert running.metric("streamproc_dead_letters_total") == 0
        assert running.stop() == 0
    assert [(a["action"], a["evidence"]["offset_first"]) for a in found if a["signal"] == "latency"] == [("opened", 490)]
