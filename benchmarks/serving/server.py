"""A server in a process of its own: started, waited for, looked at through /proc, ended.

Memory and processor time are those that Linux writes in /proc; elsewhere they are not known (None).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

HOST = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 90.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def fetch(port: int, path: str, seconds: float = 10.0) -> tuple[int, bytes]:
    """(status, body) of a GET."""
    line = http.client.HTTPConnection(HOST, port, timeout=seconds)
    try:
        line.request("GET", path)
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


@final
class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def said(self, characters: int = 2000) -> str:
        """The end of what it wrote."""
        return self.log.read_text(encoding="utf8", errors="replace")[-characters:]

    def ready(self, path: str) -> None:
        """Nothing, once it answers 200; RuntimeError with its last words where it ends or stays silent."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode} at its start:\n{self.said()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if fetch(self.port, path, 2.0)[0] == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not answer 200 at {path} in {START_SECONDS:.0f} s:\n{self.said()}")

    def mib(self) -> float | None:
        """Its resident memory in MiB."""
        found = re.search(r"VmRSS:\s+(\d+) kB", self._proc("status"))
        return int(found[1]) / 1024 if found else None

    def processor_seconds(self) -> float | None:
        """What it has used of the processor so far, all threads."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.process.pid}/{name}").read_text(encoding="utf8")
        except OSError:
            return ""

    def metrics(self) -> dict[str, float]:
        """What /metrics counts: each line's name and labels as they are written there -> its value."""
        status, body = fetch(self.port, "/metrics")
        if status != 200:
            raise RuntimeError(f"/metrics answered {status}")
        lines = (line.rpartition(" ") for line in body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def end(self) -> int:
        """Its exit code after SIGTERM; it is killed where it does not end (-9)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended; it is killed where it does not (-9)."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, threads: int, ready: str = "/ready", more: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """The server that a command starts on a port, ready."""
    environment = {**os.environ, **surroundings(threads), **(more or {})}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as written:
            process = subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT, env=environment)
        server = Server(process, port, log)
        try:
            server.ready(ready)
            yield server
        finally:
            server.end()


def surroundings(threads: int) -> dict[str, str]:
    """The environment of every process that computes: so many threads, which do not spin while they wait."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def serving(models: Mapping[str, Path], threads: int, *options: str) -> contextlib.AbstractContextManager[Server]:
    """`rerank serve` of models by name, with the options given."""
    port = free_port()
    named = [f"{name}={path}" for name, path in models.items()]
    command = [sys.executable, "-m", "rerank", "serve", *named, "--port", str(port), "--device", "cpu", *options]
    return running(command, port, threads)
