"""What a command ends with, and what its last words may say."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from streamproc import cli, errors
from streamproc.events import REASONS
from streamproc.worker import logs, web
from tests.core.make import MINIMUM
from tests.core.test_cli import ROOT, process, said, streamproc

SECRET = "4111-1111"


def subclasses(kind: type[errors.StreamprocError]) -> list[type[errors.StreamprocError]]:
    return [kind, *(s for sub in kind.__subclasses__() for s in subclasses(sub))]


def test_there_is_one_table_of_exit_codes_and_the_docs_and_the_help_repeat_it() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == errors.EXIT_CODES
    helped = re.findall(r"^ +(\d+)  (.+)$", said(streamproc("--help")), re.MULTILINE)
    assert {int(code): meaning for code, meaning in helped} == errors.EXIT_CODES


def test_the_docs_have_every_reason_for_which_a_record_is_refused() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    section = page.partition("## Records that cannot be read")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)) == REASONS


def test_an_invalid_config_alone_ends_with_1() -> None:
    kinds = {k.exit_code: k for k in subclasses(errors.StreamprocError) if not issubclass(k, errors.ConfigError)}
    assert 1 not in kinds
    assert set(kinds) <= set(errors.EXIT_CODES)
    assert errors.TopicMissing.exit_code == 5


def test_a_port_that_is_taken_ends_with_7_before_any_broker_is_asked(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = tmp_path / "w.yaml"
        config.write_text(MINIMUM + f"worker: {{web_host: 127.0.0.1, web_port: {port}}}\n")
        run = process("worker", "--config", config, "--connect-timeout", "0.5")
    assert run.returncode == 7
    assert f"worker.web_port: 127.0.0.1:{port} cannot be had" in said(run)


def test_a_crash_ends_with_70_and_quotes_nothing_unless_asked_to() -> None:
    @click.command()
    def crash() -> None:
        raise ValueError(f"no number: {SECRET}")

    cli.cli.add_command(crash, "crash")
    try:
        run, loud = streamproc("crash"), streamproc("crash", env={"STREAMPROC_QUOTE_RECORDS": "1"})
    finally:
        del cli.cli.commands["crash"]
    assert (run.returncode, loud.returncode) == (70, 70)
    assert SECRET not in said(run)
    assert "ValueError" in said(run)
    assert re.search(r"test_exits\.py:\d+ in crash", said(run))
    assert f"ValueError: no number: {SECRET}" in said(loud)


CRASH = f"""
import logging, structlog
from streamproc.worker import logs

logs.configure(form="FORM", level="LEVEL")

def score(value):
    secret = value
    raise ValueError(f"no number: {{value}}")

try:
    try:
        score("{SECRET}")
    except ValueError as e:
        raise RuntimeError("about {SECRET}") from e
except RuntimeError as e:
    structlog.get_logger("engine").exception("cannot go on", offset=3)
    logging.getLogger("faust").error("crashed: %r", e, exc_info=True)
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_the_logs_of_an_error_say_what_and_where_and_no_value(form: str) -> None:
    def logged(level: str) -> str:
        code = CRASH.replace("FORM", form).replace("LEVEL", level)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr

    text = logged("info")
    assert SECRET not in text
    assert "cannot go on" in text
    for word in ("RuntimeError", "caused by", "ValueError", "in score", "crashed: RuntimeError"):
        assert word in text
    assert SECRET in logged("debug")


def test_a_trace_is_twenty_lines_at_most_however_deep() -> None:
    def dig(depth: int) -> None:
        if depth == 0:
            raise KeyError(SECRET)
        try:
            dig(depth - 1)
        except KeyError as e:
            raise ValueError(SECRET) from e

    with pytest.raises(ValueError) as caught:
        dig(60)
    text = logs.trace(caught.value)
    assert len(text.splitlines()) <= 20
    assert SECRET not in text


def test_errors_that_speak_of_brokers_and_files_keep_their_words() -> None:
    assert logs.named(FileNotFoundError(2, "No such file", "x.yaml")).endswith("No such file: 'x.yaml'")
    assert logs.named(errors.BrokerUnreachable("b:1 is gone")) == "BrokerUnreachable: b:1 is gone"
    assert logs.named(UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "bad")) == "UnicodeDecodeError"


@pytest.mark.parametrize(
    ("peer", "authorization", "token", "may"),
    [
        ("127.0.0.1", None, None, True),
        ("::1", None, None, True),
        ("::ffff:127.0.0.1", None, None, True),
        ("10.0.0.7", None, None, False),
        ("fe80::1%eth0", None, None, False),
        (None, None, None, False),
        ("", None, None, False),
        ("127.0.0.1", None, "a-token-of-sixteen", True),
        ("10.0.0.7", "Bearer a-token-of-sixteen", "a-token-of-sixteen", True),
        ("10.0.0.7", "bearer a-token-of-sixteen", "a-token-of-sixteen", True),
        ("10.0.0.7", "Bearer another", "a-token-of-sixteen", False),
        ("10.0.0.7", "Basic a-token-of-sixteen", "a-token-of-sixteen", False),
        ("10.0.0.7", "Bearer ", None, False),
        ("10.0.0.7", None, "a-token-of-sixteen", False),
    ],
)
def test_a_reload_is_for_this_machine_or_who_has_the_token(
    peer: str | None, authorization: str | None, token: str | None, may: bool
) -> None:
    why = web.refusal(peer, authorization, token)
    assert (why == "") == may
    assert may or "worker.reload_token" in why
