"""Receivers that take what the published schemas say, and do with it what the real ones do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jsonschema

from tests.bridges.harness import Receiver, Request

#: Events API v2, after PagerDuty's own OpenAPI document (events-v2, 2.0), with the lengths its guide gives.
PAGERDUTY_EVENT = {
    "type": "object",
    "required": ["routing_key", "event_action"],
    "additionalProperties": False,
    "properties": {
        "routing_key": {"type": "string", "minLength": 32, "maxLength": 32},
        "event_action": {"enum": ["trigger", "acknowledge", "resolve"]},
        "dedup_key": {"type": "string", "maxLength": 255},
        "client": {"type": "string"},
        "client_url": {"type": "string", "pattern": "^https?://"},
        "payload": {
            "type": "object",
            "required": ["summary", "severity", "source"],
            "additionalProperties": False,
            "properties": {
                "summary": {"type": "string", "minLength": 1, "maxLength": 1024},
                "timestamp": {"type": "string", "format": "date-time"},
                "severity": {"enum": ["critical", "warning", "error", "info"]},
                "source": {"type": "string", "minLength": 1},
                "component": {"type": "string"},
                "group": {"type": "string"},
                "class": {"type": "string"},
                "custom_details": {"type": "object"},
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["href"],
                "properties": {"href": {"type": "string", "pattern": "^https?://"}, "text": {"type": "string"}},
            },
        },
        "images": {"type": "array"},
    },
    "if": {"properties": {"event_action": {"const": "trigger"}}},
    "then": {"required": ["payload"]},
    "else": {"required": ["dedup_key"]},
}

_TEXT = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["plain_text", "mrkdwn"]}, "text": {"type": "string", "minLength": 1}},
}

#: Block Kit, as far as it is used: limits of header, section, fields and context.
SLACK_BLOCK = {
    "type": "object",
    "required": ["type"],
    "oneOf": [
        {
            "properties": {
                "type": {"const": "header"},
                "text": {**_TEXT, "properties": {"type": {"const": "plain_text"}, "text": {"maxLength": 150}}},
            },
            "required": ["text"],
        },
        {
            "properties": {
                "type": {"const": "section"},
                "text": {**_TEXT, "properties": {"text": {"minLength": 1, "maxLength": 3000}}},
                "fields": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 10,
                    "items": {**_TEXT, "properties": {"text": {"minLength": 1, "maxLength": 2000}}},
                },
            },
            "anyOf": [{"required": ["text"]}, {"required": ["fields"]}],
        },
        {
            "properties": {"type": {"const": "context"}, "elements": {"type": "array", "maxItems": 10, "items": _TEXT}},
            "required": ["elements"],
        },
    ],
}

SLACK_MESSAGE = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 1, "maxLength": 40_000},
        "attachments": {
            "type": "array",
            "maxItems": 20,
            "items": {
                "type": "object",
                "properties": {
                    "color": {"pattern": "^#[0-9a-f]{6}$"},
                    "blocks": {"type": "array", "items": SLACK_BLOCK},
                },
            },
        },
        "metadata": {
            "type": "object",
            "required": ["event_type", "event_payload"],
            "properties": {"event_type": {"type": "string"}, "event_payload": {"type": "object"}},
        },
    },
    "required": ["text"],
}

#: The CloudEvents 1.0 JSON format.
CLOUDEVENT = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "data"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"type": "string"},
        "subject": {"type": "string", "minLength": 1},
    },
    "propertyNames": {"pattern": "^[a-z0-9]{1,20}$"},
}

#: MLflow's REST API, Set Model Version Tag.
MLFLOW_SET_TAG = {
    "type": "object",
    "required": ["name", "version", "key", "value"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "version": {"type": "string", "pattern": "^[0-9]+$"},
        "key": {"type": "string", "minLength": 1, "maxLength": 250},
        "value": {"type": "string", "maxLength": 5000},
    },
}


def wrong(tree: Any, schema: Any) -> str | None:
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(tree))
    return None if error is None else f"{'/'.join(map(str, error.path))}: {error.message}"


class PagerDuty(Receiver):
    """One service. A trigger opens an incident where none is open under its key, and pages once for it."""

    KEY = "e93facc04764012d7bfb002500d5d1a6"

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[str, dict[str, Any]] = {}
        self.pages: list[str] = []
        self.resolved: list[str] = []
        self.acknowledged: list[str] = []
        self.invalid: list[str] = []

    def answer(self, request: Request) -> tuple[int, Any]:
        event = request.json()
        problem = wrong(event, PAGERDUTY_EVENT)
        if problem is None and event["routing_key"] != self.KEY:
            problem = "Invalid routing_key"
        if problem is not None or request.path != "/v2/enqueue":
            self.invalid.append(problem or request.path)
            return 400, {"status": "invalid event", "message": "Event object is invalid", "errors": [problem]}
        key = event["dedup_key"]
        match event["event_action"]:
            case "trigger":
                if key not in self.open:
                    self.pages.append(key)
                self.open[key] = event
            case "acknowledge":
                self.acknowledged.append(key)
            case "resolve":
                if self.open.pop(key, None) is not None:
                    self.resolved.append(key)
        return 202, {"status": "success", "message": "Event processed", "dedup_key": key}


class Webhooks(Receiver):
    """Takes signed CloudEvents, each id once."""

    SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()

    def __init__(self) -> None:
        super().__init__()
        self.events: dict[str, Any] = {}
        self.invalid: list[str] = []

    def answer(self, request: Request) -> tuple[int, Any]:
        h = request.headers
        content = f"{h['webhook-id']}.{h['webhook-timestamp']}.".encode() + request.body
        key = base64.b64decode(self.SECRET.removeprefix("whsec_"))
        signature = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        if signature not in h.get("webhook-signature", "").split(" "):
            self.invalid.append("signature")
            return 401, {"error": "signature"}
        if h["content-type"].startswith("application/cloudevents+json"):
            event = request.json()
        else:
            event = {k.removeprefix("ce-"): v for k, v in h.items() if k.startswith("ce-")} | {"data": request.json()}
        problem = wrong(event, CLOUDEVENT)
        if problem is not None or h["idempotency-key"] != event["id"] or h["webhook-id"] != event["id"]:
            self.invalid.append(problem or "ids")
            return 400, {"error": problem}
        self.events.setdefault(event["id"], event)
        return 200, {}


class Slack(Receiver):
    """One channel of the Web API, and an incoming webhook at /hook."""

    TOKEN = "xoxb-test"
    CHANNEL = "C024BE91L"

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, Any]] = []
        self.invalid: list[str] = []

    @property
    def roots(self) -> list[dict[str, Any]]:
        return [m for m in self.messages if "thread_ts" not in m]

    def replies(self, ts: str) -> list[str]:
        return [m["text"] for m in self.messages if m.get("thread_ts") == ts]

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path == "/hook":
            if (problem := wrong(request.json(), SLACK_MESSAGE)) is not None:
                self.invalid.append(problem)
                return 400, b"invalid_payload"
            self.messages.append(request.json())
            return 200, b"ok"
        if request.headers.get("authorization") != f"Bearer {self.TOKEN}":
            return 200, {"ok": False, "error": "invalid_auth"}
        tree = request.query if request.method == "GET" else request.json()
        if tree.get("channel") != self.CHANNEL:
            return 200, {"ok": False, "error": "channel_not_found"}
        if request.method == "POST" and (problem := wrong(tree, SLACK_MESSAGE)) is not None:
            self.invalid.append(problem)
            return 200, {"ok": False, "error": "invalid_blocks"}
        match request.path.rpartition("/")[2]:
            case "chat.postMessage":
                ts = f"{1_790_000_000 + len(self.messages)}.000100"
                self.messages.append({**tree, "ts": ts})
                return 200, {"ok": True, "channel": self.CHANNEL, "ts": ts, "message": {}}
            case "chat.update":
                (message,) = [m for m in self.messages if m["ts"] == tree["ts"]]
                message.update(tree)
                return 200, {"ok": True, "channel": self.CHANNEL, "ts": tree["ts"], "text": tree["text"]}
            case "conversations.history":
                return 200, {"ok": True, "messages": self.roots[::-1], "has_more": False}
            case "conversations.replies":
                found = [m for m in self.messages if tree["ts"] in (m["ts"], m.get("thread_ts"))]
                return 200, {"ok": True, "messages": found, "response_metadata": {"next_cursor": ""}}
        return 404, {}


class Mlflow(Receiver):
    """A registry of models and versions; errors as MLflow words them."""

    def __init__(self, *versions: tuple[str, str], aliases: dict[tuple[str, str], str] | None = None) -> None:
        super().__init__()
        self.tags: dict[tuple[str, str], dict[str, str]] = {v: {} for v in versions}
        self.aliases = aliases or {}

    def answer(self, request: Request) -> tuple[int, Any]:
        if request.path == "/api/2.0/mlflow/registered-models/alias" and request.method == "GET":
            version = self.aliases.get((request.query["name"], request.query["alias"]))
            if version is None:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered model alias not found."}
            return 200, {"model_version": {"name": request.query["name"], "version": version}}
        if request.path != "/api/2.0/mlflow/model-versions/set-tag" or request.method != "POST":
            return 404, b"Not Found"
        tree = request.json()
        if (problem := wrong(tree, MLFLOW_SET_TAG)) is not None:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": problem}
        tags = self.tags.get((tree["name"], tree["version"]))
        if tags is None:
            message = f"Model Version (name={tree['name']}, version={tree['version']}) not found"
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": message}
        tags[tree["key"]] = tree["value"]
        return 200, json.dumps({}).encode()
