"""Below the worker there is no clock, no randomness of its own, no input and no output."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Commands, and what reads files.
COMMANDS = ("cli.py", "letters.py", "looking.py", "saying.py", "rewinding.py", "tables.py")
PURE = sorted(
    p for p in [*(ROOT / "streamproc").glob("*.py"), *(ROOT / "detectors").glob("*.py")]
    if p.name not in COMMANDS
) + [ROOT / "streamproc" / "bridges" / name for name in ("steps.py", "payloads.py")]

#: The one file that is read, by name and once: a config.
READS = {("streamproc/config.py", "read_text")}

FORBIDDEN_NAMES = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}
FORBIDDEN_METHODS = {
    "now", "utcnow", "today", "read_text", "read_bytes", "write_text", "write_bytes", "getenv", "urandom", "uuid1",
    "uuid4", "perf_counter", "monotonic", "sleep",
}  # fmt: skip
FORBIDDEN_MODULES = {"time", "logging", "structlog", "socket", "asyncio", "os", "faust", "aiokafka", "kafka",
                     "threading", "subprocess", "secrets", "uuid"}  # fmt: skip

#: Seeded generators are randomness as an argument.
SEEDED = {"Random", "default_rng"}


def problems(path: Path) -> list[str]:
    name = str(path.relative_to(ROOT))
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            modules = [node.module]
        found += [
            f"{name}:{node.lineno} imports {m}" for m in modules if m.partition(".")[0] in FORBIDDEN_MODULES
        ]  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        call = node.func
        if isinstance(call, ast.Name) and call.id in FORBIDDEN_NAMES:
            found.append(f"{name}:{node.lineno} calls {call.id}()")
        if isinstance(call, ast.Attribute):
            of = call.value.id if isinstance(call.value, ast.Name) else ""
            of_numpy = isinstance(call.value, ast.Attribute) and call.value.attr == "random"
            unseeded = (of == "random" or of_numpy) and (call.attr not in SEEDED or not node.args)
            if unseeded or (call.attr in FORBIDDEN_METHODS and (name, call.attr) not in READS):
                found.append(f"{name}:{node.lineno} calls {of}.{call.attr}()")
    return found


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_pure_module_neither_asks_nor_tells_the_world(path: Path) -> None:
    assert problems(path) == []


def test_the_search_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "bad.py").write_text(
        "import time, random, os\nfrom datetime import datetime\nimport numpy as np\n"
        "datetime.now()\nopen('x')\nprint(1)\nrandom.random()\nrandom.Random()\nnp.random.rand()\ntime.time()\n"
    )
    lines = {int(p.split(":")[1].split()[0]) for p in problems(tmp_path / "bad.py")}
    assert lines == {1, 4, 5, 6, 7, 8, 9}
