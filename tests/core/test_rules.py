"""What the layers of a config come to for one model."""

from __future__ import annotations

from streamproc.rules import Rule, RuleBook
from tests.core.make import config


def rules_of(extra: str, model: str, signal: str, kind: str = "predictions") -> list[Rule]:
    return RuleBook(config(extra)).for_model(kind, model).of(signal)  # type: ignore[arg-type]


def only(extra: str, model: str, signal: str) -> Rule:
    (rule,) = rules_of(extra, model, signal)
    return rule


LAYERS = """
defaults:
  sensitivity: low
  for: 1m
  signals:
    latency_p95: {min_effect: 10ms, severity: info}
models:
- match: {model: 'fraud-*'}
  owner: risk
  sensitivity: high
  signals: {latency_p95: {min_effect: 20ms}}
- match: {model: fraud-eu}
  owner: risk-eu
  signals: {latency_p95: {severity: critical}}
"""


def test_a_later_block_wins_field_by_field() -> None:
    rule = only(LAYERS, "fraud-eu", "latency_p95")
    assert (rule.min_effect, rule.severity, rule.owner, rule.sensitivity) == (
        0.02,
        "critical",
        "risk-eu",
        "high",
    )


def test_a_model_no_block_matches_has_the_defaults() -> None:
    rule = only(LAYERS, "churn", "latency_p95")
    assert (rule.min_effect, rule.severity, rule.owner, rule.sensitivity) == (0.01, "info", "", "low")
    assert rule.policy.for_us == 60_000_000


def test_models_of_the_same_blocks_share_their_rules() -> None:
    book = RuleBook(config(LAYERS))
    assert book.for_model("predictions", "fraud-us") is book.for_model("predictions", "fraud-uk")
    assert book.for_model("predictions", "fraud-us") is not book.for_model("predictions", "fraud-eu")


FAMILY = """
defaults:
  signals:
    class_share: {min_effect: 0.2}
    "class_share:*": {severity: info}
    "class_share:fraud": {min_effect: 0.01}
    "class_share:never": {mode: "off"}
"""


def test_a_member_of_a_family_takes_the_familys_rule() -> None:
    rule = only(FAMILY, "m", "class_share:ok")
    assert (rule.signal, rule.min_effect, rule.severity) == ("class_share:ok", 0.2, "info")


def test_a_member_of_a_family_may_have_its_own() -> None:
    rule = only(FAMILY, "m", "class_share:fraud")
    assert (rule.min_effect, rule.severity) == (0.01, "info")


def test_limits_are_a_rule_beside_the_detectors() -> None:
    learned, limit = rules_of("defaults: {signals: {latency_p95: {upper_limit: 300ms}}}", "m", "latency_p95")
    assert (learned.detector, limit.detector) == ("robust_z", "limits")
    assert limit.params == {"upper": 0.3}
    assert (limit.severity, limit.direction, limit.min_effect) == ("critical", "both", 0.0)
    assert limit.structure != learned.structure


def test_limits_stay_where_the_signal_is_off() -> None:
    (limit,) = rules_of(
        "defaults: {signals: {latency_p95: {mode: 'off', upper_limit: 1s}}}", "m", "latency_p95"
    )
    assert limit.detector == "limits"


def test_a_signal_that_is_off_has_no_rule() -> None:
    assert rules_of("defaults: {signals: {latency_p95: {mode: 'off'}}}", "m", "latency_p95") == []


def test_a_signal_off_by_default_comes_with_its_detector() -> None:
    assert rules_of("", "m", "prediction_drift") == []
    assert (
        only("defaults: {signals: {prediction_drift: {detector: adwin}}}", "m", "prediction_drift").detector
        == "adwin"
    )
    assert (
        only("defaults: {signals: {prediction_drift: {mode: 'on'}}}", "m", "prediction_drift").detector
        == "drift"
    )


def test_shadow_is_said_of_the_rule() -> None:
    assert only("defaults: {signals: {error_rate: {mode: shadow}}}", "m", "error_rate").shadow


def test_another_detector_leaves_the_old_ones_parameters_behind() -> None:
    extra = """
defaults: {signals: {latency_p95: {detector: robust_z, params: {window: 50}}}}
models:
- match: {model: m}
  signals: {latency_p95: {detector: kswin}}
"""
    assert only(extra, "m", "latency_p95").params == {}


def test_silence_after_sets_the_timeout() -> None:
    assert only("defaults: {silence_after: 90s}", "m", "silence").params == {"timeout_s": 90.0}


def test_an_alert_resolves_no_sooner_than_some_windows() -> None:
    assert only("", "m", "error_rate").policy.resolve_after_us == 5 * 60_000_000
    assert only("defaults: {window: 100ms}", "m", "error_rate").policy.resolve_after_us == 5_000_000
    assert only("defaults: {resolve_after: 7s}", "m", "error_rate").policy.resolve_after_us == 7_000_000


