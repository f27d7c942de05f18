"""The short form of the benchmark of incidents: twelve models, two days, a fault of each kind that fits."""

from __future__ import annotations

import pytest

from benchmarks import incidents


@pytest.mark.slow
def test_a_fault_free_stretch_has_no_critical_incident() -> None:
    _, worker = incidents.simulate(3, models=12, days=2, quiet=True, progress=False)
    figures = incidents.score([], worker, days=2)
    assert figures["false_critical"] == 0
    assert figures["false_incidents_per_day"] <= 5


def test_most_faults_of_a_small_fleet_are_found_and_put_down_to_their_cause() -> None:
    faults, worker = incidents.simulate(3, models=12, days=2, quiet=False, progress=False)
    figures = incidents.score(faults, worker, days=2)
    assert figures["faults"] >= 8
    assert figures["incident_recall"] >= 0.75
    assert figures["cause_accuracy"] >= 0.75
    again = incidents.draw_faults(incidents.np.random.default_rng(3), incidents.fleet(12), days=2)
    assert again == faults
