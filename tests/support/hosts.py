"""Two hosts on one machine: Linux network namespaces that share only a cable and the disk."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.213.77.1", "10.213.77.2")
CABLE = "cable"
"""Name of the network device on both hosts."""


def missing_requirement() -> str:
    """Returns why network namespaces are not available, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip, from the package iproute2"
    name = f"vits-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@dataclass
class Started:
    """A process on a host, and its output with the time of each line."""

    process: subprocess.Popen[str]
    start_time_s: float
    lines: list[tuple[float, str]] = field(default_factory=list)
    ended_s: float = 0

    def output(self) -> str:
        return "".join(line for _, line in self.lines)

    def wait(self, timeout_s: float) -> int:
        code = self.process.wait(timeout_s)
        self.ended_s = time.monotonic()
        self._reader.join(10)
        return code

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    def kill(self) -> None:
        """Kills all of its processes at once, as a power failure would."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)


class Hosts:
    """Host 0 and host 1, connected by a cable."""

    def __init__(self) -> None:
        self.names = [f"vits-{os.getpid()}-{number}" for number in (0, 1)]
        self.started: list[Started] = []

    def set_up(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ends = [word for name in self.names for word in ("peer", "name", CABLE, "netns", name)]
        ip("link", "add", *ends[1:5], "type", "veth", *ends[5:])
        for name, address in zip(self.names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", CABLE)
            ip("-n", name, "link", "set", "lo", "up")
        self.join()

    def join(self) -> None:
        """Connects the hosts."""
        for name in self.names:
            ip("-n", name, "link", "set", CABLE, "up")

    def cut(self) -> None:
        """Disconnects the hosts: packets are lost, and neither host is notified."""
        ip("-n", self.names[1], "link", "set", CABLE, "down")

    def start(self, host: int, command: list[str], **variables: str) -> Started:
        network = {"GLOO_SOCKET_IFNAME": CABLE, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, **network, **variables},
        )
        self.started.append(Started(process, time.monotonic()))
        return self.started[-1]

    def tear_down(self) -> None:
        for started in self.started:
            started.kill()
            started.process.wait(30)
        for name in self.names:
            with suppress(subprocess.CalledProcessError):  # it may not exist
                ip("netns", "del", name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Sets up two hosts, and removes them afterwards."""
    hosts = Hosts()
    try:
        hosts.set_up()
        yield hosts
    finally:
        hosts.tear_down()
