"""What each receiver is sent: its published form of one step; pure.

References
----------
[^1]: Prometheus, Alertmanager API v2. https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
[^2]: PagerDuty, Events API v2. https://developer.pagerduty.com/docs/events-api-v2/trigger-events/
[^3]: Standard Webhooks 1.0.0. https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
[^4]: CloudEvents 1.0.2, HTTP protocol binding.
[^5]: Slack, `chat.postMessage`, `chat.update`, message metadata, Block Kit limits. https://docs.slack.dev
[^6]: MLflow, REST API, Set Model Version Tag. https://mlflow.org/docs/latest/rest-api.html
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from streamproc.bridges.steps import Episode, Event, Step
from streamproc.cloudevents import RETRAIN_SCHEMA, RETRAIN_TYPE
from streamproc.config import AlertmanagerBridge, PagerdutyBridge
from streamproc.events import RetrainRequest, rfc3339

CLIENT = "streamproc"

_NOT_A_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_TEMPLATE = re.compile(r"\{(\w+)\}")


def cut(text: str, size: int) -> str:
    """Return a text of at most `size` characters, the cut shown.

    >>> cut("prediction drift", 8)
    'predict…'
    """
    return text if len(text) <= size else text[: size - 1] + "…"


def filled(template: str, labels: Mapping[str, str]) -> str:
    """Return an address with its {label}s filled in, escaped.

    >>> filled("https://g/d/1?var-model={model}", {"model": "fraud eu"})
    'https://g/d/1?var-model=fraud%20eu'
    """
    return _TEMPLATE.sub(lambda m: quote(labels.get(m[1], ""), safe=""), template)


def _us(text: str | None) -> int | None:
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return round(moment.timestamp() * 1e6)


# ------------------------------------------------------------------------------------- Alertmanager


def label_set(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels under names that Prometheus takes; the empty ones are none.

    >>> label_set({"model.name": "m", "2x": "y", "team": ""})
    {'model_name': 'm', '_2x': 'y'}
    """
    out = {}
    for name, value in labels.items():
        plain = _NOT_A_LABEL.sub("_", name)
        if value and plain:
            out["_" + plain if plain[:1].isdigit() else plain] = value
    return out


def alertmanager_alerts(
    episodes: Iterable[Episode], *, now_us: int, config: AlertmanagerBridge
) -> list[dict[str, Any]]:
    """Return what Alertmanager is to know of these episodes by now.

    A firing alert ends, for it, four resends from now, so that without us it expires. What has ended, and what an
    episode was called before it was called something else, is sent as resolved for `keep_resolved`.
    """
    out = []
    firing: set[tuple[tuple[str, str], ...]] = set()
    ended: list[tuple[Episode, dict[str, str], int, int]] = []  # with its end, and when that was told
    for episode in episodes:
        if episode.refused:
            continue
        if shown_until_us(episode, config) > now_us or episode.open:
            out.append(_alertmanager_alert(episode, episode.labels, config, now_us, now_us + 4 * config.resend.us))
            firing.add(_identity(out[-1]))
        else:
            end = _us(episode.latest.endsAt) or episode.latest_ms * 1000
            told = max(episode.latest_ms, episode.told_ms, episode.shown_ms or 0)
            ended.append((episode, episode.labels, end, told * 1000))
        for worn in episode.worn:
            by_latest = worn.until_ms >= episode.latest_ms
            told = max(worn.until_ms, episode.told_ms) if by_latest else worn.until_ms
            ended.append((episode, worn.labels, worn.until_ms * 1000, told * 1000))
    for episode, labels, end_us, told_us in ended:
        alert = _alertmanager_alert(episode, labels, config, now_us, min(end_us, now_us))
        # Another episode may fire under the same labels by now; that is then the truth about them.
        if told_us + config.keep_resolved.us > now_us and _identity(alert) not in firing:
            out.append(alert)
    return out


