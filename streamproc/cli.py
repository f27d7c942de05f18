"""The command line. Imports of what is heavy are inside the commands: `--help` answers at once."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from streamproc import __version__
from streamproc.errors import (
    CRASHED,
    EXIT_CODES,
    ConfigError,
    ConfigIssue,
    GateFailed,
    ReplayGateFailed,
    StreamprocError,
    UsageError,
)
from streamproc.letters import dead_letters, explain_record
from streamproc.looking import alerts, incidents
from streamproc.rewinding import offsets
from streamproc.saying import feedback, silence

if TYPE_CHECKING:
    from streamproc.baseline import Table
    from streamproc.config import Config
    from streamproc.pipeline import Pipeline
    from streamproc.replay import Report
    from streamproc.rules import Rule, RuleBook
    from streamproc.scoring import Scorer
    from streamproc.signals import Kind

#: The two blocks that are enough.
DEFAULT_CONFIG = """\
version: 1
kafka:
  brokers: "${KAFKA_BROKERS:-localhost:9092}"
  predictions: [predictions]
  telemetry: [telemetry]
  labels: [labels]
"""

_KINDS: tuple[Literal["predictions", "telemetry", "labels"], ...] = ("predictions", "telemetry", "labels")

#: The causes of incidents, `streamproc.events.Category`, which takes too long to load for `--help`.
_CAUSES = ("data", "model", "infra", "traffic", "unknown")

#: The kinds of `streamproc.config.BRIDGES`, which takes too long to load for `--help`.
BRIDGES = ("alertmanager", "pagerduty", "slack", "webhook", "retrain", "mlflow")

#: Set, it has a crash of a command say all, a record's values too.
_QUOTING = "STREAMPROC_QUOTE_RECORDS"

#: A command shorter than this needs no progress line.
_PROGRESS_AFTER_S = 1.0

_config_option = click.option(
    "--config",
    "-c",
    "config_path",
    metavar="FILE",
    help="The YAML file to go by. Without it: kafka at $KAFKA_BROKERS, topics predictions, telemetry and labels.",
)


def _load(
    path: str | None, env: dict[str, str] | None = None, *, doubt: Callable[[str], None] | None = None
) -> Config:
    """Return the config at `path`, or the built-in one; doubt: told of what is doubtful in it, else stderr."""
    from streamproc import rules

    env = dict(os.environ) if env is None else env
    if path is None:
        return rules.parse(DEFAULT_CONFIG, name="<built-in config>", env=env)
    doubts: list[ConfigIssue] = []
    config = rules.load(path, env=env, doubts=doubts)
    for each in doubts:
        if doubt is None:
            click.echo(str(each), err=True)
        else:
            doubt(str(each))
    return config


def _log_doubt(problem: str) -> None:
    import structlog

    structlog.get_logger("streamproc.config").warning("config", problem=problem)


def _tables(config: Config, path: str | None) -> dict[str, Table]:
    """Return the rows that a config's references name; paths are beside its file."""
    from streamproc import tables

    return tables.read(config, path=None if path is None else Path(path))


def _as_it_is(config: Config) -> Config:
    return config


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="streamproc")
def cli() -> None:
    """Watch machine-learning models in production: Kafka in, explained alerts out.

    \b
    Begin with:
      streamproc demo                                see it catch a fault, in a minute
      streamproc check --config worker.yaml          what a config means
      streamproc replay --from-file events.jsonl     what it would have said of history
      streamproc score -d spike -i cpu.csv           any detector over any CSV
      streamproc worker --config worker.yaml         run it
      streamproc incidents --config worker.yaml      what is wrong now, and why; `alerts` each by itself
      streamproc dead-letters --config worker.yaml   which records could not be read
      streamproc explain-record event.json           what would be read from one
      streamproc silence add --help                  hide alerts for a while
      streamproc feedback --help                     say what an alert was
      streamproc offsets --help                      where workers have got to; have them begin elsewhere
      streamproc bridge slack --config worker.yaml   bring its alerts to where people are

    \b
    Exit codes:EXIT_CODES
    """


cli.help = inspect.cleandoc(cli.help or "").replace(
    "EXIT_CODES", "\n".join(["", *(f"  {code:3d}  {meaning}" for code, meaning in EXIT_CODES.items())])
)


