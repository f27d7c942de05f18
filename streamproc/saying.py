"""`streamproc silence` and `streamproc feedback`: what operators say of alerts while workers run."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import orjson

from streamproc.errors import BrokerUnreachable, UsageError
from streamproc.events import rfc3339

_config = click.option("--config", "-c", "config_path", metavar="FILE", required=True, help="The workers' YAML file.")
_author = click.option(
    "--author", default=lambda: os.environ.get("USER", ""), show_default="$USER", help="Who says so."
)

_VERDICTS = ("ANOMALY", "ANOMALY_EXPECTED", "NOT_ANOMALY", "ANOMALY_NEW_TREND")


@click.group()
def silence() -> None:
    """Hide alerts for a while: add, list and end silences.

    Alerts that open in a silence are published with `suppressed_by`, and nobody is told. What still fires when it
    ends opens anew. A silence of the config file needs none of this.

    \b
    Examples:
      streamproc silence add -c worker.yaml --model 'fraud-*' --for 2h --reason 'migration'
      streamproc silence add -c worker.yaml --model fraud-eu --signal latency_p95 --for 30m --no-learn
      streamproc silence list -c worker.yaml
      streamproc silence end -c worker.yaml 7d0c2f61
    """


@silence.command("add")
@_config
@click.option("--model", default="*", show_default=True, metavar="GLOB", help="Which models.")
@click.option("--signal", default="*", show_default=True, metavar="GLOB", help="Which signals.")
@click.option("--segment", default="*", show_default=True, metavar="GLOB", help="Which segments: `country=DE`.")
@click.option("--from", "start", metavar="TIME", help="When it begins, RFC 3339. Without it: now.")
@click.option("--for", "length", metavar="DURATION", help="How long, such as 30m or 2h.")
@click.option("--to", "end", metavar="TIME", help="When it ends, instead of --for.")
@click.option("--learn/--no-learn", default=True, show_default=True, help="Whether detectors learn from it.")
@click.option("--reason", default="", help="Why; it is said in every alert that is hidden.")
@_author
def add(
    config_path: str,
    model: str,
    signal: str,
    segment: str,
    start: str | None,
    length: str | None,
    end: str | None,
    learn: bool,
    reason: str,
    author: str,
) -> None:
    """Silence alerts that match, from a time on and for a while; print its id."""
    from streamproc.config import Duration

    if (length is None) == (end is None):
        raise UsageError("say either --for or --to: a silence without an end is forgotten")
    from_us = round(time.time() * 1e6) if start is None else _time(start, "--from")
    try:
        to_us = _time(end, "--to") if end is not None else from_us + Duration.parse(length).us
    except ValueError as e:
        raise UsageError(f"--for: {e}") from None
    if to_us <= from_us:
        raise UsageError("it ends before it begins")
    said = {
        "model": model,
        "signal": signal,
        "segment": segment,
        "from": rfc3339(from_us),
        "to": rfc3339(to_us),
        "learn": learn,
        "reason": reason,
        "author": author,
    }
    number = uuid.uuid4().hex[:8]

    async def send(settings: dict[str, Any], topic: str) -> None:
        from streamproc.worker.said import say

        await say(settings, topic, number.encode(), orjson.dumps(said))

    _run(config_path, "silences", send)
    click.echo(f"{number}  {model} {signal} {segment}  until {rfc3339(to_us)[:19]}Z")


@silence.command("list")
@_config
def list_silences(config_path: str) -> None:
    """Show the silences there are, those of the config file too."""
    from streamproc.rules import RuleBook
    from streamproc.silences import Silence

    found: list[Silence] = []

    async def read(settings: dict[str, Any], topic: str) -> None:
        from streamproc.worker.said import silences_now

        found.extend(await silences_now(settings, topic))

    config = _run(config_path, "silences", read)
    now_us = round(time.time() * 1e6)
    for one in [*RuleBook(config).silences, *found]:
        when = "over" if one.to_us <= now_us else "now" if one.from_us <= now_us else "to come"
        learns = "" if one.learn else "  nothing is learned"
        click.echo(
            f"{one.id:10s} {when:8s} {rfc3339(one.from_us)[:16]}Z to {rfc3339(one.to_us)[:16]}Z  "
            f"{one.model} {one.signal} {one.segment}  {one.reason}{learns}"
        )


@silence.command("end")
@_config
@click.argument("number", metavar="ID")
def end_silence(config_path: str, number: str) -> None:
    """End a silence now. What it hid and still fires opens for all to see."""

    async def send(settings: dict[str, Any], topic: str) -> None:
        from streamproc.worker.said import say, silences_now

        if number not in {s.id for s in await silences_now(settings, topic)}:
            raise UsageError(f"there is no silence `{number}`; see `streamproc silence list`")
        await say(settings, topic, number.encode(), None)

    _run(config_path, "silences", send)
    click.echo(f"{number} has ended")


@click.command()
@_config
@click.argument("fingerprint")
@click.argument("verdict", type=click.Choice(list(_VERDICTS)))
@click.option("--comment", default="", help="What to remember of it.")
@click.option("--cause", default="", help="What it was.")
@_author
def feedback(config_path: str, fingerprint: str, verdict: str, comment: str, cause: str, author: str) -> None:
    """Say what an alert was.

    FINGERPRINT is the alert's, or its beginning as `streamproc alerts` shows it; or the beginning of an incident's id,
    for the alert that is taken for its cause.

    \b
    NOT_ANOMALY         ends it, and raises the signal's limit above what it came to
    ANOMALY_NEW_TREND   ends it, and takes what it is now as normal
    ANOMALY_EXPECTED    it goes on, and nobody is told any more of it
    ANOMALY             it was one; for the record

    Each verdict is published to the alerts topic, with its author.

    \b
    Example:
      streamproc feedback -c worker.yaml 1f6d0c2a NOT_ANOMALY --comment 'month end'
    """
    from streamproc import rules
    from streamproc.looking import resolve

    fingerprint = resolve(rules.load(Path(config_path), env=dict(os.environ)), fingerprint)
    said = {"fingerprint": fingerprint, "verdict": verdict, "author": author, "time": rfc3339(round(time.time() * 1e6))}
    said |= {name: value for name, value in (("comment", comment), ("cause", cause)) if value}

    async def send(settings: dict[str, Any], topic: str) -> None:
        from streamproc.worker.said import say

        await say(settings, topic, fingerprint.encode(), orjson.dumps(said))

    _run(config_path, "feedback", send)
    click.echo(f"{verdict} said of {fingerprint}")


def _time(text: str, option: str) -> int:
    from streamproc.config import Moment

    try:
        return Moment.parse(text).us
    except ValueError as e:
        raise UsageError(f"{option}: {e}") from None


def _run(config_path: str, what: str, work: Callable[[dict[str, Any], str], Awaitable[None]]) -> Any:
    """Do something with the topic of silences or feedback of a config; return the config."""
    from aiokafka.errors import KafkaError

    from streamproc import rules
    from streamproc.worker import run
    from streamproc.worker.connection import connection, for_aiokafka

    config = rules.load(Path(config_path), env=dict(os.environ))
    topic: str = getattr(config.kafka, what)
    if not topic:
        raise UsageError(f"kafka.{what} is empty in {config_path}: workers read no {what} from a topic")
    run.prepare_topics(config, timeout_s=20.0)
    settings = for_aiokafka(connection(config))

    async def main() -> None:
        async with asyncio.timeout(30.0):
            await work(settings, topic)

    try:
        asyncio.run(main())
    except (KafkaError, OSError, TimeoutError) as e:
        raise BrokerUnreachable(f"{config.kafka.brokers} cannot be asked: {e!r}") from None
    return config
