"""Make the calls that a test expects through one library, traced as its manual says: `emit.py LIBRARY URL`.

Runs in the environment of tests/real/requirements.txt, where nothing of this project is installed. What is traced goes
to URL/v1/traces in OTLP's protobuf.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

ASKED, EMBEDS = "gpt-4o-mini", "text-embedding-3-small"


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def provider(url: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
    trace.set_tracer_provider(made)
    return made


def by_openai(url: str) -> None:
    """Chat three times, the third cut off, once streamed, once refused; embed once, and once refused."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    for text in ("Hello", "Hello again", "Tell it at length"):
        client.chat.completions.create(model=ASKED, messages=messages(text))  # type: ignore[arg-type]
    chunks = client.chat.completions.create(
        model=ASKED, messages=messages("Hello"), stream=True, stream_options={"include_usage": True}  # type: ignore[arg-type]
    )
    for _ in chunks:
        pass
    with contextlib.suppress(openai.RateLimitError):
        client.chat.completions.create(model=ASKED, messages=messages("Too often: too often"))  # type: ignore[arg-type]
    client.embeddings.create(model=EMBEDS, input="Hello")
    with contextlib.suppress(openai.RateLimitError):
        client.embeddings.create(model=EMBEDS, input="Much too often")


def opentelemetry(url: str) -> None:
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    made = provider(url)
    OpenAIInstrumentor().instrument(tracer_provider=made)
    by_openai(url)
    made.shutdown()


def openinference(url: str) -> None:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    made = provider(url)
    OpenAIInstrumentor().instrument(tracer_provider=made)
    by_openai(url)
    made.shutdown()


def langchain(url: str) -> None:
    import openai
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_openai import ChatOpenAI
    from openinference.instrumentation.langchain import LangChainInstrumentor

    made = provider(url)
    LangChainInstrumentor().instrument(tracer_provider=made)
    model = ChatOpenAI(model=ASKED, base_url=f"{url}/v1", api_key="none", max_retries=0, stream_usage=True)
    chain = ChatPromptTemplate.from_messages([("user", "{text}")]) | model
    for text in ("Hello", "Hello again", "Tell it at length"):
        chain.invoke({"text": text})
    for _ in chain.stream({"text": "Hello"}):
        pass
    with contextlib.suppress(openai.RateLimitError):
        chain.invoke({"text": "Too often: too often"})
    made.shutdown()


def mlflow(url: str) -> None:
    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{url}/v1/traces"
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    os.environ["OTEL_SERVICE_NAME"] = "shop"
    import mlflow as library

    library.openai.autolog()
    by_openai(url)
    library.flush_trace_async_logging()


def litellm(url: str) -> None:
    os.environ |= {
        "OTEL_EXPORTER": "otlp_http",
        "OTEL_ENDPOINT": f"{url}/v1/traces",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "shop",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    import litellm as library

    library.callbacks = ["otel"]
    library.num_retries = 0
    of = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    for text in ("Hello", "Hello again", "Tell it at length"):
        library.completion(model=f"openai/{ASKED}", messages=messages(text), **of)
    chunks = library.completion(
        model=f"openai/{ASKED}", messages=messages("Hello"), stream=True, stream_options={"include_usage": True}, **of
    )
    for _ in chunks:
        pass
    with contextlib.suppress(library.RateLimitError):
        library.completion(model=f"openai/{ASKED}", messages=messages("Too often: too often"), **of)
    library.embedding(model=f"openai/{EMBEDS}", input=["Hello"], **of)
    with contextlib.suppress(library.RateLimitError):
        library.embedding(model=f"openai/{EMBEDS}", input=["Much too often"], **of)
    import time

    time.sleep(2)  # its callbacks run on threads of their own
    from opentelemetry import trace

    trace.get_tracer_provider().shutdown()


if __name__ == "__main__":
    {"opentelemetry": opentelemetry, "openinference": openinference, "langchain": langchain, "mlflow": mlflow,
     "litellm": litellm}[sys.argv[1]](sys.argv[2])  # fmt: skip