@cli.command()
@_config_option
@click.option("--embedded-broker", is_flag=True, help="Start a broker in memory, and use it for all topics.")
@click.option(
    "--connect-timeout",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a broker before giving up with exit code 4.",
)
@click.option(
    "--data-dir", metavar="DIR", help="Where Faust keeps its files. Without it: a temporary directory."
)
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    envvar="STREAMPROC_LOG_FORMAT",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="STREAMPROC_LOG_LEVEL",
)
def worker(
    config_path: str | None,
    embedded_broker: bool,
    connect_timeout: float,
    data_dir: str | None,
    log_format: Literal["console", "json"],
    log_level: str,
) -> None:
    """Run a worker until a signal ends it.

    SIGTERM and SIGINT end it after saving its state; SIGHUP reads the config again.

    \b
    Examples:
      streamproc worker --config worker.yaml
      streamproc worker --config worker.yaml --log-format json --log-level warning
      streamproc worker --embedded-broker            nothing else needed, nothing kept
    """
    from streamproc.worker import logs

    logs.configure(form=log_format, level=log_level)
    env = dict(os.environ)
    if embedded_broker:
        env["KAFKA_BROKERS"] = (
            "127.0.0.1:0"  # a config may ask for it; the broker is started if all else is right
        )
    config = _load(config_path, env, doubt=_log_doubt)
    path = None if config_path is None else Path(config_path)
    from streamproc.worker import run

    with contextlib.ExitStack() as stack:
        adjust: Callable[[Config], Config] = _as_it_is
        if embedded_broker:
            import msgspec
            import structlog

            from streamproc.worker.embedded import EmbeddedBroker

            address = env["KAFKA_BROKERS"] = stack.enter_context(EmbeddedBroker()).bootstrap

            def on_embedded(config: Config) -> Config:
                return msgspec.structs.replace(
                    config,
                    kafka=msgspec.structs.replace(config.kafka, brokers=address, replication_factor=-1),
                )

            adjust = on_embedded
            config = adjust(config)
            structlog.get_logger("streamproc.cli").info("embedded broker started", brokers=address)
        code = run.run(
            config,
            path=path,
            env=env,
            connect_timeout_s=connect_timeout,
            data_dir=data_dir,
            adjust=adjust,
        )
    sys.exit(code)


@cli.command()
@_config_option
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Show what it means for this model only."
)
def check(config_path: str | None, models: tuple[str, ...]) -> None:
    """Check a config and show what it resolves to; no broker is needed.

    Every mistake is listed with its line, and the exit code is then 1. What is doubtful and not wrong is
    listed as a warning: signals of topics that are not read, waits shorter than a window, blocks that
    take back what earlier ones say, and regular expressions where globs belong.

    \b
    Examples:
      streamproc check --config worker.yaml
      streamproc check --config worker.yaml --model fraud-eu --model fraud-us
    """
    from streamproc.rules import RuleBook

    config = _load(config_path)
    read = _tables(config, config_path)
    book = RuleBook(config, read)
    unwatched = [m for m in models if not config.discovers(m)]
    # A block's own pattern stands for the models it matches.
    for name in models or list(dict.fromkeys(["*", *(b.match.model for b in config.models)])):
        if name not in unwatched:
            _show_rules(config, book, name)
    for name in unwatched:
        click.echo(f"{name} is not watched: defaults.discover.models and no block of models match it")
    for kind in BRIDGES:
        for name, block in getattr(config.bridges, kind).items():
            which = ", ".join(f"{label} {glob}" for label, glob in block.match.items()) or "all"
            click.echo(f"bridge {kind} {name}: {which} of {block.topic}")
    _show_references(config, book, read)
    now_us = round(time.time() * 1e6)
    for i, hidden in enumerate(config.silences):
        match = hidden.match
        of = f"{match.model} {match.signal} {match.segment}"
        if hidden.to.us <= now_us:
            click.echo(f"silences[{i}] of {of} is over since {hidden.to}: it hides nothing any more", err=True)
        else:
            click.echo(f"silence of {of} from {hidden.from_} to {hidden.to}")
    click.echo(f"{config_path or 'the built-in config'}: ok")


def _show_references(config: Config, book: RuleBook, read: dict[str, Table]) -> None:
    """Say what baselines are learned from tables, and of what."""
    from streamproc.baseline import Baseline
    from streamproc.feature_schema import FeatureSchema
    from streamproc.reference import LEARN_EVENTS
    from streamproc.rules import Measure

    for block in config.models:
        key = None if block.reference is None else block.reference.table()
        told = None if key is None else book.told(Measure(key), max_features=config.defaults.max_features)
        if key is None or told is None:
            continue
        schema, learned = FeatureSchema(max_features=config.defaults.max_features), Baseline.restored(told[1])
        schema.restore(told[0])
        answers = sum(value is not None for value in read[key].values)
        parts = [f"{len(schema.numeric)} numeric and {len(schema.categorical)} categorical features"]
        if schema.left_out:
            parts.append(f"{schema.left_out} features beyond max_features left out")
        if answers:
            parts.append(f"{answers} answers")
        if learned.classes:
            parts.append(f"{len(learned.classes)} classes")
        if learned.events < LEARN_EVENTS:
            parts.append(f"fewer than {LEARN_EVENTS} rows: the first events are learned from too")
        click.echo(f"reference of {block.match.model}: {learned.describe()}; {', '.join(parts)}")


