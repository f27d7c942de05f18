"""The command and its config, before any broker is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamproc import cli, config, rules
from streamproc.bridges import run
from streamproc.errors import ConfigError, UsageError
from streamproc.worker.child import free_port
from tests.bridges.harness import Bridge

KEY = "e93facc04764012d7bfb002500d5d1a6"


def parse(bridges: Any, **kafka: Any) -> config.Config:
    tree = {"version": 1, "kafka": {"brokers": "a:1", "predictions": ["p"], **kafka}, "bridges": bridges}
    return rules.parse(json.dumps(tree), name="x.yaml", env={})


@pytest.mark.parametrize(
    ("bridges", "where", "said"),
    [
        ({"pagerduty": {"a": {"routing_key": "short"}}}, "bridges.pagerduty.a.routing_key", "has 32"),
        ({"pagerduty": {"a b": {"routing_key": KEY}}}, "bridges.pagerduty.a b", "consumer group"),
        ({"pagerduty": {"a": {"routing_key": KEY, "topic": "pages"}}}, "bridges.pagerduty.a.topic", "kafka: {pages"),
        ({"slack": {"a": {}}}, "bridges.slack.a", "webhook_url"),
        ({"slack": {"a": {"token": "x"}}}, "bridges.slack.a.token", "channel"),
        ({"webhook": {"a": {"url": "hooks.example.com"}}}, "bridges.webhook.a.url", "http://"),
        ({"webhook": {"a": {"url": "http://x", "secrets": ["c2hvcnQ="]}}}, "bridges.webhook.a.secrets[0]", "24 to 64"),
        ({"webhook": {"a": {"url": "http://x", "secrets": ["no base64!"]}}}, "bridges.webhook.a.secrets[0]", "openssl"),
        ({"retrain": {"a": {"requests": None}}}, "bridges.retrain.a", "asks nobody"),
        ({"retrain": {"a": {"suggested": False}}}, "bridges.retrain.a", "every alert"),
        ({"alertmanager": {"a": {"urls": []}}}, "bridges.alertmanager.a.urls", "length"),
        ({"alertmanager": {"a": {"urls": ["http://x"], "resend": "10ms"}}}, "bridges.alertmanager.a.resend", "1s"),
        ({"mlflow": {"a": {"url": "http://x", "tagg": "y"}}}, "bridges.mlflow.a.tagg", "did you mean `tag`?"),
    ],
)
def test_a_block_that_cannot_be_meant_is_named_with_its_remedy(bridges: Any, where: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(bridges)
    assert [issue.path for issue in raised.value.issues] == [where]
    assert said in raised.value.issues[0].message


def test_an_address_that_is_a_credential_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as raised:
        parse({"slack": {"a": {"webhook_url": "hooks.slack.com/services/T0/B0/secret"}}})
    assert "secret" not in str(raised.value)


def test_the_commands_kinds_are_the_configs() -> None:
    assert cli.BRIDGES == config.BRIDGES == config.Bridges.__struct_fields__


def test_a_bridge_is_chosen_by_name_where_there_are_several() -> None:
    two = parse({"pagerduty": {"a": {"routing_key": KEY}, "b": {"routing_key": KEY, "topic": "incidents"}}})
    with pytest.raises(UsageError, match="which of a, b"):
        run.choose(two, "pagerduty")
    with pytest.raises(UsageError, match="known: a, b"):
        run.choose(two, "pagerduty", name="c")
    with pytest.raises(UsageError, match="no `bridges"):
        run.choose(two, "slack")
    assert run.choose(two, "pagerduty", name="b").topic == "incidents"
    assert run.choose(two, "pagerduty", name="b").group(two) == "streamproc-bridge-pagerduty-b"


def test_topics_go_by_what_they_are_called_in_the_config() -> None:
    made = parse({"webhook": {"a": {"url": "http://x"}}}, alerts="my-alerts", pages="my-pages")
    topics = {t: run.choose(made, "webhook", topic=t).topic for t in ("alerts", "pages", "incidents", "any", None)}
    assert topics == {
        "alerts": "my-alerts", "pages": "my-pages", "incidents": "incidents", "any": "any", None: "my-alerts"
    }  # fmt: skip
    with pytest.raises(UsageError, match="there are no pages"):
        run.choose(parse({"webhook": {"a": {"url": "http://x"}}}), "webhook", topic="pages")


def test_an_unreachable_broker_is_exit_4_after_the_timeout(tmp_path: Path) -> None:
    tree = {"version": 1, "kafka": {"brokers": f"127.0.0.1:{free_port()}", "predictions": ["p"]},
            "bridges": {"webhook": {"a": {"url": "http://x"}}}}  # fmt: skip
    running = Bridge(tmp_path, "webhook", json.dumps(tree), arguments=["--connect-timeout", "1"])
    assert running.process.wait(60) == 4
    assert "no Kafka broker" in running.log.read_text()
