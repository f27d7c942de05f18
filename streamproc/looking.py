"""`streamproc alerts` and `streamproc incidents`: what fires, read from its topic, for people without a receiver."""

from __future__ import annotations

import asyncio
import datetime as dt
import fnmatch
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from streamproc.config import Config
from streamproc.errors import BrokerUnreachable, TopicMissing, UsageError
from streamproc.events import Alert, Incident, lasted

_config = click.option("--config", "-c", "config_path", metavar="FILE", required=True, help="The workers' YAML file.")
_model = click.option("--model", default="*", show_default=True, metavar="GLOB", help="Which models.")
_all = click.option("--all", "-a", "every", is_flag=True, help="Also what is over.")
_since = click.option(
    "--since", default="30d", show_default=True, metavar="DURATION", help="How far back the topic is read."
)
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as they were published.")

#: Letters of an id that are shown; as many more as it takes to tell them apart.
_SHORT = 8
#: Length of a whole id.
_WHOLE = 32

_COLOURS = {"critical": "red", "warning": "yellow", "info": "blue"}

T = TypeVar("T", Alert, Incident)


@click.command()
@_config
@_model
@click.option("--signal", default="*", show_default=True, metavar="GLOB", help="Which signals.")
@_all
@_since
@_json
def alerts(config_path: str, model: str, signal: str, every: bool, since: str, as_json: bool) -> None:
    """Show the alerts that fire, the most severe first.

    The first column is the beginning of the fingerprint, as `streamproc feedback` takes it.

    \b
    Examples:
      streamproc alerts -c worker.yaml
      streamproc alerts -c worker.yaml --model 'fraud-*' --all --since 24h
      streamproc alerts -c worker.yaml --json | jq .summary
    """
    found = [
        (alert, raw)
        for alert, raw in _alerts(load(config_path), since)
        if fnmatch.fnmatchcase(alert.labels.get("model", ""), model)
        and fnmatch.fnmatchcase(alert.signal, signal)
        and (every or alert.status == "firing")
    ]
    _list(found, lambda a: a.fingerprint, as_json=as_json, nothing="no alert" if every else "nothing fires")


@click.command()
@_config
@click.argument("number", metavar="[ID]", default="")
@_model
@_all
@_since
@_json
def incidents(config_path: str, number: str, model: str, every: bool, since: str, as_json: bool) -> None:
    """Show the incidents that are not over, the most severe first, or one of them whole.

    ID is the beginning of an incident's id, the first column.

    \b
    Examples:
      streamproc incidents -c worker.yaml
      streamproc incidents -c worker.yaml 4be1
      streamproc incidents -c worker.yaml --all --since 7d --json
    """
    config = load(config_path)
    if not config.kafka.incidents:
        raise UsageError(f"kafka.incidents is empty in {config_path}: alerts are not grouped")
    known = _incidents(config, since)
    if number:
        wanted = [(i, raw) for i, raw in known if i.incident_id.startswith(number)]
        if len(wanted) != 1:
            few = ", ".join(i.incident_id[:_SHORT] for i, _ in known[-5:])
            hint = f"; the latest are {few}" if known else ""
            raise UsageError(f"{len(wanted) or 'no'} incidents have an id that begins with `{number}`{hint}")
        if as_json:
            _raw(wanted)
        else:
            click.echo("\n".join(_whole(wanted[0][0])))
        return
    found = [
        (incident, raw)
        for incident, raw in known
        if (every or incident.status == "firing") and any(fnmatch.fnmatchcase(m, model) for m in incident.models)
    ]
    _list(found, lambda i: i.incident_id, as_json=as_json, nothing="no incident" if every else "no incident is open")