_COLUMNS = (
    "signal",
    "detector",
    "sensitivity",
    "severity",
    "direction",
    "min effect",
    "limits",
    "when",
    "resolve",
    "first alert",
)


def _show_rules(config: Config, book: RuleBook, name: str) -> None:
    topics: dict[Kind, list[str]] = {k: getattr(config.kafka, k) for k in _KINDS if getattr(config.kafka, k)}
    if book.joins:
        topics["quality"] = [config.kafka.joins_topic()]
    kinds = list(topics)
    first = book.for_model(kinds[0], name)
    window, lateness = _length(first.window_us), _length(first.lateness_us)
    click.echo(f"models matching {name}" if "*" in name else f"model {name}")
    blocks = [(i, b.match.model) for i, b in enumerate(config.models) if b in config.blocks_for(name)]
    if len(blocks) > 1:
        click.echo(f"  by {', '.join(f'models[{i}] ({glob})' for i, glob in blocks)}: the later wins, field by field")
    click.echo(f"  windows of {window}, events up to {lateness} late")
    if (budget := config.defaults.budget) is not None:
        click.echo(f"  budget of {budget.false_alerts_per_day:g} false alerts a day over all models")
    if book.joins:
        task = book.for_model("quality", name).task
        said = "auto: settled from the first 50 answers and 20 labels" if task == "auto" else task
        click.echo(f"  task {said}")
    for kind in kinds:
        rows = [_row(r, first.lateness_us) for rules in book.for_model(kind, name).rules.values() for r in rules]
        widths = [max(len(r[i]) for r in [_COLUMNS, *rows]) for i in range(len(_COLUMNS))]
        click.echo(f"\n  {kind} from {', '.join(topics[kind])}; the first alert is so long after a model's first event")
        for row in [_COLUMNS, *rows]:
            click.echo("    " + "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip())
    click.echo("")


def _row(rule: Rule, lateness_us: int) -> tuple[str, ...]:
    unit = "" if rule.spec.unit == "1" else f" {rule.spec.unit}"
    limits = [f"{sign} {rule.params[side]:g}{unit}" for side, sign in (("lower", "<"), ("upper", ">"))
              if rule.detector == "limits" and rule.params.get(side) is not None]  # fmt: skip
    if rule.budget is not None:
        limits.append("by budget")
    effects = [f"{rule.min_effect:g}{unit}"] if rule.min_effect else []
    if rule.relative_effect:
        effects.append(f"{rule.relative_effect * 100:g}%")
    policy = rule.policy
    when = "at once" if policy.n == 1 else f"{policy.k} of {policy.n}"
    if policy.for_us:
        when += f", for {_length(policy.for_us)}"
    return (
        rule.signal + (":*" if rule.spec.family and ":" not in rule.signal else ""),
        rule.detector + (" (shadow)" if rule.shadow else ""),
        "-" if rule.detector == "limits" else rule.sensitivity,
        rule.severity,
        rule.direction,
        " and ".join(effects) or "-",
        ", ".join(limits) or "-",
        when,
        _length(policy.resolve_after_us) if rule.spec.shape != "arrivals" else "next event",
        rule.first_alert(lateness_us),
    )


def _length(us: int) -> str:
    from streamproc.config import Duration

    return repr(Duration(us)) if us else "0s"


@cli.command()
@click.argument("kind", type=click.Choice(BRIDGES))
@click.option(
    "--config", "-c", "config_path", required=True, metavar="FILE", help="The YAML file with a block `bridges`."
)
@click.option("--name", metavar="NAME", help="Which of the bridges of this kind, where the config has several.")
@click.option(
    "--topic", metavar="TOPIC", help="What to read instead: alerts, pages, incidents, or a topic's name."
)
@click.option(
    "--web-port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    metavar="PORT",
    envvar="STREAMPROC_BRIDGE_WEB_PORT",
    help="For /metrics, /-/healthy and /-/ready; 0: none.",
)
@click.option("--web-host", default="0.0.0.0", show_default=True, metavar="HOST")
@click.option(
    "--connect-timeout",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a broker before giving up with exit code 4.",
)
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    envvar="STREAMPROC_LOG_FORMAT",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="STREAMPROC_LOG_LEVEL",
)
def bridge(
    kind: str,
    config_path: str,
    name: str | None,
    topic: str | None,
    web_port: int,
    web_host: str,
    connect_timeout: float,
    log_format: Literal["console", "json"],
    log_level: str,
) -> None:
    """Deliver alerts or incidents to a receiver until a signal ends it.

    At least once, in order, under keys by which the receiver knows a repeat: it commits a record only
    once it is delivered, and waits for a receiver that is down for as long as that takes. What a receiver
    will never take goes to <app_id>-bridge-dead-letters. A bridge that never ran begins with what is
    firing. Two of one name share the work; docs/bridges.md has a config for each kind.

    \b
    Examples:
      streamproc bridge alertmanager --config worker.yaml
      streamproc bridge pagerduty --config worker.yaml --name oncall --topic pages
      streamproc bridge slack --config worker.yaml --web-port 6067 --log-format json
      streamproc bridge retrain --config worker.yaml --topic incidents
    """
    from streamproc.worker import logs

    logs.configure(form=log_format, level=log_level)
    env = dict(os.environ)
    config = _load(config_path, env, doubt=_log_doubt)
    from streamproc.bridges import run

    grace_s = config.worker.shutdown_grace.us / 1e6
    settings = run.choose(
        config, kind, name=name, topic=topic, web_host=web_host, web_port=web_port, grace_s=grace_s
    )
    path = None if config_path is None else Path(config_path)
    sys.exit(run.run(config, settings, path=path, env=env, connect_timeout_s=connect_timeout))