def shown_until_us(episode: Episode, config: AlertmanagerBridge) -> int:
    """Return until when an episode that has ended is still shown as firing.

    Alertmanager waits a little before it tells of an alert, and what is resolved by then it never tells of. So what
    was held up on its way to it is shown for as long as it lasted, `show_for` at most.
    """
    if episode.open or episode.shown_ms is None:
        return 0
    lasted = (episode.latest_ms - episode.opened_ms) * 1000  # by the records' times: what its delivery should have been
    return episode.shown_ms * 1000 + max(0, min(config.show_for.us, lasted))


def _identity(alert: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(alert["labels"].items()))


def _alertmanager_alert(
    episode: Episode, labels: Mapping[str, str], config: AlertmanagerBridge, now_us: int, ends_us: int
) -> dict[str, Any]:
    event = episode.latest
    start = min(_us(episode.first.startsAt) or episode.opened_ms * 1000, now_us)
    names = {**labels, **config.labels}
    if event.incident_id:
        names["fingerprint"] = event.fingerprint  # an incident's own labels may not tell it from the next
    annotations = {"summary": event.summary, "description": event.description, **event.annotations}
    annotations |= {"episode": episode.id, "action": event.action}
    if event.value is not None:
        annotations["value"] = f"{event.value:g}"
    if event.score is not None:
        annotations["score"] = f"{event.score:.3g}"
    if event.cause is not None and event.cause.category:
        annotations["cause"] = event.cause.category
    alert: dict[str, Any] = {
        "labels": label_set(names),
        "annotations": label_set(annotations),
        "startsAt": rfc3339(start),
        "endsAt": rfc3339(max(start, ends_us)),
    }
    url = filled(config.generator_url, names) or event.generatorURL
    if url:
        alert["generatorURL"] = url
    return alert


# ---------------------------------------------------------------------------------------- PagerDuty

_PAGERDUTY_SEVERITY = {"critical": "critical", "error": "error", "warning": "warning", "info": "info"}
_PAGERDUTY_ACTION = {"opened": "trigger", "updated": "trigger", "escalated": "trigger", "resolved": "resolve"}

#: An event may have 512 kB; what is longer than this is of no use to a person.
_DETAIL_BYTES = 16_000


def dedup_key(fingerprint: str) -> str:
    """Return the key by which PagerDuty knows one condition; it takes 255 characters."""
    return fingerprint if len(fingerprint) <= 255 else hashlib.sha256(fingerprint.encode()).hexdigest()


def pagerduty_event(step: Step, config: PagerdutyBridge) -> dict[str, Any] | None:
    """Return the event of Events API v2 for a step; None where it is none of PagerDuty's business."""
    event = step.event
    action = config.actions.get(event.action) or _PAGERDUTY_ACTION[event.action]
    if event.status == "resolved" and not step.last:
        return None  # the same condition is firing still, somewhere else
    if action == "none" or (action == "acknowledge" and step.first):
        return None
    out: dict[str, Any] = {
        "routing_key": config.routing_key,
        "event_action": action,
        "dedup_key": dedup_key(event.fingerprint),
    }
    if action != "trigger":
        return out
    labels = event.all_labels
    chosen = config.severities.get(event.severity)  # type: ignore[call-overload]
    payload: dict[str, Any] = {
        "summary": cut(event.summary or event.name or event.id, 1024),
        "source": labels.get("model") or event.name or CLIENT,
        "severity": chosen or _PAGERDUTY_SEVERITY.get(event.severity, "warning"),
        "custom_details": details(event),
    }
    optional = {
        "timestamp": event.startsAt,
        "component": labels.get("model"),
        "group": labels.get("team") or labels.get("env"),
        "class": event.signal or labels.get("signal") or event.category,
    }
    payload |= {k: v for k, v in optional.items() if v}
    out |= {"payload": payload, "client": CLIENT}
    links = [{"href": href, "text": text} for text, href in links_of(event, config.dashboard_url)]
    if links:
        out["links"] = links
        out["client_url"] = links[-1]["href"]
    return out


