"""What a config cannot mean is refused, what it hardly means is said, and all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamproc import rules
from streamproc.config import Config, Effect
from streamproc.errors import ConfigError, ConfigIssue
from streamproc.rules import RuleBook
from streamproc.signals import find
from tests.core.make import MINIMUM
from tests.core.test_cli import said, streamproc

KAFKA = "version: 1\nkafka: {brokers: 'a:1', predictions: [p]}\n"


def found(text: str) -> list[str]:
    """Return code and path of all that is said of a config."""
    doubts: list[ConfigIssue] = []
    try:
        rules.parse(text, env={}, doubts=doubts)
    except ConfigError as e:
        return [f"{i.code} {i.path}" for i in e.issues]
    return [f"{i.code} {i.path}" for i in doubts]


def message(text: str) -> str:
    doubts: list[ConfigIssue] = []
    try:
        rules.parse(text, name="w.yaml", env={}, doubts=doubts)
    except ConfigError as e:
        return str(e)
    return "\n".join(map(str, doubts))


def signals(text: str, kafka: str = MINIMUM) -> str:
    return f"{kafka}defaults:\n  signals:\n    {text}\n"


def model(text: str) -> str:
    return f"{MINIMUM}models:\n- match: {{model: m}}\n  {text}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (signals("error_rate: {upper_limit: 5}"), ["E050 defaults.signals.error_rate.upper_limit"]),
        (signals("error_rate: {upper_limit: 105%}"), ["E050 defaults.signals.error_rate.upper_limit"]),
        (signals("error_rate: {lower_limit: -0.1}"), ["E050 defaults.signals.error_rate.lower_limit"]),
        (signals('"class_share:x": {upper_limit: 2}'), ["E050 defaults.signals.class_share:x.upper_limit"]),
        (signals("accuracy: {min_effect: 2}"), ["E050 defaults.signals.accuracy.min_effect"]),
        (signals("error_rate: {upper_limit: 5%}"), []),
        (signals("tokens_in: {upper_limit: 5}"), []),
        (signals("latency_p95: {upper_limit: 1s, lower_limit: 2s}"), ["E051 defaults.signals.latency_p95.lower_limit"]),
        (signals("latency_p95: {upper_limit: 1s, lower_limit: 1000ms}"),
         ["E051 defaults.signals.latency_p95.lower_limit"]),
        (signals("latency_p95: {upper_limit: 1s, lower_limit: 1ms}"), []),
        # Said in two places, and one rule at the end.
        (signals("latency_p95: {lower_limit: 2s}") + "models:\n- match: {}\n"
         "  signals: {latency_p95: {upper_limit: 1s}}",
         ["E051 models[0].signals.latency_p95.upper_limit"]),
        # Globs.
        (MINIMUM + "models:\n- match: {model: ''}", ["E052 models[0].match.model"]),
        (MINIMUM + "models:\n- match: {model: 'fraud-[9-0]'}", ["E052 models[0].match.model"]),
        (MINIMUM + "models:\n- match: {model: '^fraud-.*$'}", ["W013 models[0].match.model"]),
        (MINIMUM + "models:\n- match: {model: 'fraud-.*'}", ["W013 models[0].match.model"]),
        (MINIMUM + "models:\n- match: {model: 'fraud.*'}", []),
        (MINIMUM + "models:\n- match: {model: 'fraud-?'}", []),
        (MINIMUM + "defaults: {discover: {models: ['a*', '^b']}}", ["W013 defaults.discover.models[1]"]),
        (MINIMUM + "defaults: {discover: {models: []}}", ["W013 defaults.discover.models"]),
        (MINIMUM + "silences:\n- {match: {signal: 'latncy_*'}, from: 2026-01-01, to: 2026-01-02}",
         ["E052 silences[0].match.signal"]),
        (MINIMUM + "silences:\n- {match: {signal: 'latency_*'}, from: 2026-01-01, to: 2026-01-02}", []),
        (MINIMUM + "silences:\n- {match: {signal: 'class_share:fraud'}, from: 2026-01-01, to: 2026-01-02}", []),
        (MINIMUM + "silences:\n- {match: {segment: DE}, from: 2026-01-01, to: 2026-01-02}",
         ["E052 silences[0].match.segment"]),
        (MINIMUM + "silences:\n- {match: {segment: 'country=DE'}, from: 2026-01-01, to: 2026-01-02}", []),
        (MINIMUM + "bridges: {webhook: {x: {url: 'http://x', match: {sverity: critical}}}}",
         ["E052 bridges.webhook.x.match.sverity"]),
        (MINIMUM + "bridges: {webhook: {x: {url: 'http://x', match: {severity: page}}}}",
         ["E052 bridges.webhook.x.match.severity"]),
        (MINIMUM + "bridges: {webhook: {x: {url: 'http://x', match: {severity: 'c*', team: risk}}}}", []),
        (MINIMUM + "bridges: {webhook: {x: {url: 'http://x', topic: theirs, match: {their: own}}}}", []),
        # Placeholders.
        (model("runbook: 'https://r/{modle}'"), ["E053 models[0].runbook"]),
        (model("runbook: 'https://r/{model}/{signal}'"), []),
        (model("dashboard: 'https://g/{model}?from={from_ms}&to={to}'"), ["E053 models[0].dashboard"]),
        (MINIMUM + "bridges: {slack: {x: {webhook_url: 'http://x', dashboard_url: 'http://g/{modle}'}}}",
         ["E053 bridges.slack.x.dashboard_url"]),
        (MINIMUM + "bridges: {slack: {x: {webhook_url: 'http://x', dashboard_url: 'http://g/{model}/{team}'}}}", []),
        # What nobody reads.
        (signals("accuracy: {min_effect: 1%}", KAFKA), ["W010 defaults.signals.accuracy"]),
        (signals("label_share: {severity: info}", KAFKA), ["W010 defaults.signals.label_share"]),
        (signals('"metric:gpu": {severity: info}', KAFKA), ["W010 defaults.signals.metric:gpu"]),
        (signals("accuracy: {mode: off}", KAFKA), []),
        (signals("accuracy: {min_effect: 1%}"), []),
        (KAFKA + "models:\n- {match: {model: m}, labels: {max_delay: 3d}}", ["W010 models[0].labels"]),
        # Waits.
        (signals("error_rate: {for: 30s}"), ["W011 defaults.signals.error_rate.for"]),
        (signals("error_rate: {for: 60s}"), []),
        (signals("latency: {detector: spike, for: 30s}"), []),
        (MINIMUM + "defaults: {for: 30s}", ["W011 defaults.for"]),
        (model("window: 5m\n  signals: {error_rate: {for: 3m}}"), ["W011 models[0].signals.error_rate.for"]),
    ],
)  # fmt: skip
def test_it_is_told_what_cannot_be_meant_or_hardly(text: str, expected: list[str]) -> None:
    assert found(text) == expected


def test_the_messages_say_what_to_do() -> None:
    assert message(signals("error_rate: {upper_limit: 5}")).endswith(
        "error_rate is a share, from 0 to 1, and never 5; did you mean 5%?"
    )
    assert message(model("runbook: '{modle}'")).endswith("nothing stands for {modle}; did you mean {model}?")
    assert message(MINIMUM + "models:\n- match: {model: '^fraud-.*$'}").startswith(
        'w.yaml:4:18 warning W013 models[0].match.model\n  "^fraud-.*$" looks like a regular expression, '
        'and is taken as a glob; did you mean "fraud-*"?'
    )
    assert message(signals("accuracy: {min_effect: 1%}", KAFKA)).endswith(
        "is never watched: it needs kafka.labels, and no such topic is named"
    )


BLOCKS = MINIMUM + """
models:
- match: {model: fraud-eu}
  window: 5m
  signals: {latency_p95: {min_effect: 50ms, severity: info}}
