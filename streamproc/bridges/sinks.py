"""The receivers: how each is told one step, and what its answers mean."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import orjson
import structlog

from streamproc import __version__, config
from streamproc.bridges import payloads
from streamproc.bridges.steps import Episode, Event, Step, Track
from streamproc.errors import InvalidConnection

log = structlog.get_logger("streamproc.bridge")

#: The longest that a receiver's Retry-After is believed.
_LONGEST_RETRY_AFTER_S = 3600.0

#: Of an answer, what is kept for a log line or a dead letter.
_SAID = 300

#: Alerts in one request to Alertmanager.
_AT_ONCE = 256


class Unavailable(Exception):
    """The receiver does not take it now, and may later; `after_s` where it said when."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Refused(Exception):
    """The receiver will never take this record; `error_type` is a short stable word."""

    def __init__(self, reason: str, error_type: str) -> None:
        super().__init__(reason)
        self.error_type = error_type


class Skipped(Exception):
    """There is nothing to tell this receiver, and nothing wrong with that."""


class Answer(msgspec.Struct, frozen=True):
    """What a receiver answered."""

    where: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """Return the answer in short."""
        return f"{self.where} answered {self.status}: {self.body[:_SAID].decode('utf-8', 'replace').strip()}"

    def json(self) -> Any:
        """Return the answer's JSON, {} where it is none."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}

    def check(self) -> None:
        """Raise what the status means.

        What is wrong with the record is refused. What is wrong with an address or a credential concerns every record,
        and an operator mends it: then the bridge waits, rather than set all pages of a night aside.
        """
        if 200 <= self.status < 300:
            return
        if self.status in _OF_THE_RECORD:
            raise Refused(self.said, f"http_{self.status}")
        raise Unavailable(self.said, retry_after(self.headers.get("Retry-After"), time.time()))


#: Bad request, conflict, too large, unsupported, unprocessable, header fields too large.
_OF_THE_RECORD = (400, 406, 409, 411, 412, 413, 414, 415, 422, 431)


def retry_after(value: str | None, now_s: float) -> float | None:
    """Return the seconds a Retry-After header asks for, of either form.

    >>> retry_after("7", 0.0), retry_after("Thu, 01 Jan 1970 00:00:30 GMT", 10.0), retry_after("soon", 0.0)
    (7.0, 20.0, None)
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now_s
        except ValueError:
            return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_S) if seconds == seconds else None


