"""What the README shows is taken as it is shown."""

from __future__ import annotations

import json
import re

import pytest

from streamproc.decoding import Decoder
from streamproc.events import Label, Prediction, Telemetry
from tests.conftest import LONG
from tests.core.make import batch, config
from tests.core.test_cli import ROOT, said, streamproc

README = (ROOT / "README.md").read_text("utf-8")

RECORDS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", README, re.DOTALL) if '"source"' in text]

#: The types, in the order in which the README shows one of each.
KINDS = [Prediction, Prediction, Telemetry, Label]


@pytest.mark.parametrize(("kind", "record"), list(zip(KINDS, RECORDS, strict=True)))
def test_the_records_of_the_readme_are_read(kind: type, record: dict[str, object]) -> None:
    decoded = Decoder(kind).decode(batch([record]))
    assert decoded.rejected == []


def test_they_feed_what_they_are_said_to() -> None:
    for record, kind, signal in zip(
        RECORDS, ["predictions", "predictions", "telemetry", "labels"],
        ["class_share:fraud", "error_share:timeout", "metric:gpu.utilization", "label_share:fraud"], strict=True
    ):  # fmt: skip
        run = streamproc("explain-record", "-", "--kind", kind, stdin=json.dumps(record).encode())
        assert run.returncode == 0
        assert signal in said(run)


def test_the_configs_of_the_readme_load() -> None:
    texts = [t for t in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if t.startswith(("defaults:", "models:"))]
    assert len(texts) >= 3
    for text in texts:
        config(text)


def test_every_page_that_is_linked_is_there() -> None:
    for page in re.findall(r"\]\((docs/[\w./-]+|[A-Z]+)(?:#[\w-]+)?\)", README):
        assert any((ROOT / f"{page}{suffix}").exists() for suffix in ("", ".md")), page


def test_the_targets_it_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"`(?:DEMO_SECONDS=\d+ )?make ([\w-]+)`", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_test_that_the_quick_run_leaves_out_is_there() -> None:
    source = "".join(p.read_text("utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in LONG if f"def {name}(" not in source] == []