- match: {model: MODEL}
  owner: risk
  window: 2m
  signals: {latency_p95: {min_effect: 10ms}}
"""


@pytest.mark.parametrize("later", ["fraud-eu", "fraud-*", "*"])
def test_a_block_that_takes_back_what_an_earlier_one_says_is_named(later: str) -> None:
    text = BLOCKS.replace("MODEL", f"'{later}'")
    assert found(text) == ["W012 models[1].match.model"]
    assert "this one: window, signals.latency_p95.min_effect" in message(text)
    book = RuleBook(rules.parse(text, env={}))
    assert book.for_model("predictions", "fraud-eu").window_us == 120_000_000


@pytest.mark.parametrize("later", ["fraud-us", "fraud-e?-2"])
def test_blocks_of_other_models_and_narrower_ones_are_no_news(later: str) -> None:
    assert found(BLOCKS.replace("MODEL", f"'{later}'")) == []
    assert found(BLOCKS.replace("fraud-eu", "'fraud-*'").replace("MODEL", "fraud-eu")) == []


def test_check_says_which_blocks_make_a_model_and_what_is_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(BLOCKS.replace("MODEL", "'fraud-*'"))
    run = streamproc("check", "--config", path, "--model", "fraud-eu")
    assert run.returncode == 0
    assert "by models[0] (fraud-eu), models[1] (fraud-*): the later wins, field by field" in said(run)
    assert "warning W012 models[1].match.model" in run.stderr.decode()


FIVE = """
version: 2
kafka: {broker: 'a:1', predictions: p, partitions: none}
defaults: {windw: 1s, for: 3, sensitivity: hgh}
models:
- match: {model: a}
  signals:
    latency_p97: {}
    error_rate: {upper_limit: 5, breaches: 5/2}