@cli.group()
def topics() -> None:
    """Create or list the topics a worker reads and writes."""


@topics.command("create")
@_config_option
@click.option("--timeout", type=click.FloatRange(min=0.1), default=30.0, show_default=True, metavar="SECONDS")
def create_topics(config_path: str | None, timeout: float) -> None:
    """Create every topic of a config that is not there yet; change none that is.

    \b
    Example:
      streamproc topics create --config worker.yaml
    """
    config = _load(config_path)
    from streamproc.worker import connection, run, topics

    report = topics.ensure(
        connection.connection(config), run.topic_specs(config), create=True, timeout_s=timeout, on_retry=_on_retry
    )
    for name in sorted({*report.created, *report.existing}):
        what = "created" if name in report.created else "was there"
        click.echo(f"{name}: {what}, {report.partitions[name]} partitions")
    for mismatch in report.mismatched:
        click.echo(f"warning: {mismatch}", err=True)


@topics.command("list")
@_config_option
@click.option("--timeout", type=click.FloatRange(min=0.1), default=30.0, show_default=True, metavar="SECONDS")
def list_topics(config_path: str | None, timeout: float) -> None:
    """List the topics of a config, and which are missing.

    \b
    Example:
      streamproc topics list --config worker.yaml
    """
    config = _load(config_path)
    from streamproc.worker import connection, run, topics

    names = [spec.name for spec in run.topic_specs(config)]
    found = topics.describe(connection.connection(config), names, timeout_s=timeout, on_retry=_on_retry)
    for name in names:
        click.echo(f"{name}: {found[name]} partitions" if name in found else f"{name}: missing")


def _on_retry(attempt: int, wait_s: float, reason: str) -> None:
    if attempt > 1:
        click.echo(f"no broker yet ({reason}); trying again in {wait_s:.1f} s", err=True)


