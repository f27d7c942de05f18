"""`streamproc offsets`: where workers have got to, and how to have them begin elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from streamproc.errors import BrokerUnreachable, UsageError
from streamproc.looking import load

if TYPE_CHECKING:
    from streamproc.config import Config
    from streamproc.worker.offsets import Position

_config = click.option("--config", "-c", "config_path", metavar="FILE", required=True, help="The workers' YAML file.")
_topics = click.option("--topic", "topics", multiple=True, metavar="NAME", help="Of this topic only. May be repeated.")

_WORDS = ("earliest", "latest", "saved", "group")


@click.group()
def offsets() -> None:
    """Show where workers have got to, or have them begin elsewhere.

    Workers go on from the state they saved. An offset that Kafka's own tools set for their group is taken where it is
    further on; where it is further back they refuse to start, since what they learned covers those records already.

    \b
    Examples:
      streamproc offsets show -c worker.yaml
      streamproc offsets reset -c worker.yaml --to latest
      streamproc offsets reset -c worker.yaml --to 2026-10-01T06:00Z --dry-run
      streamproc offsets reset -c worker.yaml --to saved
    """


@offsets.command("show")
@_config
@_topics
def show(config_path: str, topics: tuple[str, ...]) -> None:
    """Show each partition: what the state covers, what the group has, and what the log holds."""

    async def work(config: Config) -> list[Position]:
        from streamproc.worker.offsets import positions

        return await positions(config, topics=topics)

    for at in _run(config_path, work):
        group = "none" if at.committed is None else f"{at.committed}{'' if at.ours else ' (set by another program)'}"
        saved = "none" if at.saved is None else at.saved
        click.echo(
            f"{at.topic}-{at.partition}  saved {saved}  group {group}  log {at.begin} to {at.end}  models {at.models}"
        )


@offsets.command("reset")
@_config
@click.option(
    "--to", "to", required=True, metavar="PLACE",
    help="earliest, latest, saved (where the state is), group (what the group has), an offset, or a time (RFC 3339).",
)  # fmt: skip
@_topics
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
def reset(config_path: str, to: str, topics: tuple[str, ...], dry_run: bool) -> None:
    """Have workers begin elsewhere. None may run meanwhile.

    Further on, models keep what they learned and what lies between is not read. Further back, the models of a partition
    are forgotten, and learn anew from there.
    """
    place = _place(to)

    async def work(config: Config) -> list[Position]:
        from streamproc.worker.offsets import reset

        return await reset(config, **place, topics=topics, dry_run=dry_run)

    for at in _run(config_path, work):
        name = f"{at.topic}-{at.partition}"
        if at.moved is None:
            click.echo(f"{name}: stays; there is no such place")
            continue
        was = at.committed if at.saved is None else at.saved
        if was is None or at.moved == was:
            click.echo(f"{name}: begins at {at.moved}")
        elif at.moved > was:
            click.echo(f"{name}: {was} to {at.moved}, {at.moved - was} records are not read")
        else:
            click.echo(f"{name}: {was} back to {at.moved}, {at.forgotten} models are forgotten")
    if dry_run:
        click.echo("nothing was changed")


def _place(text: str) -> dict[str, Any]:
    from streamproc.config import Moment

    if text in _WORDS:
        return {"to": text}
    if text.isdecimal():
        return {"offset": int(text)}
    try:
        return {"time_us": Moment.parse(text).us}
    except ValueError as e:
        raise UsageError(f"--to: takes {', '.join(_WORDS)}, an offset or a time: {e}") from None


def _run(config_path: str, work: Callable[[Config], Coroutine[Any, Any, list[Position]]]) -> list[Position]:
    from aiokafka.errors import KafkaError

    config = load(config_path)
    try:
        return asyncio.run(work(config))
    except KafkaError as e:
        raise BrokerUnreachable(f"{type(e).__name__}: {e}") from None