def resolve(config: Config, text: str) -> str:
    """Return the fingerprint that the beginning of one, or of an incident's id, stands for. Raise `UsageError`.

    Of an incident it is that of the alert taken for its cause.
    """
    if len(text) == _WHOLE and not config.kafka.incidents:
        return text
    found = {a.fingerprint for a, _ in _alerts(config, "30d") if a.fingerprint.startswith(text)}
    if config.kafka.incidents:
        found |= {i.root for i, _ in _incidents(config, "30d") if i.incident_id.startswith(text)}
    if not found and len(text) == _WHOLE:
        return text  # of an alert that the topic has no more
    if len(found) != 1:
        raise UsageError(
            f"{len(found) or 'no'} alerts have a fingerprint that begins with `{text}`; see `streamproc alerts --all`"
        )
    return found.pop()


# ------------------------------------------------------------------------------------------ in words


def _list(found: list[tuple[T, bytes]], name: Callable[[T], str], *, as_json: bool, nothing: str) -> None:
    """Show what was found, the most severe first, a line each."""
    found = sorted(found, key=lambda f: (*_urgency(f[0]), f[0].name, name(f[0])))
    if as_json:
        _raw(found)
        return
    if not found:
        click.echo(nothing)
    short = _shortened(name(event) for event, _ in found)
    for event, _ in found:
        silenced = event.suppressed_by if isinstance(event, Alert) else ""
        click.echo(f"{short[name(event)]}  {_state(event)}  {event.summary}" + (f"  [{silenced}]" if silenced else ""))


def _whole(incident: Incident) -> list[str]:
    """Return an incident in lines."""
    cause = incident.cause
    lines = [
        f"{incident.incident_id}  {_state(incident)}",
        incident.summary,
        "",
        f"cause    {cause.category} ({cause.confidence:.0%}), by the rule {cause.rule}",
        *(f"         {said}" for said in cause.evidence),
        f"do       {incident.suggested_action.replace('_', ' ')}",
        f"models   {_some(incident.models, incident.more_models)}",
    ]
    impact = incident.impact
    hit = [lasted(impact.duration_s)]
    hit += [] if impact.predictions is None else [f"{impact.predictions:,} predictions"]
    hit += [] if impact.cost is None else [f"cost {impact.cost:,.2f}"]
    lines.append(f"impact   {', '.join(hit)}")
    for title, names in (("features", incident.features), ("upstream", incident.upstreams)):
        lines += [f"{title:8s} {', '.join(names)}"] if names else []
    lines += [f"changed  {c.what} {c.before} to {c.to}, {_clock(c.at)}" for c in incident.changes]
    lines += [f"runbook  {incident.url}"] if incident.url else []
    lines += [f"root     {incident.root[:_SHORT]}", ""]
    told = incident.post_mortem
    if told is not None:
        lines += [f"{_clock(m.at)}  {m.what}" for m in told.timeline]
        kpis = {n: v for n, v in msgspec.structs.asdict(told.kpis).items() if v is not None}
        lines += ["", *(f"{name.replace('_', ' ')}  {value:g}" for name, value in kpis.items())]
    else:
        for s in incident.symptoms:
            over = "" if s.endsAt is None else f", over {_clock(s.endsAt)}"
            lines.append(f"{_clock(s.startsAt)}  {s.fingerprint[:_SHORT]}  {s.summary}{over}")
        lines += [f"and {incident.more_symptoms} more"] if incident.more_symptoms else []
    return lines


def _state(event: Alert | Incident) -> str:
    since = f"{_clock(event.startsAt)} to {_clock(event.endsAt)}" if event.endsAt else f"since {_clock(event.startsAt)}"
    return f"{click.style(f'{event.severity:8s}', fg=_COLOURS.get(event.severity))}  {since}"


def _clock(stamp: str) -> str:
    """Return a time to the minute, UTC."""
    return f"{stamp[:10]} {stamp[11:16]}Z"


def _some(names: Sequence[str], more: int) -> str:
    shown = ", ".join(names[:20])
    more += max(0, len(names) - 20)
    return f"{shown} and {more} more" if more else shown


def _shortened(ids: Iterable[str]) -> dict[str, str]:
    """Return each id with as much of its beginning as tells it from the others."""
    known = list(dict.fromkeys(ids))
    length = _SHORT
    while length < _WHOLE and len({i[:length] for i in known}) < len(known):
        length += 1
    return {i: i[:length] for i in known}