@cli.command()
@click.option(
    "--from-file",
    "-f",
    "source",
    required=True,
    metavar="FILE",
    help="Events as JSON lines; .gz, or - for stdin.",
)
@_config_option
@click.option("--kind", type=click.Choice(_KINDS), default="predictions", show_default=True)
@click.option("--labels", "labels_file", metavar="FILE", help="Labels of these predictions, to be joined to them.")
@click.option("--output", "-o", metavar="FILE", help="Where it goes, as JSON lines. Without it: stdout.")
@click.option(
    "--show",
    type=click.Choice(["alerts", "incidents", "pages", "all"]),
    default="alerts",
    show_default=True,
    help="What goes there; all: alerts and incidents. An incident is the line with an incident_id.",
)
@click.option(
    "--max-alerts",
    type=click.IntRange(min=0),
    metavar="N",
    help="Exit with 3 where more alerts open. Any gate fails where most events could not be scored.",
)
@click.option(
    "--expect-alert", multiple=True, metavar="SIGNAL", help="Exit with 3 where none opens on this signal."
)
@click.option(
    "--max-incidents", type=click.IntRange(min=0), metavar="N", help="Exit with 3 where more incidents open."
)
@click.option(
    "--expect-incident",
    multiple=True,
    type=click.Choice(_CAUSES),
    help="Exit with 3 where none has this cause when last told of.",
)
def replay(
    source: str,
    config_path: str | None,
    kind: Literal["predictions", "telemetry", "labels"],
    labels_file: str | None,
    output: str | None,
    show: Literal["alerts", "incidents", "pages", "all"],
    max_alerts: int | None,
    expect_alert: tuple[str, ...],
    max_incidents: int | None,
    expect_incident: tuple[str, ...],
) -> None:
    """Run the worker's pipeline over a file of events; no broker is needed.

    One event a line, in the order of the log; or a record as `kcat -J` writes it. Records of several
    partitions, which kcat prints a chunk of each at a time, are put side by side by their times: by
    the partitions where -J tells them, else by where times jump back for longer; within 100,000 lines.

    Alerts come out as JSON lines, and with --show incidents too, each the data of an event the worker
    would publish; what it came to is said on stderr, the incidents one by one.

    \b
    Examples:
      python examples/make_events.py && streamproc replay -f events.jsonl.gz -c examples/demo.yaml
      streamproc replay --from-file history.jsonl.gz --config worker.yaml --output alerts.jsonl
      kcat -C -e -J -t predictions | streamproc replay --from-file -
      streamproc replay --from-file quiet-week.jsonl --config new.yaml --max-alerts 5
      streamproc replay --from-file incident.jsonl --config new.yaml --expect-alert latency_p95
      streamproc replay --from-file may.jsonl --labels may-labels.jsonl --config worker.yaml
      streamproc replay --from-file may.jsonl --config worker.yaml --show incidents | jq -r .summary
      streamproc replay --from-file outage.jsonl --config new.yaml --max-incidents 1 --expect-incident infra
    """
    config = _load(config_path)
    from streamproc import signals
    from streamproc.cloudevents import incident_json, to_json
    from streamproc.events import Alert
    from streamproc.lines import BOUND
    from streamproc.pipeline import warm_up
    from streamproc.replay import JoinedReplay, Page, Replay
    from streamproc.rules import RuleBook

    for name in expect_alert:
        if signals.find(name) is None:
            raise UsageError(
                f"--expect-alert: there is no signal `{name}`; known: {', '.join(signals.names())}"
            )
    if show == "pages" and not config.kafka.pages:
        raise UsageError("--show: this config wants no pages; name their topic in `kafka: {pages: ...}`")
    about = [show in ("incidents", "all"), max_incidents is not None, bool(expect_incident)]
    for option, given in zip(("--show", "--max-incidents", "--expect-incident"), about, strict=True):
        if given and not config.kafka.incidents:
            raise UsageError(f"{option}: this config wants no incidents; its `kafka.incidents` is empty")
    warm_up(config)
    book = RuleBook(config, _tables(config, config_path))
    if labels_file is not None and (kind != "predictions" or not book.joins):
        raise UsageError("--labels: only with predictions, and a config that names `kafka.labels`")
    started = time.monotonic()
    with contextlib.ExitStack() as files:
        lines = _counted(files.enter_context(_reading(source)), started)
        out = files.enter_context(_writing(output))
        run = Replay(book, kind=kind, bound=BOUND) if labels_file is None else JoinedReplay(book, bound=BOUND)
        if labels_file is not None and isinstance(run, JoinedReplay):
            found = run.run_both(lines, files.enter_context(_reading(labels_file, "--labels")))
        else:
            found = run.run(lines)
        for told in found:
            if isinstance(told, Alert):
                if show in ("alerts", "all"):
                    out.write(to_json(told) + b"\n")
            elif isinstance(told, Page):
                if show == "pages":
                    out.write(to_json(told.alert) + b"\n")
            elif show in ("incidents", "all"):
                out.write(incident_json(told) + b"\n")
    pipelines = [run.pipeline, *((run.labels.pipeline, run.joins) if isinstance(run, JoinedReplay) else ())]
    orders = [run.order, *((run.labels.order,) if isinstance(run, JoinedReplay) else ())]
    if moved := sum(order.moved for order in orders):
        click.echo(f"put in order: {moved:,} records of several partitions, by their times", err=True)
    if beyond := sum(order.beyond for order in orders):
        click.echo(
            f"warning: {beyond:,} records came more than {BOUND:,} lines too late to be put in order: read a partition "
            "at a time, or sort the file by time",
            err=True,
        )
    _summarise(run.report, time.monotonic() - started, config, pipelines)
    _check_gates(run.report, max_alerts, expect_alert, max_incidents, expect_incident)


@contextlib.contextmanager
def _reading(source: str, option: str = "--from-file") -> Iterator[IO[bytes]]:
    import gzip

    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        with open(source, "rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if magic != b"\x1f\x8b":
                yield raw
                return
            with gzip.open(raw) as unpacked:
                yield unpacked  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError) as e:
        raise UsageError(f"{option}: {source} is a damaged gzip file ({e})") from None
    except FileNotFoundError:
        raise UsageError(f"{option}: there is no file {source}") from None
    except OSError as e:
        raise UsageError(f"{option}: {source} cannot be read: {e.strerror or e}") from None


@contextlib.contextmanager
def _writing(output: str | None) -> Iterator[IO[bytes]]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = open(output, "wb")  # noqa: SIM115
    except OSError as e:
        raise UsageError(f"--output: {output} cannot be written: {e.strerror or e}") from None
    with file:
        yield file


def _counted(lines: IO[bytes], started: float) -> Iterator[bytes]:
    """Pass lines on, saying how many there were once it takes long."""
    said = started
    shown = False
    for number, line in enumerate(lines, start=1):
        if number % 1000 == 0 and (now := time.monotonic()) - said > _PROGRESS_AFTER_S:
            said, shown = now, True
            end = "" if sys.stderr.isatty() else "\n"
            click.echo(
                f"\r{number:,} events, {number / (now - started):,.0f} a second{end}", err=True, nl=False
            )
        yield line
    if shown and sys.stderr.isatty():
        click.echo("", err=True)


