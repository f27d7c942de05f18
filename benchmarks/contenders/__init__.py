"""What the worker is measured against: each a process that reads a topic and reports its own CPU time.

Called as `python -m benchmarks.contenders.NAME BOOTSTRAP TOPIC EVENTS`; prints one JSON object.
"""
