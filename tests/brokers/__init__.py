"""Brokers for tests and benchmarks: real Apache Kafka, run from its jars."""
