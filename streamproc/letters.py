"""`streamproc dead-letters` and `streamproc explain-record`: which records cannot be read, and why.

Of a topic only what is there is read; nothing is committed, and no group is joined.
"""

from __future__ import annotations

import fnmatch
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec
import orjson

from streamproc.errors import UsageError
from streamproc.events import Header, rfc3339
from streamproc.looking import load, records_of

if TYPE_CHECKING:
    from streamproc.config import Config

#: Headers of a dead letter that are ours and not its record's.
_OURS = ("error.type", "__streams.errors.", "streamproc.")

#: Letters of a message or a value that a line shows.
_SHOWN = 400


class Letter(msgspec.Struct):
    """A dead letter: why, where its record stood, and the record, as far as it was kept."""

    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    time: str
    key: str | None
    bytes: int
    headers: dict[str, str]
    value: Any = None


@click.command("dead-letters")
@click.option("--config", "-c", "config_path", metavar="FILE", required=True, help="The workers' YAML file.")
@click.option("--reason", default="*", show_default=True, metavar="GLOB", help="Which reasons, such as `schema`.")
@click.option("--topic", default="*", show_default=True, metavar="GLOB", help="Of records of which topics.")
@click.option("--key", default="*", show_default=True, metavar="GLOB", help="Which keys; mostly a model's name.")
@click.option("--since", default="24h", show_default=True, metavar="DURATION", help="How far back the topic is read.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The latest so many.")
@click.option("--value", "with_value", is_flag=True, help="Show the records too: they may hold what is confidential.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, which explain-record and replay take.")
def dead_letters(
    config_path: str, reason: str, topic: str, key: str, since: str, limit: int, with_value: bool, as_json: bool
) -> None:
    """Show the records that could not be read, the latest last, and how many of each reason there are.

    The topic is read and nothing else: no group, no offset of anybody is touched.

    \b
    Examples:
      streamproc dead-letters -c worker.yaml
      streamproc dead-letters -c worker.yaml --reason schema --topic predictions --since 2h
      streamproc dead-letters -c worker.yaml --key 'fraud-*' --limit 1 --value
      streamproc dead-letters -c worker.yaml --limit 1 --value --json | streamproc explain-record - -c worker.yaml
    """
    config = load(config_path)
    found = [
        letter
        for record in records_of(config, config.kafka.dead_letters, since, empty=True)
        if fnmatch.fnmatchcase((letter := read(record)).reason, reason)
        and fnmatch.fnmatchcase(letter.topic, topic)
        and fnmatch.fnmatchcase(letter.key or "", key)
    ]
    found.sort(key=lambda letter: letter.time)
    for letter in found[-limit:]:
        if as_json:
            click.echo(_as_json(letter, with_value=with_value))
            continue
        of = "" if letter.key is None else f" of {letter.key}"
        click.echo(
            f"{letter.time[:19]}Z  {letter.reason}  {letter.topic}-{letter.partition}@{letter.offset}{of}, "
            f"{letter.bytes:,} bytes: {letter.message[:_SHOWN] or 'no message is kept'}"
        )
        if with_value:
            click.echo(f"  {_text(letter.value)[:_SHOWN]}")
    counts = Counter(letter.reason for letter in found)
    said = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
    click.echo(f"{len(found):,} dead letters in the last {since}" + (f": {said}" if said else ""), err=True)


def read(record: Any) -> Letter:
    """Return what a record of the topic of dead letters says; what is none of ours says so."""
    headers = {k: (v or b"").decode("utf-8", "replace") for k, v in record.headers or ()}
    own = {k: v for k, v in headers.items() if not k.startswith(_OURS)}
    size = headers.get("streamproc.redacted.value.bytes") or headers.get("streamproc.value.left.out.bytes")

    def number(name: str, default: int) -> int:
        text = headers.get(f"__streams.errors.{name}", "")
        return int(text) if text.isdigit() else default

    return Letter(
        reason=headers.get("error.type", "unknown"),
        message=headers.get("__streams.errors.message", ""),
        topic=headers.get("__streams.errors.topic", record.topic),
        partition=number("partition", record.partition),
        offset=number("offset", record.offset),
        time=rfc3339(record.timestamp * 1000),
        key=None if record.key is None else record.key.decode("utf-8", "replace"),
        bytes=int(size) if size is not None and size.isdigit() else len(record.value or b""),
        headers=own,
        value=record.value,
    )


def _as_json(letter: Letter, *, with_value: bool) -> str:
    tree = msgspec.structs.asdict(letter)
    value = tree.pop("value")
    if with_value:
        tree["timestamp"] = round(_ms(letter.time))
        try:
            tree["value"] = msgspec.Raw(value) if isinstance(orjson.loads(value or b""), dict) else _text(value)
        except orjson.JSONDecodeError:
            tree["value"] = None if value is None else _text(value)
    return msgspec.json.encode(tree).decode()