def test_what_only_judges_leaves_the_structure_equal() -> None:
    before = only("", "m", "latency_p95").structure
    for said in (
        "sensitivity: low",
        "for: 5m",
        "min_effect: 1s",
        "direction: down",
        "severity: info",
        "breaches: 3/4",
    ):
        assert (
            only(f"defaults: {{signals: {{latency_p95: {{{said}}}}}}}", "m", "latency_p95").structure
            == before
        )


def test_what_is_learned_from_changes_the_structure() -> None:
    before = only("", "m", "latency_p95").structure
    for said in (
        "signals: {latency_p95: {detector: kswin}}",
        "signals: {latency_p95: {params: {window: 77}}}",
        "window: 5s",
    ):
        assert only(f"defaults: {{{said}}}", "m", "latency_p95").structure != before


def test_telemetry_and_labels_have_their_own_signals() -> None:
    assert rules_of("", "m", "metric:queue", "telemetry")[0].signal == "metric:queue"
    assert rules_of("", "m", "metric:queue") == []
    assert rules_of("", "m", "label_share:x", "labels")[0].signal == "label_share:x"


def test_of_a_tail_so_many_events_are_wanted_that_five_are_beyond_it() -> None:
    def least(extra: str = "") -> dict[str, int]:
        rules = RuleBook(config(extra)).for_model("predictions", "m")
        return {s: rules.of(s)[0].min_samples for s in ("latency_p50", "latency_p95", "latency_p99", "throughput")}

    assert least() == {"latency_p50": 50, "latency_p95": 100, "latency_p99": 500, "throughput": 0}
    assert least("defaults: {min_samples: 4}\n")["latency_p99"] == 40
    assert least("models: [{match: {}, signals: {latency_p99: {min_samples: 30}}}]\n")["latency_p99"] == 30


def modes(extra: str, signal: str) -> dict[str, bool]:
    return {r.detector: r.shadow for r in rules_of(extra, "m", signal)}


def test_a_detector_in_shadow_runs_beside_the_live_one() -> None:
    extra = "defaults: {signals: {latency_p95: {detector: kswin, mode: shadow}}}"
    assert modes(extra, "latency_p95") == {"robust_z": False, "kswin": True}
    # Of a later block too, and whatever both say beside.
    layered = """
defaults: {signals: {latency_p95: {params: {window: 50}, min_effect: 10ms, upper_limit: 1s}}}
models:
- match: {model: m}
  signals: {latency_p95: {detector: kswin, mode: shadow, severity: info}}
"""
    live, beside, limit = rules_of(layered, "m", "latency_p95")
    assert (live.detector, live.shadow, live.params, live.severity) == ("robust_z", False, {"window": 50}, "warning")
    assert (beside.detector, beside.shadow, beside.params, beside.severity) == ("kswin", True, {}, "info")
    assert (limit.detector, limit.shadow, limit.severity) == ("limits", False, "critical")
    assert (live.min_effect, beside.min_effect) == (0.01, 0.01)


def test_in_shadow_goes_by_the_detector_that_is_named() -> None:
    named = "defaults: {signals: {prediction_value: {detector: drift, mode: shadow}}}"
    assert modes(named, "prediction_value") == {"robust_z": False, "drift": True}
    itself = "defaults: {signals: {latency_p95: {detector: robust_z, mode: shadow}}}"
    assert modes(itself, "latency_p95") == {"robust_z": True}
    whole = "defaults: {signals: {prediction_value: {mode: shadow}}}"
    assert modes(whole, "prediction_value") == {"robust_z": True, "drift": True}
    alone = "defaults: {signals: {prediction_drift: {detector: adwin, mode: shadow}}}"
    assert modes(alone, "prediction_drift") == {"adwin": True}


def test_a_block_takes_a_detector_out_of_the_shadow_or_away() -> None:
    text = """
defaults: {signals: {latency_p95: {detector: kswin, params: {window_size: 60}, mode: shadow}}}
models:
- match: {model: m}
  signals: {latency_p95: %s}
"""
    (live,) = rules_of(text % "{detector: kswin, mode: 'on'}", "m", "latency_p95")
    assert (live.detector, live.shadow, live.params) == ("kswin", False, {"window_size": 60})
    assert modes(text % "{detector: kswin, mode: 'off'}", "latency_p95") == {"robust_z": False}
    assert modes(text % "{mode: 'off'}", "latency_p95") == {}
    assert modes(text % "{sensitivity: high}", "latency_p95") == {"robust_z": False, "kswin": True}
