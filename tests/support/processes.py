"""Several real processes of one run over loopback, each with its own virtual CPU devices."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.support.runs import ROOT, command, environment

DEVICES = 4
# Far more than it takes: several processes compile at once on a busy machine.
SECONDS = 600


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """The processes of one command, started together; they share `DEVICES` devices evenly."""

    def __init__(
        self,
        count: int,
        *words: str,
        cache: Path,
        logs: Path,
        codes: dict[int, str] | None = None,
        more: dict[int, list[str]] | None = None,
    ):
        """`codes` run first in the processes of these numbers, which may have `more` words of their own."""
        self.logs = [logs / f"process-{number}.log" for number in range(count)]
        logs.mkdir(parents=True, exist_ok=True)
        flags = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
        self.each = []
        for number, log in enumerate(self.logs):
            mine = [*words, *flags, f"--process={number}"] if count > 1 else list(words)
            # The last of equal flags counts.
            mine += (more or {}).get(number, [])
            with log.open("w") as file:
                self.each.append(
                    subprocess.Popen(
                        command(*mine, code=(codes or {}).get(number, "")),
                        env=_environment(cache, DEVICES // count),
                        stdout=file,
                        stderr=file,
                        cwd=ROOT,
                    )
                )

    def wait(self, seconds: float = SECONDS) -> list[int]:
        """Returns the exit statuses; none outlives the test."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.each]
        finally:
            self.kill()

    def text(self, number: int) -> str:
        return self.logs[number].read_text()

    def wait_for(self, path: Path, text: str) -> None:
        """Waits until a file holds a text."""
        end = time.monotonic() + SECONDS
        while not (path.exists() and text in path.read_text()):
            assert all(process.poll() is None for process in self.each), self.text(0)
            assert time.monotonic() < end, self.text(0)
            time.sleep(0.02)

    def kill(self) -> None:
        for process in self.each:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()


def below(root: int) -> dict[int, str]:
    """Returns {pid: title} of a process and all that it started, as far as that has not left it."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ").strip()
    found, new = set(), {root}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return {pid: titles[pid] for pid in found if pid in titles}


def run_all(count: int, *words: str, cache: Path, logs: Path, **options) -> Processes:
    """Runs the processes of one command to their end, which must be good."""
    processes = Processes(count, *words, cache=cache, logs=logs, **options)
    assert processes.wait() == [0] * count, "\n".join(map(processes.text, range(count)))
    return processes


def _environment(cache: Path, devices: int) -> dict[str, str]:
    values = environment(cache)
    values["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    return {name: value for name, value in values.items() if not name.lower().endswith("_proxy")} | {
        # One thread pool of the whole machine a process would make them wait for each other.
        "OMP_NUM_THREADS": "1",
        "HOME": os.environ.get("HOME", "/"),
    }
