"""Online anomaly detectors for streams: score, then learn, in bounded memory."""