class Http:
    """Requests to receivers: no redirects, one timeout, errors that say which host and not which address."""

    def __init__(self, bridge: config.Bridge) -> None:
        context: ssl.SSLContext | bool = True
        if bridge.ssl_cafile is not None:
            try:
                context = ssl.create_default_context(cafile=bridge.ssl_cafile)
            except OSError as error:
                raise InvalidConnection(f"ssl_cafile: {bridge.ssl_cafile} cannot be used ({error})") from error
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=bridge.timeout.us / 1e6),
            connector=aiohttp.TCPConnector(ssl=context),
            headers={"User-Agent": f"streamproc/{__version__}"},
            trust_env=True,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def send(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and return the answer. Raises Unavailable where there is none."""
        where = urlsplit(url).netloc.rpartition("@")[2]  # the path of some addresses is a secret
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, params=query, allow_redirects=False
            ) as response:
                return Answer(where, response.status, dict(response.headers), await response.read())
        except TimeoutError as error:
            raise Unavailable(f"{where}: no answer in time") from error
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"{where}: {error.os_error.strerror or error.os_error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{where}: {type(error).__name__}") from error

    async def json(self, url: str, tree: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """Post JSON."""
        return await self.send(
            "POST", url, body=orjson.dumps(tree), headers={"Content-Type": "application/json", **(headers or {})}
        )


def credentials(bridge: Any) -> dict[str, str]:
    """Return the header that says who we are, where the config does."""
    if bridge.token is not None:
        return {"Authorization": f"Bearer {bridge.token}"}
    if bridge.username is not None:
        pair = base64.b64encode(f"{bridge.username}:{bridge.password or ''}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


#: Publishes a record: topic, key, value, headers.
Publish = Callable[[str, bytes | None, bytes | None, list[tuple[str, bytes]]], Awaitable[None]]


#: Sets aside an episode that the receiver takes never: its partition, itself, and why.
SetAside = Callable[[Any, Episode, Refused], Awaitable[None]]


class Sink:
    """A receiver; `deliver` returns once it has taken a step, or raises Unavailable, Refused or Skipped."""

    #: Whether an event asks for what is asked for once an episode.
    asks: Callable[[Event], bool] = staticmethod(lambda _event: False)

    def __init__(self, http: Http) -> None:
        self.http = http
        self.tracks: dict[Any, Track] = {}
        self.set_aside: SetAside | None = None  # for what is refused though no step is being delivered

    def restored(self, partition: Any, track: Track) -> None:
        """Take note of a partition whose past is known now."""
        self.tracks[partition] = track

    def forgotten(self, partition: Any) -> None:
        """Take note of a partition that is no longer ours."""
        self.tracks.pop(partition, None)

    def succeed(self, other: Sink) -> None:
        """Take over from another of the kind, whose config this one replaces."""
        self.set_aside = other.set_aside
        for partition, track in other.tracks.items():
            self.restored(partition, track)

    async def deliver(self, step: Step) -> None:
        """Tell the receiver one step."""
        raise NotImplementedError

    async def run(self) -> None:
        """Do what is to be done without a step, for ever."""


class AlertmanagerSink(Sink):
    """Every Alertmanager of a cluster, told what is firing, again and again.

    One that has taken a step is enough to go on: the others are told with the next resend, as Prometheus does it.
    """

    def __init__(self, http: Http, bridge: config.AlertmanagerBridge) -> None:
        super().__init__(http)
        self._bridge = bridge
        self._urls = [url.rstrip("/") + "/api/v2/alerts" for url in bridge.urls]
        self._headers = credentials(bridge)
        self._changed = asyncio.Event()
        self._behind = False  # one of them has not taken all it was last told

    def restored(self, partition: Any, track: Track) -> None:
        """Tell at once what is firing, and what ended lately: before a crash that may not have been told."""
        now_ms = time.time_ns() // 1_000_000
        window_ms = (self._bridge.keep_resolved.us + 4 * self._bridge.resend.us) // 1000
        for episode in track.recent(now_ms - window_ms):
            episode.told_ms = now_ms
        super().restored(partition, track)
        self._changed.set()

    async def deliver(self, step: Step) -> None:
        """Post the alerts of the step's episode, as they are now."""
        now_ms = time.time_ns() // 1_000_000
        step.episode.told_ms = now_ms
        # All that fires is looked at, since two episodes may share their labels.
        episodes = [step.episode, *(e for e in step.open if e is not step.episode)]
        alerts = payloads.alertmanager_alerts(episodes, now_us=now_ms * 1000, config=self._bridge)
        for _, refusal in await self._post([a for a in alerts if a["annotations"].get("episode") == step.episode.id]):
            raise refusal
        if step.episode.open and step.episode.shown_ms is None:
            step.episode.shown_ms = time.time_ns() // 1_000_000
        if not step.episode.open:
            self._changed.set()  # it may have to be shown for a little yet

    async def run(self) -> None:
        """Resend all that is firing or was resolved lately."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._pause_s())
            self._changed.clear()
            try:
                await self.resend()
            except Unavailable as error:
                log.warning("not resent; tried again with the next", reason=str(error))

    async def resend(self) -> None:
        """Post the whole state, in parts; set aside what none of them takes."""
        now_us = time.time_ns() // 1000
        since_ms = (now_us - self._bridge.keep_resolved.us - self._bridge.show_for.us) // 1000
        episodes = {e.id: (p, e) for p, track in self.tracks.items() for e in track.recent(since_ms)}
        alerts = payloads.alertmanager_alerts(
            (e for _, e in episodes.values()), now_us=now_us, config=self._bridge
        )
        for i in range(0, len(alerts), _AT_ONCE):
            for alert, refusal in await self._post(alerts[i : i + _AT_ONCE]):
                found = episodes.get(alert["annotations"].get("episode", ""))
                if found is None or found[1].refused:
                    continue
                found[1].refused = True
                if self.set_aside is not None:
                    await self.set_aside(*found, refusal)

    def _pause_s(self) -> float:
        """Return how long until the next resend, or until something shown for a little has been."""
        now_us = time.time_ns() // 1000
        recent_ms = (now_us - self._bridge.show_for.us) // 1000 - 1000
        ends = [payloads.shown_until_us(e, self._bridge) for t in self.tracks.values() for e in t.recent(recent_ms)]
        due = min((end for end in ends if end > now_us), default=now_us + self._bridge.resend.us)
        # One that was away and is back is told soon, not only after a whole interval.
        longest = min(5e6, self._bridge.resend.us) if self._behind else self._bridge.resend.us
        return max(0.02, min(due - now_us + 1000, longest) / 1e6)

    async def _post(self, alerts: list[dict[str, Any]]) -> list[tuple[dict[str, Any], Refused]]:
        """Post alerts to each; return those that every one of them refuses.

        Raises Unavailable where one of them is taken by none: not all have answered.
        """
        if not alerts:
            return []
        answers = await asyncio.gather(*(self._post_to(url, alerts) for url in self._urls), return_exceptions=True)
        away: list[Unavailable] = []
        refusals: list[dict[int, Refused]] = []
        for answer in answers:
            if isinstance(answer, Unavailable):
                away.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                refusals.append(answer)
        self._behind = bool(away)
        by_all = {i: e for i, e in (refusals[0] if refusals else {}).items() if all(i in r for r in refusals)}
        if not refusals or (away and by_all):  # one that is away may take what the others do not
            raise away[0]
        for problem in away:
            log.warning("one Alertmanager is behind; it is told with the next resend", reason=str(problem))
        return [(alerts[i], e) for i, e in sorted(by_all.items())]

    async def _post_to(self, url: str, alerts: list[dict[str, Any]], first: int = 0) -> dict[int, Refused]:
        """Post alerts to one Alertmanager; return those it refuses, by their place.

        It answers for all of them together, and one that is wrong has it refuse the others, or take them and say
        nothing of it, as versions differ. So what is refused is posted again in halves.
        """
        answer = await self.http.json(url, alerts, self._headers)
        try:
            answer.check()
        except Refused as refusal:
            if len(alerts) == 1:
                return {first: refusal}
            half = len(alerts) // 2
            found = await self._post_to(url, alerts[:half], first)
            return found | await self._post_to(url, alerts[half:], first + half)
        return {}


class PagerdutySink(Sink):
    """A PagerDuty service."""

    def __init__(self, http: Http, bridge: config.PagerdutyBridge) -> None:
        super().__init__(http)
        self._bridge = bridge

    async def deliver(self, step: Step) -> None:
        """Enqueue one event."""
        event = payloads.pagerduty_event(step, self._bridge)
        if event is None:
            raise Skipped(f"{step.event.action} is nothing to PagerDuty")
        answer = await self.http.json(self._bridge.url, event)
        if answer.status == 400 and "routing_key" in answer.said:
            raise Unavailable(f"{answer.said}; check the bridge's routing_key")  # no record is to blame
        answer.check()


class WebhookSink(Sink):
    """An address that takes CloudEvents."""

    def __init__(self, http: Http, bridge: config.WebhookBridge, source: str) -> None:
        super().__init__(http)
        self._bridge = bridge
        self._source = source

    async def deliver(self, step: Step) -> None:
        """Post the record as it was published."""
        attributes = payloads.cloudevent(step, source=self._source)
        await post_cloudevent(
            self.http,
            self._bridge.url,
            attributes,
            step.value,
            mode=self._bridge.mode,
            secrets=self._bridge.secrets,
            headers=self._bridge.headers,
        )


async def post_cloudevent(
    http: Http,
    url: str,
    attributes: Mapping[str, str],
    data: bytes,
    *,
    mode: str,
    secrets: list[str],
    headers: Mapping[str, str],
) -> None:
    """Post a CloudEvent, signed at the time of the attempt."""
    body, own = payloads.webhook(attributes, data, mode=mode)
    signature = payloads.signed(attributes["id"], body, secrets, now_s=int(time.time()))
    (await http.send("POST", url, body=body, headers={**headers, **own, **signature})).check()


class RetrainSink(Sink):
    """Whoever retrains models: a topic, a webhook, or both."""

    def __init__(self, http: Http, bridge: config.RetrainBridge, source: str, publish: Publish) -> None:
        super().__init__(http)
        self._bridge = bridge
        self._source = source
        self._publish = publish
        if bridge.suggested:
            self.asks = lambda event: event.action_suggested == "retrain"
        else:
            self.asks = lambda event: event.status == "firing"

    async def deliver(self, step: Step) -> None:
        """Ask, where this is the first step of its episode that says so."""
        if not step.asks:
            raise Skipped("asks for no retraining, or did already")
        attributes, request = payloads.retrain_request(step, source=self._source)
        value = msgspec.json.encode(request)
        if self._bridge.requests is not None:
            headers = [(f"ce_{k}", v.encode()) for k, v in attributes.items()]
            headers += [("content-type", b"application/json"), ("idempotency-key", attributes["id"].encode())]
            await self._publish(self._bridge.requests, request.model.encode() or None, value, headers)
        if self._bridge.url is not None:
            await post_cloudevent(
                self.http,
                self._bridge.url,
                attributes,
                value,
                mode="structured",
                secrets=self._bridge.secrets,
                headers=self._bridge.headers,
            )


#: What Slack says of a message that it will never take; of anything else it may.
_SLACK_REFUSES = frozenset(
    ["invalid_blocks", "invalid_blocks_format", "invalid_attachments", "invalid_arguments", "invalid_metadata_format",
     "metadata_too_large", "msg_blocks_too_long", "msg_too_long", "no_text", "too_many_attachments"]
)

#: Threads whose message is remembered; that of an older one is looked up.
_THREADS = 5000


class SlackSink(Sink):
    """A channel: one message an episode, what follows in its thread; by an incoming webhook, one message a step."""

    def __init__(self, http: Http, bridge: config.SlackBridge) -> None:
        super().__init__(http)
        self._bridge = bridge
        self._threads: dict[str, tuple[str, str]] = {}  # channel and time stamp by episode

    def succeed(self, other: Sink) -> None:
        """Know the messages there are, where they are in the same channel."""
        super().succeed(other)
        if isinstance(other, SlackSink) and other._bridge.channel == self._bridge.channel:
            self._threads = other._threads

    async def deliver(self, step: Step) -> None:
        """Post, or bring the message about the episode up to date and reply to it."""
        message = payloads.slack_message(step, self._bridge.dashboard_url)
        if self._bridge.webhook_url is not None:
            if step.event.action == "updated" and not step.first:
                raise Skipped("an update is no message of its own without threads")
            answer = await self.http.json(self._bridge.webhook_url, message)
            if answer.status == 400 and b"invalid_token" in answer.body:
                raise Unavailable(answer.said)
            return answer.check()
        thread = self._threads.get(step.episode.id)
        if thread is None and (step.again or not step.first):
            thread = await self._find(step)
        if thread is None:
            if step.event.status == "resolved":
                raise Skipped("nothing was posted that this would end")
            posted = await self._call(
                "chat.postMessage",
                {"channel": self._bridge.channel, **message, "metadata": payloads.slack_metadata(step.episode.id)},
            )
            self._remember(step.episode.id, (posted.get("channel", self._bridge.channel), posted["ts"]))
            return None
        channel, stamp = thread
        self._remember(step.episode.id, thread)
        about = {"metadata": payloads.slack_metadata(step.episode.id)}
        await self._call("chat.update", {"channel": channel, "ts": stamp, **message, **about})
        if step.event.id == step.episode.first.id or (step.again and await self._replied(step, channel, stamp)):
            return None
        reply = {"event_type": "streamproc_step", "event_payload": {"id": step.event.id}}
        text = payloads.slack_reply(step)
        await self._call(
            "chat.postMessage", {"channel": channel, "thread_ts": stamp, "text": text, "metadata": reply}
        )
        return None

    def _remember(self, episode: str, thread: tuple[str, str]) -> None:
        self._threads.pop(episode, None)
        self._threads[episode] = thread
        if len(self._threads) > _THREADS:
            del self._threads[next(iter(self._threads))]

    async def _find(self, step: Step) -> tuple[str, str] | None:
        """Look for the message about an episode in the channel: Slack is where it is kept, not we."""
        channel = self._bridge.channel or ""
        wanted = payloads.slack_metadata(step.episode.id)
        oldest = str(step.episode.opened_ms / 1000 - 60)
        async for message in self._messages("conversations.history", {"channel": channel, "oldest": oldest}):
            if message.get("metadata") == wanted:
                return channel, message["ts"]
        return None

    async def _replied(self, step: Step, channel: str, stamp: str) -> bool:
        async for message in self._messages("conversations.replies", {"channel": channel, "ts": stamp}):
            if (message.get("metadata") or {}).get("event_payload", {}).get("id") == step.event.id:
                return True
        return False

    async def _messages(self, method: str, query: Mapping[str, str]) -> Any:
        cursor = ""
        while True:
            more = {"cursor": cursor} if cursor else {}
            try:
                page = await self._call(
                    method, query={**query, "include_all_metadata": "true", "limit": "200", **more}
                )
            except Unavailable as error:
                if "missing_scope" not in str(error):
                    raise
                log.warning("may post twice after a crash: the token lacks channels:history", reason=str(error))
                return
            for message in page.get("messages", []):
                yield message
            cursor = page.get("response_metadata", {}).get("next_cursor", "")
            if not cursor:
                return

    async def _call(
        self, method: str, tree: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Any:
        url = f"{self._bridge.api_url.rstrip('/')}/{method}"
        headers = {"Authorization": f"Bearer {self._bridge.token}"}
        if tree is None:
            answer = await self.http.send("GET", url, headers=headers, query=query)
        else:
            headers["Content-Type"] = "application/json; charset=utf-8"
            answer = await self.http.send("POST", url, body=orjson.dumps(tree), headers=headers)
        answer.check()
        said = answer.json()
        if said.get("ok") is True:
            return said
        problem = said.get("error", "no answer of Slack's")
        if problem in _SLACK_REFUSES:
            raise Refused(f"Slack's {method}: {problem}", problem)
        raise Unavailable(f"Slack's {method}: {problem}")


class MlflowSink(Sink):
    """A model registry, whose versions carry a tag that says how they fare."""

    def __init__(self, http: Http, bridge: config.MlflowBridge) -> None:
        super().__init__(http)
        self._bridge = bridge
        self._base = bridge.url.rstrip("/") + "/api/2.0/mlflow"
        self._headers = credentials(bridge)

    async def deliver(self, step: Step) -> None:
        """Set the tag of every version the step concerns."""
        names = self._bridge.names
        missing = []
        concerned = payloads.model_versions(step, names)
        for name, version in concerned:
            status = payloads.mlflow_status(name, version, step.open, names)
            number = version or await self._aliased(name)
            # MLflow numbers its versions: any other name is a version of somebody else's.
            if not number.isdecimal() or not await self._tag(name, number, status):
                missing.append(f"{name}/{number or '?'}")
        if len(missing) == len(concerned):
            raise Skipped(f"not in the registry: {', '.join(missing) or 'no model is named'}")

    async def _aliased(self, name: str) -> str:
        if self._bridge.alias is None:
            return ""
        query = {"name": name, "alias": self._bridge.alias}
        answer = await self.http.send(
            "GET", f"{self._base}/registered-models/alias", headers=self._headers, query=query
        )
        said = answer.json()
        code = said.get("error_code")
        # An alias nobody gave is INVALID_PARAMETER_VALUE to MLflow, and as missing as a model that is not there.
        if code == "RESOURCE_DOES_NOT_EXIST" or (answer.status == 400 and code == "INVALID_PARAMETER_VALUE"):
            return ""
        answer.check()
        return str(said.get("model_version", {}).get("version", ""))

    async def _tag(self, name: str, version: str, status: str) -> bool:
        tree = {"name": name, "version": version, "key": self._bridge.tag, "value": status}
        answer = await self.http.json(f"{self._base}/model-versions/set-tag", tree, self._headers)
        if answer.json().get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            return False
        answer.check()
        return True


def make(bridge: config.Bridge, http: Http, *, source: str, publish: Publish) -> Sink:
    """Return the receiver that a block of the config names."""
    match bridge:
        case config.AlertmanagerBridge():
            return AlertmanagerSink(http, bridge)
        case config.PagerdutyBridge():
            return PagerdutySink(http, bridge)
        case config.SlackBridge():
            return SlackSink(http, bridge)
        case config.WebhookBridge():
            return WebhookSink(http, bridge, source)
        case config.RetrainBridge():
            return RetrainSink(http, bridge, source, publish)
        case config.MlflowBridge():
            return MlflowSink(http, bridge)
        case _:
            raise TypeError(type(bridge).__name__)


def output_topics(bridge: config.Bridge) -> Iterable[str]:
    """Return the topics a bridge writes beside its dead letters."""
    return [bridge.requests] if isinstance(bridge, config.RetrainBridge) and bridge.requests is not None else []
