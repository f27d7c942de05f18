"""A bridge whose topic is deleted and created anew under it, on a real Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bridges.harness import Receiver, alert, bridge, config, eventually, tell
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import delete, topic


@pytest.mark.kafka
@pytest.mark.parametrize("running_then", [True, False], ids=["while it runs", "while it does not"])
def test_what_comes_on_a_topic_made_anew_is_told_though_its_offsets_were_had(
    kafka: KafkaCluster, tmp_path: Path, running_then: bool
) -> None:
    app = f"anew-bridge-{int(running_then)}"
    with Receiver() as people:

        def told() -> list[str]:
            return [r.json()["data"]["labels"]["model"] for r in people.requests]

        topic(kafka.bootstrap, f"{app}-alerts", 1)
        text = config(kafka.bootstrap, app, "webhook", {"url": people.url})
        with bridge(tmp_path, "webhook", text) as running:
            tell(kafka.bootstrap, app, *(alert(f"old{i}") for i in range(5)))
            eventually(lambda: len(told()) == 5, "five are told")
            if not running_then:
                assert running.stop() == 0
            delete(kafka.bootstrap, f"{app}-alerts")
            topic(kafka.bootstrap, f"{app}-alerts", 1)
            tell(kafka.bootstrap, app, *(alert(f"new{i}") for i in range(2)))
            if not running_then:
                running.start()
            eventually(lambda: set(told()) >= {"new0", "new1"}, "the new ones are told")
            running.ready()
            tell(kafka.bootstrap, app, *(alert(f"later{i}") for i in range(2)))
            eventually(lambda: set(told()) >= {"later0", "later1"}, "those that follow too")
            assert len(told()) == 9
            if running_then:
                assert running.metric("streamproc_bridge_topic_renewed_total") == 1
            assert running.stop() == 0
