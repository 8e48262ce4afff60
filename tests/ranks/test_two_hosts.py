"""Two hosts, each with ``accelerate launch``; one is disconnected during the run; both are restarted."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import launch
from tests.support.fork_server import python
from tests.support.hosts import ADDRESSES, Hosts, Started, missing_requirement, two_hosts
from tests.support.limits import HANG_S, rank_timeout_s, start_s
from tests.support.voices import metrics, prepared_folder, train_flags, weights

MISSING = missing_requirement()
pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
]

UPDATES = 16
STORE_TIMEOUT_S = 5
"""For calls to the store of a machine that is gone."""
SLACK_S = 5
EXIT_S = 30
"""Time for a rank and its launcher to exit on a busy machine."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder on a disk that both hosts share."""
    return prepared_folder(tmp_path_factory.mktemp("two-hosts"), clips=12)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as hosts:
        yield hosts


def accelerate(host: int, program: str) -> list[str]:
    options = {"num_machines": 2, "num_processes": 2, "machine_rank": host, "main_process_ip": ADDRESSES[0]}
    words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    return launch.command_of("multi_node", *words, program=program)


def flags(folder: Path, data: Path, **changes: object) -> list[str]:
    settings = {"batch_size": 2, "max_updates": UPDATES, "save_every_updates": 4}
    settings |= {"rank_timeout_s": rank_timeout_s(start_s())}
    return train_flags(folder, data_dir=data, runs_dir=folder / "training/runs", **settings, **changes)


def start(hosts: Hosts, folder: Path, data: Path, program: str, **changes: object) -> list[Started]:
    folder.mkdir(exist_ok=True)
    command = ["-m", "vits_trainer", "train_vits", *flags(folder, data, **changes)]
    variables = {"ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": program}
    return [hosts.start(host, [*accelerate(host, program), *command], **variables) for host in (0, 1)]


def wait_for_update(folder: Path, started: list[Started], update: int) -> None:
    file = folder / "training/runs/run/metrics.jsonl"
    start_time_s = time.monotonic()
    while not file.is_file() or len(file.read_text().splitlines()) < update:
        assert all(host.process.poll() is None for host in started), started[0].output() + started[1].output()
        assert time.monotonic() - start_time_s < HANG_S
        time.sleep(0.02)


def finish(started: list[Started]) -> str:
    """Waits for both to exit with 0, and returns their output."""
    codes = [host.wait(HANG_S) for host in started]
    output = "".join(host.output() for host in started)
    assert codes == [0, 0], output
    return output


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two ranks, on one host."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = launch.run(2, None, flags(folder, data))
    assert ended.returncode == 0, ended.stderr
    return folder


ON_REQUEST = pytest.mark.skipif("TWO_HOSTS" not in os.environ, reason="takes another minute: run with TWO_HOSTS=1")
GONE = "vits-trainer: rank 0's machine or its launcher is gone or cannot be reached"


@pytest.mark.parametrize(
    ("killed", "messages"),
    [
        # Like a failing switch: both hosts stay alive, without a connection.
        pytest.param(None, {0: "vits-trainer: rank 1 died or ", 1: GONE}, id="the cable"),
        pytest.param(1, {0: "vits-trainer: rank 1 died or "}, id="host 1", marks=ON_REQUEST),
        pytest.param(0, {1: GONE}, id="host 0", marks=ON_REQUEST),
    ],
)
def test_disconnected_host_is_reported_and_a_restart_ends_with_the_same_weights(
    hosts: Hosts,
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    killed: int | None,
    messages: dict[int, str],
    record_property: Callable[[str, object], None],
) -> None:
    # The processes of a host that loses power must be children of one process.
    program = python() if killed is None else sys.executable
    started = start(hosts, tmp_path / "cut", data, program)
    wait_for_update(tmp_path / "cut", started, 6)
    hosts.cut()
    if killed is not None:
        started[killed].kill()
    cut_s = time.monotonic()
    for host, message in messages.items():
        assert started[host].wait(HANG_S) == 1, started[host].output()
        (message_s,) = (at_s for at_s, line in started[host].lines if line.startswith(message))
        limit_s = rank_timeout_s(start_s()) + STORE_TIMEOUT_S + SLACK_S * start_s()
        assert message_s - cut_s < limit_s, started[host].output()
        ended_s = started[host].ended_s
        assert ended_s - message_s < EXIT_S * start_s()
        record_property(f"host {host}: seconds from cut to message, to end", (message_s - cut_s, ended_s - cut_s))
    assert len(metrics(tmp_path / "cut")) < UPDATES

    hosts.join()
    output = finish(start(hosts, tmp_path / "cut", data, program, resume_from_checkpoint="auto"))
    assert re.search(r"Resumed from \S+/checkpoint-\d+ at update \d+", output)
    assert weights(tmp_path / "cut", UPDATES) == weights(uninterrupted, UPDATES)
    assert [line["update"] for line in metrics(tmp_path / "cut")] == list(range(1, UPDATES + 1))