- {owner: risk}
bridges: {webhook: {x: {url: nowhere, timeout: 5 parsecs}}}
"""


def test_all_mistakes_of_all_kinds_are_told_at_once() -> None:
    assert sorted(found(FIVE)) == [
        "E010 bridges.webhook.x.timeout",
        "E010 defaults.for",
        "E010 defaults.sensitivity",
        "E010 kafka.partitions",
        "E010 kafka.predictions",
        "E010 models[0].signals.error_rate.breaches",
        "E010 models[1]",
        "E010 version",
        "E011 defaults.windw",
        "E011 kafka.broker",
        "E027 bridges.webhook.x.url",
        "E030 models[0].signals.latency_p97",
        "E050 models[0].signals.error_rate.upper_limit",
    ]


def test_a_key_given_twice_a_missing_variable_and_a_wrong_value_are_told_together() -> None:
    text = "version: 1\nkafka: {brokers: '${NOWHERE}', predictions: [p]}\ndefaults: {window: 1s, window: 2s, for: 3}\n"
    assert found(text) == ["E004 defaults.window", "E005 kafka.brokers", "E010 defaults.for"]


def test_nothing_is_said_only_because_what_was_wrong_is_gone() -> None:
    assert found("version: 1\nkafka: {brokers: a, predictions: {p: 1}}") == ["E010 kafka.predictions"]
    assert found("version: 1\nkafka: 5") == ["E010 kafka"]
    assert found("version: 1") == ["E010 "]
    assert found(MINIMUM + "models: 5") == ["E010 models"]
    assert found(MINIMUM + "silences:\n- {match: {}, from: never, to: 2026-01-01}") == ["E010 silences[0].from"]


# ---- YAML as people write it


def test_off_and_on_are_the_words_that_they_are() -> None:
    for word in ("off", "OFF", "Off", "'off'"):
        config = rules.parse(signals(f"error_rate: {{mode: {word}}}"), env={})
        assert rule(config, "error_rate").mode == "off"
    assert rule(rules.parse(signals("error_rate: {mode: on}"), env={}), "error_rate").mode == "on"
    # A truth value stays one where one is meant, and a name a name.
    models = "models:\n- {match: {model: no}, owner: on}\n"
    config = rules.parse(MINIMUM + "worker: {redact: on, idle_advance: no}\n" + models, env={})
    assert (config.worker.redact, config.worker.idle_advance) == (True, False)
    assert (config.models[0].match.model, config.models[0].owner) == ("no", "on")
    bridge = rules.parse(
        MINIMUM + "bridges: {alertmanager: {x: {urls: ['http://x'], labels: {no: yes}}}}", env={}
    ).bridges.alertmanager["x"]
    assert bridge.labels == {"no": "yes"}
    assert found(signals("error_rate: {mode: yes}")) == ["E010 defaults.signals.error_rate.mode"]


def rule(config: Config, name: str) -> rules.SignalRule:
    assert not isinstance(config.defaults.signals, str)
    return config.defaults.signals[name]


MERGED = """
x-strict: &strict {min_effect: 10ms, severity: critical}
x-calm: &calm {severity: info, for: 5m}
x-note: {anything: [at, all], even: "${NOWHERE}"}
version: 1
kafka: {brokers: 'a:1', predictions: [p]}
defaults:
  signals:
    latency_p50: *strict
    latency_p95: {<<: *strict, for: 2m}
    latency_p99: {<<: [*strict, *calm], min_effect: 99ms}
