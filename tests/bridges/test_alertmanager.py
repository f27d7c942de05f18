"""Through a real Alertmanager: what fires shows, changes, and is over; and an outage loses nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.bridges.alertmanager import Alertmanager
from tests.bridges.harness import Receiver, alert, bridge, config, eventually, now, tell
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import read, topic

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


def outage(bootstrap: str, app: str, tmp_path: Path, *, seconds: float) -> None:
    """Alerts open and end while no Alertmanager is there; what it would have told people, it tells them after."""
    with Receiver() as people, Alertmanager(tmp_path / "am", webhook=people.url) as am:

        def told(status: str) -> set[str]:
            return {a["labels"]["model"] for r in people.requests for a in r.json()["alerts"] if a["status"] == status}

        text = config(bootstrap, app, "alertmanager", block(am, show_for="4s"))
        with bridge(tmp_path, "alertmanager", text) as running:
            tell(bootstrap, app, alert("before"), alert("lasting"))
            eventually(lambda: told("firing") == {"before", "lasting"}, "both are told of")
            am.kill()  # and forgets its alerts
            tell(bootstrap, app, alert("within"), alert("since"))
            eventually(lambda: running.metric("streamproc_bridge_retries_total") > 0, "the bridge waits")
            assert running.get("/-/ready")[0] == 503
            assert running.get("/-/healthy")[0] == 200
            time.sleep(seconds)
            tell(bootstrap, app, alert("before", "resolved"), alert("within", "resolved"))
            time.sleep(1.0)
            am.start()
            eventually(lambda: told("firing") >= {"within", "since"}, "what opened meanwhile is told of", 30)
            eventually(lambda: "within" in told("resolved"), "what ended meanwhile too", 30)
            eventually(lambda: set(am.firing()) == {"lasting/warning", "since/warning"}, "what fires, fires")
            assert running.metric("streamproc_bridge_dead_letters_total") == 0
            assert running.metric("streamproc_bridge_delivered_total") == 6
            eventually(lambda: running.get("/-/ready")[0] == 200, "ready again")


def test_after_an_outage_of_seconds_nothing_is_lost(broker: str, tmp_path: Path) -> None:
    outage(broker, "short", tmp_path, seconds=3.0)


@pytest.mark.slow
@pytest.mark.kafka
def test_after_an_outage_of_a_minute_nothing_is_lost(kafka: KafkaCluster, tmp_path: Path) -> None:
    outage(kafka.bootstrap, "minute", tmp_path, seconds=60.0)


@pytest.mark.kafka
def test_a_bridge_killed_again_and_again_shows_what_fires_and_nothing_else(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "am") as am:
        text = config(kafka.bootstrap, "killed", "alertmanager", block(am))
        with bridge(tmp_path, "alertmanager", text) as running:
            tell(kafka.bootstrap, "killed", *(alert(f"m{i}") for i in range(20)))
            eventually(lambda: len(am.firing()) > 3, "some show")
            running.stop(signal.SIGKILL)
            tell(kafka.bootstrap, "killed", *(alert(f"m{i}", "resolved") for i in range(0, 20, 2)))
            running.start()
            eventually(lambda: len(am.firing()) > 5, "they show")
            running.stop(signal.SIGKILL)
            am.kill()  # and forgets: only the bridge knows what fires, and it has died too
            am.start()
            running.start()
            left = {f"m{i}/warning" for i in range(1, 20, 2)}
            eventually(lambda: set(am.firing()) == left, "what fires", 40)
            time.sleep(2.0)
            assert set(am.firing()) == left


def test_a_dead_bridge_lets_its_alerts_expire(broker: str, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "am") as am:
        with bridge(tmp_path, "alertmanager", config(broker, "dead", "alertmanager", block(am))) as running:
            tell(broker, "dead", alert())
            eventually(am.firing, "it shows")
            running.stop(signal.SIGKILL)
        eventually(lambda: not am.firing(), "it is over by itself", 8)


def test_each_of_two_alertmanagers_is_told_and_one_that_was_away_catches_up(broker: str, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "a") as one, Alertmanager(tmp_path / "b") as other:
        with bridge(tmp_path, "alertmanager", config(broker, "pair", "alertmanager", block(one, other))) as running:
            other.kill()
            tell(broker, "pair", alert())
            eventually(one.firing, "the one that is there shows it")
            assert running.metric("streamproc_bridge_delivered_total") == 1
            other.start()
            eventually(other.firing, "the other one catches up")


@pytest.mark.kafka
def test_a_bridge_that_never_ran_begins_with_what_is_firing(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "new-alerts", partitions=1)
    tell(kafka.bootstrap, "new", alert("old"), alert("lasting"), alert("old", "resolved"))
    with Alertmanager(tmp_path / "am") as am:
        text = config(kafka.bootstrap, "new", "alertmanager", block(am))
        with bridge(tmp_path, "alertmanager", text) as running:
            eventually(lambda: set(am.firing()) == {"lasting/warning"}, "what fires")
            assert running.metric("streamproc_bridge_delivered_total") == 1


def test_of_a_batch_one_alert_it_refuses_is_set_aside_and_the_others_are_told(broker: str, tmp_path: Path) -> None:
    wrong = {"startsAt": "0001-01-01T00:00:00Z"}  # no time at all to Alertmanager, which answers 400
    with Alertmanager(tmp_path / "am") as am:
        text = config(broker, "wrong", "alertmanager", block(am))
        with bridge(tmp_path, "alertmanager", text) as running:
            tell(broker, "wrong", *(alert(f"m{i}", **(wrong if i == 3 else {})) for i in range(6)))
            rest = {f"m{i}/warning" for i in range(6) if i != 3}
            eventually(lambda: set(am.firing()) == rest, "the others show")
            eventually(lambda: running.metric("streamproc_bridge_dead_letters_total") == 1, "it is set aside")
            am.kill()  # and forgets its alerts
            running.stop(signal.SIGKILL)
            am.start()
            running.start()  # which now tells all of them in one batch
            eventually(lambda: set(am.firing()) == rest, "the others show again")
            eventually(lambda: running.metric("streamproc_bridge_dead_letters_total") == 1, "it is set aside")
            ends = am.firing()["m1/warning"]["endsAt"]
            eventually(lambda: am.firing()["m1/warning"]["endsAt"] > ends, "the others are resent")
            assert running.metric("streamproc_bridge_dead_letters_total") == 1
            assert "not resent" not in running.log.read_text()
            letters = read(broker, "wrong-bridge-dead-letters", 1, at_least=2)
            assert {dict(m.headers())["error.type"] for m in letters} == {b"http_400"}
            assert {orjson.loads(m.value())["labels"]["model"] for m in letters} == {"m3"}
            assert running.stop() == 0


def test_both_times_are_sent_of_an_alert_that_has_only_one(broker: str, tmp_path: Path) -> None:
    with Alertmanager(tmp_path / "am") as am:
        text = config(broker, "times", "alertmanager", block(am))
        with bridge(tmp_path, "alertmanager", text) as running:
            tell(broker, "times", alert("unknown", startsAt="soon"), alert("ahead", startsAt="2999-01-01T00:00:00Z"))
            eventually(lambda: len(am.firing()) == 2, "both show")
            for shown in am.firing().values():
                assert shown["startsAt"] <= now() < shown["endsAt"]
            assert running.stop() == 0
