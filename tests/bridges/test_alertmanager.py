"""Through a real Alertmanager: what fires shows, changes, and is over; and an outage loses nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bridges.alertmanager import Alertmanager
from tests.bridges.harness import Receiver, alert, bridge, config, eventually, tell
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import read

pytestmark = pytest.mark.usefixtures("alertmanager_binary")


def block(*alertmanagers: Alertmanager, **more: Any) -> dict[str, Any]:
    return {"urls": [a.url for a in alertmanagers], "resend": "1s", "max_backoff": "1s", **more}


def life(bootstrap: str, app: str, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "am") as am:
        text = config(bootstrap, app, "alertmanager", block(am, generator_url="https://dash/{model}"))
        with bridge(tmp_path, "alertmanager", text) as running:
            tell(bootstrap, app, alert())
            shown = eventually(lambda: am.firing().get("fraud/warning"), "the alert shows")
            assert shown["labels"] == {
                "alertname": "latency", "model": "fraud", "severity": "warning", "signal": "latency",
                "detector": "spike",
            }  # fmt: skip
            assert shown["annotations"]["summary"] == "fraud: latency opened"
            assert shown["generatorURL"] == "https://dash/fraud"
            (group,) = am.get("alerts/groups")
            assert group["labels"] == {"model": "fraud"}

            tell(bootstrap, app, alert(action="updated", value=9.0))
            eventually(lambda: am.firing()["fraud/warning"]["annotations"]["value"] == "9", "the update shows")

            tell(bootstrap, app, alert(action="escalated", severity="critical"))
            eventually(lambda: set(am.firing()) == {"fraud/critical"}, "the escalation takes the place of the warning")

            ends = am.firing()["fraud/critical"]["endsAt"]
            eventually(lambda: am.firing()["fraud/critical"]["endsAt"] > ends, "it is resent while it fires")

            tell(bootstrap, app, alert(action="resolved", severity="critical"))
            eventually(lambda: not am.firing(), "it is resolved")
            time.sleep(1.5)  # a resend later it still is
            assert am.firing() == {}
            assert running.metric("streamproc_bridge_delivered_total") == 4
            assert running.stop() == 0


def test_a_firing_group_shows_updates_escalates_and_resolves(broker: str, tmp_path: Path) -> None:
    life(broker, "life", tmp_path)


@pytest.mark.kafka
def test_a_firing_group_shows_updates_escalates_and_resolves_by_way_of_kafka(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    life(kafka.bootstrap, "life", tmp_path)
