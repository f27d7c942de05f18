"""A real Alertmanager on loopback, from Debian's package, unpacked and not installed."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from streamproc.worker import child

PACKAGE = "prometheus-alertmanager"
HERE = Path(__file__).resolve().parent


class AlertmanagerUnavailable(RuntimeError):
    """Alertmanager cannot run on this machine; the message says what is missing."""


@functools.cache
def binary() -> Path:
    """Return the program; $STREAMPROC_ALERTMANAGER names another one, which serves as it is."""
    if (given := os.environ.get("STREAMPROC_ALERTMANAGER")) is not None:
        return Path(given)
    return debian(PACKAGE, PACKAGE)


def debian(package: str, program: str) -> Path:
    """Return a program of a Debian package, bringing it by apt the first time; kept in `.cache` of the repository."""
    if (installed := shutil.which(program)) is not None:
        return Path(installed)
    home = HERE.parents[1] / ".cache" / package
    found = home / "root" / "usr" / "bin" / program
    if found.is_file():
        return found
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise AlertmanagerUnavailable(f"{tool} is not on PATH, to bring {package}")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second test run waits here, then finds it
        if found.is_file():
            return found
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            got = _run("apt-get", "download", package, cwd=scratch)
            if got.returncode != 0:  # a machine whose lists of packages are old, or not there yet
                _run("apt-get", "update", "-q", cwd=scratch)
                got = _run("apt-get", "download", package, cwd=scratch)
            archives = list(Path(scratch).glob("*.deb"))
            if got.returncode != 0 or not archives:
                raise AlertmanagerUnavailable(f"apt-get could not bring {package}: {got.stderr[-500:]}")
            unpacked = Path(scratch) / "root"
            done = _run("dpkg", "-x", str(archives[0]), str(unpacked), cwd=scratch)
            if done.returncode != 0:
                raise AlertmanagerUnavailable(f"dpkg could not unpack {archives[0].name}: {done.stderr[-500:]}")
            for each in (unpacked / "usr" / "bin").iterdir():
                _relocate(each)
            unpacked.rename(home / "root")
    return found


def _relocate(program: Path) -> None:
    """Let a program that was not installed find what it would find under /usr, relative to where it is started.

    Debian's build reads its templates from a fixed path and starts without them only if they are there. Nothing else of
    it is touched: the new path is as long as the old one.
    """
    program.write_bytes(program.read_bytes().replace(b"/usr/share/prometheus", b"./us/share/prometheus"))


def _run(*command: str, cwd: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=180, check=False)


class Alertmanager:
    """One Alertmanager; it keeps its port when it is stopped and started again.

    webhook: where it is to notify, at once and again when something has changed. config: another file for it.
    """

    def __init__(
        self, directory: Path, *, webhook: str | None = None, group_wait: str = "0s", config: str | None = None
    ) -> None:
        self.home = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = child.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        hooks = [{"url": webhook, "send_resolved": True}] if webhook is not None else []
        receiver = {"name": "test", "webhook_configs": hooks}
        route = {"receiver": "test", "group_by": ["model"], "group_wait": group_wait, "group_interval": "1s",
                 "repeat_interval": "1h"}  # fmt: skip
        # JSON is YAML.
        written = json.dumps({"route": route, "receivers": [receiver]}) if config is None else config
        (directory / "alertmanager.yml").write_text(written)
        share = binary().parents[1] / "share"
        if share.is_dir():
            (directory / "us").mkdir(exist_ok=True)
            (directory / "us" / "share").symlink_to(share)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Alertmanager:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = child.spawn(
            [binary(), "--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address=",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            log=self.home / "alertmanager.log",
            cwd=self.home,
        )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError(child.tail(self.home / "alertmanager.log")) from None
                time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, its alerts with it: they are in memory only."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def get(self, path: str, **query: str) -> Any:
        text = f"{self.url}/api/v2/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(text, timeout=5) as response:
            return json.load(response)

    def firing(self) -> dict[str, Any]:
        """Return the active alerts of all groups, by their labels model and severity."""
        alerts = [a for group in self.get("alerts/groups", active="true") for a in group["alerts"]]
        return {f"{a['labels']['model']}/{a['labels']['severity']}": a for a in alerts}
