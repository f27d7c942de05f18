from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from detectors import registry, river_adapter
from detectors.params import ParameterError, allowed
from detectors.protocol import Detector
from detectors.state import StateError, dumps

VALUES = np.random.default_rng(0).normal(10.0, 2.0, 3000)
TIMES = np.arange(3000, dtype=np.int64) * 1_000_000


def feed(kind: str) -> np.ndarray:
    if kind == "boolean":
        return (VALUES > 12.0).astype(float)
    return VALUES.reshape(-1, 3)[:, :3] if kind == "vector" else VALUES


def make(name: str, **options: Any) -> Detector:
    params = {"limits": {"upper": 14.0}}.get(name)
    return registry.create(name, params, columns=3 if registry.spec(name).kind == "vector" else 1, **options)


def test_the_names_listed_for_river_are_those_the_adapter_has() -> None:
    assert set(river_adapter.ENTRIES) == registry._RIVER


@pytest.mark.parametrize("name", registry.names())
def test_every_detector_is_what_its_spec_says(name: str) -> None:
    spec = registry.spec(name)
    detector = make(name)
    assert spec.name == name
    assert spec.summary
    assert isinstance(detector, Detector)
    assert spec.structural <= {field.name for field in msgspec.structs.fields(spec.params)}


@pytest.mark.parametrize("name", registry.names())
def test_sensitivity_never_changes_what_is_learned(name: str) -> None:
    values = feed(registry.spec(name).kind)
    states = set()
    for sensitivity in ("low", "medium", "high"):
        detector = make(name, sensitivity=sensitivity)
        detector.score(values, TIMES[: len(values)])
        states.add(dumps(detector.snapshot()))
    assert len(states) == 1


@pytest.mark.parametrize("name", ["robust_z", "half_space_trees", "gaussian_scorer"])
def test_a_higher_sensitivity_scores_higher(name: str) -> None:
    values = feed(registry.spec(name).kind)
    low, high = (make(name, sensitivity=s).score(values, TIMES[: len(values)]) for s in ("low", "high"))
    assert np.nansum(high) > np.nansum(low)


def test_a_limit_can_be_changed_with_what_was_learned_kept() -> None:
    detector: Any = registry.create("robust_z")
    detector.score(VALUES[:100], TIMES[:100])
    before = dumps(detector.snapshot())
    detector.reconfigure(msgspec.structs.replace(detector.params, limit=1.0))
    assert dumps(detector.snapshot()) == before
    assert detector.warming() == 0


def test_a_structural_parameter_cannot_be_changed_with_what_was_learned_kept() -> None:
    detector: Any = registry.create("robust_z")
    with pytest.raises(ParameterError, match="window cannot change from 300 to 100"):
        detector.reconfigure(msgspec.structs.replace(detector.params, window=100))


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(registry.UnknownDetectorError, match='did you mean "robust_z"') as caught:
        registry.create("robustz")
    assert "half_space_trees" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("robust_z", {"windwo": 10}, 'robust_z: unknown parameter "windwo"; did you mean "window"'),
        (
            "robust_z",
            {"window": 2},
            "robust_z: window = 2 is not allowed; expected an integer >= 5 and <= 100000",
        ),
        ("robust_z", {"window": True}, "robust_z: window = True is not allowed"),
        ("robust_z", {"direction": "left"}, 'expected "both" or "down" or "up"'),
        ("robust_z", {"abs_floor": float("nan")}, "robust_z: abs_floor = nan is not allowed"),
        ("robust_z", {"warm_up": 400}, "warm_up = 400 must be at most window = 300"),
        ("limits", {}, "limits: lower and upper are both missing"),
        ("limits", {"lower": 2.0, "upper": 1.0}, "must be below"),
        ("kswin", {"window_size": 40}, "at least twice stat_size"),
        ("adwin", {"delta": 1.5}, "adwin: delta = 1.5 is not allowed; expected a number > 0"),
    ],
)
def test_a_bad_parameter_is_refused_with_what_is_allowed(
    name: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        registry.create(name, params)
    assert message in str(caught.value)
    assert caught.value.detector == name


def test_rows_for_a_detector_of_values_are_refused() -> None:
    with pytest.raises(ParameterError, match="columns = 3"):
        registry.create("robust_z", columns=3)


@pytest.mark.parametrize("name", registry.names())
def test_a_state_of_another_detector_is_refused(name: str) -> None:
    if name == "limits":
        pytest.skip("it has no state")
    for state in ({}, {"window": 3}, {"river": None, "seen": "x"}):
        with pytest.raises(StateError):
            make(name).restore(state)


@pytest.mark.parametrize("name", sorted(river_adapter.ENTRIES))
def test_parameters_and_defaults_are_rivers_own(name: str) -> None:
    ours = {"alpha"} if river_adapter.ENTRIES[name].unit is not None else set()
    ours |= {"one_class_svm": {"learning_rate"}, "local_outlier_factor": {"window_size"}}.get(name, set())
    module = "river.drift.binary" if registry.spec(name).kind == "boolean" else "river.drift"
    module = module if not ours else "river.anomaly"
    ours |= {"scaled"} if name in ("adwin", "page_hinkley") else set()
    classes = vars(importlib.import_module(module))
    kind = next(c for n, c in classes.items() if inspect.isclass(c) and n.lower() == name.replace("_", ""))
    signature = inspect.signature(kind).parameters
    for field in msgspec.structs.fields(registry.spec(name).params):
        if field.name not in ours:
            assert field.name in signature
            if field.name != "sub_stat":
                assert field.default == signature[field.name].default


def test_a_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint("mine", "detectors.limits:Limits", "streamproc.detectors")
    shadow = importlib.metadata.EntryPoint("robust_z", "detectors.limits:Limits", "streamproc.detectors")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry, shadow])
    registry._plugins.cache_clear()
    registry._maker.cache_clear()
    try:
        assert "mine" in registry.names()
        assert registry.create("mine", {"upper": 1.0}).warming() == 0
        assert registry.spec("robust_z").name == "robust_z"
    finally:
        registry._plugins.cache_clear()
        registry._maker.cache_clear()


def test_importing_the_registry_loads_neither_numba_nor_river() -> None:
    code = (
        "import sys, detectors.registry as r; r.names(); "
        "sys.exit(any(m in sys.modules for m in ('numba', 'river')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", registry.names())
def test_every_bound_can_be_said_in_words(name: str) -> None:
    for field in msgspec.structs.fields(registry.spec(name).params):
        assert allowed(field.type)
