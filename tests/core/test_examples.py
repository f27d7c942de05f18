"""The examples do what their first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson

from streamproc import rules
from streamproc.decoding import Decoder
from streamproc.events import Alert, Prediction
from streamproc.replay import Replay
from streamproc.rules import RuleBook
from tests.core.make import batch

ROOT = Path(__file__).parents[2]


def made(path: Path, *options: str) -> bytes:
    argv = [sys.executable, str(ROOT / "examples/make_events.py"), "--seconds", "40", "--output", str(path), *options]
    subprocess.run(argv, check=True, timeout=120, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    return path.read_bytes()


def test_the_generators_history_has_the_demos_fault_and_no_other(tmp_path: Path) -> None:
    import gzip

    lines = gzip.decompress(made(tmp_path / "e.gz")).splitlines()
    assert len(lines) == 8000
    assert not Decoder(Prediction).decode(batch(lines)).rejected
    run = Replay(RuleBook(rules.load(ROOT / "examples/demo.yaml", env={})), kind="predictions")
    opened = [a for a in run.run(lines) if isinstance(a, Alert) and a.action == "opened"]
    assert {a.signal for a in opened} == {
        "missing_features", "feature_drift", "class_share:window", "prediction_psi"
    }  # fmt: skip
    fault = orjson.loads(lines[4800])["time"][:23]  # at 60% of 40 s
    assert all(a.lastReceived[:23] > fault for a in opened)
    assert min(a.lastReceived for a in opened)[17:19] == "24"