def links_of(event: Event, dashboard_url: str) -> list[tuple[str, str]]:
    """Return what a person may go to, by name."""
    found = [
        ("Runbook", event.annotations.get("runbook_url", "")),
        ("Dashboard", filled(dashboard_url, event.all_labels) or event.generatorURL),
    ]
    return [(text, href) for text, href in found if href.startswith(("http://", "https://"))]


def details(event: Event) -> dict[str, Any]:
    """Return what is known of a step beyond its summary."""
    found: dict[str, Any] = {
        "description": event.description or event.annotations.get("description"),
        "labels": event.labels,
        "signal": event.signal,
        "value": event.value,
        "score": event.score,
        "category": event.category,
        "cause": None if event.cause is None else msgspec.to_builtins(event.cause),
        "attribution": event.attribution,
        "changes": event.changes,
        "evidence": event.evidence,
        "models": event.models,
        "impact": event.impact,
        "suggested_action": event.action_suggested,
        "episode_id": event.episode,
    }
    kept = {k: v for k, v in found.items() if v not in (None, "", [], {})}
    return {k: v if len(text := orjson.dumps(v)) <= _DETAIL_BYTES else cut(text.decode(), _DETAIL_BYTES)
            for k, v in kept.items()}  # fmt: skip


# --------------------------------------------------------------------------- CloudEvents and webhooks


def cloudevent(step: Step, *, source: str) -> dict[str, str]:
    """Return the attributes of a record's CloudEvent, from its headers where it has them."""
    event = step.event
    out = {name.removeprefix("ce_"): value.decode("utf-8", "replace") for name, value in step.headers
           if name.startswith("ce_") and value}  # fmt: skip
    kind = "incident" if event.incident_id else "alert"
    given = {"specversion": "1.0", "type": f"io.streamproc.{kind}.v1", "source": source, "id": event.id}
    return {**given, **out, "time": out.get("time") or event.lastReceived or event.startsAt}


