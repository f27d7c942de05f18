"""The command line as an operator meets it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from streamproc import cli
from streamproc.events import Category
from streamproc.worker.child import free_port
from tests.core.make import MINIMUM, quick, story

ROOT = Path(__file__).parents[2]


class Ran(msgspec.Struct):
    returncode: int
    stdout: bytes
    stderr: bytes


def streamproc(*args: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
    """Run a command in this process: a process of its own takes seconds to load the detectors."""
    if args[:1] == ("worker",):
        return process(*args, env=env)
    streams = {
        name: io.TextIOWrapper(io.BytesIO(data)) for name, data in (("stdin", stdin), ("stdout", b""), ("stderr", b""))
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        patch.chdir(ROOT)
        patch.delenv("KAFKA_BROKERS", raising=False)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in args])
        for name in ("stdout", "stderr"):
            streams[name].flush()
    code = end.value.code
    assert isinstance(code, int)
    out, err = (streams[name].buffer.getvalue() for name in ("stdout", "stderr"))  # type: ignore[attr-defined]
    return Ran(code, out, err)


def process(*args: str | Path, env: dict[str, str] | None = None) -> Ran:
    run = subprocess.run(
        [sys.executable, "-m", "streamproc.cli", *map(str, args)],
        capture_output=True,
        cwd=ROOT,
        env={**{k: v for k, v in os.environ.items() if k != "KAFKA_BROKERS"}, **(env or {})},
        timeout=90,
        check=False,
    )
    return Ran(run.returncode, run.stdout, run.stderr)


def said(run: Ran) -> str:
    text = (run.stdout + run.stderr).decode()
    assert "Traceback" not in text
    return text


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("history") / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(v for v in story(0).values if v is not None)))
    return path


@pytest.fixture(scope="module")
def worker_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "worker.yaml"
    path.write_text(MINIMUM + quick())
    return path


COMMANDS = [
    [],
    ["worker"],
    ["demo"],
    ["check"],
    ["topics"],
    ["topics", "create"],
    ["topics", "list"],
    ["schema"],
    ["replay"],
    ["score"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    run = streamproc(*command, "--help")
    assert run.returncode == 0
    if command != ["topics"]:
        assert "streamproc " + " ".join(command) in said(run).split("\n\n", 1)[1]


def test_help_answers_at_once() -> None:
    began = time.perf_counter()
    process("--help")
    # Half a second on a machine at rest; tests share theirs.
    assert time.perf_counter() - began < 1.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, streamproc.cli; print({'numpy', 'numba', 'faust', 'river', 'rich'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert out.stdout.strip() == b"set()"


def test_a_wrong_option_is_usage() -> None:
    run = streamproc("worker", "--colour")
    assert run.returncode == 2
    assert "No such option: --colour" in said(run)


def test_an_invalid_config_ends_with_1_and_every_mistake(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text("version: 1\nkafka: {broker: a}\ndefaults: {windw: 1s}\n")
    for command in (["check"], ["worker"], ["topics", "list"]):
        run = streamproc(*command, "--config", path)
        assert run.returncode == 1
        assert said(run).count("E011") == 2


def test_check_shows_what_a_model_gets(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(
        MINIMUM + "models:\n- match: {model: 'fraud-*'}\n  sensitivity: high\n  signals:\n"
        "    latency_p95: {upper_limit: 300ms, for: 2m}\n    feature_outlier: {mode: shadow}\n"
    )
    run = streamproc("check", "--config", path, "--model", "fraud-eu")
    assert run.returncode == 0
    lines = [" ".join(line.split()) for line in said(run).splitlines()]
    assert "latency_p95 robust_z high warning up 20% - 2 of 3, for 2m 5m 34 min" in lines
    assert "latency_p95 limits - critical both - > 0.3 s at once, for 2m 5m 3 min" in lines
    assert "error_rate robust_z high critical up 0.02 - at once 5m 31 min; 70 s from 0.5 on" in lines
    assert any(line.startswith("feature_outlier outlier (shadow) high") for line in lines)


def test_check_says_of_a_silence_that_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(MINIMUM + """silences:
  - {match: {model: old}, from: 2024-10-01T22:00Z, to: 2024-10-02T02:00Z}
  - {match: {model: new, signal: "latency_*"}, from: 2024-10-01T22:00Z, to: 2999-01-01}
