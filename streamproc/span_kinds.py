"""Which span is a call of a model, and which only contains calls: one table by convention.

An agent's, chain's or workflow's span repeats the tokens and the cost of the calls inside it. Only a span of
kind `CALL` or `EMBEDDING` is therefore counted as a request; the kinds of `PARTS` feed signals of their own; every
other span is ignored and counted by what it calls itself.

References
----------
[^1]: OpenTelemetry semantic conventions 1.38, `gen_ai.operation.name`.
[^2]: OpenInference specification 0.1.26, `openinference.span.kind`.
[^3]: OpenLLMetry semantic conventions 0.4.13, `traceloop.span.kind` and `llm.request.type`.
[^4]: MLflow 3.17, `mlflow.entities.SpanType`.
[^5]: Langfuse Python SDK 3.9, `langfuse.observation.type`; LangSmith 0.4, `langsmith.span.kind`.
[^6]: Vercel AI SDK 5, `ai.operationId`: an outer span, and a `.do…` span for each request it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

#: A request to a language model; one to an embedding model.
CALL: Final = "call"
EMBEDDING: Final = "embedding"

#: Kinds of spans that are watched for themselves: how many fail, and how long they take.
AGENT: Final = "agent"
TOOL: Final = "tool"
RETRIEVAL: Final = "retrieval"
PARTS: Final = (AGENT, TOOL, RETRIEVAL, EMBEDDING)

#: A span that is known and tells nothing of its own.
_OTHER: Final = ""

_SHARED: Final = {
    "agent": AGENT,
    "chain": AGENT,
    "workflow": AGENT,
    "tool": TOOL,
    "retriever": RETRIEVAL,
    "retrieval": RETRIEVAL,
    "embedding": EMBEDDING,
    "embeddings": EMBEDDING,
    "reranker": _OTHER,
    "rerank": _OTHER,
    "guardrail": _OTHER,
    "evaluator": _OTHER,
    "prompt": _OTHER,
    "parser": _OTHER,
    "task": _OTHER,
    "span": _OTHER,
    "event": _OTHER,
    "memory": _OTHER,
    "unknown": _OTHER,
}

#: Attribute, and what its values (in lower case) stand for. The attributes further up decide.
CONVENTIONS: Final[dict[str, dict[str, str]]] = {
    "gen_ai.operation.name": {
        **_SHARED,
        "chat": CALL,
        "text_completion": CALL,
        "completion": CALL,
        "acompletion": CALL,
        "generate_content": CALL,
        "generate": CALL,
        "responses": CALL,
        "response": CALL,
        "message": CALL,
        "messages": CALL,
        "llm": CALL,
        # what instrumentations write beside the convention's own: Semantic Kernel, LiteLLM, Bedrock, Vertex AI
        "chat.completions": CALL,
        "chat.streaming_completions": CALL,
        "chat_completion": CALL,
        "text.completions": CALL,
        "atext_completion": CALL,
        "aresponses": CALL,
        "converse": CALL,
        "converse_stream": CALL,
        "invoke_model": CALL,
        "generation": CALL,
        "generate_text": CALL,
        "stream_generate_content": CALL,
        "inference": CALL,
        "aembedding": EMBEDDING,
        "invoke_agent": AGENT,
        "create_agent": _OTHER,
        "invoke_workflow": AGENT,
        "plan": _OTHER,
        "execute_tool": TOOL,
    },
    "openinference.span.kind": {**_SHARED, "llm": CALL},
    "mlflow.spanType": {**_SHARED, "llm": CALL, "chat_model": CALL},
    "traceloop.span.kind": {**_SHARED, "llm": CALL},
    "langfuse.observation.type": {**_SHARED, "generation": CALL},
    "langsmith.span.kind": {**_SHARED, "llm": CALL},
    "gen_ai.span.kind": {**_SHARED, "llm": CALL},
    "llm.request.type": {**_SHARED, "chat": CALL, "completion": CALL},
    "ai.operationId": {
        "ai.generatetext": AGENT,
        "ai.streamtext": AGENT,
        "ai.generateobject": AGENT,
        "ai.streamobject": AGENT,
        "ai.embed": _OTHER,
        "ai.embedmany": _OTHER,
        "ai.toolcall": TOOL,
        "ai.generatetext.dogenerate": CALL,
        "ai.streamtext.dostream": CALL,
        "ai.generateobject.dogenerate": CALL,
        "ai.streamobject.dostream": CALL,
        "ai.embed.doembed": EMBEDDING,
        "ai.embedmany.doembed": EMBEDDING,
    },
}

#: What a call tells at least one of. A span that names no kind and has none of these is no call.
_SIGNS_OF_A_CALL: Final = (
    "request_model", "response_model", "input_tokens", "output_tokens", "finish_reasons", "evaluation",
    "retrieval_score",
)  # fmt: skip

#: Beginnings of the attributes that only spans of language models, their agents and tools have.
PREFIXES: Final = (
    "gen_ai.", "llm.", "openinference.", "retrieval.", "mlflow.", "traceloop.", "langfuse.", "langsmith.",
    "embedding.", "reranker.", "ai.operationId",
)  # fmt: skip


def plain(value: Any) -> Any:
    """Return a text without the quotes of JSON around it, as MLflow writes its attributes.

    >>> plain('"CHAT_MODEL"'), plain("chat"), plain(3)
    ('CHAT_MODEL', 'chat', 3)
    """
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value


def declared(attributes: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the kind that a span's attributes declare and the word they use; None for one that is not known.

    A span without any such attribute gives `(CALL, "")`: what else it has decides. Where two conventions meet in one
    span, the first that knows its word decides, and an enclosing span (an agent's) beats a call.

    >>> declared({"openinference.span.kind": "CHAIN"})
    ('agent', 'CHAIN')
    >>> declared({"gen_ai.operation.name": "sing"})
    (None, 'sing')
    """
    found: tuple[str | None, str] | None = None
    for name, kinds in CONVENTIONS.items():
        word = plain(attributes.get(name))
        if not isinstance(word, str) or not word:
            continue
        kind = kinds.get(word.lower())
        if kind is None:
            found = found or (None, word)
        elif found is None or found[0] is None or (found[0] == CALL and kind == AGENT):
            found = (kind, word)
    return found if found is not None else (CALL, "")


def is_call(known: Mapping[str, Any]) -> bool:
    """Whether a span that declares no kind tells, by our names for its attributes, of a call."""
    return any(name in known for name in _SIGNS_OF_A_CALL)