def _summarise(report: Report, seconds: float, config: Config, pipelines: list[Pipeline]) -> None:
    from streamproc.matching import mismatches
    from streamproc.tasks import SAYS
    from streamproc.worker.warming import Warming

    warming = Warming()
    for _ in warming.look(pipelines):
        pass

    def say(text: str) -> None:
        click.echo(text, err=True)

    span = ""
    if report.first_us is not None and report.last_us is not None:
        from streamproc.events import rfc3339

        span = f" from {rfc3339(report.first_us)} to {rfc3339(report.last_us)}"
    say(f"events: {report.events:,} of {len(report.models):,} models{span}")
    for reason, count in report.rejected.most_common():
        line, message = report.examples[reason]
        say(f"rejected: {count:,} {reason}; the first in line {line}: {message}")
    if report.came != report.events:
        say("of all: " + ", ".join(f"{n:,} {what}" for what, n in report.accounts.items() if n))
    for reason, count in report.ignored.most_common(10):
        say(f"ignored: {count:,} {reason}")
    if report.halves.total():
        gave_up = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in report.halves.items() if n)
        say(f"requests and responses: {gave_up}")
    for (model, note), _ in report.notes.most_common(10):
        say(f"{model}: {note}")
    for model, task in sorted(report.tasks.items())[:10]:
        say(f"{model}: its answers are {SAYS[task]}; `task:` in the config says otherwise")
    if report.late:
        say(f"late: {report.late:,}, after their window had closed; see `lateness`")
    if report.refused:
        say(f"refused: {report.refused:,}, of models beyond max_series")
    if report.untimed:
        say(f"without a time: {report.untimed:,}; taken as a millisecond after the event before")
    by_kind = {p.kind: p.models for p in pipelines}
    for found in mismatches(by_kind.get("predictions", {}), by_kind.get("labels", {})):
        say(f"warning: {found.message}")
    if report.outcomes["unmatched"] > report.outcomes["joined"]:
        say("warning: most labels found no prediction: is their `prediction_id` the prediction's `id`?")
    if report.outcomes:
        say("labels: " + ", ".join(f"{n:,} {outcome}" for outcome, n in report.outcomes.most_common()))
    if report.rejected.total() > report.events:
        say(f"warning: most of {report.lines:,} lines could not be read; see `streamproc explain-record`")
    if warming.models:
        say(f"at the end {warming}")
    say(f"alerts: {report.opened():,} opened")
    for (signal, action), count in sorted(report.alerts.items()):
        say(f"  {signal} {action}: {count:,}")
    for (signal, action), count in sorted(report.shadow.items()):
        say(f"  {signal} {action}, in shadow: {count:,}")
    if config.kafka.pages:
        n = report.pages["digests"]
        digests = f", and {n:,} digest{'s' if n > 1 else ''} of the rest" if n else ""
        say(f"pages: {report.pages['alerts']:,} alerts passed on{digests}")
    if config.kafka.incidents:
        for text in _of_incidents(report):
            say(text)
    say(f"took {seconds:.2f} s, {report.lines / max(seconds, 1e-9):,.0f} events a second")


def _of_incidents(report: Report) -> Iterator[str]:
    """Yield what is said of the incidents: how many, of which causes, and each of the first."""
    opened = report.incidents["opened"]
    causes = [f"{count:,} {cause}" for cause, count in report.causes.most_common() if count]
    lasting = [f"{len(report.lasting):,} not over at the end"] if report.lasting else []
    merged = [f"{report.merged:,} part of an older one"] if report.merged else []
    yield f"incidents: {opened:,} opened" + "".join(f"; {p}" for p in [", ".join(causes), *lasting, *merged] if p)
    for incident in report.listed.values():
        still = "" if incident.status == "resolved" else ", not over"
        yield f"  {incident.startsAt[:19]}Z {incident.severity}{still}: {incident.summary}"
    if more := opened - len(report.listed):
        yield f"  and {more:,} more; --show incidents has them all"


