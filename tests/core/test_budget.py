"""False alerts on a budget: limits follow the fleet, from the log alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.state import dumps
from streamproc.budget import Fleet, evidence_limit, tail_share
from streamproc.errors import ConfigError
from streamproc.events import RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from tests.core.make import BEGIN_US, batch, config, cut, pipeline, prediction

HOUR = 3_600_000_000


def test_a_limit_is_values_over_alerts_and_a_share_its_inverse() -> None:
    assert evidence_limit(observations_per_day=1440 * 1000, allowed_per_day=5) == 288_000
    assert tail_share(observations_per_day=1440 * 1000, allowed_per_day=5) == pytest.approx(1 / 288_000)
    two_of_three = tail_share(observations_per_day=1440 * 1000, allowed_per_day=5, breaches=(2, 3))
    assert 2 * two_of_three**2 == pytest.approx(1 / 288_000)


def test_a_fleet_is_counted_after_1_2_4_8_16_and_24_hours_then_each_day() -> None:
    fleet = Fleet(assumed=5000)
    counted = []
    for minute in range(0, 73 * 60, 10):
        before = fleet.period
        fleet.advance(BEGIN_US + minute * 60_000_000)
        if fleet.period > before:
            counted.append((minute // 60, round(fleet.size)))
        # Forty models, ten of them on the first day alone.
        for k in range(40 if minute < 24 * 60 else 30):
            fleet.note(f"model-{k}")
    assert [hour for hour, _ in counted] == [1, 2, 4, 8, 16, 24, 48, 72]
    assert [size for _, size in counted] == [40, 40, 40, 40, 40, 40, 30, 30]


@pytest.mark.parametrize("models", [1, 20, 500, 5000])
def test_a_fleets_size_is_right_to_a_few_percent(models: int) -> None:
    fleet = Fleet(assumed=7)
    fleet.advance(BEGIN_US)
    for k in range(models):
        fleet.note(f"team-{k % 7}/model-{k}")
    fleet.advance(BEGIN_US + HOUR)
    assert fleet.size == pytest.approx(models, rel=0.05)


def test_records_without_a_time_move_no_period() -> None:
    fleet = Fleet(assumed=7)
    fleet.advance(-1000)
    assert fleet.until(-1000)
    assert not fleet.until(BEGIN_US)
    fleet.advance(BEGIN_US)
    fleet.advance(-1000)
    assert fleet.period == 0


def _limits(p: Pipeline, model: str) -> dict[tuple[str, str], float | None]:
    return {key: watch.budgeted for key, watch in p.models[model].watches.items()}


def _day(models: int, *, hours: int = 26, every_s: int = 600) -> RecordBatch:
    events, stamps = [], []
    for second in range(0, hours * 3600, every_s):
        for k in range(models):
            at = BEGIN_US + second * 1_000_000 + k
            events.append(prediction(at, model=f"m{k}", duration_s=0.1))
            stamps.append(at)
    return batch(events, stamps_us=stamps)


def test_a_larger_fleet_has_higher_limits_and_a_larger_allowance_lower_ones() -> None:
    few, many, generous = (
        pipeline(config(extra)) for extra in ("", "", "defaults: {budget: {false_alerts_per_day: 50}}")
    )
    few.process(_day(2))
    many.process(_day(20))
    generous.process(_day(2))
    key = ("prediction_value", "drift")
    low, high, lower = (float(_limits(p, "m1")[key] or 0) for p in (few, many, generous))
    assert high / low == pytest.approx(10.0, rel=0.4)
    assert low / lower == pytest.approx(10.0, rel=0.4)
    # 1440 windows a day, 5 alerts among 2 models and their watches.
    watches = len(few.models["m1"].watches)
    assert watches > 5
    assert low == pytest.approx(1440 * 2 * watches / 5, rel=0.4)


def test_sensitivity_moves_a_watchs_share_and_null_leaves_all_to_it() -> None:
    key = ("prediction_value", "drift")
    found = []
    for extra in ("{sensitivity: high}", "{}", "{sensitivity: low}", "{budget: null}"):
        p = pipeline(config(f"defaults: {extra}"))
        p.process(_day(5))
        found.append(_limits(p, "m1")[key])
    assert found[3] is None
    high, medium, low = (float(x or 0) for x in found[:3])
    assert medium / high == pytest.approx(10.0, rel=0.3)
    assert low / medium == pytest.approx(10.0, rel=0.3)


def test_what_an_operator_says_of_a_limit_holds_and_critical_is_outside_the_budget() -> None:
    p = pipeline(
        config(
            "defaults:\n  signals:\n"
            "    prediction_value: {detector: drift, params: {limit: 1000}}\n"
            "    latency_p95: {detector: drift, severity: critical}\n"
            "    latency_p50: {detector: drift}\n"
        )
    )
    p.process(_day(3))
    limits = _limits(p, "m1")
    assert limits["prediction_value", "drift"] is None
    assert limits["latency_p95", "drift"] is None
    assert limits["latency_p50", "drift"] is not None


def test_a_share_that_an_operator_names_holds_as_a_limit_does() -> None:
    p = pipeline(config("defaults: {signals: {latency_p95: {detector: spike, params: {alpha: 0.01}}}}"))
    p.process(_day(3))
    assert _limits(p, "m1")["latency_p95", "spike"] is None


def test_a_reload_that_takes_the_budget_away_gives_limits_back_to_sensitivity() -> None:
    p = pipeline(config())
    p.process(_day(3))
    watch = p.models["m1"].watches["prediction_value", "drift"]
    budgeted: Any = watch.detector
    assert budgeted.params.limit == watch.budgeted
    p.reconfigure(RuleBook(config("defaults: {budget: null}")))
    freed: Any = watch.detector
    assert freed.params.limit is None
    assert dumps(freed.snapshot()) == dumps(budgeted.snapshot())


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="false_alerts_per_day"):
        config("defaults: {budget: {false_alerts_per_day: 0}}")


TELEMETRY = "defaults: {resolve_after: 10m, budget: {false_alerts_per_day: 20}, signals: {metric: {breaches: 2/3}}}"


def _telemetry(*, hours: int = 20, seed: int = 0) -> RecordBatch:
    """Return a metric a minute of three models, one of which spikes at 15 h and changes its rhythm at 17."""
    rng = np.random.default_rng(seed)
    events: list[Any] = []
    stamps = []
    for minute in range(hours * 60):
        for k in range(3):
            at = BEGIN_US + minute * 60_000_000 + k
            value = 100.0 + 3.0 * rng.normal() + 10.0 * np.sin(minute / 7.0)
            if k == 1 and 900 <= minute < 905:
                value += 400.0
            if k == 1 and minute >= 1020:
                value = 100.0 + 0.2 * rng.normal()
            event = {"id": "t", "source": "s", "time": at, "model": {"name": f"m{k}"}, "name": "cpu", "unit": "1",
                     "value": float(value)}  # fmt: skip
            events.append(orjson.dumps(event))
            stamps.append(at)
    return batch(events, stamps_us=stamps, topic="telemetry")


def test_a_metric_has_two_channels_each_with_its_own_limit_and_alert() -> None:
    p = pipeline(config(TELEMETRY), kind="telemetry")
    opened = [a for a in p.process(_telemetry()).alerts if a.action == "opened"]
    assert {a.labels["model"] for a in opened} == {"m1"}
    assert {a.labels["detector"] for a in opened} == {"spike", "pattern"}
    assert len({a.fingerprint for a in opened}) == 2
    limits = _limits(p, "m1")
    assert limits["metric:cpu", "spike"] is not None
    assert limits["metric:cpu", "pattern"] is not None
    assert limits["metric:cpu", "spike"] != limits["metric:cpu", "pattern"]


def test_naming_a_detector_replaces_the_channels() -> None:
    p = pipeline(config("defaults: {signals: {metric: {detector: adwin}}}"), kind="telemetry")
    p.process(_telemetry(hours=2))
    assert set(_limits(p, "m1")) == {("metric:cpu", "adwin")}


def _said(alerts: list[Any]) -> list[tuple[Any, ...]]:
    return sorted((a.id, a.action, a.score, a.signal, a.detector.name) for a in alerts)


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 3599), max_size=8), stop=st.integers(0, 3599))
def test_wherever_the_log_is_cut_or_restored_periods_limits_and_alerts_are_the_same(
    cuts: list[int], stop: int
) -> None:
    whole = _telemetry()
    book = RuleBook(config(TELEMETRY))
    one = Pipeline(book, kind="telemetry", topic="telemetry")
    expected = _said(one.process(whole).alerts)
    assert expected
    other = Pipeline(book, kind="telemetry", topic="telemetry")
    alerts: list[Any] = []
    for part in cut(whole, [*cuts, stop]):
        alerts += other.process(part).alerts
        if part.offsets[-1] + 1 == stop:
            manifest, models = other.manifest(), list(other.snapshot_models(list(other.models)))
            other = Pipeline(book, kind="telemetry", topic="telemetry")
            other.restore_manifest(orjson.loads(orjson.dumps(manifest)))
            for name, data in models:
                other.restore_model(name, data)
            other.restored()
    assert _said(alerts) == expected
    assert other.manifest() == one.manifest()
    for name, model in one.models.items():
        assert dumps(other.models[name].snapshot()) == dumps(model.snapshot())


def test_a_rejected_record_past_the_end_of_a_period_is_named_by_its_row_in_the_batch() -> None:
    good = prediction(BEGIN_US)
    events: list[Any] = [good, b"{", good, b"["]
    stamps = [BEGIN_US, BEGIN_US, BEGIN_US + 2 * HOUR, BEGIN_US + 2 * HOUR]
    out = pipeline(config()).process(batch(events, stamps_us=stamps))
    assert [(r.row, r.offset) for r in out.rejected] == [(1, 1), (3, 3)]
    assert out.events == 2
