"""The only place that talks to the outside: Faust, Kafka, the web port, clocks and logs."""