""")
    run = streamproc("check", "-c", path)
    assert run.returncode == 0
    assert "silences[0] of old * * is over since 2024-10-02T02:00:00+00:00" in run.stderr.decode()
    assert b"silence of new latency_* * from 2024" in run.stdout
    assert b"silences[1]" not in run.stderr


def test_check_says_of_a_model_nobody_watches(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(MINIMUM + "defaults: {discover: {models: 'a-*'}}\n")
    assert "churn is not watched" in said(streamproc("check", "--config", path, "--model", "churn"))


def test_a_broker_that_is_not_there_ends_with_4() -> None:
    address = f"127.0.0.1:{free_port()}"
    run = streamproc("topics", "create", "--timeout", "0.5", env={"KAFKA_BROKERS": address})
    assert run.returncode == 4
    assert f"{address}: connection refused" in said(run)


def test_a_worker_without_broker_ends_with_4_and_says_so_in_json_where_asked_for() -> None:
    address = f"127.0.0.1:{free_port()}"
    run = streamproc("worker", "--connect-timeout", "0.5", "--log-format", "json", env={"KAFKA_BROKERS": address})
    assert run.returncode == 4
    last = [json.loads(line) for line in run.stderr.splitlines()][-1]
    assert (last["event"], last["level"]) == ("cannot start", "error")
    assert f"{address}: connection refused" in last["problem"]


def test_replay_writes_alerts_to_stdout_and_the_summary_to_stderr(history: Path, worker_yaml: Path) -> None:
    run = streamproc("replay", "--from-file", history, "--config", worker_yaml)
    assert run.returncode == 0
    alerts = [json.loads(line) for line in run.stdout.splitlines()]
    assert {"firing", "resolved"} == {a["status"] for a in alerts}
    opened = sum(a["action"] == "opened" for a in alerts)
    summary = run.stderr.decode()
    assert "events: 900 of 2 models from 2026-01-05T" in summary
    assert f"alerts: {opened} opened" in summary
    assert "events a second" in summary


def test_replay_reads_stdin_and_writes_a_file(history: Path, worker_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "alerts.jsonl"
    text = gzip.decompress(history.read_bytes())
    run = streamproc("replay", "--from-file", "-", "--config", worker_yaml, "--output", out, stdin=text)
    assert (run.returncode, run.stdout) == (0, b"")
    assert out.read_bytes() == streamproc("replay", "-f", history, "-c", worker_yaml).stdout


def test_replay_gates_end_with_3(history: Path, worker_yaml: Path) -> None:
    fails = streamproc(
        "replay", "-f", history, "-c", worker_yaml, "--max-alerts", "0", "--expect-alert", "label_share:*"
    )
    assert fails.returncode == 3
    assert "--max-alerts allows 0; no alert opened on label_share:*" in said(fails)
    holds = streamproc(
        "replay", "-f", history, "-c", worker_yaml, "--max-alerts", "99", "--expect-alert", "latency_p95"
    )
    assert holds.returncode == 0


@pytest.fixture(scope="module")
def short_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "short.yaml"
    path.write_text(MINIMUM + quick() + "incidents: {window: 10s, quiet: 5s, confirm_after: 5s}\n")
    return path


def test_replay_tells_of_incidents_one_by_one_and_writes_them_where_asked(history: Path, short_yaml: Path) -> None:
    def lines(*options: str) -> tuple[list[bytes], str]:
        run = streamproc("replay", "-f", history, "-c", short_yaml, *options)
        assert run.returncode == 0
        return run.stdout.splitlines(), run.stderr.decode()

    alerts, summary = lines()
    incidents, _ = lines("--show", "incidents")
    both, _ = lines("--show", "all")
    steps = [json.loads(line) for line in incidents]
    assert not any(b"incident_id" in line for line in alerts)
    assert all("incident_id" in step for step in steps)
    assert [line for line in both if line in incidents] == incidents
    assert [line for line in both if line not in incidents] == alerts
    last = {step["incident_id"]: step for step in steps}
    open_still = sum(step["action"] != "resolved" for step in last.values())
    assert len(last) > 1
    assert open_still > 0
    assert f"incidents: {len(last)} opened; " in summary
    assert f"; {open_still} not over at the end" in summary
    for step in last.values():
        still = "" if step["action"] == "resolved" else ", not over"
        assert f"  {step['startsAt'][:19]}Z {step['severity']}{still}: {step['summary']}\n" in summary


def test_replay_shows_what_the_cap_passes_on(history: Path, short_yaml: Path, tmp_path: Path) -> None:
    capped = short_yaml.read_text().replace("labels: [labels]", "labels: [labels], pages: pages")
    path = tmp_path / "w.yaml"
    path.write_text(capped.replace("defaults:", "defaults:\n  budget: {per_fleet_per_day: 1}", 1))
    run = streamproc("replay", "-f", history, "-c", path, "--show", "pages")
    pages = [json.loads(line) for line in run.stdout.splitlines()]
    opened = [p for p in pages if p["action"] == "opened" and p["severity"] != "critical"]
    assert [p["signal"] == "digest" for p in opened] == [False, True]
    assert re.search(r"^pages: \d+ alerts passed on, and 1 digest of the rest$", said(run), re.MULTILINE)
    run = streamproc("replay", "-f", history, "-c", short_yaml, "--show", "pages")
    assert run.returncode == 2
    assert "this config wants no pages" in said(run)


@pytest.mark.parametrize("gate", [["--max-alerts", "5"], ["--max-incidents", "5"]], ids=" ".join)
def test_a_gate_on_a_history_that_could_not_be_read_ends_with_3(
    gate: list[str], history: Path, short_yaml: Path, tmp_path: Path
) -> None:
    good = gzip.decompress(history.read_bytes()).splitlines()[:200]
    bad = [b'{"what": "else"}'] * 300
    histories = {"none": ([], 3), "refused": (bad, 3), "mostly": (good + bad, 3), "some": (good + bad[:99], 0)}
    for name, (lines, code) in histories.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"\n".join(lines))
        run = streamproc("replay", "-f", path, "-c", short_yaml, *gate)
        assert (name, run.returncode) == (name, code), said(run)
        without = streamproc("replay", "-f", path, "-c", short_yaml)
        assert without.returncode == 0
        assert ("most of" in said(without)) == (name in ("refused", "mostly"))


def test_replay_says_what_warms_up_still_at_its_end(history: Path, tmp_path: Path) -> None:
    config = tmp_path / "w.yaml"
    config.write_text(MINIMUM)
    assert "at the end 2 of 2 models warm up: " in said(streamproc("replay", "-f", history, "-c", config))


def test_replay_gates_on_incidents_end_with_3(history: Path, short_yaml: Path) -> None:
    base = ("replay", "-f", history, "-c", short_yaml)
    fails = streamproc(*base, "--max-incidents", "0", "--expect-incident", "infra")
    assert fails.returncode == 3
    assert "--max-incidents allows 0; no incident is put down to infra; --expect-incident wants one" in said(fails)
    holds = streamproc(*base, "--max-incidents", "9", "--expect-incident", "traffic", "--expect-incident", "data")
    assert holds.returncode == 0


def test_replay_without_incidents_says_nothing_of_them_and_shows_none(history: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(MINIMUM.replace("labels: [labels]", 'labels: [labels], incidents: ""') + quick())
    run = streamproc("replay", "-f", history, "-c", path)
    assert run.returncode == 0
    assert "incident" not in said(run)
    for options in (["--show", "all"], ["--max-incidents", "1"], ["--expect-incident", "data"]):
        run = streamproc("replay", "-f", history, "-c", path, *options)
        assert run.returncode == 2
        assert "kafka.incidents" in said(run)


def test_the_causes_of_the_command_line_are_those_there_are() -> None:
    assert get_args(Category) == cli._CAUSES


def test_replay_says_which_lines_it_could_not_read(worker_yaml: Path) -> None:
    run = streamproc("replay", "-f", "-", "-c", worker_yaml, stdin=b'{"model": "m", "prediction": 1}\n{oops\n{}\n')
    assert run.returncode == 0
    assert "rejected: 1 malformed; the first in line 2: " in said(run)
    assert "without a time: " in said(run)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-f", "missing.jsonl"], "there is no file missing.jsonl"),
        (["-f", "."], "cannot be read: Is a directory"),
        (["-f", "-", "--expect-alert", "latency"], None),
        (["-f", "-", "--expect-alert", "nothing"], "there is no signal `nothing`"),
        (["-f", "-", "--output", "no/such/dir"], "cannot be written"),
    ],
)
def test_replay_misused_is_one_message(args: list[str], message: str | None) -> None:
    run = streamproc("replay", *args)
    assert run.returncode == (3 if message is None else 2)
    assert message is None or message in said(run)


def test_a_damaged_gzip_file_is_one_message(tmp_path: Path, history: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(history.read_bytes()[:-2000])
    run = streamproc("replay", "-f", path)
    assert run.returncode == 2
    assert "is a damaged gzip file" in said(run)


def test_schema_prints_writes_and_checks(tmp_path: Path) -> None:
    assert json.loads(streamproc("schema", "alert.v1").stdout)["title"] == "Alert"
    assert "alert.v1\n" in said(streamproc("schema"))
    assert streamproc("schema", "--output", tmp_path / "s").returncode == 0
    assert streamproc("schema", "--check", tmp_path / "s").returncode == 0
    (tmp_path / "s" / "alert.v1.json").write_text("{}")
    stale = streamproc("schema", "--check", tmp_path / "s")
    assert stale.returncode == 3
    assert "out of step: alert.v1.json" in said(stale)
    assert streamproc("schema", "alarm").returncode == 2
