def evidence_limit(*, observations_per_day, allowed_per_day):
    return observations_per_day/allowed_per_day