def webhook(
    attributes: Mapping[str, str], data: bytes, *, mode: str = "structured"
) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a CloudEvent over HTTP."""
    if mode == "binary":
        headers = {f"ce-{k}": quote(v, safe=" !#$&'()*+,/:;=?@[]-._~<>^`{|}") for k, v in attributes.items()}
        return data, {"content-type": "application/json", **headers}
    body = orjson.dumps({**attributes, "datacontenttype": "application/json", "data": orjson.Fragment(data)})
    return body, {"content-type": "application/cloudevents+json; charset=utf-8"}


def signed(id_: str, body: bytes, secrets: Sequence[str], *, now_s: int) -> dict[str, str]:
    """Return the headers of Standard Webhooks: a signature by each secret.

    >>> signed("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}',
    ...        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], now_s=1614265330)["webhook-signature"]
    'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
    """
    id_ = id_.replace(".", "-")  # a dot would let one message be read as another
    headers = {"webhook-id": id_, "webhook-timestamp": str(now_s), "idempotency-key": id_}
    if secrets:
        content = f"{id_}.{now_s}.".encode() + body
        headers["webhook-signature"] = " ".join(
            "v1," + base64.b64encode(hmac.digest(_key(s), content, "sha256")).decode() for s in secrets
        )
    return headers


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_"))


def retrain_request(step: Step, *, source: str) -> tuple[dict[str, str], RetrainRequest]:
    """Return the CloudEvent that asks for a retraining, once an episode: its attributes and its data."""
    event = step.event
    id_ = hashlib.sha256(f"retrain\0{event.episode}".encode()).hexdigest()[:32]
    labels = event.all_labels
    request = RetrainRequest(
        id=id_,
        model=labels.get("model", ""),
        reason=event.summary,
        episode_id=event.episode,
        fingerprint=event.fingerprint,
        requested_by=event.id,
        since=event.startsAt,
        severity=event.severity,
        model_version=labels.get("model_version"),
        models=event.models,
        signal=event.signal or labels.get("signal", ""),
        labels=event.labels,
        cause=None if event.cause is None else msgspec.to_builtins(event.cause),
        evidence=event.evidence,
    )
    attributes = {
        "specversion": "1.0",
        "type": RETRAIN_TYPE,
        "source": source,
        "id": id_,
        "time": event.lastReceived or event.startsAt,
        "dataschema": RETRAIN_SCHEMA,
        "subject": request.model,
        "partitionkey": request.model,
        "correlationid": event.episode,
    }
    return {k: v for k, v in attributes.items() if v}, request


# -------------------------------------------------------------------------------------------- Slack

_COLOUR = {"critical": "#d00000", "error": "#d00000", "warning": "#e8a317", "info": "#3b82c4"}
_OVER = "#2e7d32"


def slack_message(step: Step, dashboard_url: str) -> dict[str, Any]:
    """Return the text, blocks and colour of the message about an episode."""
    event = step.event
    over = event.status == "resolved"
    word = "Resolved" if over else event.severity.capitalize()
    title = f"{word}: {event.name or event.labels.get('alertname', 'alert')}"
    labels = event.all_labels
    named: tuple[str, ...] = ("model", "model_version", "signal", "segment", "env", "team")
    fields = [(n, labels[n]) for n in named if n in labels]
    fields += [("since", event.startsAt)] + ([("until", event.endsAt or event.lastReceived)] if over else [])
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": cut(title, 150)}},
        {"type": "section", "text": _mrkdwn(cut(escaped(event.summary or event.name or event.id), 2900))},
        {"type": "section", "fields": [_mrkdwn(f"*{n}*\n{cut(escaped(v), 1900)}") for n, v in fields[:10]]},
    ]
    if event.action_suggested:
        blocks.append({"type": "context", "elements": [_mrkdwn(f"Suggested: {escaped(event.action_suggested)}")]})
    links = links_of(event, dashboard_url)
    if links:
        text = " · ".join(f"<{quote(href, safe=_URL)}|{name}>" for name, href in links)
        blocks.append({"type": "context", "elements": [_mrkdwn(cut(text, 2900))]})
    colour = _OVER if over else _COLOUR.get(event.severity, "#808080")
    text = cut(escaped(f"{title}: {event.summary}"), 3000)
    return {"text": text, "attachments": [{"color": colour, "fallback": text, "blocks": blocks}]}


_URL = "%/:?#[]@!$&'()*+,;=~-._"


def slack_reply(step: Step) -> str:
    """Return the line that follows in the thread of an episode."""
    return cut(escaped(f"{step.event.action}: {step.event.summary}"), 3000)


def slack_metadata(episode: str) -> dict[str, Any]:
    """Return what a message carries so that it is found again."""
    return {"event_type": "streamproc_episode", "event_payload": {"episode_id": episode}}


def _mrkdwn(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text}


def escaped(text: str) -> str:
    """Return text as Slack wants it: `&`, `<` and `>` have a meaning there."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ------------------------------------------------------------------------------------------- MLflow


def model_versions(step: Step, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the registered models and versions a step concerns: name and version, "" where it names none."""
    labels = [step.episode.labels, *(w.labels for w in step.episode.worn)]
    found = [(_registered(ls, names), ls.get("model_version", "")) for ls in labels]
    return [pair for pair in dict.fromkeys(found) if pair[0]]


def mlflow_status(name: str, version: str, open_: Iterable[Episode], names: Mapping[str, str]) -> str:
    """Return the value of the tag: `ok`, or what is firing on this version."""
    firing = {
        e.labels.get("signal") or e.labels.get("alertname", "")
        for e in open_
        if _registered(e.labels, names) == name and e.labels.get("model_version", "") == version
    }
    # 5000 bytes are what every store of MLflow takes.
    return cut("firing: " + ", ".join(sorted(firing)), 1200) if firing else "ok"


def _registered(labels: Mapping[str, str], names: Mapping[str, str]) -> str:
    model = labels.get("model", "")
    return names.get(model, model)
