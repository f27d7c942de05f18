"""Bridges: alerts and incidents from a topic to the systems that people and machines are told by."""
