"""Incidents through a real Kafka: a worker killed in the middle of one tells of it once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from streamproc import rules, schema
from streamproc.errors import ConfigError
from streamproc.worker.run import topic_specs
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import prediction, publish, read, topic, worker

START = 1_790_000_000.0


def config(bootstrap: str, app: str, *, saved_every: str) -> str:
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [{app}-in]
  app_id: {app}
  alerts: {app}-alerts
  incidents: {app}-incidents
  dead_letters: {app}-dead
  snapshots: {app}-snapshots
  partitions: 2
defaults:
  resolve_after: 2s
  signals:
    latency: {{detector: limits, params: {{upper: 1.0}}, severity: critical}}
    silence: {{mode: "off"}}
models:
  - {{match: {{model: "m*"}}, depends_on: [host/gpu-1]}}
incidents: {{quiet: 2s}}
worker: {{web_host: 127.0.0.1, web_port: PORT, snapshot_interval: {saved_every}}}
"""


def rows(begin: int, end: int, *, slow: bool) -> list[tuple[bytes, bytes, int]]:
    return [
        (m.encode(), prediction(m, START + i, duration_s=5.0 if slow else 0.1), int((START + i) * 1000))
        for i in range(begin, end)
        for m in ("m1", "m2", "m3")
    ]


def test_the_feed_has_one_partition_and_is_there_only_where_incidents_are_wanted() -> None:
    text = config("localhost:9092", "app", saved_every="1s").replace("PORT", "0")
    specs = {s.name: s.partitions for s in topic_specs(rules.parse(text))}
    assert (specs["app-incidents"], specs["app-alert-feed"]) == (2, 1)
    without = rules.parse(text.replace("incidents: app-incidents", 'incidents: ""'))
    assert without.kafka.alert_feed == ""
    assert {s.name for s in topic_specs(without)} == set(specs) - {"app-incidents", "app-alert-feed"}


def test_a_worker_does_not_feed_on_its_own_incidents() -> None:
    text = config("localhost:9092", "app", saved_every="1s").replace("PORT", "0")
    for own in ("app-incidents", "app-alert-feed"):
        with pytest.raises(ConfigError, match="feed on itself"):
            rules.parse(text.replace("predictions: [app-in]", f"predictions: [{own}]"))


def told(bootstrap: str, app: str) -> list[dict[str, Any]]:
    return [orjson.loads(r.value()) for r in read(bootstrap, f"{app}-incidents")]


@pytest.mark.kafka
@pytest.mark.parametrize("saved", [False, True], ids=["before it was saved", "after it was saved"])
def test_a_worker_killed_in_mid_incident_opens_it_once_and_resolves_it_once(
    kafka: KafkaCluster, tmp_path: Path, saved: bool
) -> None:
    app = "saved" if saved else "unsaved"
    text = config(kafka.bootstrap, app, saved_every="300ms" if saved else "1h")
    topic(kafka.bootstrap, f"{app}-in")
    publish(kafka.bootstrap, f"{app}-in", [*rows(0, 20, slow=False), *rows(20, 25, slow=True)])
    with worker(tmp_path, text, name="first") as first:
        (opened, *_) = read(kafka.bootstrap, f"{app}-incidents", at_least=1)
        if saved:
            seen = first.metric("streamproc_snapshot_bytes_total")
            first.until(lambda: first.metric("streamproc_snapshot_bytes_total") > seen, "one more snapshot")
        first.stop(signal.SIGKILL)
    with worker(tmp_path, text.replace("1h", "300ms"), name="second") as second:
        second.until(lambda: second.metric("streamproc_partitions_owned") == 3, "two partitions and the feed")
        publish(kafka.bootstrap, f"{app}-in", rows(25, 60, slow=False))
        second.until(lambda: any(i["action"] == "resolved" for i in told(kafka.bootstrap, app)), "the incident's end")
        assert second.stop() == 0
    found = {i["id"]: i for i in told(kafka.bootstrap, app)}
    validator = jsonschema.Draft202012Validator(schema.schemas()["incident.v1"])
    for incident in found.values():
        validator.validate(incident)
    assert len({i["incident_id"] for i in found.values()}) == 1
    actions = [i["action"] for i in found.values()]
    assert (actions.count("opened"), actions.count("resolved")) == (1, 1)
    last = next(i for i in found.values() if i["action"] == "resolved")
    assert sorted(last["models"]) == ["m1", "m2", "m3"]
    assert (last["cause"]["category"], last["upstreams"]) == ("infra", ["host/gpu-1"])
    assert last["post_mortem"]["suggested_action"] == "scale"
    assert orjson.loads(opened.value())["id"] in found