def _check_gates(
    report: Report,
    max_alerts: int | None,
    expected: tuple[str, ...],
    max_incidents: int | None,
    causes: tuple[str, ...],
) -> None:
    failed = []
    if max_alerts is None and max_incidents is None and not expected and not causes:
        return
    # What was not read cannot have raised an alert: it is no history that a gate may go by.
    missed, scored = report.rejected.total() + report.refused + report.late, report.events - report.late
    if scored <= 0:
        failed.append(f"no event of {report.lines:,} lines could be scored; a gate needs a history")
    elif missed > scored:
        failed.append(f"{missed:,} events were refused or late, and only {scored:,} scored; a gate needs most of them")
    if max_alerts is not None and report.opened() > max_alerts:
        failed.append(f"{report.opened()} alerts opened; --max-alerts allows {max_alerts}")
    opened = report.opened_signals()
    failed += [
        f"no alert opened on {n}; --expect-alert wants one"
        for n in expected
        if n.removesuffix(":*") not in opened
    ]
    if max_incidents is not None and report.incidents["opened"] > max_incidents:
        failed.append(f"{report.incidents['opened']} incidents opened; --max-incidents allows {max_incidents}")
    told = {str(cause) for cause, count in report.causes.items() if count}
    failed += [f"no incident is put down to {c}; --expect-incident wants one" for c in causes if c not in told]
    if failed:
        raise ReplayGateFailed("; ".join(failed))


@cli.command()
@click.option("--detector", "-d", required=True, metavar="NAME", help="Which one, such as spike or robust_z.")
@click.option(
    "--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="A parameter of it; may be given again."
)
@click.option(
    "--sensitivity", type=click.Choice(["low", "medium", "high"]), default="medium", show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True, help="For a detector that draws random numbers.")
@click.option("--input", "-i", "source", metavar="FILE", help="A CSV with a header; .gz, or - for stdin.")
@click.option("--output", "-o", metavar="FILE", help="Where scores go, as CSV. Without it: stdout.")
@click.option(
    "--batch",
    nargs=2,
    metavar="DIR OUT_DIR",
    help="Instead of one file: every CSV under DIR, each to a file of the same name under OUT_DIR.",
)
@click.option("--columns", metavar="A,B", help="The columns of values. Without it: all but the time and labels.")
@click.option("--time", "time_column", metavar="NAME", help="The column of times. Without it: by its name.")
def score(
    detector: str,
    params: tuple[str, ...],
    sensitivity: Literal["low", "medium", "high"],
    seed: int,
    source: str | None,
    output: str | None,
    batch: tuple[str, str] | None,
    columns: str | None,
    time_column: str | None,
) -> None:
    """Score every row of a CSV with one detector; no broker is needed.

    One row comes out for each row that goes in, in order, with its `score`: 1.0 is the limit at which the
    detector alarms, nan is no score: while it warms up, and where a value is missing. Each row is
    scored by those before it only.

    A column named timestamp, time, datetime, date, ts, ds or event_time is the time (ISO 8601, or a number since
    the epoch); without one, rows are a second apart. Columns named label, anomaly or is_anomaly are
    left out. Of several columns a detector of vectors takes all together; any other watches each by
    itself, and the row scores as the worst of them.

    \b
    Examples:
      streamproc score --detector spike --input cpu.csv --output scores.csv
      streamproc score -d robust_z -p window=500 -p direction=up -i latency.csv.gz -o scores.csv
      streamproc score -d half_space_trees --columns load,memory,io -i host.csv > scores.csv
      streamproc score -d spike --sensitivity high --batch data/cloud scores/cloud
    """
    if (batch is None) == (source is None):
        raise UsageError("one of --input FILE and --batch DIR OUT_DIR is needed")
    if batch is not None and output is not None:
        raise UsageError("--output: --batch writes to its OUT_DIR")
    from streamproc.scoring import Scorer, parameters

    scorer = Scorer(detector, parameters(params), sensitivity=sensitivity, seed=seed)
    chosen = [name.strip() for name in columns.split(",")] if columns is not None else []
    started = time.monotonic()
    progress = _Progress(started)
    if source is not None:
        _score_file(scorer, source, output, chosen, time_column, progress)
        progress.done()
        return
    assert batch is not None
    folder, out_folder = Path(batch[0]), Path(batch[1])
    if not folder.is_dir():
        raise UsageError(f"--batch: there is no directory {folder}")
    # Scores of an earlier run may lie under DIR.
    files = [
        p for p in sorted(folder.rglob("*.csv")) if not p.resolve().is_relative_to(out_folder.resolve())
    ]
    if not files:
        raise UsageError(f"--batch: no CSV file under {folder}")
    rows = 0
    for number, path in enumerate(files, start=1):
        target = out_folder / path.relative_to(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"--batch: {target.parent} cannot be made: {e.strerror or e}") from None
        progress.label = f"file {number} of {len(files)}, "
        rows += _score_file(scorer, str(path), str(target), chosen, time_column, progress)
    progress.done()
    click.echo(f"{len(files)} files, {rows:,} rows, {time.monotonic() - started:.1f} s", err=True)


