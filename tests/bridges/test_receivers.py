"""Bridges as processes, to receivers that hold them to their published schemas."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.bridges.harness import Bridge, alert, bridge, config, eventually, incident, tell
from tests.bridges.servers import CLOUDEVENT, Mlflow, PagerDuty, Slack, Webhooks, wrong
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import read, topic


def pagerduty(server: PagerDuty, **more: Any) -> dict[str, Any]:
    return {"url": f"{server.url}/v2/enqueue", "routing_key": server.KEY, "max_backoff": "500ms", **more}


def test_one_page_an_episode_through_its_updates_until_it_is_resolved(broker: str, tmp_path: Path) -> None:
    with PagerDuty() as server:
        text = config(broker, "pd", "pagerduty", pagerduty(server, dashboard_url="https://dash/{model}"))
        with bridge(tmp_path, "pagerduty", text) as running:
            tell(broker, "pd", alert(), alert(), alert(action="updated"))
            tell(broker, "pd", alert(action="escalated", severity="critical"))
            tell(broker, "pd", alert(summary="x" * 5000, episode="e2", model="other"))
            tell(broker, "pd", alert("silenced", suppressed_by=["silence-1"]), alert("silenced", "resolved"))
            eventually(lambda: "fp-other" in server.open, "both")
            event = server.open["fp-fraud"]
            assert event["payload"]["severity"] == "critical"
            assert event["payload"]["custom_details"]["value"] == 5.0
            assert [link["href"] for link in event["links"]] == ["https://runbooks/latency", "https://dash/fraud"]
            tell(broker, "pd", alert(action="resolved"), alert(action="opened"))
            eventually(lambda: server.resolved, "resolved")
            eventually(lambda: running.metric("streamproc_bridge_skipped_total") == 4, "two copies, two silenced")
            assert running.stop() == 0
    assert (server.pages, server.resolved, server.invalid) == (["fp-fraud", "fp-other"], ["fp-fraud"], [])


def test_what_a_receiver_cannot_take_now_is_tried_until_it_can(broker: str, tmp_path: Path) -> None:
    with PagerDuty() as server:
        server.fail = [(503, {}, b""), (429, {"Retry-After": "1"}, b""), (500, {}, b""), (401, {}, b"")]
        with bridge(tmp_path, "pagerduty", config(broker, "later", "pagerduty", pagerduty(server))) as running:
            tell(broker, "later", alert())
            eventually(lambda: server.pages, "delivered in the end")
            assert running.metric("streamproc_bridge_retries_total") == 4
            server.stop()
            tell(broker, "later", alert(action="resolved"))
            eventually(lambda: running.metric("streamproc_bridge_retries_total") >= 6, "nobody there")
            server.start()
            eventually(lambda: server.resolved == ["fp-fraud"], "delivered once it is back")
            assert running.metric("streamproc_bridge_dead_letters_total") == 0
    assert server.pages == ["fp-fraud"]


def test_what_a_receiver_never_takes_is_set_aside_whole_and_the_next_goes_on(broker: str, tmp_path: Path) -> None:
    with PagerDuty() as server:
        with bridge(tmp_path, "pagerduty", config(broker, "never", "pagerduty", pagerduty(server))) as running:
            server.fail = [(400, {}, b'{"status": "invalid event", "errors": ["too odd"]}')]
            tell(broker, "never", alert("odd"), b"\xff no json", b'{"id": "only"}', alert("good"))
            eventually(lambda: server.pages == ["fp-good"], "the good one")
            assert running.metric("streamproc_bridge_dead_letters_total") == 3
            letters = read(broker, "never-bridge-dead-letters", partitions=1, at_least=3)
    headers = [dict(m.headers()) for m in letters]
    assert [h["error.type"] for h in headers] == [b"http_400", b"malformed", b"schema"]
    assert orjson.loads(letters[0].value())["id"] == "odd-1-opened"
    assert letters[0].key() == b"odd"
    assert headers[0]["ce_id"] == b"odd-1-opened"
    assert headers[0]["__streams.errors.topic"] == b"never-alerts"
    assert b"too odd" in headers[0]["__streams.errors.message"]
    assert headers[0]["streamproc.bridge"] == b"pagerduty/test"


@pytest.mark.kafka
def test_killed_between_an_answer_and_its_commit_a_bridge_pages_once_and_resolves_once(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    with PagerDuty() as server:
        victims: list[Any] = []
        taken = server.answer

        def deadly(request: Any) -> tuple[int, Any]:
            # The bridge dies while the receiver has taken the event, and before it can know.
            answer = taken(request)
            if len(server.requests) in (1, 3, 4, 6):
                victims[0].process.send_signal(signal.SIGKILL)
            return answer

        server.answer = deadly  # type: ignore[method-assign]
        text = config(kafka.bootstrap, "pdk", "pagerduty", pagerduty(server), partitions=1)
        with bridge(tmp_path, "pagerduty", text) as running:
            victims.append(running)
            tell(kafka.bootstrap, "pdk", alert(), alert(action="escalated", severity="critical"))
            tell(kafka.bootstrap, "pdk", alert(action="resolved"))
            tell(kafka.bootstrap, "pdk", alert("last", episode="e2"))
            for _ in range(4):
                running.process.wait(60)
                running.start()
            eventually(lambda: "fp-last" in server.open, "all of it", 60)
            running.ready()
            eventually(lambda: running.metric("streamproc_bridge_lag") == 0, "committed")
    actions = [(r.json()["event_action"], r.json()["dedup_key"]) for r in server.requests]
    assert (server.pages, server.resolved, server.invalid) == (["fp-fraud", "fp-last"], ["fp-fraud"], [])
    assert actions.count(("trigger", "fp-fraud")) > 2, actions  # there were repeats, and they were no pages


@pytest.mark.kafka
def test_killed_at_its_very_beginning_a_bridge_still_tells_what_fired_and_its_end(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "begin-alerts", partitions=1)
    tell(kafka.bootstrap, "begin", alert("over"), alert("a"), alert("b"), alert("over", "resolved"))
    with PagerDuty() as server:
        victims: list[Any] = []
        taken = server.answer

        def deadly(request: Any) -> tuple[int, Any]:
            answer = taken(request)
            if len(server.requests) == 1:
                tell(kafka.bootstrap, "begin", alert("a", "resolved"), alert("c"), alert("c", "resolved"))
                victims[0].process.send_signal(signal.SIGKILL)
            return answer

        server.answer = deadly  # type: ignore[method-assign]
        running = Bridge(tmp_path, "pagerduty", config(kafka.bootstrap, "begin", "pagerduty", pagerduty(server)))
        victims.append(running)
        try:
            running.process.wait(60)
            running.start()
            eventually(lambda: "fp-c" in server.resolved, "all of it", 60)
        finally:
            running.stop(signal.SIGKILL)
    assert (server.pages, server.resolved) == (["fp-a", "fp-b", "fp-c"], ["fp-a", "fp-c"])


def test_sigterm_ends_a_bridge_whose_receiver_is_down_and_the_next_start_tells(broker: str, tmp_path: Path) -> None:
    server = PagerDuty()
    with bridge(tmp_path, "pagerduty", config(broker, "term", "pagerduty", pagerduty(server))) as running:
        tell(broker, "term", alert())
        eventually(lambda: running.metric("streamproc_bridge_blocked_seconds") > 0, "blocked")
        assert running.stop(timeout_s=8.0) == 0
        with server:
            running.start()
            eventually(lambda: server.pages == ["fp-fraud"], "told by the next")


@pytest.mark.parametrize("mode", ["structured", "binary"])
def test_webhooks_are_signed_cloudevents_of_the_record_as_it_was(broker: str, tmp_path: Path, mode: str) -> None:
    app = f"hook-{mode}"
    with Webhooks() as server:
        block = {"url": f"{server.url}/x", "secrets": ["whsec_" + "A" * 43 + "=", server.SECRET], "mode": mode,
                 "headers": {"Authorization": "Bearer t"}, "topic": "incidents"}  # fmt: skip
        sent = incident(surprise={"a": 1})
        with bridge(tmp_path, "webhook", config(broker, app, "webhook", block), arguments=["--topic", f"{app}-alerts"]):
            tell(broker, app, sent, incident(action="resolved"))
            eventually(lambda: len(server.events) == 2, "both")
    assert server.invalid == []
    event = server.events[sent["id"]]
    assert event["data"] == sent
    assert event["source"] == "streamproc/t"
    assert server.requests[0].headers["authorization"] == "Bearer t"


def test_slack_has_one_message_an_episode_and_the_rest_in_its_thread(broker: str, tmp_path: Path) -> None:
    with Slack() as server:
        block = {"token": server.TOKEN, "channel": server.CHANNEL, "api_url": f"{server.url}/api"}
        with bridge(tmp_path, "slack", config(broker, "slack", "slack", block)) as running:
            tell(broker, "slack", alert(summary="a < b & c"), alert("other"))
            eventually(lambda: len(server.roots) == 2, "two messages")
            running.again()
            running.ready()
            tell(broker, "slack", alert(action="escalated", severity="critical"), alert(action="resolved"))
            eventually(lambda: "Resolved" in server.roots[0]["text"], "the message says how it ended")
            eventually(lambda: len(server.replies(server.roots[0]["ts"])) == 2, "two replies")
    assert server.invalid == []
    assert len(server.roots) == 2
    assert "Resolved: fraud latency" in server.roots[0]["text"]


@pytest.mark.kafka
def test_a_slack_bridge_killed_after_posting_finds_its_message_again(kafka: KafkaCluster, tmp_path: Path) -> None:
    with Slack() as server:
        victims: list[Any] = []
        taken = server.answer

        def deadly(request: Any) -> tuple[int, Any]:
            answer = taken(request)
            if request.path.endswith("postMessage") and len(server.messages) <= 2:
                victims[0].process.send_signal(signal.SIGKILL)
            return answer

        server.answer = deadly  # type: ignore[method-assign]
        block = {"token": server.TOKEN, "channel": server.CHANNEL, "api_url": server.url}
        with bridge(tmp_path, "slack", config(kafka.bootstrap, "slk", "slack", block)) as running:
            victims.append(running)
            tell(kafka.bootstrap, "slk", alert(), alert(action="resolved"))
            for _ in range(2):
                running.process.wait(60)
                running.start()
            total = "streamproc_bridge_delivered_total"
            eventually(lambda: running.metric(total) == 1, "told again, and committed", 60)
    assert len(server.roots) == 1
    assert server.replies(server.roots[0]["ts"]) == ["resolved: fraud: latency resolved"]


def test_slack_by_an_incoming_webhook_has_a_message_for_each_step_but_updates(broker: str, tmp_path: Path) -> None:
    with Slack() as server:
        text = config(broker, "slackhook", "slack", {"webhook_url": f"{server.url}/hook"})
        with bridge(tmp_path, "slack", text):
            tell(broker, "slackhook", alert(), alert(action="updated"), alert(action="resolved"))
            eventually(lambda: len(server.messages) == 2, "two messages")
    assert server.invalid == []
    assert [m["text"].partition(":")[0] for m in server.messages] == ["Warning", "Resolved"]


def test_a_retraining_is_asked_for_once_an_episode_on_the_topic_and_by_webhook(broker: str, tmp_path: Path) -> None:
    with Webhooks() as server:
        block = {"url": f"{server.url}/train", "secrets": [server.SECRET], "requests": "re-requests"}
        with bridge(tmp_path, "retrain", config(broker, "re", "retrain", block)) as running:
            asks = {"post_mortem": {"suggested_action": "retrain"}}
            tell(broker, "re", incident(), incident(action="updated", **asks), incident(action="resolved", **asks))
            tell(broker, "re", incident("feed", post_mortem={"suggested_action": "fix_feed"}))
            tell(broker, "re", incident("other", annotations={"suggested_action": "retrain"}))
            eventually(lambda: len(server.events) == 2, "two requests")
            eventually(lambda: running.metric("streamproc_bridge_skipped_total") == 3, "the rest asks for none")
            running.again()
            running.ready()
            tell(broker, "re", incident(action="resolved", id="another", **asks))
            eventually(lambda: running.metric("streamproc_bridge_skipped_total") == 1, "asked already")
            messages = read(broker, "re-requests", partitions=1, at_least=2)
    assert server.invalid == []
    # What was on its way when it was killed may be there twice, under one id.
    by_id = {dict(m.headers())["ce_id"]: m for m in messages}
    assert [m.key() for m in by_id.values()] == [b"fraud", b"other"]
    request = orjson.loads(messages[0].value())
    assert (request["model"], request["episode_id"]) == ("fraud", "fraud-incident")
    headers = {k.removeprefix("ce_"): v.decode() for k, v in messages[0].headers() if k.startswith("ce_")}
    assert wrong({**headers, "data": request}, CLOUDEVENT) is None
    assert headers["id"] == request["id"]


def test_mlflow_versions_carry_what_is_firing_and_ok_when_it_is_over(broker: str, tmp_path: Path) -> None:
    with Mlflow(("fraud", "3"), ("other", "7"), aliases={("other", "champion"): "7"}) as server:
        block = {"url": server.url, "alias": "champion"}
        v3 = {"model_version": "3"}
        with bridge(tmp_path, "mlflow", config(broker, "ml", "mlflow", block)) as running:
            accuracy = {"labels": {**v3, "signal": "accuracy"}, "signal": "accuracy", "fingerprint": "fp-2"}
            tell(broker, "ml", alert(labels=v3), alert(episode="e2", **accuracy), alert("other"), alert("unknown"))
            eventually(lambda: running.metric("streamproc_bridge_skipped_total") == 1, "one is not registered")
            assert server.tags["fraud", "3"] == {"streamproc.status": "firing: accuracy, latency"}
            assert server.tags["other", "7"] == {"streamproc.status": "firing: latency"}
            # A version may have been replaced meanwhile: the tag is taken off where it was put.
            tell(broker, "ml", alert(action="resolved", labels={"model_version": "4"}))
            eventually(lambda: server.tags["fraud", "3"] == {"streamproc.status": "firing: accuracy"}, "one is over")
            tell(broker, "ml", alert(action="resolved", episode="e2", **accuracy))
            eventually(lambda: server.tags["fraud", "3"] == {"streamproc.status": "ok"}, "all is over")
            assert running.metric("streamproc_bridge_dead_letters_total") == 0


def test_only_what_matches_is_told_and_it_is_told_to_its_end(broker: str, tmp_path: Path) -> None:
    with Webhooks() as server:
        block = {"url": server.url, "secrets": [server.SECRET], "match": {"severity": "critical", "model": "fr*"}}
        with bridge(tmp_path, "webhook", config(broker, "match", "webhook", block)) as running:
            tell(broker, "match", alert(), alert("zoo", severity="critical"))
            tell(broker, "match", alert(action="escalated", severity="critical"), alert(action="resolved"))
            eventually(lambda: len(server.events) == 2, "from the escalation on")
            assert running.metric("streamproc_bridge_skipped_total") == 2
    assert list(server.events) == ["fraud-1-escalated", "fraud-1-resolved"]


@pytest.mark.kafka
def test_two_of_one_name_share_the_partitions_and_one_takes_over_from_the_other(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    with PagerDuty() as server:
        text = config(kafka.bootstrap, "two", "pagerduty", pagerduty(server), partitions=4)
        models = [f"m{i}" for i in range(12)]
        with bridge(tmp_path, "pagerduty", text) as one, bridge(tmp_path, "pagerduty", text, name="other") as other:
            tell(kafka.bootstrap, "two", *map(alert, models))
            eventually(lambda: len(server.pages) == 12, "all of them")
            total = "streamproc_bridge_delivered_total"
            eventually(lambda: one.metric(total) > 0 and other.metric(total) > 0, "by both")
            other.stop(signal.SIGKILL)
            tell(kafka.bootstrap, "two", *(alert(m, "resolved") for m in models))
            eventually(lambda: len(server.resolved) == 12, "by the one that is left", 60)
    assert sorted(server.pages) == sorted({f"fp-{m}" for m in models})


def test_a_config_read_again_mends_what_a_delivery_waits_for_and_ends_what_was_told(
    broker: str, tmp_path: Path
) -> None:
    # An hour between two attempts: nothing but the reload can be what delivers.
    slow = {"max_backoff": "3600s"}
    with PagerDuty() as old, PagerDuty() as new:
        text = config(broker, "again", "pagerduty", pagerduty(old, match={"model": "fraud"}))
        with bridge(tmp_path, "pagerduty", text) as running:
            tell(broker, "again", alert(), alert("churn"))
            eventually(lambda: old.pages == ["fp-fraud"], "the one that fits")
            old.fail = [(503, {"Retry-After": "3000"}, b"")]
            tell(broker, "again", alert(action="updated"))
            eventually(lambda: running.metric("streamproc_bridge_retries_total") == 1, "it waits")
            moved = pagerduty(new, match={"model": "[!f]*"}, **slow)
            running.config.write_text(config(broker, "again", "pagerduty", moved))
            assert running.get("/-/reload", method="POST") == (200, "reloaded\n")
            eventually(lambda: new.open, "what waited, at the other address")
            assert new.pages == ["fp-fraud"]
            # What fits now is told from now on; what was told of before goes on to its end.
            tell(broker, "again", alert("churn", action="updated"), alert("ads"), alert("fraud", episode="f2"))
            tell(broker, "again", alert(action="resolved"))
            eventually(lambda: new.resolved == ["fp-fraud"], "its end")
            assert sorted(new.pages) == ["fp-ads", "fp-churn", "fp-fraud"]
            assert running.metric("streamproc_bridge_config_last_reload_successful") == 1
            assert running.stop() == 0
    assert (old.pages, old.resolved, old.invalid, new.invalid) == (["fp-fraud"], [], [], [])


def test_a_config_that_cannot_be_taken_changes_nothing(broker: str, tmp_path: Path) -> None:
    with PagerDuty() as server:
        block = pagerduty(server)
        text = config(broker, "kept", "pagerduty", block)
        with bridge(tmp_path, "pagerduty", text) as running:
            for wrong_text, why in (
                ("version: 1\nkafka: {}", "kafka"),
                (config(broker, "other", "pagerduty", block), "`kafka` has changed, which needs a restart"),
                (config(broker, "kept", "pagerduty", {**block, "topic": "incidents"}), "test.topic` has changed"),
                (text.replace('"test"', '"night"'), "`bridges.pagerduty.test` is gone, which needs a restart"),
                (config(broker, "kept", "pagerduty", {**block, "ssl_cafile": "/nowhere"}), "/nowhere cannot be used"),
            ):
                running.config.write_text(wrong_text)
                status, said = running.get("/-/reload", method="POST")
                assert status == 400
                assert why in said
                assert "running config unchanged" in said
            assert running.metric("streamproc_bridge_config_last_reload_successful") == 0
            running.config.write_text(text)
            running.process.send_signal(signal.SIGHUP)
            running.until(lambda: running.metric("streamproc_bridge_config_last_reload_successful") == 1, "the signal")
            tell(broker, "kept", alert())
            eventually(lambda: server.pages == ["fp-fraud"], "told as ever")


def test_slack_goes_on_with_the_messages_there_are_after_a_reload(broker: str, tmp_path: Path) -> None:
    with Slack() as server:
        block = {"api_url": f"{server.url}/api", "token": server.TOKEN, "channel": server.CHANNEL}
        with bridge(tmp_path, "slack", config(broker, "sl2", "slack", block)) as running:
            tell(broker, "sl2", alert())
            eventually(lambda: len(server.messages) == 1, "posted")
            running.config.write_text(config(broker, "sl2", "slack", {**block, "dashboard_url": "https://dash/{model}"}))
            assert running.get("/-/reload", method="POST")[0] == 200
            asked = sum("conversations" in r.path for r in server.requests)
            tell(broker, "sl2", alert(action="updated"))
            eventually(lambda: len(server.messages) == 2, "its reply")
            assert sum("conversations" in r.path for r in server.requests) == asked