def _ms(stamp: str) -> float:
    import datetime as dt

    return dt.datetime.fromisoformat(stamp).timestamp() * 1000


def _text(value: bytes | None) -> str:
    return "no value" if value is None else value.decode("utf-8", "backslashreplace")


@click.command("explain-record")
@click.argument("source", metavar="FILE|-")
@click.option("--config", "-c", "config_path", metavar="FILE", help="The workers' YAML file, for its field maps.")
@click.option(
    "--kind", type=click.Choice(["predictions", "telemetry", "labels"]), default="predictions", show_default=True
)
@click.option("--key", metavar="TEXT", help="The record's key.")
@click.option("--header", "given", multiple=True, metavar="NAME=VALUE", help="A header of it; may be given again.")
@click.option("--topic", default="", metavar="NAME", help="The topic; by Seldon's names its records are known.")
@click.option("--line", type=click.IntRange(min=1), default=1, show_default=True, help="Which line of several.")
def explain_record(
    source: str,
    config_path: str | None,
    kind: Literal["predictions", "telemetry", "labels"],
    key: str | None,
    given: tuple[str, ...],
    topic: str,
    line: int,
) -> None:
    """Say what a worker would read from one record: its format, its fields, the signals it feeds.

    The file is the record's value as it is, compressed or not; or a line of JSON: an event, a record
    written out with `value`, `key`, `headers` and `timestamp`, or a line of `kcat -J`. Of a record that
    is refused it says why, and ends with 3.

    \b
    Examples:
      streamproc explain-record event.json
      kcat -C -J -t predictions -o -1 -c 1 | streamproc explain-record - --config worker.yaml
      streamproc explain-record label.json --kind labels
      streamproc explain-record response.bin --topic seldon.seldon-mesh.model.iris.outputs
      streamproc explain-record event.json --key fraud-eu --header ce_id=7 --header ce_source=serving
    """
    from streamproc.explaining import explain

    headers = [(name, value.encode()) for name, _, value in (h.partition("=") for h in given)]
    if any("=" not in h for h in given):
        raise UsageError("--header: write NAME=VALUE")
    config = _any_config() if config_path is None else load(config_path)
    value, told_key, told_headers, at_ms = _record(config, kind, _bytes(source), line)
    found = explain(
        config,
        kind,
        value,
        key=told_key if key is None else key.encode(),
        headers=[*told_headers, *headers],
        topic=topic or next(iter(getattr(config.kafka, kind)), kind),
        at_ms=at_ms,
    )
    size = "no value" if value is None else f"{len(value):,} bytes"
    click.echo(f"record   {size}, {len(told_headers) + len(headers)} headers")
    if found.formats:
        click.echo(f"format   {', '.join(found.formats)}")
    for event in found.events[:10]:
        click.echo("reads")
        width = max(map(len, event), default=0)
        for name, field in event.items():
            click.echo(f"  {name:{width}s}  {_short(field)}")
    if len(found.events) > 10:
        click.echo(f"  and {len(found.events) - 10} more events")
    for side in dict.fromkeys(found.halves):
        other = "response" if side == "request" else "request"
        click.echo(f"waits    it is the {side} of a prediction, and feeds its signals once the {other} comes")
    if found.feeds:
        click.echo(f"feeds    {', '.join(found.feeds)}")
    for reason, meaning, message in found.refused:
        click.echo(f"refused  {reason} ({meaning})\n  {message}")
    for reason in found.ignored:
        click.echo(f"ignored  {reason}: it is understood, and not watched")
    if found.refused:
        sys.exit(3)


def _short(field: Any) -> str:
    text = orjson.dumps(field, default=str).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def _any_config() -> Config:
    from streamproc import rules

    text = "version: 1\nkafka: {brokers: none, predictions: [predictions], telemetry: [telemetry], labels: [labels]}"
    return rules.parse(text, env=dict(os.environ))


def _bytes(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(source).read_bytes()
    except OSError as e:
        raise UsageError(f"{source} cannot be read: {e.strerror or e}") from None


def _record(
    config: Config, kind: Literal["predictions", "telemetry", "labels"], data: bytes, line: int
) -> tuple[bytes | None, bytes | None, list[Header], int]:
    """Return value, key, headers and time in milliseconds of the record in a file."""
    from streamproc.replay import Replay
    from streamproc.rules import RuleBook

    text = data.strip()
    now_ms = round(time.time() * 1000)
    if text[:1] not in (b"{", b"["):
        return data, None, [], now_ms  # what is no text, and what is no JSON, is the value itself
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        lines = text.splitlines()
        if len(lines) < line:
            raise UsageError(f"--line: there are {len(lines)} lines") from None
        text = lines[line - 1]
    run = Replay(RuleBook(config), kind=kind)
    for _, ms, key, value, headers in run.records([text]):
        return value, key, headers, now_ms if run.report.untimed else ms
    return data, None, [], now_ms