def _urgency(event: Alert | Incident) -> tuple[bool, int, float]:
    rank = {"critical": 0, "warning": 1, "info": 2}[event.severity]
    return event.status == "resolved", rank, -dt.datetime.fromisoformat(event.startsAt).timestamp()


def _raw(found: Sequence[tuple[Any, bytes]]) -> None:
    for _, raw in found:
        click.echo(raw.decode())


# ------------------------------------------------------------------------------------------ from Kafka


def load(config_path: str) -> Config:
    """Return the config at a path. Raise `ConfigError`."""
    from streamproc import rules

    return rules.load(Path(config_path), env=dict(os.environ))


def _alerts(config: Config, since: str) -> list[tuple[Alert, bytes]]:
    """Return the latest step of each episode, with its bytes."""
    return _latest(config, config.kafka.alerts, since, Alert, lambda a: a.episode_id)


def _incidents(config: Config, since: str) -> list[tuple[Incident, bytes]]:
    return _latest(config, config.kafka.incidents, since, Incident, lambda i: i.incident_id)


def _latest(
    config: Config, topic: str, since: str, kind: type[T], episode: Callable[[T], str]
) -> list[tuple[T, bytes]]:
    decode = msgspec.json.Decoder(kind).decode
    found: dict[str, tuple[T, bytes]] = {}
    seen: set[str] = set()
    for value in (record.value for record in records_of(config, topic, since)):
        try:
            event = decode(value)
        except msgspec.MsgspecError:
            continue  # whatever it is, it is none of ours
        if event.id not in seen:  # a copy of an older step opens nothing anew
            seen.add(event.id)
            found.pop(episode(event), None)
            found[episode(event)] = event, value
    return list(found.values())


def records_of(config: Config, topic: str, since: str, *, empty: bool = False) -> list[Any]:
    """Return the records of a topic, those of the last so long, as there are now; empty: also those without a value.

    Raise UsageError, TopicMissing and BrokerUnreachable.
    """
    from aiokafka.errors import KafkaError

    from streamproc.config import Duration
    from streamproc.worker import topics
    from streamproc.worker.connection import connection, for_aiokafka

    try:
        back_us = Duration.parse(since).us
    except ValueError as e:
        raise UsageError(f"--since: {e}") from None
    conn = connection(config)
    partitions = topics.describe(conn, [topic], timeout_s=20.0).get(topic, 0)
    if not partitions:
        raise TopicMissing(f"there is no topic `{topic}` at {config.kafka.brokers}; has a worker run?")

    async def main() -> list[Any]:
        async with asyncio.timeout(120.0):
            return await _read(for_aiokafka(conn), topic, partitions, back_us)

    try:
        return [r for r in asyncio.run(main()) if empty or r.value is not None]
    except (KafkaError, OSError, TimeoutError) as e:
        raise BrokerUnreachable(f"{config.kafka.brokers} cannot be asked: {e!r}") from None


async def _read(settings: dict[str, Any], topic: str, partitions: int, back_us: int) -> list[Any]:
    import aiokafka
    from aiokafka.errors import KafkaError

    tps = [aiokafka.TopicPartition(topic, p) for p in range(partitions)]
    consumer = aiokafka.AIOKafkaConsumer(**settings, enable_auto_commit=False, isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        begins = await consumer.beginning_offsets(tps)
        since_ms = int(dt.datetime.now(dt.UTC).timestamp() * 1000) - back_us // 1000
        try:
            found = await consumer.offsets_for_times(dict.fromkeys(tps, since_ms))
        except KafkaError:  # a broker without an index of times: all of it
            found = {}
        for tp in tps:
            at = found.get(tp)
            consumer.seek(tp, begins[tp] if tp not in found else ends[tp] if at is None else at.offset)
        found_records: list[Any] = []
        beyond = False
        while True:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found_records += records
            if beyond:
                return found_records
            # Once more: the end that a broker in memory tells is that of its last batch but one.
            beyond = all([await consumer.position(tp) >= ends[tp] for tp in tps])
    finally:
        await consumer.stop()
