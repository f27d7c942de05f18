"""The table of topics is what a worker does: on a real Kafka, with all there is switched on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, TopicPartition

from streamproc import rules, topology
from streamproc.worker import app as app_module
from streamproc.worker import driver
from streamproc.worker.run import topic_specs
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import prediction, publish, topic, worker
from tests.worker.test_worker import START


def config(bootstrap: str, app: str, *, repartition: bool) -> str:
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [{app}-predictions]
  telemetry: [{app}-telemetry]
  labels: [{app}-labels]
  app_id: {app}
  alerts: "{{app_id}}-alerts"
  pages: "{{app_id}}-pages"
  incidents: "{{app_id}}-incidents"
  partitions: 2
  repartition: {str(repartition).lower()}
defaults:
  signals:
    latency: {{detector: limits, params: {{upper: 1.0}}, severity: critical}}
worker: {{web_host: 127.0.0.1, web_port: PORT, snapshot_interval: 300ms}}
"""


@pytest.mark.parametrize("repartition", [False, True])
def test_a_worker_reads_the_topics_that_the_table_says_it_reads(tmp_path: Path, repartition: bool) -> None:
    told = rules.parse(config("localhost:9092", "all", repartition=repartition).replace("PORT", "0"))

    async def no_reload() -> str:
        return ""

    async def built() -> set[str]:
        sizes = {spec.name: spec.partitions for spec in topic_specs(told)}
        app = app_module.build(
            told, partitions=sizes, snapshot_partitions=2, reload=no_reload, data_dir=str(tmp_path)
        )
        return {*driver._batched, *app.engine._said.topics, told.kafka.snapshots}

    assert asyncio.run(built()) == {t.name for t in topology.topics(told.kafka) if t.reads}


@pytest.mark.kafka
@pytest.mark.parametrize("repartition", [False, True])
def test_a_worker_writes_the_topics_that_the_table_says_it_writes_and_no_others(
    kafka: KafkaCluster, tmp_path: Path, repartition: bool
) -> None:
    app = f"table{int(repartition)}"
    text = config(kafka.bootstrap, app, repartition=repartition)
    table = topology.topics(rules.parse(text.replace("PORT", "0")).kafka)
    for t in table:
        if t.siblings == "sources":
            topic(kafka.bootstrap, t.name)
    times = [START + i for i in range(60)]
    slow = [prediction("m", at, duration_s=9.0 if at > START + 30 else 0.1) for at in times]
    label = {"prediction_id": f"m-{START}", "model": "m", "label": "x", "time": START + 1}
    records: list[tuple[Any, ...]] = [(b"m", v, int(at * 1000)) for v, at in zip(slow, times, strict=True)]
    publish(kafka.bootstrap, f"{app}-predictions", [*records, (b"m", b"no json", int(START * 1000))])
    publish(kafka.bootstrap, f"{app}-labels", [(b"m", orjson.dumps(label), int(START * 1000))])

    def written() -> set[str]:
        consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "look"})
        try:
            names = {n: len(t.partitions) for n, t in consumer.list_topics(timeout=10).topics.items()}
            mine = {n: count for n, count in names.items() if n.startswith(f"{app}-")}
            sources = {t.name for t in table if t.siblings == "sources"}
            ends = {n: sum(consumer.get_watermark_offsets(TopicPartition(n, p), timeout=10)[1] for p in range(count))
                    for n, count in mine.items() if n not in sources}  # fmt: skip
            assert set(mine) == {t.name for t in table}
            return {n for n, end in ends.items() if end}
        finally:
            consumer.close()

    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") >= 60, "60 events")
        wanted = {t.name for t in table if t.writes}
        if repartition:  # of telemetry there was none
            wanted.discard(topology.internal_topic(app, f"{app}-telemetry"))
        running.until(lambda: written() >= wanted, "all of them to be written")
        assert written() == wanted
        assert running.stop() == 0
