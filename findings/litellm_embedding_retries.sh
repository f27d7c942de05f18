#!/usr/bin/env bash
# LiteLLM 1.110.2: `max_retries=0` holds for completions and not for embeddings, which ask three times.
#
# Expected: the same argument, to the same provider, means the same for both: one request, and its error.
# Seen: a refused completion reaches the server once, a refused embedding three times. 0 is taken there for "not said",
# and the default of 2 stands in. `max_retries=1` asks twice, as it should.
# It matters because a limit of requests is then used up three times as fast as callers and their traces say: of the
# three requests there is one call, and one span.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/python" -m pip install --quiet --disable-pip-version-check litellm==1.110.2 openai==3.57.0
cat > "$here/asked.py" <<'PYTHON'
import json
import os
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
asked = Counter()


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        asked[self.path] += 1
        body = json.dumps({"error": {"message": "Slow down.", "type": "requests", "code": "rate_limit_exceeded"}})
        self.send_response(429)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
threading.Thread(target=server.serve_forever, daemon=True).start()

import litellm


def requests(call, **more):
    before = asked.total()
    try:
        call(api_base=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", **more)
    except litellm.RateLimitError:
        return asked.total() - before
    raise SystemExit("it was not refused")


completion = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
embedding = {"model": "openai/text-embedding-3-small", "input": ["Hello"]}
print(
    requests(litellm.completion, max_retries=0, **completion),
    requests(litellm.embedding, max_retries=0, **embedding),
    requests(litellm.embedding, max_retries=1, **embedding),
)
PYTHON
seen=$("$here/env/bin/python" "$here/asked.py" 2>/dev/null | tail -1)
echo "requests of a completion told 0 retries, an embedding told 0, an embedding told 1: $seen"
[ "$seen" = "1 3 2" ]
