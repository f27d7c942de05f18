"""A config that is right needs little; one that is wrong says where, what, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamproc import config as config_module
from streamproc import rules
from streamproc.config import Breaches, Duration, Quantity
from streamproc.errors import ConfigError
from tests.core.make import MINIMUM

ROOT = Path(__file__).parents[2]

KAFKA = "version: 1\nkafka: {brokers: 'a:1', predictions: [p]}\n"


def problems(text: str, **env: str) -> str:
    with pytest.raises(ConfigError) as e:
        rules.parse(text, name="worker.yaml", env=env)
    return str(e.value)


def test_two_blocks_are_enough() -> None:
    config = rules.parse(MINIMUM, env={})
    assert config.defaults.sensitivity == "medium"
    assert config.kafka.sources() == {
        "predictions": "predictions",
        "telemetry": "telemetry",
        "labels": "labels",
    }
    assert config.discovers("anything")


def test_the_config_of_the_compose_file_loads() -> None:
    config = rules.load(ROOT / "deploy/worker.yaml", env={"KAFKA_BROKERS": "kafka:9092"})
    assert config.kafka.broker_list() == ["kafka:9092"]


def test_the_config_of_the_examples_loads() -> None:
    assert rules.load(ROOT / "examples/demo.yaml", env={}).defaults.window == Duration(500_000)


def test_the_environment_fills_in_and_a_default_stands_where_it_does_not() -> None:
    text = "version: 1\nkafka: {brokers: '${A},${B:-b:2}', predictions: [p]}"
    assert rules.parse(text, env={"A": "a:1"}).kafka.broker_list() == ["a:1", "b:2"]


# The whole message, place and remedy: this is what an operator sees.
GOLDEN = {
    "a limit without its unit": (
        KAFKA + "models:\n- match: {model: 'f-*'}\n  signals:\n    latency_p95: {min_effect: 50}",
        "worker.yaml:6:31 error E012 models[0].signals.latency_p95.min_effect\n"
        '  "50" has no unit; did you mean 50ms or 50s?',
    ),
    "a duration without its unit": (
        KAFKA + "defaults: {for: 3}",
        'worker.yaml:3:17 error E010 defaults.for\n  "3" has no unit; did you mean 3s or 3ms?',
    ),
    "a duration with a unit there is not": (
        KAFKA + "defaults: {for: 3 parsecs}",
        "worker.yaml:3:17 error E010 defaults.for\n"
        '  "3 parsecs" is no duration; write a number and one of us, ms, s, m, h, d, such as 30s',
    ),
    "a unit where a share is meant": (
        KAFKA + "models:\n- match: {}\n  signals: {error_rate: {min_effect: 50ms}}",
        "worker.yaml:5:38 error E012 models[0].signals.error_rate.min_effect\n"
        '  "50ms": error_rate is measured in "1"; leave the unit out',
    ),
    "an unknown key near a known one": (
        KAFKA + "defaults: {windw: 1s}",
        "worker.yaml:3:12 error E011 defaults.windw\n  there is no `windw`; did you mean `window`?",
    ),
    "an unknown key in a list of blocks": (
        KAFKA + "models:\n- match: {model: a}\n  sinals: {}",
        "worker.yaml:5:3 error E011 models[0].sinals\n  there is no `sinals`; did you mean `signals`?",
    ),
    "a word that is not allowed": (
        KAFKA + "defaults: {sensitivity: hgh}",
        "worker.yaml:3:25 error E010 defaults.sensitivity\n"
        '  "hgh" is not allowed; did you mean high? write low or medium or high',
    ),
    "another version": (
        "version: 2\nkafka: {brokers: a, predictions: [p]}",
        'worker.yaml:1:10 error E010 version\n  "2" is not allowed; write 1',
    ),
    "a number out of range": (
        KAFKA + "worker: {web_port: 70000}",
        "worker.yaml:3:20 error E010 worker.web_port\n  expected `int` <= 65535",
    ),
    "a number where a list belongs": (
        KAFKA + "models: 5",
        "worker.yaml:3:9 error E010 models\n  expected `array`, got `int`",
    ),
    "k of n the wrong way round": (
        KAFKA + "models:\n- match: {}\n  signals: {error_rate: {breaches: 5/2}}",
        "worker.yaml:5:36 error E010 models[0].signals.error_rate.breaches\n"
        '  "5/2" is not k/n with 1 <= k <= n <= 1000, such as 5/20',
    ),
    "a missing field": (
        "version: 1\nkafka: {predictions: [p]}",
        "worker.yaml:2:8 error E010 kafka\n  is missing its required field `brokers`",
    ),
    "a key given twice": (
        KAFKA + "defaults: {for: 1s, for: 2s}",
        "worker.yaml:3:21 error E004 defaults.for\n  is given twice",
    ),
    "a variable that is not set": (
        "version: 1\nkafka: {brokers: '${BROKERS}', predictions: [p]}",
        "worker.yaml:2:18 error E005 kafka.brokers\n"
        "  the environment has no BROKERS; set it, or write ${BROKERS:-default}",
    ),
    "an empty file": (
        "",
        "worker.yaml:1:1 error E003\n"
        "  a config is a mapping with `version` and `kafka`; this file is empty or a list",
    ),
    "a tab": (
        KAFKA + "\tx: 1",
        "worker.yaml:3:1 error E002\n"
        "  is not YAML: found character '\\t' that cannot start any token; indent with spaces, not tabs",
    ),
    "no topic to read": (
        "version: 1\nkafka: {brokers: a}",
        "worker.yaml:2:8 error E021 kafka\n"
        "  reads no topic; name at least one under predictions, telemetry or labels",
    ),
    "a window too small": (
        KAFKA + "defaults: {window: 10us}",
        "worker.yaml:3:20 error E025 defaults.window\n  a window is at least 1ms",
    ),
    "a signal there is not": (
        KAFKA + "models:\n- match: {}\n  signals: {latency_p97: {}}",
        "worker.yaml:5:13 error E030 models[0].signals.latency_p97\n"
        "  there is no signal `latency_p97`; did you mean `latency_p99`?",
    ),
    "a detector that does not fit": (
        KAFKA + "models:\n- match: {}\n  signals: {latency_p95: {detector: silence}}",
        "worker.yaml:5:37 error E031 models[0].signals.latency_p95.detector\n"
        "  `silence` watches arrivals and only the signal `silence` is that",
    ),
    "a parameter there is not": (
        KAFKA + "models:\n- match: {}\n  signals: {latency_p95: {detector: adwin, params: {delt: 0.1}}}",
        "worker.yaml:5:59 error E032 models[0].signals.latency_p95.params.delt\n"
        '  adwin: unknown parameter "delt"; did you mean "delta"?',
    ),
    "a parameter out of range": (
        KAFKA + "models:\n- match: {}\n  signals: {latency_p95: {params: {window: 1}}}",
        "worker.yaml:5:44 error E032 models[0].signals.latency_p95.params.window\n"
        "  robust_z: window = 1 is not allowed; expected an integer >= 5 and <= 100000",
    ),
    "a limit on what has no single value": (
        KAFKA + "models:\n- match: {}\n  signals: {silence: {upper_limit: 5s}}",
        "worker.yaml:5:22 error E033 models[0].signals.silence\n"
        "  silence takes no limits; it has no single value",
    ),
}


@pytest.mark.parametrize("mistake", GOLDEN)
def test_a_mistake_says_where_what_and_what_to_do(mistake: str) -> None:
    text, message = GOLDEN[mistake]
    assert problems(text) == message


def test_a_detector_there_is_not_gets_the_nearest_one() -> None:
    said = problems(KAFKA + "models:\n- match: {}\n  signals: {latency_p95: {detector: adwinn}}")
    assert "worker.yaml:5:37 error E031 models[0].signals.latency_p95.detector\n" in said
    assert 'did you mean "adwin"?' in said


def test_a_detector_of_another_kind_is_told_those_that_fit() -> None:
    said = problems(KAFKA + "models:\n- match: {}\n  signals: {latency_p95: {detector: half_space_trees}}")
    assert "watches a vector and latency_p95 is a value; these fit: adwin, " in said
    assert "silence" not in said.partition("these fit")[2]


def test_all_mistakes_are_told_at_once() -> None:
    said = problems(
        "version: 1\nkafka: {brokers: '', predictions: [p, p], alerts: p, security_protocol: SASL_SSL}\n"
        "models:\n- match: {}\n  signals: {nothing: {}, error_rate: {min_effect: 5s}}"
    )
    assert [line.split()[2] for line in said.splitlines() if " error " in line] == [
        "E020", "E024", "E022", "E023", "E030", "E012"
    ]  # fmt: skip


def test_all_unknown_keys_are_told_at_once() -> None:
    said = problems(KAFKA.replace("brokers", "broker") + "defaults: {windw: 1s, latness: 2s}")
    assert said.count("E011") == 3


def test_a_file_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml error E001"):
        rules.load(tmp_path / "missing.yaml", env={})


def test_a_file_that_is_not_text_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_bytes(b"version: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 9"):
        rules.load(tmp_path / "w.yaml", env={})


@pytest.mark.parametrize("tag", ["!!python/name:os.system ''", "!secret x", "!!timestamp nonsense"])
def test_a_tag_of_yaml_is_refused_with_its_place(tag: str) -> None:
    assert problems(KAFKA + f"defaults: {{window: {tag}}}").startswith("worker.yaml:3:20 error E002")


def test_an_alias_to_itself_is_refused() -> None:
    assert "holds itself" in problems(KAFKA + "defaults: &a {discover: *a}")


def test_a_list_where_a_key_belongs_is_refused_with_its_place() -> None:
    assert problems(KAFKA + "? [a, b]\n: 1").startswith("worker.yaml:3:3 error E011")


@pytest.mark.parametrize(
    ("text", "us"), [("250ms", 250_000), ("3m", 180_000_000), ("7d", 604_800_000_000), ("0s", 0)]
)
def test_a_duration_reads_back_as_written(text: str, us: int) -> None:
    assert Duration.parse(text).us == us
    assert Duration.parse(repr(Duration(us))).us == us


@pytest.mark.parametrize(
    ("text", "unit", "number"), [("50ms", "s", 0.05), ("2%", "1", 0.02), (0.05, "1", 0.05), ("3", "1/s", 3.0)]
)
def test_a_quantity_is_taken_in_the_signals_unit(text: object, unit: str, number: float) -> None:
    assert Quantity.parse(text).to(unit, name="x") == pytest.approx(number)


def test_breaches_read_back_as_written() -> None:
    assert repr(Breaches.parse(" 5 / 20 ")) == "5/20"


def test_a_digest_tells_contents_apart() -> None:
    assert config_module.digest("a") != config_module.digest("b")