def _score_file(
    scorer: Scorer,
    source: str,
    output: str | None,
    columns: list[str],
    time_column: str | None,
    progress: _Progress,
) -> int:
    """Score one file, and return how many rows it has."""
    import io

    from streamproc import scoring

    if output is not None and Path(output).exists() and Path(source).exists() and os.path.samefile(source, output):
        raise UsageError(f"--output: {output} is the input")
    try:
        with _reading(source, "--input") as raw:
            # utf-8-sig: spreadsheets put a mark before the first name.
            lines = progress.over(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
            table = scoring.read(lines, columns=columns, time=time_column)
        scores = scorer.score(table, progress=lambda rows: progress(rows, "scored"))
    except UnicodeDecodeError:
        raise UsageError(f"{source}: not UTF-8 text") from None
    except UsageError as error:
        if str(error).startswith("--"):
            raise
        raise UsageError(f"{source}: {error}") from None
    with _writing(output) as out:
        for line in scoring.write(table, scores):
            out.write(line.encode())
    return len(scores)


class _Progress:
    """One line on stderr once a command takes long, at most one a second."""

    def __init__(self, started: float) -> None:
        self.label = ""
        self._said = started
        self._shown = False

    def __call__(self, rows: int, what: str) -> None:
        now = time.monotonic()
        if now - self._said > _PROGRESS_AFTER_S:
            self._said, self._shown = now, True
            end = "" if sys.stderr.isatty() else "\n"
            click.echo(f"\r{self.label}{rows:,} rows {what}{end}", err=True, nl=False)

    def over(self, lines: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(lines):
            if number % 1000 == 0:
                self(number, "read")
            yield line

    def done(self) -> None:
        if self._shown and sys.stderr.isatty():
            click.echo("", err=True)


@cli.command()
@click.option(
    "--seconds",
    type=click.IntRange(min=30, max=300),
    default=60,
    show_default=True,
    envvar="DEMO_SECONDS",
    help="How long to run; also $DEMO_SECONDS.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, envvar="DEMO_SEED", help="Another one, another stream."
)
def demo(seconds: int, seed: int) -> None:
    """Watch the worker catch a fault in a live model.

    Starts a broker in memory, a worker, and a classifier that serves and learns from a real data set;
    breaks two of its features on the way; says how long the worker took to tell. Exit code 3 where
    the fault was not caught.

    \b
    Examples:
      streamproc demo
      DEMO_SECONDS=120 streamproc demo
      streamproc demo --seed 7
    """
    from streamproc.demo import run

    sys.exit(run.run(seconds=seconds, seed=seed))


@cli.command()
@click.argument("name", required=False)
@click.option("--output", "-o", metavar="DIR", help="Write every schema to a file in DIR.")
@click.option(
    "--check", "check_dir", metavar="DIR", help="Exit with 3 where the files in DIR are out of step."
)
def schema(name: str | None, output: str | None, check_dir: str | None) -> None:
    """Print the JSON Schema of a type, or all of them and the AsyncAPI as files.

    \b
    Examples:
      streamproc schema                              which there are
      streamproc schema alert.v1
      streamproc schema config.v1 > config.schema.json
      streamproc schema --output schemas
      streamproc schema --check schemas
    """
    from streamproc import schema as schemas

    files = schemas.files()
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        click.echo(f"{len(files)} files written to {output}")
    elif check_dir is not None:
        _check_schemas(files, Path(check_dir))
    elif name is None:
        for file in files:
            click.echo(file.removesuffix(".json"))
    else:
        asked = name.removesuffix(".json") + ".json"
        if asked not in files:
            raise UsageError(
                f"there is no schema `{name}`; known: {', '.join(f.removesuffix('.json') for f in files)}"
            )
        click.echo(files[asked], nl=False)


def _check_schemas(files: dict[str, str], folder: Path) -> None:
    def current(file: str) -> str | None:
        path = folder / file
        return path.read_text(encoding="utf-8") if path.is_file() else None

    stale = [file for file, text in files.items() if current(file) != text]
    if stale:
        raise GateFailed(
            f"{folder}: out of step: {', '.join(stale)}; run `streamproc schema --output {folder}`"
        )
    click.echo(f"{folder}: {len(files)} files in step")


cli.add_command(alerts)
cli.add_command(incidents)
cli.add_command(dead_letters)
cli.add_command(explain_record)
cli.add_command(silence)
cli.add_command(feedback)
cli.add_command(offsets)


def main(args: list[str] | None = None) -> Any:
    """Run the command line; every foreseen error is one message and an exit code."""
    try:
        cli.main(args, prog_name="streamproc", standalone_mode=False)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except StreamprocError as e:
        click.echo(f"{e}" if isinstance(e, ConfigError) and e.issues else f"error: {e}", err=True)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        # Whoever read our output has had enough, as `head` does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as e:
        # A fault of ours. What it says may quote a record, so it is not shown unless asked for.
        from streamproc.worker.logs import trace

        click.echo(f"error: streamproc has crashed\n{trace(e, quoting=bool(os.environ.get(_QUOTING)))}", err=True)
        click.echo(f"set {_QUOTING}=1 for the whole message, which may quote a record's values", err=True)
        sys.exit(CRASHED)
    sys.exit(0)


if __name__ == "__main__":
    main()
