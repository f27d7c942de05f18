#!/usr/bin/env bash
# opentelemetry-instrumentation-openai-v2 2.4b0 does not say how a streamed answer ended; of one not streamed it does.
#
# Expected: `gen_ai.response.finish_reasons` is set either way, since the chunk before the last one names the reason, and
# all else that the chunks say is set: id, model and tokens.
# Seen: the span of the same answer, cut off at its length, has ["length"] where it came whole and no such attribute
# where it was streamed.
# It matters because a share of truncated answers is then one of the answers that were not streamed, and most are.
# (Newer opentelemetry-util-genai, which its requirements allow, does not import with it; 0.4b0 does.)
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/python" -m pip install --quiet --disable-pip-version-check openai==3.57.0 httpx==0.28.1 opentelemetry-sdk==1.45.2 \
  opentelemetry-instrumentation-openai-v2==2.4b0 opentelemetry-util-genai==0.4b0
cat > "$here/streamed.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BASE = {"id": "chatcmpl-1", "created": 1767603600, "model": "gpt-4o-mini-2024-07-18"}
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("stream"):
            kind = "text/event-stream"
            chunk = {**BASE, "object": "chat.completion.chunk"}
            told = [
                {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Go"}, "finish_reason": None}]},
                {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
                {**chunk, "choices": [], "usage": USAGE},
            ]
            body = "".join(f"data: {json.dumps(t)}\n\n" for t in told) + "data: [DONE]\n\n"
        else:
            kind = "application/json"
            choice = {"index": 0, "message": {"role": "assistant", "content": "Go"}, "finish_reason": "length"}
            body = json.dumps({**BASE, "object": "chat.completion", "choices": [choice], "usage": USAGE})
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()

import openai
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
OpenAIInstrumentor().instrument(tracer_provider=provider)
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
assert client.chat.completions.create(**asked).choices[0].finish_reason == "length"
chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
assert "length" in [c.choices[0].finish_reason for c in chunks if c.choices]
for span in spans.get_finished_spans():
    known = dict(span.attributes)
    print(known["gen_ai.usage.output_tokens"], list(known.get("gen_ai.response.finish_reasons", ())))
PYTHON
seen=$("$here/env/bin/python" "$here/streamed.py" | paste -sd ' ')
echo "tokens and finish reasons, whole and streamed: $seen"
[ "$seen" = "7 ['length'] 7 []" ]
