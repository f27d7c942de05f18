from __future__ import annotations

import pytest

pytest_plugins = ["tests.brokers.fixtures", "tests.bridges.fixtures"]

#: Tests that take seconds each, most of them searches by hypothesis; `make test-quick` leaves them out.
LONG = frozenset({
    "test_a_damaged_payload_never_raises",
    "test_a_detector_that_is_named_is_warmed_up_too",
    "test_a_fault_fires_its_signal_and_only_plausible_neighbours",
    "test_a_job_that_does_not_run_at_its_own_time_is_found",
    "test_a_larger_fleet_has_higher_limits_and_a_larger_allowance_lower_ones",
    "test_a_million_outstanding_predictions_and_labels_thirty_days_late_fit_in_64_bytes_each",
    "test_a_quarter_of_a_million_doubles_of_any_size_read_to_the_bit",
    "test_a_restart_anywhere_goes_on_to_the_bit",
    "test_a_state_of_the_most_that_may_wait_can_be_stored",
    "test_a_storm_of_alerts_is_one_incident_of_bounded_size_and_few_words",
    "test_a_worker_without_broker_ends_with_4_and_says_so_in_json_where_asked_for",
    "test_any_json_anywhere_in_a_record_reads_the_same",
    "test_any_order_of_arrival_within_the_lateness_closes_the_same_windows",
    "test_any_order_of_arrival_within_the_lateness_gives_the_same_joins_and_the_same_closed_windows",
    "test_any_tree_comes_back_to_the_bit",
    "test_chunks_of_partitions_give_the_alerts_of_a_log_in_order",
    "test_compiled_and_plain_loops_agree",
    "test_cutting_and_restoring_anywhere_changes_no_alert_and_no_bit_of_a_baseline",
    "test_cutting_and_restoring_anywhere_changes_no_alert_and_no_bit_of_any_segment",
    "test_cutting_and_restoring_anywhere_changes_nothing_of_what_is_hidden",
    "test_cutting_the_stream_changes_no_alert_and_no_bit_of_state",
    "test_cutting_the_stream_differently_changes_no_alert_and_no_bit_of_state",
    "test_drifts_are_found_where_river_finds_them",
    "test_drifts_are_rivers",
    "test_events_that_say_nothing_of_answers_or_features_move_no_bit_of_what_a_baseline_is_of",
    "test_every_check_of_river_passes",
    "test_every_record_is_an_event_or_a_rejection",
    "test_joins_windows_and_alerts_are_the_same_bytes_however_cut_and_wherever_restored",
    "test_joins_windows_and_alerts_are_the_same_bytes_whether_a_pause_is_looked_into_or_seen_by_its_end",
    "test_labelled_outliers_rank_above_the_rest",
    "test_most_faults_of_a_small_fleet_are_found_and_put_down_to_their_cause",
    "test_neither_needs_river_or_scipy_to_be_loaded",
    "test_nothing_is_compiled_after_the_start",
    "test_one_record_at_a_time_changes_no_alert_and_no_bit_of_state",
    "test_pattern_scores_what_it_did_on_nab",
    "test_predictions_and_a_file_of_their_labels_are_joined_as_the_worker_would_whatever_is_read_at_once",
    "test_raw_scores_equal_rivers_to_the_bit",
    "test_sensitivity_moves_a_watchs_share_and_null_leaves_all_to_it",
    "test_sensitivity_never_changes_what_is_learned",
    "test_snapshot_and_restore_at_any_point_go_on_to_the_bit",
    "test_spike_catches_what_it_did_on_cloud_telemetry",
    "test_templates_change_no_alert_no_rejection_and_no_state",
    "test_templates_change_nothing_over_a_long_stream_however_it_is_cut",
    "test_templates_leave_foreign_records_alone",
    "test_the_generators_history_has_the_demos_fault_and_no_other",
    "test_the_loop_agrees_with_the_definition",
    "test_the_size_of_its_batches_changes_no_incident_and_not_their_order",
    "test_what_became_of_events_sums_to_what_came_however_they_are_cut",
    "test_what_is_in_the_state_already_is_fenced_and_sums_too",
    "test_what_a_day_costs_has_a_limit_and_begins_anew_at_midnight",
    "test_what_is_kept_is_bounded_however_many_alerts_and_incidents_there_are",
    "test_wherever_the_log_is_cut_or_restored_periods_limits_and_alerts_are_the_same",
    "test_wherever_the_log_is_cut_or_restored_the_same_incidents_come_and_each_ends_once",
})  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(item, "originalname", item.name) in LONG:
            item.add_marker(pytest.mark.long)