"""


def test_anchors_merge_keys_and_blocks_of_ones_own_are_understood() -> None:
    config = rules.parse(MERGED.replace("${NOWHERE}", ""), env={})
    p50, p95, p99 = (rule(config, f"latency_p{q}") for q in (50, 95, 99))
    assert (repr(p50.min_effect), p50.severity, p50.for_) == ("10ms", "critical", None)
    assert (repr(p95.min_effect), p95.severity, repr(p95.for_)) == ("10ms", "critical", "2m")
    # What is written goes over what is merged, and the first of several over those after it.
    assert (repr(p99.min_effect), p99.severity, repr(p99.for_)) == ("99ms", "critical", "5m")


def test_a_mistake_in_what_is_merged_is_shown_where_it_stands() -> None:
    text = MERGED.replace("${NOWHERE}", "").replace("severity: info", "severity: infos")
    assert "w.yaml:3:26 error E010" in message(text.replace("[*strict, *calm]", "*calm"))
    wrong = MERGED.replace("${NOWHERE}", "").replace("<<: *strict", "<<: 7")
    assert message(wrong).startswith("w.yaml:10:23 error E002")
    assert message(MINIMUM + "y-own: 1").startswith("w.yaml:3:1 error E011")


# ---- effects as they are printed


@pytest.mark.parametrize(
    ("signal", "text", "absolute", "relative"),
    [
        ("latency_p95", "20%", 0.0, 0.2),
        ("latency_p95", "50ms", 0.05, 0.2),
        ("latency_p95", "0.05 s and 20%", 0.05, 0.2),
        ("latency_p95", "50ms and 10%", 0.05, 0.1),
        ("tokens_in", "30%", 0.0, 0.3),
        ("tokens_in", 7, 7.0, 0.25),
        ("prediction_value", "10%", 0.0, 0.1),
        ("error_rate", "2%", 0.02, 0.0),
        ("error_rate", 0.02, 0.02, 0.0),
    ],
)
def test_an_effect_is_written_as_it_is_printed(signal: str, text: object, absolute: float, relative: float) -> None:
    written = f"'{text}'" if isinstance(text, str) else text
    book = RuleBook(rules.parse(signals(f"{signal}: {{min_effect: {written}}}"), env={}))
    found = book.for_model("predictions", "m").of(signal)[0]
    assert (found.min_effect, found.relative_effect) == pytest.approx((absolute, relative))
    spec = find(signal)
    assert spec is not None
    again = Effect.parse(repr(Effect.parse(text)))
    assert again.to(spec.unit, name=signal, share=spec.share) == Effect.parse(text).to(
        spec.unit, name=signal, share=spec.share
    )


def test_check_prints_an_effect_that_the_config_takes(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(signals("latency_p95: {min_effect: 50ms and 12.5%}"))
    line = next(x for x in said(streamproc("check", "-c", path)).splitlines() if "latency_p95" in x)
    printed = "0.05 s and 12.5%"
    assert printed in line
    assert found(signals(f"latency_p95: {{min_effect: {printed}}}")) == []


def test_an_effect_that_fits_no_signal_is_refused() -> None:
    for text in ("20% and 30%", "1s and 2s", "5 apples", "and", "50"):
        assert found(signals(f"latency_p95: {{min_effect: '{text}'}}"))[0][:4] in ("E010", "E012")
