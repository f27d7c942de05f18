#!/usr/bin/env bash
# mlflow-tracing 3.17.2, installed as it is meant to be, sends no span to a collector, and does not say so.
#
# Expected: a package made for tracing alone traces with what it installs, or fails where it is imported.
# Seen: `pip check` is content, import and traced call succeed, stderr is empty, and no span is sent. Before the first
# span it looks for the default local store, whose modules need sqlparse and PyYAML, which it does not ask for; the
# error is logged at DEBUG. With MLFLOW_TRACKING_URI at any http address, where nobody need answer, the span is sent.
# It matters because a service then looks silent to whoever watches its traces, and not broken.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
install() { "$here/env/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
install mlflow-tracing==3.17.2 opentelemetry-exporter-otlp-proto-http==1.45.2 opentelemetry-sdk==1.45.2
"$here/env/bin/python" -m pip check
cat > "$here/traced.py" <<'PYTHON'
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

came = []


class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        came.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}/v1/traces"
os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"

import mlflow


@mlflow.trace
def twice(x):
    return 2 * x


assert twice(21) == 42
mlflow.flush_trace_async_logging()
for _ in range(80):  # spans go out in batches
    if came:
        break
    time.sleep(0.1)
print(len(came), "exports")
PYTHON
alone=$("$here/env/bin/python" "$here/traced.py" 2> "$here/alone.err")
named=$(MLFLOW_TRACKING_URI=http://127.0.0.1:9 "$here/env/bin/python" "$here/traced.py")
MLFLOW_LOGGING_LEVEL=DEBUG "$here/env/bin/python" "$here/traced.py" > /dev/null 2> "$here/debug.err"
why=$(grep -m 1 ModuleNotFoundError "$here/debug.err")
echo "alone: $alone, $(wc -c < "$here/alone.err") bytes on stderr ($why); with MLFLOW_TRACKING_URI: $named"
[ "$alone" = "0 exports" ] && [ ! -s "$here/alone.err" ] && [ "$named" = "1 exports" ]
